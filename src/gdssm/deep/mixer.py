"""The sequence mixer of a block: heads of filtered streams, the recurrence with its multiplicative readout, an output gate.

    s_t = (W_s x_t) per head                     stream, D features; three of them in the separate form
    key = S^T u    value = S^T v    query = P S^T d          filters of the last W tokens S of a stream
    Z_t = Lambda_t Z_{t-1} + key value^T                     with w_q in full: Z_t = Lambda_t Z_{t-1} + S^T w_q S
    y_t = W_o (g(W_g x_t) * (norm(Z_t^T query) + r * value))     r: a weight for each feature of a head; 0 without skip

Axes: B batch, T tokens, S streams, H heads, D features of a head, W window.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

from .. import ops
from ..ops import ScanState
from .config import DeepConfig
from .norms import rms_norm, unit
from .padding import reverse_half
from .state import BlockState

SKIP = 4.0  # r of a fresh model, by measuring: benchmarks/initialisation.py --mixers
FILTER_NOISE = 0.1  # of a filter of length 1, around the tap that it starts with


def recalling_heads(heads: int) -> int:
    """So many of the heads, the last ones, start with filters that make them recall."""
    return max(1, heads // 4)


class Mixer(nn.Module):
    """x (B, T, d_model), state, lengths -> y (B, T, d_model), BlockState. Options: DeepConfig.

    Parameters: w_in (rows for streams, gate and decays), w_out; filters u, v, d (H, W), with taps "channel" (H, D, W), in the
    separate form one for each stream; w_q (H, W, W) in place of u and v with input_gate "full"; key_map (H, D, D); skip (H D,);
    log_rate (H,) with Lambda = exp(-exp(log_rate)), or decay_bias (H,) with Lambda_t = exp(-softplus(w_h . x_t + bias)).

    Keys and queries of length 1 are normed after the filters, because gd_scan forms keys inside: the filters run first and the
    recurrence gets their outputs (linear_scan). With normalize "stream" the tokens of each head are normed before they enter the
    window, so gd_scan reads one stream and its rank-1 or full w_q as they are.
    """

    def __init__(self, config: DeepConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        h, d, w = config.n_heads, config.head_size, config.window
        self.n_streams = 3 if config.form == "separate" else 1
        self.sizes = [self.n_streams * h * d, 0 if config.gate == "none" else h * d, h if config.decay == "input" else 0]
        filters = (h, w) if config.taps == "head" else (h, d, w)
        full = config.input_gate == "full"
        shapes: dict[str, tuple[int, ...] | None] = {
            "w_in": (sum(self.sizes), config.d_model),
            "w_out": (config.d_model, h * d),
            "w_q": (h, w, w) if full else None,
            "u": None if full else filters,
            "v": None if full else filters,
            "d": filters,
            "key_map": (h, d, d) if config.key_map else None,
            "skip": (h * d,) if config.skip else None,  # no matrix, which weight decay would act on
            "log_rate": (h,) if config.decay == "head" else None,
            "decay_bias": (h,) if config.decay == "input" else None,
        }
        for name, shape in shapes.items():
            value = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, value)
        self.reset_parameters()

    w_in: nn.Parameter
    w_out: nn.Parameter
    w_q: nn.Parameter | None
    u: nn.Parameter | None
    v: nn.Parameter | None
    d: nn.Parameter
    key_map: nn.Parameter | None
    skip: nn.Parameter | None
    log_rate: nn.Parameter | None
    decay_bias: nn.Parameter | None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """w_in, w_out Gaussian of variance 1 / (numbers read), w_out divided by 2 n_layers besides, as one of so many branches, and
        times branch_scale.

        P = 1, r = 4. Lambda is even in log(-log Lambda) over the heads, from the first to the second end of decay_range, a single
        one at the second; with bidirectional over each direction's. The decays' rows of w_in start at 0. Filters and w_q Gaussian
        of variance 1/W; with filters "recalling" those of the last quarter of the heads, at least one, which forget slowest, of
        0.01/W around one tap: values and queries see the last token, keys the one before it, so that a query finds what followed
        an equal token.
        """
        config = self.config
        self.w_in.normal_(0, config.d_model**-0.5, generator=generator)
        if self.sizes[2]:
            self.w_in[-self.sizes[2] :].zero_()
        self.w_out.normal_(0, config.branch_scale * (2 * config.n_layers * self.w_out.shape[1]) ** -0.5, generator=generator)
        before, directions = max(config.window - 2, 0), 2 if config.bidirectional else 1
        for taps, place in ((self.w_q, (before, -1)), (self.u, (before,)), (self.v, (-1,)), (self.d, (-1,))):
            if taps is not None:
                taps.normal_(0, config.window**-0.5, generator=generator)
                if config.filters == "recalling":
                    recalling = taps.unflatten(0, (directions, -1))[:, -recalling_heads(config.n_heads // directions) :]
                    recalling.mul_(FILTER_NOISE)[(..., *place)] += 1
        if self.key_map is not None:
            self.key_map.copy_(torch.eye(config.head_size).expand_as(self.key_map))
        if self.skip is not None:
            self.skip.fill_(SKIP)
        low, high = (math.log(-math.log(x)) for x in config.decay_range)
        slowest_first = torch.linspace(high, low, config.n_heads // directions, dtype=torch.float64)
        log_rate = slowest_first.flip(0).repeat(directions)
        if self.log_rate is not None:
            self.log_rate.copy_(log_rate)
        if self.decay_bias is not None:
            self.decay_bias.copy_(log_rate.exp().expm1().log())  # softplus of it is the rate

    def init_state(self, batch: int) -> BlockState:
        """The state of W-1 zero tokens."""
        c, like = self.config, self.w_in
        z = torch.zeros(batch, c.n_heads, c.head_size, c.head_size, dtype=ops.carry_dtype(like.device), device=like.device)
        return BlockState(z, like.new_zeros(batch, c.window - 1, self.n_streams, c.n_heads, c.head_size))

    def forward(self, x: Tensor, state: BlockState | None = None, lengths: Tensor | None = None) -> tuple[Tensor, BlockState]:
        """x is zero in the padding, and so is y. With bidirectional no state comes in, and the one returned means nothing."""
        config = self.config
        w_streams, w_gate, w_decay = self.w_in.split(self.sizes)  # three products: no tensor is put together for the gradient
        streams, decay = linear(x, w_streams), linear(x, w_decay)
        streams = streams.unflatten(2, (self.n_streams, config.n_heads, config.head_size))
        if config.bidirectional:
            streams, decay = reverse_half(streams, 3, lengths), reverse_half(decay, 2, lengths) if self.sizes[2] else decay
        before = self.init_state(len(x)) if state is None else state
        read, values, after = self._mix(streams, self._log_decay(decay), before, state is None, lengths)
        read = read.to(x.dtype)
        if config.readout_norm:
            read = rms_norm(read, config.norm_eps)
        if values is not None:
            assert self.skip is not None
            read = torch.addcmul(read, values.to(x.dtype), self.skip.view(values.shape[2:]))
        if config.bidirectional:
            read = reverse_half(read, 2, lengths)
        read = read.flatten(2)
        if self.sizes[1]:
            gate = linear(x, w_gate)
            read = read * (silu(gate) if config.gate == "silu" else gate.sigmoid())
        return linear(read, self.w_out), after

    def _log_decay(self, decay: Tensor) -> Tensor | None:
        """log Lambda: None, (H,) or (B, T, H)."""
        if self.log_rate is not None:
            return -self.log_rate.exp()
        return None if self.decay_bias is None else -softplus(decay + self.decay_bias)

    @ops.full_precision
    def _mix(
        self, streams: Tensor, log_decay: Tensor | None, before: BlockState, fresh: bool, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, BlockState]:
        """streams (B, T, S, H, D) -> Z^T q (B, T, H, D), values alike where skip adds them, and the state.

        fresh: before is that of no tokens.
        """
        config = self.config
        streams = streams.to(ops.compute_dtype(streams, self.d))
        if config.normalize == "stream":
            streams = unit(streams, config.norm_eps)
        if config.windowed:
            return self._windows(streams, log_decay, before, lengths)
        tail = before.tail.to(streams.dtype)
        whole = torch.cat([tail.permute(0, 2, 3, 1, 4), streams.permute(0, 2, 3, 1, 4)], dim=3)  # (B, S, H, W-1+T, D)
        assert self.u is not None
        assert self.v is not None
        if self.n_streams == 1:
            filtered = ops.causal_filters(whole[:, 0], self.u, self.v, self.d)
        else:
            by_stream = zip(whole.unbind(1), (self.u, self.v, self.d), strict=True)
            filtered = tuple(ops.causal_filters(stream, taps)[0] for stream, taps in by_stream)
        keys, values, queries = (silu(x) for x in filtered) if config.activation == "silu" else filtered
        queries = self._mapped(queries)
        if config.normalize == "keys":
            keys, queries = unit(keys, config.norm_eps), unit(queries, config.norm_eps)
        keys, values, queries = (x.transpose(1, 2) for x in (keys, values, queries))  # (B, T, H, D)
        out, z = ops.linear_scan(keys, values, queries, log_decay, z=None if fresh else before.z, lengths=lengths)
        after = BlockState(z, _tail(whole.permute(0, 3, 1, 2, 4), config.window - 1, lengths))
        return out, None if self.skip is None else _unpadded(values, lengths), after

    def _windows(
        self, streams: Tensor, log_decay: Tensor | None, before: BlockState, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, BlockState]:
        """The windows of one stream as they are: gd_scan."""
        config, batch = self.config, len(streams)
        stream, tail = streams[:, :, 0], before.tail[:, :, 0]
        queries = values = None
        needed = [t for part, t in ((self.key_map, self.d), (self.skip, self.v)) if part is not None and t is not None]
        if needed:
            whole = torch.cat([tail.to(stream.dtype), stream], dim=1).transpose(1, 2)
            filtered = ops.causal_filters(whole, *needed)
            if self.key_map is not None:
                queries = _unpadded(self._mapped(filtered[0]).transpose(1, 2), lengths)
            if self.skip is not None:
                values = _unpadded(filtered[-1].transpose(1, 2), lengths)
        if self.w_q is not None:
            w_q: ops.Gate = self.w_q
        else:
            assert self.u is not None
            assert self.v is not None
            w_q = (self.u, self.v)
        out, after = ops.gd_scan(
            stream,
            w_q,
            log_decay,
            self.d if queries is None else None,
            state=ScanState(before.z, tail, torch.full((batch,), config.window - 1)),
            lengths=lengths,
            backend=config.backend,
            queries=queries,
            structure=config.decay,
        )
        return out, values, BlockState(after.z, after.tail[:, :, None])

    def _mapped(self, queries: Tensor) -> Tensor:
        """P q, (B, H, T, D)."""
        return queries if self.key_map is None else torch.matmul(queries, self.key_map.to(queries.dtype).mT)


def _unpadded(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B, T, H, D), zero past each length: windows there still see earlier tokens."""
    return x if lengths is None else x * (torch.arange(x.shape[1]) < lengths[:, None]).to(x)[..., None, None]


def _tail(whole: Tensor, keep: int, lengths: Tensor | None) -> Tensor:
    """The last W-1 tokens at each sequence's own end; `whole` (B, W-1+T, ..) starts with W-1 earlier ones."""
    if lengths is None:
        return whole[:, whole.shape[1] - keep :].clone(memory_format=torch.contiguous_format)
    index = (lengths[:, None] + torch.arange(keep)).to(whole.device)
    return torch.take_along_dim(whole, index[:, :, None, None, None], dim=1)
