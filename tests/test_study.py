"""The study runs what is not finished, keeps whole copies only, and leaves nothing running."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from speechlab import study
from speechlab.corpora import manifest
from speechlab.errors import UserError
from speechlab.experiments import EXPERIMENTS
from speechlab.study import assignments, plan, run_study, source_hash, stale

GOOD = ("from pathlib import Path", "#seed = 0\nrate = 1.0\ncorpus = '../corpus'", "print(seed)")
ENDLESS = """
import time
from pathlib import Path
while True:
    Path("../beats").open("a").write("x")
    time.sleep(0.05)
"""
# A script for a process of its own, which can be interrupted or killed.
SCRIPT = """
from speechlab.study import plan, run_study
if __name__ == "__main__":
    run_study(plan(folder="notebooks", copies="copies"), progress=False, jobs=2)
"""


def write(folder, name, *cells):
    """A notebook; the cell that begins with # is its parameters cell, without the #."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    notebook.cells = [nbformat.v4.new_markdown_cell("# Is it?")]
    for text in cells:
        tags = {"tags": ["parameters"]} if text.startswith("#") else {}
        notebook.cells.append(nbformat.v4.new_code_cell(text.removeprefix("#"), metadata=tags))
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


def wanted(root, *names, **options):
    """The plan for the notebooks in root/notebooks."""
    return plan(names, folder=root / "notebooks", copies=root / "copies", **options)


def run(root, *names, minutes=1.0, jobs=1, **options):
    return run_study(wanted(root, *names, **options), minutes, progress=False, jobs=jobs)


def copies(root):
    return sorted(path.name for path in (root / "copies").glob("*"))


def read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def printed(path):
    outputs = [out for cell in read(path).cells for out in cell.get("outputs", [])]
    return "".join(out.get("text", "") for out in outputs)


@pytest.fixture(scope="module", autouse=True)
def source():
    """The package's hash: one, while somebody writes on the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "source_hash", lambda: "the source")
        yield "the source"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study of three notebooks, of which the second fails: its folder, outcomes and lines."""
    root, lines = tmp_path_factory.mktemp("study"), []
    write(root / "notebooks", "01_good", *GOOD, "print(open('01_good.ipynb').name)")
    write(root / "notebooks", "02_bad", "x = 1", "raise KeyError('no\\nway')", "print('after')")
    write(root / "notebooks", "03_sizes", '#profile = "quick"', "print(profile)")
    (root / "copies").mkdir()
    (root / "copies" / "03_sizes.failed.ipynb").write_text("of an earlier run")
    outcomes = run_study(wanted(root), 1.0, tell=lines.append, progress=False)
    return root, outcomes, lines


@pytest.fixture
def finished(ran, tmp_path):
    """The same folder for one test to change."""
    shutil.copytree(ran[0], tmp_path / "study")
    return tmp_path / "study"


def test_the_rest_go_on_after_a_failure(ran):
    root, outcomes, lines = ran
    assert [one.status for one in outcomes] == ["done", "failed", "done"], lines
    assert copies(root) == ["01_good.ipynb", "02_bad.failed.ipynb", "03_sizes.ipynb"]
    assert [one.line for one in outcomes] == lines
    assert printed(root / "copies" / "01_good.ipynb") == "0\n01_good.ipynb\n"  # in its own folder
    assert printed(root / "copies" / "03_sizes.ipynb") == "quick\n"


def test_a_failure_is_one_line_with_cell_and_error(ran):
    root, _, lines = ran
    assert "\n" not in lines[1] and "in cell In [2]: KeyError: 'no\\nway'" in lines[1]
    failed = root / "copies" / "02_bad.failed.ipynb"
    assert lines[1].endswith(f"; kept: {failed}")
    assert any(cell.get("execution_count") == 2 and cell.outputs for cell in read(failed).cells)
    assert "after" not in printed(failed)


