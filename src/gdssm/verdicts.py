"""What the report says first: a line for each experiment, made from its claims or from what a run without claims measured."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .config import counted
from .records import KINDS, Experiment, Results
from .report_parts import table

GOALS = {"one-step": "one step of gradient descent"}  # experiments that ask whether a layer became this


def about(results: Results) -> str:
    """What was run, e.g. "one-step, preset quick, 20 seeds"."""
    preset = f", preset {results.preset}" if results.preset else ""
    seeds = f", {counted(len(results.seeds), 'seed')}" if results.seeds else ""
    return f"{results.experiment}{preset}{seeds}"


def successes(rate: float, seeds: int, goal: str) -> str:
    """How many random layers became goal: a count and the rate's interval, or a share where the rate is not one over seeds."""
    from .analysis import wilson_interval  # imports torch

    count = round(rate * seeds)
    if seeds == 0 or not 0 <= count <= seeds or abs(rate * seeds - count) > 1e-3:
        return f"{100 * rate:.3g} % of the random layers became {goal}"
    low, high = wilson_interval(count, seeds)
    interval = f"95 % interval of the rate: {100 * low:.0f} to {100 * high:.0f} %"
    return f"{count} of {counted(seeds, 'random layer')} became {goal} ({interval})"


def verdict(results: Results, variants: Sequence[Mapping[str, Any]] = ()) -> str:
    """One line on what came out.

    Of an experiment in GOALS it answers whether the layer became gradient descent: yes, where every identity and replication
    holds; the count comes from success_rate and the seeds, where both are there. Of any other it counts the claims that hold.
    Without claims there is neither, only what the variants of the record measured.
    """
    if not results.claims:
        return measured(variants)
    if results.experiment not in GOALS:
        return claims_held(results)
    failed = [claim for claim in results.claims if not claim.holds]
    required = [claim for claim in failed if claim.kind != "hypothesis"]
    rates = [claim.value for claim in results.claims if claim.name == "success_rate"]
    opening = "Yes"
    if required:
        opening = "Not entirely" if any(rates) else "No"
    if rates:
        line = f"{opening}: {successes(rates[0], len(results.seeds), GOALS[results.experiment])}"
    else:
        line = f"{opening}: {held(results)} hold"
    for kind, names in (
        ("claim", [claim.name for claim in required]),
        ("hypothesis", [claim.name for claim in failed if claim not in required]),
    ):
        if names:
            line += f"; {several(names, kind)} {'does' if len(names) == 1 else 'do'} not hold: {', '.join(names)}"
    return line + "."


def claims_held(results: Results) -> str:
    """How many claims hold, and the names of those that do not, by kind."""
    failed = {kind: [claim.name for claim in results.claims if claim.kind == kind and not claim.holds] for kind in KINDS}
    if not any(failed.values()):
        return f"All {len(results.claims)} claims hold." if len(results.claims) > 1 else "The one claim holds."
    line = f"{held(results)} hold"
    for kind, names in failed.items():
        if names:
            line += f"; {several(names, kind)} {'does' if len(names) == 1 else 'do'} not: {', '.join(names)}"
    return line + "."


def held(results: Results) -> str:
    """E.g. "6 of 7 claims"."""
    return f"{sum(claim.holds for claim in results.claims)} of {counted(len(results.claims), 'claim')}"


def several(names: Sequence[str], noun: str) -> str:
    """E.g. "1 hypothesis", "2 identities"."""
    plural = {"hypothesis": "hypotheses", "identity": "identities"}.get(noun, f"{noun}s")
    return f"{len(names)} {noun if len(names) == 1 else plural}"


def outcome(results: Results) -> str:
    """In a few words for a table: that all claims hold, or how many of each kind do not."""
    failed = {kind: [claim.name for claim in results.claims if claim.kind == kind and not claim.holds] for kind in KINDS}
    parts = [f"{several(names, kind)} {'fails' if len(names) == 1 else 'fail'}" for kind, names in failed.items() if names]
    if not results.claims:
        return "nothing tested"
    return ", ".join(parts) or "all claims hold"


