"""Enhance one recording with a published model.

    python examples/enhance.py noisy.wav enhanced.wav [checkpoint]

Checkpoint: a file, or a name of `speechlab weights list`. Rate, channels and length stay; an
existing output is replaced.
"""

import sys
from pathlib import Path

import speechlab
from speechlab.errors import UserError


def main(source: str, target: str, checkpoint: str = "Experiment_CleanU_Mamba2") -> None:
    model = speechlab.load(checkpoint)
    [result] = speechlab.enhance(model, [source], target, overwrite=True, progress=False)
    print(f"{result.output}: {result.seconds:.1f} s at {result.sample_rate} Hz")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage: python {Path(sys.argv[0]).name} NOISY ENHANCED [CHECKPOINT]")
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"enhance.py: {error}")
