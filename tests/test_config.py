"""Configurations from mappings, and the checks that name the field, the value and what is allowed."""

import dataclasses
import fractions
import math
import types
import typing
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdssm.config import ConfigError, check_choice, check_count, check_number, from_mapping, near_miss, one_line, shown
from gdssm.settings import ModelConfig, TrainConfig
from gdssm.tasks import LinearRegression

CLASSES = [LinearRegression, ModelConfig, TrainConfig]


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
        ({"name": "adam", "rates": [1, "2"]}, r"rates\[1\] must be of type float, got '2'"),
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


@dataclasses.dataclass(frozen=True)
class Wide:
    """The types that the other classes do not have."""

    inner: Inner | None = None
    pair: tuple[int, str] = (1, "a")
    kind: typing.Literal["gd", "cg"] = "gd"
    several: tuple[Inner, ...] = ()
    made: int = dataclasses.field(default=0, init=False)

    def __post_init__(self):
        if self.inner is not None:
            check_count("inner", self.inner.steps)


@dataclasses.dataclass(frozen=True)
class Strict:
    steps: int = 1

    def __post_init__(self):
        check_count("steps", self.steps)
        if self.steps == 13:
            raise ValueError("thirteen is no number")


@dataclasses.dataclass(frozen=True)
class Holder:
    strict: Strict = dataclasses.field(default_factory=Strict)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Wide, {"inner": {"step": 1}}, "inner.step is no field of Inner (did you mean 'steps'?); allowed: steps, rate"),
        (Wide, {"inner": {"steps": 0}}, "inner must be an integer >= 1, got 0"),
        (Wide, {"inner": 3}, "inner must be of type "),
        (Wide, {"pair": [1]}, "pair must be of type tuple[int, str], got [1]"),
        (Wide, {"pair": [1, 2]}, "pair[1] must be of type str, got 2"),
        (Wide, {"several": [{}, {"rate": "x"}]}, "several[1].rate must be of type float, got 'x'"),
        (Wide, {"kind": "sgd"}, "kind must be of type typing.Literal['gd', 'cg'], got 'sgd'"),
        (Wide, {"made": 1}, "made is no field of Wide"),
        (Wide, {3: 1}, "3 is no field of Wide"),
        (Wide, {"a\nb": 1}, "'a\\nb' is no field of Wide"),
        (Wide, {"k" * 5000: 1}, "'kkkkkkkkk"),
        (Wide, 3, "Wide must be a mapping with the fields of Wide, got 3"),
        (Holder, {"strict": {"steps": 0}}, "strict.steps must be an integer >= 1, got 0"),
        (Holder, {"strict": {"steps": 13}}, "strict: thirteen is no number"),
        (Strict, {"steps": 13}, "thirteen is no number"),
    ],
)
def test_paths_to_nested_fields(cls, values, message):
    with pytest.raises(ConfigError) as error:
        from_mapping(cls, values)
    assert str(error.value).startswith(message)
    assert len(str(error.value)) < 200


def test_wide_values_arrive():
    got = from_mapping(Wide, {"inner": {"steps": np.int64(3)}, "pair": [2, "b"], "kind": "cg", "several": [{"rate": np.int8(2)}]})
    assert got == Wide(Inner(3), (2, "b"), "cg", (Inner(rate=2.0),))
    assert (type(got.inner.steps), type(got.several[0].rate)) == (int, float)


TEXTS = st.one_of(st.text(max_size=20), st.just("x" * 10**5), st.just("a\nb\r\x1c\x85\u2028c"))


class Awkward:
    def __repr__(self):
        raise RuntimeError("no text")


OTHERS = st.one_of(
    st.none(),
    TEXTS,
    st.lists(TEXTS, max_size=3),
    st.dictionaries(TEXTS, TEXTS, max_size=3),
    st.sampled_from([b"x", object, Awkward(), np.zeros((30, 30)), np.bool_(True), np.array([1, 2]), 1j, {1}, [[[[[[[[[1]]]]]]]]]]),
)


def wrong_values(hint: Any) -> st.SearchStrategy[Any]:
    """Values that no field of this type takes in these classes."""
    bad_numbers = st.sampled_from([math.nan, math.inf, -math.inf, 10**400, -(10**400), "1", True, np.float64("nan")])
    if dataclasses.is_dataclass(hint):
        return st.one_of(OTHERS.filter(lambda v: not isinstance(v, dict)), st.integers(), st.floats())
    if hint is int:
        return st.one_of(OTHERS, st.integers(max_value=-1), st.floats(), st.booleans(), st.integers(3, 9).map(lambda n: -(10**n)))
    if hint is float:
        return st.one_of(OTHERS, bad_numbers, st.floats(max_value=-1e-300), st.integers(max_value=-1))
    if hint is bool:
        return st.one_of(OTHERS, st.integers(), st.floats())
    if hint is str:  # each of these is a choice, of words without a capital
        return st.one_of(OTHERS.map(lambda v: v.upper() + "A" if isinstance(v, str) else v), st.integers(), st.booleans())
    (item, _) = typing.get_args(hint)
    long = st.lists(wrong_values(item), min_size=1, max_size=4)
    return st.one_of(OTHERS.filter(lambda v: not isinstance(v, list)), long, long.map(tuple), st.integers())


