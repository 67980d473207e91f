"""A stack read after each of its layers, an iterated readout after each of its steps: what `identify_layers` counts.

The part that repeats is shortened and everything around it stays, so that all depths are read in the same way.
"""

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from ..baselines import Stack
from ..models import GDSSMStack
from ..readouts import ConjugateGradientReadout, IteratedReadout, NewtonReadout
from ..tasks import Predictor
from ..tokens import Layout, as_predictor
from .identification import IdentificationError

REPEATING = (GDSSMStack, Stack, IteratedReadout, ConjugateGradientReadout, NewtonReadout)


@dataclass(frozen=True)
class Depth:
    """How many times a part of a module repeats: unit "layer" or "iteration", its name in the module, and the count."""

    unit: str
    name: str
    count: int


def depth(module: nn.Module) -> Depth | None:
    """The part of a module that repeats; None where there is none, or more than one."""
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, REPEATING)]
    if len(found) != 1:
        return None
    name, part = found[0]
    if isinstance(part, GDSSMStack | Stack):
        return Depth("layer", name, len(part.layers))
    return Depth("iteration", name, len(part.rates) if isinstance(part, IteratedReadout) else part.k)


def layer_readouts(module: nn.Module, layout: str | Layout = "interleaved") -> list[Predictor]:
    """What a module predicts after its first layer, after the first two, .., after all: one predictor for each.

        GDSSMStack, gdssm.baselines.Stack   after the first j layers, h_j
        IteratedReadout                     after j steps: rates, momenta and lookaheads of the first j
        Conjugate gradient, Newton readout  after j iterations

    module   one of these, or a module that holds one: what stands before it (features, a front) and behind it (a projection,
             the choice of outputs) reads and answers at every depth. The last predictor is the module's own.
    layout   of the tokens, as in gdssm.as_predictor

    The predictors hold copies of the weights. IdentificationError for a module that holds none of these or several, and
    for a stack whose layers give so many different numbers of features that its projection cannot read each of them.
    """
    found = depth(module)
    if found is None:
        held = sum(isinstance(part, REPEATING) for part in module.modules())
        allowed = ", ".join(kind.__name__ for kind in REPEATING)
        raise IdentificationError(f"module holds {held} parts that repeat, one is needed; those are: {allowed}")
    _check_sizes(module.get_submodule(found.name))
    return [as_predictor(_shortened(module, found.name, count), layout) for count in range(1, found.count + 1)]


def _check_sizes(part: nn.Module) -> None:
    if not isinstance(part, Stack) or part.w_out is None:
        return
    for number, layer in enumerate(part.layers, start=1):
        if layer.d_out != part.w_out.shape[1]:
            raise IdentificationError(
                f"module has a layer {number} that gives {layer.d_out} features; "
                f"the projection behind the last layer reads {part.w_out.shape[1]}"
            )


def _shortened(module: nn.Module, name: str, count: int) -> nn.Module:
    """A copy of the module whose part of this name stops after so many layers or iterations."""
    copied = copy.deepcopy(module).eval()
    part = copied.get_submodule(name)
    if isinstance(part, GDSSMStack | Stack):
        part.layers = part.layers[:count]
    elif isinstance(part, IteratedReadout):
        part.rates = _first(part.rates, count)
        if part.momenta is not None and part.lookaheads is not None:
            part.momenta, part.lookaheads = _first(part.momenta, count - 1), _first(part.lookaheads, count - 1)
    elif isinstance(part, ConjugateGradientReadout | NewtonReadout):
        part.k = count
    return copied


def _first(numbers: Tensor, count: int) -> nn.Parameter:
    return nn.Parameter(numbers.detach()[:count].clone())
