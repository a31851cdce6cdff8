"""Parameters choose the training; dev rows, means and gains; signals to show; streamed levels."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from speechlab.audio.pcs import pcs
from speechlab.config import replaced
from speechlab.errors import UserError
from speechlab.models.cleanumamba import CleanUMamba, tiny_config
from speechlab.study import experiments, launch, runner, views
from speechlab.study.experiment import from_settings
from speechlab.study.experiments import EXPERIMENTS
from tests.support import toy_corpus

TINY = EXPERIMENTS["cleanumamba-tiny"]


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """Where corpora lie is a setting of the process."""
    monkeypatch.setattr("speechlab.data.corpora.catalogue.DATA", views.catalogue.DATA)


def choose(corpus, tmp_path, about="semamba", profile="quick", **parameters):
    return views.choose(about, profile, corpus=str(corpus), results=tmp_path, **parameters)


def test_a_profile_names_the_experiment_and_the_corpus_its_place(corpus, tmp_path):
    chosen = choose(corpus, tmp_path, seed=2)
    assert chosen.name == "semamba-tiny-seed2" and chosen.experiment.training.seed == 2
    assert chosen.experiment.corpora == ("own",) and chosen.missing == ""
    assert (chosen.run, chosen.runs) == (None, tmp_path / "runs")
    assert chosen.output == tmp_path / "local"  # beside the committed rows
    assert choose(corpus, tmp_path, publish=True).output == tmp_path
    assert choose(corpus, tmp_path, name="mine").name == "mine"
    assert choose(corpus, tmp_path, checkpoint="a/b.safetensors").name == "b-given"


def test_a_run_brings_its_own_experiment(corpus, tmp_path):
    settings = toy_corpus.SETTINGS | {"name": "theirs", "corpora": (str(corpus),)}
    run = launch.train(replaced(TINY, settings), tmp_path, progress=False)
    chosen = views.choose("semamba", "quick", checkpoint=str(run.folder), results=tmp_path)
    assert chosen.run == run and chosen.name == "theirs"
    assert chosen.experiment == from_settings(run.settings["config"])


def test_a_run_begun_in_the_root_is_shown_from_notebooks(corpus, tmp_path, monkeypatch):
    """Its corpus is named as it was there, by a path or by its name in data/."""
    for folder in ("data", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data/own").symlink_to(corpus)
    for number, words in enumerate(("data/own", "own")):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("speechlab.data.corpora.catalogue.DATA", Path("data"))
        settings = toy_corpus.SETTINGS | {"name": f"theirs{number}", "corpora": (words,)}
        run = launch.train(replaced(TINY, settings), "results/runs", progress=False)
        monkeypatch.chdir("notebooks")
        chosen = views.choose("semamba", "quick", checkpoint=f"../{run.folder}")
        assert chosen.missing == "" and launch.dev_scores(chosen.experiment)


def test_a_run_trained_on_other_data_is_marked(corpus, tmp_path, monkeypatch):
    """With its own corpus there is no warning; with another one there is."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda what, **_: shown.append(str(what)))
    settings = toy_corpus.SETTINGS | {"name": "theirs", "corpora": (str(corpus),)}
    begun = views.Chosen(replaced(TINY, settings), None, tmp_path, tmp_path, "")
    model, run = views.trained(begun)
    assert run.step == 6 and not model.training
    other = toy_corpus.prepared(tmp_path / "other", of="other ")
    for folder, message in ((corpus, False), (other, True)):
        shown.clear()
        words = {"corpus": str(folder), "checkpoint": str(run.folder), "results": tmp_path}
        given, same = views.trained(views.choose("semamba", "quick", **words), str(run.folder))
        assert same == run and any("trained on other data" in text for text in shown) == message
        assert all(map(torch.equal, given.parameters(), model.parameters()))
    of_file = views.trained(begun, str(run.folder / "best.safetensors"))
    assert of_file[1] is None and type(of_file[0]) is type(model)


def test_rows_and_figures_are_saved_under_the_name(tmp_path):
    chosen = views.Chosen(TINY, None, tmp_path / "runs", tmp_path, "")
    views.save(chosen, scores(), {key: Figure() for key in ("training", "spectrograms")})
    name = "cleanumamba-tiny"
    saved = pd.read_csv(tmp_path / "dev" / f"{name}.csv")
    pd.testing.assert_frame_equal(saved, scores(), rtol=1e-5)  # six digits are written
    kept = {path.name for path in (tmp_path / "figures").iterdir()}
    assert kept == {f"{name}_training.svg", f"{name}_spectrograms.png"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("file", ["dev/cleanumamba-tiny.csv", "figures/cleanumamba-tiny_terms.svg"])
def test_a_full_disk_is_named(tmp_path, file):
    chosen = views.Chosen(TINY, None, tmp_path / "runs", tmp_path, "")
    part = tmp_path / f"{file}.part"
    part.parent.mkdir()
    part.symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"{file}: cannot be written .the disk is full.$"):
        views.save(chosen, scores(), {"terms": Figure()})


@pytest.mark.parametrize("about", runner.TRAINED)
def test_a_stand_in_writes_beside_its_runs(about, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "stand_in", lambda folder, *_: folder / "synthetic")
    chosen = choose(tmp_path / "nowhere" / "synthetic", tmp_path, about)
    assert "speechlab data prepare synthetic" in chosen.missing
    assert chosen.output == chosen.runs == tmp_path / "runs" / "smoke"
    assert chosen.experiment.training.n_steps == runner.FEW_STEPS["training.n_steps"]
    small = choose(tmp_path / "nowhere", tmp_path, about, "smoke", publish=True)
    assert small.missing == "" and small.output == chosen.output  # never published


