"""The experiment on lengths: forms of the rate, computed curves, claims, and a run at toy size."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from gdssm import LinearRegression, as_predictor, experiments, learners
from gdssm.analysis import squared_loss
from gdssm.ensemble import Ensemble
from gdssm.experiments import length_shift
from gdssm.experiments.trainings import held_out, optimum
from gdssm.settings import TrainConfig
from gdssm.tasks import MixedLengths

TASK = LinearRegression(3, 3, 5)
TINY = length_shift.Preset(
    seeds=(0, 1),
    training=TrainConfig(task=TASK, steps=6, batch=8, warmup=2),
    rates=(0.01,),
    lengths=(3, 6),
    tested=(3, 6, 50),
    eval_tasks=60,
)
QUICK = length_shift.PRESETS["quick"]


def test_mixed_lengths_take_turns_and_draw_what_one_length_draws():
    law = MixedLengths(2, 1, lengths=(3, 7), input_range=2.0, noise_std=0.1)
    assert [law.sample(2, seed=0, step=step).x.shape[1] for step in range(4)] == [3, 7, 3, 7]
    one = LinearRegression(2, 1, 7, input_range=2.0, noise_std=0.1).sample(4, seed=5, step=3)
    assert torch.equal(law.sample(4, seed=5, step=3).y, one.y)
    assert torch.allclose(law.sample(4, seed=5, step=3).y_query, one.x_query @ law.true_weights(4, seed=5, step=3).mT)
    for wrong in ((), (3, 0), [3]):
        with pytest.raises(ValueError, match="lengths must be"):
            MixedLengths(lengths=wrong)


@pytest.mark.parametrize("form", length_shift.FORMS)
def test_a_form_of_the_rate_is_what_it_says(form):
    """With the construction's weights, predictions at two lengths are steps at the rates of the form."""
    module = length_shift.build(form, TASK, 0)
    model = module.model if form == "mean" else module
    w_q = torch.zeros(3, 3)
    w_q[0, 1] = 1
    model.layer.load_arrays(w_q=w_q, c=0.7 * torch.eye(3), d=torch.tensor([0.0, 0.0, 1.0]))
    if form == "offset":
        with torch.no_grad():
            model.layer.count_offset.fill_(4.0)
    for n in (5, 8):
        context = replace(TASK, n_examples=n).sample(20, seed=0)
        c = {"sum": 0.7, "mean": 0.7 / n, "offset": 0.7 / (n + 4)}[form]
        wanted = learners.gradient_descent(context.x, context.y, context.x_query, lr=n * c)
        torch.testing.assert_close(as_predictor(module)(context), wanted)


def test_copies_of_a_mean_rate_are_computed_at_once_as_alone():
    modules = [length_shift.build("mean", TASK, seed) for seed in (1, 2)]
    tokens = torch.randn(4, 13, 3, generator=torch.Generator().manual_seed(0))
    both = Ensemble(modules)(tokens)
    for found, module in zip(both, modules, strict=True):
        torch.testing.assert_close(found, module(tokens))


@pytest.mark.parametrize("form", ["sum", "mean"])
@pytest.mark.parametrize("lengths", [(5,), (3, 12)])
def test_the_computed_curve_is_what_tasks_show(form, lengths):
    """The best number from drawn tasks, by least squares, and its losses over the best steps'."""
    task, tested = LinearRegression(4, 2, 5), (3, 12, 40)
    both = square = 0.0
    for n in lengths:
        context = replace(task, n_examples=n).sample(40_000, seed=1)
        unit = learners.gradient_descent(context.x, context.y, context.x_query, lr=n if form == "sum" else 1.0)
        both, square = both + float((unit * context.y_query).mean()), square + float(unit.square().mean())
    for n, wanted in zip(tested, length_shift.computed(task, form, lengths, tested), strict=True):
        one = replace(task, n_examples=n)
        context = held_out(one, 10_000)

        def loss(rate, context=context):
            return squared_loss(learners.gradient_descent(context.x, context.y, context.x_query, lr=rate), context.y_query)

        rate = both / square * (n if form == "sum" else 1)
        assert loss(rate) / loss(optimum(one)[0]) == pytest.approx(wanted, rel=0.06)


def test_the_offset_makes_the_rate_right_at_every_length():
    n0 = length_shift.best_offset(TASK)
    assert length_shift.best_offset(LinearRegression()) == pytest.approx(9.8)
    for n in (1, 5, 100):
        assert 1 / (TASK.input_variance * (n + n0)) == pytest.approx(optimum(replace(TASK, n_examples=n))[0] / n, rel=1e-12)
    assert length_shift.computed(TASK, "offset", (3,), (3, 9)) == [1.0, 1.0]


def expected():
    """Results as they are computed."""
    task, found = QUICK.training.task, {}
    for form, lengths in length_shift.VARIANTS:
        on = QUICK.lengths if lengths == "mixed" else (10,)
        curve = length_shift.computed(task, form, on, QUICK.tested)
        offsets = [9.8] * 5 if form == "offset" else [None] * 5
        found[f"{form}-{lengths}"] = {"rate": 0.02, "ratios": [[ratio] * 5 for ratio in curve], "offsets": offsets}
    return found


def failing(results):
    return {claim.name for claim in length_shift.outcome(QUICK, results).claims if not claim.holds}


def test_what_is_computed_makes_every_claim_hold():
    assert failing(expected()) == set()
    outcome = length_shift.outcome(QUICK, expected())
    predicted = {claim.name: claim.predicted for claim in outcome.claims}
    assert predicted["fixed_eta_over_optimum_at_50"] == pytest.approx(1.80, abs=0.01)
    assert predicted["learned_offset"] == pytest.approx(9.8)
    text = " ".join(outcome.record["blocks"][0]["paragraphs"])
    assert "the worst ratio at any tested length and seed is 1.0000" in text
    assert "The offsets learned are 9.8 to 9.8; the computed one is d - 2 + m4 / s^2 = 9.8" in text


@pytest.mark.parametrize(
    ("job", "length", "factor", "claims"),
    [
        ("sum-one", 3, 1.06, {"sum_off_computed_curve"}),
        ("sum-mixed", -1, 0.93, {"sum_off_computed_curve"}),
        ("mean-mixed", 0, 1.06, {"mean_off_computed_curve"}),
        ("offset-mixed", -1, 1.011, {"offset_over_optimum"}),
    ],
)
def test_one_seed_at_one_length_is_enough_to_fail(job, length, factor, claims):
    results = copy.deepcopy(expected())
    results[job]["ratios"][length][2] *= factor
    assert failing(results) == claims
    results[job]["ratios"][length][2] = None
    assert failing(results) == claims


def test_offsets_and_known_lengths_are_held_to():
    results = copy.deepcopy(expected())
    results["offset-mixed"]["offsets"][1] = 9.2
    assert failing(results) == {"learned_offset"}
    results = copy.deepcopy(expected())
    results["mean-one"]["ratios"][-1] = [14.0] * 5
    assert failing(results) == {"mean_off_computed_curve", "fixed_eta_over_optimum_at_500"}


def test_the_whole_experiment_at_toy_size(monkeypatch):
    monkeypatch.setitem(length_shift.PRESETS, "quick", TINY)
    found = experiments.run("length-shift")
    assert found.seeds == (0, 1)
    assert json.dumps(found.record, allow_nan=False)
    assert not any(claim.holds for claim in found.claims if claim.name.endswith("computed_curve"))  # six steps teach nothing
