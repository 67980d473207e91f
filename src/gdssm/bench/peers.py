"""Other operators, one function each. Packages are imported when a peer is built, never before.

All take (B, T, H, D) and one decay per head where they have decays. Axes: B batch, T tokens, H heads, D features.
"""

import importlib
import importlib.util

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from . import exact
from .cases import Shape
from .programs import Decoder, Entry, Program, decays, normal, taps

CHUNK = 128  # of plain-torch linear attention: the fastest of 32, 64, 128 on the machines tried


def chunked_linear_attention(q: Tensor, k: Tensor, v: Tensor, log: Tensor) -> Tensor:
    """Linear attention with one decay per head in plain torch: all chunks at once, only the state goes from chunk to chunk.

    q, k, v (B, T, H, D), log (H,). The last chunk is padded. Autograd writes the backward pass.
    """
    batch, tokens, heads, features = q.shape
    c = min(CHUNK, tokens)
    n, dtype = -(-tokens // c), q.dtype
    missing = n * c - tokens
    if missing:
        q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing)) for x in (q, k, v))
    q, k, v = (x.view(batch, n, c, heads, features).permute(0, 3, 1, 2, 4) for x in (q, k, v))  # (B, H, n, c, D)
    age = torch.arange(c, device=q.device, dtype=log.dtype)
    lag = age[:, None] - age
    between = torch.where(lag >= 0, (lag.clamp(min=0) * log[:, None, None]).exp(), 0).to(dtype)  # (H, c, c)
    out = torch.matmul(torch.matmul(q, k.transpose(3, 4)) * between[:, None], v)
    to_end = ((c - 1 - age) * log[:, None]).exp().to(dtype)[:, None, :, None]
    gained = torch.matmul((k * to_end).transpose(3, 4), v).to(log.dtype)  # (B, H, n, D, D)
    kept, z, starts = (c * log).exp()[:, None, None], torch.zeros_like(gained[:, :, 0]), []
    for i in range(n):
        starts.append(z)
        z = kept * z + gained[:, :, i]
    from_start = ((age + 1) * log[:, None]).exp().to(dtype)[:, None, :, None]
    out = out + torch.matmul(q * from_start, torch.stack(starts, dim=2).to(dtype))
    return out.permute(0, 2, 3, 1, 4).reshape(batch, n * c, heads, features)[:, :tokens]