def test_a_copy_tells_what_it_was_made_from(ran):
    stamp = read(ran[0] / "copies" / "03_sizes.ipynb").metadata["speechlab"]
    assert stamp["made_from"]["parameters"] == {"profile": "quick"}
    assert stamp["made_from"]["source"] == "the source"
    assert {"git_commit", "versions", "seconds"} <= stamp.keys() and stamp["error"] == ""
    path = read(ran[0] / "copies" / "01_good.ipynb").metadata.papermill.input_path
    assert Path(path) == ran[0] / "notebooks" / "01_good.ipynb"  # no temporary one


def test_what_is_finished_is_not_run_again(finished):
    before = {path: path.read_bytes() for path in (finished / "copies").iterdir()}
    outcomes = run(finished, "1", "03_sizes")
    assert [one.status for one in outcomes] == ["finished", "finished"]
    assert {path: path.read_bytes() for path in (finished / "copies").iterdir()} == before
    lines = study.listing(wanted(finished))
    assert [line.partition(": ")[2] for line in lines] == ["finished", "not run yet", "finished"]


def reason(root, name, **options):
    [one] = wanted(root, name, **options)
    return stale(one, study.source_hash())


def prepared(root, names):
    items = [manifest.Item(name, "speech", f"{name}.wav", 16000, 16000) for name in names]
    manifest.write(root / "corpus", {"train": items}, {"name": "x"})


def test_what_makes_a_copy_stale(finished):
    assert reason(finished, "1") == ""
    [one] = wanted(finished, "1")
    assert stale(one, "another source") == "changed since: source"
    prepared(finished, ["a"])
    assert reason(finished, "1") == "changed since: inputs"
    assert reason(finished, "3") == ""  # it names no corpus
    assert reason(finished, "1", fixed={"seed": "0"}) == "not run yet"  # a set of its own
    write(finished / "notebooks", "01_good", *GOOD, "print('new')")
    assert reason(finished, "1").startswith("changed since: notebook")
    (finished / "copies" / "03_sizes.ipynb").write_text("{}")
    assert reason(finished, "3") == "its copy has no stamp"


def test_the_data_of_a_corpus_count_and_its_place_does_not(finished):
    prepared(finished, ["a"])
    [one] = wanted(finished, "1")
    first = study._inputs(one)["../corpus"]
    prepared(finished, ["b"])
    assert first != study._inputs(one)["../corpus"] == manifest.data_hash(finished / "corpus")


NOTED = """
from speechlab.notebooks import note_inputs
note_inputs({"quick": "../small", "real": "../corpus"}[profile])"""


def test_what_a_notebook_said_it_read_counts(tmp_path):
    """Its parameters need not name it; and a corpus that came later counts as one that changed."""
    write(tmp_path / "notebooks", "01_one", '#profile = "quick"', NOTED)
    run(tmp_path, profile="real")
    options = {"profile": "real"}
    assert reason(tmp_path, "1", **options) == ""
    prepared(tmp_path, ["a"])  # in ../corpus, where nothing was
    assert reason(tmp_path, "1", **options) == "changed since: inputs"
    run(tmp_path, profile="real")
    [one] = wanted(tmp_path, "1", **options)
    stamp = read(one.copy).metadata["speechlab"]["made_from"]["inputs"]
    assert stamp == {"../corpus": manifest.data_hash(tmp_path / "corpus")}
    assert reason(tmp_path, "1", **options) == ""
    prepared(tmp_path, ["b"])  # another corpus stands there now
    assert reason(tmp_path, "1", **options) == "changed since: inputs"
    (tmp_path / "corpus" / "train.csv").write_text("x")
    assert reason(tmp_path, "1", **options) == "changed since: inputs"  # damaged, told when it runs
    assert "Read here" in str(read(one.copy).cells) and "data " in str(read(one.copy).cells)


