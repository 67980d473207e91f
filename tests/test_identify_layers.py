"""Readouts after each layer or iteration, on constructed modules whose answer at each depth is known."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gdssm import GDSSMStack, LinearRegression, construct, learners
from gdssm.analysis import IdentificationError, identify, identify_layers, layer_readouts
from gdssm.analysis.layers import depth
from gdssm.baselines import LastOutput, SequenceLayer, Stack
from gdssm.construct import on_features
from gdssm.tokens import concatenated

DOUBLE = torch.float64
TASK = LinearRegression(d_x=4, d_y=3, n_examples=8)
SMALL: dict[str, Any] = {"tasks": 60, "max_steps": 4}
CONTEXT = TASK.sample(10, seed=1, dtype=DOUBLE)


def agree(module: nn.Module, *wanted: Tensor) -> None:
    """Its readouts predict these, one after the other."""
    readouts = layer_readouts(module)
    assert len(readouts) == len(wanted)
    for readout, prediction in zip(readouts, wanted, strict=True):
        torch.testing.assert_close(readout(CONTEXT), prediction, rtol=1e-9, atol=1e-12)


def examples() -> tuple[Tensor, Tensor, Tensor]:
    return CONTEXT.x, CONTEXT.y, CONTEXT.x_query


def test_constructed_gradient_descent_has_done_j_steps_after_iteration_j() -> None:
    module = construct.gradient_descent(4, 3, lr=4.0, n_context=8, steps=4, dtype=DOUBLE)
    found = identify_layers(layer_readouts(module), TASK, "gradient_descent", **SMALL)
    assert [match.steps for match in found if match is not None] == [1, 2, 3, 4]
    for match in found:
        assert match is not None
        assert match.numbers["lr"] == pytest.approx(4.0, rel=1e-5)
        assert match.distance < 1e-5


def test_a_rate_for_each_step_shows_the_first_rates() -> None:
    rates = (0.2, 2.5, 0.9)
    first, *rest = identify(layer_readouts(construct.polynomial(4, 3, rates=rates, dtype=DOUBLE)), TASK, **SMALL).each
    assert first.best is not None
    assert (first.best.family, first.best.steps) == ("gradient_descent", 1)
    assert first.best.numbers["lr"] == pytest.approx(8 * rates[0])  # per mean of 8 examples
    for count, found in enumerate(rest, start=2):
        assert found.best is not None
        assert (found.best.family, found.best.steps) == ("polynomial", count)
        assert found.best.numbers["rates"] == pytest.approx(sorted(rates[:count]), rel=1e-4)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_shortened_too(nesterov: bool) -> None:
    options: dict[str, Any] = {"lr": 3.0, "momentum": 0.6, "nesterov": nesterov}
    module = construct.gradient_descent(4, 3, n_context=8, steps=3, dtype=DOUBLE, **options)
    agree(module, *(learners.gradient_descent(*examples(), steps=k, **options) for k in (1, 2, 3)))


def test_conjugate_gradient_and_newton_after_each_iteration() -> None:
    agree(
        construct.ridge(4, 3, alpha=0.2, steps=3, dtype=DOUBLE),
        *(learners.conjugate_gradient(*examples(), alpha=0.2, steps=k) for k in (1, 2, 3)),
    )
    agree(construct.newton(4, 3, steps=3, dtype=DOUBLE), *(learners.newton(*examples(), steps=k) for k in (1, 2, 3)))


def test_what_stands_around_the_readout_stays() -> None:
    def squares(x: Tensor) -> Tensor:
        return torch.cat([x, x.square()], -1)

    module = on_features(squares, 4, construct.gradient_descent(8, 3, lr=4.0, n_context=8, steps=2, dtype=DOUBLE))
    mapped = (squares(CONTEXT.x), CONTEXT.y, squares(CONTEXT.x_query))
    agree(module, *(learners.gradient_descent(*mapped, lr=4.0, steps=k) for k in (1, 2)))


class Descent(SequenceLayer):
    """One step of gradient descent in tokens [x_i, residual_i], the query's residual beginning at 0. Not causal."""

    def __init__(self, d_x: int, d_y: int, rate: float) -> None:
        super().__init__(d_x + d_y)
        self.d_x = d_x
        self.rate = nn.Parameter(torch.tensor(rate, dtype=DOUBLE))
        self.state_shape = (1,)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Nothing is random."""

    def scan(self, tokens: Tensor, state: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        x, residual = tokens[..., : self.d_x], tokens[..., self.d_x :]
        gradient = residual[:, :-1].mT @ x[:, :-1]  # the last token is the query
        return torch.cat([torch.zeros_like(x), -self.rate * x @ gradient.mT], -1), state


def test_a_stack_is_read_by_its_own_projection_after_each_layer() -> None:
    """Three layers with three rates; the prediction is minus the query's residual, which the projection turns."""
    rates = (0.3, 0.9, 0.5)
    stack = Stack([Descent(4, 3, rate) for rate in rates], d_out=3, residual=True, dtype=DOUBLE)
    assert stack.w_out is not None
    with torch.no_grad():
        stack.w_out.copy_(torch.cat([torch.zeros(3, 4), -torch.eye(3)], 1))
    readouts = layer_readouts(LastOutput(stack, 3), concatenated)
    for count, readout in enumerate(readouts, start=1):
        wanted = learners.polynomial(*examples(), rates=rates[:count])
        torch.testing.assert_close(readout(CONTEXT), wanted, rtol=1e-9, atol=1e-12)
    assert count == 3
    found = identify(readouts, TASK, **SMALL)
    assert [one.best.name for one in found.each if one.best] == [
        "gradient descent, 1 step",
        "gradient descent with a rate for each step, 2 steps",
        "gradient descent with a rate for each step, 3 steps",
    ]


