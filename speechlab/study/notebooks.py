"""Cells, parameters and noted inputs of a notebook; functions that all notebooks call.

Parameters are the assignments of the cell tagged `parameters`; papermill adds a cell with other
values after it. The cell is parsed, never executed.

The corpora that a notebook reads may depend on its profile and experiment. The notebook records
them with `note_inputs` in its executed copy.
"""

import ast
import hashlib
import html
import json
import os
import typing
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from speechlab.config import override
from speechlab.errors import UserError, meant, reason
from speechlab.storage.atomic import sha256

NUMBERED = "[0-9][0-9]_*.ipynb"
FIRST = "00_start.ipynb"  # the map of the study; it runs nothing
INPUTS = "speechlab_inputs"  # the key in an output's metadata
ABSENT = "not there"
ADDED = "# Parameters"  # begins the cell that papermill adds
LOCAL = "local"  # in results/: what a study writes unless it publishes

ALT = {  # figures of a training: what they show, for those who cannot see them
    "training": "Loss by training step, and the dev score with those of untrained systems.",
    "terms": "Each term of the loss by training step.",
    "by_snr": "Scores of every system in bands of 5 dB of SNR, with 95 % intervals.",
    "front_end": "Spectrogram of the noisy file before and after compression of its magnitudes.",
    "phases": "Phases of noisy file, estimate and clean file around the loudest moment.",
    "phase_errors": "Distribution of the phase errors of the noisy file and the estimate.",
    "by_likeness": "SI-SDRi of each mixture against the difference of pitch and of level.",
}


@dataclass(frozen=True)
class Notebook:
    path: Path
    content: Mapping[str, Any] = field(repr=False)  # the file as JSON
    defaults: Mapping[str, ast.expr] = field(repr=False, compare=False)  # of each parameter

    @classmethod
    def read(cls, path: str | Path) -> "Notebook":
        """UserError for a file that is no notebook or has unreadable parameters."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tagged = [cell for cell in content["cells"] if "parameters" in _tags(cell)]
            tree = ast.parse("\n".join(source(cell) for cell in tagged))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({reason(error)})") from error
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise UserError(f"{path}: is no notebook; restore it from git") from error
        except SyntaxError as error:
            where = f"line {error.lineno} of its parameters cell"
            raise UserError(f"{path}: {where} is not Python; mend it") from error
        return cls(path, content, dict(_assigned(tree)))

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def digest(self) -> str:
        """SHA-256 of the kinds and sources of the cells; outputs do not change it."""
        cells = [(cell["cell_type"], source(cell)) for cell in self.content["cells"]]
        return hashlib.sha256(json.dumps(cells).encode()).hexdigest()

    def value(self, key: str, text: str) -> Any:
        """`text` as a value of the parameter, by the type of its default.

        UserError if the notebook has no such parameter or `text` has another type.
        """
        if key not in self.defaults:
            has = f"it has: {', '.join(self.defaults)}" if self.defaults else "it has none"
            near = meant(key, self.defaults)
            raise UserError(f"{self.path} has no parameter '{key}'{near}; {has}")
        default = self.defaults[key]
        try:
            return _value(text, _literal(default, [] if isinstance(default, ast.List) else None))
        except ValueError as error:
            raise UserError(f"{self.path}: {key} must be {error}, not '{text}'") from error

    def strings(self, parameters: Mapping[str, Any]) -> set[str]:
        """Every text in the parameters, the given ones instead of their defaults."""
        nodes = [node for key, node in self.defaults.items() if key not in parameters]
        nodes += [ast.parse(repr(value)) for value in parameters.values()]
        found = (node for tree in nodes for node in ast.walk(tree))
        return {
            node.value
            for node in found
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }


def source(cell: Mapping[str, Any]) -> str:
    """A cell's text; files have it as one text or as lines."""
    return "".join(cell["source"])


def execution_count(cells: list[Mapping[str, Any]], n: int) -> int:
    """The number in `In [number]` of the n-th cell of an executed copy, from 1.

    The cells that papermill adds to mark an error do not count.
    """
    kept = [cell for cell in cells if "papermill-error-cell-tag" not in _tags(cell)]
    return sum(cell["cell_type"] == "code" and bool(source(cell).strip()) for cell in kept[:n])


def content(path: str | Path) -> str:
    """A fingerprint of the content of a path.

    Data hash of a prepared corpus, SHA-256 of a file or of a run's best model, "there" for any
    other folder, ABSENT for a missing path. UserError for a damaged corpus.
    """
    from speechlab.data import manifest

    path = Path(path)
    if not path.exists():
        return ABSENT
    if path.is_file():
        return sha256(path)
    if (path / manifest.ABOUT).exists():
        return manifest.data_hash(path)
    best = path / "best.safetensors"
    return sha256(best) if best.exists() else "there"


def start(namespace: Mapping[str, Any]) -> None:
    """Begin a notebook: `start(globals())` in the cell behind its parameters.

    Checks the parameters, changes to the folder of the notebooks, and shows figures in the page.
    """
    from IPython import get_ipython

    check_parameters(namespace)
    enter_folder()
    warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm's bars, which it replaces
    get_ipython().run_line_magic("matplotlib", "inline")


