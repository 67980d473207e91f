"""Explicit learners: what constructions and trained networks are compared with.

Each is a plain program on the examples, (x (B, N, d_x), y (B, N, d_y), x_query) -> prediction, with x_query (B, d_x)
giving (B, d_y) and (B, M, d_x) giving (B, M, d_y). `forgetting` weighs example i by forgetting^(N-i). They hold the
weights W (B, d_y, d_x) explicitly and share no code with gdssm.construct. All are differentiable in x_query and run
in the dtype given.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .tasks.context import Predictor


def predictor(learner: Callable[..., Tensor], **options: Any) -> Predictor:
    """A learner with its options as a Predictor: Context -> (B, M, d_y)."""
    return lambda context: learner(context.x, context.y, context.x_query, **options)


def gradient_descent(
    x: Tensor,
    y: Tensor,
    x_query: Tensor,
    *,
    lr: float,
    steps: int = 1,
    w0: Tensor | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    forgetting: float = 1.0,
    loss: str = "squared",
) -> Tensor:
    """Full-batch gradient descent on the examples.

        W_{t+1} = V - lr [ (1/N) sum_i forgetting^(N-i) (V x_i - y_i) x_i^T + weight_decay V ] + momentum (W_t - W_{t-1})

    with V = W_t (or V = W_t + momentum (W_t - W_{t-1}) with `nesterov`, and then no further momentum term),
    W_0 = w0 or 0, W_{-1} = W_0. loss "cross_entropy" replaces V x_i by softmax(V x_i) for one-hot y; its
    prediction is the logits. ValueError for steps < 1 or an unknown loss.
    """
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    if loss not in ("squared", "cross_entropy"):
        raise ValueError(f"loss is {loss!r}; allowed: squared, cross_entropy")
    n = x.shape[1]
    age = torch.arange(n - 1, -1, -1, dtype=x.dtype, device=x.device)
    weight = forgetting**age
    w = _start(x, y, w0)
    previous = w
    for _ in range(steps):
        at = w + momentum * (w - previous) if nesterov else w
        output = _apply(at, x)
        if loss == "cross_entropy":
            output = output.softmax(-1)
        gradient = torch.einsum("bni,bnj->bij", (output - y) * weight[:, None], x) / n + weight_decay * at
        new = at - lr * gradient
        if not nesterov:
            new = new + momentum * (w - previous)
        w, previous = new, w
    return _apply(w, x_query)


def polynomial(
    x: Tensor, y: Tensor, x_query: Tensor, *, rates: Sequence[float], w0: Tensor | None = None, forgetting: float = 1.0
) -> Tensor:
    """Gradient descent on the summed loss with its own rate in each step: W <- W - c_t sum_i (W x_i - y_i) x_i^T."""
    x, y = _weighted(x, y, forgetting)
    w = _start(x, y, w0)
    for rate in rates:
        w = w - rate * torch.einsum("bni,bnj->bij", _apply(w, x) - y, x)
    return _apply(w, x_query)


def minibatch(x: Tensor, y: Tensor, x_query: Tensor, *, lr: float, batch: int, w0: Tensor | None = None) -> Tensor:
    """One gradient step per `batch` examples, in their order, each on its minibatch's mean loss. batch = 1: the delta rule."""
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch}")
    w = _start(x, y, w0)
    for start in range(0, x.shape[1], batch):
        xs, ys = x[:, start : start + batch], y[:, start : start + batch]
        w = w - lr / xs.shape[1] * torch.einsum("bni,bnj->bij", _apply(w, xs) - ys, xs)
    return _apply(w, x_query)


def chebyshev(
    x: Tensor, y: Tensor, x_query: Tensor, *, steps: int, lambda_min: float, lambda_max: float, w0: Tensor | None = None
) -> Tensor:
    """Chebyshev semi-iteration for eigenvalues of (1/N) sum x x^T in [lambda_min, lambda_max] (Saad, 2003, alg. 12.1)."""
    if not 0 < lambda_min <= lambda_max:
        raise ValueError(f"lambda_min and lambda_max must satisfy 0 < lambda_min <= lambda_max, got {lambda_min} and {lambda_max}")
    n = x.shape[1]
    centre, half = (lambda_max + lambda_min) / 2, (lambda_max - lambda_min) / 2
    w = _start(x, y, w0)
    step, rho = torch.zeros_like(w), 0.0
    for t in range(steps):
        descent = torch.einsum("bni,bnj->bij", y - _apply(w, x), x) / n
        rho_new = half / centre if t == 0 else 1 / (2 * centre / half - rho) if half else 0.0
        step = descent / centre if t == 0 or not half else rho_new * rho * step + 2 * rho_new / half * descent
        w, rho = w + step, rho_new
    return _apply(w, x_query)


def least_squares(x: Tensor, y: Tensor, x_query: Tensor) -> Tensor:
    """The W that minimises sum |W x - y|^2; of smallest norm where several do (N < d_x)."""
    return _apply((torch.linalg.pinv(x) @ y).transpose(1, 2), x_query)


