"""The contract of sequence layers for every baseline, the window front and stacks of them."""

import pytest
import torch

from contract import SequenceLayerContract
from gdssm.baselines import RGLRU, S5, GatedLinearAttention, GatedRNN, LinearAttention, Stack, WindowFront, build
from plain import ratio

DOUBLE = torch.float64


class Baseline(SequenceLayerContract):
    window, stride = 1, 1

    def test_autocast_does_not_lower_the_state(self):
        layer, tokens = self.layer().float(), self.tokens(length=51).float()
        _, wanted = layer(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            _, state = layer(tokens)
        assert state.dtype == torch.float32
        assert ratio(state, wanted) <= 1e-6

    def test_the_state_of_half_precision_tokens_is_float32(self):
        layer, tokens = self.layer().to(torch.bfloat16), self.tokens(length=51).to(torch.bfloat16)
        out, state = layer(tokens)
        assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
        assert ratio(state, layer.double()(tokens.double())[1]) <= 1e-4

    def test_a_state_before_any_token_is_none(self):
        layer, tokens = self.layer(), self.tokens()
        state = layer.init_state(3)
        assert state.numel() == 3 * layer.state_size
        assert torch.equal(layer(tokens, state)[0], layer(tokens)[0])

    def test_copies_run_as_one_program(self):
        """vmap over two sets of weights gives what each gives alone."""
        layer, tokens = self.layer(), self.tokens()
        copies = {name: torch.stack([p, 0.7 * p]).detach() for name, p in layer.named_parameters()}
        got = torch.func.vmap(lambda p: torch.func.functional_call(layer, p, (tokens,))[0])(copies)
        for s in range(2):
            own = {name: p[s] for name, p in copies.items()}
            assert ratio(got[s], torch.func.functional_call(layer, own, (tokens,))[0]) <= 1e-12


class TestLinearAttention(Baseline):
    def make(self):
        return LinearAttention(3, n_heads=2, d_key=2, d_value=4, d_out=5, dtype=DOUBLE)


class TestS5(Baseline):
    def make(self):
        return S5(3, n_state=4, dtype=DOUBLE)


class TestS5Glu(Baseline):
    def make(self):
        return S5(3, n_state=6, gate="glu", dtype=DOUBLE)


class TestS5Input(Baseline):
    def make(self):
        return S5(3, n_state=2, gate="input", dtype=DOUBLE)


class TestRGLRU(Baseline):
    def make(self):
        return RGLRU(3, dtype=DOUBLE)


class TestRGLRUGated(Baseline):
    def make(self):
        return RGLRU(3, output_gate=True, c=2.0, dtype=DOUBLE)


class TestGatedLinearAttention(Baseline):
    def make(self):
        return GatedLinearAttention(3, n_heads=2, d_key=2, d_value=4, tau=1.0, dtype=DOUBLE)


class TestGatedByHead(Baseline):
    def make(self):
        return GatedLinearAttention(3, n_heads=2, gate="head", tau=1.0, d_out=2, dtype=DOUBLE)


class TestDeltaRule(Baseline):
    def make(self):
        return GatedLinearAttention(3, n_heads=2, gate="none", delta=True, dtype=DOUBLE)


class TestGatedDeltaRule(Baseline):
    def make(self):
        return GatedLinearAttention(3, gate="row", delta=True, tau=1.0, normalize_keys=False, dtype=DOUBLE)


class TestGatedRNN(Baseline):
    def make(self):
        return GatedRNN(3, n_state=5, n_products=4, d_out=2, dtype=DOUBLE)


class TestGatedRNNReadsInput(Baseline):
    def make(self):
        return GatedRNN(3, readout="input", feedthrough=True, dtype=DOUBLE)


class TestFront(SequenceLayerContract):
    def make(self):
        return WindowFront(3, filters=2, products=2, dtype=DOUBLE)

    stride = window = 1


class TestFrontOfPairs(SequenceLayerContract):
    def make(self):
        return WindowFront(3, window=3, stride=2, products=1, dtype=DOUBLE)


class TestStack(SequenceLayerContract):
    window, stride = 1, 1

    def make(self):
        return build("gated_linear_attention", 3, 2, n_layers=2, front=WindowFront(3, filters=2, dtype=DOUBLE), dtype=DOUBLE)


class TestStackWithoutFront(SequenceLayerContract):
    window, stride = 1, 1

    def make(self):
        return build("s5", 3, 3, d_model=4, n_layers=2, gate="glu", dtype=DOUBLE)


class TestStackOfPairs(SequenceLayerContract):
    """Sequences that have not seen a window yet stand beside longer ones: layers with biases must skip what is no window."""

    def make(self):
        front = WindowFront(3, stride=2, products=1, dtype=DOUBLE)
        return Stack([GatedRNN(18, n_state=4, n_products=3, d_out=3, dtype=DOUBLE), RGLRU(3, dtype=DOUBLE)], front=front)


@pytest.mark.parametrize(
    "case", [TestLinearAttention, TestS5Glu, TestGatedRNN, TestFront, TestFrontOfPairs, TestStack, TestStackOfPairs]
)
def test_outputs_are_zero_in_the_padding(case):
    """Also of windows that the longest sequence has and a shorter one has not."""
    lengths = [13, 5, 1]
    out, _ = case().layer()(case().tokens(), None, torch.tensor(lengths))
    for b, n in enumerate(lengths):
        k = len(case().ends(n))
        assert torch.count_nonzero(out[b, :k]) > 0 or k == 0
        assert torch.count_nonzero(out[b, k:]) == 0


@pytest.mark.parametrize("bad", [torch.tensor([14, 1, 1]), torch.tensor([-1, 1, 1]), torch.tensor([1.0, 1, 1]), torch.tensor([1])])
def test_lengths_out_of_range(bad):
    tokens = torch.ones(3, 13, 3)
    for layer in (RGLRU(3), build("s5", 3, 3), WindowFront(3), build("s5", 3, 3, front=WindowFront(3))):
        with pytest.raises(ValueError, match="lengths must"):
            layer(tokens, None, bad)
