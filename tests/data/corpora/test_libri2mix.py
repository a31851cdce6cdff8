"""Libri2Mix from LibriSpeech, WHAM! noise and metadata laid out as the published ones."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from speechlab.data import manifest
from speechlab.data.corpora import libri2mix
from speechlab.data.corpora.libri2mix import CORPUS, Libri2MixConfig
from speechlab.errors import UserError
from tests.support import tiny_corpora
from tests.support.tiny_corpora import waveforms

NAME = "libri2mix"
GAINS = tiny_corpora.LIBRI_GAINS


@pytest.fixture
def root(small) -> Path:
    return small(NAME).raw


def prepare(target: Path, root: Path, **changes) -> Path:
    tiny_corpora.prepare(NAME, target, root, **changes)
    return target


def metadata(root: Path, folder: Path, old: str = "", new: str = "") -> Path:
    """The metadata once more, with another text for one in it."""
    folder.mkdir()
    for path in (root / "metadata").iterdir():
        (folder / path.name).write_text(path.read_text().replace(old, new))
    return folder


@pytest.mark.parametrize("sample_rate", [8000, 16000])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_mixtures_are_those_of_the_metadata(root, tmp_path, sample_rate, mode):
    prepare(tmp_path / "p", root, sample_rate=sample_rate, mode=mode)
    for split in ("train", "dev"):
        for item in manifest.read(tmp_path / "p", split):
            signals = []
            for name, gain in zip(item.recordings, GAINS, strict=False):
                path = next((root / "librispeech").rglob(f"{name}.flac"))
                source = soundfile.read(path)[0]
                signals.append(resample_poly(gain * source, sample_rate, 16000))
            length = (min if mode == "min" else max)(map(len, signals))
            s1, s2 = (np.pad(s, (0, max(0, length - len(s))))[:length] for s in signals)
            found = waveforms(tmp_path / "p", item)
            assert found.shape == (3, length) == (3, item.n_frames)
            np.testing.assert_allclose(found, (s1 + s2, s1, s2), atol=2**-16 + 1e-6)
            assert (item.sample_rate, item.snr_db) == (sample_rate, None)


def test_noise_is_added_to_the_mixture_and_to_no_speaker(small, root, tmp_path):
    prepare(tmp_path / "both", root, mixture="mix_both")
    pairs = zip(
        manifest.read(small(NAME).folder, "train"),
        manifest.read(tmp_path / "both", "train"),
        strict=True,
    )
    for clean, both in pairs:
        assert both.path == f"train/mix_both/{both.name}.wav"
        dry, *speakers = waveforms(small(NAME).folder, clean)
        noisy, *same = waveforms(tmp_path / "both", both)
        np.testing.assert_array_equal(speakers, same)
        measured = 10 * np.log10(np.mean(dry**2) / np.mean((noisy - dry) ** 2))
        assert both.snr_db == pytest.approx(measured, abs=0.1)
        assert both.recordings[2].startswith("tr/01oo0109_0.7211")


def test_what_would_be_cut_at_full_scale_is_scaled_down_together(root, tmp_path):
    louder = metadata(root, tmp_path / "metadata", str(GAINS[0]), "5.0")
    prepare(tmp_path / "p", root, metadata=louder)
    for item in manifest.read(tmp_path / "p", "train"):
        found = waveforms(tmp_path / "p", item)
        assert np.abs(found).max() == pytest.approx(0.99, abs=1e-3)
        np.testing.assert_allclose(found[0], found[1] + found[2], atol=2**-14)


def test_speakers_stand_in_one_room_and_the_noise_is_as_it_was(root, tmp_path):
    pytest.importorskip("pyroomacoustics")
    found = {}
    for reference in ("early", "reverberant"):
        room = {"mixture": "mix_both_reverb", "reference": reference, "rt60_s": (0.2, 0.25)}
        prepare(tmp_path / reference, root, sample_rate=16000, **room)
        item = manifest.read(tmp_path / reference, "dev")[0]
        assert item.path == f"dev/mix_both_reverb/{item.name}.wav"
        found[reference] = waveforms(tmp_path / reference, item)
    again = prepare(tmp_path / "again", root, sample_rate=16000, **room)
    assert tiny_corpora.content(again) == tiny_corpora.content(tmp_path / reference)
    prepare(tmp_path / "dry", root, sample_rate=16000, mixture="mix_both")
    dry = waveforms(tmp_path / "dry", manifest.read(tmp_path / "dry", "dev")[0])
    np.testing.assert_array_equal(found["early"][0], found["reverberant"][0])
    noise = dry[0] - dry[1] - dry[2]
    again = found["reverberant"][0] - found["reverberant"][1] - found["reverberant"][2]
    np.testing.assert_allclose(noise, again, atol=2**-13)
    for k in (1, 2):
        # the direct sound stands where the dry one does, at its level
        product = np.correlate(found["early"][k], dry[k], "full")
        assert np.abs(product).argmax() == len(dry[k]) - 1
        assert product.max() / np.sum(dry[k] ** 2) == pytest.approx(1, abs=0.25)
        assert not np.allclose(found["early"][k], found["reverberant"][k], atol=1e-3)


def test_the_first_channel_of_the_noise_is_repeated_with_a_crossfade():
    noise = np.ones(12000, dtype=np.float32)
    longer = libri2mix.extended(noise, 40000)
    assert longer.shape == (40000,)
    np.testing.assert_allclose(longer, 1.0, atol=1e-6)  # the two windows add to one
    ramp = np.arange(30000, dtype=np.float32)
    np.testing.assert_array_equal(libri2mix.extended(ramp, 20000), ramp[:20000])
    twice = libri2mix.extended(ramp, 45000)
    seam = 30000 - 8001  # LibriMix overlaps half a second and one sample
    np.testing.assert_array_equal(twice[:seam], ramp[:seam])
    np.testing.assert_array_equal(twice[30000:], ramp[8001 : 8001 + 15000])


def test_a_line_tells_speakers_and_recordings(small):
    folder = small(NAME).folder
    item = manifest.read(folder, "dev")[0]
    assert item.name == "3536-8226-0026_1673-143397-0009"
    assert item.speakers == ("3536", "1673")
    assert item.recordings == ("3536-8226-0026", "1673-143397-0009")
    assert item.sources == (f"dev/s1/{item.name}.wav", f"dev/s2/{item.name}.wav")
    assert set(manifest.about(folder)["metadata"]) == {
        f"libri2mix_{subset}.csv" for subset in tiny_corpora.LIBRI
    }


def test_missing_folders_of_noise_and_of_other_subsets_are_named(root, tmp_path):
    with pytest.raises(UserError, match=r"no .*librispeech \(dev-clean\).*wham_noise \(tt\)"):
        CORPUS.prepare(tmp_path / "p", Libri2MixConfig(mixture="mix_both"), str)
    with pytest.raises(UserError, match=r"no .*train-clean-360\.csv, librispeech \(.*clean-360\)"):
        prepare(tmp_path / "p", root, train=("train-clean-360",))


def test_missing_recordings_are_named_before_any_work(root, tmp_path):
    folder = metadata(root, tmp_path / "metadata", "-0.72110.wav", "-0.72110sp08.wav")
    with pytest.raises(UserError, match=r"3 recording\(s\) are missing.*sp08.*augment_train_noise"):
        prepare(tmp_path / "p", root, mixture="mix_both", metadata=folder)
    assert not (tmp_path / "p" / "train").exists()
    prepare(tmp_path / "q", root, metadata=folder)


def test_damaged_metadata_are_told_with_their_line(root, tmp_path):
    path = tmp_path / "libri2mix_dev-clean.csv"
    lines = (root / "metadata" / path.name).read_text().splitlines()
    path.write_text(f"{lines[0]}\n{lines[1].replace(str(GAINS[1]), 'loud')}\n")
    with pytest.raises(UserError, match=r"dev-clean\.csv, line 2: .*loud"):
        libri2mix._rows(path)
    path.write_text(lines[0].replace("source_2_gain", "gain") + "\n")
    with pytest.raises(UserError, match="has no columns"):
        libri2mix._rows(path)
