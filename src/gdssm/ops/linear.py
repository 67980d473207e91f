"""linear_scan: the recurrence with keys, values and queries given, in chunks, with its gradients written out.

    Z_t = Lambda_t Z_{t-1} + key_t value_t^T           out_t = Z_t^T query_t

This is gd_scan for windows that were filtered before: the form of deep models whose keys are normalised, or come from a stream
of their own. The equations in chunks, and the gradients, are in chunk_products.

Axes: B batch, T tokens, H heads, D features of keys and queries, E features of values.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from . import decay
from .chunk_products import Chunks, Rooms, Rows
from .chunk_steps import Step, chunk_of, filling
from .windows import carry_dtype, check_lengths, compute_dtype, full_precision, unrecorded


@full_precision
def linear_scan(
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    log_decay: Tensor | None,
    *,
    z: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs for every token, and the state after the last.

    keys, queries  (B, T, H, D), floating point
    values         (B, T, H, E)
    log_decay      log Lambda <= 0: None (Lambda = 1) | (H,) | (B, T, H)
    z              (B, H, D, E), what an earlier call returned; None starts at 0
    lengths        (B,) right padding: tokens past a length are not read, outputs there are zero

    Returns out (B, T, H, E) in the dtype of the values and z in float64 (float32 where a device has none). Half-precision
    tokens are accumulated in float32. Gradients are of first order only.

    Raises ValueError for shapes that do not fit, a positive log_decay (looked for on the CPU only) and lengths out of range.
    """
    batch, tokens, heads, features = _check(keys, values, queries, log_decay, z)
    carried, fresh = carry_dtype(keys.device), z is None
    if z is None:
        z = torch.zeros(batch, heads, features, values.shape[3], dtype=carried, device=keys.device)
    if tokens == 0:
        return values, z.to(carried)
    log = None if log_decay is None else log_decay.to(carried).clamp(min=decay.SMALLEST)
    lengths = check_lengths(lengths, batch, tokens)
    padding = None
    if lengths is not None:
        padding = (torch.arange(tokens) >= lengths[:, None]).to(keys.device)[..., None]  # (B, T, 1)
        keys, values, queries = (x.masked_fill(padding[..., None], 0) for x in (keys, values, queries))
        log = None if log is None else log.expand(batch, tokens, heads).masked_fill(padding, 0)
    if tokens == 1:
        return _one_token(keys, values, queries, log, z.to(carried))
    if log is None:
        log = torch.zeros(heads, dtype=carried, device=keys.device)
    elif log.ndim == 3:
        log = log.permute(2, 0, 1)  # (H, B, T)
    lead = filling(tokens, chunk_of(1, log), batch * heads * features) if fresh else 0
    if lead:
        keys, values, queries = (pad(x, (0, 0, 0, 0, lead, 0)) for x in (keys, values, queries))
        log = log if log.ndim == 1 else pad(log, (lead, 0))
    out, last = LinearScan.apply(*unrecorded(keys, values, queries, log, z.to(carried)))
    return out[:, lead:], last


def _one_token(keys: Tensor, values: Tensor, queries: Tensor, log: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor]:
    """linear_scan of one token, in the dtype of the state: few operations, because decoding is made of them."""
    grown = keys.to(z.dtype).transpose(1, 2).mT * values.to(z.dtype).transpose(1, 2)  # (B, H, D, E)
    if log is not None:
        kept = log.exp()  # (H,) or (B, 1, H)
        grown = torch.addcmul(grown, kept[:, None, None] if kept.ndim == 1 else kept.transpose(1, 2)[..., None], z)
    else:
        grown = grown + z
    out = torch.matmul(queries.to(z.dtype).transpose(1, 2), grown)
    return out.transpose(1, 2).to(values.dtype), grown


def _check(keys: Tensor, values: Tensor, queries: Tensor, log_decay: Tensor | None, z: Tensor | None) -> tuple[int, ...]:
    if keys.ndim != 4 or queries.shape != keys.shape or values.ndim != 4 or values.shape[:3] != keys.shape[:3]:
        shapes = [tuple(x.shape) for x in (keys, values, queries)]
        raise ValueError(f"keys and queries must be (B, T, H, D), values (B, T, H, E), got shapes {shapes}")
    batch, tokens, heads, features = keys.shape
    if log_decay is not None and log_decay.shape not in ((heads,), (batch, tokens, heads)):
        allowed = f"None, {(heads,)}, {(batch, tokens, heads)}"
        raise ValueError(f"log_decay has shape {tuple(log_decay.shape)}; allowed: {allowed}")
    decay.check_sign(log_decay)
    if z is not None and z.shape != (batch, heads, features, values.shape[3]):
        raise ValueError(f"z has shape {tuple(z.shape)}; these keys and values need {(batch, heads, features, values.shape[3])}")
    return batch, tokens, heads, features


class Given:
    """Rows that are given: keys, queries (B, T, H, D) and values (B, T, H, E), one slot."""

    slots = 1

    def __init__(self, keys: Tensor, values: Tensor, queries: Tensor, dtype: torch.dtype) -> None:
        self.given, self.dtype = Rows(keys, queries, values), dtype
        self.grads: Rows | None = None
        self.room = Rooms(dtype, keys.device)

    def load(self, step: Step) -> Rows:
        """Copies in the dtype of the products."""
        made = []
        for name, x in zip(Rows._fields, self.given, strict=True):
            row = self.room(name, *step.sizes, x.shape[3]).copy_(step.windows(x))
            made.append(row.flatten(0, 2))
        return Rows(*made)

    def store(self, step: Step, grads: Rows) -> None:
        """Gradients of all three, made at the first call."""
        if self.grads is None:
            self.grads = Rows(*(torch.empty_like(x, memory_format=torch.contiguous_format) for x in self.given))
        for x, grad in zip(self.grads, grads, strict=True):
            step.windows(x).copy_(grad.view(*step.sizes, -1))


class LinearScan(torch.autograd.Function):
    """apply(keys, values, queries, logs, z (B, H, D, E)) -> out (B, T, H, E), z.

    logs (H,) or (H, B, T), log Lambda, and z have the dtype of the state.
    """

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, queries: Tensor, logs: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """See the module's equations."""
        kept: list[Tensor] | None = [] if any(ctx.needs_input_grad) else None
        out = values.new_empty(values.shape)
        chunks = _chunks(Given(keys, values, queries, compute_dtype(keys, values, queries)), logs)
        last = chunks.forward(z.transpose(0, 1), out, kept).transpose(0, 1)
        ctx.made = chunks.made
        ctx.save_for_backward(keys, values, queries, logs, *(kept or ()))
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_z: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all five inputs."""
        keys, values, queries, logs, *kept = ctx.saved_tensors
        source = Given(keys, values, queries, compute_dtype(keys, values, queries))
        chunks = _chunks(source, logs)
        chunks.made = ctx.made
        d_logs = torch.zeros_like(logs) if ctx.needs_input_grad[3] else None
        d_before = chunks.backward(d_out, d_z.transpose(0, 1), kept, d_logs).transpose(0, 1)
        assert source.grads is not None
        return source.grads.k, source.grads.v, source.grads.q, d_logs, d_before


def _chunks(source: Given, logs: Tensor) -> Chunks:
    keys, _, values = source.given
    return Chunks(source, (keys.shape[3], values.shape[3], keys.shape[1]), logs, source.dtype)
