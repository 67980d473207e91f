"""The experiment on sizes: its claims on made-up results, and a run at toy size."""

import copy
import json

import pytest

from gdssm import experiments
from gdssm.analysis import squared_loss
from gdssm.experiments import dimensions
from gdssm.experiments.trainings import held_out, optimum
from gdssm.settings import TrainConfig
from gdssm.tasks import LinearRegression

TINY = dimensions.Preset(
    seeds=(0, 1),
    sizes=((5, 10), (10, 10), (10, 5), (2, 60)),
    training=TrainConfig(steps=4, batch=8, warmup=2),
    rates=(0.01,),
    eval_tasks=40,
)
QUICK = dimensions.PRESETS["quick"]


def test_a_size_is_compared_with_its_own_best_step():
    found = dimensions.trained(TINY, 3, 10)
    task = LinearRegression(3, 3, 10)
    rate, loss = optimum(task)
    assert found["computed"] == loss
    context = held_out(task, 40)
    step = rate / 10 * (context.y.mT @ context.x @ context.x_query.mT).mT  # (eta / N) sum y x^T x_query
    assert found["gd"] == pytest.approx(squared_loss(step, context.y_query), rel=1e-4)
    assert found["zero"] == pytest.approx(float(context.y_query.square().mean()) / 2, rel=1e-5)
    for one in found["copies"]:
        assert one["loss_ratio"] == pytest.approx(one["loss"] / found["gd"], rel=1e-5)


def made_up(ratio=1.001):
    found = {}
    for d, n in QUICK.sizes:
        loss = optimum(LinearRegression(d, d, n))[1]
        one = {"loss": ratio * loss, "loss_ratio": ratio, "sensitivity_cosine": 0.9999, "reference_loss": loss}
        found[f"d-{d}-n-{n}"] = {"rate": 0.01, "computed": loss, "gd": loss, "zero": d / 24, "copies": [one] * 5}
    return found


def failing(results):
    return {claim.name for claim in dimensions.outcome(QUICK, results).claims if not claim.holds}


def test_the_step_everywhere_makes_every_claim_hold():
    assert failing(made_up()) == set()
    assert failing(made_up(1.011)) == {"published_sizes_loss_ratio", "up_to_50_loss_ratio", "up_to_50_success_rate"}
    text = " ".join(dimensions.outcome(QUICK, made_up()).record["blocks"][0]["paragraphs"])
    assert "45 of 45 seeds end within 1 % of the loss of one step" in text
    assert "All seeds do at every such size" in text
    assert "d = 10, N = 200: 1.0010" in text


@pytest.mark.parametrize(
    ("size", "claims"),
    [
        ("d-35-n-10", {"published_sizes_loss_ratio", "up_to_50_loss_ratio"}),
        ("d-10-n-50", {"up_to_50_loss_ratio"}),
        ("d-50-n-50", {"up_to_50_loss_ratio"}),
        ("d-10-n-200", set()),
    ],
)
def test_one_seed_of_a_claimed_size_is_enough_to_fail(size, claims):
    for bad in ({"loss": 1.0, "loss_ratio": 1.2, "sensitivity_cosine": 0.9, "reference_loss": 1.0}, None):
        results = copy.deepcopy(made_up())
        results[size]["copies"] = [bad, *results[size]["copies"][1:]]
        assert failing(results) == claims
        paragraphs = " ".join(dimensions.outcome(QUICK, results).record["blocks"][0]["paragraphs"])
        assert ("(4 of 5)" in paragraphs) == bool(claims)
        assert ("a seed diverged" in paragraphs) == (not claims and bad is None)


def test_more_failing_seeds_lower_the_rate():
    results = copy.deepcopy(made_up())
    results["d-20-n-10"]["copies"] = [None] * 3 + results["d-20-n-10"]["copies"][3:]
    assert failing(results) == {"published_sizes_loss_ratio", "up_to_50_loss_ratio", "up_to_50_success_rate"}
    results = copy.deepcopy(made_up())
    results["d-10-n-200"]["gd"] *= 0.9
    assert failing(results) == {"gd_loss_over_closed_form"}


def test_the_whole_experiment_at_toy_size(monkeypatch):
    monkeypatch.setitem(dimensions.PRESETS, "quick", TINY)
    found = experiments.run("dimensions")
    assert found.seeds == (0, 1)
    assert json.dumps(found.record, allow_nan=False)
    assert [block["kind"] for block in found.record["blocks"]] == ["text", "lines", "lines", "dots", "table"]
    assert not any(claim.holds for claim in found.claims if claim.name.endswith("loss_ratio"))  # four steps teach nothing
