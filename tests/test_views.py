"""What the views say of a layer, against loops in NumPy and the layer's own answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gdssm import GDSSM, construct, experiments, views
from gdssm.analysis import parameter_match
from gdssm.experiments import one_step
from gdssm.models import ConstructedTokenLayer, InContextModel
from gdssm.tasks import LinearRegression
from gdssm.tokens import interleave
from gdssm.train import ModelConfig, TrainConfig, build_model

DOCS = Path(__file__).parent.parent / "docs"
TASK = LinearRegression(d_x=4, d_y=3, n_examples=6)
FORMS = {
    "published": {},
    "two heads": {"n_heads": 2, "decay": "head"},
    "preconditioned": {"key_map": True, "feedthrough": True, "decay": "row"},
    "running mean": {"normalize": True, "decay": "none"},
    "wider": {"d_model": 6},
}


def random_layer(d_model=4, **form):
    layer = GDSSM(d_model, dtype=torch.float64, **form)
    layer.reset_parameters(torch.Generator().manual_seed(3))
    with torch.no_grad():
        for extra in (layer.key_map, layer.feedthrough, layer.count_offset):
            if extra is not None:
                extra.add_(torch.rand(extra.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64))
    return layer


def answers_to_unit_vectors(layer, x, y):
    """The layer's answers to the queries e_1 .. e_{d_x} after x (n, d_x), y (n, d_y), as the columns of (d_y, d_x)."""
    queries = torch.eye(x.shape[1], layer.d_model, dtype=x.dtype)[None]
    answered = InContextModel(layer, x.shape[1], y.shape[1]).answer(wide(layer, interleave(x[None], y[None])), queries)
    return answered[0].T.detach()


def wide(layer, tokens):
    return torch.nn.functional.pad(tokens, (0, layer.d_model - tokens.shape[2]))


def test_gradient_descent_and_the_context_are_those_of_a_loop():
    record = views.filling(random_layer(), TASK, 2.5, seed=8)
    context = TASK.sample(1, seed=views.HELD_OUT_SEED, step=views.CONTEXT_STEP, dtype=torch.float64)
    np.testing.assert_allclose(record["x"], context.x[0], rtol=1e-5)
    np.testing.assert_allclose(record["y"], np.array(record["x"]) @ np.array(record["true"]).T, rtol=1e-4, atol=1e-5)
    estimate = np.zeros((3, 4))
    for n in range(7):
        if n:
            x, y = record["x"][n - 1], record["y"][n - 1]
            estimate += 2.5 / 6 * np.array([[y[i] * x[j] for j in range(4)] for i in range(3)])
        np.testing.assert_allclose(record["gradient_descent"][n], estimate, rtol=1e-4, atol=1e-5)
    assert (record["seed"], record["rate"], record["context"]) == (8, 2.5, [10**6, 3])


def test_another_context_is_another_record():
    layer = random_layer()
    assert views.filling(layer, TASK, 1.0, seed=0, context=(5, 1))["x"] != views.filling(layer, TASK, 1.0, seed=0)["x"]
    assert views.filling(layer, TASK, 1.0, seed=0) == views.filling(layer, TASK, 1.0, seed=0)


