"""Command lines made from the commands' own signatures: right ones arrive, wrong ones are one line that names what is wrong."""

import contextlib
import inspect
import io
import re
import string
import subprocess
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdssm import cli
from gdssm.arguments import ArgumentError, Parameter, Program, parameters, prepare
from gdssm.config import ConfigError, check_count, shown

calls: list[dict[str, Any]] = []


def everything(
    first: Path,
    others: tuple[float, ...] = (),
    /,
    *,
    target: str,
    count: int = 1,
    weight_scale: float | None = None,
    query: Path | None = None,
    kind: Literal["gradient", "conjugate"] = "gradient",
    level: Literal[1, 2] = 1,
    fast: bool = False,
    list_: bool = True,
) -> int:
    """Every kind of argument.

    Args:
        first: a file
        others: numbers
        target: a column,
            whose text goes on
        count: how many
        weight_scale: scale
        query: another file
        kind: method
        level: level
        fast: be quick
        list_: list
    """
    calls.append(dict(locals()))
    return 0


def one(number: int, name: str = "x", /, ratio: float = 0.5) -> int:
    """One number.

    Args:
        number: the number
        name: its name
        ratio: a ratio
    """
    calls.append(dict(locals()))
    check_count("ratio", 7 if ratio == 0.5 else 0)
    return 3


def place(path: Path, /, reverse: bool = False) -> int:
    """No option with a value.

    Args:
        path: a file
        reverse: the other way
    """
    calls.append(dict(locals()))
    return 0


def nothing() -> int:
    """Takes nothing."""
    calls.append({})
    return 0


DEMO = Program("demo", "A program.", "1.2", {"everything": everything, "one": one, "place": place, "nothing": nothing})
REAL = Program("gdssm", "", "", cli.COMMANDS)
PROGRAMS = [DEMO, REAL]
PLENTY = settings(max_examples=200, derandomize=True)

WORDS = st.text(string.ascii_letters + string.digits + "_. ", min_size=1, max_size=12)
ANY_TEXT = st.one_of(
    st.text(st.characters(), max_size=40),  # surrogates among them, as non-UTF-8 bytes arrive
    st.text("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\x00\x1b\t -=", max_size=8),
    st.integers(1, 4).map(lambda n: "9" * 10**n),
    st.binary(max_size=20).map(lambda b: b.decode("utf-8", "surrogateescape")),
)


def right(parameter: Parameter) -> st.SearchStrategy[tuple[str, Any]]:
    """(text, value) that fits."""
    if typing.get_origin(parameter.type) is Literal:
        return st.sampled_from(typing.get_args(parameter.type)).map(lambda choice: (str(choice), choice))
    numbers = {int: st.integers(), float: st.floats(allow_nan=False, allow_infinity=False)}
    if parameter.type in numbers:
        return numbers[parameter.type].map(lambda value: (repr(value), value))
    return WORDS.map(lambda word: (word, parameter.type(word)))


def wrong(parameter: Parameter) -> st.SearchStrategy[str]:
    """A text that does not fit; not for str, which takes every text."""
    if typing.get_origin(parameter.type) is Literal:
        known = [str(choice) for choice in typing.get_args(parameter.type)]
        return st.one_of(ANY_TEXT, st.sampled_from(known).flatmap(mutations)).filter(lambda text: text not in known)
    if parameter.type is Path:
        return st.sampled_from(["", "a\0b", "\0"])
    return ANY_TEXT.filter(lambda text: not fits(parameter.type, text))


def fits(kind: type, text: str) -> bool:
    try:
        return abs(kind(text)) < float("inf")
    except ValueError:
        return False


def mutations(word: str) -> st.SearchStrategy[str]:
    """The word with one letter less, more or another."""
    place, letter = st.integers(2, len(word) - 1), st.sampled_from("abcxyz-7")
    cut = st.builds(lambda i: word[:i] + word[i + 1 :], place)
    more = st.builds(lambda i, c: word[:i] + c + word[i:], place, letter)
    return st.one_of(cut, more, st.builds(lambda i, c: word[:i] + c + word[i + 1 :], place, letter))


class Line(typing.NamedTuple):
    """A command line in pieces, one per argument in any order, positional ones in theirs; and the values it means."""

    command: str
    pieces: list[tuple[Parameter, list[str]]]
    values: dict[str, Any]

    def words(self, *more: str) -> list[str]:
        return [self.command, *(word for _, piece in self.pieces for word in piece), *more]


