"""Experiments: one file per claim of the paper, found by name. No torch here: names and settings are checked first.

A new experiment is a file with SUMMARY, PRESETS and run(preset, seeds) -> Outcome, and one line in EXPERIMENTS.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..config import check_choice
from .claims import Claim

EXPERIMENTS = {
    "one-step": ("one_step", "does a randomly initialised layer become one step of gradient descent?"),
}
PRESETS = ("quick", "paper")
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Outcome:
    """What an experiment found: its claims and the record that figures are drawn from (JSON data)."""

    claims: tuple[Claim, ...]
    record: dict[str, Any]


def check_name(name: str) -> str:
    """The name, or ConfigError with the known ones."""
    check_choice("NAME", name, list(EXPERIMENTS))
    return name


def module(name: str) -> ModuleType:
    """The experiment's module; imports torch."""
    return importlib.import_module(f".{EXPERIMENTS[check_name(name)][0]}", __name__)
