"""Distillation: a model learns the output of a teacher, from rest and from passed states.

    noisy ─► teacher ─────────────────────────────► target ─┐
    noisy ─► model, from rest ──────────────────────────────┼─► losses, also to clean
    noisy ─► model, from the state that the last batch left ┘

A teacher's output needs no clean signal and is an easier target for a small model than the clean
signal (arXiv 2309.08144). Without a teacher of its own a model keeps its own first output.

*State passing* (Buitrago Ruiz and Gu 2025, arXiv 2507.02782, for language models): a step begins
with the states that earlier, other recordings left, without their gradient. The model so learns to
forget: a stream then sounds as from rest after hours. The states of the level and of the network
pass on, so changes of level between recordings are part of the training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechlab.config import check_ranges
from speechlab.data.loader import Batch
from speechlab.errors import UserError
from speechlab.models.base import Model, arrays
from speechlab.training.objectives import Loss, Phase, Supervised


@dataclass(frozen=True)
class DistillationConfig:
    """Targets and starts of the training; a weight of 0 leaves one out."""

    teacher: str = ""  # checkpoint or published name; "": the weights before the first step
    # weight of the losses to each target
    taught: float = 1.0  # the teacher's output
    clean: float = 0.0  # the clean signal
    clean_after: int = 0  # batches before the clean signal counts
    # weight of the losses of each estimate
    rest: float = 1.0  # as of a file
    passed: float = 0.0  # from the states that the last batch left, as in a long stream

    def __post_init__(self) -> None:
        weights = dict.fromkeys(("taught", "clean", "rest", "passed"), (0, 1e30))
        check_ranges(self, **weights, clean_after=(0, 10**9))
        if not (self.taught or self.clean) or not (self.rest or self.passed):
            raise UserError(
                "distillation needs a target and a start: set distillation.taught or .clean, and "
                ".rest or .passed, above 0"
            )


class Distillation(Supervised):
    """Losses from each start to each target; terms are `rest.taught.l1` and so on."""

    def __init__(
        self,
        model: Model,
        losses: Mapping[str, Loss],
        weights: Mapping[str, float],
        config: DistillationConfig,
        teacher: Model,
    ) -> None:
        """teacher: stays as it is. UserError where it does not fit, or no state can be passed."""
        super().__init__(model, losses, weights)
        if (teacher.sample_rate, teacher.n_sources) != (model.sample_rate, model.n_sources):
            raise UserError(
                f"the teacher gives {teacher.n_sources} source(s) at {teacher.sample_rate} Hz, the "
                f"model {model.n_sources} at {model.sample_rate} Hz; choose another teacher"
            )
        if config.passed and (model.long_recordings != "chunks" or not model.level.causal):
            raise UserError(
                f"distillation.passed: this {type(model).__name__} passes no state on; it needs a "
                'causal model and a causal level, as with model.normalize="running"'
            )
        self.config = config
        self._teacher = (teacher.eval().requires_grad_(False),)  # a tuple: no part of the state
        self.register_buffer("n_batches", torch.zeros((), dtype=torch.int64))
        self._passed: tuple[Any, ...] | None = None  # states that the last batch left

    def phases(self) -> list[Phase]:
        starts = {name: getattr(self.config, name) for name in ("rest", "passed")}
        targets = {name: getattr(self.config, name) for name in ("taught", "clean")}
        weights = {
            f"{start}.{target}.{name}": starts[start] * targets[target] * weight
            for start in starts
            for target in targets
            for name, weight in self.weights.items()
            if starts[start] and targets[target]
        }
        [phase] = super().phases()
        return [Phase(phase.name, phase.parameters, self.terms, weights)]

    def terms(self, batch: Batch, carried: dict[str, Any]) -> dict[str, Tensor]:
        """Every loss from every start to every target, (B,)."""
        targets = self._targets(batch)
        self.n_batches += 1
        starts: dict[str, Callable[[Tensor], Tensor]] = {}
        if self.config.rest:
            starts["rest"] = self.model
        if self.config.passed:
            starts["passed"] = self._from_passed
        found = {}
        for start, estimated in starts.items():
            estimate = estimated(batch.noisy)  # (B, S, n), n <= T
            with torch.autocast(estimate.device.type, enabled=False):
                estimate = estimate.to(batch.clean.dtype)
                for target, (reference, share) in targets.items():
                    reference = reference[..., : estimate.shape[-1]]
                    for name, loss in self.losses.items():
                        found[f"{start}.{target}.{name}"] = share * loss(estimate, reference)
        return found

    def _targets(self, batch: Batch) -> dict[str, tuple[Tensor, float]]:
        """Each target (B, S, T), and 1, or 0 where it does not count yet."""
        targets = {}
        if self.config.taught:
            with torch.no_grad():
                targets["taught"] = self._teacher[0](batch.noisy).to(batch.clean.dtype), 1.0
        if self.config.clean:
            counts = int(self.n_batches) >= self.config.clean_after
            targets["clean"] = batch.clean, float(counts)
        return targets

    def _from_passed(self, noisy: Tensor) -> Tensor:
        """The estimate (B, S, n) of the first n samples, after the recordings of the last batch.

        The samples that the last batch still had to give are dropped. A batch of another size
        begins from rest.
        """
        if noisy.shape[-1] < self.model.frame_length:
            least = self.model.frame_length / self.model.sample_rate
            raise UserError(f"distillation.passed needs a segment_s of {least:.3g} or more")
        network_state, level_state, n_pending = None, None, 0
        if self._passed is not None and self._passed[0] == len(noisy):
            _, n_pending, network_state, level_state = self._passed
        level, level_state = self.model.level.step(noisy, self.model.sample_rate, level_state)
        x, network_state = self.model.network(noisy / level, network_state, last=False)
        estimate = x[..., n_pending:]
        n = estimate.shape[-1]
        states = _detached((network_state, level_state))
        if all(bool(part.isfinite().all()) for part in arrays(states)):
            self._passed = (len(noisy), noisy.shape[-1] - n, *states)
        return estimate * level[..., :n]

    def get_extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights and buffers."""
        return {"passed": self._passed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """state: of `get_extra_state`, with lists in place of tuples."""
        self._passed = _tuples(state["passed"], self.n_batches.device)


def _detached(state: Any) -> Any:
    """Nested tuples without gradients."""
    if isinstance(state, tuple):
        return tuple(map(_detached, state))
    return state.detach() if isinstance(state, Tensor) else state


def _tuples(state: Any, device: torch.device) -> Any:
    """Nested lists as nested tuples, tensors on the device."""
    if isinstance(state, list | tuple):
        return tuple(_tuples(part, device) for part in state)
    return state.to(device) if isinstance(state, Tensor) else state
