"""Sine regression: y = a sin(x + phase), a new sine for every task (arXiv 2410.11687 and 2212.07677, non-linear regression).

Amplitude and phase are drawn independently. As every task: a batch is a pure function of (task, seed, step).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import check_count, check_number
from .context import Context
from .linear import generator

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SineRegression:
    """A sampler of sine regression tasks, d_x = d_y = 1.

        x ~ U(-r/2, r/2)      y = a sin(x + phase),   a ~ U(lowest, highest),   phase ~ U(0, pi)

    n_examples, n_queries   N and M
    input_range             r
    lowest, highest         ends of the amplitudes, 0 <= lowest <= highest

    ConfigError for values out of range.
    """

    n_examples: int = 10
    n_queries: int = 1
    input_range: float = 10.0
    lowest: float = 0.1
    highest: float = 0.5

    def __post_init__(self) -> None:
        for name in ("n_examples", "n_queries"):
            check_count(name, getattr(self, name), most=10**12)
        check_number("input_range", self.input_range, above=0)
        check_number("lowest", self.lowest, least=0)
        check_number("highest", self.highest, least=self.lowest)

    @property
    def mean_square(self) -> float:
        """E y^2 = E a^2 / 2: the phase covers half a period, so 2 phase a whole one, and E cos(2 x + 2 phase) = 0."""
        return (self.lowest**2 + self.lowest * self.highest + self.highest**2) / 6

    def sample(
        self, batch: int, *, seed: int, step: int = 0, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Context:
        """`batch` fresh tasks, the same for the same (seed, step, device type); as LinearRegression.sample."""
        import torch

        check_count("batch", batch)
        g, dtype = generator(seed, step, device), dtype or torch.float32
        a, phase = torch.rand(2, batch, 1, 1, generator=g, dtype=dtype, device=device)
        x = torch.rand(batch, self.n_examples + self.n_queries, 1, generator=g, dtype=dtype, device=device) - 0.5
        x = x * self.input_range
        y = (self.lowest + (self.highest - self.lowest) * a) * torch.sin(x + math.pi * phase)
        sizes = [self.n_examples, self.n_queries]
        (x, x_query), (y, y_query) = x.split(sizes, dim=1), y.split(sizes, dim=1)
        return Context(x, y, x_query, y_query)
