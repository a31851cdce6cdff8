"""Evaluation of a test set: rows, failures, resuming, processes, and what cannot be scored."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import speechlab
from speechlab.errors import UserError
from speechlab.evaluation import evaluate
from speechlab.evaluation.evaluate import summarise
from speechlab.evaluation.metrics import METRICS

RATE = 16000
QUICK = ("si_sdr", "ssnr", "stoi")


@pytest.fixture
def test_set(tmp_path):
    """Four pairs of a second: noise that comes and goes, and the same with noise 20 dB below."""
    folder = tmp_path / "private" / "tiny_set"
    for i in range(4):
        clean = 0.1 * draw(i, RATE) * np.sin(np.arange(RATE) / 2000) ** 2
        noisy = clean + 0.01 * draw(i + 100, RATE)
        write(folder / "clean" / f"p{i}.wav", clean)
        write(folder / "noisy" / f"p{i}.wav", noisy)
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "rows.csv"


def draw(seed, n_samples):
    return np.random.default_rng(seed).standard_normal(n_samples)


def write(path, samples, rate=RATE, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)


def run(test_set, output, **options):
    options = {"metrics": QUICK, "jobs": 1, "progress": False} | options
    return evaluate.evaluate(test_set, output, **options)


class Gain(torch.nn.Module):
    """Stands in for a model: half the input; `fault` says what goes wrong with loud files."""

    def __init__(self, fault=None, sample_rate=RATE):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5))
        self.fault, self.sample_rate = fault, sample_rate

    def forward(self, noisy):
        if self.fault == "raise":
            raise RuntimeError("no memory\nfor this")
        if self.fault == "nan":
            return noisy * float("nan")
        if self.fault == "sources":
            return noisy.repeat(1, 2, 1)
        return self.gain * noisy


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A file that `speechlab.load` gives a Gain for."""

    def make(content="weights", **options):
        path = tmp_path / "private" / "gain.pkl"
        path.write_text(content)
        monkeypatch.setattr(speechlab, "load", lambda _: Gain(**options).eval(), raising=False)
        return path

    return make


def test_a_row_per_file(test_set, output):
    rows = run(test_set, output)
    assert list(rows.columns) == ["file", "seconds", *QUICK, "failed"]
    assert list(rows["file"]) == ["p0", "p1", "p2", "p3"]
    assert (rows["seconds"] == 1).all()
    assert (rows["failed"] == "").all()
    assert rows["si_sdr"].between(15, 20).all()
    on_disk = pd.read_csv(output, keep_default_na=False)
    pd.testing.assert_frame_equal(rows, on_disk, check_dtype=False)
    assert [path.name for path in sorted(output.parent.iterdir())] == ["rows.csv", "rows.json"]


def test_settings_beside_the_rows_hold_no_folders(test_set, output, checkpoint):
    run(test_set, output, checkpoint=checkpoint())
    text = output.with_suffix(".json").read_text()
    settings = json.loads(text)
    assert settings["test_set"] == "tiny_set"
    assert settings["checkpoint"] == "gain.pkl"
    assert settings["n_params"] == 1
    assert len(settings["sha256"]) == 64
    assert settings["quantize"] == "int16"
    assert {"pesq", "pystoi", "torch"} <= settings["versions"].keys()
    assert "private" not in text


def test_all_metrics_are_the_default(test_set, output):
    rows = run(test_set, output, metrics=None, limit=1)
    assert list(rows.columns) == ["file", "seconds", *METRICS, "failed"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("short", "the estimate has 15999 samples, the clean 16000"),
        ("rate", "the clean file has 8000 Hz, the other 16000 Hz"),
        ("stereo", "p1.wav: 2 channels"),
        ("nan", "p1.wav: holds NaN"),
        ("text", "p1.wav: not readable"),
    ],
)
def test_a_failing_file_is_a_reason_and_not_averaged(test_set, output, kind, said):
    noisy = test_set / "noisy" / "p1.wav"
    if kind == "short":
        write(noisy, draw(0, RATE - 1) * 0.1)
    elif kind == "rate":
        write(test_set / "clean" / "p1.wav", draw(0, RATE) * 0.1, rate=8000)
    elif kind == "stereo":
        write(noisy, np.zeros((RATE, 2)))
    elif kind == "nan":
        write(noisy, np.full(RATE, np.nan), subtype="FLOAT")
    elif kind == "text":
        noisy.write_text("nothing to hear")
    rows = run(test_set, output)
    assert rows.loc[1, "failed"].startswith(f"all: {said}")
    assert "private" not in output.read_text()
    assert rows.loc[1, list(QUICK)].isna().all()
    summary = summarise(rows)
    others = rows.drop(1)
    for metric in QUICK:
        assert summary.loc[metric, "mean"] == pytest.approx(others[metric].mean())
        assert tuple(summary.loc[metric, ["n", "n_failed"]]) == (3, 1)


