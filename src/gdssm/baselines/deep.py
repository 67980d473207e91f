"""Deep baselines for sequences of tokens: one block for all, which differ in how tokens are mixed.

    h <- h + W_o mix(norm(h))                    see MIXERS
    h <- h + W_3 (silu(W_1 n) * W_2 n)           n = norm(h)
    outputs = W norm(h)                          of every token, or of the mean over a sequence's tokens; logits of the
                                                 tokens read have the embedding's matrix as W

| mixer                  | what it computes                                                                            |
|------------------------|---------------------------------------------------------------------------------------------|
| attention              | softmax attention; queries and keys are turned by their places (2104.09864)                 |
| linear_attention       | Z_t = Z_{t-1} + k_t v_t^T, read by q_t                                                      |
| gated_linear_attention | a decay for every row of Z and token (2312.06635), log Lambda = logsigmoid(W s) / 16        |
| delta_net              | the delta rule with keys of length 1 (2406.06484)                                           |
| window                 | no state: the product of key, value and query of one token, which see `window` tokens       |

Keys, values and queries of all but attention pass through short causal convolutions and silu, as in the published models of
the delta rule; heads' outputs are normed, and gated by silu(W_g n). `both` ways: half of the heads read from the other end.

Axes: B sequences, T tokens, D features, H heads, I features of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, linear, logsigmoid, normalize, pad, scaled_dot_product_attention, silu

from ..config import check_choice
from ..deep.config import FILTERS
from ..deep.mixer import FILTER_NOISE, recalling_heads
from ..weights import check_size
from .recurrences import attention

MIXERS = ("attention", "linear_attention", "gated_linear_attention", "delta_net", "window")
TAU = 16.0  # divides log Lambda, so that decays start near 1
_CHUNK = 16  # tokens whose decays are factored


class DeepBaseline(nn.Module):
    """tokens (B, T) integers, or (B, T, n_inputs) numbers -> outputs (B, T, n_outputs); (B, n_outputs) where pooled.

    mixer       one of MIXERS
    n_inputs    tokens of the vocabulary, or features of a token
    n_outputs   numbers given
    d_model     D
    n_layers    blocks
    n_heads     H, divides D; even where `both`
    d_inner     features of each branch of the gated network; None: 8/3 D
    window      taps of the short convolutions
    embed       tokens are integers
    pooled      one output per sequence
    both        not causal: half of the heads read the sequence from its end, attention sees all of it
    filters     how the short convolutions start: "random", Gaussian of variance 1/W; "recalling", as gdssm.deep's: in the
                last quarter of each direction's heads around one tap, values and queries see the last token, keys the one before it

    Raises ConfigError for an unknown mixer, ValueError for sizes out of range or that do not fit together.
    """

    def __init__(
        self,
        mixer: str,
        n_inputs: int,
        n_outputs: int,
        *,
        d_model: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        d_inner: int | None = None,
        window: int = 4,
        embed: bool = True,
        pooled: bool = False,
        both: bool = False,
        filters: str = "random",
    ) -> None:
        super().__init__()
        check_choice("mixer", mixer, MIXERS)
        check_choice("filters", filters, FILTERS)
        inner = max(1, 8 * d_model // 3) if d_inner is None else d_inner
        sizes = {"n_inputs": n_inputs, "n_outputs": n_outputs, "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
        for name, size in (sizes | {"window": window, "d_inner": inner}).items():
            check_size(name, size)
        if d_model % n_heads or (both and n_heads % 2):
            raise ValueError(f"n_heads must divide d_model = {d_model}{', and be even' if both else ''}, got {n_heads}")
        if mixer == "attention" and d_model // n_heads % 2:
            raise ValueError(f"d_model / n_heads must be even for attention, got {d_model // n_heads}")
        self.mixer, self.n_layers, self.n_heads, self.window, self.pooled = mixer, n_layers, n_heads, window, pooled
        self.d_model, self.filters, self.both = d_model, filters, both
        self.embedding = nn.Embedding(n_inputs, d_model) if embed else nn.Linear(n_inputs, d_model)
        self.blocks = nn.ModuleList([_Block(mixer, d_model, inner, n_heads, window, both) for _ in range(n_layers)])
        self.norm = nn.RMSNorm(d_model)
        tied = embed and not pooled and n_inputs == n_outputs
        self.head = None if tied else nn.Linear(d_model, n_outputs, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Gaussian of standard deviation 0.02, as GPT-2's; what ends in the residual stream divided by sqrt(2 n_layers)."""
        for name, weight in self.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(1)
            elif name.endswith("bias"):
                weight.zero_()
            elif "filters" in name:
                weight.normal_(0, self.window**-0.5, generator=generator)
                if self.filters == "recalling":
                    directions = 2 if self.both else 1
                    by_head = weight.unflatten(1, (3, directions, self.n_heads // directions, -1))
                    recalling = by_head[:, :, :, -recalling_heads(self.n_heads // directions) :]
                    recalling.mul_(FILTER_NOISE)
                    for stream, place in ((0, -1), (1, max(self.window - 2, 0)), (2, -1)):
                        recalling[place, stream] += 1
            else:
                scale = (2 * self.n_layers) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                weight.normal_(0, 0.02 * scale, generator=generator)

    def state_size(self, tokens: int) -> int:
        """Numbers that one has to keep per sequence to go on after so many tokens."""
        size = self.d_model // self.n_heads
        if self.mixer == "attention":
            return self.n_layers * 2 * tokens * self.d_model
        kept = 3 * (self.window - 1) * self.d_model
        return self.n_layers * (kept + (0 if self.mixer == "window" else self.n_heads * size * size))

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths (B,): tokens past a length are not read."""
        h = self.embedding(tokens)
        length = h.shape[1]
        read = None if lengths is None else (torch.arange(length) < lengths.cpu()[:, None]).to(h.device)  # (B, T)
        for block in self.blocks:
            h = block(h, read)
        h = self.norm(h)
        if self.pooled:
            h = h.mean(1) if read is None else (h * read[..., None]).sum(1) / read.sum(1, keepdim=True)
        return linear(h, self.embedding.weight if self.head is None else self.head.weight)


class _Block(nn.Module):
    """Mixing of tokens, then a gated network for each of them."""

    def __init__(self, mixer: str, d_model: int, inner: int, n_heads: int, window: int, both: bool) -> None:
        super().__init__()
        kind = _Attention if mixer == "attention" else _Recurrent
        self.mix_norm, self.mlp_norm = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        self.mix = kind(mixer, d_model, n_heads, window, both)
        self.up, self.gate = (nn.Linear(d_model, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, d_model, bias=False)

    def forward(self, h: Tensor, read: Tensor | None) -> Tensor:
        h = h + self.mix(self.mix_norm(h), read)
        n = self.mlp_norm(h)
        return h + self.down(silu(self.gate(n)) * self.up(n))


class _Attention(nn.Module):
    """Softmax attention: causal, or over all tokens that are read."""

    def __init__(self, mixer: str, d_model: int, n_heads: int, window: int, both: bool) -> None:
        super().__init__()
        self.n_heads, self.both = n_heads, both
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, h: Tensor, read: Tensor | None) -> Tensor:
        q, k, v = (heads(part, self.n_heads) for part in self.qkv(h).chunk(3, dim=-1))
        q, k = turned(q), turned(k)
        mask = None if read is None or not self.both else read[:, None, None]  # causal: padding comes last, and is not seen
        o = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not self.both)
        return self.out(o.transpose(1, 2).flatten(2))


class _Recurrent(nn.Module):
    """The mixers with a matrix as state, and the one without."""

    def __init__(self, mixer: str, d_model: int, n_heads: int, window: int, both: bool) -> None:
        super().__init__()
        self.mixer, self.n_heads, self.window, self.both = mixer, n_heads, window, both
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.filters = nn.Parameter(torch.zeros(window, 3 * d_model))  # tap a reads the token window - 1 - a before
        self.gate, self.out = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.head_norm = nn.RMSNorm(d_model // n_heads)
        extra = {"gated_linear_attention": d_model, "delta_net": n_heads}.get(mixer)
        self.rate = None if extra is None else nn.Linear(d_model, extra)

    def forward(self, h: Tensor, read: Tensor | None) -> Tensor:
        if not self.both:
            return self._close(h, self._mix(h, self.qkv(h), read))
        backwards = flipped(h, read)
        half = self.n_heads // 2
        ahead, back = self._mix(h, self.qkv(h), read), flipped(self._mix(backwards, self.qkv(backwards), read), read)
        return self._close(h, torch.cat([ahead[:, :, :half], back[:, :, half:]], dim=2))

    def _close(self, h: Tensor, o: Tensor) -> Tensor:
        """Heads' outputs (B, T, H, I), normed, gated and mapped back."""
        return self.out(self.head_norm(o).flatten(2) * silu(self.gate(h)))

    def _mix(self, h: Tensor, streams: Tensor, read: Tensor | None) -> Tensor:
        """o_t of every head, (B, T, H, I). Padding comes last, so nothing that is read has seen it."""
        padded = pad(streams.mT, (self.window - 1, 0))  # (B, 3 D, W - 1 + T)
        streams = silu(conv1d(padded, self.filters.mT[:, None], groups=len(self.filters.mT))).mT
        q, k, v = (heads(part, self.n_heads) for part in streams.chunk(3, dim=-1))
        q, k = normalize(q, dim=-1), normalize(k, dim=-1)
        if self.mixer == "window":
            return ((q * k).sum(-1, keepdim=True) * v).transpose(1, 2)
        if self.mixer == "gated_linear_attention" and self.rate is not None:
            return gated(q, k, v, heads(logsigmoid(self.rate(h)) / TAU, self.n_heads)).transpose(1, 2)
        beta = None if self.rate is None else self.rate(h).transpose(1, 2)[..., None].sigmoid()
        o, _ = attention(q, k, v, k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3]), None, beta)
        return o.transpose(1, 2)


def gated(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """o_t = Z_t^T q_t with Z_t = Lambda_t * Z_{t-1} + k_t v_t^T from Z = 0: q, k, log_decay (B, H, T, I), v (B, H, T, J).

    In chunks of 16 with q_t e^{L_t} and k_s e^{-L_s}, L the sum of log Lambda since the chunk's start. log Lambda is taken to
    be at least -1, so that no factor leaves float32's range.
    """
    z, pieces = k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3]), []
    for q_c, k_c, v_c, log in zip(*(x.split(_CHUNK, dim=2) for x in (q, k, v, log_decay.clamp(min=-1.0))), strict=True):
        total = log.cumsum(2)
        read, kept = q_c * total.exp(), k_c * (-total).exp()
        pieces.append(read @ z + (read @ kept.mT).tril() @ v_c)
        z = total[:, :, -1, :, None].exp() * (z + kept.mT @ v_c)
    return torch.cat(pieces, dim=2)


def turned(x: Tensor) -> Tensor:
    """x (B, H, T, I), the features i and i + I/2 of token t turned by the angle t 10000^(-2 i / I)."""
    length, half = x.shape[2], x.shape[3] // 2
    dtype = torch.promote_types(x.dtype, torch.float32)
    rates = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angles = (torch.arange(length, device=x.device)[:, None] * rates).to(x.dtype)  # (T, I/2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)


def heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, D) -> (B, H, T, I)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def flipped(x: Tensor, read: Tensor | None) -> Tensor:
    """x (B, T, ..) from its end to its start; with padding each sequence for itself, whose padding stays at the end."""
    if read is None:
        return x.flip(1)
    lengths = read.sum(1, keepdim=True)  # (B, 1)
    place = torch.arange(x.shape[1], device=x.device)
    source = torch.where(place < lengths, lengths - 1 - place, place)  # (B, T)
    return x.gather(1, source.view(*source.shape, *(1,) * (x.ndim - 2)).expand_as(x))