def test_every_profile_has_an_experiment():
    for about, of_profile in study.TRAINED.items():
        assert of_profile.keys() == study.PROFILES.keys()
        names = {study.experiment(profile, about) for profile in study.PROFILES}
        assert names <= EXPERIMENTS.keys()
    assert study.experiment("quick") == "cleanumamba-tiny"
    with pytest.raises(UserError, match="no profile 'huge'; there are: smoke, quick, real, paper"):
        study.experiment("huge")


def test_running_a_notebook_by_hand_leaves_its_copy_finished(finished):
    path = finished / "notebooks" / "01_good.ipynb"
    opened = nbformat.read(path, as_version=4)
    opened.cells[1].execution_count = 5
    opened.metadata["widgets"] = {}
    nbformat.write(opened, path)
    assert reason(finished, "1") == ""


def test_a_notebook_that_dies_leaves_the_earlier_copy(finished):
    earlier = (finished / "copies" / "01_good.ipynb").read_bytes()
    write(finished / "notebooks", "01_good", *GOOD, "import os", "os._exit(3)")
    [outcome] = run(finished, "1")
    assert outcome.status == "failed" and "in cell In [5]: " in outcome.line
    assert "died" in outcome.line
    assert (finished / "copies" / "01_good.ipynb").read_bytes() == earlier
    assert "01_good.failed.ipynb" in copies(finished)


def test_a_product_of_parameters(finished):
    asked = wanted(finished, "1", fixed={"rate": "2"}, each={"seed": "3,4", "corpus": "a/b,c"})
    given = [(one.parameters["seed"], one.parameters["corpus"]) for one in asked]
    assert given == [(3, "a/b"), (3, "c"), (4, "a/b"), (4, "c")]
    assert asked[1].copy.name == "01_good__corpus=c__rate=2__seed=3.ipynb"
    assert len({one.copy for one in asked}) == 4  # a/b is spelled, with a hash behind
    assert wanted(finished, "1", each={"seed": "3,3"}) == wanted(finished, "1", each={"seed": "3"})
    assert wanted(finished, "3", profile="smoke")[0].copy.name == "03_sizes__profile=smoke.ipynb"
    assert wanted(finished, "1", profile="smoke")[0].parameters == {}  # it has no profile


@pytest.mark.parametrize(
    ("names", "options", "told"),
    [
        (["1"], {"fixed": {"sed": "1"}}, "01_good.ipynb has no parameter 'sed'; it has: seed, "),
        ([], {"each": {"seed": "1,2"}}, "02_bad.ipynb has no parameter 'seed'; it has none"),
        (["1"], {"each": {"seed": "1,x"}}, "seed must be a whole number, not 'x'"),
        (["1"], {"fixed": {"seed": "1"}, "each": {"seed": "2"}}, "seed is given to both"),
        (["9"], {}, "no notebook is called '9'; there are: 01_good, 02_bad, 03_sizes"),
        (["3"], {"profile": "quickly"}, "no profile 'quickly'; there are: smoke, quick, "),
        (["3"], {"each": {"profile": "smoke,huge"}}, "no profile 'huge'"),
    ],
)
def test_what_is_unknown_is_refused_before_anything_runs(ran, names, options, told):
    with pytest.raises(UserError) as error:
        wanted(ran[0], *names, **options)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_study(tmp_path):
    with pytest.raises(UserError, match="holds no numbered notebooks"):
        wanted(tmp_path)


def test_assignments():
    assert assignments(["a=1,2", "b=x=y", "c="]) == {"a": "1,2", "b": "x=y", "c": ""}
    for words in (["a"], ["=1"], ["a=1", "a=2"], ["a b=1"]):
        with pytest.raises(UserError):
            assignments(words)


def test_the_limit_is_a_time(ran):
    with pytest.raises(UserError, match="must be more than 0 minutes"):
        run(ran[0], "1", minutes=0.0)