def test_a_failing_metric_leaves_the_others(test_set, output):
    write(test_set / "noisy" / "p2.wav", np.zeros(RATE))
    rows = run(test_set, output)
    reason = "the estimate is silent"
    assert rows.loc[2, "failed"] == f"si_sdr: {reason}; stoi: {reason}"
    assert rows.loc[2, "ssnr"] == pytest.approx(0, abs=1e-9)
    summary = summarise(rows)
    assert list(summary["n_failed"]) == [1, 0, 1]
    assert (summary["low"] <= summary["mean"]).all()
    assert (summary["mean"] <= summary["high"]).all()


def test_clips_of_three_samples(test_set, output):
    write(test_set / "noisy" / "p0.wav", [0.1, 0.2, 0.3])
    write(test_set / "clean" / "p0.wav", [0.1, 0.2, 0.2])
    rows = run(test_set, output, metrics=("stoi", "ssnr", "sdr", "si_sdr"), limit=1)
    assert rows.loc[0, "failed"].count("too short") == 3
    assert rows.loc[0, "si_sdr"] > 0


def test_resumed_is_uninterrupted(test_set, output, monkeypatch):
    """Stopped after two files and started again: the same bytes, and just the missing files."""
    run(test_set, output)
    whole = output.read_bytes()
    again = output.with_name("again.csv")
    scored = []
    score_file = evaluate.score_file

    def interrupted(task):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(task.pair.name)
        return score_file(task)

    monkeypatch.setattr(evaluate, "score_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(test_set, again)
    assert not again.exists()
    with again.with_name("again.csv.partial").open("a") as file:
        file.write("p3,1,1")  # torn

    def counted(task):
        scored.append(task.pair.name)
        return score_file(task)

    monkeypatch.setattr(evaluate, "score_file", counted)
    run(test_set, again)
    assert scored == ["p0", "p1", "p2", "p3"]
    assert again.read_bytes() == whole
    run(test_set, again)
    assert len(scored) == 4  # nothing left to do


def test_a_limit_is_a_beginning(test_set, output):
    """Rows of a limited run are kept, a later limit does not take rows away."""
    assert len(run(test_set, output, limit=2)) == 2
    assert len(run(test_set, output)) == 4
    assert len(run(test_set, output, limit=1)) == 1
    assert len(pd.read_csv(output)) == 4


def test_another_run_is_not_mixed_in(test_set, output, checkpoint):
    run(test_set, output, checkpoint=checkpoint())
    with pytest.raises(UserError, match="differs in sha256"):
        run(test_set, output, checkpoint=checkpoint(content="other weights"))
    with pytest.raises(UserError, match="differs in quantize"):
        run(test_set, output, checkpoint=checkpoint(), quantize="float")
    with pytest.raises(UserError, match="differs in metrics"):
        run(test_set, output, checkpoint=checkpoint(), metrics=("ssnr",))
    with pytest.raises(UserError, match="differs in source"):
        run(test_set, output)
    (test_set / "noisy" / "p0.wav").rename(test_set / "noisy" / "q0.wav")
    (test_set / "clean" / "p0.wav").rename(test_set / "clean" / "q0.wav")
    with pytest.raises(UserError, match="no file of 1 rows"):
        run(test_set, output, checkpoint=checkpoint())


def test_processes_change_nothing(test_set, output):
    run(test_set, output)
    many = output.with_name("many.csv")
    run(test_set, many, jobs=2)
    assert many.read_bytes() == output.read_bytes()


def test_a_folder_of_estimates(test_set, output):
    """The noisy files under another extension score as the noisy files do."""
    folder = test_set.parent / "estimates"
    for path in (test_set / "noisy").iterdir():
        samples, rate = soundfile.read(path)
        write(folder / f"{path.stem}.flac", samples, rate)
    rows = run(test_set, output, estimates=folder)
    noisy = run(test_set, output.with_name("noisy.csv"))
    pd.testing.assert_frame_equal(rows, noisy)
    assert json.loads(output.with_suffix(".json").read_text())["estimates"] == "estimates"
    write(folder / "p3.flac", 0.1 * draw(0, RATE))
    with pytest.raises(UserError, match="differs in sha256"):
        run(test_set, output, estimates=folder)
    (folder / "p3.flac").unlink()
    with pytest.raises(UserError, match=r"no estimate of 1 files \(p3\.wav"):
        run(test_set, output.with_name("third.csv"), estimates=folder)


def test_estimates_are_found_as_the_files_of_a_test_set_are(test_set, output):
    """Extensions in capitals, numbers of DNS-2020; two files of one name are refused."""
    for side in ("clean", "noisy"):
        for i in range(4):
            path = test_set / side / f"p{i}.wav"
            path.rename(path.with_name(f"{side}_snr5_fileid_{i}.wav"))
    folder = test_set.parent / "estimates"
    folder.mkdir()
    for i in range(4):
        noisy = test_set / "noisy" / f"noisy_snr5_fileid_{i}.wav"
        shutil.copy(noisy, folder / f"enhanced_fileid_{i}.WAV")
    rows = run(test_set, output, estimates=folder)
    pd.testing.assert_frame_equal(rows, run(test_set, output.with_name("noisy.csv")))
    shutil.copy(folder / "enhanced_fileid_0.WAV", folder / "fileid_0.wav")
    with pytest.raises(UserError, match=r"enhanced_fileid_0\.WAV and fileid_0\.wav are one name"):
        run(test_set, output.with_name("third.csv"), estimates=folder)


def test_an_output_that_cannot_be_written_is_told_before_the_model_is_loaded(
    test_set, tmp_path, checkpoint, monkeypatch
):
    path = checkpoint()
    monkeypatch.setattr(speechlab, "load", lambda _: pytest.fail("loaded"))
    (tmp_path / "in_the_way").write_text("a file")
    with pytest.raises(UserError, match=r"rows\.csv cannot be written: .*choose another output"):
        run(test_set, tmp_path / "in_the_way" / "rows.csv", checkpoint=path)


def test_a_model_is_scored(test_set, output, checkpoint):
    """Half the noisy file: the same SI-SDR, half the samples as int16."""
    rows = run(test_set, output, checkpoint=checkpoint(), quantize="float")
    noisy = run(test_set, output.with_name("noisy.csv"))
    np.testing.assert_allclose(rows["si_sdr"], noisy["si_sdr"], atol=1e-4)
    assert (rows["ssnr"] < noisy["ssnr"] - 1).all()
    threads = torch.get_num_threads()
    run(test_set, output.with_name("int16.csv"), checkpoint=checkpoint())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise", "all: the model failed: RuntimeError: no memory for this"),
        ("nan", "all: the model gave NaN"),
        ("sources", "all: the model gave (1, 2, 16000) for (1, 1, 16000)"),
    ],
)
def test_a_failing_model_is_a_reason(test_set, output, checkpoint, fault, said):
    rows = run(test_set, output, checkpoint=checkpoint(fault=fault), limit=2)
    assert rows["failed"].str.startswith(said).all()
    assert (summarise(rows)["n"] == 0).all()
    assert summarise(rows)["mean"].isna().all()