class ReadTargets(nn.Module):
    """A stack on tokens with x and y in features of their own; the prediction is what stands at the query's y."""

    def __init__(self, stack: GDSSMStack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, tokens: Tensor) -> Tensor:
        return self.stack(tokens)[0][:, -1, 4:]


def apart(x: Tensor, y: Tensor, x_query: Tensor) -> Tensor:
    """x_1, y_1, .., x_query with x in the first 4 features and y in the last 3."""
    pairs = torch.zeros(len(x), 2 * x.shape[1] + 1, 7, dtype=x.dtype)
    pairs[:, 0:-1:2, :4], pairs[:, 1::2, 4:], pairs[:, -1, :4] = x, y, x_query
    return pairs


def test_layers_of_a_gdssm_stack() -> None:
    """Each layer adds its rate times A x_query to the query's y: one step whose rate is the sum of those before."""
    rates = (0.3, 0.5)
    stack = GDSSMStack(7, 2, decay="none", key_map=True, dtype=DOUBLE)
    with torch.no_grad():
        for layer, rate in zip(stack.layers, rates, strict=True):
            layer.w_q.zero_()[0, 0, 1] = 1  # products of a token with the one after it
            layer.d.copy_(torch.tensor([[0.0, 0.0, 1.0]]))
            layer.key_map.copy_(torch.diag(torch.tensor([1.0] * 4 + [0.0] * 3)))  # the query's x ..
            layer.c.copy_(rate * torch.diag(torch.tensor([0.0] * 4 + [1.0] * 3)))  # .. asks for targets
    found = identify_layers(layer_readouts(ReadTargets(stack), apart), TASK, "gradient_descent", tasks=60, max_steps=2)
    for match, rate in zip(found, (0.3, 0.8), strict=True):
        assert match is not None
        assert match.steps == 1
        assert match.distance < 1e-5
        assert match.numbers["lr"] == pytest.approx(8 * rate)


def test_the_weights_of_the_module_are_left_alone() -> None:
    module = construct.gradient_descent(4, 3, lr=4.0, n_context=8, steps=3, momentum=0.5)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    layer_readouts(module)[0](TASK.sample(2, seed=0))
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_modules_without_one_part_that_repeats() -> None:
    assert depth(construct.gradient_descent(4, 3, lr=4.0, n_context=8)) is None
    with pytest.raises(IdentificationError, match=r"module holds 0 parts that repeat, one is needed; those are: GDSSMStack, Stack"):
        layer_readouts(construct.gradient_descent(4, 3, lr=4.0, n_context=8))
    with pytest.raises(IdentificationError, match="module holds 2 parts that repeat"):
        layer_readouts(nn.ModuleList([GDSSMStack(3, 1), GDSSMStack(3, 2)]))


class Narrow(Descent):
    """Gives its residuals only."""

    def __init__(self) -> None:
        super().__init__(4, 3, 0.1)
        self.d_out = 3


def test_a_projection_that_cannot_read_every_layer() -> None:
    stack = Stack([Descent(4, 3, 0.1), Narrow()], d_out=2)
    with pytest.raises(IdentificationError, match="a layer 1 that gives 7 features; the projection behind the last layer reads 3"):
        layer_readouts(stack)
