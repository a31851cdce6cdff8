"""Every notebook runs at smoke size and without any data; so do the programs in examples/."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd
import pytest
import soundfile
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from speechlab.config import replaced
from speechlab.data import manifest
from speechlab.errors import UserError
from speechlab.models.baselines import conv_tasnet
from speechlab.models.baselines.conv_tasnet import ConvTasNet
from speechlab.models.cleanumamba import CleanUMamba, tiny_config
from speechlab.study import launch
from speechlab.study.experiments import EXPERIMENTS
from speechlab.study.notebooks import FIRST, LOCAL, check_parameters
from speechlab.training.runs import Run
from speechlab.weights import checkpoints
from tests.support import notebooks, toy_corpus, warm
from tests.support.warm import LIMIT_S, ROOT

TINY = EXPERIMENTS["cleanumamba-tiny"]
FOLDER, EXAMPLES = ROOT / "notebooks", ROOT / "examples"
NOTEBOOKS = sorted(path for path in FOLDER.glob("*.ipynb") if path.name != FIRST)
PATIENT = ["--no-progress-bar", "--start-timeout", str(LIMIT_S)]
START = "from speechlab.study.notebooks import start\n\nstart(globals())"
STEPS = {"Load", "Run", "Table", "Figure", "Save", "Imports", "Parameters"}


def run(notebook: str, results: Path, *environment: Mapping[str, str], **parameters: object) -> str:
    """All text that a notebook of this name shows, executed as `make study` does."""
    return notebooks.run(FOLDER / notebook, results, *environment, **parameters)


@pytest.mark.parametrize("cwd", [ROOT, FOLDER], ids=["root", "notebooks"])
def test_papermill_alone(cwd, tmp_path):
    """No --cwd: paths in the parameters count from the notebooks' folder all the same."""
    notebook = os.path.relpath(FOLDER / "11_paper_tables.ipynb", cwd)
    executed, words = tmp_path / "o.ipynb", {"profile": "smoke"}
    words |= {"test_set": tmp_path / "nowhere", "results": tmp_path / "results"}
    command = [sys.executable, "-m", "papermill", notebook, str(executed), *PATIENT]
    command += [word for key, value in words.items() for word in ("-p", key, str(value))]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "41.4M | 3.067" in executed.read_text()  # from ../results/published


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS if path.name[:2] < "11"][1:])
def test_a_model_has_equations_a_diagram_and_links(name):
    """Before the first cell of code: with shapes, to the paper and to the modules."""
    _, model, code = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells[:3]
    assert code.metadata["tags"] == ["parameters"]
    assert model.source.startswith(("## The model: ", "## The stream: "))
    assert "$$" in model.source and re.search(r"^```\n.*─►.*^```$", model.source, re.M | re.S)
    assert "(B, " in model.source
    assert "](https://arxiv.org/abs/" in model.source and "](../speechlab/" in model.source


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("sead 3", "parameters has no setting 'sead' (did you mean 'seed'?)"),
        ("seed 1.5", "parameters.seed must be int, not 1.5"),
        ("name 7", "parameters.name must be str, not 7; papermill -r name 7 gives text"),
    ],
)
def test_a_wrong_parameter_ends_the_notebook_at_its_first_cell(tmp_path, word, told):
    """Every notebook: the cell after the parameters is run alone, with what papermill adds."""
    source = load_notebook_node(str(FOLDER / "02_train_cleanumamba.ipynb"))
    wrong = parameterize_notebook(source, {word.split()[0]: ast.literal_eval(word.split()[1])})
    code = [cell.source for cell in wrong.cells if cell.cell_type == "code"][:3]
    assert code[1].startswith("# Parameters") and code[2] == START
    variables = {"In": ["", *code]}
    exec("\n".join(code[:2]), variables)
    with pytest.raises(UserError) as error:
        check_parameters(variables)
    assert str(error.value).startswith(told)


