"""Models made of layers: a predictor's last step, the paper's two-step block, stacks, feature maps.

Axes: B batch, T tokens, K windows, M queries, D features.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from . import ops
from .layers import GDSSM
from .ops import ScanState
from .readouts import MinibatchReadout, PairReadout
from .state import State
from .weights import DecayParameter, Linearised, as_shape, check_size


class InContextModel(nn.Module):
    """A layer read as a predictor: module(tokens (B, T, D)) -> prediction (B, d_y) at the last token, the query.

    layer     a GDSSM, one of the iterated readouts or a TwoStepBlock; its first d_y outputs are the prediction
    d_x, d_y  sizes of input and target
    """

    def __init__(
        self, layer: "GDSSM | PairReadout | MinibatchReadout | ConstructedTokenLayer | TwoStepBlock", d_x: int, d_y: int
    ) -> None:
        super().__init__()
        check_size("d_x", d_x)
        check_size("d_y", d_y)
        if isinstance(layer, GDSSM) and layer.d_model < max(d_x, d_y):
            raise ValueError(f"layer has d_model {layer.d_model}; d_x = {d_x} and d_y = {d_y} need at least {max(d_x, d_y)}")
        self.layer, self.d_x, self.d_y = layer, d_x, d_y

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer.last(tokens)[..., : self.d_y]

    def answer(self, context: Tensor, queries: Tensor) -> Tensor:
        """Read the context tokens (B, T, D) once and answer queries (B, M, D): (B, M, d_y)."""
        if isinstance(self.layer, GDSSM):
            if context.shape[1] == 0:
                state = self.layer.init_state(context.shape[0], device=context.device)
            else:
                state = self.layer(context)[1]
            return self.layer.answer(state, queries)[..., : self.d_y]
        if not isinstance(self.layer, PairReadout):
            raise TypeError(f"a {type(self.layer).__name__} reads one query per context")
        return self.layer.answer(self.layer.absorb(context), queries)[..., : self.d_y]

    def last_stacked(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        """S copies, parameters (S, ...) -> (S, B, d_y): at once, but one after the other where the layer has no such form."""
        if not isinstance(self.layer, GDSSM | PairReadout | TwoStepBlock):
            copies = [dict(zip(parameters, values, strict=True)) for values in zip(*parameters.values(), strict=True)]
            return torch.stack([functional_call(self, copy, (tokens,)) for copy in copies])
        return self.layer.last_stacked(_inner(parameters), tokens)[..., : self.d_y]

    def last_stacked_and_pullback(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Linearised | None:
        """last_stacked, and the function from its gradient to the parameters' by name; None where autograd has to find them."""
        found = self.layer.last_stacked_and_pullback(_inner(parameters), tokens) if isinstance(self.layer, GDSSM) else None
        if found is None:
            return None
        out, pullback = found

        def by_name(grad: Tensor) -> dict[str, Tensor]:
            whole = nn.functional.pad(grad, (0, out.shape[-1] - self.d_y))
            return {f"layer.{name}": value for name, value in pullback(whole).items()}

        return out[..., : self.d_y], by_name


def _inner(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("layer."): value for name, value in parameters.items()}


class FeatureModel(nn.Module):
    """Gradient descent on features phi(x): every x token is replaced by phi(x) before the model reads it.

    features  module or function (.., d_x) -> (.., d_features): an MLP, random Fourier features, ..
    model     an InContextModel on d_features inputs; reads interleaved tokens x_1, y_1, .., x_query
    """

    def __init__(self, features: Callable[[Tensor], Tensor], model: InContextModel, d_x: int) -> None:
        super().__init__()
        self.features, self.model, self.d_x, self.d_y = features, model, d_x, model.d_y

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.features(tokens[:, 0::2, : self.d_x])
        if x.shape[-1] != self.model.d_x:
            raise ValueError(f"features gave {x.shape[-1]} features, the model reads {self.model.d_x}")
        width = max(self.model.d_x, self.d_y)
        mapped = tokens.new_zeros(tokens.shape[0], tokens.shape[1], width)
        mapped[:, 0::2, : x.shape[-1]] = x
        mapped[:, 1::2, : self.d_y] = tokens[:, 1::2, : self.d_y]
        return self.model(mapped)


