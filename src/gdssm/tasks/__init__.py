"""Tasks to learn in context: each sampler gives Contexts as a pure function of a seed and a step."""

from .context import Context, Predictor, Sampler
from .linear import LinearRegression
from .sine import SineRegression

__all__ = ["Context", "LinearRegression", "Predictor", "Sampler", "SineRegression"]
