"""Baselines: other recurrent architectures with the same call as GDSSM, each in its own file, from plain torch.

    layer(tokens (B, T, D), state=None, lengths=None) -> (outputs (B, T, D_out), state)

A new one is a file with a SequenceLayer and one line in BASELINES. What each computes and what was simplified:
docs/baselines.md.
"""

from collections.abc import Callable
from typing import Any

import torch

from ..config import check_choice
from ..weights import check_size
from .block import LastOutput, Stack
from .front import FrontState, WindowFront
from .gated_linear_attention import GatedLinearAttention
from .gated_rnn import GatedRNN, from_gdssm
from .layer import SequenceLayer, parameter_count
from .linear_attention import LinearAttention
from .rg_lru import RGLRU
from .s5 import S5
from .sizes import layers_state, matched

__all__ = [
    "BASELINES",
    "FrontState",
    "GatedLinearAttention",
    "GatedRNN",
    "LastOutput",
    "LinearAttention",
    "RGLRU",
    "S5",
    "SequenceLayer",
    "Stack",
    "WindowFront",
    "build",
    "from_gdssm",
    "layers_state",
    "matched",
    "parameter_count",
]

BASELINES: dict[str, type[SequenceLayer]] = {
    "linear_attention": LinearAttention,
    "s5": S5,
    "rg_lru": RGLRU,
    "gated_linear_attention": GatedLinearAttention,
    "gated_rnn": GatedRNN,
}


def build(
    name: str,
    d_tokens: int,
    d_out: int,
    *,
    d_model: int | None = None,
    n_layers: int = 1,
    front: WindowFront | None = None,
    residual: bool = True,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Stack:
    """A stack of n_layers baselines of this name between two learned projections, D -> d_model and d_model -> d_out.

    d_tokens  D, features of a token
    d_model   features between the layers; None: D
    front     what stands before the projection
    options   of the layer's class

    Raises gdssm.config.ConfigError for an unknown name, ValueError and TypeError as the parts do.
    """
    check_choice("name", name, tuple(BASELINES))
    check_size("n_layers", n_layers)
    width = d_tokens if d_model is None else d_model
    make: Callable[..., SequenceLayer] = BASELINES[name]
    layers = [make(width, dtype=dtype, **options) for _ in range(n_layers)]
    return Stack(layers, front=front, d_in=d_tokens, d_out=d_out, residual=residual, dtype=dtype)