@pytest.mark.parametrize("asked", [{"profile": "real"}, {"experiment": "semamba-tiny"}])
def test_a_named_training_has_no_stand_in(asked, tmp_path):
    with pytest.raises(UserError, match="synthetic"):
        choose(tmp_path / "nowhere" / "synthetic", tmp_path, **asked)


def scores() -> pd.DataFrame:
    """Ten files; the network gains over noisy in SI-SDR, loses in PESQ, and equals "wiener"."""
    files, rng = [f"f{i}" for i in range(10)], np.random.default_rng(0)
    better = 1 + rng.random(10)
    parts = {
        "noisy": {"si_sdr": better * 0, "pesq_wb": better + 1},
        "wiener": {"si_sdr": better + 0.1 * (-1.0) ** np.arange(10), "pesq_wb": better * 0},
        "semamba_advanced": {"si_sdr": better, "pesq_wb": better * 0},
    }
    rows = [pd.DataFrame({"file": files, "system": k} | v) for k, v in parts.items()]
    return pd.concat(rows, ignore_index=True)


def test_gains_have_a_verdict():
    table = views.gains(scores(), "semamba_advanced", ("noisy", "wiener"))
    assert table["verdict"].tolist() == ["above 0", "n.s.", "below 0", "n.s."]
    assert table.columns[-1] == "verdict" and table["p (Holm)"].tolist()[1] == "1"
    assert (table["files"] == 10).all() and (table["files that failed"] == 0).all()


def test_files_in_the_order_of_their_gain():
    dev = scores()
    gain = dev[dev["system"] == "semamba_advanced"].set_index("file")["si_sdr"]
    found = views.gain_by_file(dev, "semamba_advanced", "si_sdr")
    assert found.to_dict() == gain.to_dict() and found.is_monotonic_increasing


def test_means_have_a_row_per_system_in_its_order():
    table = views.means(scores())
    assert table.index.tolist() == ["noisy, unprocessed", "Wiener filter", "SEMamba"]
    assert table["files"].tolist() == [10, 10, 10]


def test_dev_rows_of_one_source_have_the_snr(corpus):
    """The manifest's; where noise was not added, that of the noisy file."""
    mixtures = launch.corpora([str(corpus)]).read("dev")["mixture"]
    rows = views.dev_rows({"noisy": views.Untouched(16000)}, mixtures)
    assert list(rows.columns) == ["file", "snr_db", "si_sdr", "pesq_wb", "system"]
    known = pd.Series({source.item.name: source.item.snr_db for source in mixtures}, dtype=float)
    noisy = rows.set_index("file")["si_sdr"]
    assert rows.set_index("file")["snr_db"].tolist() == known.fillna(noisy).tolist()
    assert set(rows["system"]) == {"noisy"} and len(rows) == len(mixtures)
    assert views.by_file(rows) is rows


def test_stretched_is_the_model_then_pcs():
    noisy = torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0)) / 10
    model = views.Untouched(16000)
    systems = {"noisy": model, "stretched": views.Stretched(model)}
    signals = views.signals(systems, noisy[0], noisy[0])
    assert list(signals) == ["noisy, unprocessed", "the network, then PCS", "clean"]
    assert torch.equal(signals["noisy, unprocessed"], noisy[0])
    assert torch.equal(signals["the network, then PCS"], pcs(noisy[0]))


def test_spectra_are_at_the_level_that_the_model_works_at():
    model = launch.untrained(experiments.lookup("semamba-tiny")).eval()
    noisy, clean = torch.randn(2, 1, 8000, generator=torch.Generator().manual_seed(0)) / 100
    spectra = views.spectra(model, noisy, clean)
    assert list(spectra) == ["noisy", "semamba_advanced", "clean"]
    assert len({spectrum.mag.shape for spectrum in spectra.values()}) == 1
    back = model.front_end.synthesise(spectra["noisy"], 8000)
    assert back.square().mean().sqrt() == pytest.approx(1, rel=1e-3)
    estimate = model.front_end.synthesise(spectra["semamba_advanced"], 8000)
    wanted = model(noisy[None])[0, 0] * model.gain(noisy[None])[0, 0]
    assert torch.allclose(estimate, wanted, atol=1e-5)


def test_a_system_is_known_by_its_class():
    assert views.system_of(CleanUMamba(tiny_config())) == "cleanumamba"
    with pytest.raises(StopIteration):
        views.system_of(nn.Identity())


def levels(loss: float) -> pd.DataFrame:
    """Two recordings under one condition."""
    row = {"checkpoint": "x", "gain_db": 12, "silence_s": 0, "running": 2.0, "loss": loss}
    rows = [row | {"file": str(i), "utterance": 2.0 + loss} for i in (0, 1)]
    return pd.DataFrame(rows, columns=views.LEVEL_COLUMNS)


@pytest.mark.parametrize("measured", [True, False])
def test_without_measured_levels_the_committed_rows_are_shown(tmp_path, monkeypatch, measured):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda what, **_: shown.append(str(what)))
    path = tmp_path / views.LEVEL_ROWS
    path.parent.mkdir()
    levels(0.25).to_csv(path, index=False)
    means = views.level_means(levels(1.0) if measured else levels(1.0)[:0], tmp_path)
    assert means.index.tolist() == [("x", 12, 0)]
    assert means["loss"].tolist() == [1.0 if measured else 0.25]
    assert bool(shown) != measured
    assert all("committed rows are shown instead" in text for text in shown)
