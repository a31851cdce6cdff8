"""The study runs what is not finished and keeps whole copies only."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from speechlab.data import manifest
from speechlab.errors import UserError
from speechlab.study import runner, schedule
from speechlab.study.experiments import EXPERIMENTS
from speechlab.study.runner import assignments, plan, run_study, source_hash, stale
from tests.support.study_toys import LIMIT_MIN, copies, printed, read, reason, run, wanted, write
from tests.support.warm import ROOT

pytestmark = pytest.mark.usefixtures("warm_papermill")
GOOD = ("from pathlib import Path", "#seed = 0\nrate = 1.0\ncorpus = '../corpus'", "print(seed)")


@pytest.fixture(scope="module", autouse=True)
def source():
    """The package's hash: one, while somebody writes on the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "source_hash", lambda: "the source")
        yield "the source"


@pytest.fixture(scope="module")
def ran(tmp_path_factory, warm_papermill):
    """A study of three notebooks, of which the second fails: its folder, outcomes and lines."""
    root, lines = tmp_path_factory.mktemp("study"), []
    write(root / "notebooks", "01_good", *GOOD, "print(open('01_good.ipynb').name)")
    write(root / "notebooks", "02_bad", "x = 1", "raise KeyError('no\\nway')", "print('after')")
    write(root / "notebooks", "03_sizes", '#profile = "quick"', "print(profile)")
    (root / "copies").mkdir()
    (root / "copies" / "03_sizes.failed.ipynb").write_text("of an earlier run")
    outcomes = run_study(wanted(root), LIMIT_MIN, tell=lines.append, progress=False)
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
    lines = runner.listing(wanted(finished))
    assert [line.partition(": ")[2] for line in lines] == ["finished", "not run yet", "finished"]


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
    first = runner._inputs(one)["../corpus"]
    prepared(finished, ["b"])
    assert first != runner._inputs(one)["../corpus"] == manifest.data_hash(finished / "corpus")


NOTED = """
from speechlab.study.notebooks import note_inputs
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
    for about, of_profile in runner.TRAINED.items():
        assert of_profile.keys() == runner.PROFILES.keys()
        names = {runner.experiment(profile, about) for profile in runner.PROFILES}
        assert names <= EXPERIMENTS.keys()
    assert runner.experiment("quick") == "cleanumamba-tiny"
    with pytest.raises(UserError, match="no profile 'huge'; there are: smoke, quick, real, paper"):
        runner.experiment("huge")


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
        (
            ["1"],
            {"fixed": {"sed": "1"}},
            "01_good.ipynb has no parameter 'sed' (did you mean 'seed'?); it has: seed, ",
        ),
        ([], {"each": {"seed": "1,2"}}, "02_bad.ipynb has no parameter 'seed'; it has none"),
        (["1"], {"each": {"seed": "1,x"}}, "seed must be a whole number, not 'x'"),
        (["1"], {"fixed": {"seed": "1"}, "each": {"seed": "2"}}, "seed is given to both"),
        (["9"], {}, "no notebook '9'; there are: 01_good, 02_bad, 03_sizes"),
        (
            ["3"],
            {"profile": "quickly"},
            "no profile 'quickly' (did you mean 'quick'?); there are: smoke, quick, ",
        ),
        (["3"], {"each": {"profile": "smoke,huge"}}, "no profile 'huge'"),
    ],
)
def test_what_is_unknown_is_refused_before_anything_runs(ran, names, options, told):
    with pytest.raises(UserError) as error:
        wanted(ran[0], *names, **options)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_publishing_sets_the_parameter_where_there_is_one(tmp_path):
    write(tmp_path / "notebooks", "01_one", "#publish = False\nseed = 0", "print(publish)")
    write(tmp_path / "notebooks", "02_other", "#seed = 0")
    usual, published = wanted(tmp_path), wanted(tmp_path, publish=True)
    assert [one.parameters for one in usual] == [{}, {}]
    assert [one.parameters for one in published] == [{"publish": True}, {}]
    assert published[0].copy != usual[0].copy and published[1].copy == usual[1].copy
    with pytest.raises(UserError, match="a run of smoke size is never published"):
        wanted(tmp_path, publish=True, profile="smoke")


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


def test_the_whole_study_takes_less_than_a_quarter_of_an_hour(tmp_path):
    """By the minutes of each notebook on two quiet cores; a new notebook comes with its own."""
    sets = plan(folder=ROOT / "notebooks", copies=tmp_path)
    assert {one.name[:2] for one in sets} == schedule.MINUTES.keys()
    assert schedule.planned_s(sets, jobs=2) < 15 * 60 < schedule.planned_s(sets, jobs=1)


def test_the_longest_start_first(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "MINUTES", {"02": 3.0, "03": 4.5, "04": 4.5, "10": 1.0})
    write(tmp_path / "notebooks", "03_known", "x = 1")
    for name in ("02_b", "04_c", "10_d"):
        write(tmp_path / "notebooks", name, "x = 1")
    sets = wanted(tmp_path)
    (tmp_path / "copies").mkdir()
    sets[1].copy.write_text('{"metadata": {"speechlab": {"seconds": 500}}}')
    assert [schedule.expected_s(one) for one in sets] == [180, 500, 270, 60]
    [(lanes, longest_first), (alone, _)] = schedule.groups(sets, 2)
    assert (lanes, alone) == (2, 1)
    assert [one.name for one in longest_first] == ["03_known", "04_c", "02_b"]
    assert schedule.planned_s(sets, 2) == 500 + 60
    assert schedule.planned_s(wanted(tmp_path, "4", profile="real"), 2) == 0  # not known


@pytest.mark.parametrize(
    ("planned_s", "took_s", "work_s", "said"),
    [
        (300, 60, 0, "about 04:00 left"),
        (300, 60, 200, "about 04:00 left"),
        (300, 60, 600, "longer than the planned 05:00, at least 10:00 left"),
        (300, 400, 0, "longer than the planned 05:00"),
        (0, 400, 90, "at least 01:30 left"),
        (0, 400, 0, ""),
        (90_000, 3600, 0, "about 24:00:00 left"),
    ],
)
def test_one_time_is_left_of_a_notebook(planned_s, took_s, work_s, said):
    """That of the plan, unless the running work alone takes longer."""
    assert schedule.left(planned_s, took_s, work_s) == said


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
    heavy = {"torch", "pandas", "papermill"}
    code = f"import sys, speechlab.study.runner; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_the_repository_s_notebooks_can_be_planned():
    sets = plan(folder=ROOT / "notebooks", profile="smoke")
    assert [one.name for one in sets] == sorted(one.name for one in sets) and sets
    assert all(one.parameters == {"profile": "smoke"} for one in sets)
