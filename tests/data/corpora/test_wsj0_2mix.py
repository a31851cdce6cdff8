"""WSJ0-2mix: taken over from the pywsj0-mix layout, or built from WSJ0 and the published lists."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from speechlab.audio import files
from speechlab.data import manifest
from speechlab.data.corpora import wsj0_2mix
from speechlab.data.corpora.wsj0_2mix import CORPUS, Wsj0TwoMixConfig
from speechlab.errors import UserError
from tests.support import tiny_corpora

SPEAKERS = ("01t", "011", "40n", "012", "02a", "401")  # of tr and cv
TEST_SPEAKERS = ("050", "22h")
FOLDERS = {**dict.fromkeys(SPEAKERS, "si_tr_s"), "050": "si_dt_05", "22h": "si_et_05"}
CONFIG = Wsj0TwoMixConfig(dev_percent=40, jobs=1)


def utterances(speakers: tuple[str, ...]) -> list[str]:
    return [f"{speaker}{rest}" for speaker in speakers for rest in ("o030v", "a010x")]


def lines(part: str) -> list[tuple[str, str, str, str]]:
    """Every pair of two speakers once, each part with other utterances."""
    speakers = TEST_SPEAKERS if part == "tt" else SPEAKERS
    rest = "a010x" if part == "cv" else "o030v"
    return [
        (f"{a}{rest}", "1.9857", f"{b}{rest}", "-1.9857")
        for i, a in enumerate(speakers)
        for b in speakers[i + 1 :]
    ]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """WSJ0 as WAV files of different lengths, and the lists."""
    root = tmp_path_factory.mktemp("wsj0")
    levels = []
    for i, name in enumerate(utterances(SPEAKERS + TEST_SPEAKERS)):
        path = root / "wsj0" / FOLDERS[name[:3]] / name[:3] / f"{name}.wav"
        tiny_corpora.noise(path, seconds=0.1 + 0.01 * i, level=0.01 * (i + 1))
        levels.append(f"{name} {(0.01 * (i + 1)) ** 2}\n")
    lists = root / "metadata"
    (lists / "activlev").mkdir(parents=True)
    (lists / "activlev" / "activlev_tr.txt").write_text("".join(levels[:8]))
    (lists / "activlev" / "activlev_si_et_05.txt").write_text("".join(levels[8:]))
    for part in wsj0_2mix.PARTS:
        text = "".join(
            f"wsj0/{FOLDERS[a[:3]]}/{a[:3]}/{a}.wav {x} wsj0/{FOLDERS[b[:3]]}/{b[:3]}/{b}.wav {y}\n"
            for a, x, b, y in lines(part)
        )
        (lists / f"mix_2_spk_{part}.txt").write_text(text)
    return root


@pytest.fixture(scope="module")
def built(recordings, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("wsj0") / "built"
    CORPUS.prepare(target, from_recordings(recordings), tiny_corpora.silent)
    return target


def from_recordings(root: Path, **changes) -> Wsj0TwoMixConfig:
    return replace(CONFIG, wsj0=str(root), lists=str(root / "metadata"), **changes)


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


def read_all(target: Path, item: manifest.Item) -> np.ndarray:
    return np.stack([files.load(target / path)[0][0] for path in (item.path, *item.sources)])


@pytest.mark.parametrize("mode", ["min", "max"])
def test_mixtures_are_those_of_the_published_rule(recordings, built, tmp_path, mode):
    target = built
    if mode == "max":
        target = tmp_path / "max"
        CORPUS.prepare(target, from_recordings(recordings, mode="max"), tiny_corpora.silent)
    for split in ("train", "dev"):
        for item in manifest.read(target, split):
            name = item.name.partition("_")[2]
            wanted = np.stack(as_published(name, recordings, mode))
            found = read_all(target, item)
            assert found.shape == wanted.shape == (3, item.n_frames)
            np.testing.assert_allclose(found, wanted, atol=2**-16 + 1e-6)
            np.testing.assert_allclose(found[0], found[1] + found[2], atol=2**-14)
            assert np.abs(found).max() <= 0.9 + 2**-15


def test_no_speaker_is_in_two_splits(built):
    splits = {s: manifest.parse(built / f"{s}.csv") for s in manifest.SPLITS}
    speakers = {s: {t for item in items for t in item.speakers} for s, items in splits.items()}
    assert all(splits.values())
    assert not speakers["train"] & speakers["dev"]
    assert speakers["test"] == set(TEST_SPEAKERS)
    assert len(splits["test"]) == len(lines("tt"))
    assert {item.name[:2] for item in splits["train"]} == {"tr"}
    assert {item.name[:2] for item in splits["dev"]} == {"tr", "cv"}
    n = sum(map(len, splits.values()))
    everything = sum(len(lines(part)) for part in wsj0_2mix.PARTS)
    assert manifest.about(built)["n_left_out"] == everything - n > 0


def test_a_line_tells_both_speakers(built):
    item = manifest.read(built, "train")[0]
    assert item.kind == "mixture"
    assert item.sources == (item.path.replace("/mix/", "/s1/"), item.path.replace("/mix/", "/s2/"))
    first, _, second, _ = item.name.partition("_")[2].split("_")
    assert item.recordings == (first, second)
    assert item.speakers == (first[:3], second[:3])
    assert item.sample_rate == 8000


def lay_out(root: Path, depth: str = "") -> Path:
    """The folders that pywsj0-mix writes."""
    for part in wsj0_2mix.PARTS:
        for line in lines(part):
            for kind in wsj0_2mix.FOLDERS:
                path = root / depth / "wav8k" / "min" / part / kind / f"{'_'.join(line)}.wav"
                tiny_corpora.noise(path, seconds=0.1, sample_rate=8000)
    return root


@pytest.mark.parametrize("depth", ["", "2speakers"])
def test_mixtures_that_are_there_are_taken_over_byte_for_byte(tmp_path, depth):
    raw = lay_out(tmp_path / "raw", depth)
    target = tmp_path / "prepared"
    CORPUS.prepare(target, replace(CONFIG, raw=str(raw)), tiny_corpora.silent)
    items = manifest.read(target, "train") + manifest.read(target, "dev")
    for item in items + manifest.parse(target / "test.csv"):
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
    config = replace(from_recordings(recordings), wsj0=str(tmp_path))  # without the outer wsj0/
    CORPUS.prepare(tmp_path / "prepared", config, tiny_corpora.silent)
    assert tiny_corpora.content(tmp_path / "prepared") == tiny_corpora.content(built)
    for disc in tmp_path.glob("si_*/*/*.wv1"):
        disc.write_bytes(b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\n")
    with pytest.raises(UserError, match=r"\.wv1.*sph2pipe"):
        CORPUS.prepare(tmp_path / "again", config, tiny_corpora.silent)


def test_one_message_says_what_is_missing(tmp_path, recordings):
    with pytest.raises(UserError, match=r"mix_2_spk_tr\.txt.*activlev.*LDC93S6A") as caught:
        CORPUS.prepare(tmp_path / "prepared", CONFIG, tiny_corpora.silent)
    assert "\n" not in str(caught.value)
    raw = lay_out(tmp_path / "raw")
    for path in (raw / "wav8k" / "min" / "cv" / "s2").iterdir():
        path.unlink()
    (raw / "wav8k" / "min" / "cv" / "s2").rmdir()
    with pytest.raises(UserError, match=r"wav8k/min lacks cv/s2; "):
        CORPUS.prepare(tmp_path / "prepared", replace(CONFIG, raw=str(raw)), tiny_corpora.silent)
    with pytest.raises(UserError, match=r"wav8k/max lacks tr/mix, .*tt/s2; "):
        CORPUS.prepare(
            tmp_path / "max", replace(CONFIG, raw=str(raw), mode="max"), tiny_corpora.silent
        )


def test_a_recording_or_a_level_that_is_missing_is_named(recordings, tmp_path):
    config = from_recordings(recordings)
    with pytest.raises(UserError, match=r"01to030v\.wav, and no \.wv1"):
        CORPUS.prepare(tmp_path / "a", replace(config, wsj0=str(tmp_path)), tiny_corpora.silent)
    lists = tmp_path / "lists"
    (lists / "activlev").mkdir(parents=True)
    (lists / "activlev" / "a.txt").write_text("01to030v 0.5\n")
    for part in wsj0_2mix.PARTS:
        text = (recordings / "metadata" / f"mix_2_spk_{part}.txt").read_text()
        (lists / f"mix_2_spk_{part}.txt").write_text(text)
    with pytest.raises(UserError, match=r"mix_2_spk_tr\.txt, line 1: no active level of 011o030v"):
        CORPUS.prepare(tmp_path / "b", replace(config, lists=str(lists)), tiny_corpora.silent)
    (lists / "mix_2_spk_tr.txt").write_text("one two\n")
    with pytest.raises(UserError, match=r"line 1: not 'file gain file gain'"):
        CORPUS.prepare(tmp_path / "b", replace(config, lists=str(lists)), tiny_corpora.silent)


def test_a_mixture_without_its_speaker_and_one_of_another_rate_are_told(tmp_path):
    raw = lay_out(tmp_path / "raw")
    config = replace(CONFIG, raw=str(raw))
    some = sorted((raw / "wav8k/min/tr/s1").iterdir())[0]
    tiny_corpora.noise(raw / "wav8k/min/tt/s2" / f"{'_'.join(lines('tt')[0])}.wav", 0.2, 8000)
    with pytest.raises(UserError, match="differ in length"):
        CORPUS.prepare(tmp_path / "b", config, tiny_corpora.silent)
    some.unlink()
    with pytest.raises(UserError, match=r"without all of mix, s1, s2: .*_1\.9857"):
        CORPUS.prepare(tmp_path / "a", config, tiny_corpora.silent)
