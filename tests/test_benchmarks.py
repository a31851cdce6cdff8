"""The benchmarks measure what they say: widths known without a file are those of the file."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

import speechlab
from benchmarks import cleanumamba, long_streams, macs, separation
from speechlab.errors import UserError
from speechlab.models.cleanumamba import CleanUMamba, tiny_config
from speechlab.models.macs import macs_per_second, n_params
from speechlab.report import separation as separation_tables
from speechlab.report import spectral as spectral_tables
from speechlab.weights import checkpoints
from tests.support import toy_corpus


def test_committed_counts_are_those_of_the_models(tmp_path):
    macs.main(["--output", str(tmp_path)])
    for path in (spectral_tables.COUNTS, separation_tables.COUNTS):
        committed = macs.RESULTS / path
        assert (tmp_path / path).read_bytes() == committed.read_bytes(), path
    with pytest.raises(UserError, match="no separation model 'sepmaba_s'; there are conv_tasnet"):
        macs.build("sepmaba_s")


@pytest.mark.parametrize("name", cleanumamba.KNOWN)
def test_random_models_have_the_widths_of_the_published(shared, name, tmp_path):
    folder = shared / "upstream_checkpoints/cleanumamba"
    published = speechlab.load(folder / f"{name}.pkl")
    model, weights = cleanumamba.build(name, tmp_path)
    assert weights == "random"
    assert n_params(model) == n_params(published)
    assert macs_per_second(model) == macs_per_second(published)


def test_a_row_of_the_streaming_benchmark(tmp_path, monkeypatch):
    """All three ways on the same hops; the first frame takes its samples and some work."""
    monkeypatch.setattr(cleanumamba, "WARM", 2)
    monkeypatch.setattr(cleanumamba, "HOPS", 60)
    monkeypatch.setattr(cleanumamba, "ROUNDS", 2)
    model, _ = cleanumamba.build(cleanumamba.HALF_MILLION, tmp_path)
    row = cleanumamba.measure(model, quick=True)
    assert row["hop_samples"] == 256 and row["hop_ms"] == 16
    assert row["first_frame_ms"] > 1000 * 766 / 16000
    assert all(np.isfinite(value) and value > 0 for value in row.values())
    assert row["speedup"] == row["modules_ms"] / row["stepped_ms"]


def test_rows_of_long_streams(tmp_path, monkeypatch, capsys):
    """A row per clip; the first clip is the same in the stream and alone; no row is made twice."""
    asked = []

    def mean_error(estimate, clean, sample_rate):
        asked.append(sample_rate)
        return float(np.abs(estimate - clean).mean())

    monkeypatch.setattr(long_streams, "pesq_wb", mean_error)
    monkeypatch.setattr(long_streams, "LATE", 0.1)
    torch.manual_seed(0)
    model = CleanUMamba(tiny_config())
    checkpoints.save(tmp_path / "tiny.safetensors", model)
    corpus = toy_corpus.prepared(tmp_path / "toy")
    words = [str(tmp_path / "tiny.safetensors"), "--corpus", str(corpus), "--streams", "2"]
    words += ["--minutes", "0.2", "--rows", str(tmp_path / "rows.csv")]
    long_streams.main(words)
    rows, n_asked = pd.read_csv(tmp_path / "rows.csv"), len(asked)
    assert rows.groupby("number").size().min() >= 2 and n_asked == 4 * len(rows)
    first = rows[rows["clip"] == 0]
    np.testing.assert_allclose(first["stream"], first["rest"], rtol=0.05)
    assert (rows["rest"] != rows["utterance"]).all()
    long_streams.main(words)
    assert len(asked) == n_asked and "loss, late 95 %" in capsys.readouterr().out
    checkpoints.save(tmp_path / "tiny.safetensors", CleanUMamba(tiny_config()))
    long_streams.main([*words, "--streams", "1"])  # other weights of the same name
    long_streams.main([*words, "--streams", "1", "--minutes", "0.1"])
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows.groupby(long_streams.KEYS[:-1], dropna=False).ngroups == 3


def separation_row(job: separation.Job) -> dict[str, float | str]:
    """What `measure` gives, made up: longer mixtures and later models cost more."""
    cost = 100.0 * job.seconds * (1 + separation.MODELS.index(job.model))
    return {"machine": "m", "cpu_ms": cost, "wall_ms": cost, "peak_mb": cost, "reason": ""}


def test_models_that_are_compared_are_measured_side_by_side():
    """In every other round from the last to the first: none is always measured first."""
    names = ("sepmamba_s", "dprnn")
    plan = [entry for entry in separation.schedule(names, (1, 4), 2, 1) if entry[1].device == "cpu"]
    assert len(plan) == 2 * 2 * 2 * 2 and len(set(plan)) == len(plan)
    for first, second in zip(plan[::2], plan[1::2], strict=True):
        number, job = first
        pair = (job.model, second[1].model)
        assert pair == names[:: 1 if number == 0 else -1]
        assert second == (number, dataclasses.replace(job, model=pair[1]))


@pytest.mark.parametrize("seconds", [1, 16])
def test_mixtures_have_their_length_with_and_without_recordings(seconds, monkeypatch, tmp_path):
    found = separation.mixture(seconds)
    monkeypatch.setenv("SPEECHLAB_SHARED", str(tmp_path))
    noise = separation.mixture(seconds)
    assert found.shape == noise.shape == (1, 1, 8000 * seconds)
    assert 0 < noise.std() < 1 and not torch.equal(noise[..., :99], noise[..., 99:198])


def test_a_measurement_is_a_process_of_its_own():
    """At least the weights, and gradients as large; time of the passes, not of the process."""
    job = separation.Job("cpu", 1, 0.25, "forward+backward", "umambanet_f128", 0.0, 2.0)
    row = separation.measure(job)
    assert row["reason"] == "" and row["machine"]
    assert 2000 > row["wall_ms"] >= 0.9 * row["cpu_ms"] > 0
    weights_mb = 4e-6 * separation.size("umambanet_f128", 4)["n_params"]
    assert 2 * weights_mb < row["peak_mb"] < 100


def test_what_does_not_fit_is_told_and_the_run_goes_on(capsys):
    job = separation.Job("cpu", 1, 1, "forward", "umambanet_f128", 0.0, 0.002)
    row = separation.measure(job)
    assert row["reason"] == "out of memory"
    assert np.isnan([row["cpu_ms"], row["wall_ms"], row["peak_mb"]]).all()
    row |= {"round": 0, "device": "cpu", "threads": 1, "seconds": 1, "model": job.model}
    rows = [row | {"pass": kind} | separation.size(job.model, 1) for kind in separation.PASSES]
    separation.report(pd.DataFrame(rows), quick=True)
    shown = capsys.readouterr().out
    assert "| umambanet_f128 | 1,9" in shown and shown.count("out of memory") == 7
    assert "nan" not in shown


def test_a_run_that_is_killed_keeps_its_rows(monkeypatch, tmp_path):
    plan = separation.schedule(("sepmamba_s", "dprnn"), (1,), 1, 1)

    def measure(job: separation.Job) -> dict[str, float | str]:
        if job == plan[2][1]:
            raise KeyboardInterrupt
        return separation_row(job)

    monkeypatch.setattr(separation, "measure", measure)
    output = tmp_path / "new" / "rows.csv"
    output.parent.mkdir()
    output.write_text("complete")
    with pytest.raises(KeyboardInterrupt):
        separation.run(plan, output)
    assert output.read_text() == "complete"
    partial = output.with_name("rows.csv.partial")
    kept = pd.read_csv(partial)
    assert kept["model"].tolist() == ["sepmamba_s", "dprnn"]
    assert kept["macs_per_second"].tolist() == [11_964_416_000, 41_405_440_000]
    monkeypatch.setattr(separation, "measure", separation_row)
    assert len(separation.run(plan, output)) == len(pd.read_csv(output)) == len(plan)
    assert not partial.exists()


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """`main` of words, from elsewhere, nothing measured or counted; gives what is in the root."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(separation, "ROOT", tmp_path / "root")
    monkeypatch.setattr(separation, "measure", separation_row)
    monkeypatch.setattr(separation, "size", lambda *_: {"n_params": 1, "macs_per_second": 1.0})
    monkeypatch.setattr(separation, "report", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def main(*words: str) -> list[str]:
        separation.main(words)
        assert not list((tmp_path / "elsewhere").iterdir())
        return [path.name for path in tmp_path.glob("root/**/*.*")]

    return main


def test_a_full_run_is_kept_in_the_repository(benchmark, capsys):
    assert benchmark() == ["separation.csv"]
    assert "not kept" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    ["--quick", "--rounds 1", "--threads 4", "--memory-gb 2", "--models dprnn"],
)
def test_a_lesser_run_does_not_replace_it(benchmark, capsys, words):
    assert benchmark(*words.split()) == []
    assert "rows are not kept; --output FILE.csv keeps them" in capsys.readouterr().err


