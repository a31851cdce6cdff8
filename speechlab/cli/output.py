"""What commands print: tables on stdout, messages on stderr."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def tell(line: str) -> None:
    """A message on stderr, above a progress bar."""
    from speechlab.progress import on_stderr

    on_stderr(f"speechlab: {line}")


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per row under the column names; numbers are aligned to the right."""
    columns = {name: [name, *(_text(row[name]) for row in rows)] for name in rows[0]}
    for name, cells in columns.items():
        width = max(map(len, cells))
        right = all(isinstance(row[name], int | float | None) for row in rows)
        columns[name] = [cell.rjust(width) if right else cell.ljust(width) for cell in cells]
    for cells in zip(*columns.values(), strict=True):
        print("  ".join(cells).rstrip())


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def print_settings(config: Any, prefix: str = "  ") -> None:
    """A configuration, or a mapping inside it, as KEY=VALUE lines, as --set takes them."""
    from speechlab.config import to_dict

    settings = config if isinstance(config, Mapping) else to_dict(config)
    for key, value in settings.items():
        if isinstance(value, Mapping):
            print_settings(value, f"{prefix}{key}.")
        else:
            print(f"{prefix}{key}={json.dumps(value)}")
