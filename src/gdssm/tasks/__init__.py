"""Tasks to learn in context: each sampler gives Contexts as a pure function of a seed and a step."""

from .context import Context, Predictor
from .lengths import MixedLengths
from .linear import LinearRegression

__all__ = ["Context", "LinearRegression", "MixedLengths", "Predictor"]
