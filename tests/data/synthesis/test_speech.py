"""Speech from text: the same samples for the same utterance, whatever was spoken before."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from speechlab.data.synthesis import speech
from speechlab.errors import UserError

loader = pytest.importorskip("espeakng_loader")

RATE = 16000
HELLO = speech.Utterance("Fresh bread costs thirty cents.", "en-us+f2", seed=7)
SPLITS = ("train", "dev", "test")


def test_an_utterance_is_the_same_whatever_was_spoken_before():
    first = speech.say(HELLO, RATE)
    speech.say(speech.Utterance("Something else.", "en+m3"), RATE)
    assert np.array_equal(first, speech.say(HELLO, RATE))


def test_the_seed_matters():
    """It decides roughness and breath, which this voice has."""
    assert not np.array_equal(*(speech._spoken(replace(HELLO, seed=seed))[1] for seed in (1, 2)))


def test_frozen_samples():
    if (sys.platform, metadata.version("espeakng-loader")) != ("linux", "0.2.4"):
        pytest.skip("frozen on Linux with espeakng-loader 0.2.4")
    steps = np.rint(speech.say(HELLO, RATE) * 2**15).astype("<i2")
    assert hashlib.sha256(steps.tobytes()).hexdigest()[:16] == "d8d368cff799fb37"


@pytest.mark.parametrize("accent", speech.ACCENTS)
def test_every_accent_speaks(accent):
    samples = speech.say(replace(HELLO, voice=f"{accent}+Andrea"), RATE)
    assert 1 < len(samples) / RATE < 4
    assert 0.01 < np.abs(samples).max() < 1


@pytest.mark.parametrize("variant", ["paul", "Marco", "steph3", "gustave", "Gene"])
def test_loud_voices_are_not_clipped(variant):
    _, samples = speech._spoken(replace(HELLO, voice=f"en-us+{variant}"))
    assert np.abs(samples.astype(int)).max() < 30000


def test_settings_are_heard():
    usual, faster, higher = (
        speech.say(utterance, RATE)
        for utterance in (HELLO, replace(HELLO, words_per_minute=240), replace(HELLO, pitch=80))
    )
    assert len(faster) < 0.8 * len(usual)
    assert not np.array_equal(higher, usual[: len(higher)])


def test_silence_at_both_ends_is_cut():
    samples = np.zeros(10000)
    samples[4000:6000] = 0.5
    assert len(speech._without_silence(samples, RATE, margin_s=0.01)) == 2000 + 2 * 160 - 1


def test_splits_share_no_voice_and_no_sentence():
    variants = [v for split in SPLITS for sex in speech.VOICES[split] for v in sex.split()]
    texts = [text for split in SPLITS for text in speech.sentences(split)]
    assert len(set(variants)) == len(variants) >= 40
    assert len({text.lower() for text in texts}) == len(texts) >= 350
    assert all(text[-1] in ".?" and 5 <= len(text.split()) <= 14 for text in texts)


def test_every_voice_is_there():
    folder = Path(loader.get_data_path(), "voices", "!v")
    for split in SPLITS:
        for index in range(60):
            assert (folder / speech.speaker(split, index)).is_file()


def test_women_and_men_speak_by_turns():
    for split, (women, men) in speech.VOICES.items():
        speakers = [speech.speaker(split, index) for index in range(80)]
        assert set(speakers[::2]) == set(women.split())
        assert set(speakers[1::2]) == set(men.split())


def test_a_long_way_to_the_data(monkeypatch, tmp_path):
    """espeak-ng alone cuts the names of its files there, and fails."""
    here = speech.say(HELLO, RATE)
    far = tmp_path / ("far" * 30) / ("away" * 20) / "espeak-ng-data"
    far.parent.mkdir(parents=True)
    far.symlink_to(loader.get_data_path(), target_is_directory=True)
    monkeypatch.setattr(loader, "get_data_path", lambda: str(far))
    assert np.array_equal(speech.say(HELLO, RATE), here)


@pytest.mark.parametrize("voice", ["en-us+nobody", "xx-nowhere"])
def test_an_unknown_voice_is_refused(voice):
    """espeak-ng alone would speak with another one for a variant that it does not know."""
    with pytest.raises(UserError, match=voice.rpartition("+")[2]):
        speech.say(replace(HELLO, voice=voice), RATE)


def test_nothing_to_say_is_an_error():
    with pytest.raises(UserError, match="silent"):
        speech.say(replace(HELLO, text=""), RATE)


def test_without_espeak_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[synth\]'"):
        speech.say(HELLO, RATE)


def test_without_end_it_is_an_error(monkeypatch):
    def endless(*_, **__):
        raise subprocess.TimeoutExpired("espeak", 60)

    monkeypatch.setattr(subprocess, "run", endless)
    with pytest.raises(UserError, match="no end"):
        speech.say(HELLO, RATE)
