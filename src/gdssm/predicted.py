"""What `gdssm predict` does: predictions as CSV, or the cross-validated scores as a table."""

import csv as csv_format
import sys
from pathlib import Path

from .config import check_count, counted
from .predict import MOST_FOLDS, RIDGE_ALPHA, SOLVERS, CrossValidation, Learner, Predictions, cross_validate, predict
from .progress import Progress
from .table import Moments


def run(
    csv: Path,
    target: str,
    *,
    query: Path | None = None,
    steps: int | None = None,
    solver: str = "gd",
    forgetting: float = 1.0,
    alpha: float = 0.0,
    folds: int = 5,
) -> None:
    """Print predictions for a query file as CSV, or without one the cross-validated R^2 of model, ridge and least squares.

    Predictions go to stdout, their summary to stderr. Nothing is printed before both files and all options are checked;
    ValueErrors as for cross_validate and Learner.
    """
    learner, progress = Learner(solver, steps, forgetting, alpha), Progress()
    check_count("folds", folds, 2, MOST_FOLDS)
    try:
        if query is None:
            scores = cross_validate(csv, target, learner, folds=folds, progress=progress)
            progress.clear()
            _print_scores(scores, learner)
        else:
            predictions = predict(csv, target, query, learner, progress=progress)
            progress.clear()
            _print_predictions(predictions, target, learner)
    finally:
        progress.clear()


def _print_scores(result: CrossValidation, learner: Learner) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    grid = Grid("method", box=box.SIMPLE)
    for heading in ("R^2", "std over folds"):
        grid.add_column(heading, justify="right")
    ridge = f"ridge, alpha = {RIDGE_ALPHA:g}"
    methods = ((_described(learner), result.model), (ridge, result.ridge), ("least squares", result.least_squares))
    for method, scores in methods:
        grid.add_row(method, f"{scores.mean:.4f}", f"{scores.std:.4f}")
    console = Console(highlight=False, soft_wrap=True)
    console.print(grid)
    rate = f", rate {min(result.rates):.3g} to {max(result.rates):.3g} per example" if result.rates else ""
    size = f"{result.rows} rows, {counted(result.features, 'feature')}, {len(result.model.folds)} folds"
    console.print(f"{size}; {learner.solver}, {counted(result.steps, 'step')}{rate}")


def _print_predictions(predictions: Predictions, target: str, learner: Learner) -> None:
    writer = csv_format.writer(sys.stdout, lineterminator="\n")
    writer.writerow([target])
    actual, error = Moments(1), 0.0
    for value, truth in predictions.values:
        writer.writerow([repr(value)])
        if truth is not None:
            actual.add([truth])
            error += (value - truth) ** 2
    sys.stdout.flush()  # the summary comes last where both go to one place
    rate = "" if predictions.rate is None else f", rate {predictions.rate:.3g} per example"
    score = f", R^2 {1 - error / actual.squares[0]:.4f}" if actual.count and actual.squares[0] > 0 else ""
    size = f"{predictions.rows} rows, {counted(predictions.features, 'feature')}"
    how = f"{_described(learner)}, {counted(predictions.steps, 'step')}{rate}"
    print(f"{size}; {how}; {counted(predictions.queries, 'prediction')}{score}", file=sys.stderr)


def _described(learner: Learner) -> str:
    """The model's learner as a method beside others."""
    forgetting = f", forgetting {learner.forgetting:g}" if learner.forgetting < 1 else ""
    return SOLVERS[learner.solver] + forgetting + (f", alpha = {learner.alpha:g}" if learner.alpha > 0 else "")
