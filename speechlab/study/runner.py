"""The study: runs the numbered notebooks with papermill, each in a subprocess.

Every parameter set of a notebook has one executed copy, `NAME.ipynb` or `NAME__key=value.ipynb`.
Its metadata under "speechlab" records what it was made from. The copy is finished, and its
notebook is not run again, as long as none of these changes:

| notebook   | its cells; outputs do not count                                              |
| source     | the package's modules, tables and styles                                     |
| parameters | their values, the profile included                                           |
| inputs     | paths in the parameters and inputs noted by the notebook: a prepared corpus  |
|            | by its data hash, a run by its best model, a file by its SHA-256, any other  |
|            | folder and published weights by whether they exist                           |

Commit, versions and time are recorded but do not count. Deleted results of a notebook are not
detected: `overwrite` runs it again. A failed notebook is kept as `NAME.failed.ipynb`, and an
earlier copy stays; the other notebooks are run, since most do not need it. A notebook works in a
temporary folder (`execution`) until it ends, so no copy is incomplete.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from speechlab.errors import UserError, unknown
from speechlab.progress import Tell, clock
from speechlab.storage.atomic import sha256, write
from speechlab.study import execution, schedule
from speechlab.study.notebooks import (
    ABSENT,
    FIRST,
    NUMBERED,
    Notebook,
    content,
    noted_inputs,
    source,
)
from speechlab.study.schedule import QUICK

FOLDER = Path("notebooks")
COPIES = Path("results/notebooks")
PROFILES = {"smoke": 5, "quick": 30, "real": 24 * 60, "paper": 14 * 24 * 60}  # time limit, minutes
TRAINED = {  # subject of a notebook: the experiment of each profile
    subject: {"smoke": tiny, "quick": tiny, "real": real, "paper": paper}
    for subject, tiny, real, paper in (
        ("cleanumamba", "cleanumamba-tiny", "cleanumamba-442k-voicebank", "cleanumamba-442k"),
        ("semamba", "semamba-tiny", "semamba", "semamba"),
        ("mpsenet", "mpsenet-mamba-tiny", "mpsenet-mamba", "mpsenet-mamba"),
        ("sepmamba", "sepmamba-tiny", "sepmamba-s", "sepmamba-m"),
        ("umambanet", "umambanet-tiny", "umambanet", "umambanet"),
    )
}
FEW_STEPS = {  # changes that shorten a training to seconds, to check that everything runs
    "n_per_epoch": 8,
    "mixture.segment_s": 0.5,
    "training.batch_size": 2,
    "training.n_steps": 4,
    "training.validate_every": 2,
    "training.log_every": 1,
}


@dataclass(frozen=True)
class ParameterSet:
    """One run of a notebook."""

    notebook: Notebook
    profile: str
    parameters: Mapping[str, Any]  # of papermill
    copy: Path

    @property
    def name(self) -> str:
        return self.copy.stem

    @property
    def failed_copy(self) -> Path:
        return self.copy.with_suffix(".failed.ipynb")


@dataclass(frozen=True)
class Outcome:
    wanted: ParameterSet
    status: str  # done, finished (earlier; not run again) or failed
    line: str  # message
    seconds: float = 0.0


def plan(
    names: Sequence[str] = (),
    profile: str = QUICK,
    fixed: Mapping[str, str] | None = None,
    each: Mapping[str, str] | None = None,
    folder: str | Path = FOLDER,
    copies: str | Path = COPIES,
    only: int | None = None,
    publish: bool = False,
) -> list[ParameterSet]:
    """The parameter sets of the given notebooks. UserError for an unknown name or parameter.

    names: numbers or names of notebooks; default: all
    profile: key of PROFILES
    fixed: values for all, {"seed": "1"}
    each: values to combine, {"seed": "0,1,2"}; every notebook must have these parameters
    folder: of the notebooks
    copies: folder of the executed copies
    only: number of one set, from 0, for a task of a cluster's job array
    publish: set the parameter of that name in every notebook that has it
    """
    fixed, each = dict(fixed or {}), dict(each or {})
    if publish and profile == "smoke":
        raise UserError("--publish --profile smoke: a run of smoke size is never published")
    if twice := fixed.keys() & each.keys():
        raise UserError(f"{min(twice)} is given to both --set and --each; choose one")
    products = itertools.product(*(dict.fromkeys(text.split(",")) for text in each.values()))
    asked = [fixed | dict(zip(each, values, strict=True)) for values in products]
    notebooks = [Notebook.read(path) for path in _chosen(names, Path(folder))]
    sets = [
        _set(one, profile, words, Path(copies), publish) for one in notebooks for words in asked
    ]
    if only is not None and not 0 <= only < len(sets):
        raise UserError(f"--only {only}: the sets are numbered 0 to {len(sets) - 1}; see --list")
    return sets if only is None else [sets[only]]


def experiment(profile: str, about: str = "cleanumamba") -> str:
    """The experiment of a subject at a profile. UserError for an unknown profile."""
    return TRAINED[about][_known(profile)]


def stand_in(folder: str | Path, corpus: str = "synthetic") -> Path:
    """A tiny corpus in `folder`, for a notebook without data; made unless it exists.

    corpus: "synthetic" or a corpus made from it; any other name gives "synthetic".
    """
    from speechlab.config import override
    from speechlab.data.corpora import catalogue, synthetic, two_speakers

    target, corpus = Path(folder) / "synthetic", catalogue.current(corpus)
    synthetic.prepare(target, override(synthetic.SMOKE, jobs=1), print)
    if corpus not in two_speakers.SMOKE:
        return target
    config = override(two_speakers.SMOKE[corpus], source=str(target), jobs=1)
    catalogue.lookup(corpus).prepare(target.with_name(corpus), config, print)
    return target.with_name(corpus)


def assignments(words: Iterable[str]) -> dict[str, str]:
    """["seed=0,1", "rate=2"] -> {"seed": "0,1", "rate": "2"}. UserError for any other form."""
    pairs = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"'{word}' is not of the form key=value")
        if key in pairs:
            raise UserError(f"{key} is given twice")
        pairs[key] = text
    return pairs


def run_study(
    wanted: Sequence[ParameterSet],
    time_limit_min: float | None = None,
    overwrite: bool = False,
    tell: Tell = lambda line: None,
    progress: bool = True,
    jobs: int = 1,
) -> list[Outcome]:
    """Run unfinished parameter sets; returns an outcome for each, in their order.

    time_limit_min: of each notebook; default: its profile's
    overwrite: run finished ones too
    tell: takes one line per outcome
    progress: tell also what starts, what runs every half minute, and a summary
    jobs: notebooks about trainings that run in parallel; they share the cores
    """
    if time_limit_min is not None and not time_limit_min > 0:
        raise UserError(f"--time-limit {time_limit_min:g}: must be more than 0 minutes")
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: must be 1 or more")
    stopping, said = threading.Event(), tell if progress else lambda line: None

    def outcome(one: ParameterSet, jobs: int) -> Outcome:
        digest = source_hash()  # now, as the source may change during a long study
        reason = "asked for" if overwrite else stale(one, digest)
        minutes = time_limit_min or PROFILES[one.profile]
        if reason:
            found = _run(one, digest, minutes, said, jobs, stopping)
        else:
            found = Outcome(one, "finished", f"{one.name}: finished before, {one.copy}")
        tell(found.line)
        return found

    began, outcomes = time.monotonic(), {}
    minutes = schedule.planned_s(wanted, jobs) / 60
    said(f"{len(wanted)} notebooks, about {minutes:.0f} min unless some are finished")
    for lanes, group in schedule.groups(wanted, jobs):
        with ThreadPoolExecutor(lanes) as threads:
            try:
                found = list(threads.map(partial(outcome, jobs=lanes), group))
            finally:  # an interrupt stops all
                stopping.set()
                threads.shutdown(cancel_futures=True)
        outcomes |= {one.wanted.copy: one for one in found}
        stopping.clear()
    for line in schedule.summary(list(outcomes.values()), time.monotonic() - began):
        said(line)
    return [outcomes[one.copy] for one in wanted]


def listing(wanted: Sequence[ParameterSet]) -> list[str]:
    """A line per set: its number from 0, its name, and why it would run or that it is finished."""
    digest, lines = source_hash(), []
    for number, one in enumerate(wanted):
        lines.append(f"{number}  {one.name}: {stale(one, digest) or 'finished'}")
    return lines


def stale(wanted: ParameterSet, digest: str) -> str:
    """Why the notebook must run; "" if its copy is finished. digest: `source_hash()`."""
    if not wanted.copy.exists():
        return "not run yet"
    try:
        held = json.loads(wanted.copy.read_text(encoding="utf-8"))
        known, noted = held["metadata"]["speechlab"]["made_from"], noted_inputs(held)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its copy has no stamp"
    noted = {path: _content(wanted.notebook.path.parent / path) for path in noted}
    now = _made_from(wanted, digest, noted)
    changed = [key for key, value in now.items() if known.get(key) != value]
    return f"changed since: {', '.join(changed)}" if changed else ""


def source_hash(package: Path = Path(__file__).parents[1]) -> str:
    """SHA-256 over the package's modules, tables and styles, names and content."""
    digest = hashlib.sha256()
    files = (path for path in package.rglob("*") if path.suffix in (".py", ".csv", ".mplstyle"))
    for path in sorted(files):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(bytes.fromhex(sha256(path)))
    return digest.hexdigest()


