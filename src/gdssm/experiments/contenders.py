"""The architectures of the baselines comparison, their inputs, and the width at which each has a given size.

Every contender is module(tokens (B, T, D)) -> (B, d_y). Around the layers of all but GDSSM and its ablations stand:

    [window front] -> [W_in] -> layers, h + layer(h) where there are two -> [W_out]

W_in and W_out are there where the layers cannot do without: two of them, or a layer without projections of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import baselines, hf
from ..baselines import SequenceLayer
from ..baselines.sizes import matched
from ..config import check_choice
from ..layers import GDSSM
from ..models import InContextModel
from ..tasks import LinearRegression
from ..tokens import Layout, concatenated, interleave
from .ablation import PARTS, Ablated

INPUTS = {
    "tokens": "one token at a time: x_1, y_1, x_2, ..",
    "windows": "three tokens at a time and one learned product of them",
    "pairs": "x_k and y_k joined in one token",
}
MATCHES = {"parameters": "parameters", "state": "state of a layer", "": "no free width"}


@dataclass(frozen=True)
class Contender:
    """An architecture. layer(width, d_model, d_out) makes one layer; None: see `build`.

    projects      layers have projections of their own, in and out: the width is that of the state alone, and the features
                  between two layers are as many as three tokens have
    inputs        what it reads
    transformers  a whole model of transformers with blocks of its own; its width is matched by parameters alone
    """

    title: str
    layer: Callable[[int, int, int], SequenceLayer] | None = None
    projects: bool = False
    inputs: tuple[str, ...] = ("tokens", "windows")
    transformers: bool = False

    @property
    def matches(self) -> tuple[str, ...]:
        """What its width can be chosen by."""
        if self.transformers:
            return ("parameters",)
        return () if self.layer is None else ("parameters", "state")


def _linear(width: int, d_model: int, d_out: int) -> SequenceLayer:
    return baselines.LinearAttention(d_model, d_key=width, d_value=width, d_out=d_out)


def _gated(gate: str, delta: bool) -> Callable[[int, int, int], SequenceLayer]:
    return lambda width, d_model, d_out: baselines.GatedLinearAttention(
        d_model, d_key=width, d_value=width, d_out=d_out, gate=gate, delta=delta
    )


def _s5(gate: str) -> Callable[[int, int, int], SequenceLayer]:
    return lambda width, d_model, d_out: baselines.S5(d_model, n_state=width + width % 2, gate=gate)


def _rg_lru(width: int, d_model: int, d_out: int) -> SequenceLayer:
    return baselines.RGLRU(d_model, output_gate=True)


def _gated_rnn(width: int, d_model: int, d_out: int) -> SequenceLayer:
    return baselines.GatedRNN(d_model, n_state=width, n_products=width, d_out=d_out, readout="input")


CONTENDERS = {
    "gdssm": Contender("GDSSM"),
    **{f"without_{part}": Contender(f"GDSSM without {part.replace('_', ' ')}") for part in PARTS},
    "linear_attention": Contender("linear attention", _linear, projects=True),
    "gated_linear_attention": Contender("gated linear attention", _gated("row", delta=False), projects=True),
    "delta_net": Contender("DeltaNet", _gated("none", delta=True), projects=True),
    "s5": Contender("S5", _s5("glu")),
    "s5_readout": Contender("S5, multiplicative readout", _s5("input"), inputs=("windows",)),
    "rg_lru": Contender("RG-LRU (Griffin)", _rg_lru),
    "gated_rnn": Contender("gated RNN", _gated_rnn, projects=True),
    "softmax_attention": Contender("softmax attention (GPT-2)", transformers=True),
    "mamba": Contender("Mamba", transformers=True),
    "griffin": Contender("Griffin", transformers=True),
}


@dataclass(frozen=True)
class Cell:
    """One entry of the comparison: an architecture, what it reads, how many layers, what its width was chosen by."""

    architecture: str
    inputs: str = "windows"
    layers: int = 1
    matched: str = ""

    def __post_init__(self) -> None:
        check_choice("architecture", self.architecture, tuple(CONTENDERS))
        check_choice("inputs", self.inputs, tuple(INPUTS))
        check_choice("matched", self.matched, tuple(MATCHES))

    @property
    def name(self) -> str:
        """A name for files, e.g. s5-windows-2-state."""
        return "-".join(str(part) for part in (self.architecture, self.inputs, self.layers, self.matched) if part)

    @property
    def title(self) -> str:
        """A name for readers, e.g. "S5, windows, 2 layers"."""
        return f"{CONTENDERS[self.architecture].title}, {self.inputs}, {self.layers} layer{'s' * (self.layers > 1)}"

    @property
    def layout(self) -> Layout:
        """(x, y, x_query) -> the tokens that it reads."""
        return concatenated if self.inputs == "pairs" else interleave


def cells() -> tuple[Cell, ...]:
    """All entries: every architecture with a free width x {tokens, windows} x {1, 2} layers x what is matched."""
    own = [Cell("gdssm"), *(Cell(f"without_{part}") for part in PARTS)]
    pairs = [Cell("linear_attention", "pairs", layers) for layers in (1, 2)]
    free = (
        Cell(name, inputs, layers, matched)
        for name, contender in CONTENDERS.items()
        for inputs in contender.inputs
        for layers in (1, 2)
        for matched in contender.matches
    )
    return (*own, *pairs, *free)


def build(cell: Cell, task: LinearRegression, width: int | None = None) -> nn.Module:
    """The module of a cell; width: see `width_for`, None where the architecture has no free width."""
    d, d_y = max(task.d_x, task.d_y), task.d_y
    name = cell.architecture
    if name == "gdssm":
        return InContextModel(GDSSM(d, decay="head"), task.d_x, d_y)
    if name.startswith("without_"):
        return Ablated(d, d_y, name.removeprefix("without_"))
    contender = CONTENDERS[name]
    front = baselines.WindowFront(d, stride=2, products=1) if cell.inputs == "windows" else None
    if contender.transformers:
        options: dict[str, Any] = {"softmax_attention": {"max_tokens": _read(cell, task)}, "mamba": {"n_state": 4}}.get(name, {})
        model = hf.build(name, d, d_y, d_model=width, n_layers=cell.layers, front=front, **options)
        return baselines.LastOutput(model, d_y)
    assert contender.layer is not None
    given = task.d_x + d_y if cell.inputs == "pairs" else d
    read = given if front is None else front.d_out
    width = given if width is None else width
    if contender.projects and cell.layers == 1:
        return baselines.LastOutput(baselines.Stack([contender.layer(width, read, d_y)], front=front), d_y)
    features = 3 * d if contender.projects else width
    layers = [contender.layer(width, features, features) for _ in range(cell.layers)]
    return baselines.LastOutput(baselines.Stack(layers, front=front, d_in=given, d_out=d_y, residual=cell.layers > 1), d_y)


def _read(cell: Cell, task: LinearRegression) -> int:
    """Tokens or windows of one task."""
    return task.n_examples if cell.inputs == "windows" else 2 * task.n_examples + 1


def state_size(module: nn.Module, task: LinearRegression) -> int:
    """Numbers kept per sequence by a module of `build` at the end of a task, the window's last tokens included."""
    if isinstance(module, InContextModel):
        layer: Any = module.layer
        return int(layer.d_model) ** 2 + (layer.window - 1) * int(layer.d_model)
    inner: Any = module.layer if isinstance(module, baselines.LastOutput) else module
    return int(inner.state_size(2 * task.n_examples + 1) if isinstance(inner, hf.TransformersModel) else inner.state_size)


def width_for(cell: Cell, task: LinearRegression, parameters: int, state: int) -> int | None:
    """The width at which the whole model has nearest to so many parameters, or each layer nearest to so much state.

    None where the architecture has no free width.
    """
    if not cell.matched:
        return None

    return matched(lambda width: build(cell, task, width), cell.matched, parameters if cell.matched == "parameters" else state)
