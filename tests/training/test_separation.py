"""A separation model is trained: any order of the speakers, ready mixtures of two in dev."""

from dataclasses import dataclass

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import speechlab
from speechlab.cli.options import assigned
from speechlab.config import replaced
from speechlab.data import manifest
from speechlab.data.manifest import Item
from speechlab.data.mixing import MixtureConfig, PairConfig
from speechlab.errors import UserError
from speechlab.evaluation import separation_metrics
from speechlab.models import SYSTEMS
from speechlab.models.base import Model
from speechlab.models.sepmamba import SepMamba
from speechlab.study import launch
from speechlab.study.experiment import Experiment, changed, check
from speechlab.study.experiments import EXPERIMENTS
from speechlab.training.schedule import TrainingConfig
from speechlab.weights.checkpoints import save

RATE, N_FRAMES = 8000, 4000  # Hz; samples of every file


@dataclass(frozen=True)
class FiltersConfig:
    n_sources: int = 2
    sample_rate: int = 8000


class Filters(Model):
    """Stands in for a model: one short filter for each source."""

    def __init__(self, config):
        super().__init__(config)
        self.n_sources = config.n_sources
        self.conv = nn.Conv1d(1, config.n_sources, 33, padding=16, bias=False)

    def forward(self, mixture):
        return self.conv(mixture)


@pytest.fixture(autouse=True)
def system(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "filters", (FiltersConfig, Filters))


@pytest.fixture
def corpus(tmp_path):
    """Speakers of low and high tones, each in one split; ready mixtures of two, and of one."""
    folder = tmp_path / "speakers"
    splits = {split: [] for split in manifest.SPLITS}
    for split, items in splits.items():
        for speaker in range(4):
            name = f"{split}_{speaker}"
            path = written(folder, f"{split}/speech/{name}.wav", voice(speaker, split))
            made = {"speakers": (name,), "recordings": (name,)}
            items.append(Item(name, "speech", path, N_FRAMES, RATE, **made))
        for index in range(3):
            name = f"{split}_mix_{index}"
            # high speakers are first in one mixture, second in the next
            voices = [voice(2 * side + (index + side) % 2, split) for side in range(2)]
            voices = voices[:: (-1) ** index]
            signals = {"mix": sum(voices), "s1": voices[0], "s2": voices[1]}
            place = f"{split}/{{}}/{name}.wav"
            paths = [written(folder, place.format(k), samples) for k, samples in signals.items()]
            for sources in (paths[1:], paths[1:2]):
                own = f"{name}_of_{len(sources)}"
                known = {"sources": tuple(sources), "recordings": (name,)}
                items.append(Item(own, "mixture", paths[0], N_FRAMES, RATE, **known))
    manifest.write(folder, splits, {"name": "speakers"})
    return folder


def voice(speaker, split):
    """Low for the first two speakers, high for the others; noise makes each its own."""
    rng = np.random.default_rng([speaker, len(split)])
    low, high = ((0.05, 0.3), (1.0, 2.5))[speaker // 2]
    pitches = rng.uniform(low, high, 20)
    tones = np.sin(pitches[:, None] * np.arange(N_FRAMES) + rng.uniform(0, 6, (20, 1)))
    return 0.02 * tones.sum(0)


def written(folder, path, samples):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / path, samples, RATE, subtype="FLOAT")
    return path


@pytest.fixture
def toy(corpus):
    experiment = Experiment(
        name="filters",
        system="filters",
        model=FiltersConfig(),
        corpora=(str(corpus),),
        n_per_epoch=64,
        mixture=MixtureConfig(segment_s=0.25, sample_rate=RATE, n_sources=2),
        objective="permutation_invariant",
        losses={"si_sdr": 1.0},
        dev_metrics=("si_sdri", "si_snri", "sdri"),
        training=TrainingConfig(60, batch_size=4, lr=1e-2, metric="si_sdri", validate_every=30),
    )
    check(experiment)
    return experiment


