"""Linear regression whose weights drift along the context: the last examples say most about the query.

torch is imported by the draws only, so that settings are checked without waiting for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import check_number
from .context import Context
from .linear import LinearRegression, _normal, generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class DriftingRegression(LinearRegression):
    """A sampler of linear regression tasks with drifting weights.

        W_1 ~ N(0, weight_scale^2)      W_{k+1} = rho W_k + sqrt(1 - rho^2) N(0, weight_scale^2)
        y_k = W_k x_k + noise           y_query = W_{N+1} x_query, without noise

    The weights of every example have one law. Several queries of a context share W_{N+1}.

    correlation   rho, in [0, 1]; 1 is LinearRegression
    others        see LinearRegression
    """

    correlation: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("correlation", self.correlation, least=0, most=1)

    def sample(
        self, batch: int, *, seed: int, step: int = 0, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Context:
        """As LinearRegression.sample: the same tasks for the same (seed, step, device type), and the same errors."""
        import torch

        plain = super().sample(batch, seed=seed, step=step, dtype=dtype, device=device)
        weights = self._path(batch, seed=seed, step=step, dtype=dtype, device=device)
        y = torch.einsum("bnij,bnj->bni", weights[:, :-1], plain.x)
        if self.noise_std:
            y = y + _normal(generator(seed, _PATH + 2 * step + 1, device), y.dtype, *y.shape) * self.noise_std
        return Context(plain.x, y, plain.x_query, plain.x_query @ weights[:, -1].mT)

    def true_weights(
        self, batch: int, *, seed: int, step: int = 0, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """W_{N+1} (B, d_y, d_x), the query's, of the tasks that `sample` gives for the same arguments; the same errors."""
        super().true_weights(batch, seed=seed, step=step, dtype=dtype, device=device)
        return self._path(batch, seed=seed, step=step, dtype=dtype, device=device)[:, -1]

    def _path(self, batch: int, *, seed: int, step: int, dtype: torch.dtype | None, device: torch.device | str = "cpu") -> Tensor:
        """W_1 .. W_{N+1}, (B, N + 1, d_y, d_x): independent numbers times the root of their correlations rho^|k - l|."""
        import torch

        count, rho = self.n_examples + 1, self.correlation
        g = generator(seed, _PATH + 2 * step, device)
        fresh = _normal(g, dtype or torch.float32, batch, count, self.d_y * self.d_x) * self.weight_scale
        k = torch.arange(count, device=device, dtype=torch.float64)
        age = k[:, None] - k
        root = torch.where(age >= 0, torch.full_like(age, rho) ** age.clamp(min=0), 0.0)
        root[:, 1:] *= math.sqrt(1 - rho**2)
        return (root.to(fresh.dtype) @ fresh).unflatten(2, (self.d_y, self.d_x))


_PATH = 2**41  # apart from the steps that LinearRegression draws from
