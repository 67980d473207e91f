"""Which explicit learner a predictor runs in its context: `identify`. docs/identify.md explains the answer.

Numbers are fitted on one half of the tasks and every distance is measured on the other. Axes: n tasks, M queries,
C learners, R bootstrap samples.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..config import UserError, check_count, check_number, one_line, shown
from ..tasks import Context, LinearRegression, Predictor
from ..tasks.linear import generator
from . import families
from .families import Learner
from .metrics import sensitivity
from .results import NAMES, Identification, Match, Spread
from .spectrum import Spectrum

FEWEST_TASKS, MOST_STEPS = 20, 50
EXACT = 1e-5  # distances below count as this one: rounding in float32
MARGIN = 0.01  # a learner must come nearer by this much, in quadrature, for each free number that it has in addition, ..
FACTOR = 2.0  # .. or this many times nearer
SAME = 1e-3  # learners whose fitted predictions are closer than this are one class
ZERO = 1e-6  # predictions below this share of the targets are 0
BOOTSTRAP = 400
_CHECKED = 16  # tasks of the checks
_DIFFERENTIATED = 64  # tasks whose implicit weights are compared


class IdentificationError(UserError):
    """A predictor or tasks that cannot be used; one line that says why."""


@overload
def identify(
    predictor: Predictor,
    task: LinearRegression | Context,
    *,
    tasks: int = 400,
    seed: int = 0,
    max_steps: int = 10,
    share: float = 0.9,
    alpha: float | None = None,
) -> Identification: ...


@overload
def identify(
    predictor: Sequence[Predictor],
    task: LinearRegression | Context,
    *,
    tasks: int = 400,
    seed: int = 0,
    max_steps: int = 10,
    share: float = 0.9,
    alpha: float | None = None,
) -> Spread: ...


def identify(
    predictor: Predictor | Sequence[Predictor],
    task: LinearRegression | Context,
    *,
    tasks: int = 400,
    seed: int = 0,
    max_steps: int = 10,
    share: float = 0.9,
    alpha: float | None = None,
) -> Identification | Spread:
    """The explicit learner that a predictor is nearest to, or none; for several predictors the spread of the answers.

        distance^2 = sum_t w_t |p_t - g_t|^2 / sum_t w_t |p_t|^2,    w_t = 1 / (|p_t|^2 + median_s |p_s|^2)

    with p_t, g_t the predictions of predictor and learner for one task. The best is the learner with the fewest free
    numbers that no other clearly beats: one beats it clearly where distance^2 falls by 0.0001 or more for each number that
    it has in addition (by 0.0001 where it has none), or to a quarter or less, and the 95 % bootstrap interval of the fall
    lies above 0.

    predictor  Context -> (B, M, d_y); or a list of them, one for each seed
    task       what to draw tasks from; or tasks at hand, whose first half is fitted on and whose second half scores
    tasks      how many to draw, half of them to fit on
    seed       of the tasks and of the bootstrap
    max_steps  largest number of steps or iterations to try, at most 50
    share      of the mean square of the predictions that the best must explain
    alpha      noise variance / weight variance for the Bayes-optimal learner; that of the LinearRegression where None

    Tasks are given in float64, and in float32 to a predictor that fails on those. IdentificationError for a predictor that
    fails, gives another shape or values that are not finite, gives other values when it is asked again, or answers a
    query differently beside others; and for fewer than 20 tasks. ConfigError for options out of range.
    """
    check_count("seed", seed, 0)
    check_count("max_steps", max_steps, most=MOST_STEPS)
    check_number("share", share, least=0, most=1)
    if alpha is not None:
        check_number("alpha", alpha, least=0)
    halves, alpha = _halves(task, tasks, seed, alpha)
    known = families.Known(max_steps, alpha)
    if not isinstance(predictor, Sequence):
        return _identify(predictor, halves, known, share, seed)
    if not predictor:
        raise IdentificationError("predictor is an empty list; at least one is needed")
    return Spread(tuple(_identify(one, halves, known, share, seed) for one in predictor))


def identify_layers(
    predictors: Sequence[Predictor], task: LinearRegression | Context, family: str, **options: Any
) -> tuple[Match | None, ...]:
    """The nearest learner of one family for the readout after each layer, first to last: its steps count a layer's work.

    family   a key of gdssm.analysis.results.NAMES, such as "gradient_descent" or "newton"
    options  as of identify, where the errors are too; IdentificationError for an unknown family
    """
    if family not in NAMES:
        raise IdentificationError(f"family is {shown(family)}; allowed: {', '.join(NAMES)}")
    return tuple(one.closest(family) for one in identify(predictors, task, **options).each)


Halves = tuple[Context, Context]


def _halves(task: LinearRegression | Context, tasks: int, seed: int, alpha: float | None) -> tuple[Halves, float | None]:
    """Tasks to fit on and to score, in float64, and alpha where it is known."""
    if isinstance(task, LinearRegression):
        check_count("tasks", tasks, FEWEST_TASKS)
        if alpha is None and task.noise_std > 0 and task.weight_scale > 0:
            alpha = (task.noise_std / task.weight_scale) ** 2
        task = dataclasses.replace(task, n_queries=min(max(task.d_x, 8), 32))
        fitted = task.sample(tasks // 2, seed=seed, step=0, dtype=torch.float64)
        return (fitted, task.sample(tasks - tasks // 2, seed=seed, step=1, dtype=torch.float64)), alpha
    if not isinstance(task, Context):
        raise IdentificationError(f"task must be a LinearRegression or a Context, got {shown(task)}")
    if len(task) < FEWEST_TASKS:
        raise IdentificationError(f"task has {len(task)} tasks; at least {FEWEST_TASKS} are needed, half to fit on, half to score")
    half = len(task) // 2
    parts = (_part(task, slice(None, half), torch.float64), _part(task, slice(half, None), torch.float64))
    if not all(bool(torch.isfinite(v).all()) for part in parts for v in (part.x, part.y, part.x_query)):
        raise IdentificationError("task has values that are not finite")
    if not all(bool(part.x.any()) for part in parts):
        raise IdentificationError("task has inputs that are all 0")
    return parts, alpha


def _part(context: Context, which: slice, dtype: torch.dtype) -> Context:
    """Some tasks, without targets of the queries: no predictor may see those."""
    return Context(*(tensor[which].detach().to(dtype) for tensor in (context.x, context.y, context.x_query)))


def _identify(predictor: Predictor, halves: Halves, known: families.Known, share: float, seed: int) -> Identification:
    if not callable(predictor):
        raise IdentificationError(f"predictor must be a function of a Context, got {shown(predictor)}")
    dtype = _dtype(predictor, halves[0])
    _check(predictor, _part(halves[0], slice(_CHECKED), dtype))
    targets = [_ask(predictor, _part(half, slice(None), dtype)) for half in halves]
    tasks = (len(halves[0]), len(halves[1]))
    size = _rms(targets[1]) / max(_rms(halves[1].y), torch.finfo(torch.float64).tiny)
    if max(_rms(target) for target in targets) <= ZERO * _rms(halves[1].y):
        nothing = Match("zero", None, {}, 0, size, (0.0, size), None)
        return Identification(nothing, (), (), (nothing,), share, tasks)
    fitted, scored = (Spectrum.of(half, target) for half, target in zip(halves, targets, strict=True))
    learners = families.fit(fitted, known)
    return _judged(learners, scored, _implicit_weights(predictor, halves[1], dtype), share, seed, tasks)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _dtype(predictor: Predictor, context: Context) -> torch.dtype:
    """float64 where the predictor takes it, else float32."""
    for dtype in (torch.float64, torch.float32):
        try:
            _ask(predictor, _part(context, slice(2), dtype))
        except IdentificationError as error:
            if dtype == torch.float32 or error.__cause__ is None:
                raise
        else:
            return dtype
    raise AssertionError


def _ask(predictor: Predictor, context: Context) -> Tensor:
    """Predictions in float64; IdentificationError where they cannot be used."""
    try:
        with torch.no_grad():
            found = predictor(context)
    except Exception as error:
        reason = one_line(str(error))[:300]
        raise IdentificationError(f"predictor failed with {type(error).__name__}: {reason}") from error
    wanted = (*context.x_query.shape[:2], context.y.shape[2])
    if not isinstance(found, Tensor):
        raise IdentificationError(f"predictor gave a value of type {type(found).__name__}; a tensor of shape {wanted} is needed")
    if found.shape != wanted:
        raise IdentificationError(f"predictor gave shape {tuple(found.shape)}; (B, M, d_y) = {wanted} is needed")
    if not bool(torch.isfinite(found).all()):
        raise IdentificationError("predictor gave values that are not finite")
    return found.detach().to("cpu", torch.float64)


def _check(predictor: Predictor, context: Context) -> None:
    """IdentificationError where the same question has two answers, or an answer depends on the other queries."""
    first, again = _ask(predictor, context), _ask(predictor, context)
    allowed = 1e-4 * _rms(first) + 1e-12
    if _rms(first - again) > allowed:
        raise IdentificationError("predictor gave other values when asked again; turn dropout and sampling off: module.eval()")
    turned = _ask(predictor, dataclasses.replace(context, x_query=context.x_query.flip(1))).flip(1)
    if _rms(first - turned) > 100 * allowed:
        raise IdentificationError("predictor answers a query differently where the queries stand in another order")


def _implicit_weights(predictor: Predictor, context: Context, dtype: torch.dtype) -> Tensor | None:
    """(n, d_y, d_x) of the first query of some tasks; None where the predictor cannot be differentiated, or it is 0."""
    few = _part(context, slice(_DIFFERENTIATED), dtype)
    few = dataclasses.replace(few, x_query=few.x_query[:, :1])
    try:
        found = sensitivity(predictor, few)[1][:, 0].detach().to("cpu", torch.float64)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # e.g. one that goes through numpy
        return None
    return found if bool(torch.isfinite(found).all()) and bool(found.any()) else None


def _judged(
    learners: list[Learner], scored: Spectrum, weights: Tensor | None, share: float, seed: int, tasks: tuple[int, int]
) -> Identification:
    """The answer, from the learners' predictions for tasks that they were not fitted on."""
    predictions = [learner.predict(scored) for learner in learners]
    keep = [i for i, prediction in enumerate(predictions) if bool(torch.isfinite(prediction).all())]
    learners, predictions = [learners[i] for i in keep], [predictions[i] for i in keep]
    per_task = torch.stack([(prediction - scored.target).square().sum((1, 2)) for prediction in predictions]) * scored.weight
    size = scored.target.square().sum((1, 2)) * scored.weight
    counts = _resamples(len(size), seed)
    squares = per_task.sum(1) / size.sum()  # (C,) distance^2
    sampled = counts @ per_task.T / (counts @ size)[:, None]  # (R, C)
    bounds = sampled.sqrt().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), 0)
    matches = []
    for i, learner in enumerate(learners):
        low, high = (float(b) for b in bounds[:, i])
        distance = float(squares[i].sqrt())
        interval = (min(low, distance), max(high, distance))
        off = None if weights is None else _weights_distance(learner, scored, weights)
        matches.append(Match(learner.family, learner.steps, learner.numbers, learner.free, distance, interval, off))
    squares, sampled = squares.clamp(min=EXACT**2), sampled.clamp(min=EXACT**2)
    order = sorted(range(len(matches)), key=lambda i: _rank(matches[i]))
    table = tuple(matches[i] for i in order)
    if 1 - float(squares.min()) < share:
        return Identification(None, (), (), table, share, tasks)
    free = [match.free for match in matches]
    unbeaten = [i for i in order if not any(_beats(j, i, squares, sampled, free) for j in order)]
    best = min(unbeaten, key=lambda i: (matches[i].free, _rank(matches[i])))
    apart = _apart(predictions, best, scored)
    names = [
        i
        for i in unbeaten
        if matches[i].free == matches[best].free and apart[i] <= SAME and not _beats(best, i, squares, sampled, free)
    ]
    best = min(names, key=lambda i: _rank(matches[i])[1:])  # names of one learner, as these tasks have it
    others = [i for i in order if i != best]
    apart = _apart(predictions, best, scored)
    same = tuple(matches[i] for i in others if apart[i] <= SAME)
    ties = tuple(matches[i] for i in others if apart[i] > SAME and not _beats(best, i, squares, sampled, free))
    return Identification(matches[best], same, ties, table, share, tasks)


