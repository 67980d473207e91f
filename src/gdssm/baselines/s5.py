"""S5: a diagonal linear time-invariant state-space model (Smith et al., 2208.04933).

    z'(t) = L z(t) + B s(t)                       L = diag(l_1 .. l_P) complex, Re l < 0
    Z_t = Lambda * Z_{t-1} + (Lambda - 1)/l * (B s_t),   Lambda = exp(l step)         zero-order hold, a step per entry
    o_t = 2 Re(C Z_t) + F * s_t                   F one number per feature
    y_t = o_t  |  g * sigmoid(W g), g = gelu(o_t)  |  o_t * (W s_t)      gate "none" | "glu" | "input"

Z holds P = n_state / 2 complex numbers, one of each conjugate pair of a real system of n_state. l starts at the
eigenvalues of the normal part of HiPPO-LegS, and B and C in the basis of its eigenvectors.

Differences from the original: one HiPPO block; Re l = -exp(log_rate), so that it stays negative; "glu" is the original's
half-GLU, "input" is ours: the multiplicative readout that GDSSM has, which no linear time-invariant layer has by itself.

Axes: B batch, T tokens, D features, P complex entries of the state.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..weights import check_size
from .layer import SequenceLayer, affine, skip_unread
from .recurrences import diagonal, zero_order_hold

GATES = ("none", "glu", "input")


class S5(SequenceLayer):
    """A diagonal LTI layer: tokens (B, T, D) -> outputs (B, T, D), state (B, P, 2), real and imaginary part of Z.

    d_model   D
    n_state   numbers of the state, even; None: the smallest even number >= D
    gate      "none", "glu" or "input", see the module
    step_min, step_max  the range of the steps at the start, log-uniform

    Parameters log_rate, angle, log_step (P,), b (2, P, D), c (2, D, P), f (D,), w_gate (D, D) with a gate.
    ValueError for values out of range.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_state: int | None = None,
        gate: str = "none",
        step_min: float = 0.001,
        step_max: float = 0.1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model)
        n_state = d_model + d_model % 2 if n_state is None else n_state
        check_size("n_state", n_state)
        if n_state % 2:
            raise ValueError(f"n_state must be even, got {n_state}")
        if gate not in GATES:
            raise ValueError(f"gate is {gate!r}; allowed: {', '.join(GATES)}")
        if not 0 < step_min <= step_max:
            raise ValueError(f"step_min and step_max must satisfy 0 < step_min <= step_max, got {step_min} and {step_max}")
        p = n_state // 2
        self.state_shape = (p, 2)
        self.gate, self.steps = gate, (step_min, step_max)
        self.log_rate = nn.Parameter(torch.empty(p, dtype=dtype))
        self.angle = nn.Parameter(torch.empty(p, dtype=dtype))
        self.log_step = nn.Parameter(torch.empty(p, dtype=dtype))
        self.b = nn.Parameter(torch.empty(2, p, d_model, dtype=dtype))
        self.c = nn.Parameter(torch.empty(2, d_model, p, dtype=dtype))
        self.f = nn.Parameter(torch.empty(d_model, dtype=dtype))
        gate_weight = None if gate == "none" else nn.Parameter(torch.empty(d_model, d_model, dtype=dtype))
        self.register_parameter("w_gate", gate_weight)
        self.reset_parameters()

    w_gate: nn.Parameter | None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """HiPPO-LegS; B and C Gaussian of variance 1/D and 1/n_state before the change of basis; F standard Gaussian."""
        p, d = self.state_shape[0], self.d_model
        rates, angles, vectors = hippo_normal(2 * p)
        self.log_rate.copy_(rates.log())
        self.angle.copy_(angles)
        low, high = (math.log(step) for step in self.steps)
        self.log_step.uniform_(low, high, generator=generator)
        b = torch.randn(2 * p, d, dtype=torch.float64, generator=generator) * d**-0.5
        c = torch.randn(d, 2 * p, dtype=torch.float64, generator=generator) * (2 * p) ** -0.5
        for parameter, value in ((self.b, vectors.mH @ b.to(vectors)), (self.c, c.to(vectors) @ vectors)):
            parameter.copy_(torch.stack([value.real, value.imag]))
        self.f.normal_(0, 1, generator=generator)
        if self.w_gate is not None:
            self.w_gate.normal_(0, d**-0.5, generator=generator)

    def discretized(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Lambda and the factor (Lambda - 1)/l of the input, (P,) complex."""
        return zero_order_hold(self.log_rate.to(dtype).exp(), self.angle.to(dtype), self.log_step.to(dtype).exp())

    def scan(self, tokens: Tensor, state: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        z, last = self._states(tokens, state, read)
        return self._outputs(z, tokens), torch.stack([last.real, last.imag], dim=-1)

    def final(self, tokens: Tensor) -> Tensor:
        z = self._states(tokens, self._zero_state(tokens.shape[0], tokens.dtype), None)[1]
        return self._outputs(z, tokens[:, -1])

    def _states(self, tokens: Tensor, state: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        """Z at every token (B, T, P) and the last one (B, P), complex."""
        decay, gain = self.discretized(tokens.dtype)
        m = gain * torch.complex(affine(tokens, self.b[0]), affine(tokens, self.b[1]))  # (B, T, P)
        a = decay if read is None else skip_unread(decay.expand(m.shape), read, 1)
        return diagonal(a, m, torch.complex(state[..., 0], state[..., 1]))

    def _outputs(self, z: Tensor, tokens: Tensor) -> Tensor:
        o = 2 * (affine(z.real, self.c[0]) - affine(z.imag, self.c[1])) + self.f.to(tokens.dtype) * tokens
        if self.w_gate is None:
            return o
        if self.gate == "input":
            return o * affine(tokens, self.w_gate)
        g = gelu(o)
        return g * affine(g, self.w_gate).sigmoid()


def hippo_normal(n_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """Half the eigenvalues -rate + i angle, angle > 0, of the normal part of HiPPO-LegS, and their unit eigenvectors.

    The normal part is -1/2 I + K with K[n, k] = -sqrt((n + 1/2)(k + 1/2)) for n > k and K = -K^T; LegS is that minus
    p p^T, p_n = sqrt(n + 1/2). Returns rates (P,), angles (P,), vectors (n_state, P) complex, all in float64.
    """
    root = (torch.arange(n_state, dtype=torch.float64) + 0.5).sqrt()
    outer = root[:, None] * root
    skew = outer.triu(1) - outer.tril(-1)
    values, vectors = torch.linalg.eigh(-1j * skew)  # K = i (-i K), and -i K is Hermitian
    p = n_state // 2
    return torch.full((p,), 0.5, dtype=torch.float64), values[p:], vectors[:, p:]
