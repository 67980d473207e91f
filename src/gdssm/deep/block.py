"""A block: the sequence mixer and a gated network, each behind a norm and added to the stream."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..config import ConfigError, from_mapping, shown
from .config import DeepConfig
from .mixer import Mixer
from .norms import gated_product, rms_norm
from .state import BlockState


class GatedMLP(nn.Module):
    """W_down (silu(W_gate x) * W_up x): x (.., d_model) -> (.., d_model). w_in holds W_gate and then W_up."""

    def __init__(self, config: DeepConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        size, inner = config.d_model, config.mlp_size
        self.std = config.branch_scale * (2 * config.n_layers * inner) ** -0.5  # of w_out
        self.w_in = nn.Parameter(torch.empty(2 * inner, size, device=device, dtype=dtype))
        self.w_out = nn.Parameter(torch.empty(size, inner, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Gaussian of variance 1 / (numbers read); w_out divided by 2 n_layers besides, as one of so many branches, and times
        branch_scale.
        """
        self.w_in.normal_(0, self.w_in.shape[1] ** -0.5, generator=generator)
        self.w_out.normal_(0, self.std, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return linear(gated_product(linear(x, self.w_in)), self.w_out)


class GDSSMBlock(nn.Module):
    """One block of a deep model: h <- h + mixer(norm(h)), then h <- h + mlp(norm(h)).

        block(h (B, T, d_model), state=None, lengths=None) -> h (B, T, d_model), BlockState

    The norm divides by the root mean square; it has no weights, because a matrix follows. The mixer is gdssm.deep.Mixer: gd_scan
    with stride 1 behind projections, one output per token, because a fresh state holds W-1 zero tokens. lengths (B,) is right
    padding, where h must be zero, and is given back zero. Options: DeepConfig; keywords make one.

    When not to use it: for in-context regression on the tokens themselves gdssm.GDSSM has no projections to learn.
    Raises ConfigError for options out of range, ValueError for shapes that do not fit.
    """

    def __init__(
        self,
        config: DeepConfig | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: object,
    ) -> None:
        super().__init__()
        self.config = config_of(config, {"d_input": 1, "n_outputs": 1} | options if config is None else options)
        self.mixer = Mixer(self.config, device=device, dtype=dtype)
        self.mlp = GatedMLP(self.config, device=device, dtype=dtype) if self.config.mlp_size else None

    def init_state(self, batch_size: int) -> BlockState:
        """The state of W-1 zero tokens."""
        return self.mixer.init_state(batch_size)

    def forward(self, h: Tensor, state: BlockState | None = None, lengths: Tensor | None = None) -> tuple[Tensor, BlockState]:
        self._check(h, state)
        eps = self.config.norm_eps
        y, after = self.mixer(rms_norm(h, eps), state, lengths)
        h = h + y
        return h if self.mlp is None else h + self.mlp(rms_norm(h, eps)), after

    def _check(self, h: Tensor, state: BlockState | None) -> None:
        size = self.config.d_model
        if not isinstance(h, Tensor) or h.ndim != 3 or h.shape[2] != size:
            raise ValueError(f"h must be (B, T, {size}), got {tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__}")
        if state is None:
            return
        if not isinstance(state, BlockState):
            raise ValueError(f"state must be a BlockState, got a {type(state).__name__}")
        if len(state.z) != len(h):
            raise ValueError(f"state is for {len(state.z)} sequences, h has {len(h)}")


def config_of(config: DeepConfig | None, options: dict[str, object]) -> DeepConfig:
    """The configuration given, or one of keywords; ConfigError where both are, or an option is unknown."""
    if config is None:
        return from_mapping(DeepConfig, options)
    if not isinstance(config, DeepConfig):
        raise ConfigError(f"config must be a DeepConfig, got {shown(config)}")
    if options:
        raise ConfigError(f"config is given, so options must be in it: {', '.join(options)}")
    return config
