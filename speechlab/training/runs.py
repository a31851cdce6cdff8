"""Runs: a folder per training with its settings, logs and checkpoints.

| file                        | holds                                                           |
|-----------------------------|-----------------------------------------------------------------|
| config.json                 | experiment and training configuration with the seed, data hash, |
|                             | git commit, package versions, thread count, later changes       |
| history.csv                 | loss, its terms, gradient norm, learning rate, by step          |
| validations.csv             | mean of each metric over the dev files, by step; step 0: of the |
|                             | initial checkpoint, if any                                      |
| best.safetensors, best.json | the best model on dev, for `load`                               |
| dev.csv                     | one row per dev file, of the best model                         |
| last.safetensors            | the state of the training, to resume from, with a digest        |
| previous.safetensors        | the state before that, in case the last one is damaged          |

All but the weights are plain JSON and CSV. A lock keeps a second process out of a run.
"""

import contextlib
import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlab.errors import UserError, reason, shown
from speechlab.storage import locks, state
from speechlab.storage.atomic import keep, unfinished, write
from speechlab.version import __version__

if TYPE_CHECKING:  # imported on use: torch and pandas take seconds, `speechlab runs` needs none
    import pandas as pd

FOLDER = Path("results/runs")  # default folder of runs
PACKAGES = ("torch", "numpy", "scipy", "numba", "soundfile", "soxr", "safetensors", "pandas")
# Code that can change a number; a study hashes the cells of its notebooks itself.
CODE = ("speechlab", "gradio_app", "benchmarks", "examples", "pyproject.toml", "constraints.txt")
N_NAMED = 5  # differing settings in a message
KINDS = {"created": str, "data_hash": str, "git_commit": str, "config": dict, "training": dict}


def _table(name: str) -> property:
    """A property of a run: its table `<name>.csv`, empty before the first row."""

    def table(run: "Run") -> "pd.DataFrame":
        import pandas as pd

        try:
            return pd.read_csv(run.folder / f"{name}.csv")
        except (FileNotFoundError, pd.errors.EmptyDataError):  # missing, or being written
            return pd.DataFrame()

    return property(table)


