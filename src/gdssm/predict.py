"""Regression on a CSV table: its rows are streamed through a constructed model, once, and queries answered from the state.

Columns are standardised, every row becomes the two tokens x, y, and the state A = sum y x^T, B = sum x x^T is all that
is kept of them. A first pass over the file checks it and finds means and deviations, so memory does not grow with the
number of rows. torch is imported inside functions: a file or an option that cannot be used is reported before.

Axes: F contexts read side by side as a batch (the folds, or one), N rows, M queries, D features, C = D + 1 columns.
"""

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .config import check_choice, check_count, check_number, counted
from .progress import Progress
from .table import Moments, Table, TableError, Watch, fold_of_rows, read_queries, read_table

if TYPE_CHECKING:
    from torch import Tensor

    from .ops import ScanState
    from .readouts import PairReadout

SOLVERS = {"gd": "gradient descent", "cg": "conjugate gradient"}
RIDGE_ALPHA = 1.0  # of the ridge regression reported for comparison: scikit-learn's default, on standardised columns
_GD_STEPS = 100
_MOST_STEPS, MOST_FOLDS = 10**6, 1000  # memory grows with both
_MOST_ALPHA = 1e100  # conjugate gradient multiplies it by sums of squares, which must not overflow
_CHUNK_CELLS = 1 << 14  # read at a time, unless these are fewer rows than
_CHUNK_ROWS = 64
_NO_FOLD = -1  # the fold of rows that every context reads


@dataclass(frozen=True)
class Learner:
    """What the model computes at its readout (gdssm.IteratedReadout, gdssm.ConjugateGradientReadout).

    solver      "gd": gradient descent from W = 0 with the rate 1 / (lambda_max(B) + alpha) per summed example;
                "cg": conjugate gradient, which ends at least squares, or at ridge with alpha > 0
    steps       iterations, at most 10^6; None: 100 for gd, 3 D for cg
    forgetting  lambda: an example that is n rows old weighs lambda^n; means and deviations weigh all rows alike
    alpha       ridge strength on the standardised columns, at most 1e100

    ConfigError, a ValueError, for a value out of range.
    """

    solver: str = "gd"
    steps: int | None = None
    forgetting: float = 1.0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, list(SOLVERS))
        if self.steps is not None:
            check_count("steps", self.steps, most=_MOST_STEPS)
        check_number("forgetting", self.forgetting, above=0, most=1)
        check_number("alpha", self.alpha, least=0, most=_MOST_ALPHA)

    def steps_for(self, features: int) -> int:
        """The number of iterations for D features.

        Conjugate gradient ends after D steps in exact arithmetic and later in floating point: D steps leave an error of
        1e-7 deviations on the diabetes table (D = 10, condition 470), 3 D leave rounding there, and 1e-9 for D = 50 and
        condition 1e4. A query that is solved to rounding stands still, so a step too many changes nothing.
        """
        if self.steps is not None:
            return self.steps
        return _GD_STEPS if self.solver == "gd" else 3 * features


