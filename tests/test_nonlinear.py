"""The nonlinear experiment: the sine task, features under a layer, references, claims on made-up results, a toy run."""

import json
import math
from dataclasses import replace

import pytest
import torch

from gdssm import GDSSM, FeatureModel, InContextModel, SineRegression, experiments
from gdssm.config import ConfigError
from gdssm.copies import train_copies
from gdssm.experiments import nonlinear
from gdssm.experiments.features import AttentionOnFeatures, LayerOnFeatures
from gdssm.settings import TrainConfig

TINY = nonlinear.Preset(
    seeds=(0, 1),
    task=SineRegression(n_examples=4),
    hidden=5,
    features=3,
    training=TrainConfig(steps=8, batch=8, warmup=2),
    curve_points=3,
    validation_tasks=50,
    eval_tasks=100,
)


def test_sines_have_the_moments_they_say():
    task = SineRegression(n_examples=3, n_queries=2)
    c = task.sample(40_000, seed=0, dtype=torch.float64)
    assert (c.x.shape, c.y.shape, c.x_query.shape, c.y_query.shape) == (
        (40_000, 3, 1),
        (40_000, 3, 1),
        (40_000, 2, 1),
        (40_000, 2, 1),
    )
    assert float(c.x.abs().max()) <= 5
    assert float(c.x.square().mean()) == pytest.approx(100 / 12, rel=0.02)
    assert float(c.y.square().mean()) == pytest.approx(task.mean_square, rel=0.02)
    assert task.mean_square == pytest.approx(0.31 / 6)


def test_every_example_of_a_task_is_on_one_sine():
    """Three points give amplitude and phase; amplitude and phase are independent."""
    c = SineRegression(n_examples=20).sample(2_000, seed=1, dtype=torch.float64)
    basis = torch.cat([c.x.sin(), c.x.cos()], dim=-1)
    weights = torch.linalg.lstsq(basis, c.y).solution[:, :, 0]
    torch.testing.assert_close((torch.cat([c.x_query.sin(), c.x_query.cos()], -1) * weights[:, None]).sum(-1), c.y_query[..., 0])
    a, phase = weights.norm(dim=1), torch.atan2(weights[:, 1], weights[:, 0])
    assert float(a.min()) >= 0.1
    assert float(a.max()) <= 0.5
    assert float(phase.min()) >= 0
    assert float(phase.max()) <= math.pi
    assert abs(float(torch.corrcoef(torch.stack([a, phase]))[0, 1])) < 0.08


def test_a_batch_of_sines_depends_on_seed_and_step_alone():
    task = SineRegression()
    assert torch.equal(task.sample(3, seed=1, step=2).y, task.sample(3, seed=1, step=2).y)
    assert not torch.equal(task.sample(3, seed=1, step=2).y, task.sample(3, seed=1, step=3).y)
    with pytest.raises(ConfigError, match=r"highest must be a finite number >= 0\.4, got 0\.3"):
        SineRegression(lowest=0.4, highest=0.3)
    with pytest.raises(ConfigError, match="n_examples must be an integer >= 1, got 0"):
        SineRegression(n_examples=0)


def test_copies_train_on_the_task_that_is_given():
    seen = []

    class Recorded:
        def sample(self, batch, *, seed, step=0, dtype=None, device="cpu"):
            seen.append((batch, seed, step))
            return SineRegression(n_examples=4).sample(batch, seed=seed, step=step, dtype=dtype)

    config = TrainConfig(steps=2, batch=3, warmup=0, data_seed=5)
    train_copies([LayerOnFeatures(4, 2)], [0.01], config, task=Recorded())
    assert seen == [(3, 5, 0), (3, 5, 1)]


