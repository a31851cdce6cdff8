"""Published tensor names: recognise the system, strip the prefixes of wrappers, rename."""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

Pattern = tuple[str, str | Callable[[re.Match], str]]  # (published, ours), as `re.sub` takes them

MARKS = {  # system: a prefix of names that every file of it has, and no file of another
    "cleanumamba": "tsfm_conv1.",
    "semamba_advanced": "TSMamba.",
    "mpsenet": "TSTransformer.",
    "mpsenet_conformer": "TSConformer.",
    "mpsenet_mamba": "mag_ts_transformer.",
    "sepmamba": "down.0.mamba_layer.",
}


def renamed(name: str, patterns: Iterable[Pattern]) -> str:
    """The name after all substitutions, applied in order."""
    for published, ours in patterns:
        name = re.sub(published, ours, name)
    return name


def recognise(names: Iterable[str]) -> str | None:
    """The system whose mark the names have; None for no mark or for marks of several systems."""
    names = list(names)
    held = [system for system, mark in MARKS.items() if any(n.startswith(mark) for n in names)]
    return held[0] if len(held) == 1 else None


def unwrapped(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors without the prefixes of wrappers: `module.`, `model.`, `_orig_mod.`, …

    Strips any first part that all names share until the system is recognised. If it never is, or
    is from the start, the same mapping comes back.
    """
    bare = state
    while recognise(bare) is None:
        split = [name.partition(".") for name in bare]
        if len({first for first, _, _ in split}) != 1 or not all(rest for _, _, rest in split):
            return state
        tensors = bare.values()
        bare = {rest: tensor for (_, _, rest), tensor in zip(split, tensors, strict=True)}
    return bare


def listed(names: Iterable[object], most: int = 4) -> str:
    """One name for each first part ("down" of "down.0.bias"), and the number of all others."""
    names = [str(name) for name in names]
    parts: dict[str, str] = {}
    for name in names:
        parts.setdefault(name.partition(".")[0], name)
    shown = list(parts.values())[:most]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more
