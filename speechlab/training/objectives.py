"""What `fit` optimises: a model and its losses, in one or more phases.

A plain objective has one phase. A GAN has two, discriminator first, each with its own optimiser.
All modules of an objective are its submodules, so one `state_dict` holds all that training changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from speechlab.data.loader import Batch
from speechlab.errors import UserError, meant
from speechlab.losses.pit import best_permutation, pairwise, reordered

Loss = Callable[[Tensor, Tensor], Tensor]  # (estimate, clean), both (B, S, T) -> (B,)
Terms = Callable[[Batch, dict[str, Any]], dict[str, Tensor]]


@dataclass(frozen=True)
class Phase:
    """One optimiser's part of a step."""

    name: str  # a column of history.csv
    parameters: list[nn.Parameter]  # the only ones that it changes
    terms: Terms  # (batch, carried) -> each term (B,); `carried` passes values to later phases
    weights: Mapping[str, float]  # of every term in the loss
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None  # None: `fit`'s


class Objective(nn.Module):
    """A model and other trained parts, such as a discriminator."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def phases(self) -> list[Phase]:
        """In the order of a step; called once."""
        raise NotImplementedError

    def close(self) -> None:
        """End its processes; `fit` always calls this at its end."""


class Supervised(Objective):
    """A weighted sum of losses between estimate and clean, of any number of sources."""

    def __init__(
        self,
        model: nn.Module,
        losses: Mapping[str, Loss],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """weights: of losses by name, default 1. UserError for an unknown name."""
        super().__init__(model)
        self.losses = dict(losses)
        self.weights = dict.fromkeys(losses, 1.0) | dict(weights or {})
        unknown = sorted(self.weights.keys() - self.losses.keys())
        if unknown:
            known = ", ".join(losses)
            raise UserError(
                f"a weight for '{unknown[0]}', which is no loss here"
                f"{meant(unknown[0], losses)}; there are: {known}"
            )

    def phases(self) -> list[Phase]:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return [Phase("loss", trained, self.terms, self.weights)]

    def terms(self, batch: Batch, carried: dict[str, Any]) -> dict[str, Tensor]:
        """Every loss, (B,), computed in the type of `clean` under any autocast."""
        estimate = self.model(batch.noisy)  # (B, S, T)
        with torch.autocast(estimate.device.type, enabled=False):
            estimate = self.matched(estimate.to(batch.clean.dtype), batch.clean)
            return {name: loss(estimate, batch.clean) for name, loss in self.losses.items()}

    def matched(self, estimate: Tensor, clean: Tensor) -> Tensor:
        """The estimates (B, S, T), in the model's order."""
        return estimate


class PermutationInvariant(Supervised):
    """The same for estimates in any order (Yu et al. 2017, arXiv 1607.00325).

    Each example uses the order with the lowest weighted sum of losses, averaged over the sources.
    A term is its loss in that order, which need not be the lowest value of this loss.
    """

    @torch.no_grad()
    def _permutation(self, estimate: Tensor, clean: Tensor) -> Tensor:
        """(B, S): the estimate of each source; losses of weight 0 do not count."""
        B, S = estimate.shape[:2]
        matrix = estimate.new_zeros(B, S, S)
        for name, loss in self.losses.items():
            if self.weights[name]:
                matrix = matrix + self.weights[name] * pairwise(loss)(estimate, clean)
        return best_permutation(matrix)

    def matched(self, estimate: Tensor, clean: Tensor) -> Tensor:
        """The estimates (B, S, T) in the order of the sources, per example."""
        return reordered(estimate, self._permutation(estimate, clean))
