"""Base of the separators of the TasNet family: learned encoder, a mask per source, decoder.

    mixture ─ Conv1d (─ ReLU) ─► encoded ─ masks ─► mask x encoded ─ ConvTranspose1d ─► sources
                                    └────────────────────┘

| code        | meaning                                          | arXiv 1809.07454, table I |
|-------------|--------------------------------------------------|---------------------------|
| n_filters   | channels of encoder and decoder                  | N                         |
| kernel_size | samples of a frame                               | L                         |
| stride      | samples between two frames; the hop length       | L / 2                     |
| n_sources   | masks and output sources                         | C                         |

Axes: B batch, S sources, N filters, L frames, T samples. There is no level: as published, the
networks take the mixture unscaled, and the norm after the encoder removes its scale, except for
the constant under its root, which matters for quiet mixtures.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.errors import UserError
from speechlab.models.base import Model

Activation = Literal["none", "relu", "sigmoid"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}


class MaskingModel(Model):
    """(B, 1, T) -> (B, S, T), any T >= 1; zeros complete the last frame.

    A subclass has a `separator`, or `masks` of its own; its configuration has `n_filters`,
    `kernel_size`, `stride`, `encoder_activation`, `n_sources` and `sample_rate`.
    """

    needs_whole = "its norms and layers look at the whole signal"

    def __init__(self, config: Any) -> None:
        """UserError for a size below 1, or a stride that skips samples."""
        super().__init__(config)
        check_sizes(config)
        conv = (config.kernel_size, config.stride)
        self.encoder = nn.Conv1d(1, config.n_filters, *conv, bias=False)
        self.decoder = nn.ConvTranspose1d(config.n_filters, 1, *conv, bias=False)

    @property
    def n_sources(self) -> int:
        """S, sources in the output."""
        return self.config.n_sources

    @property
    def hop_length(self) -> int:
        """Samples between two frames."""
        return self.config.stride

    def padded_length(self, length: int) -> int:
        """The smallest length >= `length` that complete frames cover."""
        kernel, stride = self.config.kernel_size, self.config.stride
        n_steps = max(0, -(-(length - kernel) // stride))
        return kernel + n_steps * stride

    def masks(self, encoded: Tensor) -> Tensor:
        """Encoder output (B, N, L) -> a mask per source (B, S, N, L)."""
        return self.separator(encoded)

    def forward(self, mixture: Tensor) -> Tensor:
        """mixture: (B, 1, T) -> estimate (B, S, T). UserError for another shape or T = 0."""
        self.check_shape(mixture)
        length = mixture.shape[-1]
        x = F.pad(mixture, (0, self.padded_length(length) - length))
        encoded = ACTIVATIONS[self.config.encoder_activation](self.encoder(x))  # (B, N, L)
        masked = self.masks(encoded) * encoded[:, None]  # (B, S, N, L)
        estimate = self.decoder(masked.flatten(0, 1))  # (B S, 1, T')
        return estimate.unflatten(0, masked.shape[:2])[:, :, 0, :length]


class MaskConvolution(nn.Module):
    """PReLU -> 1x1 convolution -> activation: (B, D, L) -> a mask per source, (B, S, N, L)."""

    def __init__(self, d_model: int, config: Any) -> None:
        """config: has `n_sources`, `n_filters` and `mask_activation`."""
        super().__init__()
        self.prelu = nn.PReLU()
        self.shape = (config.n_sources, config.n_filters)
        self.conv = nn.Conv1d(d_model, config.n_sources * config.n_filters, 1)
        self.activation = ACTIVATIONS[config.mask_activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.conv(self.prelu(x)).unflatten(1, self.shape))


def check_sizes(config: Any) -> None:
    """UserError for an even kernel, or frames with gaps between them."""
    for name, value in vars(config).items():
        if name in ("d_conv", "unet_kernel_size") and value % 2 == 0:
            raise UserError(f"{name} must be odd, not {value}")
    if config.stride > config.kernel_size:
        gaps = f"stride {config.stride} skips samples between frames of {config.kernel_size}"
        raise UserError(f"{gaps}; it must be at most kernel_size")