def _chosen(names: Sequence[str], folder: Path) -> list[Path]:
    known = sorted(path for path in folder.glob(NUMBERED) if path.name != FIRST)
    if not known:
        raise UserError(f"{folder} holds no numbered notebooks; run this where the study lies")
    for name in names:
        if not any(_is_called(path, name) for path in known):
            raise unknown("notebook", name, (path.stem for path in known))
    return [path for path in known if not names or any(_is_called(path, name) for name in names)]


def _is_called(path: Path, name: str) -> bool:
    return name in (path.stem, path.name) or (name.isdecimal() and int(name) == int(path.name[:2]))


def _known(profile: str) -> str:
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    return profile


def _set(
    notebook: Notebook, profile: str, words: dict[str, str], copies: Path, publish: bool
) -> ParameterSet:
    if publish and "publish" in notebook.defaults:
        words = words | {"publish": "true"}
    if "profile" in notebook.defaults:
        words = {"profile": profile} | words
    profile = _known(words.get("profile", profile))
    parameters = {key: notebook.value(key, text) for key, text in words.items()}
    shown = {key: text for key, text in words.items() if (key, text) != ("profile", QUICK)}
    copy = copies / f"{_file_name(notebook.name, shown)}.ipynb"
    return ParameterSet(notebook, profile, parameters, copy)


