"""Tasks seen through the eigenvalues of B = sum_i x_i x_i^T: most learners are functions of these alone.

With x = U S V^T (the N x d_x matrix of a task's examples) and B = V S^2 V^T, a learner that turns gradients into weights by
a function f of B predicts

    A f(B) x_query = sum_i f(lambda_i) a_i q_i,    A = sum_k y_k x_k^T,  a = A V,  q = V^T x_query,  lambda = S^2

so that fitting its numbers is a problem in the f(lambda_i), and its squared error a quadratic form in them.

Axes: n tasks, M queries, o outputs, r = min(N, d_x) eigenvalues, T trials. Everything is float64.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..tasks import Context


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Tasks, the predictions to explain, and how much each task counts.

    context   x (n, N, d_x), y (n, N, d_y), x_query (n, M, d_x)
    target    (n, M, d_y), the predictor's predictions
    weight    (n,), 1 / (|p|^2 + its median over tasks), p one task's predictions: a few tasks with huge predictions, as
              least squares has where N = d_x, do not outweigh the rest
    """

    context: Context
    target: Tensor
    weight: Tensor
    values: Tensor  # (n, r), largest first
    vectors: Tensor  # (n, r, d_x), rows
    a: Tensor  # (n, d_y, r)
    q: Tensor  # (n, M, r)

    @staticmethod
    def of(context: Context, target: Tensor) -> "Spectrum":
        """Of float64 tasks with the predictions for them."""
        left, singular, vectors = torch.linalg.svd(context.x, full_matrices=False)
        size = target.square().sum((1, 2))
        middle = torch.maximum(size.median(), 1e-3 * size.mean())
        return Spectrum(
            context,
            target,
            1 / (size + middle),
            singular.square(),
            vectors,
            context.y.mT @ left * singular[:, None],
            context.x_query @ vectors.mT,
        )

    @cached_property
    def reliable(self) -> Tensor:
        """(n, r) 1 where an eigenvalue differs from 0, as far as rounding lets one say; else 0."""
        eps = torch.finfo(torch.float64).eps * max(self.context.x.shape[1:])
        return (self.values.sqrt() > eps * self.values[:, :1].sqrt()).double()

    @cached_property
    def outside(self) -> Tensor:
        """(n, M) length of the part of the query that is orthogonal to all examples; 0 where N >= d_x."""
        if self.q.shape[2] == self.context.x.shape[2]:
            return self.q.new_zeros(self.q.shape[:2])
        return (self.context.x_query - self.q @ self.vectors).norm(dim=2)

    @cached_property
    def top(self) -> Tensor:
        """(n,) largest eigenvalue of each task."""
        return self.values[:, 0]

    @cached_property
    def total(self) -> Tensor:
        """Weighted sum of squares of the target."""
        return (self.weight * self.target.square().sum((1, 2))).sum()

    @cached_property
    def _quadratic(self) -> tuple[Tensor, Tensor]:
        products = (self.a.mT @ self.a) * (self.q.mT @ self.q)  # (n, r, r)
        along = (self.a * (self.target.mT @ self.q)).sum(1)  # (n, r)
        return self.weight[:, None, None] * products, self.weight[:, None] * along

    def losses(self, filters: Tensor) -> Tensor:
        """(T,) weighted squared errors over `total`, of filters f(lambda) (T, n, r). Loses half of the digits to cancellation."""
        products, along = self._quadratic
        image = torch.einsum("tni,nij->tnj", filters, products)
        return 1 + torch.einsum("tni,tni->t", image - 2 * along, filters) / self.total

    def normal_equations(self, filters: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Gauss-Newton's matrix (p, p) and right-hand side (p,) at filters (n, r) for derivatives (p, n, r)."""
        products, along = self._quadratic
        image = torch.einsum("pni,nij->pnj", tangents, products)
        missing = along - torch.einsum("ni,nij->nj", filters, products)
        return torch.einsum("pni,qni->pq", image, tangents), torch.einsum("pni,ni->p", tangents, missing)

    def predict(self, filters: Tensor) -> Tensor:
        """(n, M, d_y) predictions of filters (n, r)."""
        return (self.q * filters[:, None]) @ self.a.mT

    def implicit_weights(self, filters: Tensor) -> Tensor:
        """(n, d_y, d_x), A f(B)."""
        return (self.a * filters[:, None]) @ self.vectors