@st.composite
def lines(draw: st.DrawFn, program: Program, given: set[str] | None = None) -> Line:
    """A right line. `given` holds labels that must be there."""
    name = draw(st.sampled_from(sorted(program.commands)))
    options, positional, values = [], [], {}
    complete = True  # a positional argument is given only where those before it are
    for parameter in parameters(program.commands[name]):
        needed = parameter.required or parameter.name in (given or ())
        if parameter.type is bool:
            choice = draw(st.sampled_from([None, *parameter.labels]))
            if choice is not None:
                options.append((parameter, [choice]))
                values[parameter.name] = choice == parameter.label
        elif parameter.positional:
            pairs = draw(st.lists(right(parameter), max_size=3 if parameter.many else 1, min_size=1 if needed else 0))
            pairs = pairs if complete else []
            complete = complete and bool(pairs)
            positional += [(parameter, [text]) for text, _ in pairs]
            if pairs:
                values[parameter.name] = tuple(value for _, value in pairs) if parameter.many else pairs[0][1]
        elif needed or draw(st.booleans()):
            text, value = draw(right(parameter))
            label = draw(st.sampled_from([parameter.label, "--" + parameter.label[2:].replace("-", "_")]))
            options.append((parameter, draw(st.sampled_from([[label, text], [f"{label}={text}"]]))))
            values[parameter.name] = value
    pieces = draw(st.permutations(options))
    for place, piece in zip(sorted(draw(st.integers(0, len(pieces))) for _ in positional), positional, strict=True):
        pieces.insert(place + sum(p.positional for p, _ in pieces), piece)
    return Line(name, list(pieces), values)


def swapped(line: Line, name: str, words: list[str]) -> list[str]:
    """The line's words with those of one argument replaced, or added at the end."""
    found = [(p, words if p.name == name else piece) for p, piece in line.pieces]
    return line._replace(pieces=found).words(*([] if name in {p.name for p, _ in line.pieces} else words))


@st.composite
def wrong_lines(draw: st.DrawFn, program: Program) -> tuple[list[str], list[str]]:
    """(words, texts that the message must hold)."""
    line = draw(lines(program))
    known = parameters(program.commands[line.command])
    valued = [p for p in known if not p.positional and p.type is not bool]
    fault = draw(st.sampled_from(["value", "flag", "missing", "no value", "extra", "bool", "twice", "command", "place"]))
    if fault == "value" and (typed := [p for p in known if p.type not in (str, bool) and not p.many]):
        parameter = draw(st.sampled_from(typed))
        text = draw(wrong(parameter))
        if not parameter.positional:
            return swapped(line, parameter.name, [f"{parameter.label}={text}"]), [parameter.label, shown(text)]
        if parameter.name in line.values:
            return swapped(line, parameter.name, ["--", text]), []  # what follows "--" is positional: some error
    if fault == "flag" and (labels := [label for p in known if not p.positional for label in p.labels]):
        label = draw(st.sampled_from(labels))
        bad = draw(mutations(label).filter(lambda word: word.replace("_", "-") not in {x for p in known for x in p.labels}))
        place = draw(st.integers(0, len(line.pieces)))
        pieces = [piece for _, piece in line.pieces]
        pieces.insert(place, [bad] if draw(st.booleans()) else [f"{bad}={draw(ANY_TEXT)}"])
        return [line.command, *(w for p in pieces for w in p)], [bad, f"no option of {program.name} {line.command}", "did you mean"]
    if fault == "missing" and (needed := [p for p in known if p.required and not p.positional]):
        parameter = draw(st.sampled_from(needed))
        return swapped(line, parameter.name, []), [f"{parameter.label} is missing", parameter.help]
    if fault == "no value" and valued:
        parameter = draw(st.sampled_from(valued))
        without = line._replace(pieces=[piece for piece in line.pieces if piece[0] is not parameter and piece[0] != parameter])
        follows = draw(st.sampled_from([[], [valued[0].label], ["--"], ["--surely-unknown"], ["-x"]]))
        return without.words(parameter.label, *follows), [f"{parameter.label} needs a value", parameter.help]
    if fault == "extra" and not any(p.many for p in known):
        full = draw(lines(Program("", "", "", {line.command: program.commands[line.command]}), {p.name for p in known}))
        extra = draw(WORDS)
        return full.words(extra), [shown(extra), "one argument too many"]
    if fault == "bool" and (flags := [label for p in known if p.type is bool for label in p.labels]):
        flag, text = draw(st.sampled_from(flags)), draw(ANY_TEXT)
        return [line.command, f"{flag}={text}", *line.words()[1:]], [f"{flag} takes no value", shown(text)]
    if fault == "twice" and valued:
        parameter = draw(st.sampled_from(valued))
        words = [f"{parameter.label}={draw(right(parameter))[0]}" for _ in range(2)]
        return swapped(line, parameter.name, words), [f"{parameter.label} is given twice"]
    if fault == "place" and valued:
        return [valued[0].label, *line.words()], [f"{valued[0].label} stands before the command"]
    word = draw(st.one_of(ANY_TEXT, mutations(line.command)).filter(lambda w: w not in program.commands and w[:1] != "-"))
    return [word, *line.words()[1:]], [shown(word), "is no command", "allowed: "]


