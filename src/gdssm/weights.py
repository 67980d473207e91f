"""Weights from arrays, the parameter that holds the decay Lambda, and what gradients of many copies look like.

Lambda = exp(-exp(log_rate)) stays in (0, 1]; it is exactly 1 only for log_rate = -inf, which is what a
construction stores (its gradient is 0 there, so it stays). The published code's lambda * exp(log_step) with
lambda = -0.5 is the same curve with log_rate = log_step + log 0.5.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .settings import DECAYS

Linearised = tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]
"""Predictions of all copies, and the function from the gradient there to that of every parameter, by name.

The function reads the parameters: it is called before they change.
"""


class DecayParameter(nn.Module):
    """Lambda of H heads in one of the learnable structures: none, head (H,), row (H, D), full (H, D, D)."""

    def __init__(
        self,
        structure: str,
        n_heads: int,
        d_model: int | None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        allowed = DECAYS if d_model is not None else ("head", "none")
        if structure not in allowed:
            raise ValueError(f"decay is {structure!r}; allowed: {', '.join(allowed)}")
        self.structure = structure
        d = d_model or 0
        shape = {"full": (n_heads, d, d), "row": (n_heads, d), "head": (n_heads,), "none": None}[structure]
        value = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_parameter("log_rate", value)
        self.reset_parameters()

    log_rate: nn.Parameter | None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """-log Lambda = step / 2, step log-uniform in [0.001, 0.1]: Lambda from 0.95 to 0.9995, as published."""
        if self.log_rate is not None:
            self.log_rate.uniform_(math.log(0.0005), math.log(0.05), generator=generator)

    def log(self) -> Tensor | None:
        """log Lambda <= 0 in the shape of the structure; None where Lambda = 1."""
        return None if self.log_rate is None else -self.log_rate.exp()

    def matrix(self, like: Tensor) -> Tensor:
        """Lambda as `like` (H, D, D) is shaped: entry [i, j] decays Z[i, j]."""
        log = self.log()
        if log is None:
            return torch.ones_like(like)
        return log.reshape(*log.shape, *[1] * (like.ndim - log.ndim)).exp().expand_as(like)

    def rate_of(self, name: str, value: Any, heads: int, d_model: int) -> Tensor | None:
        """Checked log_rate for a Lambda given as (H, D, D) or in the shape of the structure; None for none."""
        full = (heads, d_model, d_model)
        own = full if self.log_rate is None else tuple(self.log_rate.shape)
        lam = as_tensor(name, value)
        lam = as_shape(name, lam, own if lam.shape in (own, own[1:]) else full)
        if not bool(((lam > 0) & (lam <= 1)).all()):
            raise ValueError(f"{name} must lie in (0, 1], got values from {float(lam.min())} to {float(lam.max())}")
        if self.log_rate is None:
            if not bool((lam == 1).all()):
                raise ValueError(f"{name} must be 1 everywhere for decay 'none', its smallest entry is {float(lam.min())}")
            return None
        while lam.ndim > len(own):
            if not bool((lam == lam[..., :1]).all()):
                raise ValueError(f"{name} has different entries where decay {self.structure!r} holds one number")
            lam = lam[..., 0]
        return (-lam.double().log()).log()

    @torch.no_grad()
    def write(self, rate: Tensor | None) -> None:
        """Store what rate_of returned."""
        if self.log_rate is not None and rate is not None:
            self.log_rate.copy_(rate)

    def extra_repr(self) -> str:
        return self.structure


def check_size(name: str, value: object, least: int = 1) -> None:
    """ValueError unless value is an integer >= least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor from an array or a tensor; ValueError where it is not finite."""
    tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value, dtype=np.float64))
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} has values that are not finite")
    return tensor


def as_shape(name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    """value as a tensor of this shape; a missing head axis is added where there is one head."""
    tensor = as_tensor(name, value)
    if tensor.shape == shape:
        return tensor
    if shape[0] == 1 and tensor.shape == shape[1:]:
        return tensor.unsqueeze(0)
    raise ValueError(f"{name} has shape {tuple(tensor.shape)}, this layer needs {tuple(shape)}")
