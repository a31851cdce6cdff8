"""SEMamba, basic: causal Mamba on magnitudes, for streams (arXiv 2405.06573).

    noisy ─ level ─► log1p |STFT| ─► 4 convs ─► n_blocks layers ─► linear, ReLU ─► expm1 ─► inverse
                       └──────────────────────── noisy phase ─────────────────────────────────┘

| code      | meaning                                              | published                     |
|-----------|------------------------------------------------------|-------------------------------|
| channels  | outputs of the convolutions; the last one is d_model | 1024, 512, 128, 256           |
| n_blocks  | sequence layers                                      | 2 of Mamba, 8 of Transformer  |
| direction | "forward" sees the past alone, "both" the whole      | causal, non-causal            |
| layer     | sizes of a sequence layer                            | expand 2 causal, 4 non-causal |

There is no public code. Front end, widths and depths follow from the published numbers: 3,601,281
parameters causal, 6,491,009 non-causal, 9,045,377 for the Transformer of the comparison. The paper
does not give the following, chosen here:

- Blocks are the advanced model's: x + mixer(RMSNorm(x)); in both directions x + fusion(both).
- Convolutions of direction "both" have one frame of context on either side, zeros at the ends.
- The level. log1p compresses loud bins only, so the task would depend on the microphone's level.
  The running level removes that dependence, in training and in a stream. Direction "both" uses it
  too, for comparability; "none" is the signal as it is.
- Frames of both directions end with the newest sample, as causal frames must.
- The Transformer's layers: see `layers.transformer`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise, repeat
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.audio.spectrum import Spectrum
from speechlab.audio.stft import overlap_add, whole_frames
from speechlab.config import Count, Layers, SampleRate, Size, Sizes
from speechlab.errors import UserError
from speechlab.layers.bidirectional import Direction, n_layers, sequence_layer
from speechlab.layers.channels import (
    Group,
    inner_groups,
    inputs,
    narrowed_layers,
    outer_members,
    outputs,
)
from speechlab.layers.mixers import Mamba
from speechlab.layers.stacks import GIVEN, Block, Stack, check_number, check_settings
from speechlab.layers.transformer import CausalTransformerLayer, WholeTransformerLayer
from speechlab.models.base import ChunkedModel, StateLeak, check_overlap, leak

State = tuple[Any, ...]  # nested tuples of tensors; None before the first chunk
SLOPE = 0.2  # of LeakyReLU below zero


@dataclass(frozen=True)
class LogFrontEnd:
    """Magnitudes as log1p; each frame ends at the end of a hop. Lengths in samples."""

    n_fft: Size = 512
    hop_length: Size = 256  # half of n_fft or a divisor of that

    @property
    def n_freqs(self) -> int:
        return self.n_fft // 2 + 1

    @property
    def n_past(self) -> int:
        """Samples of a frame before its hop; zeros before the first."""
        return self.n_fft - self.hop_length

    def padded_length(self, length: int) -> int:
        """The smallest length >= `length` with which all frames of the last sample are complete."""
        return -(-length // self.hop_length) * self.hop_length + self.n_past

    def frames(self, samples: Tensor) -> Spectrum:
        """(..., T) -> (..., F, L): the frames within the samples; the first n_past are context."""
        spec = whole_frames(samples, self.n_fft, self.hop_length)
        return Spectrum(spec.abs().log1p(), spec.angle())

    def spec(self, spectrum: Spectrum) -> Tensor:
        """Inverse of `frames` up to the STFT: (..., F, L), complex."""
        return torch.polar(spectrum.mag.expm1(), spectrum.phase)

    def samples(self, spec: Tensor) -> Tensor:
        """(..., F, L) -> (..., T): the samples whose frames are all present."""
        return overlap_add(spec, self.n_fft, self.hop_length)

    def analyse(self, waveform: Tensor) -> Spectrum:
        """(..., T) -> (..., F, L) with L = padded_length(T) / hop_length frames."""
        length = waveform.shape[-1]
        return self.frames(F.pad(waveform, (self.n_past, self.padded_length(length) - length)))

    def synthesise(self, spectrum: Spectrum, n_samples: int | None = None) -> Tensor:
        """(..., F, L) -> (..., T), the inverse of `analyse`; the first n_samples, or all."""
        return self.samples(self.spec(spectrum))[..., :n_samples]


@dataclass(frozen=True)
class SEMambaBasicConfig:
    """All that is needed to build a SEMambaBasic."""

    channels: Sizes = (1024, 512, 128, 256)
    kernel_size: Size = 3  # frames, odd
    n_blocks: Count = 2
    sequence_layer: Literal["mamba", "transformer"] = "mamba"
    direction: Direction = "forward"
    layer: Mapping[str, Any] = field(default_factory=lambda: {"d_state": 16, "expand": 2})
    layers: Layers = ()  # of a pruned model: settings of each layer, forward first; else `layer`
    state_leak_s: StateLeak = None  # of Mamba with direction "forward"
    # signal
    front_end: LogFrontEnd = LogFrontEnd()
    sample_rate: SampleRate = 16000  # Hz
    normalize: Literal["running", "none"] = "running"


class SEMambaBasic(ChunkedModel):
    """(B, 1, T) -> (B, 1, T), any T >= 1: new magnitudes, the noisy phase.

    Causal up to `look_ahead` samples with direction "forward". A bin of magnitude 0 has no phase
    and stays 0: digital silence stays silent.
    """

    domain = "log_spectrum"

    def __init__(self, config: SEMambaBasicConfig | None = None) -> None:
        config = config or SEMambaBasicConfig()
        super().__init__(config)
        _check(config)
        self.front_end = config.front_end
        self.magnitudes = MAGNITUDES[config.direction](config)

    def channel_groups(self) -> dict[str, Group]:
        """encode_i: outputs of the convolutions but the last; d_model; those inside each Mamba.

        UserError for other sequence layers.
        """
        if self.config.sequence_layer != "mamba":
            return super().channel_groups()
        *inner, d_model = self.config.channels
        convs = [f"magnitudes.convs.{i}" for i in range(len(inner) + 1)]
        groups = {
            f"encode_{i}": Group(n, outputs(self, convs[i]) + inputs(self, convs[i + 1]))
            for i, n in enumerate(inner)
        }
        outer = outputs(self, convs[-1]) + outer_members(self, "magnitudes.layers")
        groups["d_model"] = Group(d_model, outer + inputs(self, "magnitudes.head"))
        return groups | inner_groups(self)

    def narrowed(self, widths: Mapping[str, int]) -> SEMambaBasicConfig:
        inner = (widths[f"encode_{i}"] for i in range(len(self.config.channels) - 1))
        channels = (*inner, widths["d_model"])
        return replace(self.config, channels=channels, layers=narrowed_layers(self, widths))

    @property
    def hop_length(self) -> int:
        """Samples between two frames."""
        return self.front_end.hop_length

    @property
    def frame_length(self) -> int:
        """Samples of a frame; the first output needs all frames of the first sample."""
        return self.front_end.n_fft

    @property
    def long_recordings(self) -> str:
        """No norm is over time: chunks that overlap need one pass."""
        return "one_pass" if self.needs_whole else "chunks"

    def padded_length(self, length: int) -> int:
        """The smallest length >= `length` with which all frames of the last sample are complete."""
        return self.front_end.padded_length(length)

    def spectrum(self, noisy: Tensor) -> Spectrum:
        """noisy: (B, 1, T) -> log1p mag and phase of the estimate at unit level, (B, F, L)."""
        level = self.level.of(noisy, self.sample_rate)
        estimate, _ = self._estimated(self.front_end.analyse((noisy / level)[:, 0]), None)
        return estimate

    def network(self, x: Tensor, state: State | None, last: bool) -> tuple[Tensor, State]:
        """All but the level, on the next chunk of a signal: (B, 1, n) -> (B, 1, m) and the state.

        The output ends where later input would change it; at the end of a signal of a
        `padded_length` it is complete. A whole signal is one chunk: offline and streaming are the
        same computation. UserError for a part of a signal with direction "both".

        State: samples of unfinished frames (B, n), states of convolutions and layers, and the
        spectrum of the last frames that the next samples share, (B, F, n_fft / hop_length - 1).
        """
        self.refuse_part(state, last)
        samples, between, shared = state or (x.new_zeros(len(x), self.front_end.n_past), None, None)
        samples = torch.cat([samples, x[:, 0]], -1)
        estimate, between = self._estimated(self.front_end.frames(samples), between)
        spec = self.front_end.spec(estimate)  # (B, F, L)
        samples = samples[:, spec.shape[-1] * self.hop_length :].clone()
        spec = spec if shared is None else torch.cat([shared, spec], -1)
        n_shared = min(spec.shape[-1], self.front_end.n_past // self.hop_length)
        shared = spec[..., spec.shape[-1] - n_shared :].clone()
        return self.front_end.samples(spec)[:, None], (samples, between, shared)

    def _estimated(self, noisy: Spectrum, state: State | None) -> tuple[Spectrum, State | None]:
        """(B, F, L) -> (B, F, L), the state after it."""
        if not noisy.mag.shape[-1]:
            return noisy, state
        if self.needs_whole:
            mag = self.magnitudes(noisy.mag)
        else:
            mag, state = self.magnitudes(noisy.mag, state)
        return Spectrum(mag.masked_fill(noisy.mag == 0, 0), noisy.phase), state


class CausalMagnitudes(nn.Module):
    """Causal convolutions, sequence layers, a linear layer: (B, F, L) -> (B, F, L)."""

    def __init__(self, config: SEMambaBasicConfig) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_convs(config))
        self.layers = Stack(_layers(config), None, None)
        self.head = nn.Linear(config.channels[-1], config.front_end.n_freqs)

    def forward(self, mag: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """mag: the next frames, at least one. State: tails of the convolutions, of the layers."""
        tails, between = state or ((None,) * len(self.convs), None)
        x, after = mag, []
        for conv, tail in zip(self.convs, tails, strict=True):
            n_past = conv.kernel_size[0] - 1
            x = F.pad(x, (n_past, 0)) if tail is None else torch.cat([tail, x], -1)
            after.append(x[..., x.shape[-1] - n_past :].clone())
            x = F.leaky_relu(conv(x), SLOPE)  # (B, C, L)
        x, between = self.layers(x.transpose(1, 2), between)  # (B, L, C)
        return F.relu(self.head(x)).transpose(1, 2), (tuple(after), between)


class WholeMagnitudes(nn.Module):
    """The same in both directions, without a state."""

    def __init__(self, config: SEMambaBasicConfig) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_convs(config, padding=config.kernel_size // 2))
        self.layers = nn.Sequential(*_layers(config))
        self.head = nn.Linear(config.channels[-1], config.front_end.n_freqs)

    def forward(self, mag: Tensor) -> Tensor:
        x = mag
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)  # (B, C, L)
        x = self.layers(x.transpose(1, 2))  # (B, L, C)
        return F.relu(self.head(x)).transpose(1, 2)


MAGNITUDES = {"forward": CausalMagnitudes, "both": WholeMagnitudes}


def causal_mamba(d_model: int, options: Mapping[str, Any]) -> Block:
    """x + Mamba(RMSNorm(x)), with state."""
    return Block(Mamba(d_model, **options), d_model, nn.RMSNorm(d_model, eps=1e-5))


LAYERS: dict[tuple[str, Direction], Callable[..., nn.Module]] = {  # (d_model, *options)
    ("mamba", "forward"): causal_mamba,
    ("mamba", "both"): lambda d_model, *each: sequence_layer("mamba", d_model, each=each),
    ("transformer", "forward"): lambda d_model, options: CausalTransformerLayer(d_model, **options),
    ("transformer", "both"): lambda d_model, options: WholeTransformerLayer(d_model, **options),
}


def _layers(config: SEMambaBasicConfig) -> list[nn.Module]:
    kind, d_model = LAYERS[config.sequence_layer, config.direction], config.channels[-1]
    leaks = leak(config, config.front_end.hop_length)
    layers = ({**layer, **leaks} for layer in config.layers or repeat(config.layer))
    n = n_layers(config.sequence_layer, config.direction)
    try:
        return [kind(d_model, *islice(layers, n)) for _ in range(config.n_blocks)]
    except TypeError as error:  # an unknown or a missing option
        raise UserError(f"SEMambaBasic, layer of {config.sequence_layer}: {error}") from error


def _convs(config: SEMambaBasicConfig, padding: int = 0) -> list[nn.Conv1d]:
    sizes = pairwise([config.front_end.n_freqs, *config.channels])
    return [nn.Conv1d(*pair, config.kernel_size, padding=padding) for pair in sizes]


def _check(config: SEMambaBasicConfig) -> None:
    front_end = config.front_end
    check_overlap(front_end.n_fft, front_end.hop_length)
    if config.kernel_size % 2 == 0:
        raise UserError(f"kernel_size must be odd, not {config.kernel_size}")
    if front_end.n_fft % (2 * front_end.hop_length):
        frames = f"n_fft {front_end.n_fft}, hop_length {front_end.hop_length}"
        raise UserError(f"hop_length must be half of n_fft or divide that, not {frames}")
    for layer in (config.layer, *config.layers):
        check_settings("layer", set(layer) - GIVEN, layer)
    causal_mamba = (config.sequence_layer, config.direction) == ("mamba", "forward")
    if config.state_leak_s is not None and not causal_mamba:
        raise UserError('state_leak_s is for Mamba with direction "forward"; leave it out')
    n = n_layers(config.sequence_layer, config.direction)
    check_number("layers", config.layers, config.n_blocks * n)
    heads, width = (config.layer.get(name, 1) for name in ("n_heads", "d_inner"))
    if width % heads:
        raise UserError(f"layer: d_inner {width} is not a multiple of n_heads {heads}")


_TRANSFORMER = {"n_heads": 8, "d_inner": 512, "d_hidden": 512}
CONFIGS = {
    "causal": SEMambaBasicConfig(),
    "bidirectional": SEMambaBasicConfig(direction="both", layer={"d_state": 16, "expand": 4}),
    "transformer_causal": SEMambaBasicConfig(
        n_blocks=8, sequence_layer="transformer", layer=_TRANSFORMER | {"window": 1024}
    ),
    "transformer_bidirectional": SEMambaBasicConfig(
        n_blocks=8, sequence_layer="transformer", direction="both", layer=_TRANSFORMER
    ),
}
