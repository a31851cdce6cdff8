"""The state of a training, and one step of it."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speechlab.data.loader import Batch
from speechlab.training.distributed import World
from speechlab.training.objectives import Objective, Phase
from speechlab.training.schedule import TrainingConfig

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
COUNTERS = ("step", "n_skipped", "n_bad", "best", "best_failed", "best_step", "n_since")
COUNTERS += ("sums", "n_summed")


class State:
    """Everything that a step changes; `state_dict` holds all of it."""

    def __init__(self, objective: Objective, config: TrainingConfig) -> None:
        self.objective, self.config = objective, config
        self.phases = objective.phases()
        self.optimizers = [_optimizer(phase, config) for phase in self.phases]
        self.rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        device = next(objective.parameters()).device.type
        scaled = config.precision == "float16"
        self.scalers = [torch.amp.GradScaler(device, enabled=scaled) for _ in self.phases]
        tensors = objective.model.state_dict()
        self.ema = {k: v.detach().clone() for k, v in tensors.items()} if config.ema else {}
        self.step = 0  # steps done, including skipped ones
        self.n_skipped = 0  # steps with a loss or gradient that was not finite
        self.n_bad = 0  # skipped steps in a row, up to now
        self.best: float | None = None  # dev score; NaN if the metric failed on every file
        self.best_failed = 0  # files on which it failed
        self.best_step = 0
        self.n_since = 0  # validations since the best
        self.sums: dict[str, float] = {}  # values of steps, summed since the last row of history
        self.n_summed = 0

    def ended(self) -> str:
        """Why there is no further step, or ""."""
        if self.step >= self.config.n_steps:
            return "finished"
        return "stopped early" if 0 < self.config.patience <= self.n_since else ""

    def is_finite(self) -> bool:
        """Whether all weights are."""
        with torch.no_grad():
            return all(bool(p.isfinite().all()) for p in self.objective.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values, for `snapshots`."""
        return {
            "ended": self.ended(),
            **{name: getattr(self, name) for name in COUNTERS},
            "objective": self.objective.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scalers": [scaler.state_dict() for scaler in self.scalers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """RuntimeError, KeyError or ValueError if it belongs to another model or objective."""
        self.objective.load_state_dict(state["objective"])
        if self.ema.keys() != state["ema"].keys():
            raise ValueError("its average of weights belongs to another model")
        _copy(state["ema"], self.ema)
        for optimizer, known in zip(self.optimizers, state["optimizers"], strict=True):
            moments = {int(i): values for i, values in known["state"].items()}  # JSON's keys: text
            optimizer.load_state_dict({**known, "state": moments})
        for scaler, known in zip(self.scalers, state["scalers"], strict=True):
            if known:
                scaler.load_state_dict(known)
        for name in COUNTERS:
            setattr(self, name, state[name])

    @contextlib.contextmanager
    def deployable(self) -> Iterator[nn.Module]:
        """The model as scored and saved: in eval mode, with the averaged weights if any."""
        model = self.objective.model
        tensors = model.state_dict()
        kept = {name: tensors[name].clone() for name in self.ema}
        was_training = {module: module.training for module in self.objective.modules()}
        try:
            _copy(self.ema, tensors)
            with torch.no_grad():
                yield model.eval()
        finally:
            _copy(kept, tensors)
            for module, mode in was_training.items():
                module.training = mode

    def average(self) -> None:
        """Move the average of weights by one step; buffers are copied."""
        if not self.ema:
            return
        model = self.objective.model
        learnt = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name in learnt:
                    self.ema[name].lerp_(tensor, 1 - self.config.ema)
                else:
                    self.ema[name].copy_(tensor)


def take_step(
    state: State, portion: Sequence[Batch], factor: float, world: World
) -> dict[str, float] | None:
    """One step of every phase on the batches of `portion`, which are on the model's device.

    factor: multiplies the learning rates. Returns loss, terms and gradient norm of every phase:
    means over the examples of all processes. None if one of them is not finite; then that phase and
    later ones change nothing, nor does any buffer.
    """
    kept = [buffer.clone() for buffer in state.objective.buffers()]
    carried: list[dict[str, Any]] = [{} for _ in portion]
    values: dict[str, float] = {}
    for index in range(len(state.phases)):
        found = _take_phase(state, index, portion, carried, factor, world)
        if not all(map(math.isfinite, found.values())):
            for buffer, before in zip(state.objective.buffers(), kept, strict=True):
                buffer.copy_(before)  # a running mean may hold the NaN
            return None
        values |= found
    world.share_buffers(state.objective.buffers())
    state.average()
    return values


def columns(phases: Sequence[Phase]) -> list[str]:
    """Names of the values of a step: per phase the loss, unweighted terms and gradient norm."""
    return [
        f"{phase.name}{part}"
        for phase in phases
        for part in ("", *(f".{term}" for term in phase.weights), ".grad_norm")
    ]


def _take_phase(
    state: State,
    index: int,
    portion: Sequence[Batch],
    carried: list[dict[str, Any]],
    factor: float,
    world: World,
) -> dict[str, float]:
    phase, optimizer, scaler = (x[index] for x in (state.phases, state.optimizers, state.scalers))
    n_examples = sum(batch.n_examples for batch in portion)  # over all processes
    weights = torch.tensor([*phase.weights.values()], dtype=torch.float32, device=world.device)
    totals = torch.zeros_like(weights)
    optimizer.zero_grad(set_to_none=True)
    for batch, carry in zip(portion, carried, strict=True):
        if len(batch.noisy) == 0:  # the last batch of an epoch may be too small for all processes
            continue
        sums = _sums(phase, batch, carry, state.config.precision)
        loss = sum(weight * sums[name] for name, weight in phase.weights.items()) / n_examples
        scaler.scale(loss).backward(inputs=phase.parameters)
        totals += torch.stack([sums[name].detach().float() for name in phase.weights])
    world.sum_gradients(phase.parameters)
    totals = world.sum(totals) / n_examples
    scaler.unscale_(optimizer)
    most = state.config.clip_norm or math.inf
    norm = nn.utils.clip_grad_norm_(phase.parameters, most).item()
    found = [(weights * totals).sum().item(), *totals.tolist(), norm]
    if all(map(math.isfinite, found)):
        for group, rate in zip(optimizer.param_groups, state.rates[index], strict=True):
            group["lr"] = rate * factor
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return dict(zip(columns([phase]), found, strict=True))


def _sums(phase: Phase, batch: Batch, carry: dict[str, Any], precision: str) -> dict[str, Tensor]:
    """Each term, summed over the examples of this process."""
    dtype = PRECISIONS.get(precision)
    with torch.autocast(batch.noisy.device.type, dtype=dtype, enabled=dtype is not None):
        terms = phase.terms(batch, carry)
    shapes = {name: tuple(term.shape) for name, term in terms.items()}
    if shapes != dict.fromkeys(phase.weights, (len(batch.noisy),)):
        wanted = f"({len(batch.noisy)},) for each of {', '.join(phase.weights)}"
        raise ValueError(f"phase {phase.name} must give terms of shape {wanted}, not {shapes}")
    return {name: term.sum() for name, term in terms.items()}


def _optimizer(phase: Phase, config: TrainingConfig) -> torch.optim.Optimizer:
    if phase.optimizer is not None:
        return phase.optimizer(phase.parameters)
    options = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    return OPTIMIZERS[config.optimizer](phase.parameters, **options)


def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Copy tensors into those with the same names."""
    with torch.no_grad():
        for name, tensor in source.items():
            target[name].copy_(tensor)
