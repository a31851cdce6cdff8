"""Tensors in a temporary file are read back as they were, any number of times."""

from pathlib import Path

import pytest
import torch

from speechlab.audio import pcs
from speechlab.errors import UserError
from speechlab.storage.kept import Kept, KeptSignal


def test_entries_are_read_back_any_number_of_times():
    entries = [(torch.randn(2, 3), torch.randn(2, 3))]
    same = torch.randn(4)
    with Kept() as kept:
        for entry in [*entries, (same, same)]:
            kept.append(*entry)
        size = kept.file.tell()
        for _ in range(2):
            found = [*kept]
            assert all(map(torch.equal, sum(found, ()), sum([*entries, (same, same)], ())))
    assert size == 4 * (6 + 6 + 4)  # a repeated one is stored once


def fill_the_disk(monkeypatch):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("only Linux has /dev/full")
    name = "speechlab.storage.kept.tempfile.TemporaryFile"
    monkeypatch.setattr(name, lambda **how: full.open("r+b", **how))


def test_a_full_disk_is_named(monkeypatch):
    fill_the_disk(monkeypatch)
    said = "the disk is full; a long recording needs space for temporary files, .* TMPDIR names$"
    with KeptSignal() as kept, pytest.raises(UserError, match=said):
        kept.append(torch.ones(1, 100))
    with pytest.raises(UserError, match=said):
        list(pcs.pcs_blocks([torch.ones(1, 100)], 16000))
