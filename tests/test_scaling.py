"""scaling: what is counted and timed, exponents, and what claims say of made-up measurements."""

import copy
import json
import time
from dataclasses import replace

import pytest

from gdssm import LinearRegression, experiments
from gdssm.experiments import scaling, scaling_report
from gdssm.settings import TrainConfig

BASE = TrainConfig(task=LinearRegression(3, 3, 4), steps=10**6, batch=8, warmup=0)
TINY = scaling.Preset(
    base=BASE,
    examples=(4, 8, 16),
    features=(2, 4),
    batches=(4, 8),
    copies=(1, 3),
    threads=(1, 2),
    thread_batch=8,
    seconds=0.0,
    blocks=1,
)


def test_one_size_changes_at_a_time():
    assert scaling.configuration(TINY, "examples", 9, "full").task.n_examples == 9
    assert scaling.configuration(TINY, "features", 9, "full").task.d_y == 9
    assert scaling.configuration(TINY, "batch", 9, "full").batch == 9
    assert scaling.configuration(TINY, "copies", 3, "full").seeds == (0, 1, 2)
    assert scaling.configuration(TINY, "batch", 8, "head") == replace(BASE, seeds=(0,))


@pytest.mark.parametrize("decay", scaling.DECAYS)
def test_memory_is_counted_and_grows_with_the_tokens(decay):
    def kept(batch, n=4):
        return scaling.kept_bytes(
            replace(scaling.configuration(TINY, "batch", batch, decay), task=replace(BASE.task, n_examples=n))
        )

    assert kept(64) == kept(64)
    tokens = 4 * (2 * 100 + 1) * 3  # bytes of one task's tokens: they are kept, and nothing as large as all states
    assert tokens <= (kept(65, 100) - kept(64, 100)) < 20 * tokens
    assert kept(4096) / kept(2048) == pytest.approx(2, rel=0.05)


def test_a_clock_that_jumps_once_does_not_count():
    """The least of several blocks: one of them is slow."""
    times = iter([0.0, 1.0, 1.0, 10.0, 19.0, 19.0, 20.0, 22.0, 22.0])

    def clock():
        return next(times)

    assert scaling.step_seconds(BASE, 0.5, 3, clock=clock) == pytest.approx((1.0, 9.0))
    start = time.process_time()
    assert 0 < scaling.step_seconds(BASE, 0.0, 2)[0] < time.process_time() - start


def test_the_experiment_runs(monkeypatch):
    monkeypatch.setitem(scaling.PRESETS, "quick", TINY)
    found = experiments.run("scaling")
    assert len(found.claims) == 17
    assert len(found.record["blocks"]) == 11
    assert all(claim.kind == "hypothesis" for claim in found.claims)
    json.dumps(found.record, allow_nan=False)


def test_exponents_are_those_of_the_largest_sizes():
    sizes = (1, 2, 4, 8, 16)
    assert scaling_report.exponent(sizes, [5.0, 5.0, *(3.0 * size**1.5 for size in sizes[2:])]) == pytest.approx(1.5)
    assert scaling_report.exponent((2, 4), [1.0, 4.0]) == pytest.approx(2.0)


def made_up():
    """Time and memory as counted, and a program of 64 seeds as dear as 16 programs."""
    results = {}
    for decay in scaling.DECAYS:
        for axis in scaling.AXES:
            sizes = [1, 4, 16, 64]
            grow = {"seconds": scaling_report.TIME[axis], "bytes": scaling_report.MEMORY[decay][axis]}
            results[f"{axis}-{decay}"] = {
                "sizes": sizes,
                "drawing": [0.5] * 4,
                **{what: [float(size**power) for size in sizes] for what, power in grow.items()},
            }
            results[f"{axis}-{decay}"]["slowest"] = [2 * value for value in results[f"{axis}-{decay}"]["seconds"]]
    results["copies-head"]["seconds"] = [1.0, 1.0, 4.0, 16.0]
    results["threads"] = {"sizes": [1, 2], "seconds": [2.0, 1.25]}
    return results


def test_what_is_counted_makes_every_claim_hold():
    results = made_up()
    claims = scaling_report.claims(scaling.AXES, scaling.DECAYS, results)
    assert [claim.name for claim in claims if not claim.holds] == []
    text = " ".join(scaling_report.blocks(scaling.AXES, scaling.DECAYS, 64, results)[0]["paragraphs"])
    assert "takes 0.25 of the time of 64 programs" in text
    assert "1.60 times as fast with 2 threads" in text


@pytest.mark.parametrize(
    ("job", "what", "name"),
    [
        ("examples-head", "seconds", "time_exponent_examples_head"),
        ("batch-full", "bytes", "memory_exponent_batch_full"),
        ("features-full", "bytes", "memory_exponent_features_full"),
    ],
)
def test_claims_fail_where_something_grows_faster(job, what, name):
    results = copy.deepcopy(made_up())
    results[job][what] = [value**1.3 for value in results[job][what]]
    assert [claim.name for claim in scaling_report.claims(scaling.AXES, scaling.DECAYS, results) if not claim.holds] == [name]


def test_a_program_that_saves_nothing_fails():
    results = made_up()
    results["copies-head"]["seconds"] = [1.0, 4.0, 16.0, 64.0]
    failing = [claim.name for claim in scaling_report.claims(scaling.AXES, scaling.DECAYS, results) if not claim.holds]
    assert failing == ["one_program_over_separate_ones"]
