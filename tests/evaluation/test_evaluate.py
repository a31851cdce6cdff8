"""Evaluation of a test set, of one source and of several: rows, failures, resuming, refusals."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from speechlab.cli import main
from speechlab.errors import UserError
from speechlab.evaluation import evaluate
from speechlab.evaluation.inputs import COLUMNS
from speechlab.evaluation.metrics import METRICS
from speechlab.evaluation.separation_metrics import SILENT, usual
from speechlab.evaluation.summaries import failed, means, summarise
from tests.evaluation.conftest import drawn


def settings_of(output):
    return json.loads(output.with_suffix(".json").read_text())


def test_a_row_per_source(tiny_set, output, estimates):
    rows = tiny_set.run(output, estimates=estimates)
    n_sources, names = tiny_set.n_sources, list(tiny_set.names)
    assert rows["file"].tolist() == [name for name in names for _ in range(n_sources)]
    assert (rows["seconds"] == 1).all() and (rows["failed"] == "").all()
    assert rows["si_sdr"].between(12, 20).all()
    if n_sources == 1:
        assert list(rows.columns) == ["file", "seconds", *tiny_set.metrics, "failed", *COLUMNS]
    else:
        start = ["file", "speaker", "seconds", "estimate"]
        assert list(rows.columns) == [*start, *tiny_set.metrics, "failed", *COLUMNS]
        assert rows["speaker"].tolist() == [1, 2] * 3
        assert rows["estimate"].tolist() == [1, 2, 2, 1, 1, 2] and (rows["si_sdri"] > 8).all()
    on_disk = pd.read_csv(output, keep_default_na=False)
    pd.testing.assert_frame_equal(rows, on_disk, check_dtype=False)
    assert [path.name for path in sorted(output.parent.iterdir())] == ["rows.csv", "rows.json"]


def test_settings_beside_the_rows_hold_no_folders(tiny_set, output, checkpoint):
    options = {"n_sources": tiny_set.n_sources, "sample_rate": tiny_set.rate}
    tiny_set.run(output, checkpoint=checkpoint(**options), limit=2)
    settings = settings_of(output)
    assert settings["test_set"] == "tiny_set" and settings["n_files"] == 2
    assert (settings["checkpoint"], settings["n_params"]) == ("model.pkl", 1)
    assert len(settings["sha256"]) == 64
    several = tiny_set.n_sources > 1
    assert settings["quantize"] == ("float" if several else "int16")
    assert settings.get("mixture") == ("mix" if several else None)
    assert {"pesq", "pystoi", "torch"} <= settings["versions"].keys()
    assert "private" not in output.with_suffix(".json").read_text()


def test_metrics_by_default(tiny_set, output):
    """Of one source all, of several the usual ones; the mixtures improve on nothing."""
    rows = tiny_set.run(output, metrics=None, limit=2)
    if tiny_set.n_sources == 1:
        assert list(rows.columns) == ["file", "seconds", *METRICS, "failed", *COLUMNS]
        assert settings_of(output)["source"] == "noisy files"
        return
    assert list(rows.columns[4:]) == [*usual(tiny_set.rate), "failed", *COLUMNS]
    assert (rows[["si_snri", "si_sdri", "sdri", "siri"]] == 0).all(axis=None)
    assert rows["estimate"].tolist() == [1, 2] * 2
    assert settings_of(output)["source"] == "mixtures"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("short", "{0}/b_2.wav has {1} samples, that in {2}/ has {3}"),
        ("rate", "{0}/b_2.wav has 44100 Hz, that in {2}/ has {3} Hz"),
        ("stereo", "{0}/b_2.wav: 2 channels"),
        ("nan", "{0}/b_2.wav: holds NaN"),
        ("text", "{0}/b_2.wav: not readable"),
    ],
)
def test_a_failing_file_is_a_reason_and_not_averaged(tiny_set, output, kind, message):
    part, n_samples = tiny_set.parts[0], tiny_set.rate
    changed = {
        "short": 0.1 * drawn(0, n_samples - tiny_set.rate // 50),
        "stereo": np.zeros((n_samples, 2)),
        "nan": np.full(n_samples, np.nan),
    }
    samples = changed.get(kind, 0.1 * drawn(0, n_samples))
    subtype = "FLOAT" if kind == "nan" else "PCM_16"
    tiny_set.write(part, "b_2", samples, 44100 if kind == "rate" else None, subtype)
    if kind == "text":
        tiny_set.path(part, "b_2").write_text("nothing to hear")
    rows = tiny_set.run(output)
    failing = rows["file"] == "b_2"
    short = n_samples - tiny_set.rate // 50  # by 20 ms
    message = "all: " + message.format(part, short, tiny_set.parts[1], n_samples)
    assert rows.loc[failing, "failed"].str.startswith(message).all()
    assert rows.loc[failing, list(tiny_set.metrics)].isna().all(axis=None)
    assert "private" not in output.read_text()
    summary = summarise(rows)
    for metric in tiny_set.metrics:
        assert summary.loc[metric, "mean"] == pytest.approx(rows.loc[~failing, metric].mean())
        assert tuple(summary.loc[metric, ["n", "n_failed"]]) == (2, 1)


def test_a_failing_metric_leaves_the_others(pairs, output):
    pairs.write("noisy", "b_2", np.zeros(16000))
    rows = pairs.run(output)
    reason = "the estimate is silent"
    assert rows.loc[1, "failed"] == f"si_sdr: {reason}; stoi: {reason}"
    assert rows.loc[1, "ssnr"] == pytest.approx(0, abs=1e-9)
    assert list(summarise(rows)["n_failed"]) == [1, 0, 1]


def test_resumed_is_uninterrupted(tiny_set, output, monkeypatch):
    """The same bytes, also from a torn row or with the row of only one speaker."""
    tiny_set.run(output)
    again, started, score_mixture = output.with_name("again.csv"), [], evaluate.score_mixture

    def interrupted(task):
        started.append(task.mixture.name)
        if len(started) == 2:
            raise KeyboardInterrupt
        return score_mixture(task)

    monkeypatch.setattr(evaluate, "score_mixture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_set.run(again)
    assert not again.exists()
    partial = again.with_name("again.csv.partial")
    lines = partial.read_text().splitlines(keepends=True)
    partial.write_text("".join(lines[:2]) + "b_10,1")  # header, first row, a torn one
    tiny_set.run(again)
    redone = ["a 1"] if tiny_set.n_sources > 1 else []
    assert started == ["a 1", "b_2", *redone, "b_2", "b_10"]
    assert again.read_bytes() == output.read_bytes()
    n_started = len(started)
    tiny_set.run(again)
    assert len(started) == n_started  # nothing left to do


def test_a_limit_is_a_beginning(tiny_set, output):
    """Rows of a limited run are kept; a later limit removes none."""
    n_sources = tiny_set.n_sources
    assert len(tiny_set.run(output, limit=2)) == 2 * n_sources
    assert len(tiny_set.run(output)) == 3 * n_sources
    assert len(tiny_set.run(output, limit=1)) == n_sources
    assert len(pd.read_csv(output)) == 3 * n_sources


def test_another_run_is_not_mixed_in(pairs, output, checkpoint):
    pairs.run(output, checkpoint=checkpoint())
    with pytest.raises(UserError, match="differs in sha256"):
        pairs.run(output, checkpoint=checkpoint(content="other weights"))
    for part in pairs.parts:
        pairs.path(part, "a 1").rename(pairs.path(part, "c"))
    with pytest.raises(UserError, match="no file of 1 rows"):
        pairs.run(output, checkpoint=checkpoint())


@pytest.mark.usefixtures("forks")
def test_processes_change_nothing(tiny_set, output):
    tiny_set.run(output)
    many = output.with_name("many.csv")
    tiny_set.run(many, jobs=2)
    assert many.read_bytes() == output.read_bytes()


def test_a_folder_of_estimates(tiny_set, output, estimates):
    """Other bytes are another run; every file that is needed must be there."""
    tiny_set.run(output, estimates=estimates)
    assert settings_of(output)["estimates"] == "separated"
    last = sorted(estimates.rglob("b_2.flac"))[-1]
    soundfile.write(last, 0.1 * drawn(0, tiny_set.rate), tiny_set.rate)
    with pytest.raises(UserError, match="differs in sha256"):
        tiny_set.run(output, estimates=estimates)
    last.unlink()
    with pytest.raises(UserError, match=r"no estimate of 1 files \(b_2\.wav"):
        tiny_set.run(output.with_name("third.csv"), estimates=estimates)
    if tiny_set.n_sources > 1:
        shutil.rmtree(estimates / "s2")
        with pytest.raises(UserError, match=r"has no s2/; estimates of these sources are s1/, s2/"):
            tiny_set.run(output.with_name("third.csv"), estimates=estimates)


def test_estimates_are_found_as_the_files_of_a_test_set_are(pairs, output):
    """Extensions in capitals, numbers of DNS-2020; two files of one name are refused."""
    for part in pairs.parts:
        for i, name in enumerate(pairs.names):
            pairs.path(part, name).rename(pairs.path(part, f"{part}_snr5_fileid_{i}"))
    folder = pairs.folder.parent / "estimates"
    folder.mkdir()
    for i in range(3):
        noisy = pairs.path("noisy", f"noisy_snr5_fileid_{i}")
        shutil.copy(noisy, folder / f"enhanced_fileid_{i}.WAV")
    rows = pairs.run(output, estimates=folder)
    pd.testing.assert_frame_equal(rows, pairs.run(output.with_name("noisy.csv")))
    shutil.copy(folder / "enhanced_fileid_0.WAV", folder / "fileid_0.wav")
    with pytest.raises(UserError, match=r"enhanced_fileid_0\.WAV and fileid_0\.wav are one name"):
        pairs.run(output.with_name("third.csv"), estimates=folder)


def test_an_unwritable_output_is_an_error_before_the_model_is_loaded(
    pairs, tmp_path, checkpoint, monkeypatch
):
    path = checkpoint()
    monkeypatch.setattr("speechlab.weights.checkpoints.load", lambda _: pytest.fail("loaded"))
    (tmp_path / "in_the_way").write_text("a file")
    with pytest.raises(UserError, match=r"rows\.csv cannot be written: .*choose another output"):
        pairs.run(tmp_path / "in_the_way" / "rows.csv", checkpoint=path)


def test_a_model_is_scored(tiny_set, output, checkpoint):
    """At any level nothing is cut as float; 16 bits cut what is beyond full scale."""
    several = tiny_set.n_sources > 1
    options = {"n_sources": tiny_set.n_sources, "sample_rate": tiny_set.rate, "gain": 50.0}
    threads, made = torch.get_num_threads(), {}
    for quantize in ("float", "int16"):
        path = checkpoint(**options)
        to = output.with_name(f"{quantize}.csv")
        made[quantize] = tiny_set.run(to, checkpoint=path, quantize=quantize)
    unprocessed = tiny_set.run(output, quantize="float")
    rows = made["float"]
    assert (rows["failed"] == "").all() and torch.get_num_threads() == threads
    of_mixture = rows["estimate"] == 2 if several else rows["si_sdr"].notna()  # a gain alone
    found = rows["si_sdr"][of_mixture]
    np.testing.assert_allclose(found, unprocessed["si_sdr"][of_mixture], atol=1e-4)
    assert (made["int16"]["si_sdr"][of_mixture] < found).any()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", "the model failed: RuntimeError: no memory for this"),
        ("nan", "the model gave NaN"),
        ("sources", "the model gave (1, {1}, {2}) for (1, 1, {2})"),
    ],
)
def test_a_failing_model_is_a_reason(tiny_set, output, checkpoint, fault, message):
    n_sources, rate = tiny_set.n_sources, tiny_set.rate
    model = checkpoint(n_sources=n_sources, sample_rate=rate, fault=fault)
    rows = tiny_set.run(output, checkpoint=model, limit=2)
    message = "all: " + message.format(n_sources, n_sources + 1, rate)
    assert rows["failed"].str.startswith(message).all() and len(rows) == 2 * n_sources
    summary = summarise(rows)
    assert (summary["n"] == 0).all() and (summary["n_failed"] == 2).all()
    assert summary["mean"].isna().all()
    if n_sources > 1:
        assert rows["estimate"].isna().all() and means(rows)["permutation"].tolist() == ["", ""]


def test_a_model_of_another_rate_is_scored_at_its_rate(tiny_set, output, checkpoint):
    rate = 24000 - tiny_set.rate  # 8 kHz for 16 kHz and the other way round
    model = checkpoint(n_sources=tiny_set.n_sources, sample_rate=rate)
    rows = tiny_set.run(output, checkpoint=model, limit=1, metrics=("si_sdr", "pesq_nb"))
    assert rows["si_sdr"].notna().all() and (rows["seconds"] == 1).all()
    assert settings_of(output)["sample_rate"] == rate


def test_a_metric_that_the_rate_does_not_know_is_refused(tiny_set, output, checkpoint):
    model = checkpoint(n_sources=tiny_set.n_sources, sample_rate=8000)
    with pytest.raises(UserError, match="pesq_wb is not defined at 8000 Hz; use pesq_nb"):
        tiny_set.run(output, checkpoint=model, metrics=("pesq_wb",))
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("pesq",)}, r"no metric 'pesq' \(did you mean 'pesq_wb'\?\); there are: "),
        ({"metrics": ()}, "no metric"),
        ({"metrics": ("stoi", "stoi")}, "named twice"),
        ({"quantize": "int8"}, "int8"),
        ({"jobs": 0}, "jobs is 0"),
        ({"limit": -1}, "limit is -1"),
        ({"sample_rate": 999}, "sample_rate is 999; it must be 1000 to 768000 Hz"),
        ({"sample_rate": 10**9}, "sample_rate is 1000000000"),
        ({"checkpoint": "a", "estimates": "b"}, "give one"),
        ({"checkpoint": "absent.pkl"}, "absent.pkl"),
        ({"estimates": "absent"}, "absent: no such folder of estimates"),
        ({"estimates": "."}, r"no estimate of 3 files|has no s1/"),
    ],
)
def test_wrong_options_are_errors_before_any_work(tiny_set, output, options, message):
    with pytest.raises(UserError, match=message):
        tiny_set.run(output, **options)
    assert not output.parent.exists()


def test_a_model_of_other_sources_is_refused(tiny_set, output, checkpoint):
    model = checkpoint(n_sources=3, sample_rate=tiny_set.rate)
    message = rf"a model of 3 source\(s\), the test set has {tiny_set.n_sources}"
    with pytest.raises(UserError, match=message):
        tiny_set.run(output, checkpoint=model)
    assert not output.parent.exists()


def test_the_folder_of_mixtures_is_in_the_settings(mixtures, output):
    shutil.copytree(mixtures.folder / "mix", mixtures.folder / "mix_both")
    evaluate.evaluate(mixtures.folder / "mix_both", output, limit=1, jobs=1, progress=False)
    settings = settings_of(output)
    assert (settings["test_set"], settings["mixture"]) == ("tiny_set", "mix_both")


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_one_speaker_is_left_out_where_no_system_has_a_value(mixtures, output, noise):
    """Without noise of all measures, in noise of SIR; nothing failed, by command line too."""
    first = mixtures.read("s1", "a 1")
    mixtures.write("mix", "a 1", first + noise * drawn(9, 8000))
    mixtures.write("s2", "a 1", np.zeros(8000))
    metrics = (*mixtures.metrics, "sir")
    rows = mixtures.run(output, metrics=metrics)
    assert rows["failed"][1] == f"all: {SILENT}"
    for read in (rows, pd.read_csv(output)):
        summary = summarise(read)
        assert (summary["n_failed"] == 0).all() and failed(read) == {}
        expected = dict.fromkeys(metrics, int(noise == 0)) | {"sir": 1}
        assert summary["n_left_out"].to_dict() == expected
        assert (summary["n"] + summary["n_left_out"] == 3).all()
        assert means(read)["n_silent"].tolist() == [1, 0, 0]
    words = ["evaluate", str(mixtures.folder), "--output", str(output), "--jobs", "1"]
    assert main.main([*words, "--metrics", *metrics]) == 0


def test_the_mean_is_over_mixtures(mixtures, output):
    rows = mixtures.run(output)
    table = means(rows)
    for metric in mixtures.metrics:
        np.testing.assert_allclose(table[metric], rows[metric].to_numpy().reshape(3, 2).mean(1))
    pd.testing.assert_frame_equal(means(pd.read_csv(output)), table, check_dtype=False)
    summary = summarise(rows)
    assert list(summary.index) == list(mixtures.metrics) and (summary["n"] == 3).all()
    assert (summary["low"] <= summary["mean"]).all() and (summary["mean"] <= summary["high"]).all()


def test_a_failure_beside_a_left_out_speaker_is_counted(mixtures, output):
    mixtures.write("mix", "a 1", np.zeros(8000))
    mixtures.write("s2", "a 1", np.zeros(8000))
    metrics = (*mixtures.metrics, "sir")
    rows = mixtures.run(output, metrics=metrics)
    assert "silent" in failed(rows)["a 1"]
    assert summarise(rows)["n_failed"].to_dict() == dict.fromkeys(metrics, 1) | {"sir": 0}


def test_the_command_names_the_first_failing_files_once(tiny_set, output, capsys):
    """Exit code 1, also where nothing is left to do; the last line counts the others."""
    part, n_samples = tiny_set.parts[0], tiny_set.rate
    for name in (*tiny_set.names, "c"):
        for source in tiny_set.parts[1:]:
            tiny_set.write(source, name, 0.1 * drawn(0, n_samples))
        tiny_set.write(part, name, np.ones((n_samples, 2)) / 9)
    words = ["evaluate", str(tiny_set.folder), "--output", str(output), "--jobs", "1"]
    for _ in range(2):
        assert main.main([*words, "--metrics", "si_sdr"]) == 1
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith("speechlab")]
        message = f"all: {part}/{{}}.wav: 2 channels; scores are for one"
        assert lines[:-1] == [f"speechlab: {n}: {message.format(n)}" for n in tiny_set.names]
        assert lines[-1].startswith(f"speechlab: 1 more failed; the column failed of {output}")
        assert "rows.csv" in printed.out and "si_sdr" in printed.out


def test_the_model_computes_on_its_device(tiny_set, output, checkpoint):
    """A device that is not here is an error before any work."""
    model = checkpoint(n_sources=tiny_set.n_sources, sample_rate=tiny_set.rate)
    with pytest.raises(UserError, match=r"no device 'cuda:99'.*; there are: cpu"):
        tiny_set.run(output, checkpoint=model, limit=1, device="cuda:99")
    with pytest.raises(UserError, match="--device is for a checkpoint"):
        tiny_set.run(output, limit=1, device="auto")
    tiny_set.run(output, checkpoint=model, limit=1, metrics=("si_sdr",), device="cpu")
    assert "device" not in settings_of(output)
