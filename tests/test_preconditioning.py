"""Preconditioning: closed forms and explicit learners against drawn tasks, the sampler with a prior mean, the claims."""

import json

import pytest
import torch

from gdssm import LinearRegression, construct, experiments, theory
from gdssm.analysis import squared_loss
from gdssm.experiments import preconditioning
from gdssm.experiments.preconditioned import SCALINGS, explicit, falling, over_step_from_mean, predicted, stated_losses
from gdssm.experiments.preconditioning import MEAN_MODELS, PRESETS, cells
from gdssm.settings import ModelConfig, TrainConfig
from gdssm.tasks import ShiftedRegression
from gdssm.tokens import as_predictor
from gdssm.train import build_model

TINY = preconditioning.Preset(
    seeds=(0, 1),
    features=3,
    examples=6,
    mean_examples=5,
    noise=(1.0,),
    training=TrainConfig(steps=8, batch=8, warmup=2),
    rates=(1e-3, 1e-2),
    validation_tasks=50,
    eval_tasks=100,
)


def test_equal_variances_give_the_closed_form_of_one_step() -> None:
    moments = {"variances": [0.3] * 6, "fourth_moments": [0.2] * 6, "noise_var": 0.4, "weight_var": 2.0}
    lr, loss = theory.one_step_optimum(9, 6, x_var=0.3, x_fourth_moment=0.2, noise_var=0.4, weight_var=2.0)
    assert theory.scalar_step(9, **moments) == pytest.approx((lr / 9, loss), rel=1e-12)
    rates, best = theory.preconditioned_step(9, **moments)
    assert rates == pytest.approx([lr / 9] * 6, rel=1e-12)
    assert best == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize(("inputs", "noise"), [("gaussian", 0.0), ("uniform", 0.5)])
def test_expected_losses_on_drawn_tasks(inputs: str, noise: float) -> None:
    task = falling(4, 12, inputs=inputs, noise_std=noise)
    found = explicit(task, task.sample(40_000, seed=3))
    expected = predicted(task)
    assert found["scalar"] == pytest.approx(expected["scalar"], rel=0.02)
    assert found["preconditioned"] == pytest.approx(expected["preconditioned"], rel=0.02)
    assert found["preconditioned"] < found["scalar"]
    assert found["bayes"] < found["preconditioned"]


def test_the_best_rates_are_a_minimum_among_all_matrices() -> None:
    """The loss on drawn tasks is a parabola in P; its minimum over full matrices, by least squares, is near the diagonal one."""
    task = falling(3, 10)
    context = task.sample(30_000, seed=4, dtype=torch.float64)
    a = torch.einsum("bnj,bni->bji", context.y, context.x)
    features = torch.einsum("bji,bk->bjik", a, context.x_query[:, 0]).flatten(2).flatten(0, 1)
    target = context.y_query[:, 0].flatten()
    p = torch.linalg.lstsq(features, target).solution.reshape(3, 3)
    rates = torch.tensor(predicted(task)["rates"], dtype=torch.float64)
    torch.testing.assert_close(p.diagonal(), rates, rtol=0.03, atol=0)
    assert float((p - p.diagonal().diag()).abs().max()) < 0.05 * float(rates.max())


@pytest.mark.parametrize("field", ["variances", "fourth_moments"])
def test_moments_that_do_not_fit_are_errors(field: str) -> None:
    good = {"variances": [1.0, 2.0], "fourth_moments": [3.0, 12.0]}
    for wrong in ([1.0], [], [[1.0, 2.0]], [float("nan"), 1.0], [0.0, 1.0]):
        with pytest.raises(ValueError, match="variances"):
            theory.preconditioned_step(5, **(good | {field: wrong}))


def test_the_stated_losses_belong_to_one_scaling_alone() -> None:
    found = stated_losses()
    assert found["gaussian, mean variance 1/12"] == pytest.approx({"scalar": 0.1619, "preconditioned": 0.0829}, abs=1e-4)
    assert found["uniform, first variance 1/12"] == pytest.approx({"scalar": 0.0453, "preconditioned": 0.0218}, abs=1e-4)
    others = [name for name, losses in found.items() if abs(losses["scalar"] - 0.1619) < 0.005]
    assert others == ["gaussian, mean variance 1/12"]
    assert set(found) == set(SCALINGS)


def test_a_prior_mean_shifts_weights_and_targets() -> None:
    task = ShiftedRegression(3, 2, 5, n_queries=2, mean_scale=2.0)
    context, plain = (
        task.sample(50, seed=1, dtype=torch.float64),
        LinearRegression(3, 2, 5, n_queries=2).sample(50, seed=1, dtype=torch.float64),
    )
    w0 = task.mean(torch.float64)
    torch.testing.assert_close(context.y - plain.y, plain.x @ w0.T)
    torch.testing.assert_close(context.y_query, context.x_query @ task.true_weights(50, seed=1, dtype=torch.float64).mT)
    assert torch.equal(w0, ShiftedRegression(3, 2, 9, mean_scale=2.0).mean(torch.float64))
    assert not torch.equal(w0, ShiftedRegression(3, 2, 5, mean_scale=2.0, mean_seed=1).mean(torch.float64))


