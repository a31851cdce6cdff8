"""Speech from text, by espeak-ng: our own sentences and voices, in disjoint splits.

A speaker is a variant of espeak-ng (a vocal tract: formants, breath, roughness). No two splits
share one, and similar variants are in one split. Robots, whispers and variants of the Klatt
synthesiser are left out. Accent, speed and pitch change between utterances.
"""

import csv
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soxr

from speechlab.errors import UserError

SENTENCES = Path(__file__).with_name("sentences.csv")
PROGRAM = Path(__file__).with_name("espeak.py")
SECONDS_MAX = 60  # for one utterance, which takes 0.1 s
ACCENTS = (
    "en-us",
    "en-us-nyc",
    "en",  # British
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
)
# Variants: women, men.
VOICES = {
    "train": (
        "f1 f2 f3 f4 f5 aunty grandma anika",
        "m1 m2 m3 m4 m5 m6 m7 m8 Mike grandpa max Alex Denis Mario rob victor Diogo quincy boris "
        "sandro",
    ),
    "dev": ("Andrea steph steph3 shelby", "Gene john Lee miguel"),
    "test": ("Annie belinda linda Alicia", "Andy Marco paul gustave"),
}


@dataclass(frozen=True)
class Utterance:
    """Text and voice; they determine the samples."""

    text: str
    voice: str  # accent and variant, as "en-us+f2"
    words_per_minute: int = 165
    pitch: int = 50  # 0-99; 50 is the variant's own
    pitch_range: int = 50  # 0-99; 50 is the variant's own
    seed: int = 0  # of roughness and breath; below 2**31


@cache
def sentences(split: str) -> tuple[str, ...]:
    """Our own sentences of a split; no two splits share one."""
    with SENTENCES.open(encoding="utf-8", newline="") as file:
        return tuple(row["text"] for row in csv.DictReader(file) if row["split"] == split)


def speaker(split: str, index: int) -> str:
    """The variant that speaks recording `index`; women and men take turns."""
    variants = VOICES[split][index % 2].split()
    return variants[index // 2 % len(variants)]


def say(utterance: Utterance, sample_rate: int) -> np.ndarray:
    """The utterance, (T,) float64 at sample_rate (Hz), full scale 1, without silence at the ends.

    UserError if espeak-ng is not installed or refuses the voice or the text.
    """
    rate, samples = _spoken(utterance)
    samples = _without_silence(samples / 2**15, rate)
    # float64: in float32 the result would depend on the processor
    return soxr.resample(samples, rate, sample_rate, "VHQ")


def _spoken(utterance: Utterance) -> tuple[int, np.ndarray]:
    """Sample rate and int16 samples (T,), from a process of its own (see `espeak`)."""
    library, data = _installed()
    variant = utterance.voice.partition("+")[2]
    if variant and not (Path(data) / "voices" / "!v" / variant).is_file():
        raise UserError(f"espeak-ng: it has no variant '{variant}'; choose one of its voices/!v")
    request = {"library": library, "data": data, **asdict(utterance)}
    program = [sys.executable, "-I", "-S", str(PROGRAM)]
    text = json.dumps(request).encode()
    try:
        run = subprocess.run(program, input=text, capture_output=True, timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"espeak-ng: no end after {SECONDS_MAX} s of {utterance}") from error
    samples = np.frombuffer(run.stdout[4:], "<i2")
    if run.returncode or not samples.any():
        reason = run.stderr.decode(errors="replace").strip().splitlines() or ["it is silent"]
        raise UserError(f"espeak-ng: {reason[-1]}; look at the text and voice of {utterance}")
    return int.from_bytes(run.stdout[:4], "little"), samples


def _installed() -> tuple[str, str]:
    """Paths of the library and its data."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "espeak-ng is not installed, and without it nothing speaks; "
            "run `pip install -e '.[synth]'` in the repository"
        ) from error
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def _without_silence(samples: np.ndarray, rate: int, margin_s: float = 0.1) -> np.ndarray:
    """(T,) from `margin_s` before the first to after the last sample within 60 dB of the peak."""
    loud = np.flatnonzero(np.abs(samples) > 1e-3 * np.abs(samples).max())
    margin = round(margin_s * rate)
    return samples[max(0, loud[0] - margin) : loud[-1] + margin]
