"""SEMamba's front end as the computer of the reference tensors evaluates it on digital silence.

The spectrum of zero samples is +0 or -0, with angle 0 or π. The sign depends on the FFT code of the
processor, and the network's output depends on the angle: it moves the waveforms in
`zero_lead/` by 0.25. The reference computer (Intel, AVX-512) has -0 in the bins 101 to 199 of 201.
"""

import math

import torch
from torch import Tensor

from speechlab.audio.spectrum import FrontEnd, Spectrum

NEGATIVE_ZEROS = slice(101, 200)  # frequency bins, n_fft 400


class ReferenceFrontEnd(FrontEnd):
    """A FrontEnd that has the reference's angles in frames of zeros, on every processor."""

    def analyse(self, waveform: Tensor) -> Spectrum:
        mag, phase = super().analyse(waveform)
        if self.offsets != "none":  # the offsets define the angle of silence
            return Spectrum(mag, phase)
        silence = torch.zeros_like(phase)
        silence[..., NEGATIVE_ZEROS, :] = math.pi
        frames = (mag == 0).all(-2, keepdim=True)  # (..., 1, L)
        return Spectrum(mag, torch.where(frames, silence, phase))
