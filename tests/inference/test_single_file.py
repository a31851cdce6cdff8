"""One input file into a named file: its ending chooses the format, and nothing is lost."""

import numpy as np
import pytest
import soundfile
import torch

from speechlab.errors import UserError
from speechlab.inference.enhance import enhance_all
from speechlab.inference.separate import separate_all
from tests.support.commands import Halving

PROCESS = {1: enhance_all, 2: separate_all}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noisy = np.random.default_rng(0).normal(size=(4000, 2)) / 10
    soundfile.write("in.wav", noisy, 16000, "PCM_24")
    soundfile.write("other.wav", noisy, 16000)
    return tmp_path


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "form", "subtype"),
    [
        ("out.wav", "WAV", "PCM_24"),
        ("new/out.FLAC", "FLAC", "PCM_24"),
        ("out.ogg", "OGG", "VORBIS"),
        ("out.mp3", "MP3", "MPEG_LAYER_III"),
    ],
)
def test_the_ending_chooses_the_format(place, name, form, subtype):
    before = names(place)
    [result] = enhance_all(Halving(1), ["in.wav"], name)
    assert result.status == "ok" and names(place) - before == {name}
    info = soundfile.info(name)
    assert (info.format, info.subtype, info.channels) == (form, subtype, 2)
    if form in ("WAV", "FLAC"):
        expected = 0.5 * soundfile.read("in.wav")[0]
        np.testing.assert_allclose(soundfile.read(name)[0], expected, atol=1e-6)


def test_speakers_are_numbered(place):
    before = names(place)
    separate_all(Halving(2), ["in.wav"], "out.flac")
    assert names(place) - before == {"out_s1.flac", "out_s2.flac"}


@pytest.mark.parametrize("n_sources", PROCESS)
def test_a_file_that_exists_needs_overwrite(place, n_sources):
    existing = place / ("out.wav", "out_s2.wav")[n_sources - 1]
    existing.write_bytes(b"of another program")
    with pytest.raises(UserError, match=f"{existing.name}: exists; .*--overwrite"):
        PROCESS[n_sources](Halving(n_sources), ["in.wav"], "out.wav")
    assert existing.read_bytes() == b"of another program"
    PROCESS[n_sources](Halving(n_sources), ["in.wav"], "out.wav", overwrite=True)
    assert soundfile.info(existing).frames == 4000


@pytest.mark.parametrize(
    ("inputs", "output", "said"),
    [
        (["in.wav"], "in.wav", "in.wav: is the input, and would be overwritten"),
        (["in.wav"], "./folder/../in.wav", "is the input"),
        (["in.wav"], "link.wav", "is the input"),
        (["in.wav", "other.wav"], "out.wav", "names one file, for one input file"),
        (["folder"], "out.wav", "names one file, for one input file"),
        (["*.wav"], "out.wav", "names one file, for one input file"),
        (["in.wav"], "out.m4a", "out.m4a: cannot be written; choose a name that ends in .wav"),
        (["in.wav"], "out.aiff", "out.aiff: cannot be written; choose"),
        (["in.wav"], "other.wav/out.wav", "is no folder"),
        (["no.wav"], "out.wav", "no.wav: no such file"),
    ],
)
def test_what_would_lose_a_file_is_refused(place, inputs, output, said):
    (place / "folder").mkdir()
    (place / "link.wav").symlink_to("in.wav")
    before = {name: (place / name).read_bytes() for name in names(place)}
    with pytest.raises(UserError, match=said):
        enhance_all(Halving(1), inputs, output, overwrite=True)
    assert {name: (place / name).read_bytes() for name in names(place)} == before


def test_a_failing_model_leaves_no_file(place):
    model = Halving(1)
    model.forward = lambda noisy: torch.full_like(noisy, float("nan"))
    with pytest.raises(UserError, match="NaN"):
        enhance_all(model, ["in.wav"], "out.wav")
    assert "out.wav" not in names(place)


def test_folders_stay_folders(place):
    (place / "old.wav").mkdir()
    for output in ("old.wav", "new.wav/", "run-1.5"):
        enhance_all(Halving(1), ["in.wav"], output)
        assert names(place / output) == {"in.wav", "enhance.csv"}


def test_a_subtype_is_one_of_the_format(place):
    with pytest.raises(UserError, match="no subtype 'FLOAT'; there are: PCM_16, PCM_24, PCM_S8"):
        enhance_all(Halving(1), ["in.wav"], "out.flac", subtype="FLOAT")
    enhance_all(Halving(1), ["in.wav"], "out.flac", subtype="PCM_16")
    assert soundfile.info("out.flac").subtype == "PCM_16"