@pytest.mark.parametrize("form", FORMS)
def test_the_state_answers_queries_where_it_alone_does(form):
    """w_q reads x_k and y_k, d the query: then W_n e_j is the layer's answer to e_j, before and after any example."""
    layer = random_layer(**FORMS[form])
    with torch.no_grad():
        layer.w_q[:, 2], layer.w_q[:, :, 2], layer.d[:, :2] = 0, 0, 0
    record = views.filling(layer, TASK, 1.0, seed=0)
    context = TASK.sample(1, seed=views.HELD_OUT_SEED, step=views.CONTEXT_STEP, dtype=torch.float64)
    for n in range(1, 7):
        wanted = answers_to_unit_vectors(layer, context.x[0, :n], context.y[0, :n])
        np.testing.assert_allclose(record["trained"][n], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_state_is_the_derivative_of_the_answer(form):
    """Whatever w_q is: with d reading the query alone, W_n is the Jacobian of the answer at query 0."""
    layer = random_layer(**FORMS[form])
    with torch.no_grad():
        layer.d[:, :2] = 0
    context = TASK.sample(1, seed=2, dtype=torch.float64)
    model = InContextModel(layer, 4, 3)
    for n in (1, 2, 6):
        x, y = context.x[:, :n], context.y[:, :n]
        read = wide(layer, interleave(x, y))

        def answer(query, read=read):
            return model.answer(read, torch.nn.functional.pad(query, (0, layer.d_model - 4))[None, None])[0, 0]

        wanted = torch.autograd.functional.jacobian(answer, torch.zeros(4, dtype=torch.float64))
        torch.testing.assert_close(views.implicit_weights(layer, x, y)[0], wanted)


def test_a_construction_s_state_is_the_step_at_every_example():
    built = construct.gradient_descent(4, 3, lr=2.5, n_context=6, dtype=torch.float32)
    record = views.filling(built, TASK, 2.5, seed=0)
    np.testing.assert_allclose(record["trained"], record["gradient_descent"], rtol=2e-6, atol=1e-7)
    assert not np.any(record["trained"][0])
    assert built.layer.c.dtype == torch.float32  # the caller's model is left as it was


def test_the_committed_layer_answers_with_the_recorded_state():
    """To the little that its weights outside the construction add: the largest distance measured is 0.8 %."""
    (variant,) = json.loads((DOCS / "records" / "one-step" / "record.json").read_text())["variants"]
    filling, seed = variant["filling"], variant["seeds"].index(variant["filling"]["seed"])
    trained = {name: np.array(values[seed]) for name, values in variant["trained"].items()}
    layer = GDSSM(10, dtype=torch.float64)
    layer.load_arrays(lambda_bar=trained.pop("decay"), **trained)
    x, y = (torch.tensor(filling[name], dtype=torch.float64) for name in ("x", "y"))
    for n in range(1, 11):
        wanted = np.array(filling["trained"][n])
        distance = np.linalg.norm(answers_to_unit_vectors(layer, x[:n], y[:n]).numpy() - wanted)
        assert distance < 0.01 * np.linalg.norm(wanted)


def test_a_snapshot_is_the_layer_in_other_units():
    layer = random_layer()
    made = views.snapshot(layer)
    w_q, d, c = (np.array(made[name]) for name in ("w_q", "d", "c"))
    own = {name: getattr(layer, name)[0].detach().numpy() for name in ("w_q", "d", "c")}
    scale = own["w_q"][0, 1] * own["d"][2]
    np.testing.assert_allclose(c, own["c"] * scale, rtol=1e-5)
    np.testing.assert_allclose(d, own["d"] / own["d"][2], rtol=1e-5)
    off_corners = np.ones((3, 3), bool)
    off_corners[[0, 2], [0, 2]] = False
    np.testing.assert_allclose(w_q[off_corners], (own["w_q"] / own["w_q"][0, 1])[off_corners], rtol=1e-5)
    assert w_q[0, 0] == w_q[2, 2]
    assert (w_q[0, 1], d[2]) == (1, 1)
    np.testing.assert_allclose(made["decay"], layer.decay_matrix[0].detach(), rtol=1e-5)


def test_snapshots_keep_the_order_of_the_steps():
    first, second = random_layer(), random_layer(decay="none")
    made = views.snapshots([0, 7], [first, second], 3)
    assert (made["seed"], made["steps"]) == (3, [0, 7])
    assert made["decay"][1] == np.ones((4, 4)).tolist() != made["decay"][0]
    with pytest.raises(ValueError, match="steps has 1 entries, layers 2"):
        views.snapshots([0], [first, second], 3)


def test_layers_of_another_form_are_refused():
    with pytest.raises(ValueError, match="window 3 and stride 2, got 2 and 1"):
        views.filling(GDSSM(4, window=2, stride=1), TASK, 1.0, seed=0)
    with pytest.raises(TypeError, match="must be a GDSSM, got ConstructedTokenLayer"):
        views.filling(InContextModel(ConstructedTokenLayer(4), 4, 1), TASK, 1.0, seed=0)
    with pytest.raises(ValueError, match="one head"):
        views.snapshot(random_layer(n_heads=2))
    layer = random_layer()
    with torch.no_grad():
        layer.w_q[0, 0, 1] = 0
    with pytest.raises(ValueError, match="must differ from 0"):
        views.snapshot(layer)


def test_the_experiment_records_both_views_of_the_seed_that_figures_show(monkeypatch):
    task = LinearRegression(3, 2, 5)
    training = TrainConfig(task=task, steps=12, batch=8, warmup=2)
    preset = one_step.Preset(seeds=(), full_seeds=(0, 1, 2), eval_tasks=50, curve_tasks=30, curve_points=3, training=training)
    monkeypatch.setitem(one_step.PRESETS, "quick", preset)
    (variant,) = experiments.run("one-step", "quick", None, 4).record["variants"]
    final = [losses[-1] for losses in variant["loss"]]
    position = final.index(np.median(final))
    snapshots, filling = variant["snapshots"], variant["filling"]
    assert snapshots["seed"] == filling["seed"] == variant["seeds"][position]
    assert snapshots["steps"] == variant["steps"]
    for name in ("w_q", "d", "c", "decay"):
        np.testing.assert_allclose(snapshots[name][-1], variant["trained"][name][position], rtol=1e-5, atol=1e-12)
    layer = build_model(ModelConfig(decay="full"), task, variant["seeds"][position]).layer
    np.testing.assert_allclose(snapshots["c"][0], parameter_match(layer).c, rtol=1e-5)  # untrained
    assert np.shape(filling["trained"]) == (6, 2, 3)
    assert np.any(np.array(filling["trained"][-1]))
