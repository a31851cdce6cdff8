"""Files of the listening page are decoded in a process with limits of time and memory."""

import sys
import time

import numpy as np
import pytest

from gradio_app import decoding
from speechlab.errors import UserError
from speechlab.parallel import Workers


def hangs(path):
    time.sleep(600)


def grows(path):
    decoding._limit_memory()
    try:
        return np.ones(2**32, np.uint8), 1
    except MemoryError:
        return "needs more"


@pytest.mark.parametrize(
    ("function", "told"), [(hangs, "not decoded within"), (grows, "needs more")]
)
def test_decoding_is_limited(monkeypatch, function, told):
    if function is grows and sys.platform != "linux":
        pytest.skip("only Linux limits the memory of a process")
    monkeypatch.setattr(decoding, "PROCESS", Workers(function, 1, 2.0))
    with pytest.raises(UserError, match=told):
        decoding.load("x.wav")
    decoding.PROCESS.close()
