"""Arguments of the command line: from functions and the given strings to a call, or one line that says why there is none.

A command is a function that returns an exit code. Its signature is the command line: parameters before "/" are positional
arguments, of which the last may be tuple[T, ...]; the others are options, --NAME VALUE or --NAME=VALUE, and --NAME or
--no-NAME for a bool. An underscore at the end of a name is left out, so that `list_` is --list. Types: str, int, float,
bool, Path, Literal, and each of them or None with the default None. The docstring's "Args:" describes every parameter.

Everything is checked here, against the signatures, because a parser's own messages differ between its versions and do not
name the value. argparse lays out the help.
"""

import argparse
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import ConfigError, UserError, near_miss, shown

Command = Callable[..., int]
_HELP = ("--help", "-h")


class ArgumentError(UserError):
    """A command line that cannot be used; the message names the argument, the value and what is allowed."""


@dataclass(frozen=True)
class Program:
    """What `prepare` needs to know: the program's name, a sentence about it, its version, and its commands by name."""

    name: str
    description: str
    version: str
    commands: Mapping[str, Command]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a command. type is without tuple and None; many: any number of positional arguments."""

    name: str
    type: Any
    positional: bool
    many: bool
    default: Any
    help: str

    @property
    def label(self) -> str:
        """--seeds for an option; CSV, or NAME for several `names`, for a positional argument."""
        word = self.name.rstrip("_")
        if not self.positional:
            return "--" + word.replace("_", "-")
        return (word.removesuffix("s") if self.many else word).upper()

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty

    @property
    def labels(self) -> tuple[str, ...]:
        """All that may stand on the command line for it."""
        return (self.label, f"--no-{self.label[2:]}") if self.type is bool else (self.label,)

    def value(self, text: str) -> Any:
        """The text as a value of the type; ArgumentError where it is none."""
        if typing.get_origin(self.type) is typing.Literal:
            return self._choice(text)
        convert, needed = _TYPES[self.type]
        try:
            return convert(text)
        except ValueError:
            raise ArgumentError(f"{self.label} is {shown(text)}; {needed} is needed") from None

    def _choice(self, text: str) -> Any:
        choices = {str(choice): choice for choice in typing.get_args(self.type)}
        if text not in choices:
            known = list(choices)
            raise ArgumentError(f"{self.label} is {shown(text)}{near_miss(text, known)}; allowed: {', '.join(known)}")
        return choices[text]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError
    return Path(text)


_TYPES: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "text"),
    int: (int, "an integer"),
    float: (_finite, "a finite number"),
    Path: (_path, "a path"),
}


def parameters(command: Command) -> list[Parameter]:
    """The parameters of a command; TypeError for a signature that is no command line."""
    hints, documented = typing.get_type_hints(command), _documented(command)
    found = []
    for name, parameter in inspect.signature(command).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name not in hints:
            raise TypeError(f"{command.__name__}: parameter {name} needs a type, and * or ** cannot be given")
        positional = parameter.kind is parameter.POSITIONAL_ONLY
        kind, many = _plain(hints[name])
        if kind is not bool and kind not in _TYPES and typing.get_origin(kind) is not typing.Literal:
            raise TypeError(f"{command.__name__}: parameter {name} has a type that no argument has: {hints[name]}")
        if (many and not positional) or (kind is bool and (positional or not isinstance(parameter.default, bool))):
            raise TypeError(f"{command.__name__}: {name}: a tuple is positional, a bool an option with a default")
        if name not in documented:
            raise TypeError(f"{command.__name__}: parameter {name} is not described under 'Args:'")
        found.append(Parameter(name, kind, positional, many, parameter.default, documented[name]))
    if any(parameter.many for parameter in [p for p in found if p.positional][:-1]):
        raise TypeError(f"{command.__name__}: only the last positional argument can be a tuple")
    return found


def _plain(hint: Any) -> tuple[Any, bool]:
    """The type without None and without tuple, and whether it was a tuple[T, ...]."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return (options[0], False) if len(options) == 1 else (hint, False)
    of = typing.get_args(hint)
    return (of[0], True) if typing.get_origin(hint) is tuple and len(of) == 2 and of[1] is Ellipsis else (hint, False)


