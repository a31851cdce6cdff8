"""Published names of tensors -> ours, by patterns."""

import re
from collections.abc import Callable, Iterable

Pattern = tuple[str, str | Callable[[re.Match], str]]  # (published, ours), as `re.sub` takes them


def renamed(name: str, patterns: Iterable[Pattern]) -> str:
    """The name after all of them, applied in order."""
    for published, ours in patterns:
        name = re.sub(published, ours, name)
    return name