def refusal(program: Program, words: Sequence[str]) -> str:
    with pytest.raises(ArgumentError) as error:
        prepare(program, words)
    return str(error.value)


def assert_one_good_line(message: str, fragments: Sequence[str]) -> None:
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert len(message) < 700
    message.encode()
    for fragment in fragments:
        assert fragment in message


@PLENTY
@given(line=lines(DEMO))
def test_right_lines_arrive(line: Line) -> None:
    calls.clear()
    call = prepare(DEMO, line.words())
    assert calls == []
    with contextlib.suppress(ConfigError):
        call()
    signature = inspect.signature(DEMO.commands[line.command])
    wanted = {name: p.default for name, p in signature.parameters.items()} | line.values
    assert calls == [wanted]
    assert {k: type(v) for k, v in calls[0].items()} == {k: type(v) for k, v in wanted.items()}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_wrong_lines_are_refused_in_one_line_that_names_what_is_wrong(program: Program) -> None:
    @PLENTY
    @given(case=wrong_lines(program))
    def attack(case: tuple[list[str], list[str]]) -> None:
        words, fragments = case
        assert_one_good_line(refusal(program, words), fragments)

    attack()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_any_words_give_a_call_or_one_line(program: Program) -> None:
    known = [p for command in program.commands.values() for p in parameters(command)]
    word = st.one_of(ANY_TEXT, st.sampled_from([label for p in known for label in p.labels]), st.just("--"), st.just("-"))
    joined = st.builds("{}={}".format, st.sampled_from([p.label for p in known]), ANY_TEXT)

    @PLENTY
    @given(st.lists(st.one_of(word, joined), max_size=5), st.sampled_from([*program.commands, None]))
    def attack(words: list[str], command: str | None) -> None:
        try:
            call = prepare(program, words if command is None else [command, *words])
        except ArgumentError as error:
            assert_one_good_line(str(error), [])
        else:
            assert callable(call)

    attack()


@contextlib.contextmanager
def captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        yield out, err


