"""The models that ship with the package: there, small, and still what their notes claim, on tasks they were not chosen on."""

import json
from dataclasses import asdict

import pytest
import torch

import gdssm
from gdssm import as_predictor, learners, saving
from gdssm.config import from_mapping
from gdssm.ready import READY, make, measure
from gdssm.settings import TrainConfig

NAMES = sorted(READY)


def test_the_shipped_files_are_the_listed_models() -> None:
    assert list(gdssm.ready_models()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_claims_still_hold(name: str) -> None:
    """On the tasks that the notes were measured on, the same numbers; on 10,000 others, the same bounds."""
    model, notes = gdssm.load(name), saving.notes(name)
    again = {claim.name: claim for claim in measure(READY[name], model)}
    for claim in notes["claims"]:
        assert claim["holds"]
        assert again[claim["name"]].value == pytest.approx(claim["value"], rel=1e-5)
        assert again[claim["name"]].target == claim["target"]
    assert all(claim.holds for claim in measure(READY[name], model, step=1))


@pytest.mark.parametrize("name", NAMES)
def test_notes_say_how_it_was_made(name: str) -> None:
    notes = saving.notes(name)
    assert notes["command"] == f"python -m gdssm.ready {name}"
    assert from_mapping(TrainConfig, notes["config"]) == READY[name].config
    assert json.loads(json.dumps(asdict(READY[name].config))) == notes["config"]
    assert (saving.READY / f"{name}.safetensors").stat().st_size < 8_000


def test_a_random_layer_does_not_pass_for_a_ready_one() -> None:
    model = gdssm.train.build_model(READY["one-step"].config.model, READY["one-step"].config.task, 0)
    assert not any(claim.holds for claim in measure(READY["one-step"], model))


def test_a_shipped_model_predicts_any_table_of_its_size() -> None:
    """Linear data of 10 features: the prediction is one gradient step's, learned from the rows alone."""
    task = gdssm.LinearRegression()
    context = task.sample(200, seed=77)
    predicted = as_predictor(gdssm.load("one-step"))(context).detach()
    rate = gdssm.theory.one_step_optimum(10, 10, x_var=1 / 12, x_fourth_moment=1 / 80)[0]
    wanted = learners.gradient_descent(context.x, context.y, context.x_query, lr=rate)
    assert float((predicted - wanted).norm() / wanted.norm()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_command_makes_the_model_again(name: str) -> None:
    made, shipped = make(name)[0], gdssm.load(name)
    with torch.no_grad():
        for (key, found), (_, wanted) in zip(made.named_parameters(), shipped.named_parameters(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3, msg=key)
