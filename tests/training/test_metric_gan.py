"""Training with a metric discriminator: the published loss, and nothing that a clip can break."""

import json
import math
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from speechlab.audio.spectrum import Spectrum
from speechlab.config import from_dict
from speechlab.data.loader import Batch
from speechlab.data.mixing import Example
from speechlab.errors import UserError
from speechlab.models.semamba import SEMambaAdvanced, SEMambaAdvancedConfig
from speechlab.training.discriminator import MetricDiscriminator, from_published
from speechlab.training.distributed import World
from speechlab.training.metric_gan import PUBLISHED, WEIGHTS, MetricGAN, MetricGANConfig
from speechlab.training.pesq_targets import PesqTargets
from speechlab.training.runs import Run
from speechlab.training.state import State, take_step
from speechlab.weights.checkpoints import fill
from speechlab.weights.converters import CONVERTERS
from tests.support.reference_front_end import ReferenceFrontEnd
from tests.support.signals import array
from tests.support.training_toys import Sines, options, tiny, train
from tests.training.test_distributed import descending, same_gradients, two
from tests.training.test_resume import killed, killing, same

CPU = torch.device("cpu")
N_SAMPLES = 4800  # 0.3 s
SHORT = {"n_steps": 4, "batch_size": 2, "validate_every": 2, "checkpoint_every": 1, "log_every": 2}


class Bursts(Sines):
    """Harmonics that come and go, in noise; the examples named by `silent` are zeros."""

    def __init__(self, length=5, silent=(0,)):
        super().__init__(length, N_SAMPLES)
        self.silent = silent

    def example(self, seed, epoch, index):
        random = torch.Generator().manual_seed(seed * 1_000_003 + epoch * 1009 + index)
        pitch, rate = torch.rand(2, generator=random)
        time = torch.arange(self.n_samples) / 16000
        tones = sum(torch.sin(6.28 * k * (100 + 100 * pitch) * time) / k for k in range(1, 20))
        clean = 0.1 * tones[None] * torch.sin(6.28 * (3 + 2 * rate) * time).clamp_min(0)
        noisy = clean + 0.02 * torch.randn(clean.shape, generator=random)
        return Example(noisy, clean) if index not in self.silent else Example(0 * noisy, 0 * clean)


def small(name="semamba", dropout=0.3, **changes):
    """A SEMamba and a discriminator of a few hundred parameters."""
    torch.manual_seed(0)
    layer = {"d_state": 2, "d_conv": 2, "expand": 1}
    model = SEMambaAdvanced(SEMambaAdvancedConfig(d_model=2, n_blocks=1, layer=layer))
    discriminator = MetricDiscriminator((2, 3, 4, 4))
    for layer in discriminator.layers:
        if isinstance(layer, torch.nn.Dropout):
            layer.p = dropout
    known = vars(PUBLISHED[name])
    n_workers = changes.pop("n_workers", 0)
    return MetricGAN(model, MetricGANConfig(**known | changes), discriminator, n_workers)


def batch(n=3, silent=(0,)):
    examples = [Bursts(silent=silent).example(0, 0, i) for i in range(n)]
    return Batch(*map(torch.stack, zip(*examples, strict=True)), n, 1)


def terms(objective, given):
    """Of both phases, in eval mode: without the dropout and the power iteration."""
    objective.eval()
    carried = {}
    judged = objective.judge(given, carried)
    return {f"judge.{k}": v for k, v in judged.items()} | objective.generate(given, carried)


def dev(model):
    with torch.no_grad():
        estimate = model(batch(2).noisy)
    return pd.DataFrame({"mse": (estimate - batch(2).clean).square().mean((1, 2)).tolist()})


@pytest.mark.parametrize("name", ["semamba", "mpsenet"])
def test_published_total(shared, name):
    folder = shared / "golden" / name / "losses"
    parts = ("gen_mag", "gen_pha", "clean_mag", "clean_pha", "clean_wav")
    mag, phase, *clean, wave = (array(folder / f"{p}.npy") for p in parts)
    objective = small(name)
    objective.discriminator = MetricDiscriminator()
    state = from_published(load_file(folder / "state.safetensors"))
    fill(objective.discriminator, state, folder)
    carried = {"estimate": Spectrum(mag, phase), "reference": Spectrum(*clean), "wave": wave}
    with torch.no_grad():
        found = objective.eval().generate(batch(2), carried)
    known = json.loads((folder / "manifest.json").read_text())["extra"]
    assert found["metric"].mean().item() == pytest.approx(known["metric"], abs=1e-5)
    total = sum(weight * found[term].mean().item() for term, weight in WEIGHTS.items())
    assert total == pytest.approx(known["total"], abs=1e-5)


