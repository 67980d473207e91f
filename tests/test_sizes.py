"""Widths that match a size: the nearest count, found by looking at every width."""

import pytest
import torch

from gdssm.baselines import (
    RGLRU,
    S5,
    GatedRNN,
    LastOutput,
    LinearAttention,
    Stack,
    WindowFront,
    build,
    layers_state,
    matched,
    parameter_count,
)
from gdssm.config import ConfigError


def heads(n):
    return LastOutput(LinearAttention(10, n_heads=n, d_key=5, d_value=5, d_out=5), 5)


def state_space(n):
    return build("s5", 5, 5, d_model=8, n_state=n, n_layers=2, front=WindowFront(5, stride=2))


def gated(n):
    return Stack([GatedRNN(15, n_state=n, n_products=n, readout="input")], front=WindowFront(5, stride=2), d_out=5)


def griffin(n):
    return LastOutput(build("rg_lru", 5, 5, d_model=n, output_gate=True), 5)


@pytest.mark.parametrize(("make", "step"), [(heads, 1), (state_space, 2), (gated, 1), (griffin, 1)])
@pytest.mark.parametrize("budget", [1, 25, 130])
@pytest.mark.parametrize(("target", "count"), [("parameters", parameter_count), ("state", layers_state)])
def test_no_other_width_comes_nearer(make, step, budget, target, count):
    found = matched(make, target, budget, step=step)
    widths = range(step, found + 4 * step, step)
    with torch.device("meta"):
        assert found == min(widths, key=lambda width: (abs(count(make(width)) - budget), width))


def test_state_is_that_of_one_layer_without_the_window():
    assert layers_state(state_space(24)) == 24 == state_space(24).state_size // 2 - 5
    assert layers_state(heads(3)) == 75
    assert layers_state(Stack([RGLRU(6), S5(6, n_state=10)])) == 10


def test_a_tie_goes_to_the_smaller_width():
    assert matched(griffin, "state", 25, step=10) == 20


def test_what_cannot_be_matched():
    with pytest.raises(ConfigError, match=r"target is 'state_size'.*allowed: parameters, state"):
        matched(heads, "state_size", 25)
    with pytest.raises(ValueError, match=r"budget must be an integer >= 1, got 0"):
        matched(heads, "state", 0)
    with pytest.raises(ValueError, match="budget is 101; no width up to 4096 has as many numbers of state"):
        matched(lambda _: LinearAttention(10), "state", 101)
    with pytest.raises(ValueError, match="model has no layer with a state; WindowFront holds none of the baselines"):
        layers_state(WindowFront(5))