@st.composite
def wrong_mappings(draw: st.DrawFn, cls: type) -> tuple[Any, str]:
    """(values, what the message opens with)"""
    hints = typing.get_type_hints(cls)
    name = draw(st.sampled_from(sorted(hints)))
    if dataclasses.is_dataclass(hints[name]) and draw(st.booleans()):
        inner, where = draw(wrong_mappings(hints[name]))
        return {name: inner}, f"{name}.{where}" if where else name
    fault = draw(st.sampled_from(["value", "value", "value", "unknown", "mapping"]))
    if fault == "unknown":
        bad = name + draw(st.sampled_from("sxy_"))
        return ({bad: 1}, f"{bad} is no field of {cls.__name__} (did you mean ") if bad not in hints else ({name: b""}, name)
    if fault == "mapping":
        return draw(OTHERS.filter(lambda v: not isinstance(v, dict))), ""
    return {name: draw(wrong_values(hints[name]))}, name


@pytest.mark.parametrize("cls", CLASSES)
@settings(max_examples=200, derandomize=True)
@given(data=st.data())
def test_wrong_configurations_are_one_line_that_names_the_field(cls, data):
    values, opening = data.draw(wrong_mappings(cls))
    with pytest.raises(ConfigError) as error:
        from_mapping(cls, types.MappingProxyType(values) if isinstance(values, dict) else values)
    message = str(error.value)
    assert message.startswith(opening)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("cls", CLASSES)
def test_the_defaults_arrive(cls):
    made = cls()
    assert from_mapping(cls, {}) == made
    assert from_mapping(cls, dataclasses.asdict(made)) == made


@settings(max_examples=200, derandomize=True)
@given(st.one_of(OTHERS, st.integers(), st.floats(), st.booleans(), st.integers(-(10**5000), 10**5000)), st.integers(-9, 9))
def test_checks_accept_what_they_say_and_nothing_else_crashes(value, least):
    number = not isinstance(value, bool) and isinstance(value, int | float)
    for check, fits in (
        (lambda: check_count("n", value, least), number and isinstance(value, int) and value >= least),
        (lambda: check_count("n", value, least, 20), number and isinstance(value, int) and least <= value <= 20),
        (lambda: check_number("n", value, least=least), number and -1e400 < value < 1.7e308 and value >= least),
        (lambda: check_choice("n", value, ("one", "two")), isinstance(value, str) and value in ("one", "two")),
    ):
        if fits:
            check()
            continue
        with pytest.raises(ConfigError, match=r"^n ") as error:
            check()
        assert len(str(error.value).splitlines()) == 1
        assert len(str(error.value)) < 200


def test_numbers_of_other_types():
    for value in (np.int64(3), np.uint8(3), 3):
        check_count("n", value, 3)
    for value in (np.float32(0.5), np.float64(0.5), fractions.Fraction(1, 2), np.int8(1), 10**300):
        check_number("n", value, above=0)
    for value in (np.bool_(True), torch.tensor(True), np.float64(3.0), np.array([3]), fractions.Fraction(3), "3"):
        with pytest.raises(ConfigError, match="n must be an integer"):
            check_count("n", value)
    for value in (np.bool_(True), np.array([1.0, 2.0]), 1j, np.float64("nan"), 10**400):
        with pytest.raises(ConfigError, match="n must be a finite number"):
            check_number("n", value)
    with pytest.raises(ConfigError, match=r"^n must be an integer >= 1 and <= 5, got 6$"):
        check_count("n", 6, most=5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("a\nb\u2028\u202e", r"'a\nb\u2028\u202e'"),
        ("\udcff", r"'\udcff'"),
        (2**256, "2^256 or more"),
        (-(2**300), "-2^300 or less"),
        ([10**5000], "[2^16609 or more]"),
        (Awkward(), "an object of type Awkward"),
        (np.eye(2), "array([[1., 0.], [0., 1.]])"),
        ("x" * 200, f"'{'x' * 27}...{'x' * 28}'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_in_messages(value, text):
    assert shown(value) == text


@settings(max_examples=200, derandomize=True)
@given(st.one_of(st.text(st.characters()), OTHERS, st.recursive(st.integers(), st.lists)))
def test_any_value_is_shown_on_one_short_line(value):
    assert shown(value).isprintable()
    assert len(shown(value)) <= 100


@settings(max_examples=200, derandomize=True)
@given(st.text(st.characters()))
def test_any_text_is_put_on_one_line(text):
    assert one_line(text).isprintable()
    assert one_line(one_line(text)) == one_line(text)
    kept = iter(one_line(text))
    assert all(c in kept for c in text if c.isprintable() and c != " ")  # in their order


def test_a_near_miss_of_something_strange():
    assert near_miss("stpes", ["steps"]) == " (did you mean 'steps'?)"
    assert near_miss("steps" * 1000, ["steps"]) == near_miss(3, ["steps"]) == near_miss(["steps"], ["steps"]) == ""