def test_published_gradients(shared):
    """Of the generator's loss in every parameter, through the discriminator too.

    One unit in the last place of the input moves the loss by 2e-6 of itself, the total norm by
    3e-4, the norms of single parameters by up to 1.7e-2.
    """
    folder = shared / "golden/semamba/small_h16_n2"
    published = load_file(folder / "state.safetensors")
    config, state = CONVERTERS["semamba_advanced"](published, {})
    model = SEMambaAdvanced(replace(config, normalize="none"))  # they are at unit level
    model.front_end = ReferenceFrontEnd(**vars(model.front_end))
    fill(model, state, folder)
    objective = MetricGAN(model, n_workers=0).eval()
    known = load_file(shared / "golden/semamba/losses/state.safetensors")
    fill(objective.discriminator, from_published(known), folder)
    pair = (array(folder / f"zero_lead/grad_{n}.npy")[None, None] for n in ("noisy", "clean"))
    carried, one = {}, Batch(*pair, 1, 1)
    objective.judge(one, carried)
    found = objective.generate(one, carried)
    loss = sum(weight * found[name].sum() for name, weight in WEIGHTS.items())
    loss.backward()
    wanted = json.loads((folder / "zero_lead/grad.json").read_text())
    assert loss.item() == pytest.approx(wanted["loss"], rel=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    # each published gradient takes the way of its weight, so that names need no second list
    marked = {name: torch.full_like(t, i) for i, (name, t) in enumerate(published.items())}
    _, ours = CONVERTERS["semamba_advanced"](marked, {})
    names = {int(tensor.flatten()[0]): name for name, tensor in ours.items()}
    total = math.sqrt(sum(g.double().square().sum().item() for g in gradients.values()))
    assert total == pytest.approx(wanted["grad_norm_total"], rel=1e-3)
    for i, name in enumerate(published):
        norm = gradients[names[i]].norm().item()
        assert norm == pytest.approx(wanted["grad_norms"][name], rel=3e-2, abs=1e-5), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_terms_are_of_their_example_alone_also_beside_silence(name):
    objective, given = small(name), batch()
    with torch.no_grad():
        together = terms(objective, given)
        singles = [Batch(given.noisy[i : i + 1], given.clean[i : i + 1], 1, 1) for i in range(3)]
        alone = [terms(objective, single) for single in singles]
    for term, values in together.items():
        assert values.isfinite().all() and values.shape == (3,)
        expected = torch.cat([one[term] for one in alone])
        assert torch.allclose(values, expected, rtol=1e-4, atol=1e-5), term
    assert together["judge.unscored"].tolist() == [1, 0, 0]
    assert together["judge.estimate"][0] == 0 and together["judge.estimate"][1:].min() > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_gradients_are_finite_where_all_is_silent(name):
    objective = small(name)
    found = terms(objective, batch(2, silent=(0, 1)))
    sum(values.sum() for values in found.values()).backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters())


def test_an_estimate_of_nan_is_the_generators_fault_alone(monkeypatch):
    """The discriminator learns from the others; the model's step is skipped."""
    objective, given = small(), batch(silent=())
    right = objective.model.network

    def broken(noisy):
        estimate = right(noisy)
        spoilt = torch.tensor([0.0, torch.nan, 0.0])[:, None, None]
        return Spectrum(estimate.mag + spoilt, estimate.phase + spoilt)

    monkeypatch.setattr(objective.model, "network", broken)
    state = State(objective, options())
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    assert take_step(state, [given], 1.0, World(CPU)) is None
    after = objective.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("discriminator.") for name in moved)
    assert state.is_finite()
    found = objective.judge(given, {})
    assert found["unscored"].tolist() == [0, 1, 0] and found["estimate"][1] == 0


def test_history_counts_the_unscored(tmp_path):
    """One of five clips is silent; with one example a batch each step says it of its own."""
    objective = small()
    objective.targets = TargetsOfHalf()
    run = train(tmp_path / "run", objective, Bursts(), dev, n_steps=5, batch_size=1, log_every=5)
    row = run.history.iloc[-1]
    assert row["discriminator.unscored"] == pytest.approx(0.2) and row["n_skipped"] == 0
    assert np.isfinite(run.history.to_numpy(dtype=float)).all()


