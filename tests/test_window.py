"""The window experiment: its tasks, the least-squares prediction against the layer itself, and what it says of made-up results."""

import json

import pytest
import torch

from gdssm import GDSSM, LinearRegression, experiments, learners, theory
from gdssm.analysis import squared_loss
from gdssm.ensemble import Ensemble
from gdssm.experiments import window
from gdssm.experiments.grid import losses, train_grid
from gdssm.experiments.window import PRESETS, identities
from gdssm.experiments.window_forms import CELLS, Cell, RandomOrder, best_of_form, features
from gdssm.models import InContextModel
from gdssm.settings import TrainConfig
from gdssm.tokens import as_predictor, interleave

TASK = LinearRegression(3, 3, 5)
TINY = window.Preset(
    seeds=(0, 1),
    training=TrainConfig(task=TASK, steps=8, batch=8, warmup=2),
    rates=(1e-3, 1e-2),
    fit_tasks=300,
    validation_tasks=50,
    eval_tasks=100,
)


def test_random_order_keeps_the_pairs_and_the_query() -> None:
    plain = TASK.sample(200, seed=3, step=2)
    mixed = RandomOrder(3, 3, 5).sample(200, seed=3, step=2)
    swapped = (mixed.x != plain.x).any(-1)
    assert 0.4 < float(swapped.float().mean()) < 0.6
    torch.testing.assert_close(torch.where(swapped[..., None], mixed.y, mixed.x), plain.x, rtol=0, atol=0)
    torch.testing.assert_close(torch.where(swapped[..., None], mixed.x, mixed.y), plain.y, rtol=0, atol=0)
    torch.testing.assert_close(mixed.x_query, plain.x_query, rtol=0, atol=0)
    apart = RandomOrder(3, 3, 5, disjoint=True).sample(200, seed=3, step=2)
    torch.testing.assert_close(apart.x[..., :3] + apart.y[..., :3], plain.x, rtol=0, atol=0)
    torch.testing.assert_close(apart.x[..., 3:] + apart.y[..., 3:], plain.y, rtol=0, atol=0)
    torch.testing.assert_close(apart.y_query[..., 3:], plain.y_query, rtol=0, atol=0)
    assert not apart.y_query[..., :3].any()


@pytest.mark.parametrize(("width", "stride", "decay"), [(2, 1, 1.0), (3, 2, 0.9), (5, 2, 1.0), (5, 1, 0.8), (1, 2, 1.0)])
def test_features_give_the_layers_prediction(width: int, stride: int, decay: float) -> None:
    context = TASK.sample(20, seed=1, dtype=torch.float64)
    tokens = interleave(context.x, context.y, context.x_query)
    layer = GDSSM(3, window=width, stride=stride, decay="head", dtype=torch.float64)
    layer.load_arrays(c=torch.eye(3), d=torch.eye(width)[-1], lambda_bar=[decay])
    found = features(tokens, width, stride, decay) @ layer.w_q[0].flatten()
    torch.testing.assert_close(found, layer.last(tokens), rtol=1e-12, atol=1e-12)


def test_the_best_layer_of_window_three_is_one_step() -> None:
    found = best_of_form(TASK, Cell(), 20_000, 5_000)
    rate, loss = theory.one_step_optimum(5, 3, x_var=1 / 12, x_fourth_moment=1 / 80)
    assert found["expected"] == pytest.approx(loss, rel=0.03)
    assert found["w_q"][0][1] == pytest.approx(rate / 5, rel=0.05)
    context = TASK.sample(5_000, seed=window.HELD_OUT_SEED, step=window.EVALUATION_STEP)
    step = learners.gradient_descent(context.x, context.y, context.x_query, lr=rate)
    assert found["best_of_form"] == pytest.approx(float(0.5 * (step - context.y_query).square().mean()), rel=0.01)


def test_unequal_ends_of_a_wide_window_cost_what_the_closed_form_says() -> None:
    """Window 5, stride 2: pair weights (a, a + b, .., a + b, b); the best a = b, of the expected loss as a parabola."""
    n, d, s, m4 = 5, 3, 1 / 12, 1 / 80
    u = torch.tensor([0.5, *[1.0] * (n - 2), 0.5])
    one, two = float(u.sum()), float(u.square().sum())
    trace = two * (d * m4 + d * (d - 1) * s**2) + (one**2 - two) * d * s**2
    loss = 0.5 * d * s * (1 - (one * s) ** 2 * d / trace)
    found = best_of_form(TASK, Cell(5, 2), 40_000, 100)
    assert found["expected"] == pytest.approx(loss, rel=0.02)


