"""Forms of a layer's window, and the least loss that a layer of each form can have. Part of the window experiment.

With the query as readout and C = 1 a prediction is linear in the gate w_q, so its best value is a least-squares problem over
sampled tasks.

Axes: B tasks, K windows, D features, W window width, P = W * W.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..analysis import squared_loss
from ..tasks import Context, LinearRegression
from ..tasks.linear import generator
from ..tokens import interleave
from ..views import HELD_OUT_SEED
from .grid import EVALUATION_STEP
from .trainings import target_of

FIT_STEP = 7  # of the held-out seed: tasks that nothing is trained on, chosen by or reported for
DECAYS = (1.0, 0.98, 0.95)


@dataclass(frozen=True)
class RandomOrder(LinearRegression):
    """Linear regression whose pairs come as (x, y) or (y, x), by a fair coin for every example.

    Context.x and .y are the first and the second token of each pair. Only with `disjoint` do the tokens say which is which:
    an x then fills the first d coordinates of 2 d, a y the last d, and the first d targets are 0.
    """

    disjoint: bool = False

    def sample(
        self, batch: int, *, seed: int, step: int = 0, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Context:
        """As LinearRegression's; the coins are drawn after everything else."""
        plain = super().sample(batch, seed=seed, step=step, dtype=dtype, device=device)
        x, y, x_query, y_query = plain.x, plain.y, plain.x_query, target_of(plain)
        if self.disjoint:
            x, x_query = (torch.cat([one, torch.zeros_like(one)], dim=2) for one in (x, x_query))
            y, y_query = (torch.cat([torch.zeros_like(one), one], dim=2) for one in (y, y_query))
        g = generator(seed, 2**40 + step, device)
        swap = torch.rand(batch, self.n_examples, 1, generator=g, device=device) < 0.5
        return Context(torch.where(swap, y, x), torch.where(swap, x, y), x_query, y_query)


@dataclass(frozen=True)
class Cell:
    """A window, a stride, and the order of the two tokens of a pair: fixed, shared or disjoint (coordinates)."""

    window: int = 3
    stride: int = 2
    order: str = "fixed"

    @property
    def name(self) -> str:
        return f"window-{self.window}-stride-{self.stride}" if self.order == "fixed" else f"{self.order}-order"

    @property
    def title(self) -> str:
        if self.order == "fixed":
            return f"window {self.window}, stride {self.stride}"
        return f"random order, {self.order} coordinates"

    def outputs(self, plain: LinearRegression) -> slice:
        """The coordinates of the tokens that hold the targets."""
        return slice(-plain.d_y, None) if self.order == "disjoint" else slice(0, plain.d_y)

    def task(self, plain: LinearRegression) -> LinearRegression:
        """The plain task in this order."""
        return plain if self.order == "fixed" else RandomOrder(**vars(plain), disjoint=self.order == "disjoint")


CELLS = (
    *(Cell(window, stride) for stride in (2, 1) for window in (1, 2, 3, 5, 9)),
    Cell(order="shared"),
    Cell(order="disjoint"),
)


@torch.no_grad()
def features(tokens: Tensor, window: int, stride: int, decay: float) -> Tensor:
    """What each entry of w_q adds to the prediction where C = 1 and the query is the last token: (B, D, W * W).

    f[.., a, b] = sum_k decay^(K-1-k) (s_{k,a} . q) s_{k,b}      q = s_{K-1,W-1}
    """
    stacked = tokens.unfold(1, window, stride)  # (B, K, D, W)
    count = stacked.shape[1]
    query = stacked[:, -1, :, -1]
    weight = decay ** torch.arange(count - 1, -1, -1, dtype=tokens.dtype)
    scores = torch.einsum("bkda,bd->bka", stacked, query) * weight[:, None]
    return torch.einsum("bka,bkdc->bdac", scores, stacked).flatten(2)


class _Normal:
    """Means over tasks that give the loss of every w_q: f f^T (P, P), f y (P,) and y y, over tasks and target coordinates."""

    def __init__(self, task: LinearRegression, tasks: int, step: int, cell: Cell, decay: float, outputs: slice) -> None:
        context = task.sample(tasks, seed=HELD_OUT_SEED, step=step, dtype=torch.float64)
        square, cross, rest, count = torch.zeros(()), torch.zeros(()), 0.0, 0
        for start in range(0, tasks, 1_000):
            part = slice(start, start + 1_000)
            tokens = interleave(context.x[part], context.y[part], context.x_query[part])
            f = features(tokens, cell.window, cell.stride, decay)[:, outputs].flatten(0, 1)
            y = target_of(context)[part, 0, outputs].flatten()
            square, cross, rest, count = square + f.T @ f, cross + f.T @ y, rest + float(y @ y), count + len(y)
        self.square, self.cross, self.rest = square / count, cross / count, rest / count

    def best(self) -> Tensor:
        """The w_q of least mean loss; of smallest norm where several are, for overlapping windows repeat each other."""
        return torch.linalg.pinv(self.square, rtol=1e-10, hermitian=True) @ self.cross

    def loss(self, w: Tensor) -> float:
        """0.5 (y - f w)^2, mean."""
        return float(0.5 * (w @ self.square @ w - 2 * w @ self.cross + self.rest))


def best_of_form(plain: LinearRegression, cell: Cell, fit_tasks: int, eval_tasks: int) -> dict[str, Any]:
    """The least loss of a layer with this window, stride and order: on the tasks it is fitted to, and on the evaluation's."""
    task, outputs = cell.task(plain), cell.outputs(plain)
    fitted = {}
    for decay in DECAYS:
        normal = _Normal(task, fit_tasks, FIT_STEP, cell, decay, outputs)
        w = normal.best()
        fitted[decay] = (normal.loss(w), w)
    decay = min(fitted, key=lambda one: fitted[one][0])
    w = fitted[decay][1]
    # the tasks of the evaluation are drawn in float32, as training sees them
    context = task.sample(eval_tasks, seed=HELD_OUT_SEED, step=EVALUATION_STEP)
    tokens = interleave(context.x, context.y, context.x_query).double()
    found = torch.cat([features(part, cell.window, cell.stride, decay)[:, outputs] @ w for part in tokens.split(1_000)])
    loss = squared_loss(found, target_of(context)[:, 0, outputs])
    return {"best_of_form": loss, "expected": fitted[decay][0], "decay": decay, "w_q": w.reshape(cell.window, cell.window).tolist()}