def test_rows_that_the_table_does_not_show_are_told(benchmark, tmp_path, capsys):
    output = tmp_path / "four.csv"
    benchmark("--threads", "4", "--models", "dprnn", "--output", str(output))
    assert len(pd.read_csv(output)) == 2 * 3 * 2
    assert "the study's tables show one thread alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--rounds 0", "argument --rounds: 0 is not 1 or more"),
        ("--threads 0", "argument --threads: 0 is not 1 or more"),
        ("--threads many", "argument --threads: invalid count value: 'many'"),
        ("--memory-gb -1", "argument --memory-gb: -1 is not more than 0"),
        ("--memory-gb nan", "argument --memory-gb: nan is not more than 0"),
    ],
)
def test_options_that_cannot_be_are_refused(benchmark, capsys, words, said):
    with pytest.raises(SystemExit) as error:
        benchmark(*words.split())
    assert error.value.code == 2 and capsys.readouterr().err.splitlines()[-1].endswith(said)


def test_ratios_stand_beside_the_published(monkeypatch, capsys):
    monkeypatch.setattr(separation, "measure", separation_row)
    plan = separation.schedule(("sepmamba_s", "sepmamba_s_causal", "dprnn"), (1, 4), 2, 1)
    cpu = [entry for entry in plan if entry[1].device == "cpu"]
    separation.report(separation.run(cpu, None), quick=False)
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line[0] == "dprnn"]
    assert rows[0] == ["dprnn", "2,608,065", "41.41", "600", "2400", "600", "2400"]
    # of the paper's 42.52, 101.83, 7.31
    published = ["3.41", "3.46", "5.71", "6.00", "6.00", "3.65"]
    assert rows[2] == ["dprnn", *published, *["6.00"] * 4]
    assert "Do not quote" not in str(lines)
