"""Alignment against values worked out by hand, and the parameter match against weights whose answer is known."""

import pytest
import torch
from torch import Tensor

import gdssm
from gdssm import construct, learners
from gdssm.analysis import alignment, parameter_match, sensitivity, squared_loss, wilson_interval

TASK = gdssm.LinearRegression(d_x=3, d_y=2, n_examples=5, n_queries=4)
CONTEXT = TASK.sample(6, seed=1, dtype=torch.float64)
GD = learners.predictor(learners.gradient_descent, lr=2.0)


def test_the_sensitivity_of_gradient_descent_is_its_weight_matrix() -> None:
    y, jacobian = sensitivity(GD, CONTEXT)
    w = 2.0 / 5 * CONTEXT.y.mT @ CONTEXT.x
    torch.testing.assert_close(jacobian, w[:, None].expand(-1, 4, -1, -1))
    torch.testing.assert_close(y, CONTEXT.x_query @ w.mT)


def test_alignment_of_a_scaled_and_rotated_prediction() -> None:
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    found = alignment(lambda c: 3 * GD(c) @ turn.T, GD, CONTEXT)
    y, w = GD(CONTEXT), 2.0 / 5 * CONTEXT.y.mT @ CONTEXT.x
    assert found.sensitivity_cosine == pytest.approx(0.6)  # trace(turn w w^T) = 0.6 |w|^2
    assert found.sensitivity_difference == pytest.approx(float((3 * turn @ w - w).norm(dim=(1, 2)).mean()))
    assert found.prediction_difference == pytest.approx(float((3 * y @ turn.T - y).norm(dim=-1).mean()))
    loss = float((3 * y @ turn.T - CONTEXT.y_query).square().sum(-1).mean()) / 4
    assert found.loss == pytest.approx(loss)
    assert found.loss_ratio == pytest.approx(loss / found.reference_loss)


def test_a_construction_aligns_exactly() -> None:
    found = alignment(gdssm.as_predictor(construct.gradient_descent(3, 2, lr=2.0, n_context=5, dtype=torch.float64)), GD, CONTEXT)
    assert found.prediction_difference < 1e-15
    assert found.sensitivity_cosine == pytest.approx(1, abs=1e-14)
    assert found.loss_ratio == pytest.approx(1, abs=1e-14)


def test_a_loss_of_predictions_that_require_gradients_is_a_number_without_a_warning() -> None:
    prediction = GD(CONTEXT)
    wanted = float((prediction - CONTEXT.y_query).square().mean()) / 2
    assert squared_loss(prediction.requires_grad_(), CONTEXT.y_query) == pytest.approx(wanted, rel=1e-14)