def committed() -> dict[Path, float]:
    """What must not change while tests run: everything in results/ that a study does not make."""
    paths = (ROOT / "results").rglob("*")
    left_out = {"runs", "notebooks", LOCAL}
    kept = [path for path in paths if not left_out & set(path.relative_to(ROOT).parts)]
    return {path: path.stat().st_mtime_ns for path in kept if path.is_file()}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asks_a_question_and_keeps_the_order(path):
    notebook = nbformat.read(path, as_version=4)
    cells = notebook.cells
    assert re.match(r"# .+\?\n\n", cells[0].source)
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    headings = re.findall(r"^## (.+)$", prose, re.M)  # of the content, not of the steps
    assert len(headings) >= 6 and not STEPS & set(headings)
    assert headings[-2:] == ["What we learned", "Files written"]
    links = re.findall(r"\]\(([^)#]+)\)", prose)
    assert all(link.startswith("https://") or (FOLDER / link).exists() for link in links)
    code = [cell for cell in cells if cell.cell_type == "code"]
    tags = [cell.metadata.get("tags", []) for cell in code]
    assert tags[0] == ["parameters"] and sum(map(bool, tags)) == 1
    parameters = ast.parse(
        code[0].source
    ).body  # each with its type, so that a wrong one is refused
    assert all(isinstance(node, ast.AnnAssign) for node in parameters)
    assert code[1].source == START
    assert notebook.metadata.kernelspec.name == "python3"
    assert re.search(r'^results: str = "../results"', code[0].source, re.M)
    said = r"^publish: bool = False  # True: replace the committed "
    assert re.search(said, code[0].source, re.M)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def with_weights(shared: Path) -> dict[str, str]:
    """The environment of a user who has the published files."""
    return {"SPEECHLAB_WEIGHTS": str(shared / "upstream_checkpoints")}


def paper_tables_at_smoke_size(request, results):
    shared = request.getfixturevalue("shared")
    test_set = shared / "audio" / "pairs" / "dns2020_no_reverb"
    words = {"profile": "smoke", "test_set": test_set}
    shown = run("11_paper_tables.ipynb", results, with_weights(shared), **words)
    assert "incomplete, 2 of 150 files" in shown
    [output] = (results / "runs").iterdir()  # a part of the set stays out of the way of the whole
    rows = pd.read_csv(output / "metrics" / "dns2020_no_reverb" / "Experiment_CleanU_Mamba.csv")
    noisy = pd.read_csv(output / "metrics" / "dns2020_no_reverb" / "noisy.csv")
    assert len(rows) == len(noisy) == 2
    assert (rows["pesq_wb"] > noisy["pesq_wb"]).all()
    assert len(list((output / "tables").iterdir())) == 12
    assert len(list((output / "figures").iterdir())) == 2


def paper_tables_without_data(request, results):
    environment = {"XDG_CACHE_HOME": str(results / "cache")}
    shown = run("11_paper_tables.ipynb", results, environment, test_set=results / "nowhere")
    assert "speechlab weights download Experiment_CleanU_Mamba" in shown
    assert "data/README.md" in shown
    assert "| E8 full | 41.4M | 3.067 |" in shown
    assert "nothing is reproduced here yet" in shown
    assert "| SEMamba advanced non-causal | 2.26M | 2,258,769 | 65.46 in 2 s |" in shown
    assert "speechlab weights download SEMamba_advanced" in shown
    assert {path.name for path in results.iterdir() if path.is_dir()} <= {LOCAL, "cache"}
    assert "| SepMamba (S) + DM | 21.2 |" in shown and "| U-Mamba-Net, F = 64 | 7.12 |" in shown
    assert "not measured: no weights here" in shown and "not measured: no test set" in shown


def streaming_at_smoke_size(request, results):
    shared = request.getfixturevalue("shared")
    dev_pairs = shared / "audio" / "pairs" / "voicebank_demand_train"
    name = "10_streaming_and_cost.ipynb"
    shown = run(name, results, with_weights(shared), profile="smoke", dev_pairs=dev_pairs)
    assert "fused" in shown and "modules" in shown
    rows = pd.read_csv(results / "runs" / "10" / "streamed" / "level_dev_pairs.csv")
    assert list(zip(rows["gain_db"], rows["silence_s"], strict=True)) == [(0, 0), (12, 0), (0, 10)]
    assert (rows["loss"] < 0.2).all()