def test_one_step_from_the_mean_is_the_construction() -> None:
    task = ShiftedRegression(3, 3, 5)
    context = task.sample(200, seed=2, dtype=torch.float64)
    lr, _ = theory.one_step_optimum(5, 3, x_var=task.input_variance, x_fourth_moment=task.input_fourth_moment)
    built = construct.gradient_descent(3, 3, lr=lr, n_context=5, w0=task.mean(torch.float64), dtype=torch.float64)
    loss = squared_loss(as_predictor(built)(context), context.y_query)
    assert explicit(task, context)["from_mean"] == pytest.approx(loss, rel=1e-9)


def test_losses_with_a_prior_mean_by_least_squares_over_c_and_f() -> None:
    """Without P and the second head a prediction is linear in C and F, so the least loss on drawn tasks is known."""
    task = ShiftedRegression(3, 3, 6, mean_seed=5)
    context = task.sample(60_000, seed=6, dtype=torch.float64)
    _, loss = theory.one_step_optimum(6, 3, x_var=task.input_variance, x_fourth_moment=task.input_fourth_moment)
    target, query = context.y_query[:, 0], context.x_query[:, 0]
    aq = torch.einsum("bnj,bni,bi->bj", context.y, context.x, query)
    for model, features in (("plain", aq), ("feedthrough", torch.cat([aq, query], dim=1))):
        best = features @ torch.linalg.lstsq(features, target).solution
        assert squared_loss(best, target) / loss == pytest.approx(over_step_from_mean(task, model), rel=0.02)
    assert over_step_from_mean(task, "two-heads-feedthrough") == 1


def test_the_preconditioner_of_a_layer_is_on_the_scale_of_the_rates() -> None:
    """For a layer that is one preconditioned step, up to the scale that w_q, d and C share."""
    task = LinearRegression(3, 3, 5)
    model = build_model(ModelConfig(key_map=True, decay="none"), task, 0)
    layer = model.layer
    with torch.no_grad():
        layer.load_arrays(w_q=[[0, 2, 0], [0, 0, 0], [0, 0, 0]], d=[0, 0, 0.5], c=3 * torch.eye(3))
        layer.key_map.copy_(torch.diag(torch.tensor([0.1, 0.2, 0.3]))[None])
    found = preconditioning._preconditioner(model)
    context = task.sample(20, seed=0)
    step = torch.einsum("bnj,bni,bmi->bmj", context.y, context.x, context.x_query * torch.tensor(found))
    torch.testing.assert_close(as_predictor(model)(context).detach(), step)


def made_up() -> dict[str, dict]:
    sizes, found = PRESETS["quick"], {}
    for cell in cells(sizes):
        task = cell.task(sizes)
        expected = predicted(task)
        scalar, best = expected["scalar"], expected["preconditioned"]
        explained = {"zero": 0.5, "scalar": scalar, "preconditioned": best, "from_mean": scalar, "least_squares": 0.1}
        result = {"rate": 0.01, "learners": explained | {"bayes": best / 1.03}}
        if cell.setting == "falling":
            loss = scalar if cell.model == "plain" else best
            result |= {"expected": expected, "preconditioners": [expected["rates"]] * 3}
        else:
            ratio = over_step_from_mean(task, cell.model)
            result["expected_over_from_mean"], loss = ratio, scalar * ratio
            result["gates"] = [0.01, 1.0, 1.0]
        found[cell.name] = result | {"losses": [loss, 1.01 * loss, 0.99 * loss]}
    return found


def test_claims_on_results_as_expected() -> None:
    outcome = preconditioning.outcome(PRESETS["quick"], made_up())
    assert [claim.name for claim in outcome.claims if not claim.holds] == []
    assert len(outcome.claims) == 2 + 3 + 3 + 1 + len(MEAN_MODELS)
    text = " ".join(outcome.record["blocks"][0]["paragraphs"])
    assert "seeds stop" not in text
    assert "gaussian, mean variance 1/12: 0.1619 and 0.0829" in text
    assert "uniform, first variance 1/12: 0.0454 and 0.0218" in text
    assert json.dumps(outcome.record, allow_nan=False)


def test_claims_on_results_that_fail() -> None:
    found = made_up()
    found["falling-key-map"]["losses"] = found["falling-plain"]["losses"]
    found["falling-key-map-noise-1"]["losses"] = [None, None, 0.1]
    found["falling-key-map-noise-3"]["learners"]["bayes"] *= 0.9
    found["mean-plain"]["losses"][0] *= 1.03
    found["mean-feedthrough"]["losses"] = found["mean-plain"]["losses"]
    outcome = preconditioning.outcome(PRESETS["quick"], found)
    assert {claim.name for claim in outcome.claims if not claim.holds} == {
        "key_map_over_preconditioned_step",
        "key_map_over_without",
        "noise_1_over_preconditioned_step",
        "most_noise_over_bayes",
        "mean_feedthrough_over_step_from_mean",
    }
    assert "Without F 1 of 3 seeds stop more than 2 % above" in outcome.record["blocks"][0]["paragraphs"][2]
    assert "at most 0.010 of their largest entry" in outcome.record["blocks"][0]["paragraphs"][2]
    assert json.dumps(outcome.record, allow_nan=False)


def test_the_whole_experiment_at_toy_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(preconditioning.PRESETS, "quick", TINY)
    found = experiments.run("preconditioning")
    assert found.seeds == (0, 1)
    assert {claim.name for claim in found.claims if claim.holds} >= {"scalar_step_expected_loss"}
    assert json.dumps(found.record, allow_nan=False)
