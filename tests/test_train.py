"""The training loop: same seeds same weights, copies that do not see each other, and that it learns at all."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import gdssm
from gdssm import learners, theory
from gdssm.analysis import alignment
from gdssm.config import ConfigError, from_mapping
from gdssm.ensemble import Adam, Ensemble
from gdssm.ops import gradients
from gdssm.settings import ModelConfig, TrainConfig
from gdssm.tasks import LinearRegression
from gdssm.tokens import interleave
from gdssm.train import NonFiniteError, Training, build_model, decay_columns, schedule, train, training_step

TASK = LinearRegression(d_x=3, d_y=3, n_examples=6)
CONFIG = TrainConfig(task=TASK, seeds=(3, 8), steps=30, batch=16, warmup=5, dtype="float64")


def weights(ensemble: Ensemble) -> torch.Tensor:
    return ensemble.flat.clone()


def test_the_same_configuration_gives_the_same_weights() -> None:
    assert torch.equal(weights(train(CONFIG)), weights(train(CONFIG)))
    assert not torch.equal(weights(train(CONFIG)), weights(train(replace(CONFIG, data_seed=1))))


@pytest.mark.parametrize("decay", ["none", "head", "row", "full"])
def test_a_copy_in_an_ensemble_is_trained_as_if_alone(decay: str) -> None:
    together = train(replace(CONFIG, model=ModelConfig(decay=decay, n_heads=2), lr=0.1, clip=0.01))
    for i, seed in enumerate(CONFIG.seeds):
        alone = train(replace(CONFIG, model=ModelConfig(decay=decay, n_heads=2), lr=0.1, clip=0.01, seeds=(seed,)))
        torch.testing.assert_close(weights(together)[i], weights(alone)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("decay", ["head", "full", "row"])
def test_one_step_is_torchs_adam_with_clipping(decay: str) -> None:
    config = replace(CONFIG, model=ModelConfig(decay=decay), seeds=(3,), clip=0.05)
    model = build_model(config.model, TASK, 3, torch.float64)
    ensemble = Ensemble([model])
    optimizer = Adam(ensemble, beta1=config.beta1, beta2=config.beta2)
    rates = torch.full_like(ensemble.flat[0], config.lr)
    plain = torch.optim.Adam(model.parameters(), lr=config.lr, betas=(config.beta1, config.beta2))
    for step in range(3):
        context = TASK.sample(16, seed=0, step=step, dtype=torch.float64)
        tokens, target = interleave(context.x, context.y, context.x_query), context.y_query[:, 0]
        training_step(optimizer, tokens, target, rates, config.clip)
        plain.zero_grad()
        outputs, _ = model.layer(tokens)  # every window, another code path than the ensemble's
        (0.5 * (outputs[:, -1] - target).square().sum() / target.numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        plain.step()
    for name, parameter in model.named_parameters():
        # torch adds 1e-6 to the norm it clips by
        torch.testing.assert_close(ensemble.parameters[name][0], parameter, rtol=1e-5, atol=1e-6)


def test_modules_without_a_batched_form_run_under_vmap() -> None:
    models = [gdssm.GDSSM(3, decay="head", dtype=torch.float64) for _ in range(3)]
    tokens = torch.randn(5, 13, 3, dtype=torch.float64)

    class Plain(torch.nn.Module):
        def __init__(self, w_q: torch.Tensor) -> None:
            super().__init__()
            self.w_q = torch.nn.Parameter(w_q.detach().clone())

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens.sum(1) @ self.w_q[0] + tokens[:, -1]

    plain = [Plain(model.w_q) for model in models]
    torch.testing.assert_close(Ensemble(plain)(tokens), torch.stack([p(tokens) for p in plain]))


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    config = replace(CONFIG, steps=100, warmup=10)
    assert schedule(config, 0, decays=False) == pytest.approx(0.1, rel=1e-3)
    assert schedule(config, 50, decays=False) == pytest.approx(0.5)
    assert schedule(config, 50, decays=True) == schedule(config, 80, decays=True) == 1
    assert schedule(config, 100, decays=False) == pytest.approx(0) == schedule(config, 100, decays=True)


def test_only_the_decays_keep_the_peak_rate() -> None:
    ensemble = Ensemble([build_model(ModelConfig(decay="head"), TASK, 0, torch.float64)])
    chosen = decay_columns(ensemble)
    assert chosen.sum() == 1
    assert chosen[ensemble.columns["layer.decay.log_rate"]] == 1


def test_a_diverging_training_stops_and_names_step_and_seed() -> None:
    config = replace(CONFIG, lr=1e30, warmup=0, dtype="float32")
    with pytest.raises(NonFiniteError, match=r"^step 1: the prediction or its loss is not finite \(seed 3\)$"):
        train(config)


@pytest.mark.parametrize(("name", "value"), [("layer.c", float("nan")), ("layer.w_q", float("inf"))])
def test_a_parameter_that_is_not_finite_is_named_before_anything_is_updated(name: str, value: float) -> None:
    training = Training(CONFIG)
    training.advance()
    with torch.no_grad():
        training.ensemble.parameters[name][1].fill_(value)
    before = {key: array.clone() for key, array in training.arrays().items()}
    with pytest.raises(NonFiniteError, match=rf"^step 1: parameter {name} is not finite \(seed 8\)$"):
        training.advance()
    assert training.step == 1
    for key, array in training.arrays().items():
        assert torch.equal(array.nan_to_num(), before[key].nan_to_num())


def test_a_gradient_that_overflows_is_named_though_the_loss_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(CONFIG)
    linearised = Ensemble.linearised

    def overflowing(self: Ensemble, tokens: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], None]]:
        prediction, pullback = linearised(self, tokens)

        def overflow(grad: torch.Tensor) -> None:
            pullback(grad)
            self.gradient[0, self.columns["layer.d"].start + 1] = float("inf")

        return prediction, overflow

    monkeypatch.setattr(Ensemble, "linearised", overflowing)
    with pytest.raises(NonFiniteError, match=r"^step 0: the gradient of layer\.d is not finite \(seed 3\)$"):
        training.advance()


def test_tasks_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = LinearRegression.sample

    def poisoned(self: LinearRegression, *arguments: object, **options: object) -> gdssm.Context:
        context = draw(self, *arguments, **options)
        context.y[0, 0, 0] = float("nan")
        return context

    monkeypatch.setattr(LinearRegression, "sample", poisoned)
    with pytest.raises(NonFiniteError, match=r"^step 0: the tokens of the task are not finite$"):
        Training(CONFIG).advance()


def test_a_device_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ConfigError, match="device is 'cuda', which torch does not find on this machine; allowed here: cpu"):
        train(replace(CONFIG, device="cuda"))


def test_a_model_of_k_steps_learns_its_rates() -> None:
    """Trained from random weights it beats the best single step; that it becomes the best k steps, test_ready.py checks."""
    config = TrainConfig(task=TASK, model=ModelConfig(steps=2), steps=400, batch=64, lr=0.02)
    model = train(config).load(build_model(config.model, TASK, 0), 0)
    rate, _ = theory.one_step_optimum(6, 3, x_var=1 / 12, x_fourth_moment=1 / 80)
    one_step = learners.predictor(learners.gradient_descent, lr=rate)
    assert alignment(gdssm.as_predictor(model), one_step, TASK.sample(2000, seed=77)).loss_ratio < 1


def test_a_small_layer_becomes_gradient_descent() -> None:
    config = TrainConfig(task=TASK, seeds=(0,), steps=800, batch=64, lr=0.02)
    model = train(config).load(build_model(config.model, TASK, 0, torch.float32), 0)
    rate, _ = theory.one_step_optimum(6, 3, x_var=1 / 12, x_fourth_moment=1 / 80)
    gd = learners.predictor(learners.gradient_descent, lr=rate)
    found = alignment(gdssm.as_predictor(model), gd, TASK.sample(2000, seed=77))
    untrained = alignment(gdssm.as_predictor(build_model(config.model, TASK, 0, torch.float32)), gd, TASK.sample(2000, seed=77))
    assert found.loss_ratio < 1.05 < untrained.loss_ratio
    assert found.sensitivity_cosine > 0.99 > untrained.sensitivity_cosine


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 10}, "stepz is no field of TrainConfig .did you mean 'steps'"),
        ({"steps": "10"}, "steps must be of type int, got '10'"),
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"lr": float("nan")}, "lr must be a finite number > 0, got nan"),
        ({"model": {"decay": "heads"}}, "decay is 'heads' .did you mean 'head'"),
        ({"task": {"inputs": "normal"}}, "inputs is 'normal'.*allowed: uniform, gaussian"),
        ({"task": {"n_queries": 2}}, "task.n_queries must be 1 in training, one query per context; got 2"),
        ({"task": {"d_x": True}}, "task.d_x must be of type int, got True"),
        ({"seeds": [1, -1]}, "seeds must be an integer >= 0, got -1"),
    ],
)
def test_configurations_that_cannot_be_used(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(TrainConfig, values)


def test_a_configuration_from_nested_mappings() -> None:
    config = from_mapping(TrainConfig, {"task": {"d_x": 4, "spectrum": [1, 2, 3, 4]}, "seeds": [1, 2], "lr": 1})
    assert config == TrainConfig(task=LinearRegression(d_x=4, spectrum=(1.0, 2.0, 3.0, 4.0)), seeds=(1, 2), lr=1.0)


@pytest.mark.parametrize(
    ("decay", "heads", "written_out", "numbers"),
    [("none", 1, True, 0), ("head", 3, True, 0), ("full", 2, True, 10**6), ("full", 2, True, 1), ("row", 1, False, 0)],
)
def test_gradients_of_a_step_are_those_of_autograd_through_the_reference(
    decay: str, heads: int, written_out: bool, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numbers: of a temporary of full decay, whose windows are then one piece or one each."""
    monkeypatch.setattr(gradients, "_CHUNK_ELEMENTS", numbers)
    task = LinearRegression(3, 2, 5)
    modules = [build_model(ModelConfig(decay=decay, n_heads=heads), task, seed).double() for seed in (0, 1)]
    context = task.sample(4, seed=3)
    assert context.y_query is not None
    tokens, target = interleave(context.x, context.y, context.x_query).double(), context.y_query[:, 0].double()
    found = Ensemble(modules)
    prediction, pullback = found.linearised(tokens)
    assert not prediction.requires_grad
    pullback((prediction - target) / target.numel())
    assert (found.template.last_stacked_and_pullback(found.parameters, tokens) is not None) == written_out
    for copy, module in enumerate(modules):
        module.layer.backend = "reference"
        out = module.layer(tokens)[0][:, -1, : task.d_y]  # every window's output, by the definition
        torch.testing.assert_close(prediction[copy], out.detach())
        (0.5 * (target - out).square().sum() / target.numel()).backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(found.gradient[copy, found.columns[name]], parameter.grad.flatten(), rtol=1e-9, atol=1e-12)