@dataclass(frozen=True)
class Scores:
    """R^2 of each fold."""

    folds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the folds."""
        return statistics.fmean(self.folds)

    @property
    def std(self) -> float:
        """Standard deviation over the folds (divided by their number)."""
        return statistics.pstdev(self.folds)


@dataclass(frozen=True)
class CrossValidation:
    """R^2 = 1 - SSE / SST on held-out rows: of the model, and of exact solutions that weigh all rows alike.

    SST is about the held-out rows' own mean, as in scikit-learn's r2_score. rates: each fold's rate of gradient descent
    per summed example; empty for cg.
    """

    model: Scores
    ridge: Scores
    least_squares: Scores
    rows: int
    features: int
    steps: int
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Predictions:
    """values yields (prediction, target or None) for each query in order, computed when asked for; it can be read once."""

    values: Iterator[tuple[float, float | None]]
    queries: int
    rows: int
    features: int
    steps: int
    rate: float | None


def cross_validate(
    csv: Path, target: str, learner: Learner | None = None, *, folds: int = 5, seed: int = 0, progress: Progress | None = None
) -> CrossValidation:
    """k-fold cross-validation on a table, in three passes over the file: check, learn, predict.

    Each fold's model is one entry of a batch and reads the rows outside the fold, standardised by the moments of those
    rows alone. gdssm.table.fold_of_rows says how rows are dealt out; fewer than 2 k rows make rows // 2 folds. Ridge
    (alpha = 1) and least squares (of smallest norm) are solved from A and B too, without forgetting.

    TableError for a table that cannot be used, ConfigError for folds < 2: ValueErrors whose message is one line.
    """
    learner, progress = learner or Learner(), progress or Progress()
    check_count("folds", folds, 2, MOST_FOLDS)
    table = read_table(csv, target, folds=folds, seed=seed, watch=progress.of("checking"))
    _check_rows(learner, table)
    folds = len(table.parts)

    scales = [_Scale.of(table.moments(without=fold)) for fold in range(folds)]
    layers = [_layer(learner, table)]
    if learner.forgetting < 1:
        layers.append(_layer(Learner(), table))  # weighs all rows alike
    chunks = _chunks(table, fold_of_rows(folds, seed), progress.of("learning"))
    states = _read_context(layers, chunks, scales)
    fits = [_fit(learner, table, _entry(states[0], fold), scale) for fold, scale in enumerate(scales)]
    methods = [[fit.predict for fit in fits]]
    for alpha in (RIDGE_ALPHA, 0.0):
        methods.append([_exact(layers[-1], _entry(states[-1], fold), scale, alpha) for fold, scale in enumerate(scales)])

    chunks = _chunks(table, fold_of_rows(folds, seed), progress.of("predicting"))
    model, ridge, least_squares = _held_out_scores(table, chunks, methods)
    steps, rates = learner.steps_for(len(table.features)), tuple(fit.rate for fit in fits if fit.rate is not None)
    return CrossValidation(model, ridge, least_squares, table.rows, len(table.features), steps, rates)


def predict(
    csv: Path, target: str, query: Path, learner: Learner | None = None, *, progress: Progress | None = None
) -> Predictions:
    """The rows of one table as context, those of another as queries; the queries' file may hold the target too.

    Both files are checked and the context is read before this returns; queries are read again as `values` is consumed.
    ValueErrors as for cross_validate.
    """
    learner, progress = learner or Learner(), progress or Progress()
    table = read_table(csv, target, watch=progress.of("checking"))
    _check_rows(learner, table)
    queries = read_queries(query, table, watch=progress.of("checking queries"))

    scale = _Scale.of(table.moments())
    chunks = _chunks(table, itertools.repeat(_NO_FOLD), progress.of("learning"))
    (state,) = _read_context([_layer(learner, table)], chunks, [scale])
    fit = _fit(learner, table, state, scale)
    steps = learner.steps_for(len(table.features))
    return Predictions(_answers(fit.predict, queries), queries.rows, table.rows, len(table.features), steps, fit.rate)


def _check_rows(learner: Learner, table: Table) -> None:
    """TableError where conjugate gradient without ridge has too few rows: N centred rows have rank N - 1."""
    folds, features = len(table.parts), len(table.features)
    rows = table.rows if folds == 1 else table.rows - max(part.count for part in table.parts)
    if learner.solver == "cg" and learner.alpha == 0 and rows <= features:
        where = "a fold learns from" if folds > 1 else "there are"
        raise TableError(
            f"{table.name}: {where} {rows} rows, but {counted(features, 'feature')} need at least {features + 1} "
            "with solver cg; take solver gd, or alpha > 0"
        )


class _Scale(NamedTuple):
    """Means and deviations of a context's columns, (C,) each; inverse is 0 for a constant column, which becomes 0."""

    mean: "Tensor"
    deviation: "Tensor"
    inverse: "Tensor"

    @classmethod
    def of(cls, moments: Moments) -> "_Scale":
        import torch

        mean = torch.tensor(moments.mean, dtype=torch.float64)
        deviation = torch.tensor([moments.deviation(j) for j in range(len(moments.mean))], dtype=torch.float64)
        return cls(mean, deviation, torch.where(deviation > 0, 1 / deviation, 0))

    def features(self, rows: "Tensor") -> "Tensor":
        """Rows (M, >= D) in the file's units -> standardised features (M, D)."""
        d = len(self.mean) - 1
        return (rows[:, :d] - self.mean[:d]) * self.inverse[:d]

    def target(self, values: "Tensor") -> "Tensor":
        """Standardised predictions (M,) -> predictions in the target's units."""
        return self.mean[-1] + self.deviation[-1] * values


