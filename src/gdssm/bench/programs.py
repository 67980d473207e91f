"""What is timed of this library, and what every program of the benchmark looks like.

Axes: B batch, T tokens, W window width, H heads, D features.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import ScanState, gd_scan, zero_state
from . import exact
from .cases import WIDTH, Shape


class Program(NamedTuple):
    """A function of tensors that require gradients, and the same by definition; call and exact take *inputs."""

    inputs: tuple[Tensor, ...]
    call: Callable[..., Tensor]
    exact: Callable[..., Tensor]


class Decoder(NamedTuple):
    """step(state) reads one token and returns the next state; start is the state after a first token or more.

    itemsize: bytes of a number of the state.
    """

    start: Any
    step: Callable[[Any], Any]
    itemsize: int = 4


class Entry(NamedTuple):
    """One line of the table. build(shape, dtype, device) makes a Program; decode likewise a Decoder, where there is one."""

    what: str
    build: Callable[[Shape, torch.dtype, torch.device], Program]
    decode: Callable[[Shape, torch.dtype, torch.device], Decoder] | None = None
    kind: str = "filters"  # which formula of costs.py
    devices: tuple[str, ...] = ("cpu", "cuda")
    most_tokens: int | None = None  # on a CPU, where more would take minutes
    slow: bool = False  # seconds for a few thousand tokens
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    needs: tuple[str, str] | None = None  # a module, and how to install it


def normal(generator: torch.Generator, device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """Random numbers that are the same on every device."""
    return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()


def decays(generator: torch.Generator, heads: int, device: torch.device) -> Tensor:
    """log Lambda per head, Lambda from 0.95 to 1, float32."""
    return (-0.05 * torch.rand(heads, generator=generator)).to(device).requires_grad_()


def taps(generator: torch.Generator, heads: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """u, v and d, (H, W), float32."""
    made = [(torch.randn(heads, WIDTH, generator=generator) / WIDTH).to(device).requires_grad_() for _ in range(3)]
    return made[0], made[1], made[2]


def one_stream(shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
    """w_q = u v^T, stride 1: the same function as linear-filters."""
    g = torch.Generator().manual_seed(0)
    x = normal(g, device, dtype, *shape)
    inputs = (x, *taps(g, shape.heads, device), decays(g, shape.heads, device))

    def by_definition(x: Tensor, u: Tensor, v: Tensor, d: Tensor, log: Tensor) -> Tensor:
        return exact.windows(x, u[:, :, None] * v[:, None], log, d, 1)

    return Program(inputs, lambda x, u, v, d, log: gd_scan(x, (u, v), log, d)[0], by_definition)


def full_gate(stride: int) -> Callable[[Shape, torch.dtype, torch.device], Program]:
    """w_q of full rank."""

    def build(shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
        g = torch.Generator().manual_seed(0)
        x = normal(g, device, dtype, *shape)
        d, _, _ = taps(g, shape.heads, device)
        w_q = (torch.randn(shape.heads, WIDTH, WIDTH, generator=g) / WIDTH).to(device).requires_grad_()

        def call(x: Tensor, w_q: Tensor, log: Tensor, d: Tensor) -> Tensor:
            return gd_scan(x, w_q, log, d, stride=stride)[0]

        inputs = (x, w_q, decays(g, shape.heads, device), d)
        return Program(inputs, call, lambda x, w_q, log, d: exact.windows(x, w_q, log, d, stride))

    return build


def separate_streams(shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
    """Linear attention of separate queries, keys and values: keys and values in turn are one stream read at stride 2."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (normal(g, device, dtype, *shape) for _ in range(3))
    first, second = torch.eye(2, device=device)[:, None].expand(-1, shape.heads, -1)

    def call(q: Tensor, k: Tensor, v: Tensor, log: Tensor) -> Tensor:
        stream = torch.stack([k, v], dim=2).flatten(1, 2)  # (B, 2 T, H, D)
        return gd_scan(stream, (first, second), log, None, stride=2, queries=q)[0]

    return Program((q, k, v, decays(g, shape.heads, device)), call, exact.linear_attention)


def decode_scan(shape: Shape, dtype: torch.dtype, device: torch.device) -> Decoder:
    """One token after another through gd_scan, w_q = u v^T. Z is float64 in plain torch, float32 on a GPU as it is for others."""
    g = torch.Generator().manual_seed(0)
    u, v, d = (t.detach() for t in taps(g, shape.heads, device))
    log = decays(g, shape.heads, device).detach()
    token = normal(g, device, dtype, shape.batch, 1, shape.heads, shape.features).detach()
    start = zero_state(shape.batch, shape.heads, WIDTH, shape.features, dtype=torch.float32, device=device)
    for _ in range(WIDTH):
        start = gd_scan(token, (u, v), log, d, state=start)[1]
    if device.type == "cuda":
        start = start._replace(z=start.z.float())

    def step(state: ScanState) -> ScanState:
        return gd_scan(token, (u, v), log, d, state=state)[1]

    return Decoder(start, step, start.z.element_size())


OWN: dict[str, Entry] = {
    "gdssm": Entry("this library, one stream, w_q = u v^T, stride 1", one_stream, decode_scan),
    "gdssm-full": Entry("this library, one stream, w_q of full rank, stride 1", full_gate(1), kind="full"),
    "gdssm-stride2": Entry("this library, one stream, w_q of full rank, stride 2", full_gate(2), kind="full-stride2"),
    "gdssm-streams": Entry("this library on separate queries, keys, values", separate_streams, kind="streams"),
}
