"""The command `speechlab`, which stops for ever in the middle of writing 1.wav.

A test kills it there: however late the test looks, the file is not complete.
Run as `python -m tests.support.stalling_writer …`.
"""

import sys
import time

from torch import Tensor

from speechlab.audio import files
from speechlab.cli import main

N_FRAMES = 30_000  # written before it stops
WRITE = files.Writer.write


def stalling(writer: files.Writer, block: Tensor) -> None:
    WRITE(writer, block)
    while writer.path.name == "1.wav" and writer.n_frames >= N_FRAMES:
        time.sleep(60)


if __name__ == "__main__":
    files.Writer.write = stalling
    sys.exit(main.main(sys.argv[1:]))