def _file_name(stem: str, words: Mapping[str, str]) -> str:
    """A readable file name; a hash makes it unique if a value is long or has special characters."""
    full = "__".join([stem, *(f"{key}={text}" for key, text in sorted(words.items()))])
    name = re.sub(r"[^\w.+=-]", "-", full, flags=re.ASCII)[:120]
    odd = name != full
    return f"{name}__{hashlib.sha256(full.encode()).hexdigest()[:8]}" if odd else name


def _made_from(wanted: ParameterSet, digest: str, noted: Mapping[str, str]) -> dict[str, Any]:
    return {
        "notebook": wanted.notebook.digest,
        "source": digest,
        "parameters": json.loads(json.dumps(dict(wanted.parameters))),
        "inputs": _inputs(wanted) | dict(noted),
    }


def _inputs(wanted: ParameterSet) -> dict[str, str]:
    """Existing paths in the parameters, with their hash or the word "there"."""
    from speechlab.weights import hub

    published, found = {file.name for file in hub.published()}, {}
    for text in sorted(wanted.notebook.strings(wanted.parameters)):
        with contextlib.suppress(OSError, ValueError, UserError):
            if text in published and hub.find(text):
                found[text] = "there"
            elif text and (now := content(wanted.notebook.path.parent / text)) != ABSENT:
                found[text] = now
    return found


def _content(path: Path) -> str:
    try:
        return content(path)
    except (OSError, UserError):
        return "damaged"


def _run(
    wanted: ParameterSet,
    digest: str,
    minutes: float,
    said: Tell,
    jobs: int,
    stopping: threading.Event,
) -> Outcome:
    """Execute one notebook of `jobs` and keep its copy or its failed copy."""
    began, planned_s = time.monotonic(), schedule.expected_s(wanted)
    planned = f"planned {clock(planned_s)}" if planned_s else "its time is not known"
    said(f"{wanted.name}: starts; {planned}, at most {clock(60 * minutes)}")

    def watch(now: str, work_s: float) -> None:
        left = schedule.left(planned_s, time.monotonic() - began, work_s)
        said(f"{wanted.name}: {', '.join(filter(None, (now, left)))}")

    end = execution.execute(wanted.notebook, wanted.parameters, minutes, watch, jobs, stopping)
    path = wanted.failed_copy if end.error else wanted.copy
    if end.executed:
        made_from = _made_from(wanted, digest, noted_inputs(end.executed))
        stamp = {"made_from": made_from, "profile": wanted.profile}
        stamp |= {"seconds": round(end.seconds, 1), "error": end.error}
        _keep(wanted, end.executed, stamp, path)
    if end.error:
        kept = f"; kept: {path}" if end.executed else ""
        line = f"{wanted.name}: failed after {end.seconds:.0f} s {end.error}{kept}"
        return Outcome(wanted, "failed", line, end.seconds)
    wanted.failed_copy.unlink(missing_ok=True)
    line = f"{wanted.name}: done in {end.seconds:.0f} s, {path}"
    return Outcome(wanted, "done", line, end.seconds)


def _keep(wanted: ParameterSet, executed: dict, stamp: Mapping[str, Any], path: Path) -> None:
    from speechlab.training.runs import environment

    home = os.path.relpath(wanted.notebook.path.parent, path.parent)
    for cell in executed["cells"]:  # links of the text count from the notebook's folder
        if cell["cell_type"] == "markdown":
            cell["source"] = source(cell).replace("](../", f"]({home}/../")
    executed["metadata"]["speechlab"] = dict(stamp) | environment()
    paths = {"input_path": wanted.notebook.path.as_posix(), "output_path": path.as_posix()}
    executed["metadata"].setdefault("papermill", {}).update(paths)
    write(path, json.dumps(executed, indent=1, ensure_ascii=False) + "\n")
