"""The custom operators of torch: gdssm::scan and gdssm::scan_backward, with gradients, and shapes for torch.compile."""

from typing import Any

import torch
from torch import Tensor

from . import launch


def _problem(
    stream: Tensor,
    u: Tensor,
    v: Tensor,
    d: Tensor,
    queries: Tensor | None,
    log: Tensor,
    z: Tensor,
    table: Tensor | None,
    start: int,
    longest: int,
    rows: int,
    kind: int,
    unit: bool,
    stride: int,
) -> launch.Problem:
    queries = None if queries is None else queries.contiguous()
    filters = (u.contiguous(), v.contiguous(), d.contiguous())
    return launch.Problem(
        stream.contiguous(), *filters, queries, log.contiguous(), table, len(z), start, longest, rows, kind, unit, stride
    )


@torch.library.custom_op("gdssm::scan", mutates_args=())
def scan(
    stream: Tensor,
    u: Tensor,
    v: Tensor,
    d: Tensor,
    queries: Tensor | None,
    log: Tensor,
    z: Tensor,
    table: Tensor | None,
    start: int,
    longest: int,
    rows: int,
    kind: int,
    unit: bool,
    stride: int,
) -> tuple[Tensor, Tensor]:
    """Outputs (rows, H, D) and the last state (N, H, D, D); arguments as in launch.Problem."""
    p = _problem(stream, u, v, d, queries, log, z, table, start, longest, rows, kind, unit, stride)
    out, end = launch.forward(p, z.double().contiguous(), table is None)
    return out, end.to(z.dtype)


@scan.register_fake
def _scan_shapes(
    stream: Tensor,
    u: Tensor,
    v: Tensor,
    d: Tensor,
    queries: Tensor | None,
    log: Tensor,
    z: Tensor,
    table: Tensor | None,
    start: int,
    longest: int,
    rows: int,
    kind: int,
    unit: bool,
    stride: int,
) -> tuple[Tensor, Tensor]:
    return stream.new_empty(rows, u.shape[0], stream.shape[2]), torch.empty_like(z, memory_format=torch.contiguous_format)


@torch.library.custom_op("gdssm::scan_backward", mutates_args=())
def scan_backward(
    grad: Tensor,
    grad_end: Tensor,
    need_stream: bool,
    need_log: bool,
    stream: Tensor,
    u: Tensor,
    v: Tensor,
    d: Tensor,
    queries: Tensor | None,
    log: Tensor,
    z: Tensor,
    table: Tensor | None,
    start: int,
    longest: int,
    rows: int,
    kind: int,
    unit: bool,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of stream, u, v, d, queries, log and z; an empty tensor where there is none."""
    p = _problem(stream, u, v, d, queries, log, z, table, start, longest, rows, kind, unit, stride)
    wide = z.double().contiguous(), grad.contiguous(), grad_end.double().contiguous()
    found = launch.backward(p, *wide, table is None, need_stream, need_log)
    return found[0], found[1], found[2], found[3], found[4], found[5], found[6].to(grad_end.dtype)


@scan_backward.register_fake
def _backward_shapes(
    grad: Tensor,
    grad_end: Tensor,
    need_stream: bool,
    need_log: bool,
    stream: Tensor,
    u: Tensor,
    v: Tensor,
    d: Tensor,
    queries: Tensor | None,
    log: Tensor,
    z: Tensor,
    table: Tensor | None,
    start: int,
    longest: int,
    rows: int,
    kind: int,
    unit: bool,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:

    def like(t: Tensor | None) -> Tensor:
        return u.new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)

    d_stream = like(stream) if need_stream else stream.new_empty(0)
    return d_stream, like(u), like(None if unit else v), like(d), like(queries), like(log if need_log else None), like(grad_end)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.options = inputs[8:]


def _gradients(ctx: Any, grad: Tensor | None, grad_end: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    stream, z = saved[0], saved[6]
    if grad is None:
        grad = stream.new_zeros(ctx.options[2], saved[1].shape[0], stream.shape[2])
    if grad_end is None:
        grad_end = torch.zeros_like(z)
    found = list(scan_backward(grad, grad_end, ctx.needs_input_grad[0], ctx.needs_input_grad[5], *saved, *ctx.options))
    needed = [f if need else None for f, need in zip(found, ctx.needs_input_grad, strict=False)]
    return *needed, *[None] * (1 + len(ctx.options))


scan.register_autograd(_gradients, setup_context=_remember)
