"""A plain gated diagonal RNN (Zucchet et al., "Gated recurrent neural networks discover attention", 2309.01775).

    m_t = (W_1 s_t + b_1) * (W_2 s_t + b_2)       input gate, N products
    Z_t = Lambda * Z_{t-1} + m_t                  diagonal linear recurrence, Z in R^N
    g_t = (U_1 Z_t) * (U_2 Z_t)                   output gate, G products           readout "state"
    g_t = (U_1 Z_t) * (U_2 s_t)                                                     readout "input"
    y_t = C g_t                                   plus F s_t with a feedthrough

Differences from the original: biases in the input gate (the original appends 1 to the tokens, the same thing), which let an
entry of Z hold a linear function of the token; the readout "input" and F are ours. An entry with Lambda = 0 holds the last
token's product only: with readout "state" that is how a query reaches the output gate.

Axes: B batch, T tokens, D features, N numbers of the state, G products of the output gate.
"""

import math

import torch
from torch import Tensor, nn

from ..layers import GDSSM
from ..weights import check_size
from .layer import SequenceLayer, affine
from .recurrences import diagonal

READOUTS = ("state", "input")
_ZERO = 10.0  # log_rate at which Lambda = exp(-exp(10)) is 0 in float64


class GatedRNN(SequenceLayer):
    """Products in, a diagonal recurrence, products out: tokens (B, T, D) -> outputs (B, T, D_out), state Z (B, N).

    d_model      D
    n_state      N; None: D^2 and, with readout "state", D more
    n_products   G; None: D^2
    d_out        None: D
    readout      "state": both factors of the output gate read Z, as published; "input": one reads the token
    feedthrough  learn F

    Parameters w_1, w_2 (N, D), b_1, b_2 (N,), log_rate (N,) with Lambda = exp(-exp(log_rate)), u_1 (G, N),
    u_2 (G, N or D), c (D_out, G), f (D_out, D). ValueError for values out of range.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_state: int | None = None,
        n_products: int | None = None,
        d_out: int | None = None,
        readout: str = "state",
        feedthrough: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, d_out)
        if readout not in READOUTS:
            raise ValueError(f"readout is {readout!r}; allowed: {', '.join(READOUTS)}")
        n = d_model**2 + (d_model if readout == "state" else 0) if n_state is None else n_state
        g = d_model**2 if n_products is None else n_products
        check_size("n_state", n)
        check_size("n_products", g)
        self.readout, self.state_shape = readout, (n,)
        shapes: dict[str, tuple[int, ...] | None] = {
            "w_1": (n, d_model),
            "w_2": (n, d_model),
            "b_1": (n,),
            "b_2": (n,),
            "log_rate": (n,),
            "u_1": (g, n),
            "u_2": (g, n if readout == "state" else d_model),
            "c": (self.d_out, g),
            "f": (self.d_out, d_model) if feedthrough else None,
        }
        for name, shape in shapes.items():
            self.register_parameter(name, None if shape is None else nn.Parameter(torch.empty(shape, dtype=dtype)))
        self.reset_parameters()

    w_1: nn.Parameter
    w_2: nn.Parameter
    b_1: nn.Parameter
    b_2: nn.Parameter
    log_rate: nn.Parameter
    u_1: nn.Parameter
    u_2: nn.Parameter
    c: nn.Parameter
    f: nn.Parameter | None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Gaussian of variance 1 / (numbers read), biases 0, F = 0; Lambda from 0.95 to 0.9995 as GDSSM's.

        With readout "state" one in D + 1 entries starts near Lambda = 0, as the construction needs D of D^2 + D.
        """
        for weight in (self.w_1, self.w_2, self.u_1, self.u_2, self.c):
            weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
        for bias in (self.b_1, self.b_2):
            bias.zero_()
        self.log_rate.uniform_(math.log(0.0005), math.log(0.05), generator=generator)
        if self.readout == "state":
            self.b_2[:: self.d_model + 1] = 1
            self.log_rate[:: self.d_model + 1] = 1.5
        if self.f is not None:
            self.f.zero_()

    def scan(self, tokens: Tensor, state: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        z, last = self._states(tokens, state, read)
        return self._outputs(z, tokens), last

    def final(self, tokens: Tensor) -> Tensor:
        z = self._states(tokens, self._zero_state(tokens.shape[0], tokens.dtype), None)[1]
        return self._outputs(z, tokens[:, -1])

    def _states(self, tokens: Tensor, state: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        m = affine(tokens, self.w_1, self.b_1) * affine(tokens, self.w_2, self.b_2)
        a = (-self.log_rate.to(tokens.dtype).exp()).exp()
        if read is not None:  # biases make something of a zero token
            m, a = m.masked_fill(~read, 0), a.expand(m.shape).masked_fill(~read, 1)
        return diagonal(a, m, state)

    def _outputs(self, z: Tensor, tokens: Tensor) -> Tensor:
        g = affine(z, self.u_1) * affine(z if self.readout == "state" else tokens, self.u_2)
        out = affine(g, self.c)
        return out if self.f is None else out + affine(tokens, self.f)


@torch.no_grad()
def from_gdssm(layer: GDSSM, *, readout: str = "state", dtype: torch.dtype | None = None) -> GatedRNN:
    """A plain gated diagonal RNN that computes what a GDSSM layer does, window by window (docs/baselines.md).

    Its token k is the window with its W tokens one after the other, (s_{kR}; ..; s_{kR+W-1}) in R^(W D): what
    WindowFront gives. With w_q = sum_r a_r b_r^T, entry (h, r, i, j) of its state is the share r of Z[i, j] of head h.

    Raises ValueError for a layer with `normalize`: the division by a count is no product. dtype None: the layer's.
    """
    if layer.count_offset is not None:
        raise ValueError("layer: normalize divides by a count, which a gated linear recurrence cannot")
    if readout not in READOUTS:
        raise ValueError(f"readout is {readout!r}; allowed: {', '.join(READOUTS)}")
    w, d, heads = layer.window, layer.d_model, layer.n_heads
    factors = [_factors(w_q) for w_q in layer.w_q.double()]
    if not any(factors):  # w_q = 0: the recurrence holds nothing
        factors[0] = [(torch.zeros(w, dtype=torch.float64),) * 2]
    products = [(h, a, b) for h, pairs in enumerate(factors) for a, b in pairs]
    sums, queries = len(products) * d * d, heads * d if readout == "state" else 0
    rnn = GatedRNN(
        w * d,
        n_state=sums + queries,
        n_products=heads * d * d,
        d_out=d,
        readout=readout,
        feedthrough=layer.feedthrough is not None,
        dtype=dtype or layer.w_q.dtype,
    )
    for parameter in rnn.parameters():
        parameter.zero_()
    eye = torch.eye(d, dtype=torch.float64)
    rows, columns = eye.repeat_interleave(d, dim=0), eye.repeat(d, 1)  # entry (i, j) of Z, flattened: e_i and e_j
    rate = layer.decay_matrix.double().log().neg().log()  # -infinity where Lambda = 1
    u_1 = rnn.u_1.view(heads, d * d, -1)
    for n, (h, a, b) in enumerate(products):
        part = slice(n * d * d, (n + 1) * d * d)
        rnn.w_1[part] = torch.kron(a[None], rows).to(rnn.w_1)  # reads sum_w a_w s_{w, i}
        rnn.w_2[part] = torch.kron(b[None], columns).to(rnn.w_2)
        rnn.log_rate[part] = rate[h].flatten().to(rnn.log_rate)
        u_1[h, :, part] = torch.eye(d * d).to(rnn.u_1)  # product (h, i, j) reads the sum over r of the shares of Z[i, j]
    for h in range(heads):
        query = torch.kron(layer.d[h].double()[None], eye)  # S^T d as a matrix of the window: (D, W D)
        mapped = query if layer.key_map is None else layer.key_map[h].double() @ query
        _write_query(rnn, h, mapped, sums)
        rnn.c[:, h * d * d : (h + 1) * d * d] = layer.c[h].repeat(1, d).to(rnn.c)  # product (i, j) goes to C[:, j]
        if rnn.f is not None and layer.feedthrough is not None:
            rnn.f.add_((layer.feedthrough[h].double() @ query).to(rnn.f))
    return rnn


def _factors(w_q: Tensor) -> list[tuple[Tensor, Tensor]]:
    """w_q = sum_r a_r b_r^T with as many terms as its rank: the vectors (W,)."""
    left, values, right = torch.linalg.svd(w_q)
    kept = values > values[0] * 1e-15 * len(values)
    return [(left[:, r] * values[r], right[r]) for r in range(int(kept.sum()))]


def _write_query(rnn: GatedRNN, h: int, query: Tensor, first: int) -> None:
    """Let the products (h, i, j) read entry i of the query: from the token, or through entries with Lambda = 0."""
    d = len(query)
    part = slice(h * d * d, (h + 1) * d * d)
    if rnn.readout == "input":
        rnn.u_2[part] = query.repeat_interleave(d, dim=0).to(rnn.u_2)
        return
    own = slice(first + h * d, first + (h + 1) * d)
    rnn.w_1[own] = query.to(rnn.w_1)
    rnn.b_2[own] = 1
    rnn.log_rate[own] = _ZERO
    rnn.u_2[part, own] = torch.eye(d).repeat_interleave(d, dim=0).to(rnn.u_2)
