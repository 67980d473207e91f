"""Configurations: frozen dataclasses whose unknown keys, wrong types and impossible values are errors.

No torch here: a configuration is checked before anything heavy is imported.
"""

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any


class UserError(ValueError):
    """Input that cannot be used; the message is one line for a person. The command line prints it and exits with 2."""


class ConfigError(UserError):
    """A configuration that cannot be used; the message names the field, the value and what is allowed."""


def check_count(name: str, value: object, least: int = 1) -> None:
    """ConfigError unless value is an integer >= least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be an integer >= {least}, got {value!r}")


def check_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """ConfigError unless value is a finite number in the range."""
    bounds = ((">=", least, operator.ge), (">", above, operator.gt), ("<=", most, operator.le), ("<", below, operator.lt))
    limits = [(f"{sign} {bound}", bound, holds) for sign, bound, holds in bounds if bound is not None]
    fits = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not fits or not all(holds(typing.cast(float, value), bound) for _, bound, holds in limits):
        wanted = " and ".join(text for text, _, _ in limits)
        raise ConfigError(f"{name} must be a finite number{' ' if limits else ''}{wanted}, got {value!r}")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """ConfigError unless value is one of the allowed strings; a near miss is suggested."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}{near_miss(str(value), allowed)}; allowed: {', '.join(allowed)}")


def near_miss(word: str, known: Sequence[str]) -> str:
    """' (did you mean ..?)' where one of the known words is close, else ''."""
    close = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


T = typing.TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A frozen dataclass from a mapping, nested ones from nested mappings.

    Raises ConfigError for unknown keys, missing ones and wrong types; nothing is converted but int to float and
    lists to tuples.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    for key in values:
        if key not in fields:
            raise ConfigError(
                f"{where}{key} is no field of {cls.__name__}{near_miss(key, list(fields))}; allowed: {', '.join(fields)}"
            )
    made = {}
    for name, field in fields.items():
        if name in values:
            made[name] = _typed(f"{where}{name}", values[name], hints[name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}{name} is missing from {cls.__name__}")
    return cls(**made)


def check_fields(instance: Any) -> None:
    """Make the fields of a frozen dataclass what their annotations say, as from_mapping does; ConfigError where they cannot be."""
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        object.__setattr__(instance, field.name, _typed(field.name, getattr(instance, field.name), hints[field.name]))


def _typed(name: str, value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} must be a mapping with the fields of {hint.__name__}, got {value!r}")
        return from_mapping(hint, value, f"{name}.")
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        for option in typing.get_args(hint):
            try:
                return _typed(name, value, option)
            except ConfigError:
                continue
    elif origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(name, item, typing.get_args(hint)[0]) for item in value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is type(None) and value is None:
        return None
    elif isinstance(hint, type) and type(value) is hint:
        return value
    shown = hint.__name__ if isinstance(hint, type) else str(hint)
    raise ConfigError(f"{name} must be of type {shown}, got {value!r}")
