"""Deep models: an embedding or a projection, blocks, a norm; with a head on top. Axes: B batch, T tokens, V outputs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from ..config import shown
from ..ops.windows import check_lengths
from ..weights import check_size
from .block import GatedMLP, GDSSMBlock, config_of
from .config import DeepConfig
from .mixer import Mixer
from .norms import RMSNorm
from .padding import compacted, reading
from .state import BlockState, DeepState


class GDSSMModel(nn.Module):
    """Blocks on embedded tokens: model(tokens, state=None, lengths=None, mask=None) -> hidden (B, T, d_model), state.

    tokens   (B, T) integers below vocab_size, or (B, T, d_input) vectors
    state    what an earlier call returned; None: W-1 zero tokens
    lengths  (B,) right padding: tokens past a length are not read, outputs there are zero
    mask     (B, T): tokens where it is False, wherever they are, are not read, as if they were not there; outputs there are
             zero. Give lengths or mask, not both

    One pass, any split into pieces and one token at a time give the same outputs. The state is a DeepState; None where the
    model is bidirectional. Options: DeepConfig; keywords make one.
    Raises ConfigError for options, TypeError for tokens of another type, ValueError for shapes, tokens, lengths and masks out
    of range and for states of another model.
    """

    def __init__(
        self,
        config: DeepConfig | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.config = config = config_of(config, options)
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding: nn.Embedding | nn.Linear
        if config.vocab_size is not None:
            self.embedding = nn.Embedding(config.vocab_size, config.d_model, **place)
        else:
            self.embedding = nn.Linear(config.d_input or 0, config.d_model, bias=False, **place)
        self.blocks = nn.ModuleList(GDSSMBlock(config, **place) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps, **place)
        self.gradient_checkpointing = False
        self.reset_embedding()

    @torch.no_grad()
    def reset_embedding(self, generator: torch.Generator | None = None) -> None:
        """Gaussian of standard deviation 0.02 for tokens, of variance 1 / d_input for vectors."""
        std = 0.02 if self.config.vocab_size is not None else self.embedding.weight.shape[1] ** -0.5
        self.embedding.weight.normal_(0, std, generator=generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Random weights of every part, from one generator."""
        self.reset_embedding(generator)
        reset_parts(self, generator)

    def init_state(self, batch_size: int) -> DeepState:
        """The state of W-1 zero tokens. ValueError where the model is bidirectional or batch_size no positive integer."""
        if self.config.bidirectional:
            raise ValueError("a bidirectional model reads whole sequences: it has no state")
        check_size("batch_size", batch_size)
        blocks = tuple(block.init_state(batch_size) for block in self._blocks())
        return DeepState(blocks, torch.zeros(batch_size, dtype=torch.int64), self.config)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens -> (B, T, d_model)."""
        check_tokens(tokens, self.config)
        if isinstance(self.embedding, nn.Embedding):
            return self.embedding(tokens)
        return self.embedding(tokens.to(self.embedding.weight.dtype))

    def forward(
        self, tokens: Tensor, state: DeepState | None = None, lengths: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, DeepState | None]:
        padded = lengths is not None or mask is not None
        if padded and isinstance(tokens, Tensor) and tokens.is_floating_point() and tokens.ndim == 3:
            tokens = _without_padding(tokens, lengths, mask)
        return self.hidden(self.embed(tokens), state, lengths, mask)

    def hidden(
        self, h: Tensor, state: DeepState | None = None, lengths: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, DeepState | None]:
        """As forward, for tokens that are embedded already, h (B, T, d_model)."""
        batch, tokens, size = h.shape
        if size != self.config.d_model:
            raise ValueError(f"h must be (B, T, {self.config.d_model}), got shape {tuple(h.shape)}")
        self._check_state(state, batch)
        if mask is not None:
            if lengths is not None:
                raise ValueError("lengths and mask are both given; give one")
            moved = compacted(mask, batch, tokens, h.device)
            if moved is not None:
                out, after = self._run(moved.compact(h), state, moved.lengths)
                return moved.spread(out), after
        return self._run(h, state, check_lengths(lengths, batch, tokens))

    def _run(self, h: Tensor, state: DeepState | None, lengths: Tensor | None) -> tuple[Tensor, DeepState | None]:
        """The blocks and the norm, with right padding."""
        batch, tokens, _ = h.shape
        if lengths is not None:
            h = h.masked_fill(~reading(lengths, tokens, h.device)[..., None], 0)
        if tokens == 0:
            empty = None if self.config.bidirectional else self.init_state(batch)
            return h, empty if state is None else state
        blocks: list[BlockState] = []
        for i, block in enumerate(self._blocks()):
            before = None if state is None else state.blocks[i]
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                h, after = checkpoint(block, h, before, lengths, use_reentrant=False, preserve_rng_state=False)
            else:
                h, after = block(h, before, lengths)
            blocks.append(after)
        h = self.norm(h)
        if self.config.bidirectional:
            return h, None
        read = torch.full((batch,), tokens) if lengths is None else lengths
        return h, DeepState(tuple(blocks), read if state is None else state.seen + read, self.config)

    def _blocks(self) -> list[GDSSMBlock]:
        return [block for block in self.blocks if isinstance(block, GDSSMBlock)]

    def _check_state(self, state: DeepState | None, batch: int) -> None:
        if state is None:
            return
        if self.config.bidirectional:
            raise ValueError("state: a bidirectional model reads whole sequences and goes on from none")
        if not isinstance(state, DeepState) or state.config != self.config:
            raise ValueError(f"state must be one of this model, got {state!r}")
        if len(state.seen) != batch:
            raise ValueError(f"state is for {len(state.seen)} sequences, tokens have {batch}")


class GDSSMForSequenceModeling(nn.Module):
    """A GDSSMModel with a head: model(tokens, state=None, lengths=None, mask=None) -> outputs, state.

        outputs (B, T, n_outputs) for every token: logits of the next one, or what is to be predicted there
        outputs (B, n_outputs) for every sequence, with pooling "mean" or "last"

    The arguments, the state, the options and the errors are GDSSMModel's. With tie_embeddings the head multiplies with the
    embedding's matrix. With pooling "mean" a state can neither come in nor out: it is None.
    """

    def __init__(
        self,
        config: DeepConfig | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = GDSSMModel(config, device=device, dtype=dtype, **options)
        self.config = self.model.config
        self.head: nn.Linear | None = None
        if not self.config.tied:
            self.head = nn.Linear(self.config.d_model, self.config.outputs, bias=False, device=device, dtype=dtype)
        self.reset_head()

    @torch.no_grad()
    def reset_head(self, generator: torch.Generator | None = None) -> None:
        """Gaussian of standard deviation 0.02, as the embedding it stands for."""
        if self.head is not None:
            self.head.weight.normal_(0, 0.02, generator=generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Random weights of every part, from one generator."""
        self.model.reset_parameters(generator)
        self.reset_head(generator)

    def init_state(self, batch_size: int) -> DeepState:
        """The state of W-1 zero tokens; errors as GDSSMModel's."""
        return self.model.init_state(batch_size)

    def forward(
        self, tokens: Tensor, state: DeepState | None = None, lengths: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, DeepState | None]:
        if self.config.pooling == "mean" and state is not None:
            raise ValueError("state: with pooling 'mean' whole sequences are read, from no state")
        hidden, after = self.model(tokens, state, lengths, mask)
        if self.config.pooling == "none":
            return self.outputs(hidden), after
        given = lengths if mask is None else mask
        pooled = pool(hidden, self.config.pooling, None if given is None else _read(given, hidden))
        return self.outputs(pooled), None if self.config.pooling == "mean" else after

    def step(self, token: Tensor, state: DeepState) -> tuple[Tensor, DeepState]:
        """One token: (B,) integers or (B, d_input) vectors -> outputs (B, n_outputs), and the state after it.

        Errors as GDSSMModel's, for tokens (B, 1) and (B, 1, d_input).
        """
        if not isinstance(token, Tensor) or token.ndim == 0:
            raise ValueError(f"token must have the batch as its first axis, got {shown(token)}")
        outputs, after = self(token.unsqueeze(1), state)
        if after is None:
            raise ValueError("step: a model that reads whole sequences has no state to go on from")
        return outputs if self.config.pooling == "last" else outputs.squeeze(1), after

    def outputs(self, hidden: Tensor) -> Tensor:
        """The head: (.., d_model) -> (.., n_outputs)."""
        return linear(hidden, self.model.embedding.weight if self.head is None else self.head.weight)