class RandomFourierFeatures(nn.Module):
    """phi(x) = sqrt(2 / n) cos(omega x + phase), whose products approximate exp(-|x - x'|^2 / (2 l^2)).

    omega ~ N(0, 1 / l^2), phase ~ U(0, 2 pi), drawn from `seed` (Rahimi and Recht, 2007).
    """

    def __init__(
        self, d_x: int, n_features: int, *, lengthscale: float = 1.0, seed: int = 0, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        check_size("d_x", d_x)
        check_size("n_features", n_features)
        if not lengthscale > 0:
            raise ValueError(f"lengthscale must be > 0, got {lengthscale!r}")
        generator = torch.Generator().manual_seed(seed)
        omega = torch.randn(n_features, d_x, generator=generator, dtype=torch.float64) / lengthscale
        phase = torch.rand(n_features, generator=generator, dtype=torch.float64) * (2 * torch.pi)
        dtype = dtype or torch.get_default_dtype()
        self.register_buffer("omega", omega.to(dtype))
        self.register_buffer("phase", phase.to(dtype))

    omega: Tensor
    phase: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return (2 / self.phase.shape[0]) ** 0.5 * torch.cos(x @ self.omega.T + self.phase)


class ConstructedTokenLayer(nn.Module):
    """v1's first construction: a plain diagonal linear recurrence with an output gate, for tokens [x_k y_k, x_{k+1}].

        z_k = Lambda * z_{k-1} + [x_k y_k]        prediction_k = rate z_k . x_{k+1}

    tokens (B, K, 2 d_x), state z (B, d_x) in float64 -> outputs (B, K, 1), z. Scalar targets only; no input gate,
    because the products are in the tokens. decay in (0, 1] is fixed; rate is learned.
    """

    _CHUNK = 64

    def __init__(self, d_x: int, *, rate: float = 1.0, decay: float = 1.0, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_size("d_x", d_x)
        if not 0 < decay <= 1:
            raise ValueError(f"decay must lie in (0, 1], got {decay!r}")
        self.d_x, self.decay = d_x, decay
        self.rate = nn.Parameter(torch.tensor(rate, dtype=dtype))

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if tokens.ndim != 3 or tokens.shape[2] != 2 * self.d_x:
            raise ValueError(f"tokens must be (B, K, {2 * self.d_x}) in the constructed layout, got shape {tuple(tokens.shape)}")
        gained, query = tokens.split(self.d_x, dim=2)
        dtype = ops.carry_dtype(tokens.device)
        z = tokens.new_zeros(tokens.shape[0], self.d_x, dtype=dtype) if state is None else state.to(dtype)
        pieces = []
        for start in range(0, tokens.shape[1], self._CHUNK):
            new = gained[:, start : start + self._CHUNK].to(dtype)
            k = torch.arange(new.shape[1], dtype=dtype, device=tokens.device)
            power = torch.where(k[:, None] >= k, self.decay ** (k[:, None] - k).clamp(min=0), 0)  # (k, m), k >= m
            states = power @ new + self.decay ** (k[:, None] + 1) * z[:, None]
            pieces.append((states * query[:, start : start + self._CHUNK].to(dtype)).sum(-1, keepdim=True))
            z = states[:, -1]
        out = torch.cat(pieces, dim=1) if pieces else tokens.new_zeros(tokens.shape[0], 0, 1)
        return (self.rate.to(dtype) * out).to(tokens.dtype), z

    def last(self, tokens: Tensor) -> Tensor:
        """The last token's prediction, (B, 1)."""
        return self(tokens)[0][:, -1]


class TwoStepBlock(nn.Module):
    """The published block of three recurrences, two steps of gradient descent in its weights (arXiv 2410.11687, v1).

        P_i,k = C_i Z_i,k^T      q_k = S_k^T d      y_k = P_1,k q_k + P_1,k P_2,k q_k + P_3,k q_k

    The published code uses the last P_1 at every window, so its earlier outputs see the future; this one is causal,
    and its last output is the same. Parameters w_q (3, W, W), d (W,), c (3, D, D), decay.log_rate.
    `block(tokens (B, T, D), state, lengths)` returns outputs (B, K, D) and the state.
    """

    def __init__(
        self,
        d_model: int,
        *,
        window: int = 3,
        stride: int = 2,
        decay: str = "full",
        backend: str = "auto",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in {"d_model": d_model, "window": window, "stride": stride}.items():
            check_size(name, size)
        ops.resolve_backend(backend)
        self.d_model, self.window, self.stride, self.backend = d_model, window, stride, backend
        self.w_q = nn.Parameter(torch.empty(3, window, window, dtype=dtype))
        self.d = nn.Parameter(torch.empty(window, dtype=dtype))
        self.c = nn.Parameter(torch.empty(3, d_model, d_model, dtype=dtype))
        self.decay = DecayParameter(decay, 3, d_model, dtype=dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """As GDSSM's: variance 1/W, 1/W, 1/D."""
        self.w_q.normal_(0, self.window**-0.5, generator=generator)
        self.d.normal_(0, self.window**-0.5, generator=generator)
        self.c.normal_(0, self.d_model**-0.5, generator=generator)
        self.decay.reset_parameters(generator)

    @torch.no_grad()
    def load_arrays(self, **arrays: Any) -> "TwoStepBlock":
        """Write weights under the published keys wq1..3 (W, W), lam1..3 (D, D), C1..3 (D, D), D3 (W,).

        Raises ValueError for unknown or missing keys, shapes and Lambda outside (0, 1]; nothing is written then.
        """
        wanted = [f"{name}{i}" for name in ("wq", "lam", "C") for i in (1, 2, 3)] + ["D3"]
        if set(arrays) != set(wanted):
            wrong = sorted(set(arrays) ^ set(wanted))
            raise ValueError(f"arrays: {', '.join(wrong)} missing or unknown; wanted: {', '.join(wanted)}")
        n = self.d_model
        w_q = torch.cat([as_shape(f"wq{i}", arrays[f"wq{i}"], (1, *self.w_q.shape[1:])) for i in (1, 2, 3)])
        c = torch.cat([as_shape(f"C{i}", arrays[f"C{i}"], (1, n, n)) for i in (1, 2, 3)])
        lam = torch.cat([as_shape(f"lam{i}", arrays[f"lam{i}"], (1, n, n)) for i in (1, 2, 3)])
        d = as_shape("D3", arrays["D3"], tuple(self.d.shape))
        self.decay.write(self.decay.rate_of("lam1..3", lam, 3, n))
        for parameter, value in ((self.w_q, w_q), (self.c, c), (self.d, d)):
            parameter.copy_(value)
        return self

    def init_state(self, batch_size: int, *, dtype: torch.dtype | None = None) -> ScanState:
        """The state before any token."""
        check_size("batch_size", batch_size)
        return ops.zero_state(batch_size, 3, self.window, self.d_model, dtype=dtype or self.w_q.dtype, device=self.w_q.device)

    @ops.full_precision
    def forward(self, tokens: Tensor, state: ScanState | None = None, lengths: Tensor | None = None) -> tuple[Tensor, ScanState]:
        if tokens.ndim != 3 or tokens.shape[2] != self.d_model:
            raise ValueError(f"tokens must be (B, T, {self.d_model}), got shape {tuple(tokens.shape)}")
        dtype = ops.compute_dtype(tokens, self.w_q)
        stream = tokens.to(dtype).unsqueeze(2)
        shared = None if state is None else _part(state, slice(0, 1))
        windows = ops.align(stream, self.window, self.stride, shared, lengths)
        q = ops.filtered(windows, self.d.to(dtype)[None]).expand(-1, -1, 2, -1)  # (B, K, 2, D)
        p, later = self._scan(slice(1, 3), stream, q, state, lengths)  # P_2 q and P_3 q
        first, earlier = self._scan(slice(0, 1), stream, q[:, :, :1] + p[:, :, :1], state, lengths)  # P_1 (q + P_2 q)
        after = ScanState(torch.cat([earlier.z, later.z], 1), torch.cat([earlier.tail, later.tail], 2), later.seen)
        return (first[:, :, 0] + p[:, :, 1]).to(tokens.dtype), after

    def last(self, tokens: Tensor) -> Tensor:
        """The last window's output, (B, D). ValueError where the tokens hold no window."""
        outputs = self(tokens)[0]
        if outputs.shape[1] == 0:
            raise ValueError(f"tokens: no window of {self.window} tokens ends in sequence 0, so it has no last output")
        return outputs[:, -1]

    @ops.full_precision
    def last_stacked(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        """`last` of S copies of this block at once: parameters (S, ...) under this block's names -> (S, B, D)."""
        dtype = ops.compute_dtype(tokens, self.w_q)
        p = {name: value.to(dtype) for name, value in parameters.items()}
        rate = p.get("decay.log_rate")
        windows = ops.align(tokens.to(dtype).unsqueeze(2), self.window, self.stride, None, None)
        ops.check_ends(windows)

        def recurrence(i: int, v: Tensor) -> Tensor:
            log = None if rate is None else -rate[:, i].exp()
            z = ops.last_product(windows, p["w_q"][:, i], log, v, self.decay.structure)
            return torch.einsum("sij,bsj->bsi", p["c"][:, i], z)

        q = torch.einsum("sw,bwd->bsd", p["d"], ops.final_window(windows)[:, :, 0])
        out = recurrence(0, q + recurrence(1, q)) + recurrence(2, q)
        return out.transpose(0, 1).to(tokens.dtype)

    def _scan(
        self, part: slice, stream: Tensor, q: Tensor, state: ScanState | None, lengths: Tensor | None
    ) -> tuple[Tensor, ScanState]:
        log = self.decay.log()
        out, after = ops.gd_scan(
            stream,
            self.w_q[part],
            None if log is None else log[part],
            None,
            stride=self.stride,
            state=None if state is None else _part(state, part),
            lengths=lengths,
            backend=self.backend,
            queries=q,
            structure=self.decay.structure,
        )
        return torch.einsum("hij,bkhj->bkhi", self.c[part].to(out.dtype), out), after


def _part(state: ScanState, heads: slice) -> ScanState:
    return ScanState(state.z[:, heads], state.tail[:, :, heads], state.seen)


class GDSSMStack(nn.Module):
    """Layers on a token stream: h <- h + layer(h), each with stride 1 and W-1 zero tokens in front.

    `stack(tokens (B, T, D), states, lengths)` returns outputs (B, T, D) and one State per layer.
    options: those of GDSSM, but for the stride.
    """

    def __init__(self, d_model: int, n_layers: int, **options: Any) -> None:
        super().__init__()
        check_size("n_layers", n_layers)
        if "stride" in options:
            raise ValueError(f"stride is 1 in a stack, one output per token; got stride={options['stride']!r}")
        self.layers = nn.ModuleList(GDSSM(d_model, stride=1, **options) for _ in range(n_layers))

    def init_state(self, batch_size: int) -> tuple[State, ...]:
        """One state per layer, each with W-1 zero tokens seen."""
        states = []
        for layer in self.layers:
            assert isinstance(layer, GDSSM)
            empty = layer.init_state(batch_size)
            states.append(replace(empty, seen=empty.seen + layer.window - 1))
        return tuple(states)

    def forward(
        self, tokens: Tensor, state: tuple[State, ...] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        states = self.init_state(tokens.shape[0]) if state is None else state
        if len(states) != len(self.layers):
            raise ValueError(f"state has {len(states)} layers, this stack has {len(self.layers)}")
        h, after = tokens, []
        for layer, before in zip(self.layers, states, strict=True):
            out, new = layer(h, before, lengths)
            h = h + out
            after.append(new)
        return h, tuple(after)
