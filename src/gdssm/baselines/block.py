"""Stacks of baselines as the comparison needs them: a window front, projections in and out, residual layers.

    f_k = front(tokens)   |  s_t                     with or without a front
    h   = W_in f          |  f                       with or without a projection
    h  <- h + layer(h)    |  layer(h)                one or two layers, with or without residual
    y   = W_out h         |  h

No normalisation and no position-wise network: those would add capacity that GDSSM does not have in the comparison.
Axes: B batch, T tokens, K windows, D features.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import ops
from ..weights import check_size
from .front import FrontState, WindowFront
from .layer import SequenceLayer, affine, check_some, check_tokens, reading

StackState = tuple[FrontState | Tensor, ...]


class Stack(nn.Module):
    """Layers one after the other: `stack(tokens (B, T, D), state, lengths)` -> outputs (B, K, D_out), a tuple of states.

    layers    SequenceLayers
    front     a WindowFront, whose state is then the first of the tuple; its stride is the stack's
    d_in      D: learn W_in (d_model of the first layer, D or the front's size); None: no projection
    d_out     learn W_out (d_out, d_out of the last layer); None: no projection
    residual  h + layer(h)

    Raises ValueError where sizes do not fit together, TypeError for layers of another kind.
    """

    def __init__(
        self,
        layers: Sequence[SequenceLayer],
        *,
        front: WindowFront | None = None,
        d_in: int | None = None,
        d_out: int | None = None,
        residual: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("layers must hold at least one layer")
        for layer in layers:
            if not isinstance(layer, SequenceLayer):
                raise TypeError(f"layers must be baselines' sequence layers, got {type(layer).__name__}")
        first, last = layers[0], layers[-1]
        given = d_in if front is None else front.d_out
        if front is not None and d_in not in (None, front.d_model):
            raise ValueError(f"d_in is {d_in}, the front reads {front.d_model} features")
        if d_in is None and given not in (None, first.d_model):
            raise ValueError(f"layers read {first.d_model} features, the front gives {given}; d_in makes a projection")
        sizes = [first.d_model, *(layer.d_out for layer in layers)]
        for layer, size in zip(layers, sizes, strict=False):
            if layer.d_model != size or (residual and layer.d_out != size):
                raise ValueError(f"layers: one of {layer.d_model} -> {layer.d_out} features cannot follow {size} features here")
        self.front, self.residual = front, residual
        self.layers = nn.ModuleList(layers)
        tokens_size = d_in if front is None else front.d_model
        self.d_model = first.d_model if tokens_size is None else tokens_size
        self.d_out = last.d_out if d_out is None else d_out
        for name, size in {"d_in": self.d_model, "d_out": self.d_out}.items():
            check_size(name, size)
        w_in = None if d_in is None else nn.Parameter(torch.empty(first.d_model, given or 0, dtype=dtype))
        w_out = None if d_out is None else nn.Parameter(torch.empty(d_out, last.d_out, dtype=dtype))
        self.register_parameter("w_in", w_in)
        self.register_parameter("w_out", w_out)
        self._reset_projections(None)

    w_in: nn.Parameter | None
    w_out: nn.Parameter | None

    def _reset_projections(self, generator: torch.Generator | None) -> None:
        for weight in (self.w_in, self.w_out):
            if weight is not None:
                with torch.no_grad():
                    weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Random weights of every part; the projections Gaussian of variance 1 / (numbers read)."""
        if self.front is not None:
            self.front.reset_parameters(generator)
        for layer in self._parts():
            layer.reset_parameters(generator)
        self._reset_projections(generator)

    def _parts(self) -> list[SequenceLayer]:
        return [layer for layer in self.layers if isinstance(layer, SequenceLayer)]

    @property
    def state_size(self) -> int:
        """Numbers kept per sequence, the front's tokens included."""
        front = 0 if self.front is None else self.front.state_size
        return front + sum(layer.state_size for layer in self._parts())

    def init_state(self, batch_size: int) -> StackState:
        """The states before any token: the front's, then one per layer."""
        front = () if self.front is None else (self.front.init_state(batch_size),)
        return front + tuple(layer.init_state(batch_size) for layer in self._parts())

    @ops.full_precision
    def forward(self, tokens: Tensor, state: StackState | None = None, lengths: Tensor | None = None) -> tuple[Tensor, StackState]:
        """Errors as SequenceLayer's; ValueError for a state of another number of parts."""
        parts = len(self.layers) + (self.front is not None)
        before: Sequence[Any] = [None] * parts if state is None else state
        if len(before) != parts:
            raise ValueError(f"state has {len(before)} parts, this stack has {parts}")
        h, read, after = self._read(tokens, before[0], lengths)
        for layer, own in zip(self._parts(), before[len(after) :], strict=True):
            out, z = layer.masked(h, own, read)
            h = h + out if self.residual else out
            after.append(z)
        h = h if self.w_out is None else affine(h, self.w_out)
        return h.to(tokens.dtype), tuple(after)

    def _read(
        self, tokens: Tensor, state: FrontState | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, list[FrontState | Tensor]]:
        """What the first layer reads, which of it is read, and the front's state where there is one."""
        check_tokens(tokens, self.d_model)
        h = tokens.to(ops.compute_dtype(tokens, *self.parameters()))
        after: list[FrontState | Tensor] = []
        if self.front is None:
            read = reading(lengths, tokens)
            if read is not None:
                h = h.masked_fill(~read, 0)
        else:
            h, read, new = self.front.windows(h, state, lengths)
            after.append(new)
        return (h if self.w_in is None else affine(h, self.w_in)), read, after

    @ops.full_precision
    def last(self, tokens: Tensor) -> Tensor:
        """The last window's output, (B, D_out): the last layer gives no other. ValueError where there is none."""
        h, _, _ = self._read(tokens, None, None)
        check_some(h)
        *inner, top = self._parts()
        for layer in inner:
            out, _ = layer.masked(h, None, None)
            h = h + out if self.residual else out
        out = top.final(h)
        h = h[:, -1] + out if self.residual else out
        return (h if self.w_out is None else affine(h, self.w_out)).to(tokens.dtype)


class ReadsLast(Protocol):
    """A sequence model of d_out features that can give its last output alone."""

    d_out: int

    def last(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, D) -> (B, d_out)."""


class LastOutput(nn.Module):
    """A layer or stack read as a predictor, in the form that training calls: module(tokens (B, T, D)) -> (B, d_y).

    layer   anything with `last`; its first d_y outputs at the last token are the prediction
    """

    def __init__(self, layer: ReadsLast, d_y: int) -> None:
        super().__init__()
        check_size("d_y", d_y)
        if layer.d_out < d_y:
            raise ValueError(f"layer has {layer.d_out} outputs, d_y = {d_y}")
        self.layer, self.d_y = layer, d_y

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer.last(tokens)[..., : self.d_y]