def test_it_learns_speakers_in_any_order(toy, corpus, tmp_path):
    run = launch.train(toy, tmp_path / "runs", progress=False)
    scores = run.validations
    assert scores["si_sdri"].iloc[-1] > scores["si_sdri"].iloc[0] and scores["si_sdri"].max() > 8
    assert run.dev["file"].tolist() == [f"dev_mix_{index}_of_2" for index in range(3)]
    model = speechlab.load(run.folder)
    paths = [corpus / f"dev/{kind}/dev_mix_1.wav" for kind in ("mix", "s1", "s2")]
    parts = [soundfile.read(path)[0] for path in paths]
    with torch.inference_mode():
        estimate = model(torch.from_numpy(parts[0]).float()[None, None])[0].numpy()
    speakers = separation_metrics.score(estimate, np.stack(parts[1:]), parts[0], RATE, ("si_sdri",))
    gained = separation_metrics.mean(speakers, ("si_sdri",))["si_sdri"]
    assert run.dev["si_sdri"][1] == pytest.approx(gained, abs=1e-3)


def test_ready_mixtures_are_trained_on(toy, tmp_path):
    """Those of two sources, of a corpus that has others as well."""
    pair = PairConfig(segment_s=0.25, sample_rate=RATE)
    changes = {"examples": "pairs", "pair": pair, "mixture": MixtureConfig(), "n_per_epoch": 2000}
    pairs = replaced(toy, changes | {"training.n_steps": 2})
    examples = launch.training_examples(pairs)
    assert len(examples) == 3 and examples.n_sources == 2
    assert launch.train(pairs, tmp_path / "runs", progress=False).step == 2


def test_a_failed_estimate_fails_its_file(toy):
    """A model that is silent on one speaker is not chosen for its mean over the other."""
    model = launch.untrained(toy)
    nn.init.zeros_(model.conv.weight[1:].detach())
    rows = launch.dev_scores(toy)(model)
    assert len(rows) == 3 and rows["si_sdri"].isna().all()


def test_a_model_of_one_source_is_refused(toy, tmp_path):
    for changes, said in (
        ({"model.n_sources": 1}, "the model gives 1 sources, examples have 2"),
        ({"model.n_sources": 3}, r"no ready mixtures of 3 source\(s\) in the dev split"),
    ):
        with pytest.raises(UserError, match=said):
            launch.train(replaced(toy, changes), tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()
    for objective in ("supervised", "metric_gan"):
        with pytest.raises(UserError, match="set objective=permutation_invariant"):
            check(changed(toy, {"objective": objective}))
    mixtures = launch.dev_scores(toy).keywords["mixtures"]
    with pytest.raises(UserError, match="take mixtures of as many sources"):
        launch.scores(Filters(FiltersConfig(n_sources=1)), mixtures, ("si_sdri",))


def test_a_separator_is_not_finetuned_as_an_enhancer(toy, tmp_path):
    """The advice is an experiment that fits as it is."""
    fits = EXPERIMENTS["sepmamba-tiny"]
    checkpoint = save(tmp_path / "separator.safetensors", SepMamba(fits.model))
    with pytest.raises(UserError, match="finetune --experiment sepmamba-tiny"):
        launch.finetune(checkpoint, EXPERIMENTS["finetune"], tmp_path / "runs", progress=False)
    advised = replaced(fits, {"corpora": toy.corpora, "training.loggers": ["no"]})
    with pytest.raises(UserError, match="no logger 'no'"):  # it comes to the last of the checks
        launch.finetune(checkpoint, advised, tmp_path / "runs", progress=False)


def test_a_corpus_without_ready_mixtures_says_how_to_make_them(toy, corpus):
    """What the line advises is what it takes."""
    train, dev = (manifest.read(corpus, split) for split in ("train", "dev"))
    train = [item for item in train if item.kind == "speech"]
    manifest.write(corpus, {"train": train, "dev": dev}, {"name": "speakers"})
    pairs = changed(toy, {"examples": "pairs", "pair.sample_rate": RATE})
    with pytest.raises(UserError, match=r"no ready mixtures of 2 source\(s\)") as error:
        launch.training_examples(pairs)
    advice = str(error.value).partition("; set ")[2].split()
    advised = changed(pairs, assigned(advice))
    check(advised)
    examples = launch.training_examples(advised)
    assert examples.n_sources == 2 and examples.sample_rate == RATE