def reset_parts(module: nn.Module, generator: torch.Generator | None) -> None:
    """reset_parameters of every part of the blocks and norms, in order."""
    for part in module.modules():
        if isinstance(part, RMSNorm | Mixer | GatedMLP):
            part.reset_parameters(generator)


def pool(hidden: Tensor, how: str, read: Tensor | None) -> Tensor:
    """hidden (B, T, D), zero where not read (B, T) -> the mean of the tokens that are read, or the last, (B, D)."""
    if hidden.shape[1] == 0:
        return hidden.new_zeros(hidden.shape[0], hidden.shape[2])
    if how == "mean":
        return hidden.mean(1) if read is None else hidden.sum(1) / read.sum(1).clamp(min=1)[:, None]
    if read is None:
        return hidden[:, -1]
    last = (read * torch.arange(read.shape[1], device=read.device)).amax(1)
    return torch.take_along_dim(hidden, last[:, None, None], dim=1).squeeze(1)


def check_tokens(tokens: Tensor, config: DeepConfig) -> None:
    """TypeError or ValueError unless tokens are what the model reads; their range is checked on the CPU only, where it is free."""
    if config.vocab_size is None:
        if not isinstance(tokens, Tensor) or not tokens.is_floating_point():
            raise TypeError(f"tokens must be a floating-point tensor, got {getattr(tokens, 'dtype', type(tokens).__name__)}")
        if tokens.ndim != 3 or tokens.shape[2] != config.d_input:
            raise ValueError(f"tokens must be (B, T, {config.d_input}), got shape {tuple(tokens.shape)}")
        return
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"tokens must be a tensor of int64 or int32, got {getattr(tokens, 'dtype', type(tokens).__name__)}")
    if tokens.ndim != 2:
        raise ValueError(f"tokens must be (B, T), got shape {tuple(tokens.shape)}")
    if tokens.device.type == "cpu" and tokens.numel():
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= config.vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"tokens must lie in 0..{config.vocab_size - 1} (vocab_size {config.vocab_size}), got {wrong}")


def _read(given: Tensor, hidden: Tensor) -> Tensor:
    """Which tokens are read, (B, T) bool, of lengths (B,) or a mask (B, T)."""
    if given.ndim == 2:
        return given.to(hidden.device) != 0
    return reading(given.cpu(), hidden.shape[1], hidden.device)


def _without_padding(tokens: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor:
    """Vectors (B, T, d_input) with zeros where they are not read, so that anything may stand there; wrong shapes are left."""
    given = lengths if mask is None else mask
    if not isinstance(given, Tensor) or given.shape not in (tokens.shape[:1], tokens.shape[:2]):
        return tokens
    return tokens.masked_fill(~_read(given, tokens)[..., None], 0)
