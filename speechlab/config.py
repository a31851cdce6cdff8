"""Configurations: frozen dataclasses, saved as JSON and changed only by `override`.

A model is rebuilt from its configuration alone, so every field is a number, string, tuple or
mapping of those. An unknown name, a wrong type or a number outside the range of its field is an
error. A field declares its range by its type: `d_model: Size`, `Annotated[float, Range(0, 1)]`.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union

from speechlab.errors import UserError, meant, shown

Config = TypeVar("Config")


class Range(NamedTuple):
    """The least and the most that a number may be, or the length of a tuple or mapping."""

    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.least:.15g} to {self.most:.15g}"


Size = Annotated[int, Range(1, 2**16)]  # channels; samples or frames of a kernel or window
Count = Annotated[int, Range(1, 2**8)]  # blocks, heads, sources
RATES = Range(1000, 768_000)  # Hz
SampleRate = Annotated[int, RATES]
Sizes = Annotated[tuple[Size, ...], Range(1, 16)]  # one number per level
Weight = Annotated[float, Range(0, 1e30)]  # of a term of a loss
Widths = Annotated[tuple[Size, ...], Range(0, 16)]  # of a pruned model; empty: as built
Layers = Annotated[tuple[Mapping[str, Any], ...], Range(0, 2**10)]  # the same: settings of each


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


def override(config: Config | None, kind: type[Config] | None = None, /, **changes: Any) -> Config:
    """A copy of `config` with changed fields.

    UserError for an unknown name, a wrong type or a number outside its range.
    """
    kind = kind or type(config)
    hints = typing.get_type_hints(kind, include_extras=True)
    for name, value in changes.items():
        if name not in hints:
            known = ", ".join(hints)
            near = meant(name, hints) or meant(name, _inner_names(config))
            raise UserError(f"{kind.__name__} has no setting '{name}'{near}; it has: {known}")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            value = from_dict(hints[name], value)
        changes[name] = _frozen(value)
        _check_field(kind, name, hints[name], changes[name])
    try:
        return kind(**changes) if config is None else dataclasses.replace(config, **changes)
    except TypeError as error:
        raise UserError(f"{kind.__name__}: {error}") from error


def check(config: Any) -> None:
    """UserError for a field of a wrong type or outside its range, in inner configurations too."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        _check_field(type(config), field.name, hints[field.name], value)
        if dataclasses.is_dataclass(value):
            check(value)


def _check_field(kind: type, name: str, hint: Any, value: Any) -> None:
    if not _is(value, hint):
        wanted = _spell(hint)
        raise UserError(f"{kind.__name__}.{name} must be {wanted}, not {shown(repr(value), 200)}")
    if fault := _outside(value, hint):
        raise UserError(f"{kind.__name__}.{name} must be {fault}")


def _outside(value: Any, hint: Any) -> str:
    """The range that the value, or one inside it, is outside of, and that value; or ""."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        sized = isinstance(value, tuple | Mapping)
        number = len(value) if sized else value
        for limits in args[1:]:
            if not limits.least <= number <= limits.most:  # NaN is in no range
                return f"{limits}{' values' if sized else ''}, not {shown(number, 50)}"
        inner = [(value, args[0])]
    elif origin is tuple:
        hints = args[:1] * len(value) if args[1:] == (Ellipsis,) else args
        inner = zip(value, hints, strict=True)
    elif origin in (Union, types.UnionType):
        inner = [(value, arg) for arg in args if _is(value, arg)]
    elif isinstance(value, Mapping) and len(args) == 2:
        faults = ((key, _outside(item, args[1])) for key, item in value.items())
        return next((f"{fault} in '{shown(key, 50)}'" for key, fault in faults if fault), "")
    else:
        inner = []
    return next(filter(None, (_outside(*pair) for pair in inner)), "")


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
    if origin is Annotated:
        return _is(value, args[0])
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
    if origin is Annotated:
        return _spell(args[0])
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
