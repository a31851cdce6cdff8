"""Prunings of a second: they reach their target, resume exactly and leave ordinary models."""

from dataclasses import replace

import pytest
import torch

import speechlab
from speechlab.config import replaced
from speechlab.errors import UserError
from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig
from speechlab.models.macs import n_params
from speechlab.pruning import plan
from speechlab.pruning.plan import PruningConfig
from speechlab.pruning.ranking import RankingConfig
from speechlab.study import experiments, launch
from speechlab.study.experiment import changed
from speechlab.study.prune import Pruning, prune
from speechlab.training.runs import listing
from tests.support.toy_corpus import SETTINGS, prepared
from tests.support.training_toys import contents

FEW = RankingConfig(share=0.1, at_least=4, n_least=2, multiples={})
TOY = PruningConfig(
    ranking=FEW,
    n_scored=8,
    calibrate_every=2,
    n_calibrated=4,
    n_removals=2,
    n_trained=8,
    n_recover=16,
)
FILES = ("last.safetensors", "best.safetensors", "history.csv", "validations.csv", "dev.csv")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("toy") / "corpus")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    widths = dict.fromkeys(("down_channels", "skip_channels", "up_channels"), (8, 12))
    model = CleanUMamba(CleanUMambaConfig(**widths, d_model=8, layers=({"d_state": 4},)))
    return speechlab.save(tmp_path_factory.mktemp("start") / "start.safetensors", model)


@pytest.fixture
def experiment(corpus):
    settings = {key: value for key, value in SETTINGS.items() if not key.startswith("model.")}
    settings |= {"corpora": [str(corpus)], "name": "small", "training.checkpoint_every": 3}
    return changed(experiments.lookup("finetune"), settings)


def pruned(tmp_path, checkpoint, experiment, config=TOY, **target):
    target = {"to": 1200} | target
    return prune(checkpoint, experiment, replace(config, **target), tmp_path, progress=False)


def test_a_target_is_reached_and_the_model_is_ordinary(tmp_path, checkpoint, experiment):
    """It is the largest below the target; its file alone loads, and another training takes it."""
    before = speechlab.load(checkpoint)
    run = pruned(tmp_path, checkpoint, experiment)
    model = speechlab.load(run.folder)
    assert 1100 < n_params(model) <= 1200 < n_params(before)
    assert run.progress["ended"] == "reached the target" and run.best_known["n_params"] == n_params(
        model
    )
    removals, scores = run.history, run.validations
    assert removals["n_params"].is_monotonic_decreasing
    assert list(removals["removal"]) == list(range(1, len(removals) + 1))
    assert removals["n_params"].iloc[-1] == scores["n_params"].iloc[-1] == n_params(model)
    assert removals["macs_per_second"].iloc[-1] == model.macs(1)
    assert (scores["step"].iloc[0], scores["n_params"].iloc[0]) == (0, n_params(before))
    with torch.no_grad():
        assert model(0.1 * torch.randn(1, 1, 999)).shape == (1, 1, 999)
    [listed] = listing(tmp_path)
    assert (listed["step"], listed["n_steps"]) == (run.step, None)
    further = replace(experiment, name="further")
    tuned = launch.finetune(run.folder, further, tmp_path, progress=False)
    assert speechlab.load(tuned.folder).config == model.config


@pytest.mark.parametrize("objective", ["supervised", "distillation"])
@pytest.mark.parametrize("stops", [(1, 2, 4), (3, 4, 2)])
def test_an_interrupted_pruning_resumes_exactly(
    tmp_path, checkpoint, experiment, monkeypatch, stops, objective
):
    """Stopped after some steps, again and again, also before the first checkpoint."""
    if objective == "distillation":
        experiment = changed(experiment, {"objective": objective, "distillation.clean": 0.5})
    wanted = pruned(tmp_path / "whole", checkpoint, experiment)
    step, left = Pruning.step, []

    def stopping(self, *arguments):
        if left and left[0] == 0:
            raise KeyboardInterrupt
        left[:1] = [left[0] - 1] if left else []
        step(self, *arguments)

    monkeypatch.setattr(Pruning, "step", stopping)
    for stop in stops:
        left[:] = [stop]
        with pytest.raises(KeyboardInterrupt):
            pruned(tmp_path / "parts", checkpoint, experiment)
    left.clear()
    run = pruned(tmp_path / "parts", checkpoint, experiment)
    assert contents(run.folder, *FILES) == contents(wanted.folder, *FILES)
    assert pruned(tmp_path / "parts", checkpoint, experiment).folder == run.folder  # has ended
    assert contents(run.folder, *FILES) == contents(wanted.folder, *FILES)


