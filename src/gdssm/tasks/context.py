"""Context: the one thing that samplers, token layouts, learners and networks exchange.

Axes: B batch of tasks, N examples, M queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..show import summary

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Context:
    """Examples of one task each, and queries about it.

    x (B, N, d_x), y (B, N, d_y), x_query (B, M, d_x) or (B, d_x) for one query, y_query (B, M, d_y) or None.
    One query is stored with M = 1. Raises ValueError for shapes that do not fit together, TypeError for other types.
    """

    x: Tensor
    y: Tensor
    x_query: Tensor
    y_query: Tensor | None = None

    def __post_init__(self) -> None:
        from torch import Tensor  # here, so that settings of tasks are checked without torch

        for name in ("x", "y", "x_query", "y_query"):
            value = getattr(self, name)
            if value is None and name == "y_query":
                continue
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(f"{name} must be a floating-point tensor, got {getattr(value, 'dtype', type(value).__name__)}")
            if name.endswith("query") and value.ndim == 2:
                object.__setattr__(self, name, value.unsqueeze(1))
        if self.x.ndim != 3 or self.y.ndim != 3 or self.x.shape[:2] != self.y.shape[:2]:
            raise ValueError(f"x must be (B, N, d_x) and y (B, N, d_y), got {tuple(self.x.shape)} and {tuple(self.y.shape)}")
        batch, _, d_x = self.x.shape
        if self.x_query.ndim != 3 or self.x_query.shape[0] != batch or self.x_query.shape[2] != d_x:
            raise ValueError(f"x_query must be ({batch}, M, {d_x}) or ({batch}, {d_x}), got {tuple(self.x_query.shape)}")
        wanted = (batch, self.x_query.shape[1], self.y.shape[2])
        if self.y_query is not None and self.y_query.shape != wanted:
            raise ValueError(f"y_query must be {wanted}, got {tuple(self.y_query.shape)}")

    def __repr__(self) -> str:
        """Shapes, no numbers."""
        y_query = "None" if self.y_query is None else summary(self.y_query)
        return f"Context(x={summary(self.x)}, y={summary(self.y)}, x_query={summary(self.x_query)}, y_query={y_query})"

    def __len__(self) -> int:
        return self.x.shape[0]


Predictor = Callable[[Context], "Tensor"]
"""Predictions (B, M, d_y) for a Context: the one convention for networks, constructions and explicit learners."""


class Sampler(Protocol):
    """A task: `batch` fresh contexts as a pure function of (seed, step)."""

    def sample(
        self, batch: int, *, seed: int, step: int = 0, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Context: ...
