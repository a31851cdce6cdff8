"""The median pitch of a speaker, to describe data: pYIN (Mauch and Dixon 2014) of librosa."""

import numpy as np

RANGE_HZ = (60.0, 400.0)
FRAME_S = 0.05  # three periods of the lowest pitch
HOP_S = 0.02


def median_pitch(signal: np.ndarray, sample_rate: int) -> float:
    """Hz, of a signal (T,) of one speaker; NaN where no frame is voiced."""
    import librosa  # takes seconds to import, and only this function needs it

    frame_length = round(FRAME_S * sample_rate)
    if len(signal) < frame_length:
        return float("nan")
    pitch, voiced, _ = librosa.pyin(
        signal,
        fmin=RANGE_HZ[0],
        fmax=RANGE_HZ[1],
        sr=sample_rate,
        frame_length=frame_length,
        hop_length=round(HOP_S * sample_rate),
        center=False,
    )
    return float(np.median(pitch[voiced])) if voiced.any() else float("nan")


def semitones(one: float, other: float) -> float:
    """Between two pitches in Hz, 0 or more; an octave is 12."""
    return abs(12 * float(np.log2(one / other)))
