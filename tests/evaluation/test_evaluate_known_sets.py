"""Published test sets: the rate that they are scored at, and the check of their known rows."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import soxr

from speechlab.data import test_sets
from speechlab.errors import UserError
from speechlab.evaluation import evaluate
from speechlab.evaluation.metrics import METRICS
from speechlab.evaluation.summaries import summarise
from tests.support.warm import ROOT

RATE = 16000


@pytest.fixture
def known_set(pairs, monkeypatch):
    """The pairs of `conftest.py` as a published set of any size and known row."""
    for part in pairs.parts:
        for i, name in enumerate(pairs.names):
            pairs.path(part, name).rename(pairs.path(part, f"p{i}"))

    def make(n_files=3, **known):
        entry = test_sets.TestSet("Tiny", r"p\d", n_files, known)
        monkeypatch.setattr(test_sets, "TEST_SETS", {"tiny": entry})
        return pairs.folder

    return make


def run(test_set, output, **options):
    return evaluate.evaluate(test_set, output, jobs=1, progress=False, **options)


def checked(test_set, limit=None):
    return evaluate.check_metrics(test_set, jobs=1, limit=limit, progress=False)


def test_a_known_set_keeps_its_rate(known_set, output, checkpoint):
    rows = run(known_set(), output, checkpoint=checkpoint(sample_rate=8000), limit=1)
    assert rows.loc[0, "failed"] == "all: the model is for 8000 Hz, the file has 16000 Hz"


@pytest.mark.parametrize("kind", ["noisy", "estimates", "checkpoint"])
def test_a_set_at_48_khz_scores_as_at_16_khz(known_set, output, checkpoint, kind):
    """VoiceBank-DEMAND is downloaded at 48 kHz. Estimates may have a third rate.

    Close, not equal: of this noise some lies at 8 kHz, where a resampler cuts.
    """
    folder = known_set()
    shutil.copytree(folder / "noisy", folder.parent / "estimates")
    source = {
        "noisy": {},
        "estimates": {"estimates": folder.parent / "estimates"},
        "checkpoint": {"checkpoint": checkpoint()},
    }[kind]
    at_16 = run(folder, output, **source, limit=1)
    settings = json.loads(output.with_suffix(".json").read_text())
    assert "sample_rate" not in settings and "soxr" not in settings["versions"]
    for path in folder.parent.rglob("*.wav"):
        rate = 44100 if path.parent.name == "estimates" else 48000
        soundfile.write(path, soxr.resample(soundfile.read(path)[0], RATE, rate, "VHQ"), rate)
    at_48 = run(folder, output.with_name("at_48.csv"), **source, limit=1)
    assert (at_48["failed"] == "").all()
    for metric in METRICS:
        np.testing.assert_allclose(at_48[metric], at_16[metric], atol=0.05, err_msg=metric)
    settings = json.loads(output.with_name("at_48.json").read_text())
    assert settings["sample_rate"] == RATE and "soxr" in settings["versions"]
    with pytest.raises(UserError, match="differs in"):
        run(folder, output, **source, limit=1)


def test_committed_rows_are_resumed(shared, tmp_path):
    """The settings of rows in results/ are still those of the command that made them."""
    name = "metrics/dns2020_no_reverb/noisy"
    for suffix in (".csv", ".json"):
        shutil.copy(ROOT / "results" / f"{name}{suffix}", tmp_path)
    before = (tmp_path / "noisy.json").read_bytes()
    assert len(run(shared / "audio/pairs/dns2020_no_reverb", tmp_path / "noisy.csv")) == 150
    assert (tmp_path / "noisy.json").read_bytes() == before


def test_the_known_row_of_a_complete_set(known_set):
    measured = checked(known_set()).table
    assert list(measured["metric"]) == list(METRICS)
    means = measured.set_index("metric")["measured"]
    close = {"si_sdr": means["si_sdr"] + 0.019, "ssnr": means["ssnr"] - 0.019}
    check = checked(known_set(**close))
    assert check.passed is True
    assert list(check.table["verdict"]).count("met") == 2
    assert "Tiny: complete, 3 files; known row met" in str(check)
    check = checked(known_set(**close | {"ssnr": means["ssnr"] + 0.021}))
    assert check.passed is False
    assert "NOT met" in str(check)


def test_an_unknown_set_is_measured(pairs):
    check = checked(pairs.folder, limit=1)
    assert check.passed is None and check.table["known"].isna().all()


def test_an_incomplete_set_is_named_as_such(known_set):
    check = checked(known_set(n_files=824, ssnr=0.0))
    assert check.passed is None
    assert check.reason == "incomplete, 3 of 824 files: not comparable"
    assert not check.table["verdict"].any()
    limited = checked(known_set(ssnr=0.0), limit=1)
    assert limited.reason == "incomplete, 1 of 3 files: not comparable"


def test_a_known_metric_that_failed_everywhere_is_not_met(pairs, known_set):
    for i in range(3):
        pairs.write("noisy", f"p{i}", np.zeros(RATE))
    assert checked(known_set(si_sdr=0.0)).passed is False


def test_a_known_row_with_a_failed_file_is_not_met(pairs, known_set, output):
    folder = known_set()
    pairs.write("noisy", "p2", np.zeros((RATE, 2)))
    rows = run(folder, output)
    means = summarise(rows)["mean"]
    check = evaluate.compare(rows, known_set(si_sdr=means["si_sdr"]))
    assert check.passed is False
    assert check.reason == "complete, 3 files; known row NOT met; 1 failed"
    assert "met" not in list(check.table["verdict"])


def test_noisy_dns_files_as_published(shared):
    """The first clip of the real set: recognised, every metric that has a known value has one."""
    check = checked(shared / "audio/pairs/dns2020_no_reverb", limit=1)
    assert check.test_set == "DNS-2020 synthetic no_reverb"
    assert check.reason == "incomplete, 1 of 150 files: not comparable"
    known = check.table.dropna(subset="known")
    assert list(known["metric"]) == ["pesq_wb", "pesq_nb", "stoi", "si_sdr"]
    assert known["measured"].notna().all()


def test_mixtures_have_no_known_row(mixtures):
    with pytest.raises(UserError, match="`speechlab evaluate` scores them"):
        evaluate.check_metrics(mixtures.folder)
