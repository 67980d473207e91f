"""Linear regression whose weights vary around a mean that all tasks share: something to know before the first example.

torch is imported by the draws only, so that settings are checked without waiting for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import check_count, check_number
from .context import Context
from .linear import LinearRegression, _normal, generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ShiftedRegression(LinearRegression):
    """A sampler of linear regression tasks with W ~ W0 + N(0, weight_scale^2), W0 the same for all tasks.

    mean_scale   standard deviation of the entries of W0, drawn once
    mean_seed    seed of that draw
    others       see LinearRegression
    """

    mean_scale: float = 1.0
    mean_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("mean_scale", self.mean_scale, least=0)
        check_count("mean_seed", self.mean_seed, 0, 2**62)

    def mean(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """W0 (d_y, d_x), the same on every device."""
        import torch

        drawn = _normal(generator(self.mean_seed, 2**42), torch.float64, self.d_y, self.d_x) * self.mean_scale
        return drawn.to(dtype=dtype or torch.float32, device=device)

    def sample(
        self, batch: int, *, seed: int, step: int = 0, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Context:
        """As LinearRegression.sample, whose targets W0 x is added to; the same errors."""
        plain = super().sample(batch, seed=seed, step=step, dtype=dtype, device=device)
        assert plain.y_query is not None
        transposed = self.mean(plain.x.dtype, device).T
        return Context(plain.x, plain.y + plain.x @ transposed, plain.x_query, plain.y_query + plain.x_query @ transposed)

    def true_weights(
        self, batch: int, *, seed: int, step: int = 0, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """W (B, d_y, d_x) of the tasks that `sample` gives for the same arguments; the same errors."""
        plain = super().true_weights(batch, seed=seed, step=step, dtype=dtype, device=device)
        return plain + self.mean(plain.dtype, device)
