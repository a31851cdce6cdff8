"""What models share whose network takes a signal in chunks (CleanUMamba, SepMamba, …)."""

import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.errors import UserError


class ChunkedModel(nn.Module):
    """(B, 1, T) -> (B, S, T): a whole signal is one chunk, so offline and streaming are the same.

    A subclass has `level`, `sample_rate`, `padded_length` and `network(x, state, last)`.
    """

    def forward(self, noisy: Tensor) -> Tensor:
        """noisy: (B, 1, T) -> estimate (B, S, T). UserError for another shape or T = 0."""
        check_shape(self, noisy)
        length = noisy.shape[-1]
        level, _ = self.level(noisy, self.sample_rate)  # (B, 1, 1) or (B, 1, T)
        x = F.pad(noisy / level, (0, self.padded_length(length) - length))
        x, _ = self.network(x, None, last=True)  # (B, S, T or more)
        return x[..., :length] * level


def check_shape(model: nn.Module, noisy: Tensor) -> None:
    """UserError for what is no (B, 1, T) with T >= 1."""
    if noisy.dim() != 3 or noisy.shape[1] != 1 or noisy.shape[2] == 0:
        name, shape = type(model).__name__, tuple(noisy.shape)
        raise UserError(f"{name} takes (B, 1, T) with T >= 1 samples, not {shape}")
