"""minibatch: the closed form of the loss, what one pair of sums can and cannot do, and what claims say of made-up results."""

import copy
import json

import pytest
import torch

from gdssm import LinearRegression, experiments, learners, theory
from gdssm.analysis import squared_loss
from gdssm.experiments import minibatch, minibatch_report

TASK = LinearRegression(3, 2, 6)
TINY = minibatch.Preset(seeds=(0, 1), task=TASK, batches=(1, 4, 6), eval_tasks=100, fit_tasks=100, lambdas=(1.0, 0.8))


def test_the_last_minibatch_may_be_smaller():
    assert minibatch.minibatches(10, 4) == [4, 4, 2]
    assert minibatch.minibatches(10, 10) == [10]


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_the_closed_form_is_the_mean_over_tasks(batch):
    context = TASK.sample(60_000, seed=2)
    found = learners.minibatch(context.x, context.y, context.x_query, lr=2.0, batch=batch)
    zero = squared_loss(torch.zeros_like(context.y_query), context.y_query)
    expected = minibatch.expected_over_zero(TASK, batch, 2.0)
    assert squared_loss(found, context.y_query) / zero == pytest.approx(expected, rel=0.02)


def test_the_best_rate_is_the_best():
    for batch in (1, 4, 6):
        lr = minibatch.best_rate(TASK, batch)
        best = minibatch.expected_over_zero(TASK, batch, lr)
        assert all(minibatch.expected_over_zero(TASK, batch, lr * factor) > best for factor in (0.99, 1.01))
    lr, loss = theory.one_step_optimum(6, 3, x_var=1 / 12, x_fourth_moment=1 / 80)
    assert minibatch.best_rate(TASK, 6) == pytest.approx(lr)
    assert minibatch.expected_over_zero(TASK, 6, lr) == pytest.approx(loss / (0.5 * 3 / 12))


def test_one_pair_is_fitted_to_what_it_can_express():
    """Two full-batch steps are a polynomial of two terms, with forgetting too; a rate's sign cannot be wrong unnoticed."""
    context, other = (TASK.sample(80, seed=seed, dtype=torch.float64) for seed in (0, 1))
    for forgetting, lambdas in ((1.0, (1.0, 1.0)), (0.8, (0.8, 0.8))):
        options = {"lr": 2.0, "steps": 2, "forgetting": forgetting}
        pair = minibatch.Pair.fit(context, learners.gradient_descent(context.x, context.y, context.x_query, **options), 2, lambdas)
        wanted = learners.gradient_descent(other.x, other.y, other.x_query, **options)
        torch.testing.assert_close(pair.predict(other), wanted, rtol=1e-8, atol=1e-10)
        assert pair.residual < 1e-10


def test_the_experiment_runs(monkeypatch):
    monkeypatch.setitem(minibatch.PRESETS, "quick", TINY)
    found = experiments.run("minibatch")
    held = {claim.name: claim.holds for claim in found.claims}
    assert all(claim.holds for claim in found.claims if claim.kind == "identity")
    assert held["one_pair_stays_away_b_1"]
    assert len(found.claims) == 9
    json.dumps(found.record, allow_nan=False)


def test_states_grow_with_the_number_of_minibatches_and_sums_see_no_order():
    assert [minibatch.measured(TINY, b)["pairs"] for b in (1, 4, 6)] == [6, 2, 1]
    found = minibatch.order(TINY)
    assert found["moved"]["1"] > 0.1
    assert found["moved"]["6"] < 1e-12
    assert found["one_pair"] < 1e-12


def test_the_delta_rules_own_recurrence():
    context = TASK.sample(20, seed=5, dtype=torch.float64)
    wanted = learners.minibatch(context.x, context.y, context.x_query, lr=0.7, batch=1)[:, 0]
    torch.testing.assert_close(minibatch.delta_rule(context, 0.7), wanted, rtol=1e-10, atol=1e-12)


def made_up():
    found = {
        b: {
            "batch": b,
            "count": 6 // b,
            "pairs": 6 // b,
            "lr": 1.0,
            "expected": 0.5,
            "lambdas": [1.0, 0.9],
            "loss": [0.49, 0.51],
            "gap": [1e-15, 1e-15],
            "plain": [0.0 if b == 6 else 0.4] * 2,
            "near": [0.0 if b == 6 else 0.3] * 2,
            "steps": [0.4, 0.4],
        }
        for b in (1, 6)
    }
    return found, {"moved": {"1": 0.5, "6": 0.0}, "one_pair": 1e-16, "delta_gap": 1e-15}


def test_what_theory_expects_makes_every_claim_hold():
    found, order = made_up()
    assert [claim.name for claim in minibatch_report.claims(TASK, found, order) if not claim.holds] == []
    text = " ".join(minibatch_report.blocks(TASK, found, order)[0]["paragraphs"])
    assert "needs 6 pairs of states for b = 1" in text
    assert "better in 1 of 1 cases" in text


@pytest.mark.parametrize(
    ("part", "key", "value", "failing"),
    [
        (1, "gap", [1e-9, 0.0], "construction_gap"),
        (6, "plain", [1e-9, 0.0], "one_pair_full_batch"),
        (1, "loss", [0.53, 0.51], "loss_over_closed_form_b_1"),
        (1, "near", [0.05, 0.3], "one_pair_stays_away_b_1"),
        (1, "steps", [0.6, 0.6], "full_batch_steps_over_minibatches"),
        ("order", "one_pair", 1e-9, "one_pair_in_reverse_order"),
        ("order", "delta_gap", 1e-9, "delta_rule_by_its_own_recurrence"),
    ],
)
def test_claims_fail_where_they_should(part, key, value, failing):
    found, order = copy.deepcopy(made_up())
    (order if part == "order" else found[part])[key] = value
    assert [claim.name for claim in minibatch_report.claims(TASK, found, order) if not claim.holds] == [failing]
