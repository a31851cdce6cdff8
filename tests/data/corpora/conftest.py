"""Every corpus in small, prepared once for all tests."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from speechlab.data.corpora.catalogue import CORPORA
from tests.support.tiny_corpora import lay_out, prepare

EXTRA = {"synthetic": ("espeakng_loader", "pyroomacoustics")}
EXTRA["two_speakers_noisy"] = ("pyroomacoustics",)


class Made(NamedTuple):
    name: str
    raw: Path
    folder: Path

    @property
    def other_rate(self) -> int:
        return 24000 - CORPORA[self.name].config().sample_rate  # 8000 or 16000


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Callable[[str], Made]:
    """A corpus by its name, prepared by one process."""

    @cache
    def made(name: str) -> Made:
        root = tmp_path_factory.mktemp(name)
        for module in EXTRA.get(name, ()):
            pytest.importorskip(module)
        lay_out(name, root / "raw")
        prepare(name, root / "prepared", root / "raw")
        return Made(name, root / "raw", root / "prepared")

    return made
