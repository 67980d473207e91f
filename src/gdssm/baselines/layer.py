"""What the baselines have in common: the call of a sequence layer, padding, the precision of the state.

Axes: B batch, T tokens, D features.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .. import ops
from ..ops.windows import check_lengths
from ..weights import check_size


class SequenceLayer(nn.Module, ABC):
    """A causal layer: `layer(tokens (B, T, D), state, lengths)` returns outputs (B, T, D_out) and the state.

    The state is one tensor (B, *state_shape) of real numbers, in float32 or better whatever the tokens are. A subclass
    gives `state_shape`, `scan` and `reset_parameters`; padding, dtypes and checks are settled here.
    """

    def __init__(self, d_model: int, d_out: int | None = None) -> None:
        super().__init__()
        check_size("d_model", d_model)
        check_size("d_out", d_model if d_out is None else d_out)
        self.d_model, self.d_out = d_model, d_model if d_out is None else d_out

    state_shape: tuple[int, ...]

    @property
    def state_size(self) -> int:
        """Numbers kept per sequence."""
        return math.prod(self.state_shape)

    @abstractmethod
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Random weights."""

    @abstractmethod
    def scan(self, tokens: Tensor, state: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor]:
        """The recurrence on tokens (B, T, D) of the state's dtype: outputs (B, T, D_out), state after them.

        read (B, T, 1) bool: where it is False the tokens are zero, and must leave the state as it is; the outputs there
        may be anything. None: every token is read.
        """

    def final(self, tokens: Tensor) -> Tensor:
        """The last output (B, D_out) of `scan` from a zero state on tokens (B, T, D), T >= 1, all of them read.

        A subclass may give a form that leaves the other outputs out; it is what training on last outputs spends its time in.
        """
        return self.scan(tokens, self._zero_state(tokens.shape[0], tokens.dtype), None)[0][:, -1]

    def init_state(self, batch_size: int) -> Tensor:
        """The state before any token."""
        check_size("batch_size", batch_size)
        return self._zero_state(batch_size, ops.compute_dtype(*self.parameters()))

    def _zero_state(self, batch_size: int, dtype: torch.dtype) -> Tensor:
        device = next(self.parameters()).device
        return torch.zeros(batch_size, *self.state_shape, dtype=dtype, device=device)

    @ops.full_precision
    def forward(self, tokens: Tensor, state: Tensor | None = None, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (B, T, D) -> outputs (B, T, D_out), zero in the padding, and the state at each sequence's own end.

        lengths (B,): tokens past a length are not read. Raises ValueError for shapes that do not fit, TypeError for
        tokens that are not floating point.
        """
        check_tokens(tokens, self.d_model)
        read = reading(lengths, tokens)
        out, after = self.masked(tokens.to(ops.compute_dtype(tokens, *self.parameters())), state, read)
        return out.to(tokens.dtype), after

    def masked(self, tokens: Tensor, state: Tensor | None, read: Tensor | None) -> tuple[Tensor, Tensor]:
        """`forward` for any pattern of tokens to read (B, T, 1): skipped tokens do nothing, outputs there are zero."""
        if state is None:
            state = self._zero_state(tokens.shape[0], tokens.dtype)
        elif tuple(state.shape) != (tokens.shape[0], *self.state_shape):
            raise ValueError(f"state must be {(tokens.shape[0], *self.state_shape)}, got shape {tuple(state.shape)}")
        if read is not None:
            tokens = tokens.masked_fill(~read, 0)
        out, after = self.scan(tokens, state.to(tokens.dtype), read)
        return out if read is None else out.masked_fill(~read, 0), after

    @ops.full_precision
    def last(self, tokens: Tensor) -> Tensor:
        """The last token's output, (B, D_out); errors as forward's, ValueError where there are no tokens."""
        check_tokens(tokens, self.d_model)
        check_some(tokens)
        return self.final(tokens.to(ops.compute_dtype(tokens, *self.parameters()))).to(tokens.dtype)

    def extra_repr(self) -> str:
        return f"{self.d_model}, d_out={self.d_out}, state_size={self.state_size}"


def parameter_count(module: nn.Module) -> int:
    """Learned numbers of a module."""
    return sum(p.numel() for p in module.parameters())


def check_tokens(tokens: Tensor, d_model: int) -> None:
    """TypeError or ValueError unless tokens are floating point and (B, T, d_model)."""
    if not isinstance(tokens, Tensor) or not tokens.is_floating_point():
        raise TypeError(f"tokens must be a floating-point tensor, got {getattr(tokens, 'dtype', type(tokens).__name__)}")
    if tokens.ndim != 3 or tokens.shape[2] != d_model:
        raise ValueError(f"tokens must be (B, T, {d_model}), got shape {tuple(tokens.shape)}")


def reading(lengths: Tensor | None, tokens: Tensor) -> Tensor | None:
    """Which tokens (B, T, D) are read, (B, T, 1) bool; None: all of them. ValueError for lengths out of range."""
    checked = check_lengths(lengths, tokens.shape[0], tokens.shape[1])
    if checked is None:
        return None
    return (torch.arange(tokens.shape[1]) < checked[:, None])[..., None].to(tokens.device)


def check_some(tokens: Tensor) -> None:
    """ValueError where there are no tokens or windows (B, T, D) to give an output."""
    if tokens.shape[1] == 0:
        raise ValueError("tokens: no output ends in them, so there is no last one")


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b in the dtype of x: x (.., D), weight (N, D), bias (N,) -> (.., N)."""
    return linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def skip_unread(value: Tensor, read: Tensor | None, neutral: float) -> Tensor:
    """A gate (B, T, N) with its neutral value where a token is not read."""
    return value if read is None else value.masked_fill(~read, neutral)
