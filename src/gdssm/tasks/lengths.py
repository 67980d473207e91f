"""Linear regression with contexts of several lengths, for layers that should answer at any length."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..config import ConfigError, check_count, shown
from .linear import LinearRegression

if TYPE_CHECKING:
    import torch

    from .context import Context


@dataclass(frozen=True)
class MixedLengths(LinearRegression):
    """LinearRegression whose batches take the lengths in turn: batch `step` has N = lengths[step % len(lengths)].

    Every batch is the one that LinearRegression of that length gives. n_examples is not looked at. ConfigError where lengths
    is empty or holds no counts.
    """

    lengths: tuple[int, ...] = (5, 10, 20, 50, 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.lengths, tuple) or not self.lengths:
            raise ConfigError(f"lengths must be a tuple of at least one count, got {shown(self.lengths)}")
        for length in self.lengths:
            check_count("lengths", length, most=10**12)

    def at(self, length: int) -> LinearRegression:
        """The same tasks with N = length."""
        own = {field.name: getattr(self, field.name) for field in fields(LinearRegression)}
        return LinearRegression(**own | {"n_examples": length})

    def sample(
        self, batch: int, *, seed: int, step: int = 0, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Context:
        """As LinearRegression's, at the step's own length."""
        check_count("step", step, 0)
        return self.at(self.lengths[step % len(self.lengths)]).sample(batch, seed=seed, step=step, dtype=dtype, device=device)
