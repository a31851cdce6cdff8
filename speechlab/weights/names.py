"""Published names of tensors: whose they are, without wrappers' prefixes, and renamed to ours."""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from speechlab.errors import UserError

Pattern = tuple[str, str | Callable[[re.Match], str]]  # (published, ours), as `re.sub` takes them

MARKS = {  # system: how names begin that all of its files hold, and no other system's
    "cleanumamba": "tsfm_conv1.",
    "semamba_advanced": "TSMamba.",
    "mpsenet": "TSTransformer.",
    "mpsenet_conformer": "TSConformer.",
    "mpsenet_mamba": "mag_ts_transformer.",
    "sepmamba": "down.0.mamba_layer.",
}


def renamed(name: str, patterns: Iterable[Pattern]) -> str:
    """The name after all of them, applied in order."""
    for published, ours in patterns:
        name = re.sub(published, ours, name)
    return name


def recognise(names: Iterable[str]) -> str | None:
    """The system that the names are of, if they bear the mark of one alone."""
    names = list(names)
    held = [system for system, mark in MARKS.items() if any(n.startswith(mark) for n in names)]
    return held[0] if len(held) == 1 else None


def unwrapped(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors without what wrappers put before all names: `module.`, `model.`, `_orig_mod.`.

    Any first part that all names share is dropped, until they are those of a known system; where
    they never are, or are as they stand, they come back unchanged.
    """
    bare = state
    while recognise(bare) is None:
        split = [name.partition(".") for name in bare]
        if len({first for first, _, _ in split}) != 1 or not all(rest for _, _, rest in split):
            return state
        tensors = bare.values()
        bare = {rest: tensor for (_, _, rest), tensor in zip(split, tensors, strict=True)}
    return bare


def check_mark(state: Mapping[str, Tensor], system: str, called: str) -> None:
    """UserError, in the file's own spelling, where no name bears the mark of the system."""
    if any(name.startswith(MARKS[system]) for name in state):
        return
    told = f"these are not the weights of {called}"
    if held := recognise(state):
        raise UserError(f"{told}: name system {held}")
    mark = MARKS[system]
    names = f"no tensor is named {mark}*; the file's are {listed(state)}"
    raise UserError(f"{told}: {names}; save the model's own state_dict() alone")


def listed(names: Iterable[object], most: int = 4) -> str:
    """The first name of each first part ("down" of "down.0.bias"), and how many more there are."""
    names = [str(name) for name in names]
    parts: dict[str, str] = {}
    for name in names:
        parts.setdefault(name.partition(".")[0], name)
    shown = list(parts.values())[:most]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more