def test_a_model_of_another_rate_is_scored_at_its_rate(test_set, output, checkpoint):
    rows = run(test_set, output, checkpoint=checkpoint(sample_rate=8000), limit=1)
    assert rows.loc[0, "failed"] == ""
    assert rows.loc[0, "seconds"] == 1
    assert json.loads(output.with_suffix(".json").read_text())["sample_rate"] == 8000


def test_a_metric_that_the_rate_does_not_know_is_refused(test_set, output, checkpoint):
    with pytest.raises(UserError, match="pesq_wb is not defined at 8000 Hz; take pesq_nb"):
        run(test_set, output, checkpoint=checkpoint(sample_rate=8000), metrics=("pesq_wb",))
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": ("pesq",)}, "no metric pesq; known: pesq_wb"),
        ({"metrics": ()}, "no metric"),
        ({"metrics": ("ssnr", "ssnr")}, "named twice"),
        ({"quantize": "int8"}, "int8"),
        ({"jobs": 0}, "jobs is 0"),
        ({"limit": -1}, "limit is -1"),
        ({"checkpoint": "a", "estimates": "b"}, "give one"),
        ({"checkpoint": "absent.pkl"}, "absent.pkl"),
        ({"estimates": "absent"}, "absent: no such folder of estimates"),
        ({"estimates": "."}, "no sound files in it"),
    ],
)
def test_wrong_options_are_told_before_any_work(test_set, output, options, said):
    with pytest.raises(UserError, match=said):
        run(test_set, output, **options)
    assert not output.parent.exists()


def test_an_unknown_set_is_measured(test_set, output):
    check = evaluate.check_metrics(test_set, jobs=1, limit=2, output=output, progress=False)
    assert check.passed is None
    assert "no set with a known row" in check.reason
    assert check.table["known"].isna().all()
    assert len(pd.read_csv(output)) == 2
