"""Identification: explicit learners are named with their numbers, others are not, and what cannot be used is refused."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gdssm
from gdssm import Context, LinearRegression, Predictor, as_predictor, cli, construct, learners
from gdssm.analysis import IdentificationError, families, identification, identify, identify_layers
from gdssm.analysis.results import NAMES
from gdssm.analysis.spectrum import Spectrum
from gdssm.config import ConfigError

DOUBLE = torch.float64
TASK = LinearRegression(d_x=4, d_y=3, n_examples=8)
NOISY = LinearRegression(d_x=4, d_y=3, n_examples=8, noise_std=0.2)
SMALL: dict[str, Any] = {"tasks": 60, "max_steps": 4}
SHORT: dict[str, Any] = {"tasks": 60, "max_steps": 2}  # where one step is the answer


def gd(**options: Any) -> Predictor:
    return learners.predictor(learners.gradient_descent, **options)


def with_noise(predictor: Predictor, size: float) -> Predictor:
    """Noise that is a function of the input, relative to the typical prediction of these small tasks."""

    def predict(c: Context) -> Tensor:
        out = predictor(c)
        mix = torch.arange(1, out.shape[2] + 1, dtype=out.dtype)
        return out + size * 0.5 * 2**0.5 * (1e4 * (c.x_query.sum(2, keepdim=True) + c.y.sum((1, 2))[:, None, None]) * mix).sin()

    return predict


PRECONDITIONER = torch.tensor([[3.0, 1, 0, 0], [0, 2, 0, -1], [0, 1, 5, 0], [1, 0, 0, 4]], dtype=DOUBLE)
CASES: dict[str, tuple[Predictor, str, int | None, dict[str, Any]]] = {
    "zero": (lambda c: 0 * gd(lr=1.0)(c), "zero", None, {}),
    "mean": (lambda c: c.y.mean(1, keepdim=True).expand(-1, c.x_query.shape[1], -1), "mean", None, {}),
    "nearest": (
        lambda c: torch.stack(
            [
                torch.stack([c.y[b, (c.x[b] - q).square().sum(1).topk(3, largest=False).indices].mean(0) for q in c.x_query[b]])
                for b in range(len(c))
            ]
        ),
        "nearest_neighbours",
        3,
        {},
    ),
    "one step": (gd(lr=7.0), "gradient_descent", 1, {"lr": 7.0}),
    "four steps": (gd(lr=4.0, steps=4), "gradient_descent", 4, {"lr": 4.0}),
    "constructed": (
        as_predictor(construct.gradient_descent(4, 3, lr=4.0, n_context=8, steps=3, dtype=DOUBLE)),
        "gradient_descent",
        3,
        {"lr": 4.0},
    ),
    "momentum": (gd(lr=3.0, steps=4, momentum=0.6), "momentum", 4, {"lr": 3.0, "momentum": 0.6}),
    "rates": (
        learners.predictor(learners.polynomial, rates=(0.2, 0.9, 2.5)),
        "polynomial",
        3,
        {"rates": [0.2, 0.9, 2.5]},
    ),
    "preconditioned": (
        lambda c: c.x_query @ (c.y.mT @ c.x @ PRECONDITIONER / 8).mT,
        "preconditioned",
        1,
        {"matrix": PRECONDITIONER.tolist()},
    ),
    "least squares": (learners.predictor(learners.least_squares), "least_squares", None, {}),
    "ridge": (learners.predictor(learners.ridge, alpha=0.3), "ridge", None, {"alpha": 0.3}),
    "newton": (learners.predictor(learners.newton, steps=3), "newton", 3, {}),
    "conjugate gradient": (learners.predictor(learners.conjugate_gradient, alpha=0.0, steps=2), "conjugate_gradient", 2, {}),
    "ridge by conjugate gradient": (
        as_predictor(construct.ridge(4, 3, alpha=0.2, steps=2, dtype=DOUBLE)),
        "ridge_conjugate_gradient",
        2,
        {"alpha": 0.2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_learner_is_named_with_its_numbers(name: str) -> None:
    predictor, family, steps, numbers = CASES[name]
    found = identify(predictor, TASK, **SMALL)
    assert found.best is not None
    assert (found.best.family, found.best.steps) == (family, steps)
    assert found.best.distance < 1e-5
    assert found.ties == ()
    assert set(found.best.numbers) == set(numbers)
    for key, wanted in numbers.items():
        torch.testing.assert_close(torch.tensor(found.best.numbers[key]), torch.tensor(wanted), rtol=1e-3, atol=1e-6)


def complex_rates(c: Context, numbers: Any) -> Tensor:
    """Gradient descent with a rate for each step, some of them in pairs of complex ones."""
    imaginary = numbers.get("imaginary", [0.0] * len(numbers["rates"]))
    rates = [complex(*pair) for pair in zip(numbers["rates"], imaginary, strict=True)]
    whole = torch.complex128
    return learners.polynomial(c.x.to(whole), c.y.to(whole), c.x_query.to(whole), rates=rates).real  # type: ignore[arg-type]


EXPLICIT: dict[str, Callable[[Context, families.Learner], Tensor]] = {
    "gradient_descent": lambda c, f: gd(steps=f.steps, lr=f.numbers["lr"])(c),
    "momentum": lambda c, f: gd(steps=f.steps, **f.numbers)(c),
    "polynomial": lambda c, f: complex_rates(c, f.numbers),
    "preconditioned": lambda c, f: c.x_query @ (c.y.mT @ c.x @ torch.tensor(f.numbers["matrix"], dtype=DOUBLE) / c.x.shape[1]).mT,
    "least_squares": lambda c, f: learners.least_squares(c.x, c.y, c.x_query),
    "bayes": lambda c, f: learners.bayes(c.x, c.y, c.x_query, noise_var=0.3),
    "ridge": lambda c, f: learners.ridge(c.x, c.y, c.x_query, alpha=f.numbers["alpha"]),
    "newton": lambda c, f: learners.newton(c.x, c.y, c.x_query, steps=f.steps or 0),
    "conjugate_gradient": lambda c, f: learners.conjugate_gradient(c.x, c.y, c.x_query, alpha=0.0, steps=f.steps or 0),
    "ridge_conjugate_gradient": lambda c, f: learners.conjugate_gradient(
        c.x, c.y, c.x_query, alpha=f.numbers["alpha"], steps=f.steps or 0
    ),
}


@pytest.mark.parametrize("n", [3, 9])
def test_every_fitted_learner_is_the_explicit_one(n: int) -> None:
    """Fitted to something that is none of them, so that the numbers are of no special kind; N below and above d_x."""
    task = LinearRegression(4, 3, n, n_queries=5, noise_std=0.1)
    fitted, scored = (task.sample(40, seed=seed, dtype=DOUBLE) for seed in (1, 2))
    spectrum = Spectrum.of(fitted, learners.ridge(fitted.x, fitted.y, fitted.x_query, alpha=0.1).tanh())
    other = Spectrum.of(scored, torch.ones(40, 5, 3, dtype=DOUBLE))
    seen = set()
    for learner in families.fit(spectrum, families.Known(4, 0.3)):
        if learner.family in EXPLICIT:
            wanted = EXPLICIT[learner.family](scored, learner)
            torch.testing.assert_close(
                learner.predict(other), wanted, rtol=1e-6, atol=1e-8, msg=f"{learner.family} {learner.steps}"
            )
            if learner.implicit_weights is not None:
                jacobian = gdssm.analysis.sensitivity(lambda c, own=learner: EXPLICIT[own.family](c, own), scored)[1]  # type: ignore[misc]
                torch.testing.assert_close(learner.implicit_weights(other), jacobian[:, 0], rtol=1e-6, atol=1e-8)
            seen.add(learner.family)
    assert seen == set(EXPLICIT) - ({"conjugate_gradient"} if n < 4 else set())


def test_the_fit_is_the_least_error() -> None:
    """Against a fine scan, for a predictor that is none of the family."""
    context = LinearRegression(4, 3, 8, n_queries=5).sample(40, seed=1, dtype=DOUBLE)
    spectrum = Spectrum.of(context, learners.ridge(context.x, context.y, context.x_query, alpha=0.1).tanh())
    for steps, learner in enumerate(families.gradient_descent(spectrum, families.Known(4, None)), start=1):

        def error(lr: float, k: int = steps) -> float:
            return float((spectrum.weight * (gd(lr=lr, steps=k)(context) - spectrum.target).square().sum((1, 2))).sum())

        best = error(learner.numbers["lr"])
        assert best <= min(error(math.exp(i / 50)) for i in range(-200, 200))
        assert best < min(error(learner.numbers["lr"] * 1.01), error(learner.numbers["lr"] / 1.01))


def named(matches: Sequence[Any]) -> set[tuple[str, int | None]]:
    return {(match.family, match.steps) for match in matches}


def test_equivalent_learners_are_one_class() -> None:
    found = identify(learners.predictor(learners.bayes, noise_var=0.04), NOISY, **SMALL)
    assert found.best is not None
    assert found.best.family == "bayes"
    assert found.best.free == 0
    assert ("ridge", None) in named(found.same)
    found = identify(learners.predictor(learners.conjugate_gradient, alpha=0.0, steps=4), TASK, **SMALL)
    assert found.best is not None
    assert found.best.family == "least_squares"
    assert ("conjugate_gradient", 4) in named(found.same)
    found = identify(gd(lr=4.0, steps=2), TASK, **SMALL)
    assert {("momentum", 2), ("polynomial", 2), ("polynomial", 4)} <= named(found.same)
    found = identify(gd(lr=4.0), TASK, **SMALL)
    assert {("preconditioned", 1), ("polynomial", 2)} <= named(found.same)
    found = identify(gd(lr=2.0, steps=2, momentum=0.5), TASK, **SMALL)  # two names of the same two numbers
    assert found.best is not None
    assert (found.best.family, found.best.steps) == ("polynomial", 2)
    assert ("momentum", 2) in named(found.same)


def test_noise_hides_small_differences_and_the_tie_is_listed() -> None:
    """Ridge so weak that least squares is 0.4 % away: without noise the answer is ridge, with it least squares or a tie."""
    task = LinearRegression(d_x=4, d_y=3, n_examples=30)
    weak = learners.predictor(learners.ridge, alpha=0.008)
    clean = identify(weak, task, **SMALL)
    assert clean.best is not None
    assert clean.best.family == "ridge"
    assert 1e-3 < next(m.distance for m in clean.table if m.family == "least_squares") < 1e-2
    found = identify(with_noise(weak, 0.05), task, **SMALL)
    assert found.best is not None
    assert found.best.family == "least_squares"
    assert ("ridge", None) in named(found.ties)
    assert "do not tell it from" in str(found)


@pytest.mark.parametrize(
    ("near", "far", "spread", "more", "wins"),
    [
        (0.0100, 0.0102, 1e-5, 0, True),  # 1 % in quadrature is 0.0001
        (0.0100, 0.01005, 1e-7, 0, False),
        (0.0100, 0.0102, 1e-3, 0, False),  # chance
        (1e-6, 5e-6, 1e-8, 0, True),  # twice as near
        (1e-6, 3e-6, 1e-8, 0, False),
        (0.0102, 0.0100, 1e-7, 0, False),
        (0.0100, 0.0102, 1e-5, 1, True),
        (0.0100, 0.0102, 1e-5, 3, False),  # 0.0001 for each number
        (0.0100, 0.0102, 1e-5, -5, True),  # fewer numbers have to be nearer by 0.0001 too
        (0.0100, 0.0102, 1e-5, 24, False),
        (0.0100, 0.0126, 1e-5, 24, True),
        (1e-6, 5e-6, 1e-8, 24, True),
    ],
)
def test_a_learner_beats_another_by_a_margin_or_a_factor_and_beyond_chance(
    near: float, far: float, spread: float, more: int, wins: bool
) -> None:
    squares = torch.tensor([near, far], dtype=DOUBLE)
    sampled = squares + spread * torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    assert identification._beats(0, 1, squares, sampled, [10 + more, 10]) is wins


def test_more_numbers_for_less_than_a_percent_are_not_the_answer() -> None:
    """Two rates, one of them tiny: half a percent from one step, and with noise that is not worth a second number."""
    almost = learners.predictor(learners.polynomial, rates=(0.5, 0.004))
    assert identify(almost, TASK, **SHORT).best == identify(almost, TASK, **SHORT).closest("polynomial")
    found = identify(with_noise(almost, 0.02), TASK, tasks=400, max_steps=2)
    assert found.best is not None
    assert (found.best.family, found.best.steps) == ("gradient_descent", 1)
    assert ("polynomial", 2) in named(found.ties)


@pytest.mark.parametrize("name", ["four steps", "rates", "ridge", "newton"])
def test_five_percent_of_noise_leaves_the_answer(name: str) -> None:
    predictor, family, steps, _ = CASES[name]
    found = identify(with_noise(predictor, 0.05), TASK, tasks=120, max_steps=4)
    assert found.best is not None
    assert (found.best.family, found.best.steps) == (family, steps)
    assert 0.02 < found.best.distance < 0.1
    assert found.best.interval[0] < found.best.distance < found.best.interval[1]


class FlatMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8 * 7 + 4, 64), nn.Tanh(), nn.Linear(64, 3))

    def forward(self, c: Context) -> Tensor:
        flat = torch.cat([c.x.flatten(1), c.y.flatten(1)], 1)[:, None].expand(-1, c.x_query.shape[1], -1)
        return self.layers(torch.cat([flat, c.x_query], 2))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["targets of another task", "queries of another task", "random layer", "random network"])
def test_scrambled_predictors_are_none_of_these(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    predictor: dict[str, Predictor] = {
        "targets of another task": lambda c: learners.gradient_descent(c.x, c.y.roll(1, 0), c.x_query, lr=5.0),
        "queries of another task": lambda c: learners.ridge(c.x, c.y, c.x_query.roll(1, 0), alpha=0.1),
        "random layer": as_predictor(gdssm.GDSSM(4)),
        "random network": FlatMLP(),
    }
    found = identify(predictor[kind], TASK, seed=seed, **SHORT)
    assert found.best is None
    assert found.explained < 0.9
    assert str(found).startswith("None of the learners tried")
    assert found.as_record()["best"] is None


def test_numbers_are_fitted_on_one_half_and_scored_on_the_other() -> None:
    context = TASK.sample(60, seed=3, dtype=DOUBLE)

    def two_faced(c: Context) -> Tensor:
        return gd(lr=4.0 if bool(torch.isin(c.x[0, 0, 0], context.x[:30, 0, 0])) else 8.0)(c)

    match = identify(two_faced, context, max_steps=2).closest("gradient_descent")
    assert match is not None
    assert match.numbers["lr"] == pytest.approx(4.0)
    assert match.distance == pytest.approx(0.5)


def test_targets_of_the_queries_are_not_shown() -> None:
    seen = []

    def spy(c: Context) -> Tensor:
        seen.append(c.y_query)
        return gd(lr=4.0)(c)

    identify(spy, TASK, **SHORT)
    identify(spy, TASK.sample(40, seed=0), max_steps=2)
    assert set(seen) == {None}


def test_a_predictor_of_float32_alone_is_given_that() -> None:
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()
    found = identify(lambda c: layer(gd(lr=4.0)(c)[..., None])[..., 0], TASK, **SHORT)
    assert found.best is not None
    assert found.best.distance < 1e-6
    assert found.best.weights_distance is not None
    assert found.best.weights_distance < 1e-5


def test_a_predictor_without_derivatives_has_no_weights() -> None:
    found = identify(lambda c: torch.from_numpy(gd(lr=4.0)(c).numpy()), TASK, **SHORT)
    assert found.best is not None
    assert found.best.weights_distance is None
    json.dumps(found.as_record(), allow_nan=False)


def test_weights_tell_what_predictions_at_the_queries_do_not() -> None:
    """The same predictions, but the derivative doubled: half of the implicit weights is off."""

    def predict(c: Context) -> Tensor:
        y = gd(lr=4.0)(c)
        return 2 * y - y.detach()

    found = identify(predict, TASK, **SHORT)
    assert found.best is not None
    assert found.best.distance < 1e-5
    assert found.best.weights_distance == pytest.approx(0.5)


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)

    def forward(self, c: Context) -> Tensor:
        return self.dropout(gd(lr=4.0)(c))


@pytest.mark.parametrize(
    ("predictor", "message"),
    [
        (lambda c: c.x_query, r"predictor gave shape \(2, 8, 4\); \(B, M, d_y\) = \(2, 8, 3\) is needed"),
        (lambda c: gd(lr=4.0)(c) / 0, "predictor gave values that are not finite"),
        (Dropped(), "predictor gave other values when asked again"),
        (lambda c: gd(lr=4.0)(c).cumsum(1), "predictor answers a query differently"),
        (lambda c: 3.0, "predictor gave a value of type float"),
        (lambda c: c.z, "predictor failed with AttributeError: 'Context' object has no attribute 'z'"),
        (7, "predictor must be a function of a Context, got 7"),
        ([], "predictor is an empty list"),
    ],
)
def test_predictors_that_cannot_be_used(predictor: Any, message: str) -> None:
    with pytest.raises(IdentificationError, match=message) as error:
        identify(predictor, TASK, **SMALL)
    assert "\n" not in str(error.value)


def test_tasks_and_options_that_cannot_be_used() -> None:
    with pytest.raises(ConfigError, match="tasks must be an integer >= 20, got 19"):
        identify(gd(lr=1.0), TASK, tasks=19)
    with pytest.raises(IdentificationError, match="task has 19 tasks; at least 20 are needed"):
        identify(gd(lr=1.0), TASK.sample(19, seed=0))
    with pytest.raises(ConfigError, match="share must be a finite number >= 0 and <= 1, got 2"):
        identify(gd(lr=1.0), TASK, share=2)
    with pytest.raises(ConfigError, match="max_steps must be an integer >= 1 and <= 50, got 51"):
        identify(gd(lr=1.0), TASK, max_steps=51)
    with pytest.raises(IdentificationError, match="task has inputs that are all 0"):
        identify(gd(lr=1.0), Context(torch.zeros(20, 3, 2), torch.ones(20, 3, 1), torch.ones(20, 2)))
    context = TASK.sample(20, seed=0)
    context.x[3] = torch.nan
    with pytest.raises(IdentificationError, match="task has values that are not finite"):
        identify(gd(lr=1.0), context)
    with pytest.raises(IdentificationError, match="family is 'sgd'; allowed: zero, mean"):
        identify_layers([gd(lr=1.0)], TASK, "sgd")


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 3, 2), (6, 1, 1), (3, 1, 12)])
def test_any_size_of_task(size: tuple[int, int, int]) -> None:
    found = identify(gd(lr=3.0), LinearRegression(*size), seed=10**20, **SHORT)
    assert found.best is not None
    assert found.best.distance < 1e-5
    assert ("gradient_descent", 1) in named((found.best, *found.same))


def test_seeds_have_a_spread() -> None:
    spread = identify([gd(lr=4.0), gd(lr=5.0), gd(lr=4.5), learners.predictor(learners.ridge, alpha=0.3)], TASK, **SHORT)
    assert spread.counts == {"gradient descent, 1 step": 3, "ridge regression": 1}
    assert spread.ranges["lr"] == pytest.approx((4.0, 4.5, 5.0))
    assert spread.best is not None
    assert spread.best.family == "gradient_descent"
    assert json.loads(json.dumps(spread.as_record(), allow_nan=False))["counts"] == spread.counts
    assert "gradient descent, 1 step (3); ridge regression (1)" in str(spread)


def test_layers_are_counted_in_steps() -> None:
    found = identify_layers([gd(lr=4.0, steps=k) for k in (1, 2, 4)], TASK, "gradient_descent", **SMALL)
    assert [match.steps for match in found if match is not None] == [1, 2, 4]


def test_the_answer_is_the_same_each_time_and_is_json() -> None:
    predictor = with_noise(gd(lr=4.0, steps=2), 0.05)
    first, second = (identify(predictor, NOISY, **SHORT) for _ in range(2))
    assert json.dumps(first.as_record(), allow_nan=False) == json.dumps(second.as_record(), allow_nan=False)
    assert str(first) == str(second)
    distances = [match.distance for match in first.table]
    assert distances == sorted(distances)
    assert {match.family for match in first.table} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "family", "steps"),
    [("one-step", "gradient_descent", 1), ("two-step", "polynomial", 2), ("five-step", "polynomial", 5)],
)
def test_the_shipped_models_run_what_they_were_trained_to(name: str, family: str, steps: int) -> None:
    found = identify(as_predictor(gdssm.load(name)), LinearRegression(), tasks=60, max_steps=5)
    assert found.best is not None
    assert (found.best.family, found.best.steps) == (family, steps)
    assert found.best.distance < 0.02
    assert found.best.weights_distance is not None
    assert found.best.weights_distance < 0.02


# The command


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["identify", *arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


FAST = ("--tasks", "40", "--max-steps", "2", "--inputs", "3", "--targets", "2", "--examples", "6")


def test_the_command_answers_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gdssm.save(construct.gradient_descent(3, 2, lr=4.0, n_context=6), tmp_path / "model.safetensors")
    code, out, err = run(str(path), *FAST, "--out", str(tmp_path / "out"), capsys=capsys)
    assert (code, err) == (0, "")
    assert "Gradient descent, 1 step with lr 4:" in out
    assert [line.split()[-1] for line in out.splitlines()[1:2]] == ["answer"]
    record = json.loads((tmp_path / "out" / "identify.json").read_text())
    assert record["task"]["n_examples"] == 6
    assert record["answers"][str(path)]["best"]["numbers"]["lr"] == pytest.approx(4.0, rel=1e-4)


def test_the_command_takes_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own_learners.py").write_text(
        "from gdssm import construct, learners\n"
        "def predict(c): return learners.ridge(c.x, c.y, c.x_query, alpha=0.2)\n"
        "def make(): return predict\n"
        "module = construct.gradient_descent(3, 2, lr=4.0, n_context=6)\n"
        "def broken(): raise OSError('no weights')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, answer in (("predict", "Ridge regression"), ("make", "Ridge regression"), ("module", "Gradient descent, 1 step")):
        code, out, _ = run(f"own_learners:{name}", *FAST, capsys=capsys)
        assert code == 0
        assert out.splitlines()[-1].startswith(answer)
    for name, message in (
        ("broken", "which failed with OSError: no weights"),
        ("number", "which gives a value of type int"),
        ("predic", "own_learners has no predic (did you mean 'predict'?)"),
    ):
        code, out, err = run(f"own_learners:{name}", *FAST, capsys=capsys)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_the_command_takes_runs_and_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gdssm import runs
    from gdssm.settings import TrainConfig

    task = LinearRegression(3, 2, 6)
    runs.run(TrainConfig(task=task, seeds=(0, 1), steps=2, batch=2, warmup=0, eval_tasks=4, eval_points=1), tmp_path / "run")
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    for path in (tmp_path / "run", checkpoint):
        code, out, _ = run(str(path), "--tasks", "40", "--max-steps", "2", capsys=capsys)
        assert code == 0
        assert [line.partition(":")[0] for line in out.splitlines()[:2]] == ["seed 0", "seed 1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("one-stp",), "MODEL is 'one-stp' (did you mean 'one-step'?); allowed: five-step, one-step"),
        (("no_such_module:f",), "whose module cannot be imported: ModuleNotFoundError"),
        ((".",), "a directory without run.json"),
        (("FILE",), "FILE"),
        (("one-step", "--tasks", "19"), "--tasks must be an integer >= 20, got 19"),
        (("one-step", "--noise", "-1"), "--noise must be a finite number >= 0, got -1"),
        (("one-step", "--inputs", "0"), "--inputs must be an integer >= 1, got 0"),
        (("one-step", "--out", "FILE"), "--out is 'FILE', which is a file"),
        ((), "MODEL is missing"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    code, out, err = run(*arguments, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]
