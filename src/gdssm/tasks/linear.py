"""Linear regression tasks: y = W x + noise, a new W for every task (arXiv 2410.11687, section on regression).

Every batch is a pure function of (task, seed, step): nothing is kept between calls, so training resumes anywhere.
torch is imported by the draws only, so that settings are checked without waiting for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import ConfigError, check_choice, check_count, check_number, shown
from .context import Context

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INPUTS = ("uniform", "gaussian")


def generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator that depends on (seed, step) alone, well mixed."""
    for name, value in (("seed", seed), ("step", step)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} must be an integer >= 0, got {value!r}")
    import numpy as np
    import torch

    state = np.random.SeedSequence((seed, step)).generate_state(2, np.uint32)
    return torch.Generator(device=device).manual_seed((int(state[0]) << 32 | int(state[1])) & (2**63 - 1))


@dataclass(frozen=True)
class LinearRegression:
    """A sampler of linear regression tasks.

        x ~ uniform(-r/2, r/2) or N(0, r^2/12), entry i scaled by sqrt(spectrum[i])
        W ~ N(0, weight_scale^2)
        y = W x + N(0, noise_std^2)      y_query = W x_query, without noise

    d_x, d_y      sizes of input and target; d_y = 1 is the scalar case
    n_examples    N
    n_queries     M, per task
    inputs        "uniform" or "gaussian" (both of variance r^2 / 12)
    input_range   r
    weight_scale  standard deviation of the entries of W
    noise_std     standard deviation of the noise
    spectrum      d_x non-negative numbers that multiply the variances; () is all ones
    """

    d_x: int = 10
    d_y: int = 10
    n_examples: int = 10
    n_queries: int = 1
    inputs: str = "uniform"
    input_range: float = 1.0
    weight_scale: float = 1.0
    noise_std: float = 0.0
    spectrum: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("d_x", "d_y", "n_examples", "n_queries"):
            check_count(name, getattr(self, name), most=10**12)
        check_choice("inputs", self.inputs, INPUTS)
        check_number("input_range", self.input_range, above=0)
        check_number("weight_scale", self.weight_scale, least=0)
        check_number("noise_std", self.noise_std, least=0)
        if not isinstance(self.spectrum, tuple):
            raise ConfigError(f"spectrum must be a tuple of numbers, got {shown(self.spectrum)}")
        if self.spectrum and len(self.spectrum) != self.d_x:
            raise ConfigError(f"spectrum has {len(self.spectrum)} entries, d_x is {self.d_x}; allowed: none, or one per input")
        for value in self.spectrum:
            check_number("spectrum", value, least=0)

    @property
    def input_variance(self) -> float:
        """r^2 / 12, the variance of one entry of x where the spectrum is 1."""
        return self.input_range**2 / 12

    @property
    def input_fourth_moment(self) -> float:
        """E x_i^4: r^4 / 80 for uniform inputs, 3 s^2 for Gaussian ones, where the spectrum is 1."""
        return self.input_range**4 / 80 if self.inputs == "uniform" else 3 * self.input_variance**2

    def sample(
        self, batch: int, *, seed: int, step: int = 0, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Context:
        """`batch` fresh tasks, the same for the same (seed, step, device type).

        dtype is float32 where None. Another batch size or dtype gives other tasks. ValueError for a batch below 1 or a
        negative seed or step.
        """
        import torch

        check_count("batch", batch)
        g, dtype = generator(seed, step, device), dtype or torch.float32
        w = self._draw_weights(batch, g, dtype)
        shape = (batch, self.n_examples + self.n_queries, self.d_x)
        if self.inputs == "uniform":
            x = (torch.rand(*shape, generator=g, dtype=dtype, device=device) - 0.5) * self.input_range
        else:
            x = _normal(g, dtype, *shape) * math.sqrt(self.input_variance)
        if self.spectrum:
            x = x * torch.tensor(self.spectrum, dtype=dtype, device=device).sqrt()
        y = torch.matmul(x, w.transpose(1, 2))
        x, x_query = x.split([self.n_examples, self.n_queries], dim=1)
        y, y_query = y.split([self.n_examples, self.n_queries], dim=1)
        if self.noise_std:
            y = y + _normal(g, dtype, *y.shape) * self.noise_std
        return Context(x, y, x_query, y_query)

    def true_weights(
        self, batch: int, *, seed: int, step: int = 0, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """W (B, d_y, d_x) of the tasks that `sample` gives for the same arguments; the same errors."""
        check_count("batch", batch)
        import torch

        return self._draw_weights(batch, generator(seed, step, device), dtype or torch.float32)

    def _draw_weights(self, batch: int, g: torch.Generator, dtype: torch.dtype) -> Tensor:
        return _normal(g, dtype, batch, self.d_y, self.d_x) * self.weight_scale


def _normal(g: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    import torch

    return torch.randn(*shape, generator=g, dtype=dtype, device=g.device)
