"""What `fit` optimises: a model, and in one or more phases how its loss is made.

A plain objective has one phase. A GAN has two, discriminator first, each with an optimiser of its
own: no fork of the loop. All modules of an objective are its submodules, so one `state_dict` holds
everything that training changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from speechlab.data.loader import Batch
from speechlab.errors import UserError
from speechlab.losses.pit import best_permutation, pairwise, reordered

Loss = Callable[[Tensor, Tensor], Tensor]  # (estimate, clean), both (B, S, T) -> (B,)
Terms = Callable[[Batch, dict[str, Any]], dict[str, Tensor]]


@dataclass(frozen=True)
class Phase:
    """One optimiser's part of a step."""

    name: str  # a column of history.csv
    parameters: list[nn.Parameter]  # what it changes; gradients reach no others
    terms: Terms  # (batch, carried) -> each term (B,); what a later phase needs goes into `carried`
    weights: Mapping[str, float]  # of every term in the loss
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None  # None: `fit`'s


class Objective(nn.Module):
    """A model, and whatever else its training has: discriminators, loss weights that learn."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def phases(self) -> list[Phase]:
        """In the order of a step; called once."""
        raise NotImplementedError

    def close(self) -> None:
        """End what it has begun, as processes; `fit` calls this at its end, whatever that is."""


class Supervised(Objective):
    """A weighted sum of losses between estimate and clean, of any number of sources."""

    def __init__(
        self,
        model: nn.Module,
        losses: Mapping[str, Loss],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """weights: of losses by name; 1 where none is given. UserError for one of no loss."""
        super().__init__(model)
        self.losses = dict(losses)
        self.weights = dict.fromkeys(losses, 1.0) | dict(weights or {})
        unknown = sorted(self.weights.keys() - self.losses.keys())
        if unknown:
            known = ", ".join(losses)
            raise UserError(
                f"a weight for '{unknown[0]}', which is no loss here; there are: {known}"
            )

    def phases(self) -> list[Phase]:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return [Phase("loss", trained, self.terms, self.weights)]

    def terms(self, batch: Batch, carried: dict[str, Any]) -> dict[str, Tensor]:
        """Every loss, (B,); computed in the type of `clean`, whatever autocast the model has."""
        estimate = self.model(batch.noisy)  # (B, S, T)
        with torch.autocast(estimate.device.type, enabled=False):
            estimate = self.matched(estimate.to(batch.clean.dtype), batch.clean)
            return {name: loss(estimate, batch.clean) for name, loss in self.losses.items()}

    def matched(self, estimate: Tensor, clean: Tensor) -> Tensor:
        """The estimates (B, S, T) in the order of the sources: as the model gives them."""
        return estimate


class PermutationInvariant(Supervised):
    """The same where the order of the estimates is free (Yu et al. 2017, arXiv 1607.00325).

    Each example counts in the order whose weighted sum of losses, its mean over the sources, is
    lowest. A term is its loss in that order, which need not be the lowest of this one loss.
    """

    @torch.no_grad()
    def _permutation(self, estimate: Tensor, clean: Tensor) -> Tensor:
        """(B, S): which estimate belongs to each source; what weighs nothing has no say."""
        B, S = estimate.shape[:2]
        matrix = estimate.new_zeros(B, S, S)
        for name, loss in self.losses.items():
            if self.weights[name]:
                matrix = matrix + self.weights[name] * pairwise(loss)(estimate, clean)
        return best_permutation(matrix)

    def matched(self, estimate: Tensor, clean: Tensor) -> Tensor:
        """The estimates (B, S, T) in the order of their sources, of each example its own."""
        return reordered(estimate, self._permutation(estimate, clean))
