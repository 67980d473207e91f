"""The experiment on token layouts: constructions of every entry, claims on made-up results, and a run at toy size."""

import copy
import json

import pytest
import torch

from gdssm import as_predictor, experiments, learners
from gdssm.experiments import token_layouts
from gdssm.experiments.token_layouts import ENTRIES, GatedRecurrence
from gdssm.settings import TrainConfig

TINY = token_layouts.Preset(
    seeds=(0, 1),
    d=3,
    narrow=2,
    n_examples=5,
    training=TrainConfig(steps=4, batch=8, warmup=2),
    rates=(0.01,),
    eval_tasks=40,
)
QUICK = token_layouts.PRESETS["quick"]
STEP = ("loss_ratio", "sensitivity_cosine", "success_rate")


def construct(module, task, rate):
    """Write one step of gradient descent into an entry's module."""
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    d_x, d_y = task.d_x, task.d_y
    if isinstance(module, GatedRecurrence):
        module.decay.log_rate.fill_(-torch.inf)
        module.gate[0, :d_x, d_x:] = rate * torch.eye(d_x)
        return
    layer = module.layer
    if hasattr(layer, "w_k"):
        layer.w_k[0, :d_x, :d_x] = layer.w_q[0, :d_x, :d_x] = torch.eye(d_x)
        layer.w_v[0, :d_y, d_x:] = torch.eye(d_y)
        layer.c[0, :, :d_y] = rate * torch.eye(d_y)
        return
    layer.decay.log_rate.fill_(-torch.inf)
    if layer.window == 1:
        layer.w_q.fill_(1)
        layer.d.fill_(1)
        layer.c[0, :d_y, d_x:] = rate * torch.eye(d_y)
    else:
        layer.w_q[0, 0, 1] = layer.d[0, 2] = 1
        layer.c[0] = rate * torch.eye(layer.d_model)


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_can_be_the_step(name):
    entry = ENTRIES[name]
    task = TINY.task(entry)
    context = task.sample(20, seed=0)
    module = entry.make(task, 0)
    before = as_predictor(module, entry.layout)(context)
    with torch.no_grad():
        construct(module, task, 0.3)
    wanted = learners.gradient_descent(context.x, context.y, context.x_query, lr=0.3 * task.n_examples)
    torch.testing.assert_close(as_predictor(module, entry.layout)(context), wanted)
    assert not torch.allclose(before, wanted)
    again = as_predictor(entry.make(task, 0), entry.layout)(context)
    assert torch.equal(before, again)  # weights depend on the seed alone
    assert not torch.allclose(as_predictor(entry.make(task, 1), entry.layout)(context), before)


def test_sizes_of_the_entries():
    sizes = {name: (QUICK.task(entry).d_x, QUICK.task(entry).d_y) for name, entry in ENTRIES.items()}
    assert sizes["vector"] == sizes["concatenated"] == sizes["attention"] == (10, 10)
    assert sizes["scalar"] == sizes["constructed"] == (10, 1)
    assert sizes["narrow-targets"] == (10, 4)
    assert sizes["narrow-inputs"] == (4, 10)


def test_the_gated_recurrence_is_its_loop():
    module = GatedRecurrence(4, 2, generator=torch.Generator().manual_seed(0)).double()
    tokens = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    decay, z = torch.exp(-torch.exp(module.decay.log_rate.double()))[0], torch.zeros(3, 4, dtype=torch.float64)
    for t in range(6):
        z = decay * z + tokens[:, t]
    wanted = torch.stack([((z @ gate) * tokens[:, -1]).sum(-1) for gate in module.gate], dim=1)
    torch.testing.assert_close(module(tokens), wanted, rtol=1e-12, atol=1e-12)


def made_up(ratio=1.002, cosine=0.9996):
    one = {"loss": 0.2, "loss_ratio": ratio, "sensitivity_cosine": cosine, "reference_loss": 0.2}
    curves = [[2.0, 1.2, 0.2]] * 10
    found = {"rate": 0.01, "parameters": 9, "computed": 0.2, "copies": [one] * 10, "steps": [0, 50, 100], "curves": curves}
    return {name: dict(found) for name in ENTRIES}


def failing(results):
    return {claim.name for claim in token_layouts.outcome(QUICK, results).claims if not claim.holds}


def test_the_step_in_every_layout_makes_every_claim_hold():
    assert failing(made_up()) == set()
    text = " ".join(token_layouts.outcome(QUICK, made_up()).record["blocks"][0]["paragraphs"])
    assert "In 7 of 7 all 10 seeds do." in text
    assert "after 100 updates" in text


@pytest.mark.parametrize("name", ENTRIES)
def test_a_layout_that_fails_fails_alone(name):
    title = name.replace("-", "_")
    for bad, claims in ((made_up(1.011), STEP[::2]), (made_up(1.0, 0.998), STEP[1:])):
        assert failing(made_up() | {name: bad[name]}) == {f"{title}_{claim}" for claim in claims}
    diverged = made_up()[name] | {"copies": [None] * 10, "curves": [[None] * 3] * 10}
    assert failing(made_up() | {name: diverged}) == {f"{title}_{claim}" for claim in STEP}


@pytest.mark.parametrize(("wrong", "fails"), [(2, False), (3, True)])
def test_the_rate_over_seeds_counts(wrong, fails):
    results = copy.deepcopy(made_up())
    results["scalar"]["copies"] = [None] * wrong + results["scalar"]["copies"][wrong:]
    assert failing(results) == ({"scalar_success_rate"} if fails else set())
    record = token_layouts.outcome(QUICK, results).record
    assert f"In 6 of 7 all 10 seeds do. The others: interleaved, scalar targets {10 - wrong} of 10." in str(record)


def test_the_whole_experiment_at_toy_size(monkeypatch):
    monkeypatch.setitem(token_layouts.PRESETS, "quick", TINY)
    found = experiments.run("token-layouts")
    assert found.seeds == (0, 1)
    assert json.dumps(found.record, allow_nan=False)
    assert not any(claim.holds for claim in found.claims if claim.name == "vector_success_rate")  # four steps teach nothing