def agrees(results: Results) -> bool:
    """Whether every identity and replication holds."""
    return all(claim.holds for claim in results.claims if claim.kind != "hypothesis")


def mark(results: Results) -> str:
    """A sign as HTML, coloured: a tick where all claims hold, a circle where only hypotheses fail or nothing was tested."""
    if not agrees(results):
        return '<span class="no">✗</span>'
    if results.claims and all(claim.holds for claim in results.claims):
        return '<span class="yes">✓</span>'
    return '<span class="open">○</span>'


def measured(variants: Sequence[Mapping[str, Any]]) -> str:
    """The last loss over that of one step of gradient descent and the last cosine, of each variant's worst seed."""
    lines = []
    for variant in variants:
        if not {"loss", "gd_loss", "sensitivity_cosine", "name"} <= variant.keys():
            continue
        losses = [row[-1] for row in variant["loss"]]
        ratio, cosine = max(losses) / variant["gd_loss"], min(row[-1] for row in variant["sensitivity_cosine"])
        whose = f"worst of {len(losses)} seeds" if len(losses) > 1 else "one seed"
        name = f"{variant['name']}: " if len(variants) > 1 else ""
        lines.append(f"{name}Loss {ratio:.5g} times one step of gradient descent, cosine {cosine:.5f} ({whose}).")
    return " ".join(lines) or "No claims were tested."


def opening(experiment: Experiment, line: str) -> str:
    """The question and the answer, its verdict, as HTML; of a layer that may have become gradient descent, whether it did."""
    if asks_about_gradient_descent(experiment):
        return f'<p class="verdict"><strong>Did it become gradient descent?</strong> {escape(line)}</p>'
    question = escape(experiment.record["question"])
    return f'<p class="verdict"><strong>{question}</strong> {mark(experiment.results)} {escape(line)}</p>'


def asks_about_gradient_descent(experiment: Experiment) -> bool:
    """An experiment in GOALS, or a training run: it has trained layers and no claims."""
    return experiment.results.experiment in GOALS or bool(experiment.record["variants"] and not experiment.results.claims)


def overview(experiments: Sequence[Experiment]) -> str:
    """How many of several experiments agree with the theory, and a table of them, as HTML; section i has the id e{i}."""
    tested = [experiment.results for experiment in experiments if experiment.results.claims]
    line = "No claims were tested."
    if tested:
        whole = sum(all(claim.holds for claim in results.claims) for results in tested)
        wrong = sum(not agrees(results) for results in tested)
        line = f"All claims hold in {whole} of {counted(len(tested), 'experiment')}."
        if open_ := len(tested) - whole - wrong:
            line += f" In {open_}, only hypotheses do not."
        if wrong:
            line += f" In {wrong}, an identity or a replication does not."
    rows = [
        [
            f'<a href="#e{i}">{escape(one.results.experiment)}</a>',
            f'<span class="came-out">{mark(one.results)} {outcome(one.results)}</span>',
            f"{sum(claim.holds for claim in one.results.claims)} of {len(one.results.claims)}" if one.results.claims else "none",
            f'<span class="asked">{escape(one.record["question"])}</span>',
            run_time(one.environment.get("seconds")),
        ]
        for i, one in enumerate(experiments)
    ]
    heads = ("experiment", "verdict", "claims held", "question", "run time")
    return (
        f'<p class="verdict"><strong>Does what was measured agree with the theory?</strong> {line}</p>\n'
        f"{table('Experiments', heads, rows, numeric=(2, 4))}\n"
        '<p class="note">Identities and replications have to hold; a hypothesis is put to the test, and one that fails is a '
        "result too.</p>"
    )


def run_time(seconds: object) -> str:
    """E.g. "12 s", "3 min 20 s", "1 h 5 min"; "unknown" without a number."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds < 0:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else "under 1 s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