def streaming_without_data(request, results):
    name, environment = "10_streaming_and_cost.ipynb", {"XDG_CACHE_HOME": str(results / "cache")}
    words = {"profile": "smoke", "dev_pairs": results / "nowhere"}
    shown = run(name, results, environment, **words)
    assert "The committed rows are shown instead" in shown and "0.303" in shown
    assert "speechlab weights download Experiment_CleanU_Mamba" in shown
    assert "random weights, 442K" in shown


def prepare_data_at_smoke_size(request, results):
    shown = run("01_prepare_data.ipynb", results, profile="smoke")
    assert shown.count("<audio") == 12 and shown.count("<img alt=") == 3
    assert "of 2 s, drawn as for cleanumamba-tiny: mixed on the fly, at -5 to 15 dB SNR" in shown
    output = results / "runs" / "smoke"
    table = pd.read_csv(output / "tables" / "corpus_synthetic.csv", index_col=["split", "kind"])
    assert table.loc[("dev", "mixture"), "files"] == 5
    assert table.loc["train"].index.tolist() == ["speech", "room", "noise"]
    assert len(list((output / "figures").iterdir())) == 3
    assert not (results / "figures").exists()
    noisy = pd.read_csv(output / "tables" / "corpus_two_speakers_noisy.csv", index_col=0)
    assert noisy.loc["train", "kind"].tolist() == ["speech", "noise", "room"]


def prepare_data_of_recordings(request, results):
    """The words follow the data: crops as long as that profile trains on, of ready mixtures."""
    folder = toy_corpus.prepared(results / "own")
    about = manifest.about(folder) | {"licence": "the user's own"}
    (folder / manifest.ABOUT).write_text(json.dumps(about))
    words = {"profile": "real", "folder": folder, "n_examples": 3}
    shown = run("01_prepare_data.ipynb", results, **words)
    crops = "3 examples of 10 s, drawn as for cleanumamba-442k-voicebank: segments of ready"
    assert crops in shown and f"Read here: `{folder}` (data {about['data_hash'][:8]})" in shown
    assert [path.name for path in (results / LOCAL / "tables").iterdir()] == ["corpus_own.csv"]
    assert not (results / "tables").exists()


def prepare_data_without_data(request, results):
    words = {"corpus": "dns2020", "folder": results / "dns2020"}
    shown = run("01_prepare_data.ipynb", results, **words)
    assert "Missing inputs" in shown and "DNS-Challenge" in shown
    assert (results / "runs" / "smoke" / "tables" / "corpus_synthetic.csv").exists()
    assert not (results / "tables").exists() and not (results / LOCAL).exists()


def a_finished_run(request, results):
    """Of the command line, on other data than the study's; it is looked at, under its own name."""
    corpus = toy_corpus.prepared(results / "own")
    settings = toy_corpus.SETTINGS | {"name": "theirs", "corpora": (str(corpus),)}
    there = launch.train(replaced(TINY, settings), results, progress=False)
    before = {path.name: path.read_bytes() for path in there.folder.iterdir()}
    name, words = "02_train_cleanumamba.ipynb", {"checkpoint": there.folder}
    shown = run(name, results, **words)
    assert "Missing inputs" not in shown and "other data" not in shown
    assert f"Read here: `{corpus}`" in shown and "6 steps done" in shown
    assert {path.name: path.read_bytes() for path in there.folder.iterdir()} == before
    systems = ("noisy", "wiener", "cleanumamba")
    assert n_rows(results / LOCAL / "dev" / "theirs.csv") == dict.fromkeys(systems, 3)
    assert {path.stem for path in (results / LOCAL / "figures").iterdir()} == {
        f"theirs_{figure}" for figure in ("training", "by_snr", "spectrograms")
    }
    assert not any((results / name).exists() for name in ("runs", "dev", "figures"))


