"""Long recordings through models that need their whole input: overlapping chunks.

States and attention forget samples far away, so chunks can replace the whole for them. The level
and the instance norms cannot: those of a chunk differ from those of the whole. So they are computed
for the whole recording first, in passes over its chunks. Each norm depends on the norms before it
and needs a pass of its own, which ends at that norm.

    1. level                                                                   1 pass
    2. encoder: mean and variance at each of its norms                         6 passes
    3. encoder and blocks: inputs of the decoders, kept on disk                 1 pass
    4. each decoder: mean and variance at each of its norms                    5 passes each
    5. both decoders: estimates of the chunks, cross-faded where they overlap  1 pass

A model in both directions without norms over time (the non-causal basic SEMamba) needs one pass
over the chunks, with the level carried along: `in_one_pass`.

A recording of at most `chunk_s` is one chunk: its estimate is `model(noisy)` itself.

Many channels are enhanced in groups, one group after another: `in_groups`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.audio import files
from speechlab.audio.level import repeatable
from speechlab.audio.spectrum import Spectrum
from speechlab.errors import UserError
from speechlab.inference.overlap_add import FADE_S, OVERLAP_S, Piece, joined, pieces
from speechlab.models.base import Model
from speechlab.models.semamba_basic import SEMambaBasic
from speechlab.models.spectral import SpectralModel
from speechlab.storage.kept import Kept, KeptSignal

CHANNELS = 8  # most that are enhanced at once
KEPT = 2**14  # samples of a channel that are read back at once

Moments = dict[str, tuple[Tensor, Tensor]]  # instance norm -> mean and variance, (C,) each
Chunks = Callable[[], Iterator[tuple[Spectrum, slice]]]  # spectra, and the frames that count


def in_groups(
    enhanced: Callable[[Iterable[Tensor]], Iterator[Tensor]], blocks: Iterable[Tensor]
) -> Iterator[Tensor]:
    """Blocks (C, n) -> the blocks (C, m) of `enhanced`, which gets at most CHANNELS of them.

    Temporary files keep the signal and the estimate: memory does not grow with the channels.
    """
    with contextlib.ExitStack() as stack:
        signals: list[KeptSignal] = []
        for block in files.rechunk(iter(blocks), KEPT):
            groups = block.split(CHANNELS)
            signals = signals or [stack.enter_context(KeptSignal()) for _ in groups]
            for signal, group in zip(signals, groups, strict=True):
                signal.append(group)
        estimates = [stack.enter_context(KeptSignal()) for _ in signals]
        for signal, estimate in zip(signals, estimates, strict=True):
            for block in files.rechunk(enhanced(signal), KEPT):
                estimate.append(block)
        for groups in zip(*estimates, strict=True):
            yield torch.cat(groups)


@torch.inference_mode()
def overlapped(
    model: SpectralModel,
    blocks: Iterable[Tensor],
    chunk_s: float | None = None,
    overlap_s: float | None = None,
) -> Iterator[Tensor]:
    """Noisy blocks (C, n) at the model's rate -> the estimate in blocks (C, m), as long in all.

    chunk_s: seconds of a chunk, default `model.chunk_s`.
    overlap_s: seconds that two chunks share, default OVERLAP_S and at most a quarter of a chunk.

    Each channel is a signal of its own. Blocks of more than one chunk are read many times: a list
    or a `Recording`; UserError for an iterator. Memory use does not grow with the recording;
    temporary files take about 4 MB per second and channel (64 channels, 16 kHz).
    """
    length, overlap = _lengths(model, chunk_s, overlap_s)
    cut = partial(pieces, repeatable(blocks), length, overlap)
    if len(first := list(islice(cut(), 2))) < 2:
        for piece in first:  # channel by channel, as below, for less memory
            signals = piece.samples.to(model.device)
            yield torch.cat([model(signal[None, None])[:, 0] for signal in signals]).cpu()
        return
    # Equal to `model.gain` except for the last bits. They decide the signs of phases in the first
    # frame (see there), so the first tenth of a second may differ from `model(whole)`.
    gain = 1 / model.level.of_blocks(blocks)[..., 0]  # (C, 1)
    with contextlib.ExitStack() as stack:
        channels = [
            _spectra(
                model, partial(_chunks, model, cut, channel, gain), stack.enter_context(Kept())
            )
            for channel in range(len(gain))
        ]
        estimates = _estimates(model, cut(), channels, gain)
        yield from joined(estimates, overlap, round(FADE_S * model.sample_rate))


@torch.inference_mode()
def in_one_pass(
    model: SEMambaBasic,
    blocks: Iterable[Tensor],
    chunk_s: float | None = None,
    overlap_s: float | None = None,
) -> Iterator[Tensor]:
    """The same in one pass, for a model without norms over time and with a causal level."""
    length, overlap = _lengths(model, chunk_s, overlap_s)

    def levelled() -> Iterator[Tensor]:
        state = None
        for block in blocks:
            level, state = model.level.step(block[:, None], model.sample_rate, state)
            level = level[:, 0].expand(block.shape)
            yield torch.cat([block / level, level])  # (2 C, n)

    def estimates() -> Iterator[tuple[Tensor, bool]]:
        for piece in pieces(levelled(), length, overlap):
            noisy, level = piece.samples.chunk(2)  # (C, n) each
            n_samples = noisy.shape[-1]
            padding = (0, model.padded_length(n_samples) - n_samples)
            padded = F.pad(noisy[:, None], padding).to(model.device)
            estimate, _ = model.network(padded, None, last=True)
            yield estimate[:, 0, :n_samples].cpu() * level, piece.is_last

    return joined(estimates(), overlap, round(FADE_S * model.sample_rate))


def _lengths(model: Model, chunk_s: float | None, overlap_s: float | None) -> tuple[int, int]:
    """Samples of a chunk and of an overlap; half an overlap is also a whole number of hops."""
    hop, rate = model.hop_length, model.sample_rate
    chunk_s = model.chunk_s if chunk_s is None else chunk_s
    overlap_s = min(OVERLAP_S, chunk_s / 4) if overlap_s is None else overlap_s
    overlap = round(overlap_s * rate / (2 * hop)) * 2 * hop
    length = round(chunk_s * rate / hop) * hop
    if not 0 < 2 * overlap <= length:
        raise UserError(f"chunks of {chunk_s} s cannot overlap by {overlap_s} s on both sides")
    return length, overlap


def _estimates(
    model: SpectralModel, cut: Iterable[Piece], channels: list[Iterator[Spectrum]], gain: Tensor
) -> Iterator[tuple[Tensor, bool]]:
    """The estimate (C, n) of each piece, from the spectra of each channel."""
    for piece, *spectra in zip(cut, *channels, strict=True):
        n_samples = piece.samples.shape[-1]
        parts = [model.front_end.synthesise(spectrum, n_samples) for spectrum in spectra]
        yield torch.cat(parts).cpu() / gain, piece.is_last


def _chunks(
    model: SpectralModel, cut: Callable[[], Iterator[Piece]], channel: int, gain: Tensor
) -> Iterator[tuple[Spectrum, slice]]:
    """Spectra of one channel at unit level, each with its frames up to the middle of overlaps."""
    hop = model.hop_length
    for piece in cut():
        n_frames, margin = 1 + piece.samples.shape[-1] // hop, piece.n_shared // (2 * hop)
        end = n_frames if piece.is_last else n_frames - 1 - margin
        noisy = piece.samples[channel, None] * gain[channel]
        yield (
            model.front_end.analyse(noisy.to(model.device)),
            slice(0 if piece.is_first else margin, end),
        )


def _spectra(model: SpectralModel, chunks: Chunks, hidden: Kept) -> Iterator[Spectrum]:
    """The estimate of each chunk of one channel; the first one needs all passes but the last.

    hidden: empty; takes the inputs of the decoders.
    """

    def stacked() -> Iterator[tuple[Tensor, slice]]:
        return ((model.stacked(noisy), core) for noisy, core in chunks())

    moments = whole_moments(model.encoder, stacked)
    cores = []
    for x, core in stacked():
        with normalised(model.encoder, moments):
            x = model.encoder(x)
        hidden.append(*model.between(x))
        cores.append(core)
    decoders = (model.mask_decoder, model.phase_decoder)
    known = [
        whole_moments(decoder, lambda i=i: zip((kept[i] for kept in hidden), cores, strict=True))
        for i, decoder in enumerate(decoders)
    ]
    for (noisy, _), kept in zip(chunks(), hidden, strict=True):
        with normalised(decoders[0], known[0]), normalised(decoders[1], known[1]):
            spectrum = model.decode(*kept, noisy)
        yield spectrum


def whole_moments(
    module: nn.Module, inputs: Callable[[], Iterable[tuple[Tensor, slice]]]
) -> Moments:
    """Moments at the instance norms of a module, over all its inputs (1, C, L, F).

    Only the frames in the slice of each input count. The norms must be called once each, in the
    order of their definition.
    """
    known: Moments = {}
    for name, norm in _norms(module):
        sums: Tensor | float = 0.0
        for x, core in inputs():
            with normalised(module, known):
                sums = sums + _sums_at(norm, module, x, core)
        mean, square = sums[1:] / sums[0]
        known[name] = mean, (square - mean.square()).clamp_min(0)
    return known


def _norms(module: nn.Module) -> list[tuple[str, nn.InstanceNorm2d]]:
    return [(n, m) for n, m in module.named_modules() if isinstance(m, nn.InstanceNorm2d)]


class _EnoughError(Exception):
    """Ends the forward pass of a module early."""


def _sums_at(norm: nn.Module, module: nn.Module, x: Tensor, core: slice) -> Tensor:
    """Count, sum and sum of squares, (3, C) float64, of the input of a norm inside a module."""
    found: list[Tensor] = []

    def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0][0, :, core]  # (C, l, F)
        x = (x.cpu() if x.device.type == "mps" else x).double()  # MPS has no float64
        count = torch.full_like(x[:, 0, 0], x[0].numel())
        found.append(torch.stack([count, x.sum((1, 2)), x.square().sum((1, 2))]))
        raise _EnoughError

    handle = norm.register_forward_pre_hook(look)
    try:
        with contextlib.suppress(_EnoughError):
            module(x)
    finally:
        handle.remove()
    return found[0]


@contextlib.contextmanager
def normalised(module: nn.Module, known: Moments) -> Iterator[None]:
    """A context in which the instance norms in `known` use these moments."""

    def by_known(name: str, norm: nn.InstanceNorm2d, x: Tensor) -> Tensor:
        mean, variance = (moment.to(x) for moment in known[name])
        return F.batch_norm(x, mean, variance, norm.weight, norm.bias, eps=norm.eps)

    handles = [
        norm.register_forward_hook(lambda norm, x, _, name=name: by_known(name, norm, x[0]))
        for name, norm in _norms(module)
        if name in known
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
