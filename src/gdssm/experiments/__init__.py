"""Experiments: one file per question, found by name. No torch here: names and settings are checked first.

A new experiment is a file with

    PRESETS                                     "quick" and "paper": its sizes, a frozen dataclass made from Sizes
    jobs(sizes) -> dict of name -> Job          the independent parts, each a function whose result is JSON data
    further(sizes, results) -> dict of Jobs     optional: parts that depend on the results of those, by name
    outcome(sizes, results) -> Outcome          claims and record from the jobs' results, by name

and one line in EXPERIMENTS. docs/extending.md shows one.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Self

from ..config import ConfigError, check_choice
from .claims import Claim
from .jobs import Job, run_jobs

EXPERIMENTS = {
    "one-step": ("one_step", "does a randomly initialised layer become one step of gradient descent?"),
    "token-layouts": ("token_layouts", "does training find it in every layout of the tokens?"),
    "multi-step": ("multi_step", "what do k steps become when trained: at a readout, as the paper's block, in stacked layers?"),
    "depth-and-noise": ("depth_and_noise", "gradient descent, ridge or Bayes: what are k trained steps, with and without noise?"),
    "minibatch": ("minibatch", "which gradient descent in minibatches can a diagonal state do, and what does it gain?"),
    "solver-race": ("solver_race", "how many steps does each solver at the readout need, and is it on its theoretical rate?"),
    "nonlinear": ("nonlinear", "does an MLP in front learn features on which one gradient step fits sines?"),
    "classification": ("classification", "which steps on cross-entropy can layers take, and does training find them?"),
    "out-of-distribution": (
        "out_of_distribution",
        "does the trained layer stay gradient descent on other tasks than those of training?",
    ),
    "boundary-values": (
        "boundary_values",
        "what is predicted far beyond the range of training, and is there a largest prediction?",
    ),
    "dimensions": ("dimensions", "does training find it for 5 to 50 inputs and contexts of 5 to 200 examples?"),
    "length-shift": ("length_shift", "which form of the learning rate stays right at lengths that were not trained?"),
    "drift": ("drift", "does a learned decay forget at the best rate where the task drifts?"),
    "preconditioning": ("preconditioning", "what do a matrix on the input side and a linear skip add to one step?"),
    "learning-dynamics": ("learning_dynamics", "in what order does training learn directions of unequal variance?"),
    "window": ("window", "how wide must the window be, and does the order within pairs matter?"),
    "scaling": ("scaling", "how do time and memory of training grow with context, features, tasks, seeds and threads?"),
    "baselines": ("baselines", "which other architectures become it, with and without the window, in one and two layers?"),
    "lm": ("lm", "how many bits per character do deep models of the layer need, beside others of the same size?"),
    "recall": ("recall", "how much state does it take to recall the values of many keys at once?"),
    "listops": ("listops", "what does the recurrence add to evaluating nested expressions, and at which depths?"),
    "in-context-depth": ("in_context_depth", "which learner does a deep stack become when it predicts after every example?"),
    "images": ("images", "can images be read pixel by pixel, and what does the recurrence add?"),
}
# Fields of an experiment's sizes that a user may set, and where they are.
OPTIONS = {"text": ("lm",), "contenders": ("lm", "recall", "listops", "images"), "lra": ("listops",)}
PRESETS = ("quick", "reduced", "paper")
MOST_SEEDS = 10_000
MOST_WORKERS = 1_000


@dataclass(frozen=True)
class Sizes:
    """How large an experiment is; each adds its own numbers."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def seeded(self, count: int | None, first: int) -> Self:
        """The same with `count` seeds (as many as before where None) from `first` on."""
        return replace(self, seeds=tuple(range(first, first + (count or len(self.seeds)))))


@dataclass(frozen=True)
class Outcome:
    """What an experiment found: its claims, the record that figures are drawn from (JSON data), and the seeds it used."""

    claims: tuple[Claim, ...]
    record: dict[str, Any]
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """An experiment with its sizes settled."""

    name: str
    module: ModuleType
    sizes: Sizes

    def jobs(self) -> dict[str, Job]:
        """The experiment's jobs by name."""
        found: dict[str, Job] = self.module.jobs(self.sizes)
        return found

    def further(self, results: Mapping[str, dict[str, Any]]) -> dict[str, Job]:
        """The jobs that are known only from the results of `jobs`; none for most experiments."""
        found: dict[str, Job] = self.module.further(self.sizes, results) if hasattr(self.module, "further") else {}
        return found

    def outcome(self, results: Mapping[str, dict[str, Any]]) -> Outcome:
        """Claims and record from the results of all jobs."""
        found: Outcome = self.module.outcome(self.sizes, results)
        return found


def named(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once, with all experiments for "all"; ConfigError with the known ones for another."""
    for name in names:
        check_choice("NAME", name, [*EXPERIMENTS, "all"])
    return tuple(EXPERIMENTS) if "all" in names else tuple(dict.fromkeys(names))


def check_options(names: Sequence[str], options: Mapping[str, Any]) -> None:
    """ConfigError where an option is given for an experiment that does not have it."""
    for option in options:
        for name in names:
            if name not in OPTIONS.get(option, ()):
                owners = ", ".join(OPTIONS.get(option, ())) or "none"
                raise ConfigError(f"--{option} is given, which {name} does not take; experiments that do: {owners}")


def plan(
    name: str, preset: str = "quick", seeds: int | None = None, first_seed: int = 0, options: Mapping[str, Any] | None = None
) -> Plan:
    """The experiment at a preset, with so many seeds in place of the preset's number; imports torch.

    options   fields of its sizes that a user may set, see OPTIONS

    Raises ConfigError for an unknown name or preset, one that the experiment does not have, and options it does not take.
    """
    check_choice("name", name, list(EXPERIMENTS))
    check_choice("preset", preset, PRESETS)
    check_options([name], options or {})
    module = importlib.import_module(f".{EXPERIMENTS[name][0]}", __name__)
    if preset not in module.PRESETS:
        raise ConfigError(f"preset is {preset!r}, which {name} does not have; allowed: {', '.join(module.PRESETS)}")
    return Plan(name, module, replace(module.PRESETS[preset].seeded(seeds, first_seed), **(options or {})))


def run(name: str, preset: str = "quick", seeds: int | None = None, first_seed: int = 0) -> Outcome:
    """Run one experiment in this process, without files."""
    chosen = plan(name, preset, seeds, first_seed)
    results = {job: finished.result for job, finished in run_jobs(chosen.jobs()).items()}
    results |= {job: finished.result for job, finished in run_jobs(chosen.further(results)).items()}
    return chosen.outcome(results)