def model(kind, seed=0):
    found = kind(6, 4, torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        for p in found.parameters():
            p += 0.1
    return found


def test_the_layer_on_features_is_the_feature_model():
    copy = model(LayerOnFeatures)
    layer = GDSSM(4, decay="none", dtype=torch.float64)
    layer.load_arrays(w_q=copy.w_q, d=copy.d, c=copy.c)
    p = dict(copy.named_parameters())

    def features(x):
        return torch.nn.functional.gelu(x * p["w_in"] + p["b_in"]) @ p["w_out"].T + p["b_out"]

    c = SineRegression(n_examples=5).sample(7, seed=0, dtype=torch.float64)
    tokens = copy.layout(c.x, c.y, c.x_query)
    wanted = FeatureModel(features, InContextModel(layer, 4, 1), 1)(tokens)
    torch.testing.assert_close(copy(tokens), wanted, rtol=1e-11, atol=1e-12)


def test_attention_on_features_is_a_sum_over_examples():
    copy = model(AttentionOnFeatures)
    p = dict(copy.named_parameters())
    c = SineRegression(n_examples=5).sample(3, seed=0, dtype=torch.float64)
    found = copy(copy.layout(c.x, c.y, c.x_query)).detach()
    p = {name: value.detach() for name, value in p.items()}
    for b in range(3):
        phi = torch.nn.functional.gelu(torch.cat([c.x[b], c.x_query[b]]) * p["w_in"] + p["b_in"]) @ p["w_out"].T + p["b_out"]
        e = torch.cat([phi[:5], c.y[b]], dim=1)
        query = torch.cat([phi[5], torch.zeros(1)])
        total = sum((p["value"] @ one) * ((p["key"] @ one) @ (p["query"] @ query)) for one in e)
        assert float(found[b, 0]) == pytest.approx(float(total), rel=1e-10)


@pytest.mark.parametrize("kind", [LayerOnFeatures, AttentionOnFeatures])
def test_stacked_copies_are_separate_copies(kind):
    copies = [model(kind, seed) for seed in range(3)]
    stacked = {name: torch.stack([dict(m.named_parameters())[name] for m in copies]) for name, _ in copies[0].named_parameters()}
    c = SineRegression(n_examples=5).sample(7, seed=0, dtype=torch.float64)
    tokens = kind.layout(c.x, c.y, c.x_query)
    for found, one in zip(copies[0].last_stacked(stacked, tokens), copies, strict=True):
        torch.testing.assert_close(found, one(tokens), rtol=1e-11, atol=1e-12)


def test_a_constructed_layer_is_one_step_on_its_own_features():
    copy = model(LayerOnFeatures).float()
    with torch.no_grad():
        copy.w_q.zero_()
        copy.w_q[0, 1] = 2.0
        copy.d.copy_(torch.tensor([0.0, 0.0, 0.5]))
        copy.c.copy_(0.3 * torch.eye(4))
    c = SineRegression(n_examples=5).sample(50, seed=0)
    found = nonlinear.own_step(copy, c)
    assert copy.rate() == pytest.approx(0.3)
    assert found["cosine"] == pytest.approx(1.0, abs=1e-6)
    loss = 0.5 * (copy(copy.layout(c.x, c.y, c.x_query)).detach()[:, 0] - c.y_query[:, 0, 0]).square().mean()
    assert found["own_step_loss"] == pytest.approx(float(loss), rel=1e-5)
    with torch.no_grad():
        copy.w_q[0, 0] = 2.0
    found = nonlinear.own_step(copy, c)
    assert found["cosine"] < 0.999
    assert found["odd"] == pytest.approx(1.0, abs=1e-5)  # products of inputs alone do not change sign with the targets


def test_references_are_steps_at_their_best_rates():
    c = SineRegression().sample(20_000, seed=3, dtype=torch.float64)
    p = torch.tensor([[float(((c.x[b] - c.x_query[b]) ** 2 / -2).exp().T @ c.y[b])] for b in range(5)])
    torch.testing.assert_close(nonlinear.kernel_step(1.0, c)[:5, None].float(), p)
    found = nonlinear.references(replace(TINY, task=SineRegression(), eval_tasks=20_000))
    assert found["losses"]["zero"] == pytest.approx(0.31 / 12, rel=0.03)
    assert found["losses"]["ideal"] < found["losses"]["rbf"] < found["losses"]["linear"] <= 1.01 * found["losses"]["zero"]
    step = nonlinear.FIXED["ideal"](c)
    best = min(0.5 * (rate * step - c.y_query[:, 0, 0]).square().mean() for rate in torch.linspace(0.05, 0.3, 26))
    assert found["losses"]["ideal"] == pytest.approx(float(best), rel=0.05)


def test_random_fourier_features_are_kernel_gradient_descent():
    assert nonlinear.kernel(TINY)["difference"] < 1e-10


def made_up(loss, cosine=0.999, seeds=5):
    copies = [{"loss": loss, "cosine": cosine, "odd": cosine, "own_step_loss": None if cosine is None else loss}] * seeds
    example = {"x": [0.0, 1.0], "y": [0.1, 0.2], "grid": [0.0, 1.0], "prediction": [0.1, 0.2]}
    shared = {"rate": 0.01, "by_rate": [[0.003, None], [0.01, loss]], "parameters": 100, "steps": [0, 10], "example": example}
    return shared | {"curves": [[0.03, loss]] * seeds, "copies": copies}


def expected():
    losses = {"zero": 0.0258, "linear": 0.0257, "rbf": 0.0104, "rbf_best": 0.0096, "ideal": 0.00236}
    references = {"losses": losses, "rates": {}, "lengthscale": 1.1}
    return {
        "references": references,
        "kernel": {"difference": 1e-15},
        "layer": made_up(0.0025),
        "attention": made_up(0.0025, None),
    }


def failed(results):
    return {claim.name for claim in nonlinear.outcome(nonlinear.PRESETS["quick"], results).claims if not claim.holds}


def test_what_theory_expects_makes_every_claim_hold():
    assert failed(expected()) == set()
    text = " ".join(nonlinear.outcome(nonlinear.PRESETS["quick"], expected()).record["blocks"][0]["paragraphs"])
    assert "5 of 5 seeds are at most 0.0032" in text
    assert "between one step on sin and cos and one on radial basis functions" in text
    assert "It is one step of gradient descent on its own features" in text
    assert "0.003: diverged" in text


@pytest.mark.parametrize(
    ("job", "change", "claims"),
    [
        ("layer", made_up(0.0033), {"layer_loss"}),
        ("layer", made_up(0.0025, 0.98), {"layer_cosine_on_own_features"}),
        ("attention", made_up(0.02, None), {"attention_loss"}),
        ("layer", made_up(0.0025) | {"copies": [None, *made_up(0.0025)["copies"]]}, {"layer_loss", "layer_cosine_on_own_features"}),
        ("kernel", {"difference": 1e-9}, {"kernel_gradient_descent"}),
        (
            "references",
            expected()["references"] | {"losses": expected()["references"]["losses"] | {"rbf": 0.02}},
            {"rbf_step_loss"},
        ),
    ],
)
def test_a_result_that_differs_makes_its_claim_fail(job, change, claims):
    assert failed(expected() | {job: change}) == claims


def test_the_text_says_where_a_model_stands():
    def text(layer):
        outcome = nonlinear.outcome(nonlinear.PRESETS["quick"], expected() | {"layer": layer})
        return " ".join(outcome.record["blocks"][0]["paragraphs"])

    assert "below one step on the features sin and cos" in text(made_up(0.002))
    assert "above one step on radial basis functions" in text(made_up(0.02))
    assert "It is not quite one step" in text(made_up(0.002, 0.9))
    assert "every seed diverged" in text(made_up(0.002) | {"copies": [None] * 5})


def test_the_whole_experiment_at_toy_size(monkeypatch):
    monkeypatch.setitem(nonlinear.PRESETS, "quick", TINY)
    found = experiments.run("nonlinear")
    assert {claim.name for claim in found.claims if claim.holds} >= {"kernel_gradient_descent"}
    assert {block["kind"] for block in found.record["blocks"]} == {"text", "lines", "dots", "table"}
    assert json.dumps(found.record, allow_nan=False)