Predict = Callable[["Tensor"], "Tensor"]  # rows (M, >= D) in the file's units -> predictions (M,) in the target's


class _Fit(NamedTuple):
    """A model that has read its context; rate is that of gradient descent."""

    predict: Predict
    rate: float | None


def _chunks(table: Table, folds: Iterable[int], watch: Watch | None = None) -> Iterator[tuple["Tensor", "Tensor"]]:
    """The table in pieces: rows (N, C) in float64, or (N, D) without a target, and the fold of each row (N,)."""
    import torch

    rows, ids = table.read(watch), iter(folds)
    size = max(_CHUNK_ROWS, _CHUNK_CELLS // len(table.places))
    while piece := list(itertools.islice(rows, size)):
        yield torch.tensor(piece, dtype=torch.float64), torch.tensor(list(itertools.islice(ids, len(piece))))


def _layer(learner: Learner, table: Table) -> "PairReadout":
    """The constructed layer. Its rates are written once the context is read: reading does not depend on them."""
    import torch

    from . import construct
    from .readouts import PairReadout

    d, forgetting, dtype = len(table.features), learner.forgetting, torch.float64
    steps = learner.steps_for(d)
    if learner.solver == "gd":
        model = construct.polynomial(d, 1, rates=[1.0] * steps, forgetting=forgetting, dtype=dtype)
    else:
        model = construct.ridge(d, 1, alpha=learner.alpha, steps=steps, n_context=table.rows, forgetting=forgetting, dtype=dtype)
    layer = model.layer.requires_grad_(False)
    assert isinstance(layer, PairReadout)
    layer.alpha.fill_(learner.alpha)
    return layer


def _read_context(
    layers: Sequence["PairReadout"], chunks: Iterable[tuple["Tensor", "Tensor"]], scales: Sequence[_Scale]
) -> list["ScanState"]:
    """Read every chunk into one state per layer, whose batch entry f skips the rows of fold f and standardises by scale f."""
    import torch

    from .tokens import interleave

    mean, inverse = torch.stack([scale.mean for scale in scales]), torch.stack([scale.inverse for scale in scales])  # (F, C)
    contexts = torch.arange(len(scales))
    states = [layer.init_state(len(scales), mean.shape[1] - 1) for layer in layers]
    for rows, ids in chunks:
        skipped = ids == contexts[:, None]  # (F, N)
        read_first = skipped.int().argsort(dim=1, stable=True)
        z = (rows - mean[:, None]) * inverse[:, None]  # (F, N, C)
        z = torch.take_along_dim(z, read_first[:, :, None], dim=1)
        tokens, lengths = interleave(z[:, :, :-1], z[:, :, -1:]), 2 * (~skipped).sum(1)  # (F, 2N, D), (F,)
        states = [layer.absorb(tokens, state, lengths) for layer, state in zip(layers, states, strict=True)]
    return states


def _entry(state: "ScanState", context: int) -> "ScanState":
    """The state of one context of the batch."""
    part = slice(context, context + 1)
    return state._replace(z=state.z[part], tail=state.tail[part], seen=state.seen[part])


def _sums(layer: "PairReadout", state: "ScanState") -> tuple["Tensor", "Tensor"]:
    """A (D,) and B (D, D) of one context.

    The last row's window is still open: it ends with the query. A zero token closes it and adds nothing else.
    """
    d = state.z.shape[-1]
    z = layer.absorb(state.tail.new_zeros(1, 1, d), state).z[0]  # (2, D, D)
    return z[0, :, 0], z[1]


def _fit(learner: Learner, table: Table, state: "ScanState", scale: _Scale) -> _Fit:
    """The model that answers queries from one context's state."""
    import torch

    from .readouts import IteratedReadout

    layer, rate = _layer(learner, table), None
    _, b = _sums(layer, state)
    if isinstance(layer, IteratedReadout):
        largest = float(torch.linalg.eigvalsh(b)[-1]) + learner.alpha
        rate = 1 / largest if largest > 0 else 0.0  # 0: no feature varies outside the fold
        layer.rates.fill_(rate)
    else:
        _check_determined(learner, table, b, scale)
    return _Fit(lambda rows: scale.target(layer.answer(state, scale.features(rows)[None])[0, :, 0]), rate)


def _check_determined(learner: Learner, table: Table, b: "Tensor", scale: _Scale) -> None:
    """TableError where B + alpha I is singular up to rounding, for columns that depend on each other linearly.

    Conjugate gradient would amplify that rounding, and end in NaN where alpha is small enough.
    """
    import torch

    varying = scale.inverse[:-1].nonzero()[:, 0]
    values, vectors = torch.linalg.eigh(b[varying][:, varying])
    if len(values) and values[0] + learner.alpha <= _rank_tolerance(len(values)) * (values[-1] + learner.alpha):
        weight = vectors[:, 0].abs()
        involved = varying[weight > 0.1 * weight.max()].tolist()
        names = ", ".join(repr(table.features[j]) for j in involved[:4]) + ", .." * (len(involved) > 4)
        weighed = f" once rows weigh {learner.forgetting:g}^age" if learner.forgetting < 1 else ""
        more = "a larger alpha" if learner.alpha > 0 else "alpha > 0"
        raise TableError(f"{table.name}: columns {names} are linearly dependent{weighed}; take solver gd, or {more}")


def _rank_tolerance(size: int) -> float:
    """Eigenvalues of B below this share of the largest are rounding."""
    return 10 * size * sys.float_info.epsilon


def _exact(layer: "PairReadout", state: "ScanState", scale: _Scale, alpha: float) -> Predict:
    """Ridge, or least squares of smallest norm where alpha = 0, solved from the sums of one context."""
    import torch

    a, b = _sums(layer, state)
    if alpha > 0:
        w = torch.linalg.solve(b + alpha * torch.eye(len(a), dtype=a.dtype), a)
    else:
        w = torch.linalg.pinv(b, rtol=_rank_tolerance(len(a)), hermitian=True) @ a
    return lambda rows: scale.target(scale.features(rows) @ w)


def _held_out_scores(
    table: Table, chunks: Iterable[tuple["Tensor", "Tensor"]], methods: Sequence[Sequence[Predict]]
) -> list[Scores]:
    """R^2 of each method, whose f-th function predicts the rows of fold f."""
    errors = [[0.0] * len(of_folds) for of_folds in methods]
    for rows, ids in chunks:
        for fold in range(len(table.parts)):
            held = rows[ids == fold]
            for of_fold, of_method in zip(errors, methods, strict=True):
                of_fold[fold] += float((of_method[fold](held) - held[:, -1]).square().sum())
    if not all(map(math.isfinite, itertools.chain(*errors))):
        raise TableError(f"{table.name}: R^2 is not finite: a fold holds values too far from those outside it")
    return [Scores(tuple(1 - e / part.squares[-1] for e, part in zip(each, table.parts, strict=True))) for each in errors]


def _answers(predict_rows: Predict, queries: Table) -> Iterator[tuple[float, float | None]]:
    """(prediction, target or None) of every query."""
    for rows, _ in _chunks(queries, itertools.repeat(_NO_FOLD)):
        truths: Sequence[float | None] = [None] * len(rows) if queries.target is None else rows[:, -1].tolist()
        yield from zip(predict_rows(rows).tolist(), truths, strict=True)
