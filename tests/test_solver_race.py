"""The race of solvers: closed forms of residuals, what a race measures, and what claims say of made-up races."""

import json
import math

import pytest
import torch

from gdssm import experiments
from gdssm.experiments import solver_race, solver_race_report

TINY = solver_race.Preset(seeds=(0, 1), conditions=(10.0, 1e3), d=4, n=6, tasks=3, most_steps=600, points=14)


def test_the_tasks_have_the_condition_that_is_asked_for():
    tasks = solver_race.problem(TINY, 1e3)
    gram = tasks.context.x.mT @ tasks.context.x
    torch.testing.assert_close(torch.linalg.cond(gram), torch.full((6,), 1e3, dtype=torch.float64), rtol=1e-8, atol=0)
    torch.testing.assert_close(gram, tasks.v * tasks.values @ tasks.v.mT)
    torch.testing.assert_close(tasks.context.y, tasks.context.x @ tasks.w.mT)


@pytest.mark.parametrize("solver", ["gd", "momentum", "chebyshev", "newton"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_residuals_in_closed_form_are_those_of_the_recurrence(solver, steps):
    """On a diagonal B one number at a time: what is left of W is W p(lambda)."""
    tasks = solver_race.problem(TINY, 10.0)
    rate, momentum = solver_race._coefficients("gd" if solver == "gd" else "momentum", 10.0)
    p, before = torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    if solver == "newton":
        gram = tasks.context.x.mT @ tasks.context.x
        inverse = gram / (gram.abs().sum(1).amax(1) * gram.abs().sum(2).amax(1))[:, None, None]
        for _ in range(steps):
            inverse = 2 * inverse - inverse @ gram @ inverse
        left = torch.eye(4, dtype=torch.float64) - gram @ inverse
        p = torch.einsum("bij,bik,bkj->bj", tasks.v, left, tasks.v)
    elif solver == "chebyshev":
        points = torch.cos((torch.arange(steps, dtype=torch.float64) + 0.5) * math.pi / steps)
        for root in (1.1 + 0.9 * points) / 2:  # the optimal polynomial by its roots
            p = p * (1 - tasks.values / root)
    else:
        for _ in range(steps):
            p, before = p - rate * tasks.values * p + (momentum if solver == "momentum" else 0) * (p - before), p
    torch.testing.assert_close(solver_race.residual(solver, TINY, 10.0, steps, tasks), p, rtol=1e-9, atol=1e-12)


def test_a_race_counts_steps_and_agrees_with_the_closed_form():
    found = solver_race.race(TINY, "chebyshev", 10.0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["whole"] == pytest.approx(found["theory"], rel=1e-3)
    assert found["to_tolerance"] == found["predicted"] == sorted(found["predicted"])
    run = solver_race._Race(TINY, "chebyshev", 10.0)
    with torch.no_grad():
        assert run.all(found["to_tolerance"][1]) <= 1e-10 < run.all(found["to_tolerance"][1] - 1)
    assert found["closed_form_gap"] < 1e-12
    assert found["learner_gap"] < 1e-12


def test_the_experiment_runs_and_its_claims_hold(monkeypatch):
    monkeypatch.setitem(solver_race.PRESETS, "quick", TINY)
    found = experiments.run("solver-race")
    unread = {"gd_speed_at_1000"}  # it does not arrive in 600 steps, so there is no rate to read off
    assert {claim.name for claim in found.claims if not claim.holds} <= unread
    assert len(found.claims) == 14
    assert found.seeds == (0, 1)
    text = " ".join(found.record["blocks"][0]["paragraphs"])
    assert "gradient descent not within 600 (least error" in text
    json.dumps(found.record, allow_nan=False)


def made_up(factor, gap=0.0, after=1e-12, order=2.0):
    """A race whose error falls by the factor in each step while its limit is 0.5."""
    errors = [factor**k for k in range(1, 40)]
    return {
        "steps": list(range(1, 40)),
        "curve": [[error, 2 * error] for error in errors],
        "whole": errors,
        "theory": [0.5**k for k in range(1, 40)],
        "contraction": 0.5,
        "orders": [order] * 3,
        "to_tolerance": [20, None],
        "predicted": [20, 34],
        "after": [after, after],
        "closed_form_gap": gap,
        "learner_gap": gap,
    }


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, set()),
        ({"factor": 0.57}, {"gd_speed", "momentum_speed", "chebyshev_speed"}),  # ln 0.57 / ln 0.5 = 0.81
        ({"gap": 2e-11}, {"closed_form_gap", "learner_gap"}),
        ({"after": 2e-10}, {"cg_error_after_d"}),
        ({"order": 1.5}, {"newton_order"}),
    ],
)
def test_claims_fail_where_they_should(changed, failing):
    races = {10.0: {name: made_up(**{"factor": 0.5, **changed}) for name in solver_race.SOLVERS}}
    found = solver_race_report.claims(races)
    assert {claim.name.removesuffix("_at_10") for claim in found if not claim.holds} == failing
    solver_race_report.blocks(races, 4, (1e-6, 1e-10))


def test_no_claim_is_made_where_float64_is_the_limit():
    assert solver_race_report.claims({1e6: {name: made_up(0.5) for name in solver_race.SOLVERS}}) == ()


def test_slopes_and_orders():
    assert solver_race_report.exponent([1, 2, 3, 4], [0.5, 1e-3, 1e-5, 1e-12]) == pytest.approx(math.log(1e-2))
    assert solver_race_report.exponent([1, 2], [0.5, 1e-3]) is None
    assert solver_race_report.order([1e-1, 1e-2, 1e-4, 1e-8], 1e-11) == pytest.approx(2)
    assert solver_race_report.order([1e-1, 1e-2, 1e-3, 1e-4, 1e-13], 1e-11) == pytest.approx(1)
    assert solver_race_report.order([1e-1, 1e-12], 1e-11) is None
