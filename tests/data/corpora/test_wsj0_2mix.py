"""WSJ0-2mix: copied from the layout of pywsj0-mix, or built from WSJ0 and the published lists."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from speechlab.data import manifest
from speechlab.data.corpora import wsj0_2mix
from speechlab.errors import UserError
from tests.support import tiny_corpora

NAME = "wsj0_2mix"


@pytest.fixture
def recordings(small) -> Path:
    """WSJ0 and the lists."""
    return small(NAME).raw


@pytest.fixture
def built(small) -> Path:
    return small(NAME).folder


def copy_mixtures(target: Path, raw: Path, **changes) -> None:
    """Prepares mixtures that are there."""
    tiny_corpora.prepare(NAME, target, raw, raw=raw, **changes)


def as_published(name: str, recordings: Path, mode: str) -> tuple[np.ndarray, ...]:
    """mix, s1, s2 by the published rule, written out once more."""
    a, x, b, y = name.split("_")
    signals = []
    for utterance, gain in ((a, x), (b, y)):
        path = next(recordings.rglob(f"{utterance}.wav"))
        level = float(np.float64(wsj0_2mix._levels(recordings / "metadata")[utterance]))
        low = resample_poly(soundfile.read(path, dtype="float32")[0], 8000, 16000)
        signals.append(low / np.sqrt(level) * 10 ** (float(gain) / 20))
    n = (min if mode == "min" else max)(map(len, signals))
    s1, s2 = (np.pad(s, (0, max(0, n - len(s))))[:n] for s in signals)
    peak = max(1, np.abs(s1 + s2).max(), np.abs(s1).max(), np.abs(s2).max()) / 0.9
    return (s1 + s2) / peak, s1 / peak, s2 / peak


@pytest.mark.parametrize("mode", ["min", "max"])
def test_mixtures_are_those_of_the_published_rule(recordings, built, tmp_path, mode):
    target = built
    if mode == "max":
        target = tmp_path / "max"
        tiny_corpora.prepare(NAME, target, recordings, mode="max")
    for split in ("train", "dev"):
        for item in manifest.read(target, split):
            name = item.name.partition("_")[2]
            wanted = np.stack(as_published(name, recordings, mode))
            found = tiny_corpora.waveforms(target, item)
            assert found.shape == wanted.shape == (3, item.n_frames)
            np.testing.assert_allclose(found, wanted, atol=2**-16 + 1e-6)
            np.testing.assert_allclose(found[0], found[1] + found[2], atol=2**-14)
            assert np.abs(found).max() <= 0.9 + 2**-15


def test_mixtures_of_a_held_out_and_another_speaker_are_left_out(built):
    splits = tiny_corpora.items(built)
    assert {s for item in splits["test"] for s in item.speakers} == set(tiny_corpora.WSJ0_TEST)
    assert {item.name[:2] for item in splits["train"]} == {"tr"}
    assert {item.name[:2] for item in splits["dev"]} == {"tr", "cv"}
    n_all = {part: len(tiny_corpora.wsj0_lines(part)) for part in wsj0_2mix.PARTS}
    assert len(splits["test"]) == n_all["tt"]
    n_left_out = sum(n_all.values()) - sum(map(len, splits.values()))
    assert manifest.about(built)["n_left_out"] == n_left_out > 0


def test_a_line_tells_both_speakers(built):
    item = manifest.read(built, "train")[0]
    assert item.kind == "mixture"
    assert item.sources == (item.path.replace("/mix/", "/s1/"), item.path.replace("/mix/", "/s2/"))
    first, _, second, _ = item.name.partition("_")[2].split("_")
    assert item.recordings == (first, second)
    assert item.speakers == (first[:3], second[:3])
    assert item.sample_rate == 8000


@pytest.mark.parametrize("depth", ["", "2speakers"])
def test_finished_mixtures_are_copied_byte_for_byte(tmp_path, depth):
    raw, target = tmp_path / "raw", tmp_path / "prepared"
    tiny_corpora.wsj0_mixtures(raw / depth)
    copy_mixtures(target, raw)
    for item in (item for items in tiny_corpora.items(target).values() for item in items):
        part, _, name = item.name.partition("_")
        for path, kind in zip((item.path, *item.sources), wsj0_2mix.FOLDERS, strict=True):
            source = raw / depth / "wav8k" / "min" / part / kind / f"{name}.wav"
            assert (target / path).read_bytes() == source.read_bytes()


def test_recordings_as_on_the_discs_are_read_where_they_are_not_shortened(
    recordings, built, tmp_path
):
    for path in recordings.glob("wsj0/*/*/*.wav"):
        samples, rate = soundfile.read(path, dtype="int16")
        disc = tmp_path / path.relative_to(recordings / "wsj0").with_suffix(".wv1")
        disc.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(disc, samples, rate, format="NIST", subtype="PCM_16")
    inner = {"wsj0": tmp_path}  # without the outer wsj0/
    tiny_corpora.prepare(NAME, tmp_path / "prepared", recordings, **inner)
    assert tiny_corpora.content(tmp_path / "prepared") == tiny_corpora.content(built)
    for disc in tmp_path.glob("si_*/*/*.wv1"):
        disc.write_bytes(b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\n")
    with pytest.raises(UserError, match=r"\.wv1.*sph2pipe"):
        tiny_corpora.prepare(NAME, tmp_path / "again", recordings, **inner)


def test_missing_folders_of_mixtures_are_named(tmp_path):
    raw = tiny_corpora.wsj0_mixtures(tmp_path / "raw")
    shutil.rmtree(raw / "wav8k" / "min" / "cv" / "s2")
    with pytest.raises(UserError, match=r"wav8k/min lacks cv/s2; "):
        copy_mixtures(tmp_path / "prepared", raw)
    with pytest.raises(UserError, match=r"wav8k/max lacks tr/mix, .*tt/s2; "):
        copy_mixtures(tmp_path / "max", raw, mode="max")


def test_a_recording_or_a_level_that_is_missing_is_named(recordings, tmp_path):
    with pytest.raises(UserError, match=r"01to030v\.wav, and no \.wv1"):
        tiny_corpora.prepare(NAME, tmp_path / "a", recordings, wsj0=tmp_path)
    lists = Path(shutil.copytree(recordings / "metadata", tmp_path / "lists"))
    shutil.rmtree(lists / "activlev")
    (lists / "activlev").mkdir()
    (lists / "activlev" / "a.txt").write_text("01to030v 0.5\n")
    with pytest.raises(UserError, match=r"mix_2_spk_tr\.txt, line 1: no active level of 011o030v"):
        tiny_corpora.prepare(NAME, tmp_path / "b", recordings, lists=lists)
    (lists / "mix_2_spk_tr.txt").write_text("one two\n")
    with pytest.raises(UserError, match=r"line 1: not 'file gain file gain'"):
        tiny_corpora.prepare(NAME, tmp_path / "b", recordings, lists=lists)


def test_a_mixture_without_its_speaker_and_one_of_another_rate_are_told(tmp_path):
    raw = tiny_corpora.wsj0_mixtures(tmp_path / "raw")
    some = sorted((raw / "wav8k/min/tr/s1").iterdir())[0]
    tiny_corpora.noise(
        raw / "wav8k/min/tt/s2" / f"{'_'.join(tiny_corpora.wsj0_lines('tt')[0])}.wav", 0.2, 8000
    )
    with pytest.raises(UserError, match="differ in length"):
        copy_mixtures(tmp_path / "b", raw)
    some.unlink()
    with pytest.raises(UserError, match=r"without all of mix, s1, s2: .*_1\.9857"):
        copy_mixtures(tmp_path / "a", raw)