def _rank(match: Match) -> tuple[float, int, int, int]:
    """Nearest first; among those at rounding's distance the one with the fewest numbers, the family's order, the fewest steps."""
    return max(match.distance, EXACT), match.free, list(NAMES).index(match.family), match.steps or 0


def _beats(i: int, j: int, squares: Tensor, sampled: Tensor, free: Sequence[int]) -> bool:
    """Whether learner i is clearly nearer than j: by the margin for each further number or the factor, and beyond chance."""
    fall = float(squares[j] - squares[i])
    matters = fall > MARGIN**2 * max(1, free[i] - free[j]) or float(squares[i]) * FACTOR**2 < float(squares[j])
    return matters and float((sampled[:, j] - sampled[:, i]).quantile(0.025)) > 0


def _resamples(n: int, seed: int) -> Tensor:
    """(R, n) how often each task is drawn, with replacement."""
    drawn = torch.randint(n, (BOOTSTRAP, n), generator=generator(seed, 2))  # tasks are steps 0 and 1
    return torch.zeros(BOOTSTRAP, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(BOOTSTRAP, n, dtype=torch.float64))


def _apart(predictions: Sequence[Tensor], best: int, scored: Spectrum) -> list[float]:
    """Distance of every learner from one of them, in the units of `distance`."""
    squares = [(scored.weight * (prediction - predictions[best]).square().sum((1, 2))).sum() for prediction in predictions]
    return [float((square / scored.total).sqrt()) for square in squares]


def _weights_distance(learner: Learner, scored: Spectrum, weights: Tensor) -> float:
    """Relative distance of the implicit weights, tasks weighed as in `distance`."""
    n = len(weights)
    if learner.implicit_weights is not None:
        own = learner.implicit_weights(scored)[:n]
    else:
        own = _differentiated(learner.predict, scored, n)
    w = scored.weight[:n, None, None]
    return float(((w * (own - weights).square()).sum() / (w * weights.square()).sum()).sqrt())


def _differentiated(predict: Callable[[Spectrum], Tensor], scored: Spectrum, n: int) -> Tensor:
    """(n, d_y, d_x), the derivative of a learner's answers to the first query: a copy of the query for each output."""
    context = _part(scored.context, slice(n), torch.float64)
    d_y = context.y.shape[2]
    copies = context.x_query[:, :1].expand(-1, d_y, -1).clone().requires_grad_()
    with torch.enable_grad():
        answers = predict(Spectrum.of(dataclasses.replace(context, x_query=copies), scored.target[:n]))
        (found,) = torch.autograd.grad(answers.diagonal(dim1=1, dim2=2).sum(), copies)
    return found