def check_parameters(namespace: Mapping[str, Any]) -> None:
    """UserError for a parameter that the notebook does not have, or a value of another type.

    namespace: the variables of the notebook. Its cell of typed parameters (`seed: int = 0`) names
    them and their types. Values come from that cell, a later one, or papermill, which adds a cell.
    """
    cells = [_parsed(text) for text in namespace.get("In", [])]
    typed = [n for n, cell in enumerate(cells) if _is_typed(cell)]
    if not typed:
        return
    hints = {node.target.id: _hint(node.annotation) for node in cells[typed[-1]].body}
    texts = namespace["In"][typed[-1] + 1 :]
    added = [_parsed(text) for text in texts if text.startswith(ADDED)]
    given = dict.fromkeys(name for cell in added for name, _ in _assigned(cell))
    values = {name: namespace[name] for name in (*given, *hints) if name in namespace}
    try:
        override(None, make_dataclass("parameters", hints.items(), frozen=True), **values)
    except UserError as error:
        texts = [
            name for name in given if hints.get(name) is str and values[name] != str(values[name])
        ]
        advice = f"; papermill -r {texts[0]} {values[texts[0]]} gives text" if texts else ""
        raise UserError(f"{error}{advice}") from None


def _parsed(text: str) -> ast.Module:
    """A cell as IPython has run it; empty where it is not Python."""
    try:
        return ast.parse(text)
    except SyntaxError:
        return ast.Module([], [])


def _is_typed(cell: ast.Module) -> bool:
    return bool(cell.body) and all(isinstance(node, ast.AnnAssign) for node in cell.body)


def _hint(annotation: ast.expr) -> Any:
    """The type that an annotation names; that of a list is a tuple, as in configurations."""
    hint = eval(ast.unparse(annotation))  # of the notebook's own cell, which Python has run
    return tuple[typing.get_args(hint)[0], ...] if typing.get_origin(hint) is list else hint


def enter_folder() -> None:
    """Change to the folder of the numbered notebooks: paths in parameters are relative to it.

    JupyterLab and the study start there; papermill starts where it is called, such as the root of
    the repository. UserError elsewhere, where `../results` would be another folder.
    """
    for folder in (Path(), Path("notebooks")):
        if any(folder.glob(NUMBERED)):
            return os.chdir(folder)
    raise UserError(
        f"{Path.cwd()} is not where the notebooks lie; call papermill in the repository, or with "
        "--cwd and their folder"
    )


def output_folder(results: str | Path, publish: bool) -> Path:
    """The folder for rows, tables and figures of a notebook.

    results: folder of the committed ones. A notebook replaces them only if it publishes; otherwise
    it writes to a folder next to them, which git ignores.
    """
    return Path(results) if publish else Path(results) / LOCAL


def note_inputs(*paths: str | Path) -> None:
    """Show the hashes of the data that a notebook reads, and record them in its executed copy.

    Missing data is recorded too: the copy is no longer finished when it appears.
    """
    from IPython.display import display

    found = {str(path): content(path) for path in paths}
    told = [
        f"`{path}` ({now if now in (ABSENT, 'there') else f'data {now[:8]}'})"
        for path, now in found.items()
    ]
    data = {"text/markdown": f"Read here: {', '.join(told)}"}
    display(data, raw=True, metadata={INPUTS: found})


def show(figure: Any, description: str) -> None:
    """Show a figure in a notebook, with a text for those who cannot see it."""
    from IPython import get_ipython
    from IPython.display import display

    if (shell := get_ipython()) is None:  # plain Python
        display(figure)
        return
    data, metadata = shell.display_formatter.format(figure, include={"image/png"})
    # nbconvert's page takes no description from the metadata, so the page has its own image
    source, text = f"data:image/png;base64,{data['image/png'].strip()}", html.escape(description)
    data["text/html"] = f'<img alt="{text}" src="{source}" style="max-width: 100%">'
    metadata["image/png"] = {**metadata.get("image/png", {}), "alt": description}
    display(data, metadata=metadata, raw=True)


def show_players(signals: Mapping[str, Any], sample_rate: int) -> None:
    """A title and a player per waveform (C, T), not normalised, clipped at 1."""
    from IPython.display import Audio, display

    for title, waveform in signals.items():
        display({"text/markdown": title}, raw=True)
        display(Audio(waveform.clamp(-1, 1).numpy(), rate=sample_rate, normalize=False))


def noted_inputs(executed: Mapping[str, Any]) -> dict[str, str]:
    """Path -> content of all inputs that an executed notebook recorded."""
    outputs = [out for cell in executed.get("cells", []) for out in cell.get("outputs", [])]
    found: dict[str, str] = {}
    for output in outputs:
        found |= output.get("metadata", {}).get(INPUTS, {})
    return found


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from ((to.id, node.value) for to in node.targets if isinstance(to, ast.Name))
        elif isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name):
            yield node.target.id, node.value


def _literal(expression: str | ast.expr, otherwise: Any) -> Any:
    try:
        return ast.literal_eval(expression)
    except (ValueError, SyntaxError):
        return otherwise


def _value(text: str, default: Any) -> Any:
    """ValueError with the expected type if `text` does not have the default's type."""
    if isinstance(default, str):
        return text
    words = {"true": True, "false": False, "none": None, "null": None}
    value = words.get(text.lower(), _literal(text, text))
    if isinstance(default, bool):
        wanted, fits = "true or false", isinstance(value, bool)
    elif isinstance(default, int | float):
        kinds = int if isinstance(default, int) else (int, float)
        wanted = "a whole number" if isinstance(default, int) else "a number"
        fits = isinstance(value, kinds) and not isinstance(value, bool)
    elif isinstance(default, list | tuple):
        first = default[0] if default else None
        one_by_one = [] if isinstance(value, list | tuple) else text.split(",")
        return [_value(part, first) for part in one_by_one] or list(value)
    else:
        return value
    if not fits:
        raise ValueError(wanted)
    return value