def test_identities_hold_and_would_not_with_a_wider_window() -> None:
    found = identities(TINY)
    assert found["query_change"] == 0
    assert found["sign_change"] <= 1e-12
    assert found["sign_change_of_two"] > 0.1


def test_a_grid_chooses_its_rate_on_other_tasks_and_reports_the_models() -> None:
    def make(seed: int) -> InContextModel:
        layer = GDSSM(3, decay="head")
        layer.reset_parameters(torch.Generator().manual_seed(seed))
        return InContextModel(layer, 3, 3)

    config = TrainConfig(task=TASK, steps=60, batch=32, warmup=5)
    found = train_grid(make, config, (4, 5), (1e-6, 3e-2), validation_tasks=200, evaluation_tasks=2_500)
    assert found.rate == 3e-2
    assert max(found.validation[3e-2]) < min(found.validation[1e-6])
    context = TASK.sample(2_500, seed=window.HELD_OUT_SEED, step=0)
    for model, loss in zip(found.models, found.losses, strict=True):
        assert squared_loss(as_predictor(model)(context), context.y_query) == pytest.approx(loss, rel=1e-5)
    assert found.loss == pytest.approx(sum(found.losses) / 2)


def test_losses_of_chosen_outputs() -> None:
    context = TASK.sample(2_500, seed=0)
    model = InContextModel(GDSSM(3, decay="none"), 3, 3)
    (loss,) = losses(Ensemble([model]), context, slice(-1, None))
    assert squared_loss(as_predictor(model)(context)[..., -1], context.y_query[..., -1]) == pytest.approx(loss, rel=1e-5)


def made_up() -> dict[str, dict]:
    found: dict[str, dict] = {"identities": {"query_change": 0.0, "sign_change": 0.0, "sign_change_of_two": 1.0}}
    best = {"window-2-stride-1": 0.280, "shared-order": 0.302, "window-1-stride-1": 0.4167, "window-2-stride-2": 0.4167}
    for cell in CELLS:
        loss = best.get(cell.name, 0.206)
        found[cell.name] = {
            "best_of_form": loss,
            "expected": loss,
            "decay": 1.0,
            "losses": [loss, loss * 1.001, loss * 0.999],
            "rate": 0.01,
            "one_step": 0.206,
            "closed_form": 0.2062,
            "zero": 0.4167,
        }
    return found


def test_claims_on_results_as_expected() -> None:
    outcome = window.outcome(PRESETS["quick"], made_up())
    assert all(claim.holds for claim in outcome.claims)
    assert len(outcome.claims) == 2 + 1 + 2 + len(CELLS)
    text = " ".join(outcome.record["blocks"][0]["paragraphs"])
    assert "random order, disjoint coordinates" in text.split(" Nothing is learned")[0]
    assert "with: window 2, stride 2, window 1, stride 1. One token" in text
    assert "Training is within 2 % of it everywhere." in text
    assert json.dumps(outcome.record, allow_nan=False)


def test_claims_on_results_that_fail() -> None:
    found = made_up()
    found["identities"]["query_change"] = 1e-9
    found["window-3-stride-2"]["losses"] = [0.25, 0.25, 0.2]
    found["window-9-stride-1"]["losses"] = [None, None, 0.2]
    found["shared-order"]["expected"] = 0.29
    outcome = window.outcome(PRESETS["quick"], found)
    assert {claim.name for claim in outcome.claims if not claim.holds} == {
        "window_2_stride_2_reads_no_query",
        "window_3_stride_2_over_one_step",
        "window_3_stride_2_over_best_of_form",
        "window_9_stride_1_over_best_of_form",
        "shared_order_best_loss",
    }
    assert "further than 2 % from it for: window 3, stride 2 (1.214)" in outcome.record["blocks"][0]["paragraphs"][-1]
    assert json.dumps(outcome.record, allow_nan=False)


def test_the_whole_experiment_at_toy_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(window.PRESETS, "quick", TINY)
    found = experiments.run("window")
    assert found.seeds == (0, 1)
    assert {claim.name for claim in found.claims if claim.kind == "identity" and claim.holds} == {
        "window_2_stride_2_reads_no_query",
        "window_1_ignores_sign_of_targets",
    }
    assert json.dumps(found.record, allow_nan=False)