def ridge(x: Tensor, y: Tensor, x_query: Tensor, *, alpha: float, forgetting: float = 1.0) -> Tensor:
    """The W that minimises sum |W x - y|^2 + alpha |W|^2. ValueError where alpha < 0, or alpha = 0 with N < d_x."""
    _check_alpha(x, alpha)
    x, y = _weighted(x, y, forgetting)
    w = torch.linalg.solve(_gram(x, alpha), x.transpose(1, 2) @ y).transpose(1, 2)
    return _apply(w, x_query)


def bayes(x: Tensor, y: Tensor, x_query: Tensor, *, noise_var: float, weight_var: float = 1.0) -> Tensor:
    """The posterior mean for W entries N(0, weight_var) and noise N(0, noise_var): ridge at alpha = noise_var / weight_var.

    Without noise, the least-squares solution of smallest norm.
    """
    if noise_var < 0 or weight_var <= 0:
        raise ValueError(f"noise_var must be >= 0 and weight_var > 0, got {noise_var} and {weight_var}")
    return least_squares(x, y, x_query) if noise_var == 0 else ridge(x, y, x_query, alpha=noise_var / weight_var)


def newton(x: Tensor, y: Tensor, x_query: Tensor, *, steps: int, alpha: float = 0.0, forgetting: float = 1.0) -> Tensor:
    """Newton-Schulz iteration for the inverse of G = sum x x^T + alpha I: X <- X (2 I - G X), X_0 = G^T / (|G|_1 |G|_inf)."""
    x, y = _weighted(x, y, forgetting)
    g = _gram(x, alpha)
    inverse = g.mT / (g.abs().sum(1).amax(1) * g.abs().sum(2).amax(1))[:, None, None]
    eye = torch.eye(g.shape[1], dtype=g.dtype, device=g.device)
    for _ in range(steps):
        inverse = inverse @ (2 * eye - g @ inverse)
    return _apply(y.mT @ x @ inverse, x_query)


def conjugate_gradient(x: Tensor, y: Tensor, x_query: Tensor, *, alpha: float, steps: int, forgetting: float = 1.0) -> Tensor:
    """(sum y x^T) v with v the CG iterate for (sum x x^T + alpha I) v = x_query from v = 0 (Hestenes and Stiefel, 1952).

    The system is solved for each query; CG on W is another algorithm. ValueError as for ridge.
    """
    _check_alpha(x, alpha)
    x, y = _weighted(x, y, forgetting)
    single = x_query.ndim == 2
    queries = x_query[:, None] if single else x_query
    rows = []
    for j in range(queries.shape[1]):
        b = queries[:, j]
        v, residual, direction = torch.zeros_like(b), b, b
        first = size = (b * b).sum(1)
        for _ in range(steps):
            going = size > torch.finfo(b.dtype).eps ** 2 * first
            image = ((x @ direction[:, :, None]) * x).sum(1) + alpha * direction
            step = torch.where(going, size / torch.where(going, (direction * image).sum(1), 1), 0)
            v, residual = v + step[:, None] * direction, residual - step[:, None] * image
            new = (residual * residual).sum(1)
            direction = residual + torch.where(going, new / torch.where(going, size, 1), 0)[:, None] * direction
            size = torch.where(going, new, size)
        rows.append(v)
    out = _apply(y.mT @ x, torch.stack(rows, dim=1))
    return out[:, 0] if single else out


def _weighted(x: Tensor, y: Tensor, forgetting: float) -> tuple[Tensor, Tensor]:
    """Examples scaled so that example i weighs forgetting^(N-i) in every sum of squares."""
    if forgetting == 1:
        return x, y
    age = torch.arange(x.shape[1] - 1, -1, -1, dtype=x.dtype, device=x.device)
    root = forgetting ** (age / 2)
    return x * root[:, None], y * root[:, None]


def _start(x: Tensor, y: Tensor, w0: Tensor | None) -> Tensor:
    """W_0 for every task, (B, d_y, d_x)."""
    shape = (x.shape[0], y.shape[2], x.shape[2])
    if w0 is None:
        return x.new_zeros(shape)
    w = torch.as_tensor(w0, dtype=x.dtype, device=x.device)
    if w.shape not in (shape, shape[1:]):
        raise ValueError(f"w0 must be {shape[1:]} or {shape}, got shape {tuple(w.shape)}")
    return w.expand(shape)


def _apply(w: Tensor, x: Tensor) -> Tensor:
    """W x for x (B, d_x) or (B, M, d_x)."""
    return torch.einsum("bij,b...j->b...i", w, x)


def _gram(x: Tensor, alpha: float) -> Tensor:
    return x.mT @ x + alpha * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)


def _check_alpha(x: Tensor, alpha: float) -> None:
    if alpha < 0 or (alpha == 0 and x.shape[1] < x.shape[2]):
        raise ValueError(f"alpha must be > 0, or 0 with at least {x.shape[2]} examples; got alpha = {alpha} with {x.shape[1]}")
