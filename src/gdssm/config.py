"""Configurations: frozen dataclasses whose unknown keys, wrong types and impossible values are errors.

No torch here: a configuration is checked before anything heavy is imported.
"""

import contextlib
import dataclasses
import difflib
import math
import numbers
import operator
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any


class UserError(ValueError):
    """Input that cannot be used; the message is one line for a person. The command line prints it and exits with 2."""


class ConfigError(UserError):
    """A configuration that cannot be used; the message names the field, the value and what is allowed."""


class _Repr(reprlib.Repr):
    """repr with limits on length and depth, that takes integers too long to be written and objects whose repr fails."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring, self.maxother, self.maxlong = 60, 60, 40

    def repr_int(self, value: int, level: int) -> str:
        """An integer; one above 2^256 by its size, because writing it may be refused."""
        if value.bit_length() > 256:
            return f"{'-' * (value < 0)}2^{value.bit_length() - 1} or {'less' if value < 0 else 'more'}"
        return super().repr_int(value, level)

    def repr_instance(self, value: object, level: int) -> str:
        """Any other object."""
        try:
            text = repr(value)
        except Exception:
            return f"an object of type {type(value).__name__}"
        return text if len(text) <= self.maxother else text[: self.maxother - 3] + "..."


_REPR = _Repr()
_LONGEST = 100  # characters of a value in a message


def shown(value: object) -> str:
    """A value for a message: its repr, shortened, on one line."""
    try:
        text = _REPR.repr(value)
    except Exception:
        text = f"an object of type {type(value).__name__}"
    text = one_line(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def one_line(text: str) -> str:
    """The text on one line: blanks and line breaks become one blank each, and what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


def check_count(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """ConfigError unless value is an integer >= least, and <= most; any type of integers will do, a boolean will not."""
    number = _integer(value)
    if number is None or number < least or (most is not None and number > most):
        upper = "" if most is None or number is None or number < least else f" and <= {most}"
        raise ConfigError(f"{name} must be an integer >= {least}{upper}, got {shown(value)}")


def check_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """ConfigError unless value is a finite number in the range; any type of real numbers will do, a boolean will not."""
    bounds = ((">=", least, operator.ge), (">", above, operator.gt), ("<=", most, operator.le), ("<", below, operator.lt))
    limits = [(f"{sign} {bound}", bound, holds) for sign, bound, holds in bounds if bound is not None]
    number = _number(value)
    if number is None or not math.isfinite(number) or not all(holds(number, bound) for _, bound, holds in limits):
        wanted = " and ".join(text for text, _, _ in limits)
        raise ConfigError(f"{name} must be a finite number{' ' if limits else ''}{wanted}, got {shown(value)}")


def _integer(value: object) -> int | None:
    """The value as an int, or None: any type with __index__, but no boolean and no array of them."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(typing.cast(Any, value))
    except TypeError:
        return None


def _number(value: object) -> float | None:
    """The value as a float, or None; an integer that no float can hold is infinite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """ConfigError unless value is one of the allowed strings; a near miss is suggested."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{name} is {shown(value)}{near_miss(value, allowed)}; allowed: {', '.join(allowed)}")


def near_miss(word: object, known: Sequence[str]) -> str:
    """' (did you mean ..?)' where one of the known words is close, else ''."""
    close = difflib.get_close_matches(word, known, 1) if isinstance(word, str) and len(word) <= 200 else []
    return f" (did you mean {shown(close[0])}?)" if close else ""


T = typing.TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A frozen dataclass from a mapping, nested ones from nested mappings.

    Raises ConfigError, which names the field with its path, for unknown keys, missing ones, wrong types and what the
    dataclass itself refuses. Nothing is converted but integers to int or float, numbers to float and lists to tuples.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where[:-1] or cls.__name__} must be a mapping with the fields of {cls.__name__}, got {shown(values)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    for key in values:
        if key not in fields:
            named = f"{where}{key}" if isinstance(key, str) and key.isidentifier() and len(key) <= 60 else f"{where}{shown(key)}"
            raise ConfigError(f"{named} is no field of {cls.__name__}{near_miss(key, list(fields))}; allowed: {', '.join(fields)}")
    made = {}
    for name, field in fields.items():
        if name in values:
            made[name] = _typed(f"{where}{name}", values[name], hints[name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}{name} is missing from {cls.__name__}")
    try:
        return cls(**made)
    except ValueError as error:  # the class speaks of its own fields, without the path to them
        says_which = not where or str(error).split(" ", 1)[0] in fields
        raise ConfigError(f"{where}{error}" if says_which else f"{where[:-1]}: {error}") from None


def check_fields(instance: Any) -> None:
    """Make the fields of a frozen dataclass what their annotations say, as from_mapping does; ConfigError where they cannot be."""
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        object.__setattr__(instance, field.name, _typed(field.name, getattr(instance, field.name), hints[field.name]))


def _typed(name: str, value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_mapping(hint, value, f"{name}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            with contextlib.suppress(ConfigError):
                return _typed(name, value, option)
        nested = [option for option in arguments if dataclasses.is_dataclass(option)]
        if len(nested) == 1 and isinstance(value, Mapping):
            return _typed(name, value, nested[0])  # its error is about the field inside
    elif origin is typing.Literal and isinstance(value, str) and value in arguments:
        return value
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(_typed(f"{name}[{i}]", item, of) for i, (item, of) in enumerate(zip(value, kinds, strict=True)))
    elif hint is float:
        if (number := _number(value)) is not None and (math.isfinite(number) or isinstance(value, float)):
            return number
    elif hint is int:
        if (integer := _integer(value)) is not None:
            return integer
    elif hint is type(None) and value is None:
        return None
    elif isinstance(hint, type) and type(value) is hint:
        return value
    kind = hint.__name__ if isinstance(hint, type) else str(hint)
    raise ConfigError(f"{name} must be of type {kind}, got {shown(value)}")


def counted(count: int, noun: str) -> str:
    """E.g. "1 seed", "20 seeds"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