def test_averages_of_the_optimiser_are_kept(tmp_path, checkpoint, experiment, monkeypatch):
    """After a removal they have the shapes of the model, and their count of steps."""
    seen = []
    narrow = Pruning._narrow

    def narrowed(self, channels):
        before = [float(v["step"]) for o in self.state.optimizers for v in o.state.values()]
        narrow(self, channels)
        moments = self.state.optimizers[0].state
        seen.append((before, [float(v["step"]) for v in moments.values()]))
        for parameter, values in moments.items():
            assert values["exp_avg"].shape == values["exp_avg_sq"].shape == parameter.shape

    monkeypatch.setattr(Pruning, "_narrow", narrowed)
    pruned(tmp_path, checkpoint, changed(experiment, {"training.ema": 0.9}))
    assert all(before == after for before, after in seen) and seen[-1][0]


@pytest.mark.parametrize(("by", "to"), [("macs", 3e6), ("time", 0.5)])
def test_other_targets(tmp_path, checkpoint, experiment, monkeypatch, by, to):
    """Multiply-accumulates per second; a measured time, here one that follows the parameters."""
    monkeypatch.setitem(plan.SIZES, "time", lambda model: n_params(model) / 2500)
    before = speechlab.load(checkpoint)
    run = pruned(tmp_path, checkpoint, experiment, by=by, to=to)
    assert plan.SIZES[by](speechlab.load(run.folder)) <= to < plan.SIZES[by](before)


def test_widths_are_multiples(tmp_path, checkpoint, experiment):
    """Until every group is at its least; that ends the pruning, too."""
    config = replace(TOY, ranking=replace(FEW, multiple=4, n_least=4))
    run = pruned(tmp_path, checkpoint, experiment, config, to=1)
    assert run.progress["ended"] == "every group is at its least width"
    groups = speechlab.load(run.folder).channel_groups()
    widths = {name: group.n_channels for name, group in groups.items()}
    assert widths.pop("dt_rank0") == 1
    assert set(widths.values()) == {4}


def test_removals_end(tmp_path, checkpoint, experiment):
    """With the smallest budget a step removes `at_least` channels; so many steps, and no more."""
    config = replace(TOY, ranking=replace(FEW, budget=0.0), most_removals=3)
    run = pruned(tmp_path, checkpoint, experiment, config)
    assert run.progress["ended"] == "removed 3 times"
    assert list(run.history["n_channels"]) == [4, 4, 4]


@pytest.mark.parametrize(
    ("settings", "config", "message"),
    [
        ({}, {"to": 10**6}, "parameters; prune to less than that, not 1e\\+06"),
        ({}, {"to": 0}, "prune to less than that, not 0"),
        ({}, {"measure": "tailor"}, "no measure 'tailor'"),
        ({}, {"n_scored": 0}, "PruningConfig.n_scored must be 1 to"),
        ({}, {"ranking": RankingConfig(n_least=0)}, "RankingConfig.n_least must be 1 to"),
        ({"objective": "metric_gan"}, {}, "prune takes no metric_gan"),
        ({"training.schedule": "exponential"}, {}, r"set training\.schedule=cosine or constant"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path, checkpoint, experiment, settings, config, message
):
    with pytest.raises(UserError, match=message):
        pruned(tmp_path, checkpoint, changed(experiment, settings), **config)
    assert not list(tmp_path.iterdir())


def test_a_run_belongs_to_its_settings(tmp_path, checkpoint, experiment):
    run = pruned(tmp_path, checkpoint, experiment)
    with pytest.raises(UserError, match=r"begun with other settings: pruning\.to was 1200"):
        pruned(tmp_path, checkpoint, experiment, to=1000)
    with pytest.raises(UserError, match="is a pruning; rerun the command that began it"):
        launch.resume(run.folder, {})


@pytest.mark.parametrize("name", plan.SCHEDULES)
def test_schedules_have_valid_settings(name):
    assert replaced(plan.SCHEDULES[name], {"ranking.share": 0.01}).ranking.share == 0.01
