"""Linear attention that forgets (GLA, Yang et al., 2312.06635) and that corrects (DeltaNet, 2102.11174, 2406.06484).

    k_t, v_t, q_t as linear attention      beta_t = sigmoid(w_beta . s_t + b_beta)
    log Lambda_t = logsigmoid(W_g s_t + b_g) / tau                  one decay per row of Z, one per head, or Lambda = 1
    Z_t = Lambda_t * Z_{t-1} + k_t u_t^T
    u_t = v_t                                                       without the delta rule
    u_t = beta_t (v_t - (Lambda_t * Z_{t-1})^T k_t)                 with it
    y_t = sum_h C_h Z_t^T q_t

| name in the literature   | gate   | delta |
|--------------------------|--------|-------|
| GLA                      | "row"  | no    |
| DeltaNet                 | "none" | yes   |
| gated DeltaNet           | "head" | yes   |

With the delta rule Z_t^T takes one gradient step on |Z^T k_t - v_t|^2 / 2 with rate beta_t, before it is read.

Differences from the originals: W_g is a full matrix (GLA: of low rank); no norm on the heads' outputs and no swish gate;
keys are normed to length 1 by default with the delta rule, as in 2406.06484, but pass through no non-linearity.

Axes: B batch, T tokens, D features, H heads, I rows of Z (keys), J columns of Z (values).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from ..weights import check_size
from .layer import SequenceLayer
from .linear_attention import heads_of, sum_heads
from .recurrences import attend_last, attention

GATES = ("row", "head", "none")


class GatedLinearAttention(SequenceLayer):
    """Z_t = Lambda_t * Z_{t-1} + k_t u_t^T: tokens (B, T, D) -> outputs (B, T, D_out), state Z (B, H, I, J).

    d_model         D
    n_heads         H; every head reads all D features
    d_key           I; None: D
    d_value         J; None: D
    d_out           None: D
    gate            "row", "head" or "none": the structure of Lambda_t
    delta           the delta rule
    normalize_keys  keys and queries of length 1; None: where delta is on
    tau             divides log Lambda_t, so that decays start near 1

    Parameters as LinearAttention's, w_gate (H, I or 1, D), b_gate (H, I or 1), w_beta (H, D), b_beta (H,).
    ValueError for values out of range. Unnormed keys longer than sqrt(2 / beta) make the delta rule diverge, as they
    make gradient descent.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 1,
        d_key: int | None = None,
        d_value: int | None = None,
        d_out: int | None = None,
        gate: str = "row",
        delta: bool = False,
        normalize_keys: bool | None = None,
        tau: float = 16.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, d_out)
        d_key, d_value = (d_model if size is None else size for size in (d_key, d_value))
        for name, size in {"n_heads": n_heads, "d_key": d_key, "d_value": d_value}.items():
            check_size(name, size)
        if gate not in GATES:
            raise ValueError(f"gate is {gate!r}; allowed: {', '.join(GATES)}")
        if not tau > 0:
            raise ValueError(f"tau must be > 0, got {tau!r}")
        self.state_shape = (n_heads, d_key, d_value)
        self.gate, self.delta, self.tau = gate, delta, tau
        self.normalize_keys = delta if normalize_keys is None else normalize_keys
        rows = d_key if gate == "row" else 1
        shapes: dict[str, tuple[int, ...] | None] = {
            "w_q": (n_heads, d_key, d_model),
            "w_k": (n_heads, d_key, d_model),
            "w_v": (n_heads, d_value, d_model),
            "c": (n_heads, self.d_out, d_value),
            "w_gate": None if gate == "none" else (n_heads, rows, d_model),
            "b_gate": None if gate == "none" else (n_heads, rows),
            "w_beta": (n_heads, d_model) if delta else None,
            "b_beta": (n_heads,) if delta else None,
        }
        for name, shape in shapes.items():
            self.register_parameter(name, None if shape is None else nn.Parameter(torch.empty(shape, dtype=dtype)))
        self.reset_parameters()

    w_q: nn.Parameter
    w_k: nn.Parameter
    w_v: nn.Parameter
    c: nn.Parameter
    w_gate: nn.Parameter | None
    b_gate: nn.Parameter | None
    w_beta: nn.Parameter | None
    b_beta: nn.Parameter | None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Gaussian of variance 1/D; C of variance 1/(H J); biases 0: Lambda near 2^(-1/tau), beta near 1/2."""
        for weight in (self.w_q, self.w_k, self.w_v, self.w_gate, self.w_beta):
            if weight is not None:
                weight.normal_(0, self.d_model**-0.5, generator=generator)
        self.c.normal_(0, (self.c.shape[0] * self.c.shape[2]) ** -0.5, generator=generator)
        for bias in (self.b_gate, self.b_beta):
            if bias is not None:
                bias.zero_()

    def scan(self, tokens: Tensor, state: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = self._unit(heads_of(tokens, self.w_q)), self._unit(heads_of(tokens, self.w_k)), heads_of(tokens, self.w_v)
        o, z = attention(q, k, v, state, self._log_decay(tokens, read), self._beta(tokens))
        return sum_heads(o, self.c), z

    def final(self, tokens: Tensor) -> Tensor:
        q, k = self._unit(heads_of(tokens[:, -1:], self.w_q)), self._unit(heads_of(tokens, self.w_k))
        o = attend_last(q, k, heads_of(tokens, self.w_v), self._log_decay(tokens, None), self._beta(tokens))
        return sum_heads(o, self.c)[:, 0]

    def _unit(self, vectors: Tensor) -> Tensor:
        """Keys or queries, of length 1 where they are to be."""
        return normalize(vectors, dim=-1) if self.normalize_keys else vectors

    def _log_decay(self, tokens: Tensor, read: Tensor | None) -> Tensor | None:
        """log Lambda_t, (B, H, T, I or 1); 0 where a token is not read."""
        if self.w_gate is None or self.b_gate is None:
            return None
        gate = heads_of(tokens, self.w_gate) + self.b_gate[:, None].to(tokens.dtype)
        log = logsigmoid(gate) / self.tau
        return log if read is None else log.masked_fill(~read[:, None], 0)

    def _beta(self, tokens: Tensor) -> Tensor | None:
        """beta_t, (B, H, T, 1); a token that is not read has key 0, so any beta will do."""
        if self.w_beta is None or self.b_beta is None:
            return None
        return (heads_of(tokens, self.w_beta[:, None]) + self.b_beta[:, None, None].to(tokens.dtype)).sigmoid()
