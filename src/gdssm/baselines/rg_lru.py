"""RG-LRU: the real-gated linear recurrent unit of Griffin (De et al., 2402.19427).

    r_t = sigmoid(W_r s_t + b_r)        recurrence gate
    i_t = sigmoid(W_i s_t + b_i)        input gate
    Lambda_t = exp(-c softplus(theta) * r_t)
    Z_t = Lambda_t * Z_{t-1} + sqrt(1 - Lambda_t^2) * i_t * s_t
    y_t = Z_t   |   gelu(W_o s_t) * Z_t                      output gate off | on

Differences from the original: gate matrices are full (the original's: block-diagonal); the first token is scaled as every
other (published code does not scale it); the root's gradient is exact (published code cuts it off); the output gate is the
other branch of Griffin's recurrent block, whose projections in and out are the stack's and whose convolution is the window
front's (gdssm.baselines).

Axes: B batch, T tokens, D features.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, softplus

from .layer import SequenceLayer, affine, skip_unread
from .recurrences import diagonal


class RGLRU(SequenceLayer):
    """A gated diagonal recurrence with input-dependent decay: tokens (B, T, D) -> outputs (B, T, D), state Z (B, D).

    d_model      D
    output_gate  multiply the outputs with gelu(W_o s_t)
    c            the factor of the exponent

    Parameters theta (D,), w_r, w_i (D, D), b_r, b_i (D,), w_o (D, D) with the output gate. ValueError for values out
    of range.
    """

    def __init__(self, d_model: int, *, output_gate: bool = False, c: float = 8.0, dtype: torch.dtype | None = None) -> None:
        super().__init__(d_model)
        if not c > 0:
            raise ValueError(f"c must be > 0, got {c!r}")
        self.factor = c
        self.state_shape = (d_model,)
        self.theta = nn.Parameter(torch.empty(d_model, dtype=dtype))
        self.w_r = nn.Parameter(torch.empty(d_model, d_model, dtype=dtype))
        self.b_r = nn.Parameter(torch.empty(d_model, dtype=dtype))
        self.w_i = nn.Parameter(torch.empty(d_model, d_model, dtype=dtype))
        self.b_i = nn.Parameter(torch.empty(d_model, dtype=dtype))
        gate = nn.Parameter(torch.empty(d_model, d_model, dtype=dtype)) if output_gate else None
        self.register_parameter("w_o", gate)
        self.reset_parameters()

    w_o: nn.Parameter | None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Matrices Gaussian of variance 1/D, biases 0; exp(-c softplus(theta)), Lambda at an open gate, in [0.9, 0.999].

        Its square is uniform between 0.9^2 and 0.999^2, as published.
        """
        for weight in (self.w_r, self.w_i, self.w_o):
            if weight is not None:
                weight.normal_(0, self.d_model**-0.5, generator=generator)
        self.b_r.zero_()
        self.b_i.zero_()
        rate = torch.empty_like(self.theta, dtype=torch.float64).uniform_(0.9**2, 0.999**2, generator=generator)
        self.theta.copy_((-0.5 * rate.log() / self.factor).expm1().log())  # the inverse of softplus

    def scan(self, tokens: Tensor, state: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        z, last = self._states(tokens, state, read)
        return self._gated(z, tokens), last

    def final(self, tokens: Tensor) -> Tensor:
        z = self._states(tokens, self._zero_state(tokens.shape[0], tokens.dtype), None)[1]
        return self._gated(z, tokens[:, -1])

    def _gated(self, z: Tensor, tokens: Tensor) -> Tensor:
        return z if self.w_o is None else gelu(affine(tokens, self.w_o)) * z

    def _states(self, tokens: Tensor, state: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        r, i = affine(tokens, self.w_r, self.b_r).sigmoid(), affine(tokens, self.w_i, self.b_i).sigmoid()
        log = -self.factor * softplus(self.theta.to(tokens.dtype)) * r
        # 1 - exp(2 log) without cancellation; a gate shut until it underflows would make the root's gradient 0 / 0
        below = log.clamp(max=-torch.finfo(log.dtype).tiny)
        m = (-(2 * below).expm1()).sqrt() * i * tokens
        return diagonal(skip_unread(log, read, 0).exp(), m, state)