def _documented(command: Command) -> dict[str, str]:
    """What the docstring's "Args:" says of each parameter."""
    _, _, block = (inspect.getdoc(command) or "").partition("Args:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(block).splitlines():
        start = re.match(r"(\w+): +(.*)", line)
        if start:
            name = start[1]
            texts[name] = start[2]
        elif not line.startswith(" "):
            break
        elif name:
            texts[name] += " " + line.strip()
    return texts


def prepare(program: Program, given: Sequence[str]) -> Callable[[], int]:
    """The call that the command line asks for, ready to run; ArgumentError where there is none."""
    commands = ", ".join(program.commands)
    if not given:
        raise ArgumentError(f"a command is missing; allowed: {commands}; see {program.name} --help")
    first, rest = given[0], given[1:]
    if first in _HELP:
        return functools.partial(_help, program)
    if first == "--version":
        if rest:
            raise ArgumentError(f"{shown(rest[0])} is one argument too many; --version stands alone")
        return functools.partial(_version, program)
    if first.startswith("-") and first not in program.commands:
        raise ArgumentError(_no_command(program, first.split("=")[0]))
    if first not in program.commands:
        raise ArgumentError(f"{shown(first)} is no command{near_miss(first, list(program.commands))}; allowed: {commands}")
    if any(word in _HELP for word in (rest[: rest.index("--")] if "--" in rest else rest)):
        return functools.partial(_help, program, first)
    command = program.commands[first]
    reader = _Reader(f"{program.name} {first}", parameters(command))
    reader.read(rest)
    return functools.partial(_call, command, *reader.arguments())


def _no_command(program: Program, name: str) -> str:
    """What is wrong with an option where a command is expected."""
    own, commands = ["--help", "--version"], ", ".join(program.commands)
    label = name.replace("_", "-")
    if any(label in parameter.labels for command in program.commands.values() for parameter in parameters(command)):
        return f"{name} stands before the command; allowed first: {commands}"
    return f"{_word(name)} is no option of {program.name}{near_miss(name, own)}; allowed: {', '.join(own)}, {commands}"


class _Reader:
    """Values of one command's parameters, read from left to right."""

    def __init__(self, title: str, known: list[Parameter]) -> None:
        self.title = title
        self.positional = [p for p in known if p.positional]
        self.options = [p for p in known if not p.positional]
        self.by_label = {label: p for p in self.options for label in p.labels}
        self.texts: dict[str, list[str]] = {}  # as given, by name
        self.values: dict[str, Any] = {}

    def read(self, words: Sequence[str]) -> None:
        """Take in all words; ArgumentError for the first that is wrong, or for what is missing."""
        waiting, literal = list(reversed(words)), False
        while waiting:
            word = waiting.pop()
            if word == "--" and not literal:
                literal = True
            elif literal or not _is_option(word):
                self._take(word)
            else:
                self._option(word, waiting)
        for parameter in (*self.positional, *self.options):
            if parameter.required and parameter.name not in self.values:
                raise ArgumentError(f"{parameter.label} is missing; {self.title} needs it: {parameter.help}")

    def arguments(self) -> tuple[list[Any], dict[str, Any], dict[str, str]]:
        """Positional arguments, keyword arguments, and the label of each name that was given."""
        known = (*self.positional, *self.options)
        positional = [self.values.get(p.name, p.default) for p in self.positional]
        options = {p.name: self.values[p.name] for p in self.options if p.name in self.values}
        return positional, options, {p.name: p.label for p in known if p.name in self.values}

    def _take(self, word: str) -> None:
        for parameter in self.positional:
            if parameter.many:
                self.values[parameter.name] = (*self.values.get(parameter.name, ()), parameter.value(word))
                return
            if parameter.name not in self.values:
                self.values[parameter.name] = parameter.value(word)
                return
        taken = " ".join(p.label for p in self.positional) or "none"
        raise ArgumentError(f"{shown(word)} is one argument too many; positional arguments of {self.title}: {taken}")

    def _option(self, word: str, waiting: list[str]) -> None:
        name, joined, text = word.partition("=")
        label = name.replace("_", "-")
        parameter = self.by_label.get(label)
        if parameter is None:
            allowed = [*self.by_label, "--help"]
            raise ArgumentError(
                f"{_word(name)} is no option of {self.title}{near_miss(label, allowed)}; allowed: {', '.join(allowed)}"
            )
        if parameter.type is bool:
            if joined:
                raise ArgumentError(f"{label} takes no value, got {shown(text)}; allowed: {', '.join(parameter.labels)}")
            self._keep(parameter, label, label == parameter.label)
            return
        if not joined:
            text = self._next(parameter, waiting)
        self._keep(parameter, text, parameter.value(text))

    def _next(self, parameter: Parameter, waiting: list[str]) -> str:
        """The word after an option. An option is no value, for then it was the value that was left out."""
        if waiting and not _is_option(waiting[-1]):
            return waiting.pop()
        follows = ""
        if waiting and waiting[-1] != "--" and waiting[-1].split("=")[0].replace("_", "-") not in self.by_label:
            follows = f" ({shown(waiting[-1])} looks like an option; {parameter.label}=VALUE takes any value)"
        raise ArgumentError(f"{parameter.label} needs a value{follows}: {parameter.help}")

    def _keep(self, parameter: Parameter, text: str, value: Any) -> None:
        before = self.texts.setdefault(parameter.name, [])
        if before:
            raise ArgumentError(f"{parameter.label} is given twice: {shown(before[0])} and {shown(text)}; one is allowed")
        before.append(text)
        self.values[parameter.name] = value


def _is_option(word: str) -> bool:
    """Whether a word stands for an option: it opens with a hyphen, and is neither "-" nor a number."""
    if not word.startswith("-") or word == "-":
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


def _word(name: str) -> str:
    """An option as it was typed; quoted, escaped and shortened where it is not plain and short."""
    return name if re.fullmatch(r"-[!-~]{0,39}", name) else shown(name)


def _call(command: Command, positional: list[Any], options: dict[str, Any], labels: dict[str, str]) -> int:
    """Run. An error of the library about a parameter that was given names it as it stands on the command line."""
    try:
        return command(*positional, **options)
    except UserError as error:
        name, _, rest = str(error).partition(" ")
        if name not in labels:
            raise
        raise ConfigError(f"{labels[name]} {rest}") from None


def _version(program: Program) -> int:
    print(f"{program.name} {program.version}")
    return 0


def _help(program: Program, name: str | None = None) -> int:
    """Print the help of the program, or of one command."""
    parser = _parser(program) if name is None else _command_parser(f"{program.name} {name}", program.commands[name])
    _print(parser.format_help().rstrip())
    return 0


class _Layout(argparse.HelpFormatter):
    """Names and their explanations on one line, where a name is not very long."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


def _parser(program: Program) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program.name, description=program.description, formatter_class=_Layout)
    parser.epilog = f"{program.name} COMMAND --help explains a command."
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in program.commands.items():
        commands.add_parser(name, help=_escaped(_summary(command)))
    return parser


def _command_parser(title: str, command: Command) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(title, description=_summary(command), formatter_class=_Layout)
    for parameter in parameters(command):
        about: dict[str, Any] = {"help": _escaped(f"{parameter.help} {_default(parameter)}")}
        if parameter.type is bool:
            about["action"] = argparse.BooleanOptionalAction
        else:
            about["metavar"] = _metavar(parameter)
        if parameter.positional:
            parser.add_argument(parameter.name, **about, nargs="*" if parameter.many else None if parameter.required else "?")
        else:
            parser.add_argument(parameter.label, **about, required=parameter.required)
    return parser


def _summary(command: Command) -> str:
    return " ".join((inspect.getdoc(command) or "").partition("Args:")[0].split())


def _escaped(text: str) -> str:
    """For argparse, which formats help texts with %."""
    return text.replace("%", "%%")


def _default(parameter: Parameter) -> str:
    """What stands behind the help of a parameter."""
    if parameter.required:
        return "(required)"
    if parameter.default is None:
        return "(optional)"
    if parameter.type is bool:
        return f"(default: {'yes' if parameter.default else 'no'})"
    default = " ".join(map(str, parameter.default)) if parameter.many else parameter.default
    return f"(default: {default})" if default != "" else "(optional)"


def _metavar(parameter: Parameter) -> str:
    if parameter.positional:
        return parameter.label
    if typing.get_origin(parameter.type) is typing.Literal:
        return "{" + ",".join(str(choice) for choice in typing.get_args(parameter.type)) + "}"
    return {str: "TEXT", Path: "PATH"}.get(parameter.type, parameter.type.__name__.upper())


def _print(text: str) -> None:
    """Print, in ASCII where the output takes nothing else."""
    try:
        print(text)
    except UnicodeEncodeError:
        print(text.encode("ascii", "replace").decode())