def still(path, seconds=1.5):
    """Whether a file stays as it is."""
    before = path.stat().st_size
    time.sleep(seconds)
    return path.stat().st_size == before


def test_an_endless_notebook_ends_with_its_time_limit(tmp_path):
    write(tmp_path / "notebooks", "01_endless", "x = 1", ENDLESS)
    began = time.monotonic()
    [outcome] = run(tmp_path, minutes=0.1)
    assert 6 < time.monotonic() - began < 30
    assert "in cell In [2]: stopped at its limit of 0.1 min" in outcome.line
    assert copies(tmp_path) == ["01_endless.failed.ipynb"]
    assert still(tmp_path / "beats")


MEETING = """
import os, time
from pathlib import Path
Path("../here-{me}").touch()
deadline = time.monotonic() + 60
while not Path("../here-{other}").exists():
    assert time.monotonic() < deadline
    time.sleep(0.05)
print("threads", os.environ.get("OMP_NUM_THREADS"))
"""


def test_trainings_stand_side_by_side(tmp_path, monkeypatch):
    """Two that wait for each other end; the first and the last are alone, and outcomes in order."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("speechlab.processes.n_processors", lambda: 6)
    folder = tmp_path / "notebooks"
    for number, other in (("02", "03"), ("03", "02")):
        write(folder, f"{number}_train", MEETING.format(me=number, other=other))
    seen = "from pathlib import Path\nprint(len(list(Path('..').glob('here-*'))))"
    for name in ("01_data", "10_tables"):
        write(folder, name, seen)
    outcomes = run(tmp_path, jobs=2)
    names = [outcome.wanted.name for outcome in outcomes]
    assert names == ["01_data", "02_train", "03_train", "10_tables"]
    lines = [outcome.line for outcome in outcomes]
    assert [outcome.status for outcome in outcomes] == ["done"] * 4, lines
    said = [read(one.wanted.copy).cells[-1].outputs[0].text.split() for one in outcomes]
    assert said == [["0"], ["threads", "3"], ["threads", "3"], ["2"]]


def hears_ctrl_c():
    """As a program begun in the foreground does; tests may have been begun in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("name", ["01_endless", "02_endless"])
def test_killed_in_the_middle(tmp_path, end, name):
    """No half copy, nothing left running; and the next run is as if there had been none before."""
    write(tmp_path / "notebooks", name, "x = 1", ENDLESS)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.DEVNULL,
        preexec_fn=hears_ctrl_c,
    )
    beats = tmp_path / "beats"
    deadline = time.monotonic() + 60
    while not beats.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(end)
    process.wait(20)
    deadline = time.monotonic() + 15
    while not still(beats, 1.0) and time.monotonic() < deadline:
        pass
    assert still(beats, 0.5)
    assert copies(tmp_path) == []
    assert reason(tmp_path, name) == "not run yet"


def test_the_source_is_what_is_imported(tmp_path):
    """Names and content of modules and tables; not what Python and people leave beside them."""
    (tmp_path / "layers").mkdir()
    hashes = []
    for name, text in (("a.py", "1"), ("a.py", "2"), ("layers/b.csv", ""), ("layers/c.csv", "")):
        (tmp_path / name).write_text(text)
        hashes.append(source_hash(tmp_path))
    (tmp_path / "layers" / "a.pyc").write_text("")
    assert len(set(hashes)) == 4 and source_hash(tmp_path) == hashes[-1]


def test_the_module_is_light():
    """Planning and refusing need neither PyTorch nor papermill."""
    code = "import sys, speechlab.study; print({'torch', 'pandas', 'papermill'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_the_repository_s_notebooks_can_be_planned():
    root = Path(__file__).resolve().parents[1]
    sets = plan(folder=root / "notebooks", profile="smoke")
    assert [one.name for one in sets] == sorted(one.name for one in sets) and sets
    assert all(one.parameters == {"profile": "smoke"} for one in sets)
