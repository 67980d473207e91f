"""Configurations from mappings, and the checks that name the field, the value and what is allowed."""

import dataclasses
import math

import pytest

from gdssm.config import ConfigError, check_choice, check_count, check_number, from_mapping


@dataclasses.dataclass(frozen=True)
class Inner:
    steps: int = 10
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = dataclasses.field(default_factory=Inner)
    size: int | None = None
    rates: tuple[float, ...] = ()
    verbose: bool = False

    def __post_init__(self):
        check_choice("name", self.name, ("adam", "sgd"))


def test_values_arrive():
    got = from_mapping(Outer, {"name": "adam", "inner": {"steps": 3}, "size": 4, "rates": [1, 2.5], "verbose": True})
    assert got == Outer("adam", Inner(3, 0.5), 4, (1.0, 2.5), True)
    assert isinstance(got.rates[0], float)
    assert from_mapping(Outer, {"name": "sgd"}) == Outer("sgd")
    assert from_mapping(Outer, {"name": "sgd", "size": None, "inner": Inner(7)}) == Outer("sgd", Inner(7))
    assert type(from_mapping(Inner, {"rate": 1}).rate) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "adam", "verbos": True}, r"verbos is no field of Outer \(did you mean 'verbose'\?\); allowed: name, inner, size"),
        ({"name": "adam", "xyz": 1}, r"xyz is no field of Outer; allowed: name, inner, size, rates, verbose"),
        ({"name": "adam", "inner": {"step": 3}}, r"inner\.step is no field of Inner \(did you mean 'steps'\?\)"),
        ({}, "name is missing from Outer"),
        ({"name": 3}, "name must be of type str, got 3"),
        ({"name": "adam", "inner": 3}, "inner must be a mapping with the fields of Inner, got 3"),
        ({"name": "adam", "inner": {"steps": 3.5}}, r"inner\.steps must be of type int, got 3\.5"),
        ({"name": "adam", "inner": {"steps": 3.0}}, r"inner\.steps must be of type int, got 3\.0"),
        ({"name": "adam", "inner": {"steps": True}}, r"inner\.steps must be of type int, got True"),
        ({"name": "adam", "inner": {"steps": "3"}}, r"inner\.steps must be of type int, got '3'"),
        ({"name": "adam", "inner": {"rate": "0.1"}}, r"inner\.rate must be of type float, got '0\.1'"),
        ({"name": "adam", "inner": {"rate": True}}, r"inner\.rate must be of type float, got True"),
        ({"name": "adam", "inner": {"rate": None}}, r"inner\.rate must be of type float, got None"),
        ({"name": "adam", "size": "big"}, r"size must be of type int \| None, got 'big'"),
        ({"name": "adam", "rates": 3}, r"rates must be of type tuple\[float, \.\.\.\], got 3"),
        ({"name": "adam", "rates": [1, "2"]}, "rates must be of type float, got '2'"),
        ({"name": "adam", "verbose": 1}, "verbose must be of type bool, got 1"),
        ({"name": "adma"}, r"name is 'adma' \(did you mean 'adam'\?\); allowed: adam, sgd"),
    ],
)
def test_errors_name_field_value_and_what_is_allowed(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, values)


def test_a_configuration_error_is_a_value_error():
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize(
    ("value", "fits"), [(1, True), (7, True), (0, False), (-1, False), (True, False), (1.0, False), ("1", False)]
)
def test_counts(value, fits):
    if fits:
        check_count("n", value)
        return
    with pytest.raises(ConfigError, match=rf"n must be an integer >= 1, got {value!r}"):
        check_count("n", value)


def test_counts_from_another_least():
    check_count("n", 0, least=0)
    with pytest.raises(ConfigError, match="n must be an integer >= 3, got 2"):
        check_count("n", 2, least=3)


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (0.0, {}, None),
        (-3, {}, None),
        (0, {"least": 0}, None),
        (1, {"above": 0, "most": 1}, None),
        (math.nan, {}, "v must be a finite number, got nan"),
        (math.inf, {"least": 0}, "v must be a finite number >= 0, got inf"),
        (True, {}, "v must be a finite number, got True"),
        ("1", {}, "v must be a finite number, got '1'"),
        (None, {}, "v must be a finite number, got None"),
        (-0.1, {"least": 0}, r"v must be a finite number >= 0, got -0\.1"),
        (0, {"above": 0}, "v must be a finite number > 0, got 0"),
        (1.1, {"above": 0, "most": 1}, r"v must be a finite number > 0 and <= 1, got 1\.1"),
    ],
)
def test_numbers(value, limits, message):
    if message is None:
        check_number("v", value, **limits)
        return
    with pytest.raises(ConfigError, match=f"^{message}$"):
        check_number("v", value, **limits)


def test_choices():
    check_choice("kind", "full", ("full", "row"))
    with pytest.raises(ConfigError, match=r"^kind is 'ful' \(did you mean 'full'\?\); allowed: full, row$"):
        check_choice("kind", "ful", ("full", "row"))
    with pytest.raises(ConfigError, match=r"^kind is 3; allowed: full, row$"):
        check_choice("kind", 3, ("full", "row"))
