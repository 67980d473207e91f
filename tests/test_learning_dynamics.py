"""Learning dynamics: the recursion against gradients of drawn tasks and its own linearisation, half times, the claims."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gdssm import experiments
from gdssm.ensemble import Ensemble
from gdssm.experiments import learning_dynamics
from gdssm.experiments.learning_dynamics import PRESETS, growth, half_times, initial, predicted
from gdssm.tokens import as_predictor

SMALL = learning_dynamics.Preset(
    seeds=(0, 1), features=3, examples=5, scales=(0.1, 0.02), rate=0.02, steps=12, batch=16, every=2, curve_points=4, eval_tasks=50
)


def test_the_recursion_follows_the_gradient_of_drawn_tasks() -> None:
    """One step from C = c I, P = p I, its gradient by autograd over many tasks: the same change, and nothing off the diagonal."""
    sizes, scale = replace(SMALL, steps=2, every=1), 0.3
    context = sizes.task.sample(100_000, seed=1)
    eye = scale * torch.eye(3)
    c, p = eye.clone().requires_grad_(), eye.clone().requires_grad_()
    a = torch.einsum("bni,bnj->bij", context.y, context.x)
    prediction = torch.einsum("ij,bjk,kl,bl->bi", c, a, p, context.x_query[:, 0])
    loss = 0.5 * (prediction - context.y_query[:, 0]).square().mean()
    by_c, by_p = torch.autograd.grad(loss, (c, p))
    found = predicted(sizes, scale)
    assert found["losses"][0] == pytest.approx(loss.item(), rel=0.02)
    new_c, new_p = eye - sizes.rate * by_c, eye - sizes.rate * by_p
    start = scale**2
    ends = [start / mode for mode in found["modes"][0]]
    after = [mode * end for mode, end in zip(found["modes"][1], ends, strict=True)]
    measured = (new_c.diagonal().mean() * new_p.diagonal()).tolist()
    assert [m - start for m in measured] == pytest.approx([m - start for m in after], rel=0.03)
    for gradient in (by_c, by_p):
        off = gradient - gradient.diagonal().diag()
        assert float(off.abs().max()) < 0.05 * float(gradient.diagonal().abs().max())


def test_modes_end_at_the_best_preconditioner() -> None:
    found = predicted(replace(SMALL, steps=20_000, every=1000), 0.02)
    assert found["modes"][-1] == pytest.approx([1, 1, 1], rel=1e-3)
    from gdssm.experiments.preconditioned import predicted as closed_form

    assert found["losses"][-1] == pytest.approx(closed_form(SMALL.task)["preconditioned"], rel=1e-3)


def test_small_weights_grow_as_linearised() -> None:
    """A factor 10 in the scale costs ln 10 / ln(1 + h k) steps, where the scale is small."""
    sizes = replace(SMALL, rate=0.002, steps=4_000, every=1)
    times = [half_times(one["steps"], one["modes"])[0] for one in (predicted(sizes, scale) for scale in (1e-4, 1e-5))]
    assert times[1] - times[0] == pytest.approx(math.log(10) / math.log1p(sizes.rate * growth(sizes)), rel=0.005)


def test_only_c_and_p_are_trained_and_the_loss_falls() -> None:
    sizes = replace(SMALL, scales=(0.2,), steps=40)
    models = [initial(sizes, 0.2, seed) for seed in (0, 1)]
    ensemble = Ensemble(models)
    before = {name: value.detach().clone() for name, value in ensemble.parameters.items()}
    context = sizes.task.sample(500, seed=5)
    first = learning_dynamics.losses(ensemble, context)
    for step in range(40):
        learning_dynamics._descend(ensemble, sizes, step)
    changed = {name for name, value in ensemble.parameters.items() if not torch.equal(value, before[name])}
    assert changed == {"layer.c", "layer.key_map"}
    assert all(after < loss for after, loss in zip(learning_dynamics.losses(ensemble, context), first, strict=True))


def test_a_layer_starts_at_the_modes_that_the_recursion_starts_from() -> None:
    model = initial(SMALL, 0.5, 3)
    again, other = initial(SMALL, 0.5, 3), initial(SMALL, 0.5, 4)
    assert torch.equal(model.layer.c, again.layer.c)
    assert not torch.equal(model.layer.c, other.layer.c)
    assert float((model.layer.c[0] - 0.5 * torch.eye(3)).detach().std()) == pytest.approx(0.05, rel=0.6)
    context = SMALL.task.sample(4, seed=0)
    a = torch.einsum("bni,bnj->bij", context.y, context.x)
    expected = torch.einsum("ij,bjk,kl,bml->bmi", model.layer.c[0], a, model.layer.key_map[0], context.x_query)
    torch.testing.assert_close(as_predictor(model)(context), expected)


def test_half_times_are_read_between_points() -> None:
    modes = [[0.0, 0.6, 0.0, 0.1], [0.4, 0.9, 0.1, 0.4], [0.6, 1.0, 0.2, 0.9]]
    assert half_times([0, 10, 20], modes) == [pytest.approx(15), 0.0, None, pytest.approx(12)]


def made_up() -> dict[str, dict]:
    sizes = PRESETS["quick"]
    expected = [predicted(sizes, scale) for scale in sizes.scales]
    times = [half_times(one["steps"], one["modes"]) for one in expected]
    points = expected[0]["steps"][::10]
    return {
        "training": {
            "steps": expected[0]["steps"],
            "half_times": [[[f * time for time in scale] for f in (0.97, 1.0, 1.02)] for scale in times],
            "modes": [one["modes"] for one in expected],
            "points": points,
            "losses": [[[f * loss for loss in one["losses"][::10]] for f in (0.99, 1.0, 1.01)] for one in expected],
        }
    }


def test_the_quick_preset_is_predicted_to_end_within_its_steps() -> None:
    for scale in PRESETS["quick"].scales:
        assert min(predicted(PRESETS["quick"], scale)["modes"][-1]) > 0.9


def test_claims_on_results_as_expected() -> None:
    outcome = learning_dynamics.outcome(PRESETS["quick"], made_up())
    assert [claim.name for claim in outcome.claims if not claim.holds] == []
    assert "in the order of the spectrum in 100% of the 20 trainings" in outcome.record["blocks"][0]["paragraphs"][0]
    assert json.dumps(outcome.record, allow_nan=False)


def test_claims_on_results_that_fail() -> None:
    found = made_up()
    training = found["training"]
    for copies in training["half_times"]:
        for copy in copies:
            copy[0], copy[1], copy[-1] = copy[1], copy[0], None
    training["losses"][1] = [[loss + 0.5 for loss in one] for one in training["losses"][1]]
    outcome = learning_dynamics.outcome(PRESETS["quick"], found)
    assert {claim.name for claim in outcome.claims if not claim.holds} >= {
        "modes_in_order_of_spectrum",
        "half_time_over_predicted_highest",
        "loss_curve_deviation",
    }
    assert json.dumps(outcome.record, allow_nan=False)


def test_the_whole_experiment_at_toy_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(learning_dynamics.PRESETS, "quick", SMALL)
    found = experiments.run("learning-dynamics")
    assert found.seeds == (0, 1)
    assert len(found.claims) == 5
    assert np.isfinite(found.claims[-1].value)
    assert json.dumps(found.record, allow_nan=False)
