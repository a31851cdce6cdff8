"""Evaluation of mixtures: a row per speaker, in the best order, means over mixtures."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import speechlab
from speechlab.cli import main
from speechlab.data import test_sets
from speechlab.errors import UserError
from speechlab.evaluation import evaluate_mixtures
from speechlab.evaluation.evaluate_mixtures import evaluate, means, summarise
from speechlab.evaluation.separation_metrics import SILENT, usual

RATE = 8000
QUICK = ("si_sdri", "si_sdr", "sir", "stoi")
FILES = ["a 1", "b_2", "b_10"]  # digits are numbers, where names are put in order


@pytest.fixture
def test_set(tmp_path):
    """Three mixtures of a second of two talkers: noise that comes and goes."""
    folder = tmp_path / "private" / "two_speakers"
    for i, name in enumerate(FILES):
        tide = np.sin(np.arange(RATE) / (1500 + 100 * i)) ** 2
        sources = 0.1 * np.random.default_rng(i).normal(size=(2, RATE)) * [tide, 1 - tide]
        write(folder, name, sources, sources.sum(0))
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "rows.csv"


def write(folder, name, sources, mixture=None, kind="mix", rate=RATE, suffix="wav"):
    parts = {f"s{n}": source for n, source in enumerate(sources, start=1)}
    parts |= {} if mixture is None else {kind: mixture}
    for part, samples in parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / part / f"{name}.{suffix}", samples, rate, subtype="PCM_16")


def sources_of(test_set, name):
    return np.stack([soundfile.read(test_set / part / f"{name}.wav")[0] for part in ("s1", "s2")])


def run(test_set, output, **options):
    return evaluate(test_set, output, **{"metrics": QUICK, "jobs": 1, "progress": False} | options)


@pytest.fixture
def estimates(test_set):
    """The sources with some noise; of the second mixture in the other order."""
    folder = test_set.parent / "separated"
    for i, name in enumerate(FILES):
        sources = sources_of(test_set, name)[:: -1 if i == 1 else 1]
        noise = 0.01 * np.random.default_rng(i + 50).normal(size=sources.shape)
        write(folder, name, sources + noise, suffix="flac")
    return folder


class Separator(torch.nn.Module):
    """Stands in for a model: the mixture, and its half backwards."""

    def __init__(self, fault=None, n_sources=2, sample_rate=RATE):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(50.0))
        self.fault, self.n_sources, self.sample_rate = fault, n_sources, sample_rate

    def forward(self, mixture):
        if self.fault == "raise":
            raise RuntimeError("no memory")
        if self.fault == "sources":
            return mixture
        second = 0 * mixture if self.fault == "silent" else mixture.flip(-1) / 2
        return self.gain * torch.cat([second, mixture], 1)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    def make(**options):
        path = tmp_path / "private" / "model.pkl"
        path.touch()
        monkeypatch.setattr(speechlab, "load", lambda _: Separator(**options).eval())
        return path

    return make


def test_a_row_per_speaker_in_the_best_order(test_set, output, estimates):
    rows = run(test_set, output, estimates=estimates)
    assert list(rows.columns) == ["file", "speaker", "seconds", "estimate", *QUICK, "failed"]
    assert rows["file"].tolist() == ["a 1"] * 2 + ["b_2"] * 2 + ["b_10"] * 2
    assert rows["speaker"].tolist() == [1, 2] * 3
    assert rows["estimate"].tolist() == [1, 2, 2, 1, 1, 2]
    assert (rows["seconds"] == 1).all() and (rows["failed"] == "").all()
    assert rows["si_sdr"].between(12, 20).all() and (rows["si_sdri"] > 8).all()
    on_disk = pd.read_csv(output, keep_default_na=False)
    pd.testing.assert_frame_equal(rows, on_disk, check_dtype=False)


def test_the_mean_is_over_mixtures(test_set, output, estimates):
    rows = run(test_set, output, estimates=estimates)
    table = means(rows)
    assert table["permutation"].tolist() == ["1 2", "2 1", "1 2"]
    for metric in QUICK:
        pairs = rows[metric].to_numpy().reshape(3, 2)
        np.testing.assert_allclose(table[metric], pairs.mean(1))
    pd.testing.assert_frame_equal(means(pd.read_csv(output)), table, check_dtype=False)
    summary = summarise(rows)
    assert list(summary.index) == list(QUICK)
    assert (summary["n"] == 3).all() and (summary["n_failed"] == 0).all()
    assert (summary["low"] <= summary["mean"]).all() and (summary["mean"] <= summary["high"]).all()


def test_settings_beside_the_rows(test_set, output, estimates):
    run(test_set, output, estimates=estimates, limit=2)
    text = output.with_suffix(".json").read_text()
    settings = json.loads(text)
    assert settings["test_set"] == "two_speakers" and settings["mixture"] == "mix"
    assert settings["estimates"] == "separated" and settings["quantize"] == "float"
    assert settings["n_files"] == 2 and "private" not in text
    write(estimates, FILES[0], sources_of(test_set, FILES[0]), suffix="flac")
    with pytest.raises(UserError, match="differs in sha256"):
        run(test_set, output, estimates=estimates)


def test_the_mixtures_themselves_improve_on_nothing(test_set, output):
    rows = run(test_set, output, metrics=None)
    assert list(rows.columns[4:-1]) == list(usual(RATE))
    for metric in ("si_snri", "si_sdri", "sdri", "siri"):
        assert (rows[metric] == 0).all()
    assert means(rows)["permutation"].tolist() == ["1 2"] * 3
    assert json.loads(output.with_suffix(".json").read_text())["source"] == "mixtures"
    at_16 = test_set.parent / "at_16"
    write(at_16, "x", np.ones((2, 20)), np.ones(20), rate=16000)
    assert "pesq_wb" in run(at_16, output.with_name("at_16.csv"), metrics=None)


def test_a_model_is_scored_at_any_level(test_set, output, checkpoint):
    """Beyond full scale nothing is cut; the sources are found in whatever order it gives them."""
    rows = run(test_set, output, checkpoint=checkpoint())
    assert (rows["failed"] == "").all()
    mixtures = run(test_set, output.with_name("mixtures.csv"))
    by_estimate = rows["estimate"] == 2
    found = rows["si_sdr"][by_estimate].to_numpy()
    np.testing.assert_allclose(found, mixtures["si_sdr"][by_estimate], atol=1e-4)
    cut = run(test_set, output.with_name("cut.csv"), checkpoint=checkpoint(), quantize="int16")
    assert (cut["si_sdr"][by_estimate] < rows["si_sdr"][by_estimate]).any()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise", "all: the model failed: RuntimeError: no memory"),
        ("sources", "all: the model gave (1, 1, 8000) for (1, 1, 8000) and 2 sources"),
    ],
)
def test_a_failing_model_is_a_reason(test_set, output, checkpoint, fault, said):
    rows = run(test_set, output, checkpoint=checkpoint(fault=fault), limit=1)
    assert rows["failed"].tolist() == [said] * 2 and rows["estimate"].isna().all()
    assert means(rows)["permutation"].tolist() == [""]
    assert (summarise(rows)["n_failed"] == 1).all()


def test_a_silent_source_is_left_out_and_a_silent_estimate_is_a_failure(
    test_set, output, checkpoint
):
    sources = sources_of(test_set, FILES[0])
    sources[1] = 0
    write(test_set, FILES[0], sources, sources[0] + 0.01)
    rows = run(test_set, output, checkpoint=checkpoint(fault="silent"))
    assert rows["failed"][1] == f"all: {SILENT}"
    table = means(rows)
    assert table["n_silent"].tolist() == [1, 0, 0]
    assert table["stoi"].notna().tolist() == [True, False, False]
    assert "the estimate is silent" in table["failed"][1]
    assert summarise(rows).loc["stoi", "n_failed"] == 2
    assert summarise(rows).loc["stoi", "mean"] == table["stoi"][0]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("short", "all: s2/b_2.wav has 7999 samples, the mixture 8000"),
        ("rate", "all: s2/b_2.wav has 16000 Hz, the mixture 8000 Hz"),
        ("stereo", "all: s2/b_2.wav: 2 channels; scores are for one"),
        ("text", "all: s2/b_2.wav: not readable"),
    ],
)
def test_a_failing_file_is_a_reason_and_the_others_are_scored(test_set, output, kind, said):
    path = test_set / "s2/b_2.wav"
    samples = {"short": np.ones(7999), "stereo": np.ones((8000, 2))}.get(kind, np.ones(8000)) / 9
    soundfile.write(path, samples, 16000 if kind == "rate" else RATE)
    if kind == "text":
        path.write_text("nothing to hear")
    rows = run(test_set, output)
    assert rows["failed"].str.startswith(said).tolist() == [False] * 2 + [True] * 2 + [False] * 2
    assert "private" not in output.read_text()
    assert summarise(rows)["n"].tolist() == [2] * len(QUICK)


def test_resumed_is_uninterrupted(test_set, output, monkeypatch):
    """Also where one speaker's row of a mixture is written and the other's is not."""
    run(test_set, output)
    again, scored = output.with_name("again.csv"), []
    score_mixture = evaluate_mixtures.score_mixture

    def interrupted(task):
        scored.append(task.mixture.name)
        if len(scored) == 2:
            raise KeyboardInterrupt
        return score_mixture(task)

    monkeypatch.setattr(evaluate_mixtures, "score_mixture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(test_set, again)
    partial = again.with_name("again.csv.partial")
    partial.write_text("".join(partial.read_text().splitlines(keepends=True)[:2]))
    run(test_set, again)
    assert scored == ["a 1", "b_2", *FILES]
    assert again.read_bytes() == output.read_bytes()
    run(test_set, again)
    assert len(scored) == 5


def test_processes_change_nothing(test_set, output):
    run(test_set, output)
    many = output.with_name("many.csv")
    run(test_set, many, jobs=2)
    assert many.read_bytes() == output.read_bytes()


def test_a_model_of_another_rate_is_scored_at_its_rate(test_set, output, checkpoint):
    rows = run(test_set, output, checkpoint=checkpoint(sample_rate=16000), metrics=None, limit=1)
    assert "pesq_wb" in rows and rows["si_sdr"].notna().all()
    assert json.loads(output.with_suffix(".json").read_text())["sample_rate"] == 16000


def test_what_cannot_be_is_told_before_any_work(test_set, output, checkpoint, estimates):
    with pytest.raises(UserError, match=r"a model of 3 source\(s\), the test set has 2"):
        run(test_set, output, checkpoint=checkpoint(n_sources=3))
    with pytest.raises(UserError, match="no metric pesq; known: si_snri"):
        run(test_set, output, metrics=("pesq",))
    with pytest.raises(UserError, match="give one"):
        run(test_set, output, checkpoint=checkpoint(), estimates=estimates)
    (estimates / "s2/b_2.flac").unlink()
    with pytest.raises(UserError, match=r"no estimate of 1 files \(b_2\.wav"):
        run(test_set, output, estimates=estimates)
    shutil.rmtree(estimates / "s2")
    with pytest.raises(UserError, match=r"has no s2/; estimates of these sources are s1/, s2/"):
        run(test_set, output, estimates=estimates)
    assert not output.parent.exists()


@pytest.mark.parametrize("kind", ["mix_clean", "mix_both", "mix_both_reverb"])
def test_the_folder_of_mixtures_may_have_the_names_of_libri2mix(test_set, output, kind):
    (test_set / "mix").rename(test_set / kind)
    assert test_sets.has_mixtures(test_set) and test_sets.find_mixtures(test_set)[0] == kind
    (test_set / "mix_single").mkdir()
    assert test_sets.find_mixtures(test_set)[0] == kind
    shutil.copytree(test_set / kind, test_set / "mix_other")
    with pytest.raises(UserError, match=r"has mix_\w+/ and mix_other/ beside s1/; name one"):
        test_sets.find_mixtures(test_set)
    rows = run(test_set / kind, output, limit=1)
    settings = json.loads(output.with_suffix(".json").read_text())
    assert (settings["test_set"], settings["mixture"]) == ("two_speakers", kind)
    assert (rows["si_sdri"] == 0).all()


def test_files_that_are_not_in_every_folder_are_named(test_set):
    (test_set / "s2/b_2.wav").unlink()
    with pytest.raises(UserError, match=r"s2/ lacks 1 file\(s\) that the others have: b_2; add"):
        test_sets.find_mixtures(test_set)
    with pytest.raises(UserError, match="mixtures of several talkers, not pairs"):
        test_sets.find_pairs(test_set)


def test_three_talkers(test_set, output):
    shutil.copytree(test_set / "s2", test_set / "s3")
    rows = run(test_set, output, limit=1, metrics=("si_sdr",))
    assert rows["speaker"].tolist() == [1, 2, 3]


def test_the_command_line(test_set, output, estimates, capsys):
    words = ["evaluate", str(test_set), "--output", str(output), "--jobs", "1", "--metrics"]
    assert main.main([*words, "si_sdri", "--estimates", str(estimates)]) == 0
    assert "si_sdri" in capsys.readouterr().out
    assert len(pd.read_csv(output)) == 6
    assert main.main(["check-metrics", str(test_set)]) == 2
    assert "`speechlab evaluate` scores them" in capsys.readouterr().err


def test_mixtures_that_all_fail_are_told_by_the_command_line(test_set, output, capsys):
    """A line for the first files, each once; exit code 1."""
    write(test_set, "c", np.ones((2, 9)))
    for name in (*FILES, "c"):
        soundfile.write(test_set / f"mix/{name}.wav", np.ones((RATE, 2)) / 9, RATE)
    words = ["evaluate", str(test_set), "--output", str(output), "--jobs", "1"]
    assert main.main(words) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("speechlab")]
    said = "all: mix/{}.wav: 2 channels; scores are for one"
    assert told[:-1] == [f"speechlab: {name}: {said.format(name)}" for name in FILES]
    assert told[-1] == f"speechlab: 1 more failed; the column failed of {output} tells why"


def test_a_silent_source_is_no_failed_file(test_set, output):
    sources = sources_of(test_set, FILES[0])
    sources[1] = 0
    write(test_set, FILES[0], sources, sources[0] + 0.01)
    rows = run(test_set, output, metrics=("si_sdr",))
    assert SILENT in rows["failed"][1] and evaluate_mixtures.failed(rows) == {}


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_one_talker_is_left_out_where_no_system_has_a_value(test_set, output, estimates, noise):
    """Without noise of all measures, in noise of SIR; nothing failed."""
    sources = sources_of(test_set, FILES[0]) * [[1], [0]]
    noisy = sources[0] + noise * np.random.default_rng(9).normal(size=RATE)
    write(test_set, FILES[0], sources, noisy)
    rows = run(test_set, output, estimates=estimates)
    for read in (rows, pd.read_csv(output)):
        summary = summarise(read)
        assert (summary["n_failed"] == 0).all() and evaluate_mixtures.failed(read) == {}
        n_left_out = summary["n_left_out"].to_dict()
        of_all = int(noise == 0)
        assert n_left_out == dict.fromkeys(QUICK, of_all) | {"sir": 1}
        assert (summary["n"] + summary["n_left_out"] == 3).all()
    words = ["evaluate", str(test_set), "--output", str(output), "--jobs", "1"]
    assert main.main([*words, "--estimates", str(estimates), "--metrics", *QUICK]) == 0


def test_a_failure_beside_what_is_left_out_is_told(test_set, output):
    write(test_set, FILES[0], sources_of(test_set, FILES[0]) * [[1], [0]], np.zeros(RATE))
    rows = run(test_set, output)
    assert "silent" in evaluate_mixtures.failed(rows)[FILES[0]]
    assert summarise(rows)["n_failed"].to_dict() == dict.fromkeys(QUICK, 1) | {"sir": 0}


def test_a_metric_that_the_rate_does_not_know_is_refused(test_set, output):
    with pytest.raises(UserError, match="pesq_wb is not defined at 8000 Hz; take pesq_nb"):
        run(test_set, output, metrics=("pesq_wb",))
    assert not output.exists()


def test_an_exact_copy_of_a_source_has_no_number(test_set, output):
    """As everywhere in `metrics`: infinite, no mean can be made of it, and 100 dB were made up."""
    rows = run(test_set, output, estimates=test_set, limit=1)
    assert rows["failed"].str.contains("si_sdr: inf cannot be averaged").all()
    assert rows["estimate"].tolist() == [1, 2] and (rows["stoi"] > 0.999).all()


@pytest.mark.parametrize("folder", ["no", "mix_clean", "."])
def test_a_folder_without_mixtures_is_refused(tmp_path, output, folder):
    said = "holds no mixtures; a test set of them has mix/, s1/ and s2/"
    with pytest.raises(UserError, match=said):
        run(tmp_path / folder, output)


def test_pairs_beside_sources_are_pairs(test_set, output):
    """`find_pairs` takes them, and so does the command line; noisy mixtures are no pairs."""
    shutil.copytree(test_set / "mix", test_set / "noisy")
    assert test_sets.has_mixtures(test_set)
    shutil.copytree(test_set / "s1", test_set / "clean")
    assert not test_sets.has_mixtures(test_set) and len(test_sets.find_pairs(test_set)) == 3
    words = ["evaluate", str(test_set), "--output", str(output), "--jobs", "1", "--metrics"]
    assert main.main([*words, "si_sdr"]) == 0
    assert "speaker" not in pd.read_csv(output)