@st.composite
def out_of_range(draw: st.DrawFn) -> tuple[list[str], str]:
    """A line whose types are right and whose value no command can use, and the text its message must hold."""
    huge = st.integers(10**12, 10**400)
    below = st.integers(max_value=-1)
    option, values = draw(
        st.sampled_from(
            [
                ("reproduce --seeds", st.one_of(st.just(0), below, huge)),
                ("reproduce --seed", st.one_of(below, huge)),
                ("predict t.csv --target y --steps", st.one_of(st.just(0), below, huge)),
                ("predict t.csv --target y --folds", st.one_of(st.just(1), st.just(0), below, huge)),
                ("predict t.csv --target y --forgetting", st.floats(max_value=0.0).filter(lambda v: v > -1e308)),
                ("predict t.csv --target y --forgetting", st.floats(1.0, 1e308, exclude_min=True)),
                ("predict t.csv --target y --alpha", st.floats(-1e308, 0.0, exclude_max=True).filter(lambda v: v < 0)),
            ]
        )
    )
    *words, flag = option.split()
    return [*words, f"{flag}={draw(values)!r}"], f"gdssm: {flag} must be "


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty directory to work in; an experiment that would start is a failure."""

    def started(*_: object) -> int:
        raise AssertionError("a wrong command line was run")

    monkeypatch.setattr(cli, "_reproduce", started)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_program_says_one_line_exits_with_2_and_writes_nothing(nothing_runs: Path) -> None:
    anything = st.builds(lambda words: (words, ""), st.lists(ANY_TEXT, max_size=4).filter(lambda w: not {"-h", "--help"} & set(w)))
    generated = wrong_lines(REAL).map(lambda case: (case[0], ""))

    @PLENTY
    @given(st.one_of(out_of_range(), generated, anything))
    def attack(case: tuple[list[str], str]) -> None:
        words, opening = case
        with captured() as (out, err), pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert (stop.value.code, out.getvalue()) == (2, "")
        assert err.getvalue().endswith("\n")
        assert_one_good_line(err.getvalue()[:-1], ["gdssm: ", opening])
        assert list(nothing_runs.iterdir()) == []

    attack()


ODD_PATHS = st.one_of(
    st.sampled_from(["/", "..", "new/..", "new/../new/x", "FILE/..", "FILE/x", "x" * 300, "x/" * 3000, "new\n/x", "~", "/proc/x"]),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20).filter(lambda t: "/" not in t),
)


def test_no_directory_makes_the_check_fall_over_or_leave_something(nothing_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nothing_runs / "FILE").touch()
    monkeypatch.setattr(cli, "_reproduce", lambda *_: 0)

    @settings(max_examples=100, derandomize=True)
    @given(ODD_PATHS)
    def attack(path: str) -> None:
        with captured() as (out, err), pytest.raises(SystemExit) as stop:
            cli.main(["reproduce", f"--out={path}"])
        assert stop.value.code in (0, 2)
        assert len(err.getvalue().splitlines()) == (stop.value.code == 2)
        assert out.getvalue() == ""
        assert [p.name for p in nothing_runs.iterdir()] == ["FILE"]

    attack()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a command is missing; allowed: everything, one, place, nothing; see demo --help"),
        (["evrything"], "'evrything' is no command (did you mean 'everything'?); allowed: everything, one, place, nothing"),
        (
            ["--versoin"],
            "--versoin is no option of demo (did you mean '--version'?); allowed: --help, --version, everything, one, place",
        ),
        (
            ["--weight_scale=1", "everything"],
            "--weight_scale stands before the command; allowed first: everything, one, place, nothing",
        ),
        (["--version", "x"], "'x' is one argument too many; --version stands alone"),
        (["one"], "NUMBER is missing; demo one needs it: the number"),
        (["one", "x"], "NUMBER is 'x'; an integer is needed"),
        (["one", "1", "2", "3"], "'3' is one argument too many; positional arguments of demo one: NUMBER NAME"),
        (["one", "1", "--ratio", "inf"], "--ratio is 'inf'; a finite number is needed"),
        (["one", "1", "--ratoi", "2"], "--ratoi is no option of demo one (did you mean '--ratio'?); allowed: --ratio, --help"),
        (["one", "1", "--ratio=1", "--ratio", "2"], "--ratio is given twice: '1' and '2'; one is allowed"),
        (["one", "1", "--ratio", "-x"], "--ratio needs a value ('-x' looks like an option; --ratio=VALUE takes any value)"),
        (["everything", "f", "--kind", "gradent"], "--kind is 'gradent' (did you mean 'gradient'?); allowed: gradient, conjugate"),
        (["everything", "f", "--level", "3"], "--level is '3'; allowed: 1, 2"),
        (["everything", "f", "1", "b"], "OTHER is 'b'; a finite number is needed"),
        (["everything", "f"], "--target is missing; demo everything needs it: a column, whose text goes on"),
        (["everything", "f", "--query", "--fast"], "--query needs a value: another file"),
        (["everything", "f", "--query", ""], "--query is ''; a path is needed"),
        (["everything", "f", "--no-fast=1"], "--no-fast takes no value, got '1'; allowed: --fast, --no-fast"),
        (["one", "1", "--a\nb"], "'--a\\nb' is no option of demo one; allowed: --ratio, --help"),
        (["one", "\udce9"], "NUMBER is '\\udce9'; an integer is needed"),
        (["one", "9" * 5000], f"NUMBER is '{'9' * 27}...{'9' * 28}'; an integer is needed"),
    ],
)
def test_messages(words: list[str], message: str) -> None:
    assert refusal(DEMO, words).startswith(message)


def test_values_that_look_like_options() -> None:
    calls.clear()
    assert prepare(DEMO, ["everything", "-1", "-2e3", "--target=--x=y", "--count", "-3", "--", "-4", "-5"])() == 0
    assert calls == [everything_with(first=Path("-1"), others=(-2000.0, -4.0, -5.0), target="--x=y", count=-3)]


def everything_with(**values: Any) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(everything).parameters.items()} | values


def test_the_librarys_own_errors_name_the_option_where_it_was_given() -> None:
    calls.clear()
    assert prepare(DEMO, ["one", "4"])() == 3
    with pytest.raises(ConfigError, match=r"^--ratio must be an integer >= 1, got 0$"):
        prepare(DEMO, ["one", "4", "--ratio", "0.25"])()


@pytest.mark.parametrize("command", [lambda *names: 0, lambda x: 0])
def test_functions_without_types_are_no_commands(command: Any) -> None:
    with pytest.raises(TypeError, match="needs a type"):
        parameters(command)


def test_signatures_that_no_command_line_has() -> None:
    def unknown(x: dict[str, int]) -> int:
        """Args:
        x: a dictionary
        """
        return len(x)

    def several(x: tuple[int, ...] = ()) -> int:
        """Args:
        x: numbers
        """
        return len(x)

    def bare(x: int) -> int:
        return x

    for command, message in ((unknown, "no argument has"), (several, "a tuple is positional"), (bare, "is not described")):
        with pytest.raises(TypeError, match=message):
            parameters(command)


def help_text(words: list[str], capsys: pytest.CaptureFixture[str], program: Program = DEMO) -> str:
    assert prepare(program, words)() == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_text(["--help"], capsys)
    assert text == help_text(["-h"], capsys)
    assert re.search(r"everything\s+Every kind of argument\.", text)
    assert "demo COMMAND --help" in " ".join(text.split())
    text = help_text(["everything", "--sedes", "--help"], capsys)
    for shown_there in (
        r"usage: demo everything ",
        r"FIRST +a file \(required\)",
        r"\[OTHER \.\.\.\]",
        r"OTHER +numbers",
        r"--target TEXT +a column, whose text goes on \(required\)",
        r"--count INT +how many \(default: 1\)",
        r"--weight-scale FLOAT\s+scale \(optional\)",
        r"--kind \{gradient,conjugate\}",
        r"--list, --no-list",
    ):
        assert re.search(shown_there, text), shown_there
    assert "None" not in text


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in cli.COMMANDS)], ids=" ".join)
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_fits_the_width(
    words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_text(words, capsys, REAL)
    assert max(map(len, text.splitlines())) <= columns
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert prepare(REAL, words)() == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_text(["--version"], capsys) == "demo 1.2\n"


PROGRAM = """
import sys
from gdssm import cli
try:
    cli.main()
finally:
    heavy = {"torch", "numpy", "matplotlib", "rich"} & set(sys.modules)
    if heavy:
        print("imported:", *heavy, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["invent"],
        ["--versoin"],
        ["reproduce", "on-step"],
        ["reproduce", "--preset", "fast"],
        ["reproduce", "--seeds", "many"],
        ["reproduce", "--seeds", "0"],
        ["reproduce", "--sedes", "3"],
        ["reproduce", "--seed", "1", "--seed", "2"],
        ["reproduce", "--out"],
        ["reproduce", "--out", "a\nb/" + "x" * 300],
        ["predict"],
        ["predict", b"\xff\n.csv", "--target", "y"],
        ["predict", "t.csv", "--target", "y", "--alpha", "-1"],
        ["predict", "t.csv", "extra", "--target", "y"],
    ],
    ids=repr,
)
def test_in_a_process_of_its_own(words: list[str | bytes], tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    message = done.stderr.decode()
    assert message.startswith("gdssm: ")
    assert_one_good_line(message.removesuffix("\n"), [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["reproduce", "--help"], ["predict", "-h", "--help"], ["--version"]], ids=" ".join)
def test_help_and_version_import_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith((b"usage: gdssm", b"gdssm "))
