"""The study's trainings: what they say is what is done, and nothing else."""

import ast
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import speechlab
from speechlab.config import replaced, to_dict
from speechlab.data import manifest
from speechlab.data.mixing import PairConfig
from speechlab.errors import UserError
from speechlab.evaluation import metrics
from speechlab.losses.waveform import LOSSES
from speechlab.models.mpsenet import MPSENetConformerConfig
from speechlab.storage import state as snapshots
from speechlab.study import experiment as experiment_module
from speechlab.study import experiments, launch
from speechlab.study.experiment import Experiment, changed, check, from_settings
from speechlab.study.experiments import EXPERIMENTS
from speechlab.training.runs import Run
from tests.support.toy_corpus import prepared

TINY = EXPERIMENTS["cleanumamba-tiny"]


def state(path):
    return speechlab.load(path).state_dict()


def distance(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_can_be_trained_and_travels_as_json(name):
    experiment = EXPERIMENTS[name]
    assert experiment.name == name
    check(experiment)
    assert from_settings(json.loads(json.dumps(to_dict(experiment)))) == experiment
    model = launch.untrained(experiment)
    read = experiment.pair if experiment.examples == "pairs" else experiment.mixture
    assert model.sample_rate == read.sample_rate


def test_none_is_there_twice():
    unnamed = [replaced(experiment, {"name": "one"}) for experiment in EXPERIMENTS.values()]
    assert all(unnamed.count(experiment) == 1 for experiment in unnamed)


def test_the_table_tells_what_the_experiments_are():
    """From their differences and the committed sizes, without building one."""
    assert experiments.committed_sizes() == experiments.counted_sizes()
    for row, (name, experiment) in zip(experiments.table(), EXPERIMENTS.items(), strict=True):
        assert row["experiment"] == name and row["system"] == experiment.system
        assert row["corpora"] == ", ".join(experiment.corpora)
        assert row["n_steps"] == experiment.training.n_steps


def test_every_field_is_read():
    files = [Path(module.__file__) for module in (experiment_module, launch)]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    read = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id == "experiment"
    }
    assert read >= {field.name for field in dataclasses.fields(Experiment)}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_one_value_an_example(name):
    estimate, clean = torch.randn(2, 3, 1, 4000, generator=torch.Generator().manual_seed(0))
    values = LOSSES[name](estimate, clean)
    assert values.shape == (3,) and (values > LOSSES[name](clean, clean)).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "../up"}, "name is '../up'"),
        ({"name": ".."}, "name is '..'"),
        ({"name": ""}, "name is ''"),
        ({"system": "no"}, "no system 'no'; there are: cleanumamba"),
        ({"model": {"d_model": 4}}, "model must be a CleanUMambaConfig"),
        ({"losses.no": 1.0}, "no loss 'no'; there are: l1, snr"),
        ({"losses": {}}, "losses and corpora must each name one or more"),
        ({"corpora": []}, "losses and corpora must each name one or more"),
        ({"training.seed": 2**32}, "seed must be 0 to 4294967295, not 4294967296"),
        ({"corpora": ["no"]}, "no corpus 'no': neither a prepared folder nor one of synthetic"),
        ({"corpora": ["dns2020"]}, "run `speechlab data prepare dns2020`"),
        ({"dev_metrics": ["si_sdr", "no"]}, "no metric 'no'"),
        ({"training.metric": "stoi"}, "no dev metric 'stoi'; there are: si_sdr"),
        (
            {"model.sample_rate": 8000, "dev_metrics": ["si_sdr", "pesq_wb"]},
            "pesq_wb is not defined at 8000 Hz, the model's rate; take others in dev_metrics",
        ),
        ({"training.loggers": ["no"]}, "no logger 'no'"),
        ({"training.n_steps": 0}, "n_steps must be 1 to 1000000000, not 0"),
        ({"n_per_epoch": 0}, "n_per_epoch must be 1 to"),
        ({"n_per_epoch": 10**10}, "n_per_epoch must be 1 to"),
        ({"losses.l1": float("nan")}, r"losses must be 0 to 1e\+30, not nan in 'l1'"),
        ({"losses.l1": -1.0}, "losses must be .* not -1.0 in 'l1'"),
        ({"n_dev": -1}, "n_dev must be 0 to"),
        ({"mixture.segment_s": float("inf")}, "segment_s must be 6.25e-05 to 3600"),
        ({"mixture.segment_s": float("nan")}, "segment_s must be 6.25e-05 to 3600"),
        ({"mixture.segment_s": 1e-5}, "segment_s must be 6.25e-05 to 3600"),
        ({"mixture.speeds": [1.0, 1e-9]}, "speeds must be 0.1 to 10"),
        ({"mixture.speeds": []}, "speeds must be one or more factors"),
        ({"mixture.snr_db": [0.0, float("inf")]}, "snr_db must be"),
        ({"mixture.silence_db": float("nan")}, "silence_db must be -inf"),
        ({"training.lr": 1e300}, r"lr must be 0 to 1000, not 1e\+300"),
        ({"pair.segment_s": 1.0}, "'pair' is not read where examples are mixtures"),
        ({"mixture.sample_rate": 8000}, "the model works at 16000 Hz, its examples at 8000"),
        ({"mixture.n_sources": 2}, "the model gives 1 sources, examples have 2"),
        ({"mixture.p_room": 0.5}, "there are no rooms"),
        ({"start": "no.safetensors"}, "no.safetensors: no such checkpoint"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(toy, tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as error:
        launch.train(replaced(toy, changes), tmp_path, progress=False)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cuda", "abacus"])
def test_a_device_that_is_not_there_is_refused(toy, tmp_path, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(UserError, match=rf"no device '{device}'.*; there are: .*cpu"):
        launch.train(toy, tmp_path, device, progress=False)
    assert not list(tmp_path.iterdir())


def test_dev_mixtures_have_to_be_there_of_as_many_sources_as_the_model_gives(toy, tmp_path):
    """Those of other numbers are of another task: they are not scored."""
    folder = prepared(tmp_path / "other")
    splits = {split: manifest.read(folder, split) for split in ("train", "dev")}
    mixtures = [item for item in splits["dev"] if item.kind == "mixture"]
    twice = dataclasses.replace(mixtures[0], sources=mixtures[0].sources * 2)
    said = r"no ready mixtures of 1 source\(s\) in the dev split"
    for dev in ([], [twice]):
        manifest.write(folder, splits | {"dev": dev}, {})
        with pytest.raises(UserError, match=said):
            launch.train(replaced(toy, {"corpora": [str(folder)]}), tmp_path, progress=False)
    assert not (tmp_path / "toy").exists()
    manifest.write(folder, splits | {"dev": [twice, mixtures[1]]}, {})
    rows = launch.dev_scores(replaced(toy, {"corpora": [str(folder)]}))(launch.untrained(toy))
    assert rows["file"].tolist() == [mixtures[1].name]


def test_weights_are_drawn_from_the_seed(toy):
    before = torch.random.get_rng_state()
    one, two, other = (
        launch.built(replaced(toy, {"training.seed": seed})).state_dict() for seed in (1, 1, 2)
    )
    assert distance(one, two) == 0 and distance(one, other) > 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_run_that_has_ended_is_left_alone(toy, trained):
    content = {path: path.read_bytes() for path in trained.iterdir()}
    run = launch.train(toy, trained.parent, progress=False)
    assert run.step == 6 and {path: path.read_bytes() for path in trained.iterdir()} == content
    estimate = speechlab.load(trained)(torch.randn(1, 1, 1000))
    assert estimate.shape == (1, 1, 1000) and estimate.isfinite().all()


def test_the_run_tells_the_experiment(toy, trained):
    known = Run.open(trained).settings
    config = known["config"] | {"training": known["training"]}
    assert from_settings(config) == toy


def test_dev_scores_are_those_of_the_files(corpus, trained):
    model, rows = speechlab.load(trained), Run.open(trained).dev
    assert rows["file"].tolist() == [f"dev_mixture_{i}" for i in range(3)]
    for name, value in zip(rows["file"], rows["si_sdr"], strict=True):
        paths = [corpus / "dev" / side / f"{name}.wav" for side in ("noisy", "clean")]
        noisy, clean = (soundfile.read(path, dtype="float32")[0] for path in paths)
        with torch.inference_mode():
            estimate = model(torch.from_numpy(noisy)[None, None])[0, 0].numpy()
        assert value == pytest.approx(metrics.METRICS["si_sdr"](estimate, clean, 16000), abs=1e-4)


def test_a_metric_that_fails_is_nan_and_few_files_are_the_first(toy):
    """PESQ finds no speech in white noise, or does; either way a row for each file."""
    few = replaced(toy, {"n_dev": 2, "dev_metrics": ["si_sdr", "pesq_wb"]})
    silent = launch.built(few)
    for parameter in silent.parameters():
        torch.nn.init.zeros_(parameter)
    rows = launch.dev_scores(few)(silent)
    assert rows["file"].tolist() == ["dev_mixture_0", "dev_mixture_1"]
    assert np.isnan(rows["pesq_wb"]).all()


def test_what_no_number_depends_on_may_change(toy, tmp_path):
    run = launch.train(replaced(toy, {"training.n_steps": 2}), tmp_path, progress=False)
    free = {"training.n_steps": 2, "training.checkpoint_every": 9, "training.loggers": ["csv"]}
    assert launch.train(replaced(toy, free), tmp_path, progress=False).step == 2
    for changes in ({"training.lr": 0.5}, {"losses.l1": 2.0}, {"model.d_model": 8}):
        other = replaced(toy, {"training.n_steps": 2} | changes)
        with pytest.raises(UserError, match="toy: was begun with other"):
            launch.train(other, tmp_path, progress=False)
    resumed = launch.resume(run.folder, {"n_steps": 5}, progress=False)
    assert resumed.step == 5 and resumed.settings["changes"] == [{"step": 2, "n_steps": 5}]


def test_corpora_are_disjoint_together_and_each_is_read_once(toy, corpus, tmp_path, monkeypatch):
    """Each of them is in itself; a speaker in both is reported before training."""
    parse, read = manifest.parse, []
    monkeypatch.setattr(manifest, "parse", lambda path: (read.append(path), parse(path))[1])
    other = prepared(tmp_path / "other", of="other ")
    both = replaced(toy, {"corpora": [str(corpus), str(other)], "name": "both"})
    run = launch.train(both, tmp_path / "runs", progress=False)
    assert run.step == 6 and len(run.dev) == 6
    assert sorted(read) == sorted(
        folder / f"{split}.csv" for folder in (corpus, other) for split in ("train", "dev")
    )
    splits = {split: manifest.read(other, split) for split in ("train", "dev")}
    cases = {"speaker train 0": {"speakers": ("train 0",)}}
    cases |= {"recording train_noise_1": {"recordings": ("train_noise_1",)}}
    for said, shared in cases.items():
        dev = [dataclasses.replace(splits["dev"][0], **shared), *splits["dev"][1:]]
        manifest.write(other, splits | {"dev": dev}, {})
        told = f"{said} is in train of {corpus} and in dev of {other}: leave one of them out"
        with pytest.raises(UserError, match=told):
            launch.train(replaced(both, {"name": "x"}), tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs/x").exists()


def test_one_corpus_by_two_names_is_told(toy, corpus, tmp_path):
    twice = replaced(toy, {"corpora": [str(corpus), f"{corpus}/../{corpus.name}"]})
    with pytest.raises(UserError, match="corpora names one twice"):
        launch.train(twice, tmp_path, progress=False)


def test_other_data_is_refused(toy, tmp_path):
    folder = prepared(tmp_path / "corpus")
    toy = replaced(toy, {"corpora": [str(folder)], "training.n_steps": 1})
    run = launch.train(toy, tmp_path, progress=False)
    shutil.rmtree(folder)
    prepared(folder)
    launch.resume(run.folder, {}, progress=False)  # the same again
    splits = {split: manifest.read(folder, split)[:-1] for split in ("train", "dev")}
    manifest.write(folder, splits, {})
    with pytest.raises(UserError, match="was begun on other data"):
        launch.train(toy, tmp_path, progress=False)
    with pytest.raises(UserError, match="was begun on other data"):
        launch.resume(run.folder, {"n_steps": 2}, progress=False)


def test_pairs_are_trained_on(toy, tmp_path):
    changes = {"mixture": {}, "n_per_epoch": 2000, "examples": "pairs", "pair.segment_s": 0.1}
    pairs = replaced(toy, changes)
    assert len(launch.training_examples(pairs)) == 3
    assert pairs.pair == PairConfig(segment_s=0.1)
    assert launch.train(pairs, tmp_path, progress=False).step == 6


def test_a_checkpoint_is_where_its_finetuning_begins(toy, trained, tmp_path):
    """Also where it is killed before its first step; with a rate of 0 the weights stay."""
    checkpoint = shutil.copytree(trained, tmp_path / "checkpoint")
    still = replaced(TINY, {"name": "mine", "corpora": list(toy.corpora), "training.lr": 0.0})
    short = {"mixture.segment_s": 0.1, "n_per_epoch": 4, "losses": {"l1": 1.0}}
    still = replaced(still, short | {"training.n_steps": 1, "training.batch_size": 2})
    run = launch.finetune(checkpoint, still, tmp_path, progress=False)
    assert run.settings["config"]["start"] == str(checkpoint)
    assert speechlab.load(run.folder).config == toy.model
    assert distance(state(run.folder), state(trained)) == 0
    run.last.unlink()
    run = launch.resume(run.folder, {}, progress=False)
    assert run.step == 1 and distance(state(run.folder), state(trained)) == 0
    shutil.rmtree(checkpoint)  # no longer needed
    run = launch.resume(run.folder, {"n_steps": 3, "lr": 0.01}, progress=False)
    trained_on = snapshots.from_bytes(run.last.read_bytes(), run.last)["objective"]
    moved = {name: trained_on[f"model.{name}"] for name in state(trained)}
    assert run.step == 3 and distance(moved, state(trained)) > 1e-4


def test_the_state_of_a_training_is_no_checkpoint(toy, trained, tmp_path):
    with pytest.raises(UserError, match=r"last\.safetensors: is the state of a training") as error:
        launch.finetune(trained / "last.safetensors", toy, tmp_path, progress=False)
    assert str(error.value).endswith(f"the model is {trained / 'best.safetensors'}")
    assert not list(tmp_path.iterdir())


def test_finetuning_never_ends_with_a_worse_best(toy, trained, tmp_path):
    """What it begins with is scored before the first step; a rate that ruins it does not matter."""
    wild = replaced(toy, {"name": "wild", "training.lr": 50.0, "training.clip_norm": 0.0})
    run = launch.finetune(trained, wild, tmp_path, progress=False)
    start = Run.open(trained).best_known["score"]
    assert run.validations["step"].tolist()[0] == 0
    assert run.validations["si_sdr"][0] == pytest.approx(start, abs=1e-4)
    assert run.best_known["score"] >= run.validations["si_sdr"][0]
    assert run.best_known["step"] == 0 and distance(state(run.folder), state(trained)) == 0


def test_other_examples_reset_what_they_do_not_read():
    """Pairs of one's own take one word, whatever experiment they are trained with."""
    pairs = changed(TINY, {"examples": "pairs", "pair.segment_s": 1.0})
    check(pairs)
    assert pairs.mixture == Experiment("").mixture and pairs.pair.segment_s == 1.0
    check(changed(EXPERIMENTS["cleanumamba-442k"], {"examples": "mixtures"}))
    with pytest.raises(UserError, match="'mixture' is not read"):
        check(changed(TINY, {"examples": "pairs", "mixture.segment_s": 1.0}))


def test_the_first_look_at_a_model_changes_nothing(toy, tmp_path):
    """A batch norm would learn from it, and dropout would draw."""
    config = MPSENetConformerConfig(4, 1, sample_rate=toy.model.sample_rate)
    changes = {"name": "conformer", "system": "mpsenet_conformer", "model": config}
    spectral = changed(toy, changes)
    model = launch.untrained(spectral)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    launch._check_signals(model, launch.training_examples(spectral))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_run_that_is_older_than_a_setting_resumes(toy, tmp_path):
    """Its config.json lacks the settings of distillation: they have their defaults."""
    run = launch.train(toy, tmp_path, progress=False)
    path = run.folder / "config.json"
    known = json.loads(path.read_text())
    del known["config"]["distillation"], known["config"]["model"]["normalize"]
    path.write_text(json.dumps(known))
    assert launch.train(toy, tmp_path, progress=False).step == run.step
    other = replaced(toy, {"n_per_epoch": 10})
    with pytest.raises(UserError, match=r"begun with other settings: n_per_epoch was 9, is 10;"):
        launch.train(other, tmp_path, progress=False)
