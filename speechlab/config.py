"""Configurations: frozen dataclasses, saved as JSON and changed only by `override`.

A model is rebuilt from its configuration alone, so every field is a number, string, tuple or
mapping of those. An unknown name or a wrong type is an error.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from speechlab.errors import UserError, meant

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as JSON types: tuples become lists, inner configurations dicts."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a configuration of class `kind`; lists become tuples. UserError on names or types."""
    return override(None, kind, **values)


def replaced(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy with changed fields; dotted names are fields of inner configurations.

    {"seed": 1, "training.lr": 1e-3}; UserError as in `override`, or with the full name to use.
    """
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        inner = getattr(config, first, None)
        if rest and dataclasses.is_dataclass(inner):
            value = replaced(inner, {rest: value})
        elif rest and isinstance(inner, Mapping):
            value = {**inner, rest: value}
        elif rest and hasattr(config, first):
            raise UserError(
                f"{type(config).__name__}.{first} has no settings inside; set all of it"
            )
        elif below := _below(config, name):
            meant = " or ".join(f"{place}.{name}" for place in below)
            raise UserError(f"{type(config).__name__} has no setting '{name}'; set {meant}")
        config = override(config, **{first: value})
    return config


def check_ranges(config: Any, **ranges: tuple[float, float]) -> None:
    """UserError for a number outside its range, for NaN, and for a pair with low above high.

    ranges: the lowest and highest value allowed, by the name of the field. Of a tuple all numbers
    are checked. None passes.
    """
    hints = typing.get_type_hints(type(config))
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        is_pair = hints[name] == tuple[float, float]
        if not all(least <= x <= most for x in numbers) or (is_pair and value[0] > value[1]):
            limits = f"{least:g} to {most:g}" if most < math.inf else f"{least:g} or more"
            limits = f"(low, high) in {limits}" if is_pair else limits
            raise UserError(f"{type(config).__name__}.{name} must be {limits}, not {value}")


def _inner_names(config: Any) -> list[str]:
    """Dotted names of the fields of inner configurations."""
    if not dataclasses.is_dataclass(config):
        return []
    inner = {k: v for k, v in vars(config).items() if dataclasses.is_dataclass(v)}
    return [f"{name}.{field.name}" for name, v in inner.items() for field in dataclasses.fields(v)]


def _below(config: Any, name: str) -> list[str]:
    """Inner configurations that have a field of this name, if `config` itself has none."""
    if hasattr(config, name):
        return []
    inner = vars(config).items()
    return [k for k, v in inner if dataclasses.is_dataclass(v) and hasattr(v, name)]


def override(config: Config | None, kind: type[Config] | None = None, **changes: Any) -> Config:
    """A copy of `config` with changed fields. UserError for an unknown name or a wrong type."""
    kind = kind or type(config)
    hints = typing.get_type_hints(kind)
    for name, value in changes.items():
        if name not in hints:
            known = ", ".join(hints)
            near = meant(name, hints) or meant(name, _inner_names(config))
            raise UserError(f"{kind.__name__} has no setting '{name}'{near}; it has: {known}")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            value = from_dict(hints[name], value)
        changes[name] = value = _frozen(value)
        if not _is(value, hints[name]):
            wanted = _spell(hints[name])
            raise UserError(f"{kind.__name__}.{name} must be {wanted}, not {value!r}")
    try:
        return kind(**changes) if config is None else dataclasses.replace(config, **changes)
    except TypeError as error:
        raise UserError(f"{kind.__name__}: {error}") from error


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return {k: _frozen(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _is(value: Any, hint: Any) -> bool:
    """Whether `value` fits the hint; a bool is never a number, an int may be a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in args and type(value) in {type(arg) for arg in args}
    if origin in (Union, types.UnionType):
        return any(_is(value, arg) for arg in args)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return isinstance(value, tuple) and all(_is(item, args[0]) for item in value)
        return isinstance(value, tuple) and len(value) == len(args) and all(map(_is, value, args))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _is(k, args[0]) and _is(v, args[1]) for k, v in value.items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _spell(hint: Any) -> str:
    """A type in the notation of its values: [int, ...], {str: float, ...}, int or None."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    spelt = ["..." if arg is Ellipsis else _spell(arg) for arg in args]
    if origin in (Union, types.UnionType):
        return " or ".join(spelt)
    if origin is tuple:
        return f"[{', '.join(spelt)}]"
    if origin is not None and issubclass(origin, Mapping):
        return f"{{{spelt[0]}: {spelt[1]}, ...}}"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
