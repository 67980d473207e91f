"""The contract of sequence layers, for every layer of the library that has a state."""

import pytest
import torch

from contract import SequenceLayerContract
from gdssm import GDSSM, ConjugateGradientReadout, GDSSMStack, IteratedReadout, NewtonReadout, TwoStepBlock
from plain import ratio

DOUBLE = torch.float64


class OurLayer(SequenceLayerContract):
    def parameter(self, name, noise, parameter):
        if name.endswith("log_rate"):
            return noise - 1.0  # Lambda from about 0.4 to 0.9
        return noise.abs() if name.endswith("count_offset") else noise


class TestFull(OurLayer):
    def make(self):
        return GDSSM(3, decay="full", dtype=DOUBLE)


class TestRow(OurLayer):
    stride = 1

    def make(self):
        return GDSSM(3, stride=1, decay="row", n_heads=2, dtype=DOUBLE)


class TestHead(OurLayer):
    window, stride = 4, 3

    def make(self):
        return GDSSM(3, window=4, stride=3, decay="head", n_heads=3, dtype=DOUBLE)


class TestNone(OurLayer):
    window, stride = 1, 1

    def make(self):
        return GDSSM(3, window=1, stride=1, decay="none", n_heads=2, dtype=DOUBLE)


class TestReferenceBackend(OurLayer):
    def make(self):
        return GDSSM(3, decay="full", n_heads=2, backend="reference", dtype=DOUBLE)


class TestEverythingOn(OurLayer):
    def make(self):
        return GDSSM(3, decay="row", n_heads=2, key_map=True, feedthrough=True, normalize=True, dtype=DOUBLE)


class TestTwoStepBlock(OurLayer):
    def make(self):
        return TwoStepBlock(3, dtype=DOUBLE)


class TestTwoStepBlockHead(OurLayer):
    window, stride = 2, 1

    def make(self):
        return TwoStepBlock(3, window=2, stride=1, decay="head", dtype=DOUBLE)


class TestStack(OurLayer):
    window, stride = 1, 1  # one output per token, whatever the layers' window

    def make(self):
        return GDSSMStack(3, 2, window=3, decay="head", n_heads=2, dtype=DOUBLE)

    def parameter(self, name, noise, parameter):
        value = super().parameter(name, noise, parameter)
        return value if name.endswith("log_rate") else 0.5 * value  # a cubic layer on a cubic one grows fast


class Pair(SequenceLayerContract):
    """Readouts that iterate on B = sum x x^T and need it positive: the gates of the constructions, alpha > 0."""

    float32_tolerance = 1e-4

    def parameter(self, name, noise, parameter):
        if name == "alpha":
            return torch.full_like(noise, 0.5)
        if name == "w_q":
            noise = torch.zeros_like(noise)
            noise[0, 0, 1] = noise[1, 0, 0] = 1.0
            return noise
        if name == "d":
            return torch.tensor([0.0, 0.0, 1.0], dtype=DOUBLE)
        return noise - 1.0 if name.endswith("log_rate") else 0.2 * noise


class TestIterated(OurLayer):
    def make(self):
        return IteratedReadout(2, dtype=DOUBLE)


class TestIteratedWithEverything(Pair):
    def make(self):
        return IteratedReadout(3, momentum=True, decay="head", normalize=True, skip=True, d_model=3, dtype=DOUBLE)


class TestConjugateGradient(Pair):
    def make(self):
        return ConjugateGradientReadout(2, dtype=DOUBLE)


class TestConjugateGradientForgets(Pair):
    def make(self):
        return ConjugateGradientReadout(2, decay="head", normalize=True, dtype=DOUBLE)


class TestNewton(Pair):
    def make(self):
        return NewtonReadout(4, decay="head", dtype=DOUBLE)


def test_a_stack_is_its_layers_with_zeros_in_front():
    """h <- h + layer(h), each layer on W-1 zero tokens and then the stream."""
    stack = TestStack().layer()
    tokens = TestStack().tokens()
    h = tokens
    for layer in stack.layers:
        h = h + layer(torch.cat([torch.zeros(3, 2, 3, dtype=DOUBLE), h], dim=1))[0]
    assert torch.allclose(stack(tokens)[0], h, rtol=1e-12, atol=1e-12)


def test_a_stack_names_what_is_wrong():
    with pytest.raises(ValueError, match="n_layers must be an integer >= 1, got 0"):
        GDSSMStack(3, 0)
    with pytest.raises(ValueError, match=r"stride is 1 in a stack.*stride=2"):
        GDSSMStack(3, 2, stride=2)
    stack = GDSSMStack(3, 2)
    with pytest.raises(ValueError, match="state has 1 layers, this stack has 2"):
        stack(torch.ones(1, 4, 3), stack.init_state(1)[:1])


@pytest.mark.parametrize("case", [TestFull, TestNone, TestEverythingOn, TestTwoStepBlock, TestIterated, TestConjugateGradient])
def test_autocast_does_not_lower_the_state(case):
    """Z is a sum over the stream: bfloat16 products in it would keep three digits."""
    layer, tokens = case().layer().float(), case().tokens(length=301).float()
    _, wanted = layer(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = layer(tokens)
    assert ratio(state.z, wanted.z) <= 1e-6