def _streams(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (normal(g, device, dtype, *shape) for _ in range(3))
    return q, k, v, decays(g, shape.heads, device)


def _filtered(attention: object, shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
    """The same function as gdssm: W-tap filters of one stream, then linear attention of the three."""
    g = torch.Generator().manual_seed(0)
    inputs = (normal(g, device, dtype, *shape), *taps(g, shape.heads, device), decays(g, shape.heads, device))

    def call(x: Tensor, u: Tensor, v: Tensor, d: Tensor, log: Tensor) -> Tensor:
        q, k, values = (exact.filters(x, t.to(x.dtype)) for t in (d, u, v))
        return attention(q, k, values, log)  # type: ignore[operator]

    def by_definition(x: Tensor, u: Tensor, v: Tensor, d: Tensor, log: Tensor) -> Tensor:
        return exact.windows(x, u[:, :, None] * v[:, None], log, d, 1)

    return Program(inputs, call, by_definition)


def linear(shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
    """Plain-torch chunked linear attention."""
    return Program(_streams(shape, dtype, device), chunked_linear_attention, exact.linear_attention)


def linear_filters(shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
    """Filters, then plain-torch chunked linear attention."""
    return _filtered(chunked_linear_attention, shape, dtype, device)


def linear_step(shape: Shape, dtype: torch.dtype, device: torch.device) -> Decoder:
    """One token of linear attention in plain torch, float32 state."""
    q, k, v, log = (t.detach() for t in _streams(shape._replace(tokens=1), dtype, device))
    q, k, v = (t[:, 0].float() for t in (q, k, v))
    kept = log.exp()[:, None, None]

    def step(z: Tensor) -> Tensor:
        z = kept * z + k[..., :, None] * v[..., None, :]
        torch.matmul(q[..., None, :], z)
        return z

    return Decoder(torch.zeros(shape.batch, shape.heads, shape.features, shape.features, device=device), step)


def sdpa(shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
    """Causal softmax attention by torch."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    return Program(_streams(shape, dtype, device)[:3], call, exact.softmax_attention)


def _mamba(parallel: bool, shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
    """transformers' MambaMixer without its kernels, inner width H D; the answer is its own slow path in float64."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    width = shape.heads * shape.features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {"hidden_size": width, "expand": 1, "state_size": 16, "num_hidden_layers": 1}
        mixer = MambaMixer(MambaConfig(**settings, use_mambapy=parallel), layer_idx=0).to(device, dtype)
        judge = MambaMixer(MambaConfig(**settings), layer_idx=0).to(device, torch.float64)
    judge.load_state_dict({name: value.double() for name, value in mixer.state_dict().items()})
    g = torch.Generator().manual_seed(0)
    x = normal(g, device, dtype, *shape)

    def run(module: torch.nn.Module, x: Tensor) -> Tensor:
        return module(x.flatten(2)).view_as(x)

    return Program((x,), lambda x: run(mixer, x), lambda x: run(judge, x))


def mamba(shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
    """One token after another."""
    return _mamba(False, shape, dtype, device)


def mambapy(shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
    """The parallel scan of mambapy inside transformers' mixer."""
    return _mamba(True, shape, dtype, device)


def _chunk_simple_gla(q: Tensor, k: Tensor, v: Tensor, log: Tensor) -> Tensor:
    ops = importlib.import_module("fla.ops.simple_gla")
    return ops.chunk_simple_gla(q, k, v, g_gamma=log.detach(), scale=1.0)[0]


def fla(shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
    """flash-linear-attention's chunk_simple_gla with the same fixed decay per head."""
    q, k, v, log = _streams(shape, dtype, device)
    fixed = log.detach()
    return Program(
        (q, k, v),
        lambda q, k, v: _chunk_simple_gla(q, k, v, fixed),
        lambda q, k, v: exact.linear_attention(q, k, v, fixed.double()),
    )


def fla_filters(shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
    """W-tap filters, then chunk_simple_gla: the function of gdssm, its decay not trained."""
    made = _filtered(_chunk_simple_gla, shape, dtype, device)
    fixed = made.inputs[4].detach()
    return Program(made.inputs[:4], lambda *inputs: made.call(*inputs, fixed), lambda *inputs: made.exact(*inputs, fixed.double()))


def fla_step(shape: Shape, dtype: torch.dtype, device: torch.device) -> Decoder:
    """One token by fused_recurrent_simple_gla, float32 state."""
    ops = importlib.import_module("fla.ops.simple_gla")
    q, k, v, log = (t.detach() for t in _streams(shape._replace(tokens=1), dtype, device))

    def step(z: Tensor) -> Tensor:
        return ops.fused_recurrent_simple_gla(q, k, v, g_gamma=log, scale=1.0, initial_state=z, output_final_state=True)[1]

    return Decoder(torch.zeros(shape.batch, shape.heads, shape.features, shape.features, device=device), step)


def ssd(shape: Shape, dtype: torch.dtype, device: torch.device) -> Program:
    """mamba-ssm's SSD as linear attention: B the keys, C the queries, x the values, dt = 1, A the log decay."""
    combined = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    q, k, v, log = _streams(shape, dtype, device)
    fixed, ones = log.detach(), torch.ones(shape[:3], dtype=dtype, device=device)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return combined.mamba_chunk_scan_combined(v, ones, fixed, k, q, chunk_size=256 if shape.tokens >= 256 else 64)

    return Program((q, k, v), call, lambda q, k, v: exact.linear_attention(q, k, v, fixed.double()))


_FLA = ("fla", "pip install flash-linear-attention")
_TRANSFORMERS = ("transformers", "pip install 'gdssm[hf]'")
PEERS: dict[str, Entry] = {
    "linear": Entry("linear attention, chunks in plain torch, autograd", linear, linear_step, kind="linear"),
    "linear-filters": Entry("W-tap filters of one stream, then linear", linear_filters, kind="linear-filters"),
    "sdpa": Entry("softmax attention, torch's scaled_dot_product_attention", sdpa, kind="softmax", most_tokens=4096),
    "mamba": Entry(
        "transformers' MambaMixer, slow path, width H D",
        mamba,
        kind="mamba",
        devices=("cpu",),
        slow=True,
        dtypes=("float32",),
        needs=_TRANSFORMERS,
    ),
    "mambapy": Entry(
        "transformers' MambaMixer with mambapy's parallel scan, width H D",
        mambapy,
        kind="mamba",
        devices=("cpu",),
        slow=True,
        dtypes=("float32",),
        needs=("mambapy", "pip install mambapy 'gdssm[hf]'"),
    ),
    "fla": Entry("flash-linear-attention's chunk_simple_gla", fla, fla_step, kind="linear", devices=("cuda",), needs=_FLA),
    "fla-filters": Entry(
        "W-tap filters of one stream, then chunk_simple_gla", fla_filters, kind="linear-filters", devices=("cuda",), needs=_FLA
    ),
    "ssd": Entry(
        "mamba-ssm's SSD, mamba_chunk_scan_combined",
        ssd,
        kind="linear",
        devices=("cuda",),
        needs=("mamba_ssm", "pip install mamba-ssm"),
    ),
}
DEFAULT = {"cpu": ("linear", "linear-filters", "sdpa", "mamba"), "cuda": ("fla", "fla-filters", "sdpa", "ssd")}


def missing(entry: Entry, device: str) -> str | None:
    """Why a peer cannot run here, and what would help; None where it can."""
    if device not in entry.devices:
        return f"runs on {' and '.join(entry.devices)} only"
    if entry.needs is not None and importlib.util.find_spec(entry.needs[0]) is None:
        return f"{entry.needs[0]} is not installed: {entry.needs[1]}"
    return None
