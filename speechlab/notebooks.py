"""What a notebook tells before it runs: its cells, and its parameters with their defaults.

Parameters are what the cell tagged `parameters` assigns; papermill puts the values asked for into a
cell behind it. The cell is read, never executed.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechlab.errors import UserError


@dataclass(frozen=True)
class Notebook:
    path: Path
    content: Mapping[str, Any] = field(repr=False)  # the file as JSON
    defaults: Mapping[str, ast.expr] = field(repr=False, compare=False)  # of each parameter

    @classmethod
    def read(cls, path: str | Path) -> "Notebook":
        """UserError where it is no notebook, or its parameters cannot be read."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tagged = [cell for cell in content["cells"] if "parameters" in _tags(cell)]
            tree = ast.parse("\n".join(source(cell) for cell in tagged))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
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
        """SHA-256 of the cells' kinds and sources: opening or running a notebook leaves it."""
        cells = [(cell["cell_type"], source(cell)) for cell in self.content["cells"]]
        return hashlib.sha256(json.dumps(cells).encode()).hexdigest()

    def value(self, key: str, text: str) -> Any:
        """What `text` means for the parameter, by the type of its default.

        UserError where the notebook has no such parameter, or `text` is of another type.
        """
        if key not in self.defaults:
            has = f"it has: {', '.join(self.defaults)}" if self.defaults else "it has none"
            raise UserError(f"{self.path} has no parameter '{key}'; {has}")
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
    """A cell's text, which a file holds whole or as lines."""
    return "".join(cell["source"])


def execution_count(cells: list[Mapping[str, Any]], n: int) -> int:
    """The number in `In [number]` of the n-th cell of an executed copy, from 1.

    The cells that papermill adds to mark an error do not count.
    """
    kept = [cell for cell in cells if "papermill-error-cell-tag" not in _tags(cell)]
    return sum(cell["cell_type"] == "code" and bool(source(cell).strip()) for cell in kept[:n])


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
    """ValueError, which says what it must be, where `text` is not of the default's type."""
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
