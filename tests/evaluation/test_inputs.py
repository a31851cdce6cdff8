"""The files of a row: stale rows are scored again, and wrong files are named."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import soundfile

from speechlab.cli import main
from speechlab.errors import UserError
from speechlab.evaluation import evaluate, inputs
from speechlab.evaluation.rows import NOT_YET
from tests.evaluation.conftest import drawn


def scored_files(monkeypatch):
    """The names of the files that are scored from now on, each with its metrics."""
    started, score_mixture = {}, evaluate.score_mixture

    def score(task):
        started[task.mixture.name] = task.todo
        return score_mixture(task)

    monkeypatch.setattr(evaluate, "score_mixture", score)
    return started


@pytest.mark.parametrize("part", [0, -1])
def test_rows_of_changed_files_are_scored_again(tiny_set, output, monkeypatch, part):
    """Those and no others; the result is that of a fresh run, and a line says so."""
    run = partial(tiny_set.run, metrics=("si_sdr",))
    before, told = run(output), []
    samples = tiny_set.read(tiny_set.parts[part], "b_2") + 0.03 * drawn(7, tiny_set.rate)
    tiny_set.write(tiny_set.parts[part], "b_2", samples)
    started = scored_files(monkeypatch)
    rows = run(output, tell=told.append)
    assert list(started) == ["b_2"] and "1 file(s) have changed" in told[0] and "b_2" in told[0]
    changed = rows["file"] == "b_2"
    assert (rows["si_sdr"] != before["si_sdr"])[changed].any()
    pd.testing.assert_frame_equal(rows[~changed], before[~changed])
    run(output.with_name("fresh.csv"))
    assert output.with_name("fresh.csv").read_bytes() == output.read_bytes()
    run(output, tell=told.append)
    assert len(told) == 1 or "have changed" not in told[-1]


def test_changed_files_beyond_a_limit_lose_their_rows(pairs, output):
    pairs.run(output)
    pairs.write("clean", "b_10", 0.1 * drawn(0, 16000))
    pairs.run(output, limit=1)
    assert pd.read_csv(output)["file"].tolist() == ["a 1", "b_2"]


def test_rows_without_a_digest_are_kept_with_a_warning(pairs, output, monkeypatch):
    """Of an older version, the columns of the files are missing. New metrics: all is computed."""
    rows, told = pairs.run(output), []
    old = pd.read_csv(output).drop(columns=list(inputs.COLUMNS))
    old.to_csv(output, index=False)
    before, started = output.read_bytes(), scored_files(monkeypatch)
    again = pairs.run(output, tell=told.append)
    assert "WARNING: the rows of 3 file(s) are of an older version" in told[0] and not started
    assert output.read_bytes() == before
    pd.testing.assert_frame_equal(again[list(old)], rows[list(old)])
    pairs.run(output, metrics=(*pairs.metrics, "si_snr"))
    assert set(started.values()) == {(*pairs.metrics, "si_snr")}
    assert pd.read_csv(output)["inputs"].notna().all()


def test_a_metric_is_added_and_the_others_are_not_computed_again(tiny_set, output, monkeypatch):
    """Also to rows that failed; the bytes are those of a run with all metrics, then nothing."""
    tiny_set.write(tiny_set.parts[0], "b_2", np.zeros((tiny_set.rate, 2)))
    first, *others = tiny_set.metrics
    tiny_set.run(output.with_name("all.csv"))
    tiny_set.run(output, metrics=(first,))
    started, told = scored_files(monkeypatch), []
    rows = tiny_set.run(output, metrics=others, tell=told.append)
    assert set(started.values()) == {tuple(others)} and len(started) == 3
    assert f"adds {', '.join(others)}; {first} are not computed again" in told[0]
    assert output.with_name("all.csv").read_bytes() == output.read_bytes()
    started.clear()
    pd.testing.assert_frame_equal(tiny_set.run(output, metrics=(first,)), rows)
    assert not started
    settings = json.loads(output.with_suffix(".json").read_text())
    assert settings["metrics"] == list(tiny_set.metrics)


def test_an_interrupted_addition_resumes(pairs, output):
    """A row that lacks a metric says so; the rest is added by the same command."""
    pairs.run(output.with_name("all.csv"), metrics=("si_sdr", "ssnr"))
    pairs.run(output, metrics=("si_sdr",))
    assert pairs.run(output, metrics=("ssnr",), limit=1)["failed"].tolist() == [""]
    assert pd.read_csv(output)["failed"].tolist()[1:] == [f"ssnr: {NOT_YET}"] * 2
    pairs.run(output, metrics=("ssnr",))
    assert output.with_name("all.csv").read_bytes() == output.read_bytes()


def test_float_files_beyond_full_scale_are_not_clipped(pairs, output):
    """1.9 times full scale scores as at full scale, with a count; 2.1 and int16 are refused."""
    before = pairs.run(output, metrics=("pesq_wb", "si_sdr", "stoi"))
    for name, peak in zip(pairs.names, (1.9, 2.1, None), strict=True):
        both = {part: pairs.read(part, name) for part in pairs.parts}
        gain = peak / np.abs(both["noisy"]).max() if peak else 32768
        for part in pairs.parts:
            pairs.write(part, name, gain * both[part], subtype="FLOAT")
    told = []
    rows = pairs.run(output, metrics=("pesq_wb", "si_sdr", "stoi"), tell=told.append)
    for metric, within in {"pesq_wb": 0.02, "si_sdr": 0.01, "stoi": 1e-3}.items():
        assert rows[metric][0] == pytest.approx(before[metric][0], abs=within)
    assert rows["n_beyond"][0] > 9 and "samples beyond full scale (noisy)" in rows["warnings"][0]
    for reason in rows["failed"][1:]:
        assert "its peak is" in reason and "divide the samples" in reason and ".wav" in reason
    assert "a 1: " in told[-1] and "samples beyond full scale (noisy)" in told[-1]


def test_samples_beyond_full_scale_of_nested_folders_add_up(tmp_path):
    """Files of two folders of one name, as noisy/a/1.wav and clean/a/1.wav."""
    signals = {tmp_path / part / "a" / "1.wav": np.array([1.5, 0.1]) for part in ("noisy", "clean")}
    assert inputs.beyond(signals, ()) == {"a": 2}
    assert inputs.beyond(signals, signals) == {"estimate in a": 2}


def test_an_estimate_of_a_model_that_is_clipped_is_counted(pairs, output, checkpoint):
    rows = pairs.run(output, checkpoint=checkpoint(gain=50.0), limit=1)
    assert "(estimate, clipped)" in rows["warnings"][0] and rows["n_beyond"][0] > 100
    quiet = pairs.run(output.with_name("b.csv"), checkpoint=checkpoint(), quantize="float", limit=1)
    assert not quiet["n_beyond"][0] and "clipped" not in quiet["warnings"][0]


def test_estimates_of_a_separator_may_have_any_level(mixtures, output):
    folder = mixtures.folder.parent / "loud"
    for part in ("s1", "s2"):
        for name in mixtures.names:
            (folder / part).mkdir(parents=True, exist_ok=True)
            samples = 90 * mixtures.read(part, name) + drawn(3, 8000)
            soundfile.write(folder / part / f"{name}.wav", samples, 8000, "FLOAT")
    rows = mixtures.run(output, estimates=folder, limit=1)
    assert (rows["si_sdr"] > 10).all() and (rows["n_beyond"] > 0).all()
    assert "samples beyond full scale (estimate in s1)" in rows["warnings"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda noisy, clean: (np.roll(noisy, 80), clean), "noisy is 5.00 ms behind clean"),
        (lambda noisy, clean: (-noisy, clean), "the polarity of noisy is inverted"),
        (lambda noisy, clean: (0.1 * drawn(5, 16000), clean), "do not belong together"),
        (lambda noisy, clean: (clean, noisy), "swapped"),
        (lambda noisy, clean: (noisy[:-160], clean), "160 samples cut"),
        (lambda noisy, clean: (0 * noisy, clean), "noisy is silent"),
    ],
)
def test_a_pair_that_does_not_belong_together_is_named(pairs, output, change, words):
    both = change(*(pairs.read(part, "b_2") for part in pairs.parts))
    for part, samples in zip(pairs.parts, both, strict=True):
        pairs.write(part, "b_2", samples)
    told = []
    rows = pairs.run(output, metrics=("si_sdr",), tell=told.append)
    assert rows["warnings"].tolist()[::2] == ["", ""] and words in rows["warnings"][1]
    assert [line for line in told if "1 of 3 rows have warnings: b_2: " in line and words in line]
    assert (rows["lag_ms"][[0, 2]] == 0).all() and rows["correlation"][0] > 0.9
    assert rows["snr_db"][0] == pytest.approx(rows["si_sdr"][0], abs=0.1)
    pairs.run(output, metrics=("si_sdr",), tell=told.append)
    assert words in told[-1]  # of rows that were there, too


def test_an_estimate_of_the_wrong_time_or_sign_is_named(tiny_set, output, estimates):
    for path in estimates.rglob("a 1.flac"):
        samples, rate = soundfile.read(path)
        soundfile.write(path, -np.roll(samples, rate // 200), rate)
    rows = tiny_set.run(output, estimates=estimates)
    first = rows["file"] == "a 1"
    assert (rows["lag_ms"] == 5 * first).all() and (rows["warnings"] == "")[~first].all()
    for words in ("the polarity of estimate is inverted", "estimate is 5.00 ms behind"):
        assert rows["warnings"][first].str.contains(words).all()


def test_a_model_that_inverts_is_named(pairs, output, checkpoint):
    rows = pairs.run(output, checkpoint=checkpoint(gain=-1.0), limit=1)
    assert rows["warnings"][0] == "the polarity of estimate is inverted"
    assert rows["correlation"][0] > 0  # of the model's input


def test_channels_that_are_dead_or_cancel_are_named(pairs, output):
    voice = pairs.read("noisy", "a 1")
    pairs.write("noisy", "a 1", np.stack([voice, 0 * voice], -1))
    pairs.write("clean", "b_2", np.stack([voice, -voice], -1))
    failed = pairs.run(output)["failed"]
    assert "noisy/a 1.wav: 2 channels; scores are for one; channel 2 of 2 is silent" in failed[0]
    assert "the 2 channels cancel each other" in failed[1]


def test_a_set_at_48_khz_is_scored_at_the_rate_given(pairs, output, checkpoint, capsys):
    """The files that are resampled are named; a model has one rate."""
    for path in (pairs.folder / "noisy").iterdir():
        samples = np.repeat(soundfile.read(path)[0], 3)
        soundfile.write(path, samples, 48000)
    words = ["evaluate", str(pairs.folder), "--output", str(output), "--jobs", "1"]
    assert main.main([*words, "--metrics", "si_sdr", "--sample-rate", "16000"]) == 0
    said = "resampled to 16000 Hz before scoring: 3 files of noisy/ at 48000 Hz"
    assert said in capsys.readouterr().err
    assert json.loads(output.with_suffix(".json").read_text())["sample_rate"] == 16000
    with pytest.raises(UserError, match="the model is for 16000 Hz and cannot be scored at 48000"):
        pairs.run(output.with_name("b.csv"), checkpoint=checkpoint(), sample_rate=48000)
    with pytest.raises(UserError, match="sample_rate is 0"):
        pairs.run(output.with_name("b.csv"), sample_rate=0)
