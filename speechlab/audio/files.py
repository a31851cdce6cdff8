"""Read and write sound files: one reader and one writer for the whole package.

Files of any length are processed in blocks (C, n), in constant memory, with the same samples. Full
scale is 1. Integer files are written with the steps with which they are read (2**15 in 16 bits), so
that levels stay. Samples clipped at full scale are counted.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from speechlab.audio import containers, ogg
from speechlab.config import RATES
from speechlab.errors import UserError, reason
from speechlab.storage.atomic import replacing

# Endings of the sound files that a folder is searched for.
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf")
SUFFIXES += (".rf64", ".sph", ".w64", ".bwf", ".mp2", ".nist", ".oga", ".snd", ".wave")
# Endings of sound and video files that are not readable: a folder names those that it leaves out.
UNREADABLE = (".m4a", ".webm", ".mp4", ".aac", ".wma", ".mka", ".mkv", ".mov", ".avi", ".3gp")
UNREADABLE += (".ac3", ".alac", ".amr", ".ape", ".dff", ".dsf", ".m4b", ".ra", ".shn", ".spx")
UNREADABLE += (".tta", ".wv", ".wv1", ".wv2")
BLOCK_S = 1.0  # seconds in a block of a file
BLOCK_SAMPLES = 2**22  # most samples in a block, of all channels together: 16 MiB
LOADED_SAMPLES = 2**27  # most samples of a file that `load` reads: 512 MiB

# Formats by the ending of a name: libsndfile's name of the container, and the subtypes that can be
# written, the default first.
FORMATS = {
    ".wav": ("WAV", ("PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "ALAW")),
    ".flac": ("FLAC", ("PCM_16", "PCM_24", "PCM_S8")),
    ".ogg": ("OGG", ("VORBIS", "OPUS")),
    ".mp3": ("MP3", ("MPEG_LAYER_III",)),
}
BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "ULAW": 16, "ALAW": 16}
RIFF_BYTES = 2**32 - 2**16  # the largest .wav file; larger ones are written as RF64


def load(path: str | Path, sample_rate: int | None = None) -> tuple[Tensor, int]:
    """Read a sound file.

    Returns the waveform, (C, T) float32 with full scale at 1 (a float file may go beyond), and its
    rate in Hz. With `sample_rate` a file of another rate is resampled (soxr, HQ) to
    ceil(T * sample_rate / rate) samples.
    Raises UserError for a file that is missing, unreadable, cut short, empty, or holds NaN or
    infinity; and, from its header alone, for more than LOADED_SAMPLES.
    """
    recording = Recording(path, sample_rate)
    return recording.whole(), recording.sample_rate


def save(path: str | Path, waveform: Tensor, sample_rate: int, subtype: str | None = None) -> int:
    """Write (C, T) atomically; returns the number of samples that were clipped at full scale.

    The ending selects the format: .wav, .flac, .ogg, .mp3. subtype: as "PCM_24"; see FORMATS.
    """
    with Writer(path, sample_rate, len(waveform), subtype, waveform.shape[-1]) as writer:
        for block in waveform.split(2**16, -1):
            writer.write(block)
    return writer.clipped


class Recording:
    """A sound file as blocks (C, n) float32; each iteration reads the file again.

    sample_rate (Hz) is that of the blocks; file_rate, n_frames and subtype are the file's.
    length: samples of all blocks together, ceil(n_frames * sample_rate / file_rate).
    """

    def __init__(
        self, path: str | Path, sample_rate: int | None = None, block_s: float = BLOCK_S
    ) -> None:
        """Reads the header; UserError as `load`, except for faults of the samples."""
        self.path = Path(path)
        with _opened(self.path) as file:
            self.file_rate, self.n_channels = file.samplerate, file.channels
            self.n_frames, self.subtype = file.frames, file.subtype
        self.sample_rate = sample_rate or self.file_rate
        self.length = resampled_length(self.n_frames, self.file_rate, self.sample_rate)
        most = BLOCK_SAMPLES // self.n_channels
        self.block_length = max(1, min(most, round(block_s * self.file_rate)))

    def whole(self) -> Tensor:
        """All samples, (C, length). UserError, before decoding, for more than LOADED_SAMPLES."""
        if self.n_channels * max(self.length, self.n_frames) > LOADED_SAMPLES:
            minutes = self.n_frames / self.file_rate / 60
            raise UserError(
                f"{self.path}: {minutes:.0f} minutes of {self.n_channels} channel(s) do not fit "
                "into memory at once; cut the file into shorter ones"
            )
        waveform, n_read = torch.empty(self.n_channels, self.length), 0
        for block in self:
            waveform[:, n_read : n_read + block.shape[-1]] = block
            n_read += block.shape[-1]
        return waveform

    def __iter__(self) -> Iterator[Tensor]:
        resampler = Resampler(self.file_rate, self.sample_rate, self.n_channels)
        for block in self._read():
            yield resampler.feed(torch.from_numpy(np.ascontiguousarray(block.T)))  # (C, n)
        yield resampler.flush()

    def _read(self) -> Iterator[np.ndarray]:
        """Blocks (n, C) at the file's own rate."""
        n_read = 0
        with _opened(self.path) as file:
            while True:
                try:
                    block = file.read(self.block_length, dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    raise self._fault(f"damaged after {n_read} of {file.frames} samples") from error
                if not len(block) or n_read > file.frames:
                    break
                if not np.isfinite(block).all():
                    raise UserError(
                        f"{self.path}: holds NaN or infinite samples; write the file again"
                    )
                n_read += len(block)
                yield block
            if n_read != file.frames:
                raise self._fault(f"ends after {n_read} of {file.frames} samples")

    def _fault(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}; copy the file again, or convert it as it is")


class Resampler:
    """Resamples a signal (C, n), rates in Hz, block by block: soxr's HQ, without delay.

    Blocks of any lengths give the samples of the whole; `flush` gives the last ones.
    """

    def __init__(self, rate_in: int, rate_out: int, n_channels: int) -> None:
        self.rate_in, self.rate_out, self.n_channels = rate_in, rate_out, n_channels
        self._n_in = self._n_out = 0
        self._soxr = None
        if rate_in != rate_out:
            self._soxr = soxr.ResampleStream(rate_in, rate_out, n_channels, "float32", "HQ")

    def feed(self, block: Tensor) -> Tensor:
        """The next samples -> the final samples of the output so far, (C, m >= 0)."""
        self._n_in += block.shape[-1]
        return self._counted(block if self._soxr is None else self._resampled(block, last=False))

    def flush(self, length: int | None = None) -> Tensor:
        """The rest, so that all outputs are `length` samples; default `resampled_length`."""
        if length is None:
            length = resampled_length(self._n_in, self.rate_in, self.rate_out)
        missing = length - self._n_out
        rest = torch.zeros(self.n_channels, 0)
        if self._soxr is not None:
            # soxr rounds the length; zeros after the end make the output long enough
            n_zeros = max(0, -(-length * self.rate_in // self.rate_out) - self._n_in) + 1
            n_zeros += self.rate_in // self.rate_out
            rest = self._resampled(torch.zeros(self.n_channels, n_zeros), last=True)
        return self._counted(rest[:, :missing])

    def _resampled(self, block: Tensor, last: bool) -> Tensor:
        samples = np.ascontiguousarray(block.T.numpy(), dtype=np.float32)  # (n, C)
        return torch.from_numpy(self._soxr.resample_chunk(samples, last=last).T.copy())

    def _counted(self, block: Tensor) -> Tensor:
        self._n_out += block.shape[-1]
        return block


def resampled_length(length: int, rate_in: int, rate_out: int) -> int:
    """Samples at `rate_out` that cover `length` samples at `rate_in`; and back, never fewer."""
    return -(-length * rate_out // rate_in)


def rechunk(blocks: Iterator[Tensor], length: int) -> Iterator[Tensor]:
    """The same samples (..., n) in blocks of `length`; the last one may be shorter."""
    waiting: list[Tensor] = []
    n_waiting = 0
    for block in blocks:
        waiting.append(block)
        n_waiting += block.shape[-1]
        if n_waiting < length:
            continue
        *whole, rest = torch.cat(waiting, -1).split(length, -1)
        if rest.shape[-1] == length:
            whole, rest = [*whole, rest], rest[..., :0]
        yield from whole
        waiting, n_waiting = [rest], rest.shape[-1]
    if n_waiting:
        yield torch.cat(waiting, -1)


class Writer:
    """A sound file written block by block: `with Writer(...) as writer: writer.write(block)`.

    Writes are atomic: the samples go to a temporary file, which is renamed at the end, and removed
    after an error. An older file stays until then.
    clipped: samples beyond full scale so far, which an integer subtype clips.
    """

    def __init__(
        self,
        path: str | Path,
        sample_rate: int,
        n_channels: int,
        subtype: str | None = None,
        n_frames: int = 0,
    ) -> None:
        """n_frames: frames of the whole file, if known: above 4 GiB a .wav becomes RF64.

        UserError for an ending or a subtype that is not in FORMATS.
        """
        self.path, self.sample_rate, self.n_channels = Path(path), sample_rate, n_channels
        self.format, self.subtype = _format(self.path, subtype)
        self.n_frames = self.clipped = 0
        if self.format == "WAV" and n_frames * self._frame_bytes > RIFF_BYTES:
            self.format = "RF64"

    def __enter__(self) -> Self:
        with self._naming_errors(), contextlib.ExitStack() as stack:
            if self.path.is_dir():
                raise UserError(f"{self.path}: a folder has this name; choose another output")
            part = stack.enter_context(replacing(self.path))
            self._file = stack.enter_context(part.open("w+b"))
            stack.callback(_remove_time, self._file)
            with self._naming_errors():  # while the file is open
                self._sound = soundfile.SoundFile(
                    self._file.fileno(),
                    "w",
                    self.sample_rate,
                    self.n_channels,
                    self.subtype,
                    format=self.format,
                    closefd=False,
                )
            stack.callback(self._sound.close)
            self._stack = stack.pop_all()
        return self

    def write(self, block: Tensor) -> None:
        """The next samples, (C, n). UserError for non-finite samples and for a full disk."""
        if not block.isfinite().all():
            raise UserError(f"{self.path}: not written, its samples would be NaN or infinite")
        self.n_frames += block.shape[-1]
        if self.format == "WAV" and self.n_frames * self._frame_bytes > RIFF_BYTES:
            raise UserError(f"{self.path}: a .wav file holds at most 4 GiB; choose .flac")
        with self._naming_errors():
            self._sound.write(self._encoded(block.T.numpy()))  # (n, C)

    def __exit__(self, *error: Any) -> None:
        with self._naming_errors():
            self._stack.__exit__(*error)

    def _why(self, error: Exception) -> str:
        """The reason of a failed write; of a full disk libsndfile says "System error"."""
        if isinstance(error, soundfile.LibsndfileError) and not self._file.closed:
            try:
                os.write(self._file.fileno(), bytes(1 << 16))  # fails for the same reason
            except OSError as cause:
                return reason(cause)
        return _reason(error)

    @property
    def _frame_bytes(self) -> int:
        wide = {"FLOAT": 32, "DOUBLE": 64, "ULAW": 8, "ALAW": 8}
        return self.n_channels * wide.get(self.subtype, BITS.get(self.subtype, 0)) // 8

    def _encoded(self, samples: np.ndarray) -> np.ndarray:
        """Integers for an integer subtype: libsndfile would scale floats by 2**15 - 1."""
        if self.subtype not in BITS:
            return samples.astype(np.float64 if self.subtype == "DOUBLE" else np.float32)
        bits = BITS[self.subtype]
        word = 16 if bits <= 16 else 32
        full_scale = 2.0 ** (bits - 1)
        self.clipped += int(np.count_nonzero(np.abs(samples) > 1))
        steps = np.rint(samples.astype(np.float64) * full_scale)
        steps = np.clip(steps, -full_scale, full_scale - 1) * 2.0 ** (word - bits)
        return steps.astype(f"int{word}")

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Errors of the system as a UserError that names the file."""
        try:
            yield
        except (soundfile.LibsndfileError, OSError) as error:
            raise UserError(
                f"{self.path}: cannot be written ({self._why(error)}); "
                "check the folder, its permissions and the free space"
            ) from error


def format_of(path: str | Path) -> tuple[str, tuple[str, ...]]:
    """Container and subtypes of a name; UserError for an ending that cannot be written."""
    if (suffix := Path(path).suffix.lower()) not in FORMATS:
        known = ", ".join(FORMATS)
        raise UserError(f"{path}: cannot be written; choose a name that ends in {known}")
    return FORMATS[suffix]


def kept_subtype(path: str | Path, subtype: str) -> str | None:
    """The subtype of an input for an output of this name; None where its format has none such."""
    return subtype if subtype in format_of(path)[1] else None


def _format(path: Path, subtype: str | None) -> tuple[str, str]:
    """Container and subtype to write."""
    container, subtypes = format_of(path)
    if subtype is not None and subtype not in subtypes:
        raise UserError(f"{path}: no {container} as {subtype}; choose one of {', '.join(subtypes)}")
    return container, subtype or subtypes[0]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile | ogg.Chain]:
    """A file for reading, with a valid header."""
    with contextlib.ExitStack() as stack:
        try:
            if path.is_dir():
                raise UserError(f"{path}: a folder, not a sound file; name the files in it")
            if not path.is_file():
                raise UserError(f"{path}: no such file; check the name and the folder")
            file = stack.enter_context(path.open("rb", buffering=0))
            if not os.fstat(file.fileno()).st_size:
                raise UserError(f"{path}: empty, 0 bytes; replace the file or leave it out")
            if fault := containers.fault(file):
                raise UserError(f"{path}: {fault}")
            sound = stack.enter_context(_sound(file))
            if containers.is_noted_short(sound):
                raise UserError(f"{path}: {containers.CUT}")
        except (soundfile.LibsndfileError, OSError, ValueError) as error:
            raise UserError(
                f"{path}: not readable as sound ({_reason(error)}); convert it to WAV or FLAC"
            ) from error
        if not sound.frames:
            raise UserError(
                f"{path}: no samples, or an unfinished header of a recorder that was killed; "
                "replace the file, or correct its header"
            )
        if sound.frames > 2**62:  # libsndfile's value for it; the last block could not be read
            raise UserError(f"{path}: a {sound.format} without its length; convert it to WAV")
        if sound.format not in containers.READABLE:
            raise UserError(
                f"{path}: the length of a {sound.format} file cannot be verified; convert it to WAV"
            )
        if not RATES.least <= sound.samplerate <= RATES.most:
            raise UserError(
                f"{path}: a rate of {sound.samplerate} Hz; rates from 1 to 768 kHz are read; "
                "correct its header"
            )
        yield sound
        if sound.format == "MP3" and 0 < sound.frames == sound.tell():
            n_read = file.seek(0, os.SEEK_CUR)  # with a variable bit rate, frames is a guess
            if n_read < 0.9 * os.fstat(file.fileno()).st_size:
                raise UserError(f"{path}: an MP3 without its length; convert it to WAV or FLAC")


def _sound(file: BinaryIO) -> soundfile.SoundFile | ogg.Chain:
    """ValueError for a chain that is not readable as a whole."""
    if links := ogg.links(file):
        return ogg.Chain(file, links)
    file.seek(0)
    return soundfile.SoundFile(file.fileno(), closefd=False)


def _remove_time(file: BinaryIO) -> None:
    """Set the time in the PEAK chunk of a float file to zero: the same samples, the same bytes.

    The chunk is b"PEAK", size, version, time, ..., 4 bytes each, before the samples.
    """
    file.seek(0)
    head = file.read(256)
    peak, data = head.find(b"PEAK"), head.find(b"data")
    if head[:4] in (b"RIFF", b"RF64") and 0 < peak < data:
        file.seek(peak + 12)
        file.write(bytes(4))
        file.flush()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return reason(error)
    return str(error).rpartition(": ")[2].rstrip(". ") or "unknown format"
