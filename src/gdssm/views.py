"""What the recurrent state does, as data for records: the state that fills up over one context, weights over training.

Axes: B tasks, N examples, E evaluations, D features. The report's interactive view is drawn from these two records;
docs/records.md defines their fields.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .analysis import parameter_match
from .layers import GDSSM
from .models import InContextModel
from .records import rounded
from .tasks import LinearRegression
from .tokens import interleave

HELD_OUT_SEED = 10**6  # the evaluation tasks of experiments: far from any seed that tasks of training are drawn with
CONTEXT_STEP = 3


@torch.no_grad()
def implicit_weights(layer: GDSSM, x: Tensor, y: Tensor) -> Tensor:
    """The linear model that the state holds after the examples x (B, n, d_x), y (B, n, d_y): (B, d_y, d_x).

        W_n = sum_h d_h[2] (C_h Z_h^T P_h + F_h),   Z_h the state after the tokens x_1, y_1, .., x_n, y_n, 0

    Windows overlap: window k is (x_k, y_k, x_{k+1}), so the n-th example's is closed only by the token after it. Here
    that token is 0: everything the layer takes in of n examples, and nothing of an input not seen yet. With
    d = (0, 0, d[2]) and a w_q that reads x_k and y_k alone, W_n x is exactly the layer's answer to the query x; a trained
    layer's other entries are small, and what they add to an answer depends on the query, so no matrix holds it.
    ValueError for a layer whose window is not 3 or whose stride is not 2.
    """
    if (layer.window, layer.stride) != (3, 2):
        raise ValueError(f"layer must have window 3 and stride 2, got {layer.window} and {layer.stride}")
    d_x, d_y = x.shape[2], y.shape[2]
    tokens = interleave(x, y, x.new_zeros(len(x), d_x))
    weights = layer(pad(tokens, (0, layer.d_model - tokens.shape[2])))[1].weights()
    if layer.feedthrough is not None:
        weights = weights + layer.feedthrough
    return torch.einsum("h,bhij->bij", layer.d[:, 2], weights)[:, :d_y, :d_x]


@torch.no_grad()
def filling(
    model: InContextModel | GDSSM, task: LinearRegression, rate: float, seed: int, *, context: tuple[int, int] | None = None
) -> dict[str, Any]:
    """One held-out context, example by example, beside the explicit step of gradient descent.

        trained[n] = implicit_weights of the first n examples      gradient_descent[n] = (rate / N) sum_{k <= n} y_k x_k^T

    rate     eta, the step's learning rate for the mean over the N examples
    seed     the layer's own, to be said beside it
    context  (seed, step) of task.sample; one that no training draws where None

    Everything is computed in float64 and rounded to six significant digits. ValueError as in implicit_weights, TypeError
    for a model whose layer is no GDSSM.
    """
    layer = model.layer if isinstance(model, InContextModel) else model
    if not isinstance(layer, GDSSM):
        raise TypeError(f"the layer must be a GDSSM, got {type(layer).__name__}")
    layer = copy.deepcopy(layer).double()
    drawn, step = context or (HELD_OUT_SEED, CONTEXT_STEP)
    examples = task.sample(1, seed=drawn, step=step, dtype=torch.float64)
    x, y, n = examples.x, examples.y, task.n_examples
    sums = torch.einsum("ki,kj->kij", y[0], x[0]).cumsum(0) * (rate / n)
    return {
        "seed": seed,
        "context": [drawn, step],
        "rate": rate,
        "true": rounded(task.true_weights(1, seed=drawn, step=step, dtype=torch.float64)[0].tolist()),
        "x": rounded(x[0].tolist()),
        "y": rounded(y[0].tolist()),
        "trained": [rounded(implicit_weights(layer, x[:, :k], y[:, :k])[0].tolist()) for k in range(n + 1)],
        "gradient_descent": rounded([torch.zeros_like(sums[0]).tolist(), *sums.tolist()]),
    }


def snapshot(layer: GDSSM) -> dict[str, Any]:
    """The layer's weights as analysis.parameter_match scales them, w_q[0, 1] = d[2] = 1, and Lambda, in six digits.

    Where w_q[0, 1] or d[2] is small, as it may be before training, the other entries of w_q or d are large. ValueError for
    a layer that parameter_match does not take.
    """
    match = parameter_match(layer)
    weights = {"w_q": match.w_q, "d": match.d, "c": match.c, "decay": layer.decay_matrix[0].detach().double()}
    return {name: rounded(value.tolist()) for name, value in weights.items()}


def snapshots(steps: Sequence[int], layers: Sequence[GDSSM], seed: int) -> dict[str, Any]:
    """`snapshot` of one layer at every evaluation: its copies at these steps, in the same order."""
    if len(steps) != len(layers):
        raise ValueError(f"steps has {len(steps)} entries, layers {len(layers)}")
    made = [snapshot(layer) for layer in layers]
    return {"seed": seed, "steps": list(steps), **{name: [one[name] for one in made] for name in ("w_q", "d", "c", "decay")}}