class TargetsOfHalf(PesqTargets):
    def __call__(self, estimate, clean):
        return torch.where(clean.any(-1), 0.5, torch.nan)


@pytest.mark.parametrize("name", PUBLISHED)
def test_silence_pulls_at_nothing(name):
    """The gradients are those of the clip beside it: no norm blows up what silence says."""
    given, objective = batch(2), small(name).eval()
    alone = given._replace(noisy=given.noisy[1:], clean=given.clean[1:])
    both, one = {}, {}
    for phase in objective.phases():
        found = []
        for portion, carried in ((given, both), (alone, one)):
            values = phase.terms(portion, carried)
            loss = sum(weight * values[name].sum() for name, weight in phase.weights.items())
            gradients = torch.autograd.grad(loss, phase.parameters, retain_graph=True)
            found.append(torch.cat([g.flatten() for g in gradients]))
        assert (found[0] - found[1]).norm() < 1e-3 * found[1].norm()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "whole", small(), Bursts(), dev, **SHORT)


def test_killed_it_resumes_exactly(tmp_path, undisturbed):
    folder = tmp_path / "run"
    assert killed(lambda: train(folder, small(), Bursts(), killing(), **SHORT))
    assert 0 < Run.open(folder).step < SHORT["n_steps"]
    same(train(folder, small(), Bursts(), dev, **SHORT), undisturbed)


def test_processes_for_pesq_change_no_number_die_unnoticed_and_do_not_stay(tmp_path, undisturbed):
    objective, ends = small(n_workers=2), []

    def scores(model):
        for worker in objective.targets.workers._idle:
            os.kill(worker.process.pid, signal.SIGKILL)
            ends.append(worker.process.pid)
        return dev(model)

    same(train(tmp_path / "run", objective, Bursts(), scores, **SHORT), undisturbed)
    assert ends and not multiprocessing.active_children()


def test_no_process_stays_where_a_training_fails(tmp_path):
    def failing(model):
        raise RuntimeError("no dev files")

    objective = small(n_workers=2)
    with pytest.raises(RuntimeError, match="no dev files"):
        train(tmp_path / "run", objective, Bursts(), failing, **SHORT)
    assert not multiprocessing.active_children()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    """Batches of 2 and 1: one process has none of the second, perhaps silence alone."""
    kind = descending(MetricGAN, 1e-3)

    def objective():
        made = small(dropout=0.0)
        return kind(made.model, made.config, made.discriminator)

    found = same_gradients(objective, Bursts(3, silent=(0, 2)), 2, 2, 2e-6, tmp_path)
    assert {step["discriminator.unscored"].item() for step in found} <= {0.0, 0.5, 1.0}


def test_two_processes_stay_one_with_workers_and_silence(tmp_path):
    """5 clips in batches of 2, three of them silent: some batches, and some ranks, have no PESQ."""
    examples = Bursts(5, silent=(0, 1, 2))
    two(lambda: train(tmp_path / "run", small(n_workers=1), examples, dev, **SHORT))
    history = Run.open(tmp_path / "run").history
    assert history["n_skipped"].max() == 0 and np.isfinite(history.to_numpy(dtype=float)).all()


def test_half_precision_of_the_model_alone():
    objective = small()
    state = State(objective, options(precision="bfloat16"))
    values = take_step(state, [batch()], 1.0, World(CPU))
    assert all(map(math.isfinite, values.values())) and state.is_finite()


def test_models_and_terms_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="CleanUMamba: a metric discriminator judges compressed"):
        MetricGAN(tiny())
    with pytest.raises(UserError, match=r"gan\.weights names 'l1', which is no term"):
        small(weights={"l1": 1.0})
    found = terms(small(weights={"magnitude": 1.0}), batch(1, silent=()))
    assert [name for name in found if "." not in name] == ["magnitude"]


def test_weights_of_a_gan_are_checked():
    for weights in ({}, {"metric": math.nan}, {"metric": -1.0}, {"beauty": 1.0}):
        with pytest.raises(UserError, match=r"^(gan|MetricGANConfig)\.weights"):
            from_dict(MetricGANConfig, {"weights": weights})
