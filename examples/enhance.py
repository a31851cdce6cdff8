"""Enhance one recording with a published model.

    python examples/enhance.py noisy.wav enhanced.wav [checkpoint]

Checkpoint: a file, or a downloaded name of `speechlab weights list`.
"""

import sys
from pathlib import Path

import soundfile
import torch

import speechlab
from speechlab.audio import files
from speechlab.errors import UserError


def main(source: str, target: str, checkpoint: str = "Experiment_CleanU_Mamba") -> None:
    model = speechlab.load(checkpoint)
    noisy, sample_rate = files.load(source, model.sample_rate)  # (C, T)
    with torch.inference_mode():
        estimate = model(noisy[:, None])[:, 0]  # channels as a batch: (C, 1, T) -> (C, T)
    soundfile.write(target, estimate.T.numpy(), sample_rate)
    print(f"{target}: {noisy.shape[1] / sample_rate:.1f} s at {sample_rate} Hz")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage: python {Path(sys.argv[0]).name} NOISY ENHANCED [CHECKPOINT]")
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"enhance.py: {error}")