def test_a_constant_prediction_has_no_sensitivity() -> None:
    _, jacobian = sensitivity(lambda c: torch.zeros(6, 4, 2, dtype=torch.float64), CONTEXT)
    assert torch.equal(jacobian, torch.zeros(6, 4, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("predictor", "message"),
    [(lambda c: c.x_query, r"predictor gave shape \(6, 4, 3\)"), (lambda c: GD(c) / 0, "not finite")],
)
def test_predictions_that_cannot_be_compared(predictor: gdssm.Predictor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alignment(predictor, GD, CONTEXT)


def test_alignment_needs_targets() -> None:
    with pytest.raises(ValueError, match="context has no y_query"):
        alignment(GD, GD, gdssm.Context(CONTEXT.x, CONTEXT.y, CONTEXT.x_query))


def disguised(telescoping: float, scale: tuple[float, float]) -> gdssm.GDSSM:
    """One GD step of rate 0.25 per example, hidden behind both flat directions."""
    w_q = torch.zeros(3, 3, dtype=torch.float64)
    w_q[0, 1] = scale[0]
    w_q[0, 0] += telescoping
    w_q[2, 2] -= telescoping
    d = torch.tensor([0.0, 0.0, scale[1]], dtype=torch.float64)
    layer = gdssm.GDSSM(4, decay="head", dtype=torch.float64)
    return layer.load_arrays(w_q=w_q, d=d, c=0.25 * torch.eye(4) / (scale[0] * scale[1]), lambda_bar=torch.ones(1))


@pytest.mark.parametrize(("telescoping", "scale"), [(0.0, (1.0, 1.0)), (0.7, (-3.0, 0.5)), (-40.0, (0.01, -7.0))])
def test_both_flat_directions_are_removed(telescoping: float, scale: tuple[float, float]) -> None:
    match = parameter_match(disguised(telescoping, scale))
    assert match.off_construction < 1e-12
    assert match.rate == pytest.approx(0.25)
    assert match.rate_spread < 1e-12
    assert match.decay_gap == 0


@pytest.mark.parametrize(("name", "place"), [("w_q", (0, 1, 2)), ("w_q", (0, 0, 0)), ("d", (0, 0)), ("c", (0, 2, 1))])
def test_an_entry_off_the_construction_is_seen(name: str, place: tuple[int, ...]) -> None:
    layer = disguised(0.0, (1.0, 1.0))
    largest = float(getattr(layer, name).detach().abs().max())
    with torch.no_grad():
        getattr(layer, name)[place] = 0.1 * largest
    expected = 0.05 if place == (0, 0, 0) else 0.1  # half of an entry on the telescoping diagonal is flat
    assert parameter_match(layer).off_construction == pytest.approx(expected)


def test_what_a_task_with_few_targets_does_not_identify_is_left_out() -> None:
    """Four inputs, two targets: y is padded with zeros, so the columns 2 and 3 of c and Lambda touch nothing."""
    layer = disguised(0.0, (1.0, 1.0))
    context = gdssm.LinearRegression(d_x=4, d_y=2).sample(5, seed=0, dtype=torch.float64)
    before = gdssm.as_predictor(gdssm.InContextModel(layer, 4, 2))(context)
    spoilt = gdssm.GDSSM(4, decay="full", dtype=torch.float64)
    c, lam = layer.c[0].detach().clone(), torch.ones(4, 4)
    c[:, 2:], c[2:], lam[:, 2:] = 0.7, -0.4, 0.9
    spoilt.load_arrays(w_q=layer.w_q, d=layer.d, c=c, lambda_bar=lam)
    torch.testing.assert_close(gdssm.as_predictor(gdssm.InContextModel(spoilt, 4, 2))(context), before)
    match = parameter_match(spoilt, 4, 2)
    assert match.off_construction < 1e-12
    assert match.rate == pytest.approx(0.25)
    assert match.decay_gap == 0
    assert parameter_match(spoilt).off_construction > 0.1


def test_parameter_match_refuses_other_layers() -> None:
    with pytest.raises(ValueError, match="one head, window 3 and stride 2, got 2, 3 and 2"):
        parameter_match(gdssm.GDSSM(3, n_heads=2))
    layer = disguised(0.0, (1.0, 1.0))
    with torch.no_grad():
        layer.d.zero_()
    with pytest.raises(ValueError, match=r"d\[2\] = 0.0"):
        parameter_match(layer)


def test_wilsons_interval() -> None:
    low, high = wilson_interval(20, 20)
    assert (low, high) == (pytest.approx(0.8388, abs=1e-4), pytest.approx(1))
    low, high = wilson_interval(5, 10)
    z, p, n = 1.96, 0.5, 10
    for bound in (low, high):  # the bounds solve (p - bound)^2 = z^2 bound (1 - bound) / n
        assert (p - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / n)
    with pytest.raises(ValueError, match=r"successes must lie in 0..trials"):
        wilson_interval(3, 2)


def test_predictions_of_every_query_depend_on_it_alone() -> None:
    def first_query(c: gdssm.Context) -> Tensor:
        return GD(gdssm.Context(c.x, c.y, c.x_query[:, :1]))

    torch.testing.assert_close(
        sensitivity(GD, CONTEXT)[1][:, :1], sensitivity(first_query, gdssm.Context(CONTEXT.x, CONTEXT.y, CONTEXT.x_query[:, :1]))[1]
    )
