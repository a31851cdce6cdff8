"""The loop: what a step is, what is skipped, what is kept, when it ends."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import speechlab
from benchmarks import training as benchmark
from speechlab.config import check
from speechlab.data.loader import batches
from speechlab.errors import UserError
from speechlab.layers import scan
from speechlab.parallel import threads
from speechlab.training import loop
from speechlab.training.distributed import World
from speechlab.training.loop import Objective, Supervised, fit, resume
from speechlab.training.runs import Run
from speechlab.training.schedule import CHANGEABLE, FREE, TrainingConfig, factor
from speechlab.training.state import State, take_step
from tests.support.training_toys import Sines, dev, gan, mae, mse, options, plain, tiny, train
from tests.training.test_distributed import descending, distance

ALONE = World(torch.device("cpu"))


def weights(run):
    return speechlab.load(run.folder).state_dict()


def steps(n, objective=None, examples=None, **changes):
    """A state after n steps, without a run; values of every step."""
    config = options(**changes)
    state = State(objective or plain(), config)
    source = batches(examples or Sines(), config.batch_size, config.seed)
    portions = ([next(source) for _ in range(config.accumulate)] for _ in range(n))
    return state, [take_step(state, portion, 1.0, ALONE) for portion in portions]


def test_a_training_learns_and_is_recorded(tmp_path):
    run = train(tmp_path / "run", n_steps=90, validate_every=30, log_every=10)
    history, validations = run.history, run.validations
    assert history["step"].tolist() == list(range(10, 91, 10))
    assert history["loss"].iloc[-1] < 0.6 * history["loss"].iloc[0]
    assert np.allclose(history["loss"], history["loss.mae"] + 0.5 * history["loss.mse"])
    assert validations["step"].tolist() == [30, 60, 90]
    best = validations.loc[validations["mse"].idxmin()]
    assert run.best_known["score"] == best["mse"] and run.best_known["step"] == best["step"]
    scored = dev(speechlab.load(run.folder))
    pd.testing.assert_frame_equal(run.dev, scored)
    assert scored["mse"].mean() == pytest.approx(run.best_known["score"], rel=1e-6)


def still():
    """A GAN without a running mean or power iteration, which do see smaller batches."""
    objective = gan()
    objective.discriminator.eval()
    return objective


@pytest.mark.parametrize(("make", "n_steps"), [(plain, 6), (still, 4)])
def test_accumulated_small_batches_are_one_large(make, n_steps):
    examples = Sines(length=8)
    two, _ = steps(n_steps, make(), examples, batch_size=2, accumulate=2)
    one, _ = steps(n_steps, make(), examples, batch_size=4)
    begun, *learnt = (dict(o.named_parameters()) for o in (make(), one.objective, two.objective))
    assert distance(*learnt) < 2e-6
    assert distance(begun, learnt[0]) > 1e-2


def test_the_average_of_weights_has_its_closed_form():
    d, config = 0.8, {"ema": 0.8}
    seen = [plain().model.state_dict()]
    for n in range(1, 6):
        state, _ = steps(n, **config)
        seen.append(state.objective.model.state_dict())
    for name, average in state.ema.items():
        later = sum(d ** (5 - i) * seen[i][name] for i in range(1, 6))
        assert torch.allclose(average, d**5 * seen[0][name] + (1 - d) * later, atol=1e-6)
    trained = {name: tensor.clone() for name, tensor in seen[5].items()}
    with state.deployable() as model:
        assert distance(model.state_dict(), state.ema) == 0 and not model.training
    assert distance(state.objective.model.state_dict(), trained) == 0
    assert state.objective.model.training


def test_the_average_is_what_is_saved(tmp_path):
    averaged, bare = (train(tmp_path / str(ema), ema=ema) for ema in (0.9, 0.0))
    assert averaged.history["loss"].tolist() == bare.history["loss"].tolist()
    assert distance(weights(averaged), weights(bare)) > 1e-3


def test_a_step_that_is_not_finite_changes_nothing():
    """Not the weights, not the moments, no running mean; and the next one continues."""
    objective = gan()
    state, _ = steps(2, objective)
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    moments = str(state.optimizers[0].state_dict()) + str(state.optimizers[1].state_dict())
    source = batches(Sines(bad={(0, i) for i in range(9)}), 4, 0)
    assert take_step(state, [next(source)], 1.0, ALONE) is None
    assert distance(before, objective.state_dict()) == 0
    assert str(state.optimizers[0].state_dict()) + str(state.optimizers[1].state_dict()) == moments
    assert take_step(state, [next(batches(Sines(), 4, 0))], 1.0, ALONE) is not None


def test_an_infinite_gradient_of_a_finite_loss_is_skipped():
    def root(estimate, clean):
        return (estimate - estimate).abs().sum((1, 2)).sqrt()

    state, values = steps(1, Supervised(tiny(), {"root": root}))
    assert values == [None] and distance(state.objective.state_dict(), plain().state_dict()) == 0


def test_bad_steps_are_counted_and_left_out_of_the_means(tmp_path):
    bad = train(tmp_path / "bad", examples=Sines(bad={(1, 3)}), n_steps=9, log_every=9)
    assert bad.history["n_skipped"].tolist() == [1]
    assert np.isfinite(bad.history["loss"]).all()
    assert all(torch.isfinite(tensor).all() for tensor in weights(bad).values())


def test_too_many_bad_steps_end_the_training_and_the_last_good_state_is_kept(tmp_path):
    broken = Sines(bad={(epoch, i) for epoch in range(2, 9) for i in range(9)})
    wanted = {"n_steps": 30, "max_bad_steps": 4, "checkpoint_every": 1}
    for _ in range(2):  # started again it comes to the same end
        with pytest.raises(UserError, match=r"4 steps in a row.*last\.safetensors.*lr") as error:
            train(tmp_path / "run", examples=broken, **wanted)
        assert "\n" not in str(error.value)
        assert Run.open(tmp_path / "run").step == 6
    run = Run.open(tmp_path / "run")
    config = resume(run, {"lr": 1e-3})
    fit(plain(), Sines(), dev, config, run, progress=False)
    assert run.step == 30 and run.settings["changes"] == [{"step": 6, "lr": 1e-3}]


def test_weights_that_are_not_finite_are_never_kept(tmp_path):
    """The gradient was finite, the step was not: nothing of it reaches the disk."""
    leap = descending(Supervised, 1e38)(tiny(), {"mae": lambda *x: 100 * mae(*x)})
    with pytest.raises(UserError, match=r"weights are not finite at step 1; .*last\.safetensors"):
        train(tmp_path / "run", leap, checkpoint_every=1, warmup=0.0)
    assert Run.open(tmp_path / "run").step == 0


def test_a_weight_of_no_loss_is_refused():
    with pytest.raises(UserError, match="a weight for 'stft', which is no loss here"):
        Supervised(tiny(), {"mae": mae}, {"stft": 1.0})


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_autocast_leaves_the_scan_in_float32(tmp_path, monkeypatch, precision):
    seen, types = [], {"conv": []}

    def watched(x, leak):
        seen.extend(v.dtype for v in x if v is not None)
        return scan.parallel(x, leak)

    monkeypatch.setitem(scan.BACKENDS, "parallel", watched)
    monkeypatch.setenv("SPEECHLAB_SCAN", "parallel")
    objective = plain()
    objective.model.conv_in.register_forward_hook(lambda *call: types["conv"].append(call[2].dtype))
    _, values = steps(3, objective, precision=precision)
    assert set(seen) == {torch.float32}
    assert set(types["conv"]) == {getattr(torch, precision)}
    assert {p.dtype for p in objective.parameters()} == {torch.float32}
    _, wanted = steps(3)
    assert values[2]["loss"] == pytest.approx(wanted[2]["loss"], rel=0.05)
    assert all(math.isfinite(value["loss.grad_norm"]) for value in values)


def test_float16_gradients_that_overflow_halve_the_scale():
    large = Supervised(tiny(), {"large": lambda *x: 1e35 * mae(*x)})
    state, values = steps(1, large, precision="float16")
    assert values == [None] and state.scalers[0].get_scale() == 2.0**15


def test_a_large_gradient_is_clipped():
    _, free = steps(1)
    objective = descending(Supervised, 1.0)(tiny(), {"mae": mae, "mse": mse}, {"mse": 0.5})
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    _, values = steps(1, objective, clip_norm=0.01)
    moved = sum((objective.state_dict()[k] - before[k]).square().sum() for k in before).sqrt()
    assert moved == pytest.approx(0.01, rel=1e-4)
    assert values[0]["loss.grad_norm"] == free[0]["loss.grad_norm"] > 0.01  # as it was


def test_both_phases_of_a_gan_learn_and_reach_only_their_own():
    objective = gan()
    state, values = steps(3, objective)
    assert set(values[0]) == {
        *("discriminator", "discriminator.real", "discriminator.fake", "discriminator.grad_norm"),
        *("generator", "generator.mae", "generator.fool", "generator.grad_norm"),
    }
    before = dict(gan().named_parameters())
    assert all((p != before[name]).any() for name, p in objective.named_parameters())
    assert state.rates == [[1e-2], [1e-2]] and type(state.optimizers[0]) is torch.optim.SGD


def test_terms_without_a_weight_or_of_another_shape_are_a_programming_error():
    class Wrong(Supervised):
        def terms(self, batch, carried):
            return {"mae": torch.zeros(())}

    with pytest.raises(ValueError, match=r"phase loss must give terms of shape \(4,\) for each of"):
        steps(1, Wrong(tiny(), {"mae": mae}))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_configuration_fixes_the_thread_count(tmp_path, n_threads):
    """The environment may give any: training and dev scores use what the run notes."""
    seen = []

    class Watched(Sines):
        def example(self, *position):
            seen.append(torch.get_num_threads())
            return super().example(*position)

    def scores(model):
        seen.append(torch.get_num_threads())
        return dev(model)

    with threads(3):
        run = train(tmp_path / "run", None, Watched(), scores, n_steps=2, n_threads=n_threads)
        assert torch.get_num_threads() == 3  # as before
        train(tmp_path / "run", None, Watched(), scores, n_steps=2, n_threads=n_threads)
    assert set(seen) == {n_threads}
    known = run.settings
    assert known["training"]["n_threads"] == known["n_threads"] == n_threads
    assert "continued" not in known
    assert TrainingConfig().n_threads == 1


def test_a_changed_configuration_is_refused_and_named(tmp_path):
    run = train(tmp_path / "run")
    told = r"settings: batch_size was 4, is 2; lr was 0\.01, is 0\.5; "
    with pytest.raises(UserError, match=told) as error:
        train(tmp_path / "run", lr=0.5, batch_size=2)
    assert "speechlab resume" in str(error.value) and "\n" not in str(error.value)
    assert train(tmp_path / "run", checkpoint_every=7).step == 12  # no number depends on it
    for name, value in (("batch_size", 2), ("seed", 1), ("precision", "bfloat16")):
        with pytest.raises(UserError, match=f"{name} cannot change in a run that has begun"):
            resume(run, {name: value})
    with pytest.raises(UserError, match="has no setting 'steps'"):
        resume(run, {"steps": 3})
    config = resume(run, {"n_steps": 20, "schedule": "constant"})
    assert fit(plain(), Sines(), dev, config, run, progress=False).step == 20
    assert run.history["step"].tolist() == [3, 6, 9, 12, 15, 18, 20]
    assert run.history["lr"].tolist()[-3:] == [1e-2] * 3


def test_a_state_of_another_model_is_refused(tmp_path):
    run = train(tmp_path / "run", n_steps=2)
    objective = gan()
    with pytest.raises(UserError, match=r"last\.safetensors: is the state of another") as error:
        train(tmp_path / "run", objective, n_steps=2)
    assert "\n" not in str(error.value)
    assert run.step == 2


def test_a_model_that_cannot_be_saved_is_refused_before_any_step(tmp_path):
    with pytest.raises(TypeError, match="Linear is in no SYSTEMS"):
        train(tmp_path / "run", Objective(torch.nn.Linear(1, 1)))


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    objective = gan()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train(tmp_path / "run", objective, n_steps=3)
    assert torch.equal(torch.rand(3), wanted)


def test_schedules():
    constant = TrainingConfig(n_steps=100, schedule="constant", warmup=0.1, warmup_start=0.1)
    assert factor(constant, 0, 0) == 0.1 and factor(constant, 5, 0) == pytest.approx(0.55)
    assert factor(constant, 10, 3) == factor(constant, 99, 3) == 1
    cosine = TrainingConfig(n_steps=100, warmup=0.1)
    values = [factor(cosine, step, 0) for step in range(100)]
    assert values[10] == 1 and values[55] == pytest.approx(0.5) and 0 < values[99] < 1e-3
    assert np.argmax(values) == 10 and max(values) == 1
    exponential = TrainingConfig(schedule="exponential", decay=0.5, warmup=0.0)
    assert [factor(exponential, step, step // 4) for step in (0, 3, 4, 8)] == [1, 1, 0.5, 0.25]


WRONG = [{"n_steps": 0}, {"lr": math.nan}, {"warmup": 1.5}, {"ema": 1.0}, {"betas": (0.9, 1.0)}]
WRONG += [{"lr": 1e300}, {"lr": 10**400}, {"weight_decay": 1e300}, {"clip_norm": math.inf}]
WRONG += [{"accumulate": 0}, {"max_bad_steps": 0}, {"clip_norm": -1.0}, {"n_workers": -1}]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:30])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=f"TrainingConfig.{next(iter(wrong))} must be "):
        check(TrainingConfig(**wrong))


def test_every_setting_is_read_and_explained():
    """By code of the loop, and by a comment behind it."""
    folder = Path(loop.__file__).parent
    files = [folder / f"{name}.py" for name in ("loop", "state", "schedule", "progress")]
    source = "".join(path.read_text() for path in files)
    for name in vars(TrainingConfig()):
        assert f"config.{name}" in source, f"nothing reads {name}"
        commented = rf"^    # \w.*\n    {name}: |^    {name}: .*  # \w"
        assert re.search(commented, source, re.M), f"no comment above or behind {name}"
    assert set(FREE) <= set(CHANGEABLE) <= set(vars(TrainingConfig()))


def test_the_benchmark_by_part_does_the_work_of_a_step():
    losses = {"mae": mae}
    one, parts = (State(Supervised(tiny(), losses), options(clip_norm=10.0)) for _ in range(2))
    for state, work in ((one, benchmark.whole), (parts, benchmark.by_part)):
        source = batches(Sines(), 4, 0)
        measured = [work(state, source) for _ in range(2)]
        assert min(map(min, measured)) >= 0
    assert distance(one.objective.state_dict(), parts.objective.state_dict()) < 1e-6


def test_all_that_a_run_holds_is_plain(tmp_path):
    """JSON and CSV; the checkpoints are tensors behind a head of JSON, and nothing is pickled."""
    run = train(tmp_path / "run", ema=0.5)
    found = {path.name for path in run.folder.iterdir()}
    assert found == {
        *("config.json", "history.csv", "validations.csv", "dev.csv", "lock"),
        *("best.json", "best.safetensors", "last.safetensors", "previous.safetensors"),
    }
    for path in run.folder.glob("*.safetensors"):
        content = path.read_bytes()
        json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert b"\x80\x02" not in content[:200]
