"""Trainings of a second, for the tests: sines in noise, a model of 605 parameters, a small GAN."""

import os
import traceback
from multiprocessing import forkserver
from pathlib import Path

import torch
from torch import Tensor, nn

from speechlab.data.mixing import Example

RUN_CONFIG = {"model": "tiny"}


class Sines:
    """Sines in white noise; examples whose (epoch, index) is in `bad` are NaN."""

    sample_rate, n_sources = 16000, 1

    def __init__(self, length=9, n_samples=200, bad=()):
        self.length, self.n_samples, self.bad = length, n_samples, bad

    def __len__(self):
        return self.length

    def example(self, seed, epoch, index):
        random = torch.Generator().manual_seed(seed * 1_000_003 + epoch * 1009 + index)
        pitch, phase = torch.rand(2, generator=random)
        clean = 0.3 * torch.sin(0.2 * pitch * torch.arange(self.n_samples) + 6 * phase)[None]
        noisy = clean + 0.2 * torch.randn(clean.shape, generator=random)
        return Example(noisy * torch.nan if (epoch, index) in self.bad else noisy, clean)


def mae(estimate: Tensor, clean: Tensor) -> Tensor:
    return (estimate - clean).abs().mean((1, 2))


def mse(estimate: Tensor, clean: Tensor) -> Tensor:
    return (estimate - clean).square().mean((1, 2))


def tiny(seed=0, normalize="none"):
    from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig

    widths = dict.fromkeys(("down_channels", "skip_channels", "up_channels"), (4, 4))
    layers = ({"d_state": 2},)
    torch.manual_seed(seed)
    return CleanUMamba(CleanUMambaConfig(**widths, d_model=4, layers=layers, normalize=normalize))


def plain(seed=0):
    from speechlab.training.loop import Supervised

    return Supervised(tiny(seed), {"mae": mae, "mse": mse}, {"mse": 0.5})


def distilled(**settings):
    """A student and a teacher of the same size; settings: of DistillationConfig."""
    from speechlab.training.distillation import Distillation, DistillationConfig

    student = tiny(normalize="running")
    losses, config = {"mae": mae, "mse": mse}, DistillationConfig(**settings)
    return Distillation(student, losses, {"mse": 0.5}, config, tiny(seed=1))


def gan():
    """Discriminator first; with dropout, a running mean and spectral norm: all that has a state."""
    from speechlab.training.loop import Objective, Phase

    class Gan(Objective):
        def __init__(self):
            super().__init__(tiny())
            conv = nn.utils.parametrizations.spectral_norm(nn.Conv1d(1, 4, 8, 4))
            parts = conv, nn.BatchNorm1d(4), nn.LeakyReLU(), nn.Dropout(0.3), nn.Conv1d(4, 1, 8)
            self.discriminator = nn.Sequential(*parts)

        def phases(self):
            second = {"mae": 1.0, "fool": 0.1}
            own = [*self.discriminator.parameters()]
            return [
                Phase("discriminator", own, self.judge, {"real": 1.0, "fake": 1.0}, slow),
                Phase("generator", [*self.model.parameters()], self.generate, second),
            ]

        def judge(self, batch, carried):
            carried["estimate"] = self.model(batch.noisy)
            real, fake = map(self.score, (batch.clean, carried["estimate"].detach()))
            return {"real": (real - 1).square(), "fake": fake.square()}

        def generate(self, batch, carried):
            estimate = carried["estimate"]
            return {"mae": mae(estimate, batch.clean), "fool": (self.score(estimate) - 1).square()}

        def score(self, signal):
            return self.discriminator(signal).mean((1, 2))

    def slow(parameters):
        return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)

    return Gan()


def dev(model):
    """Scores of four files that training does not have."""
    import pandas as pd

    examples = [Sines().example(99, 0, i) for i in range(4)]
    noisy, clean = map(torch.stack, zip(*examples, strict=True))
    scores = mse(model(noisy), clean).tolist()
    return pd.DataFrame({"file": [f"dev_{i}" for i in range(4)], "mse": scores})


def options(**changes):
    """A training of 12 steps that writes much."""
    from speechlab.training.loop import TrainingConfig

    usual = {"n_steps": 12, "lr": 1e-2, "batch_size": 4, "metric": "mse", "direction": "min"}
    usual |= {"validate_every": 5, "checkpoint_every": 2, "log_every": 3, "warmup": 0.2}
    return TrainingConfig(**usual | changes)


def train(
    folder, objective=None, examples=None, scores=dev, tell=None, score_start=False, **changes
):
    """The run, trained to its end."""
    from speechlab.training.loop import fit
    from speechlab.training.runs import Run

    run = Run.start(folder, RUN_CONFIG, "hash of toys")
    objective = plain() if objective is None else objective
    given = objective, examples or Sines(), scores, options(**changes), run
    return fit(*given, progress=False, tell=tell, score_start=score_start)


def forked(work) -> int:
    """The process id of a child that does `work` and ends with 0, or 1 with a trace."""
    child = os.fork()
    if child:
        return child
    code = 1
    server = forkserver._forkserver  # of the parent: it is no child of this process, but serves it
    server.ensure_running = (lambda: None) if server._forkserver_pid else server.ensure_running
    try:
        work()
        code = 0
    except Exception:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)  # pytest continues only in the parent


def ended(child: int) -> int:
    """Exit status of a child: negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(run: Path, *names: str) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in names}