def a_run_of_the_same_name(request, results):
    """Begun with other settings: it is left alone, and the error names the way out."""
    other = Run.create(results / "runs" / "smoke" / "cleanumamba-tiny", {"system": "another"})
    before = (other.folder / "config.json").read_bytes()
    name = "02_train_cleanumamba.ipynb"
    with pytest.raises(AssertionError, match=r"was begun .*name the run anew"):
        run(name, results, profile="smoke")
    assert [path.name for path in other.folder.iterdir()] == ["config.json"]
    assert (other.folder / "config.json").read_bytes() == before
    run(name, results, profile="smoke", name="mine")
    assert (results / "runs" / "smoke" / "dev" / "mine.csv").exists()


class Smoke(NamedTuple):
    """What a training of a few steps shows and writes."""

    run: str
    n_parameters: str
    systems: Sequence[str]
    n_players: int
    figures: Sequence[str]
    words: Sequence[str] = ()  # others that are shown
    n_rows: int = 5  # of each system: files, or speakers of mixtures


SPECTRAL = ("training", "terms", "by_snr", "front_end", "phases", "phase_errors", "spectrograms")
MIXTURE_WORDS = ("mixture, unprocessed", "estimate of speaker 1, 2")
MIXTURE_FIGURES = ("training", "by_likeness", "spectrograms")
UMAMBANET_WORDS = ("| U-Mamba-Net, F = 128, without Mamba |", "unet_kernel_size")
SMOKE = {
    "02_train_cleanumamba": Smoke(
        *("cleanumamba-tiny", "53,521", ("noisy", "wiener", "cleanumamba"), 8),
        ("training", "by_snr", "spectrograms"),
    ),
    "03_train_semamba": Smoke(
        *("semamba-tiny", "24,009", ("noisy", "wiener", "semamba_advanced", "stretched"), 5),
        *(SPECTRAL, ("the network, then PCS", "share within")),
    ),
    "04_train_mpsenet_mamba": Smoke(
        *("mpsenet-mamba-tiny", "28,356", ("noisy", "wiener", "mpsenet_mamba"), 4),
        *(SPECTRAL, ("cross_attention", "share within")),
    ),
    "05_train_sepmamba": Smoke(
        *("sepmamba-tiny", "148,178", ("mixture", "sepmamba"), 10),
        *(MIXTURE_FIGURES, MIXTURE_WORDS, 8),
    ),
    "06_train_umambanet": Smoke(
        *("umambanet-tiny", "427,023", ("mixture", "umambanet"), 10),
        *(MIXTURE_FIGURES, UMAMBANET_WORDS, 8),
    ),
}


def n_rows(path: Path) -> dict[str, int]:
    """Rows of each system of a table."""
    return pd.read_csv(path).groupby("system", sort=False).size().to_dict()


@pytest.mark.parametrize("name", SMOKE)
def test_a_training_at_smoke_size(name, tmp_path, prepared):
    """Dev rows and all figures of a run, in its folder and not among the study's."""
    before, wanted = committed(), SMOKE[name]
    shown = run(f"{name}.ipynb", tmp_path, profile="smoke")
    output = tmp_path / "runs" / "smoke"
    assert f"{wanted.n_parameters} parameters" in shown
    assert shown.count("<audio") == wanted.n_players
    assert all(words in shown for words in wanted.words)
    found = n_rows(output / "dev" / f"{wanted.run}.csv")
    assert found == dict.fromkeys(wanted.systems, wanted.n_rows)
    assert len(pd.read_csv(output / wanted.run / "validations.csv")) == 2
    figures = {path.stem for path in (output / "figures").iterdir()}
    assert figures == {f"{wanted.run}_{kind}" for kind in wanted.figures}
    assert not (tmp_path / "figures").exists() and not (tmp_path / "dev").exists()
    assert committed() == before


