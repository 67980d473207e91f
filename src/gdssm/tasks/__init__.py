"""Tasks to learn in context: each sampler gives Contexts as a pure function of a seed and a step."""

from .context import Context, Predictor
from .drifting import DriftingRegression
from .lengths import MixedLengths
from .linear import LinearRegression
from .shifted import ShiftedRegression

__all__ = ["Context", "LinearRegression", "MixedLengths", "Predictor"]
__all__ = ["Context", "DriftingRegression", "LinearRegression", "Predictor", "ShiftedRegression"]
from .context import Sampler
from .sine import SineRegression

__all__ = ["Context", "LinearRegression", "Predictor", "Sampler", "SineRegression"]
