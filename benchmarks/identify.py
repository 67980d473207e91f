"""How often `gdssm.analysis.identify` names the learner that a predictor is.

    python benchmarks/identify.py [drawn] [closer] [scrambled] [shipped] [--seed S] [--jobs J] [--count N]

drawn       models drawn over family, k, rates, alpha, d and N, until there are 60 whose nearest rival is 1 % or more away in
            prediction, and 20 with a rival closer than that. Of the former: right answers, errors of the numbers, then the
            same with 1, 5 and 10 % of noise on the predictions. Of the latter, without noise and with 5 %: how often the
            true learner is the answer, or among those listed beside it
closer      more of those with a rival closer than 1 %, N of them, without noise: how often the true learner is listed, with the
            95 % Wilson interval, and how many are listed on average
scrambled   20 predictors that run none of the families
shipped     the trained models that come with the package

Noise is a function of the input, so that the predictor stays deterministic; its size is relative to the typical prediction,
the root of the median over tasks of the mean square. A rival is a learner of another family or k that does not contain the
true one. All parts take about 30 minutes of CPU time.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gdssm
from gdssm import Context, LinearRegression, Predictor, as_predictor, construct, learners
from gdssm.analysis import Identification, Match, identify, wilson_interval

FAMILIES = (
    "gradient_descent",
    "momentum",
    "polynomial",
    "preconditioned",
    "ridge",
    "bayes",
    "least_squares",
    "newton",
    "conjugate_gradient",
    "ridge_conjugate_gradient",
    "nearest_neighbours",
    "mean",
    "zero",
)
NEVER_CLOSE = ("nearest_neighbours", "mean", "zero")  # their predictions are 10 % and more from those of all others
NOISE = (0.01, 0.05, 0.1)
DOUBLE = torch.float64
RIVAL, FAR, NEAR, MOST = 0.01, 60, 20, 400  # distance that parts the draws, how many of each, draws at most
CLOSER = 100  # models of the part closer


@dataclass(frozen=True)
class Model:
    """A predictor and the truth about it."""

    family: str
    steps: int | None
    numbers: dict[str, Any]
    task: LinearRegression
    predictor: Predictor
    built: bool

    def __str__(self) -> str:
        t = self.task
        kind = "constructed" if self.built else "explicit"
        return f"{self.family} k={self.steps} d={t.d_x} d_y={t.d_y} N={t.n_examples} noise={t.noise_std:.2g} {kind}"

    def names(self) -> set[tuple[str, int | None]]:
        """The answers that are right: the family with its k, and other names of the same learner."""
        d, n, alpha = self.task.d_x, self.task.n_examples, self.numbers.get("alpha")
        right = {(self.family, self.steps)}
        if self.family == "conjugate_gradient" and self.steps is not None and self.steps >= d:
            right.add(("least_squares", None))
        if self.family == "ridge_conjugate_gradient" and self.steps is not None and self.steps >= min(n + 1, d):
            right.add(("ridge", None))
        known = (self.task.noise_std / self.task.weight_scale) ** 2
        if ("ridge", None) in right and alpha is not None and abs(alpha / max(known, 1e-300) - 1) < 1e-9:
            right.add(("bayes", None))
        if self.steps == 2 and self.family == "momentum":  # any two steps with momentum are two steps with a rate each
            right.add(("polynomial", 2))
        if (
            self.steps == 2
            and self.family == "polynomial"
            and sum(self.numbers["rates"]) < 3 * np.prod(self.numbers["rates"]) ** 0.5
        ):
            right.add(("momentum", 2))  # and the other way round, for a momentum below 1
        if self.family == "nearest_neighbours" and self.steps == n:
            right.add(("mean", None))
        return right

    def is_in(self, match: Match) -> bool:
        """Whether the learner of a match can be this one, whatever its numbers."""
        if (match.family, match.steps) in self.names():
            return True
        k, there = self.steps or 0, match.steps or 0
        chains = {
            "gradient_descent": ("gradient_descent", "momentum", "polynomial"),
            "momentum": ("momentum", "polynomial"),
            "polynomial": ("polynomial",),
        }
        if self.family in chains and match.family in chains[self.family]:
            return there >= k if match.family == "polynomial" else there == k
        d = self.task.d_x
        full = there >= min(self.task.n_examples + 1, d)
        wide = {
            "least_squares": match.family == "ridge" or (match.family.endswith("conjugate_gradient") and full),
            "bayes": match.family == "ridge" or (match.family == "ridge_conjugate_gradient" and full),
            "ridge": match.family == "bayes" or (match.family == "ridge_conjugate_gradient" and full),
            "ridge_conjugate_gradient": match.family == self.family
            and (self.steps or 0) >= min(self.task.n_examples + 1, d)
            and full,
            "conjugate_gradient": match.family == "ridge_conjugate_gradient" and there == k,
        }
        return wide.get(self.family, False) or (self.family == "gradient_descent" and k == 1 and match.family == "preconditioned")


def draw(rng: np.random.Generator, families: Sequence[str] = FAMILIES) -> Model:
    """A model of a family drawn uniformly; every second one that can be is a construction with written weights."""
    family, built = str(rng.choice(families)), bool(rng.integers(2))
    d, n = int(rng.integers(2, 21)), int(rng.integers(5, 51))
    d_y = d if rng.integers(2) else int(rng.integers(1, d + 1))
    noisy = family == "bayes" or bool(rng.integers(2))
    noise = float(rng.uniform(0.05, 0.5)) * (d / 12) ** 0.5 if noisy else 0.0
    task = LinearRegression(d, d_y, n, noise_std=noise)
    x = task.sample(200, seed=int(rng.integers(10**6)), dtype=DOUBLE).x
    values = torch.linalg.eigvalsh(x.mT @ x)
    top, typical = float(values[:, -1].mean()), float(values.mean())
    return _model(rng, family, built, task, top, typical)


def _model(rng: np.random.Generator, family: str, built: bool, task: LinearRegression, top: float, typical: float) -> Model:
    d, d_y, n = task.d_x, task.d_y, task.n_examples
    k = int(rng.integers(1, 11))
    lr, alpha = float(rng.uniform(0.2, 1.8)) * n / top, float(10 ** rng.uniform(-2, 0.5)) * typical
    if family in ("gradient_descent", "momentum"):
        k, numbers = (
            (k, {"lr": lr}) if family == "gradient_descent" else (max(k, 2), {"lr": lr, "momentum": float(rng.uniform(0.1, 0.9))})
        )
        beta = numbers.get("momentum", 0.0)
        module = construct.gradient_descent(d, d_y, n_context=n, steps=k, dtype=DOUBLE, lr=lr, momentum=beta)
        explicit = learners.predictor(learners.gradient_descent, steps=k, **numbers)
        return Model(family, k, numbers, task, as_predictor(module) if built else explicit, built)
    if family == "polynomial":
        k = max(k, 2)
        rates = sorted(float(c) for c in rng.uniform(0.2, 1.8, k) / top)
        module = construct.polynomial(d, d_y, rates=rates, dtype=DOUBLE)
        explicit = learners.predictor(learners.polynomial, rates=rates)
        return Model(family, k, {"rates": rates}, task, as_predictor(module) if built else explicit, built)
    if family == "preconditioned":
        p = torch.as_tensor(lr / n * (np.eye(d) + rng.normal(size=(d, d)) / d**0.5))
        return Model(family, 1, {"matrix": (n * p).tolist()}, task, lambda c: c.x_query @ (c.y.mT @ c.x @ p).mT, False)
    if family in ("ridge", "bayes"):
        alpha = (task.noise_std / task.weight_scale) ** 2 if family == "bayes" else alpha
        return Model(family, None, {"alpha": alpha}, task, learners.predictor(learners.ridge, alpha=alpha), False)
    if family == "newton":
        explicit = learners.predictor(learners.newton, steps=k)
        predictor = as_predictor(construct.newton(d, d_y, steps=k, dtype=DOUBLE)) if built else explicit
        return Model(family, k, {}, task, predictor, built)
    if family == "conjugate_gradient":
        task = replace(task, n_examples=max(n, d))  # otherwise there may be no solution
        return Model(family, k, {}, task, learners.predictor(learners.conjugate_gradient, alpha=0.0, steps=k), False)
    if family == "ridge_conjugate_gradient":
        explicit = learners.predictor(learners.conjugate_gradient, alpha=alpha, steps=k)
        predictor = as_predictor(construct.ridge(d, d_y, alpha=alpha, steps=k, dtype=DOUBLE)) if built else explicit
        return Model(family, k, {"alpha": alpha}, task, predictor, built)
    if family == "nearest_neighbours":
        k = int(rng.integers(1, n))
        return Model(family, k, {}, task, lambda c: _neighbours(c, k), False)
    simple: dict[str, Predictor] = {
        "least_squares": learners.predictor(learners.least_squares),
        "mean": lambda c: c.y.mean(1, keepdim=True).expand(-1, c.x_query.shape[1], -1),
        "zero": lambda c: c.y.new_zeros(len(c), c.x_query.shape[1], c.y.shape[2]),
    }
    return Model(family, None, {}, task, simple[family], False)


def _neighbours(c: Context, k: int) -> Tensor:
    """Query by query, from distances written out."""
    rows = []
    for j in range(c.x_query.shape[1]):
        distances = (c.x - c.x_query[:, j : j + 1]).square().sum(2)
        index = distances.topk(k, dim=1, largest=False).indices
        rows.append(torch.stack([c.y[b, index[b]].mean(0) for b in range(len(c))]))
    return torch.stack(rows, 1)


def noisy(model: Model, level: float) -> Predictor:
    """The model with noise on its predictions that is a function of the examples and the query."""
    context = replace(model.task, n_queries=8).sample(200, seed=999, dtype=DOUBLE)
    with torch.no_grad():
        scale = level * float(model.predictor(context).square().mean((1, 2)).median()) ** 0.5
    g = torch.Generator().manual_seed(0)
    mix_q, mix_y = (torch.randn(size, model.task.d_y, generator=g, dtype=DOUBLE) for size in (model.task.d_x, model.task.d_y))

    def predict(c: Context) -> Tensor:
        angle = 1e4 * (c.x_query @ mix_q + (c.y.sum(1, keepdim=True) + c.y[:, :1] ** 2) @ mix_y)
        return model.predictor(c) + scale * 2**0.5 * angle.sin()

    return predict


def rival_distance(model: Model, found: Identification) -> float:
    """Distance of the nearest learner that does not contain the true one."""
    return min((match.distance for match in found.table if not model.is_in(match)), default=1.0)


def number_error(model: Model, match: Match) -> float:
    """The largest relative error of a fitted number; of a matrix in the Frobenius norm."""
    worst = 0.0
    for name, value in model.numbers.items():
        if name in match.numbers and np.shape(match.numbers[name]) == np.shape(value):
            found, wanted = np.asarray(match.numbers[name]), np.asarray(value)
            errors = (
                np.linalg.norm(found - wanted) / np.linalg.norm(wanted) if name == "matrix" else np.abs(found / wanted - 1).max()
            )
            worst = max(worst, float(errors))
    return worst


def is_right(model: Model, found: Identification) -> bool:
    return found.best is not None and (found.best.family, found.best.steps) in model.names()


def is_listed(model: Model, found: Identification) -> bool:
    """Whether the true learner is the answer or stands beside it."""
    matches = () if found.best is None else (found.best, *found.same, *found.ties)
    return any((match.family, match.steps) in model.names() for match in matches)


@dataclass(frozen=True)
class Outcome:
    """What came of one draw: for each level of noise whether the answer was right, the true one listed, how many listed."""

    label: str
    family: str
    rival: float
    number_error: float
    right: dict[float, bool]
    listed: dict[float, bool]
    count: dict[float, int]
    answer: dict[float, str]


def outcome(seed: int, index: int, noise: bool) -> Outcome:
    """Draw number `index`, which depends on nothing but the two numbers; with noise for the far ones only where asked for."""
    torch.set_num_threads(1)
    rng = np.random.default_rng([seed, index])
    model = draw(rng)
    tasks = int(rng.integers(10**6))
    clean = identify(model.predictor, model.task, seed=tasks)
    away = rival_distance(model, clean)
    found = {0.0: clean}
    levels = (0.05,) if away < RIVAL else NOISE if noise else ()
    for level in () if model.family == "zero" else levels:
        found[level] = identify(noisy(model, level), model.task, seed=tasks + 1)
    return Outcome(
        str(model),
        model.family,
        away,
        number_error(model, clean.best) if clean.best is not None and is_right(model, clean) else 0.0,
        {level: is_right(model, one) for level, one in found.items()},
        {level: is_listed(model, one) for level, one in found.items()},
        {level: 0 if one.best is None else 1 + len(one.ties) for level, one in found.items()},
        {level: str(one) for level, one in found.items()},
    )


def drawn(options: argparse.Namespace) -> None:
    far: list[Outcome] = []
    near: list[Outcome] = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for start in range(0, MOST, 2 * options.jobs):
            pending = [pool.submit(outcome, options.seed, i, len(far) < FAR) for i in range(start, start + 2 * options.jobs)]
            for one in (future.result() for future in pending):
                (far if one.rival >= RIVAL else near).append(one)
                for level, right in one.right.items():
                    if not right:
                        where = f"at {level:.0%} noise{'' if one.listed[level] else ', NOT LISTED'}"
                        print(f"  not the best {where}: {one.label}, rival at {one.rival:.3g}: {one.answer[level]}", flush=True)
            if len(far) >= FAR and len(near) >= NEAR:
                break
    print(f"drawn: {len(far) + len(near)}, of which {len(far)} far")
    summary("far", far[:FAR], (0.0, *NOISE))
    summary("near", near[:NEAR], (0.0, 0.05))


def summary(name: str, outcomes: list[Outcome], levels: tuple[float, ...]) -> None:
    print(f"{name}: {dict(Counter(one.family for one in outcomes).most_common())}")
    print(f"{name}: largest relative error of a fitted number, without noise {max(one.number_error for one in outcomes):.2g}")
    for level in levels:
        tried = [one for one in outcomes if level in one.right]
        right, listed = sum(one.right[level] for one in tried), sum(one.listed[level] for one in tried)
        count = sum(one.count[level] for one in tried) / len(tried)
        print(f"{name}, {level:.0%} noise: right {right} of {len(tried)}, true one listed {listed}, {count:.1f} listed on average")


def closer_outcome(seed: int, index: int) -> Outcome:
    """Draw number `index` of those that can have a close rival.

    Without implicit weights, which take no part in the decision.
    """
    torch.set_num_threads(1)
    rng = np.random.default_rng([seed, 3, index])
    model = draw(rng, [family for family in FAMILIES if family not in NEVER_CLOSE])
    found = identify(lambda c: model.predictor(c).detach(), model.task, seed=int(rng.integers(10**6)))
    listed = 0 if found.best is None else 1 + len(found.ties)
    right, known = is_right(model, found), is_listed(model, found)
    error = number_error(model, found.best) if found.best is not None and right else 0.0
    return Outcome(
        str(model),
        model.family,
        rival_distance(model, found),
        error,
        {0.0: right},
        {0.0: known},
        {0.0: listed},
        {0.0: str(found)},
    )


def closer(options: argparse.Namespace) -> None:
    near: list[Outcome] = []
    index = 0
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        while len(near) < options.count:
            pending = [pool.submit(closer_outcome, options.seed, i) for i in range(index, index + 2 * options.jobs)]
            index += len(pending)
            for one in (future.result() for future in pending):
                if one.rival < RIVAL and len(near) < options.count:
                    near.append(one)
                    if not one.right[0.0]:
                        where = "not the best" if one.listed[0.0] else "NOT LISTED"
                        print(f"  {where}: {one.label}, rival at {one.rival:.3g}: {one.answer[0.0]}", flush=True)
    print(f"closer: drawn {index}")
    summary("closer", near, (0.0,))
    listed = sum(one.listed[0.0] for one in near)
    low, high = wilson_interval(listed, len(near))
    print(f"closer: true one listed {listed} of {len(near)}, 95 % Wilson interval {100 * low:.1f} to {100 * high:.1f} %")


class FlatMLP(nn.Module):
    """A random network on the examples and the query, flattened."""

    def __init__(self, task: LinearRegression) -> None:
        super().__init__()
        size = task.n_examples * (task.d_x + task.d_y) + task.d_x
        self.layers = nn.Sequential(nn.Linear(size, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, task.d_y))

    def forward(self, c: Context) -> Tensor:
        m = c.x_query.shape[1]
        flat = torch.cat([c.x.flatten(1), c.y.flatten(1)], 1)[:, None].expand(-1, m, -1)
        return self.layers(torch.cat([flat, c.x_query], 2))


def scrambled(options: argparse.Namespace) -> None:
    seed = options.seed
    rng, none = np.random.default_rng([seed, 2]), 0
    kinds: list[Callable[[LinearRegression], Predictor]] = [
        lambda task: lambda c: learners.gradient_descent(c.x, c.y.roll(1, 0), c.x_query, lr=5.0, steps=2),
        lambda task: lambda c: learners.ridge(c.x, c.y, c.x_query.roll(1, 0), alpha=0.1),
        lambda task: as_predictor(gdssm.GDSSM(max(task.d_x, task.d_y), decay="head")),
        lambda task: FlatMLP(task),
    ]
    for i in range(20):
        torch.manual_seed(seed + i)
        d = int(rng.integers(2, 21))
        task = LinearRegression(d, d, int(rng.integers(5, 51)))
        found = identify(kinds[i % 4](task), task, seed=seed + i)
        none += found.best is None
        if found.best is not None:
            print(f"  kind {i % 4}, d={d} N={task.n_examples}: {found}", flush=True)
    print(f"scrambled: none in {none} of 20", flush=True)


def shipped(options: argparse.Namespace) -> None:
    for name in gdssm.ready_models():
        print(f"{name}: {identify(as_predictor(gdssm.load(name)), LinearRegression(), seed=options.seed)}", flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "drawn": drawn,
    "closer": closer,
    "scrambled": scrambled,
    "shipped": shipped,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes for the drawn models")
    parser.add_argument("--count", type=int, default=CLOSER, help="models of the part closer")
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"PART is {part!r}; allowed: {', '.join(PARTS)}")
    torch.set_num_threads(1)
    for part in options.parts or PARTS:
        start = time.monotonic()
        PARTS[part](options)
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