# By notebook: a given model, the system and corpus that are named, and words that are shown.
# Published names in a file do not tell which system it holds, so that the user has to.
GIVEN = {
    "02_train_cleanumamba": (lambda: CleanUMamba(tiny_config()), "", "synthetic", "53,521"),
    "03_train_semamba": (
        *("golden/semamba/small_h16_n2/state.safetensors", "semamba_advanced", "synthetic"),
        "FrontEnd(n_fft=400, hop_length=100",
    ),
    "04_train_mpsenet_mamba": (
        *(lambda: launch.untrained(EXPERIMENTS["mpsenet-mamba-tiny"]), "", "synthetic"),
        "28,356 parameters",
    ),
    "05_train_sepmamba": (
        *("golden/sepmamba/small_noncausal/state.safetensors", "sepmamba_s", "two_speakers", ""),
    ),
    "06_train_umambanet": (
        *(lambda: ConvTasNet(conv_tasnet.CONFIGS["tiny"]), "", "two_speakers_noisy"),
        "Conv-TasNet",  # a model of another kind
    ),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_given_model_without_data(name, tmp_path, shared, prepared):
    """No training and no corpus: a stand-in is scored, all but the curves are drawn."""
    before, (given, system, corpus, words) = committed(), GIVEN[name]
    checkpoint = shared / given if isinstance(given, str) else tmp_path / "given.safetensors"
    if not isinstance(given, str):
        checkpoints.save(checkpoint, given())
    options = {"system": system} if system else {}
    options |= {"corpus": tmp_path / "nowhere" / corpus, "checkpoint": checkpoint}
    shown = run(f"{name}.ipynb", tmp_path, **options)
    assert "Missing inputs" in shown and f"speechlab data prepare {corpus}" in shown
    assert words in shown
    output, wanted = tmp_path / "runs" / "smoke", SMOKE[name]
    found = n_rows(output / "dev" / f"{checkpoint.stem}-given.csv")
    assert len(found) == len(wanted.systems) and set(found.values()) == {wanted.n_rows}
    kinds = {path.stem.rpartition("-given_")[2] for path in (output / "figures").iterdir()}
    assert kinds == {*wanted.figures} - {"training", "terms"}
    assert not (output / wanted.run).exists()
    assert committed() == before


# By notebook, besides SMOKE and GIVEN: functions of pytest's request and a folder for its results.
CHECKS = {
    "01_prepare_data.ipynb": (
        prepare_data_at_smoke_size,
        prepare_data_of_recordings,
        prepare_data_without_data,
    ),
    "02_train_cleanumamba.ipynb": (a_finished_run, a_run_of_the_same_name),
    "10_streaming_and_cost.ipynb": (streaming_at_smoke_size, streaming_without_data),
    "11_paper_tables.ipynb": (paper_tables_at_smoke_size, paper_tables_without_data),
}


def test_every_notebook_is_run():
    trained = {f"{name}.ipynb" for name in SMOKE.keys() & GIVEN.keys()}
    assert {path.name for path in NOTEBOOKS} == CHECKS.keys() | trained and all(CHECKS.values())


@pytest.mark.parametrize(
    "check",
    [check for checks in CHECKS.values() for check in checks],
    ids=lambda check: check.__name__,
)
def test_a_notebook_runs(check, request, tmp_path):
    before = committed()
    check(request, tmp_path)
    assert committed() == before


def test_example_enhance(shared, tmp_path):
    noisy = shared / "audio" / "pairs" / "dns2020_no_reverb" / "noisy" / "fileid_9.flac"
    environment = os.environ | {"SPEECHLAB_WEIGHTS": str(shared / "upstream_checkpoints")}
    example = EXAMPLES / "enhance.py"
    done = warm.run(example, noisy, tmp_path / "enhanced.wav", env=environment)
    assert done.returncode == 0, done.stderr
    assert soundfile.info(tmp_path / "enhanced.wav").frames == soundfile.info(noisy).frames
    paths = tmp_path / "nothing.wav", tmp_path / "out.wav"
    failed = warm.run(example, *paths, env=environment)
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1


def test_example_mixers():
    done = warm.run(EXAMPLES / "mixers.py")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + 5
