"""The models that experiments on sequences compare, each at the size where it has as many parameters as the first.

Blocks of our own have the same width and a gated network as wide as makes parameters equal; GPT-2, Mamba and our mixers alone,
whose networks are a part of them or are none, get the width that does. Models with filters start them as ours do.

Ours, the same with parts changed, and others': gdssm.deep, gdssm.baselines.deep, gdssm.hf_sequences.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from ..baselines import matched, parameter_count
from ..baselines.deep import DeepBaseline
from ..config import ConfigError, check_choice
from ..deep import DeepConfig, GDSSMForSequenceModeling
from ..hf_sequences import TransformersSequences

NO_MEMORY = 10.0  # a log rate at which Lambda = exp(-exp(10)) is 0


@dataclass(frozen=True)
class Shape:
    """What all contenders of a comparison have in common.

    width, n_layers, n_heads   of the first, GDSSM
    max_tokens                 tokens of a sequence, at most: positions of GPT-2
    embed                      tokens are integers
    pooled, both               one output per sequence; not causal
    window, taps               tokens of a filter, of all that have filters; GDSSM's filters: one a "head", or one a "channel"
    filters                    how they start, of all that have filters
    decays                     the ends of GDSSM's Lambdas at the start
    """

    width: int = 128
    n_layers: int = 4
    n_heads: int = 4
    max_tokens: int = 256
    embed: bool = True
    pooled: bool = False
    both: bool = False
    window: int = 4
    taps: str = "head"
    filters: str = "recalling"
    decays: tuple[float, float] = (0.5, 0.999)


class Ends(Protocol):
    """What a model reads and gives: all that it needs to know of a task."""

    @property
    def n_inputs(self) -> int: ...

    @property
    def n_outputs(self) -> int: ...


class _Ends(NamedTuple):
    n_inputs: int
    n_outputs: int


@dataclass(frozen=True)
class Contender:
    """How a model is called and built.

    make       (ends, shape, size) -> model; size is what parameters are matched by, None the model's own
    recurrent  its state does not grow with the sequence
    heads      size must be a multiple of the heads
    """

    title: str
    make: Callable[[Ends, Shape, int | None], nn.Module]
    recurrent: bool = True
    ours: bool = False
    heads: bool = False


def _deep(**options: Any) -> Callable[[Ends, Shape, int | None], nn.Module]:
    def make(task: Ends, shape: Shape, size: int | None) -> nn.Module:
        read: dict[str, Any] = {"vocab_size": task.n_inputs} if shape.embed else {"d_input": task.n_inputs}
        return GDSSMForSequenceModeling(
            DeepConfig(
                **read,
                n_outputs=task.n_outputs,
                pooling="mean" if shape.pooled else "none",
                d_model=shape.width,
                d_mlp=size,
                n_layers=shape.n_layers,
                n_heads=shape.n_heads,
                bidirectional=shape.both,
                window=shape.window,
                filters=shape.filters,
                decay_range=shape.decays,
                **{"taps": shape.taps, **options},
            )
        )

    return make


def _mixers(task: Ends, shape: Shape, size: int | None) -> nn.Module:
    """Blocks without a gated network: mixers alone, twice as wide inside as the stream, as Mamba is, in twice as many heads.

    size is the width of the stream, a multiple of shape.n_heads.
    """
    width = shape.width if size is None else size
    own = replace(shape, width=width, n_heads=2 * shape.n_heads)
    options = {"taps": "channel", "decay": "input", "skip": True, "branch_scale": 0.1, "d_head": width // shape.n_heads}
    return _deep(**options)(task, own, 0)


def _without_memory(task: Ends, shape: Shape, size: int | None) -> nn.Module:
    """Lambda = 0 in every head, and not learned: the readout sees the products of the last window alone."""
    model = OURS(task, shape, size)
    rates = [p for name, p in model.named_parameters() if name.endswith("log_rate")]
    if len(rates) != shape.n_layers:
        raise ValueError(f"model has {len(rates)} parameters log_rate, {shape.n_layers} were expected")
    for rate in rates:
        rate.requires_grad_(False).fill_(NO_MEMORY)
    return model


def _baseline(mixer: str) -> Callable[[Ends, Shape, int | None], nn.Module]:
    def make(task: Ends, shape: Shape, size: int | None) -> nn.Module:
        return DeepBaseline(
            mixer,
            task.n_inputs,
            task.n_outputs,
            d_model=shape.width,
            d_inner=size,
            n_layers=shape.n_layers,
            n_heads=shape.n_heads,
            window=shape.window,
            embed=shape.embed,
            pooled=shape.pooled,
            both=shape.both,
            filters=shape.filters,
        )

    return make


def _transformers(kind: str) -> Callable[[Ends, Shape, int | None], nn.Module]:
    def make(task: Ends, shape: Shape, size: int | None) -> nn.Module:
        if shape.pooled or shape.both:
            raise ConfigError(f"{kind} is causal here and gives an output for every token; use attention")
        return TransformersSequences(
            kind,
            task.n_inputs,
            task.n_outputs,
            d_model=shape.width if size is None else size,
            n_layers=shape.n_layers,
            n_heads=shape.n_heads,
            max_tokens=shape.max_tokens,
            embed=shape.embed,
        )

    return make


OURS = _deep(key_map=True)
CONTENDERS = {
    "gdssm": Contender("GDSSM", OURS, ours=True),
    "gdssm-input-decay": Contender("GDSSM, decay from the input", _deep(key_map=True, taps="channel", decay="input"), ours=True),
    "gdssm-three-streams": Contender("GDSSM, three streams", _deep(form="separate", taps="channel", activation="silu"), ours=True),
    "gdssm-mixers": Contender("GDSSM, mixers alone", _mixers, ours=True, heads=True),
    "gdssm-window": Contender("GDSSM, Lambda = 0", _without_memory, ours=True),
    "linear-attention": Contender("linear attention", _baseline("linear_attention")),
    "gated-linear-attention": Contender("gated linear attention", _baseline("gated_linear_attention")),
    "delta-net": Contender("DeltaNet", _baseline("delta_net")),
    "window": Contender("window only", _baseline("window")),
    "attention": Contender("softmax attention", _baseline("attention"), recurrent=False),
    "gpt2": Contender("GPT-2", _transformers("gpt2"), recurrent=False, heads=True),
    "mamba": Contender("Mamba", _transformers("mamba")),
}


def check_contenders(names: tuple[str, ...]) -> None:
    """ConfigError for a name that is none."""
    for name in names:
        check_choice("contenders", name, tuple(CONTENDERS))


def size_for(name: str, task: Ends, shape: Shape) -> int | None:
    """The size at which a contender has nearest to as many parameters as GDSSM at the shape's width; None: its own."""
    contender = CONTENDERS[name]
    if contender.make in (OURS, _without_memory):
        return None
    return _size_for(name, task.n_inputs, task.n_outputs, shape)


@cache
def _size_for(name: str, n_inputs: int, n_outputs: int, shape: Shape) -> int:
    ends = _Ends(n_inputs, n_outputs)
    with torch.device("meta"):
        budget = parameter_count(OURS(ends, shape, None))
    contender = CONTENDERS[name]
    step = shape.n_heads if contender.heads else 1
    return matched(lambda size: contender.make(ends, shape, size), "parameters", budget, step=step, near=2 * shape.width)


def build(name: str, task: Ends, shape: Shape, seed: int) -> nn.Module:
    """A contender with random weights that depend on the seed alone."""
    model: Any = CONTENDERS[name].make(task, shape, size_for(name, task, shape))
    model.reset_parameters(torch.Generator().manual_seed(seed))
    if name == "gdssm-window":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.detach().fill_(NO_MEMORY)
    return model


def state_size(model: nn.Module, tokens: int) -> int | None:
    """Numbers kept per sequence after so many tokens to go on from there; None for models that read whole sequences."""
    if isinstance(model, GDSSMForSequenceModeling):
        if model.config.bidirectional:
            return None
        return sum(block.z[0].numel() + block.tail[0].numel() for block in model.init_state(1).blocks)
    own: Any = model
    return int(own.state_size(tokens))