@dataclass(frozen=True)
class Run:
    """A run directory; `start` makes or resumes one, `open` only reads."""

    folder: Path

    @classmethod
    def create(cls, folder: str | Path, config: Mapping[str, Any], data_hash: str = "") -> "Run":
        """A new run. config: the experiment as JSON types. UserError for a folder with files."""
        run = cls(Path(folder))
        if run._config.exists():
            raise UserError(f"{folder}: holds a run already; choose another name, or resume it")
        run._refuse_foreign()
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        known = {"config": dict(config), "data_hash": data_hash, "created": created}
        run._write_settings(known | environment())
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """The run in this folder. UserError if there is none."""
        run = cls(Path(folder))
        _ = run.settings
        return run

    @classmethod
    def start(
        cls,
        folder: str | Path,
        config: Mapping[str, Any],
        data_hash: str = "",
        completed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    ) -> "Run":
        """The run in this folder, or a new one. UserError if it has other settings.

        completed: adds settings that are newer than the run to those that it holds.

        Of several processes (torchrun) only the writer reads and writes.
        """
        from speechlab.training.distributed import is_writer

        run = cls(Path(folder))
        if not is_writer():
            return run
        if not run._config.exists():
            return cls.create(folder, config, data_hash)
        held = run.settings
        if held["data_hash"] != data_hash:
            raise UserError(f"{folder}: was begun on other data (its hash differs); {_REMEDY}")
        run._refuse_other(completed(held["config"]), _json(config))
        return run

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    @property
    def previous(self) -> Path:
        return self.folder / "previous.safetensors"

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def settings(self) -> dict[str, Any]:
        """What config.json holds. UserError where it is missing or damaged."""
        try:
            known = _object(self._config)
            if not {"config", "data_hash", "created"} <= set(known):
                raise ValueError("it lacks config, data_hash or created")
            for name, kind in KINDS.items():
                if not isinstance(known.get(name, kind()), kind):
                    raise ValueError(f"its {name} is of another type")
        except FileNotFoundError as error:
            raise UserError(
                f"{self.folder}: holds no run (no config.json); `speechlab runs` lists them"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._config}: not readable ({reason(error)}); restore it"
            ) from error
        return known

    history = _table("history")  # one row per interval of steps
    validations = _table("validations")  # one per validation: step, mean of each metric, n_failed
    dev = _table("dev")  # one per dev file, of the best model

    @property
    def best_known(self) -> dict[str, Any]:
        """What best.json holds: step, metric, score, mean of each metric; empty without one."""
        try:
            return _object(self.folder / "best.json")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.folder / 'best.json'}: damaged ({reason(error)}); delete it"
            ) from error

    @property
    def step(self) -> int:
        """Steps that the last checkpoint has done; 0 without one."""
        return self.progress.get("step", 0)

    @property
    def progress(self) -> dict[str, Any]:
        """The numbers of the last checkpoint: step, ended and others; empty without one."""
        with self.offering_previous():
            return state.values(self.last) if self.last.exists() else {}

    def keep(self, content: bytes) -> None:
        """Write the last state; the one before becomes the previous one. UserError if it fails."""
        if self.last.exists():
            keep(self.last, self.previous)
        write(self.last, content)

    @contextlib.contextmanager
    def offering_previous(self) -> Iterator[None]:
        """To a UserError about the last state, add the command that uses the previous one."""
        try:
            yield
        except UserError as error:
            try:
                step = state.values(self.previous)["step"]
            except (UserError, KeyError):
                raise error from None
            files = " ".join(shlex.quote(str(path)) for path in (self.previous, self.last))
            raise UserError(
                f"{error}; to resume from step {step}, the state before: `mv {files}`, and run the "
                "command again"
            ) from error

    def agree(self, training: Mapping[str, Any], free: tuple[str, ...]) -> None:
        """Record the training configuration; UserError if it differs in a setting not in `free`.

        A run of an older version lacks newer settings and takes those given. A change of the
        environment is recorded too.
        """
        known, asked, now = self.settings, _json(training), environment()
        if held := known.get("training"):
            unlike = {k: v for k, v in asked.items() if k not in free and k in held}
            self._refuse_other({k: held[k] for k in unlike}, unlike)
            if later := {k: v for k, v in asked.items() if k not in held}:
                known = known | {"training": held | later}
                self._write_settings(known)
        else:  # the environment of now: its thread count is that of the training
            self._write_settings(known | now | {"training": asked})
            return
        before = ([known, *known.get("continued", [])])[-1]
        if any(before.get(key) != value for key, value in now.items()):
            continued = [*known.get("continued", []), {"step": self.step} | now]
            self._write_settings(known | {"continued": continued})

    def change(self, training: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
        """Record a changed training configuration, the step and the changes."""
        known = self.settings
        note = {"step": self.step} | _json(changes)
        changed = {"training": _json(training), "changes": [*known.get("changes", []), note]}
        self._write_settings(known | changed)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """UserError if another process, or another loop of this one, trains in this run."""
        lock = locks.acquired(self.folder / "lock")
        if lock is None:
            busy = "another process trains in this run; wait for it, or choose another name"
            raise UserError(f"{self.folder}: {busy}")
        try:
            yield
        finally:
            lock.release()

    @property
    def is_running(self) -> bool:
        """Whether a process trains in this run now."""
        path = self.folder / "lock"
        if not os.access(path, os.W_OK):  # never trained in, or the run of another user
            return False
        lock = locks.acquired(path)
        if lock is not None:
            lock.release()
        return lock is None

    @property
    def _config(self) -> Path:
        return self.folder / "config.json"

    def _refuse_foreign(self) -> None:
        """UserError for a file in the way, and for a folder with files of something else."""
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise UserError(f"{self.folder}: is no folder; choose another name")
        inside = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        ours = ("lock", unfinished(self._config).name)
        if others := [path for path in inside if path.name not in ours]:
            raise UserError(f"{others[0]}: is in the folder of the new run; choose another name")

    def _write_settings(self, settings: Mapping[str, Any]) -> None:
        write(self._config, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")

    def _refuse_other(self, held: Mapping, asked: Mapping) -> None:
        held, asked = _flat(held), _flat(asked)
        unlike = [k for k in held | asked if held.get(k, _NONE) != asked.get(k, _NONE)]
        told = [f"{k} was {held.get(k)!r}, is {asked.get(k)!r}" for k in unlike[:N_NAMED]]
        if len(unlike) > N_NAMED:
            told.append(f"{len(unlike) - N_NAMED} more")
        if unlike:
            words = "; ".join(told)
            raise UserError(f"{self.folder}: was begun with other settings: {words}; {_REMEDY}")


def environment() -> dict[str, Any]:
    """Git commit, package versions, threads: they can change a number too."""
    import torch

    from speechlab.training.distributed import world_size

    versions = {"speechlab": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "git_commit": _git_commit(),
        "versions": versions,
        "n_threads": torch.get_num_threads(),
        "world_size": world_size(),
    }


def check_name(name: str) -> None:
    """UserError for a name that is not that of a folder."""
    if not re.fullmatch(r"[\w.+-]*[\w+-]", name):
        raise UserError(f"name is '{name}'; it must be that of a folder, of letters a-z")


COLUMNS = ("run", "state", "step", "n_steps", "metric", "best", "best_step", "seed")
COLUMNS += ("git_commit", "data_hash", "created")


def listing(folder: str | Path = FOLDER) -> list[dict[str, Any]]:
    """A row per run in `folder`, oldest first, with COLUMNS; a damaged one is listed as such."""
    found = sorted(path.parent for path in Path(folder).glob("*/config.json"))
    rows = sorted((_summary(Run(path)) for path in found), key=lambda row: row["created"])
    rows = [row | {"created": row["created"][:19]} for row in rows]  # to the second
    return [{column: row.get(column) for column in COLUMNS} for row in rows]


def compare(names: list[str], folder: str | Path = FOLDER) -> "pd.DataFrame":
    """Settings in which runs differ, then dev means of the best model: a column per run.

    names: of runs in `folder`. UserError if one is missing.
    """
    import pandas as pd

    table = {}
    for name in names:
        run = Run.open(Path(folder) / name)
        known, best = run.settings, run.best_known
        kept = ("config", "training", "data_hash", "git_commit", "versions", "n_threads")
        settings = _flat({key: known[key] for key in kept if key in known})
        scores = {f"best.{key}": value for key, value in best.get("means", {}).items()}
        table[name] = {**settings, "best.step": best.get("step"), **scores}
    frame = pd.DataFrame(table, dtype=object)
    unlike = frame.map(repr).nunique(axis=1) > 1
    return frame[unlike | frame.index.str.startswith("best.")]


def _summary(run: Run) -> dict[str, Any]:
    row = {"run": run.name, "created": ""}
    try:
        known, best = run.settings, run.best_known
        training = known.get("training", {})
        row |= {"created": known["created"], "step": run.step}
        prunes = "pruning" in known["config"]  # it ends by a size
        row |= {"n_steps": None if prunes else training.get("n_steps")}
        row |= {"seed": training.get("seed")}
        row |= {"metric": training.get("metric"), "best": best.get("score")}
        row |= {"best_step": best.get("step"), "git_commit": known.get("git_commit", "")[:8]}
        row["data_hash"] = known["data_hash"][:8]
        ended = run.progress.get("ended")
        row["state"] = "running" if run.is_running else ended or "unfinished"
    except UserError as error:
        row["state"] = f"damaged: {shown(error, 200)}"
    return row


def _object(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. OSError or ValueError where it cannot be read."""
    known = state.parsed(path.read_text(encoding="utf-8"))
    if not isinstance(known, dict):
        raise ValueError("it holds no mapping")
    return known


def _git_commit() -> str:
    """Of the package's checkout, with "-dirty" after a change of code; "" without a checkout."""
    root = Path(__file__).parents[2]
    commit = _git(root, "rev-parse", "HEAD")
    changed = commit and _git(root, "--no-optional-locks", "status", "--porcelain", "--", *CODE)
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *words: str) -> str:
    """Output of git; "" if it fails or is not installed."""
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""


def _json(value: Any) -> Any:
    """As JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value))


def _flat(value: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            flat |= _flat(inner, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = inner
    return flat


_REMEDY = (
    "name the run anew (--name), remove its folder, or change its schedule: `speechlab resume`"
)
_NONE = object()
