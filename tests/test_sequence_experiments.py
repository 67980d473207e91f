"""lm, recall, listops and images at toy size, and what their claims and choices say of made-up results."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats

from gdssm import experiments
from gdssm.analysis import t_interval
from gdssm.baselines import parameter_count
from gdssm.blocks import from_records
from gdssm.config import ConfigError
from gdssm.experiments import images, in_context_depth, listops, lm, recall, sequence_runs
from gdssm.experiments.sequence_contenders import CONTENDERS, Shape, build, size_for, state_size
from gdssm.recipe import Recipe
from gdssm.sequences import AssociativeRecall, DenseRegression, Digits, TextError
from gdssm.sequences import ListOps as ListOpsTask

RECIPE = Recipe(steps=3, batch=4, warmup=1)
SHAPE = Shape(width=8, n_layers=1, n_heads=2, max_tokens=16)
POOLED = replace(SHAPE, pooled=True, both=True)
TINY = {
    lm: lm.Preset(
        contenders=("gdssm", "delta-net"), seeds=(0, 1), rates=(0.01,), shape=SHAPE, recipe=RECIPE, points=2,
        limit=8000, held=8, sample=10,
    ),
    recall: recall.Preset(
        contenders=("gdssm", "delta-net"), seeds=(0,), rates=(0.01,), shape=SHAPE, recipe=RECIPE, points=2,
        cells=((16, 2), (24, 4)), widths=(8, 12), vocabulary=20, held=32,
    ),
    listops: listops.Preset(
        seeds=(0, 1), rates=(0.01,), shape=POOLED, recipe=RECIPE, points=2, min_length=5, max_length=16, max_depth=3, max_args=3,
        held=60,
    ),
    images: images.Preset(contenders=("gdssm", "gdssm-window"), rates=(0.01,), shape=POOLED, recipe=RECIPE, points=2, folds=2),
}  # fmt: skip


@pytest.mark.parametrize("module", TINY, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_experiment_runs(module, monkeypatch, capsys):
    name = module.__name__.rpartition(".")[2]
    monkeypatch.setitem(module.PRESETS, "quick", TINY[module])
    found = experiments.run(name)
    json.dumps(found.record, allow_nan=False)
    blocks = from_records(found.record["blocks"], name)
    assert {"Text", "Table"} <= {type(block).__name__ for block in blocks}
    assert found.record["experiment"] == name
    assert all(claim.holds for claim in found.claims if claim.kind == "identity")
    assert any(claim.kind == "hypothesis" for claim in found.claims)
    assert found.seeds == TINY[module].seeds


@pytest.mark.parametrize(
    ("module", "preset"),
    [
        *((lm, preset) for preset in ("quick", "reduced", "paper")),
        *((module, preset) for module in (listops, images) for preset in ("reduced", "paper")),
        *((in_context_depth, preset) for preset in ("quick", "reduced", "paper")),
    ],
    ids=lambda part: part if isinstance(part, str) else part.__name__.rpartition(".")[2],
)
def test_contenders_of_the_presets_have_as_many_parameters(module, preset):
    sizes = module.PRESETS[preset]
    task = {
        lm: lambda: AssociativeRecall(vocabulary=100),
        listops: ListOpsTask,
        images: Digits,
        in_context_depth: lambda: DenseRegression(sizes.task),
    }[module]()
    with torch.device("meta"):
        counts = {
            name: parameter_count(CONTENDERS[name].make(task, sizes.shape, size_for(name, task, sizes.shape)))
            for name in sizes.contenders
        }
    assert all(abs(count / counts["gdssm"] - 1) <= 0.05 for count in counts.values()), counts
    if (module, preset) == (lm, "paper"):
        assert 0.75e6 < counts["gdssm"] < 0.95e6


def test_mixers_alone_are_matched_by_their_width():
    config = build("gdssm-mixers", AssociativeRecall(64, 8, vocabulary=66), Shape(), seed=0).config
    assert (config.d_mlp, config.n_heads, config.d_head * config.n_heads) == (0, 8, 2 * config.d_model)
    assert (config.taps, config.decay, config.skip, config.branch_scale) == ("channel", "input", True, 0.1)


def test_weights_of_a_contender_depend_on_the_seed_alone():
    task = AssociativeRecall(16, 2, 20)
    for name in CONTENDERS:
        shape = SHAPE
        first, again, other = (list(build(name, task, shape, seed).parameters()) for seed in (0, 0, 1))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@torch.no_grad()
def test_the_control_remembers_nothing():
    """One block, a window of 4: tokens before the window change nothing, in the model itself they do."""
    task = AssociativeRecall(16, 2, 20)
    read = torch.randint(20, (1, 16), generator=torch.Generator().manual_seed(0))
    changed = read.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 20
    for name, remembers in (("gdssm", True), ("gdssm-window", False)):
        model = build(name, task, SHAPE, 0)
        moved = (model(read)[0] - model(changed)[0]).abs().amax(2)[0] > 0
        assert moved.tolist()[:5] == [False] * 5
        assert bool(moved[5:9].all())
        assert bool(moved[9:].any()) == remembers
        assert state_size(model, 16) == 2 * 16 + 3 * 8
    with pytest.raises(ConfigError, match="gpt2 is causal here"):
        build("gpt2", Digits(), POOLED, 0)
    assert state_size(build("gdssm", Digits(), POOLED, 0), 64) is None


# What is made of results


def made_up(losses, sizes, prefix=""):
    """Results with a final and test loss for every (contender, rate, seed)."""
    found = {}
    for name in sizes.contenders:
        for rate in sizes.rates:
            for seed in sizes.seeds:
                loss = losses(name, rate, seed)
                found[sequence_runs.job_name(prefix, name, rate, seed)] = {
                    "parameters": 1000, "state": 50, "steps": [1, 2], "validation": [2 * loss, loss] if loss else [None, None],
                    "final": loss, "milliseconds": 5.0, "diverged": None if loss else "step 1", "device": "cpu",
                    "test_loss": loss, "test_accuracy": None if loss is None else 1 - loss / 10,
                    "groups": [[1, 3, 4], [2, 1, 4]], "streamed": 1e-6, "sample": "a|b", "commonest": 0.2,
                }  # fmt: skip
    return found


def test_the_rate_is_chosen_on_the_validation_and_a_diverged_seed_rules_one_out():
    sizes = replace(TINY[lm], rates=(0.01, 0.1, 1.0), seeds=(0, 1))
    results = made_up(lambda name, rate, seed: None if (rate, seed) == (1.0, 1) else 1.0 if rate == 0.01 else 2.0, sizes)
    for key, result in results.items():  # the test would choose another rate
        if "-1e-1-" in key:
            result["test_loss"] = 0.1
    chosen = sequence_runs.choose(sizes, results)["gdssm"]
    assert (chosen.rate, chosen.rates) == (0.01, {0.01: 1.0, 0.1: 2.0, 1.0: None})
    assert chosen.values("test_loss") == (1.0, 1.0)
    worst = sequence_runs.choose(sizes, made_up(lambda name, rate, seed: None, sizes))["gdssm"]
    assert worst.middle("test_loss") is None
    assert sequence_runs.spread(worst.values("test_loss")) == "2 of 2 diverged"
    assert sequence_runs.curves("curves", {"gdssm": worst}, "loss") is None


def test_some_seeds_try_every_rate_and_the_others_the_best_alone():
    sizes = replace(TINY[lm], rates=(0.01, 0.1), seeds=(0, 1, 2), tuned=1)
    tried = sequence_runs.jobs_of(sizes, sequence_runs.trained)
    assert set(tried) == {f"{name}-{rate}-0" for name in sizes.contenders for rate in ("1e-2", "1e-1")}
    # seed 0 prefers 0.1 for gdssm and 0.01 for the other; what other seeds would say does not count
    results = made_up(lambda name, rate, seed: 1.0 + (rate == 0.01) * (1 if name == "gdssm" else -0.5) * (-1) ** seed + seed, sizes)
    known = {name: results[name] for name in tried}
    rest = sequence_runs.further_of(sizes, known, sequence_runs.trained)
    assert set(rest) == {f"gdssm-1e-1-{seed}" for seed in (1, 2)} | {f"delta-net-1e-2-{seed}" for seed in (1, 2)}
    assert rest["gdssm-1e-1-2"].arguments == (sequence_runs.alone(sizes), "gdssm", 0.1, 2)
    fewer = sequence_runs.jobs_of(replace(sizes, contenders=("gdssm",), seeds=(0,), tuned=None), sequence_runs.trained)
    assert fewer["gdssm-1e-1-0"].fingerprint() == tried["gdssm-1e-1-0"].fingerprint()  # what was trained is kept
    longer = replace(sizes, recipe=replace(RECIPE, steps=4))
    other = sequence_runs.jobs_of(longer, sequence_runs.trained)["gdssm-1e-1-0"]
    assert other.fingerprint() != tried["gdssm-1e-1-0"].fingerprint()
    chosen = sequence_runs.choose(sizes, known | {name: results[name] for name in rest})
    assert {name: one.rate for name, one in chosen.items()} == {"gdssm": 0.1, "delta-net": 0.01}
    assert chosen["gdssm"].values("final") == (1.0, 2.0, 3.0)
    assert (
        "the best on the validation of the first seed; the other seeds train at that rate alone"
        in sequence_runs.settings_of(sizes)["learning rates"]
    )
    assert not sequence_runs.further_of(replace(sizes, tuned=None), results, sequence_runs.trained)


@pytest.mark.parametrize("module", TINY, ids=lambda module: module.__name__.rpartition(".")[2])
def test_two_stages_train_what_they_say(module, monkeypatch):
    """With `tuned` the experiment runs to its end, and its further jobs are those of the other seeds, or folds."""
    name = module.__name__.rpartition(".")[2]
    sizes = replace(TINY[module], rates=(0.01, 0.02), seeds=(0, 1), tuned=1, contenders=TINY[module].contenders[:2])
    monkeypatch.setitem(module.PRESETS, "quick", sizes)
    ran = []
    one_job = experiments.run_jobs
    monkeypatch.setattr(experiments, "run_jobs", lambda jobs: ran.append(set(jobs)) or one_job(jobs))
    experiments.run(name)
    first, second = ran
    assert len(second) * 2 == len(first)
    assert not first & second


def test_differences_are_paired_with_students_interval():
    assert sequence_runs.difference((1.0, 2.0, 3.0), (0.5, 1.6, 2.7)) == pytest.approx(
        (0.4, *stats.t.interval(0.95, 2, 0.4, stats.sem([0.5, 0.4, 0.3])))
    , rel=1e-4)  # fmt: skip
    assert sequence_runs.difference((1.0,), (0.5,)) is None
    assert sequence_runs.difference((1.0, None), (0.5, 1.0)) is None
    for count in (2, 5, 11, 12, 40):
        values = [math.sin(3 * i) for i in range(count)]
        wanted = stats.t.interval(0.95, count - 1, sum(values) / count, stats.sem(values))
        assert t_interval(values) == pytest.approx(wanted, rel=2e-3)
    with pytest.raises(ValueError, match="at least two numbers, got 1"):
        t_interval([1.0])


def claims_of(module, results, sizes=None):
    return {claim.name: claim for claim in module.outcome(sizes or TINY[module], results).claims}


def test_claims_of_lm_are_ratios_to_the_best_rival_and_gpt2():
    sizes = replace(TINY[lm], contenders=("gdssm", "gdssm-input-decay", "linear-attention", "delta-net", "gpt2"))
    losses = {"gdssm": 2.04, "gdssm-input-decay": 2.2, "linear-attention": 2.3, "delta-net": 2.0, "gpt2": 3.0}
    results = made_up(lambda name, rate, seed: losses[name] + 0.1 * seed, sizes)
    found = claims_of(lm, results, sizes)
    assert found["bits_over_best_recurrent"].value == pytest.approx(2.09 / 2.05)
    assert found["bits_over_gpt2"].value == pytest.approx(2.09 / 3.05)
    assert found["input_decay_over_decay_per_head"].value == pytest.approx(2.25 / 2.09)
    assert [claim.name for claim in found.values() if not claim.holds] == ["input_decay_over_decay_per_head"]
    answer = " ".join(lm.outcome(sizes, results).record["blocks"][0]["paragraphs"])
    assert "Against DeltaNet: +0.0577 bits per character, 95 % interval +0.0577 to +0.0577; GDSSM is worse." in answer
    assert "Against GPT-2: -1.3850" in answer
    broken = copy.deepcopy(results)
    broken["gdssm-1e-2-0"]["streamed"] = 0.1
    broken["gpt2-1e-2-0"]["parameters"] = 1100
    failing = [claim.name for claim in claims_of(lm, broken, sizes).values() if claim.kind == "identity" and not claim.holds]
    assert failing == ["parameters_apart", "streamed_against_whole"]
    other = made_up(lambda name, rate, seed: losses[name] + (0.5 if name == "gdssm" else 0.0), sizes)
    assert claims_of(lm, other, sizes)["bits_over_best_recurrent"].value == pytest.approx(2.2 / 2.0)  # the best of ours
    lost = made_up(lambda name, rate, seed: None if name.startswith("gdssm") else 2.0, sizes)
    for key in list(lost):
        if key.startswith("gdssm"):
            del lost[key]["sample"]
    assert not claims_of(lm, lost, sizes)["bits_over_gpt2"].holds


def test_claims_of_recall_are_at_the_small_setting_and_the_hardest():
    sizes = replace(TINY[recall], cells=((64, 8), (24, 4)))
    results = {}
    for prefix, (cell, width) in recall.parts(sizes).items():
        found = made_up(
            lambda name, rate, seed, w=width, c=cell: {"gdssm": 0.05 if w == 12 and c == (64, 8) else 3.0}.get(name, 2.5), sizes
        )
        results |= {prefix + name: one for name, one in found.items()}
    found = claims_of(recall, results, sizes)
    assert found["accuracy_64_tokens_8_pairs"].value == pytest.approx(0.995)
    assert found["accuracy_64_tokens_8_pairs"].holds
    assert found["accuracy_over_delta_net"].value == pytest.approx(0.7 - 0.75)
    assert not found["accuracy_over_delta_net"].holds


def test_claims_of_listops_are_differences_to_the_control():
    losses = {"gdssm": 4.0, "gdssm-window": 4.5, "attention": 4.0}
    results = made_up(lambda name, rate, seed: losses[name] + seed * (name == "gdssm"), TINY[listops])
    found = claims_of(listops, results)
    assert found["accuracy_over_window_only"].value == pytest.approx(0.0)
    assert found["lower_end_of_its_interval"].value == pytest.approx(-0.05 * 12.7062, rel=1e-4)
    assert found["accuracy_over_commonest_value"].value == pytest.approx(0.55 - 0.2)
    rows = listops.outcome(TINY[listops], results).record["blocks"][-1]["rows"]
    assert [row[:2] for row in rows] == [(1, 4), (2, 4)]
    assert rows[0][2].startswith("0.750 (")


def test_images_are_dealt_out_by_the_presets_shuffle():
    sizes = replace(TINY[images], folds=3, shift=0, shuffle=7)
    tasks = {name: job.arguments[1] for name, job in images.jobs(sizes).items()}
    assert tasks["fold2-gdssm-1e-2-0"] == Digits(2, 3, seed=7, shift=0)


def test_a_unit_of_images_is_a_fold():
    sizes = replace(TINY[images], seeds=(0, 1))
    results = {}
    for fold in range(2):
        found = made_up(lambda name, rate, seed, f=fold: 1.0 + f + seed + (name != "gdssm"), sizes)
        results |= {f"fold{fold}-{name}": one for name, one in found.items()}
    found = claims_of(images, results, sizes)
    assert found["accuracy"].value == pytest.approx(1 - 0.2)
    assert found["accuracy_over_window_only"].value == pytest.approx(0.1)


# Options


def test_a_text_reaches_lm_and_its_digest_every_job(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("abcd efgh " * 3000)
    chosen = experiments.plan("lm", options={"text": str(path)})
    first = {name: job.fingerprint() for name, job in chosen.jobs().items()}
    assert first == {name: job.fingerprint() for name, job in chosen.jobs().items()}
    job = next(iter(chosen.jobs().values()))
    path.write_text("abcd efgg " * 3000)
    assert all(job.fingerprint() != first[name] for name, job in chosen.jobs().items())
    with pytest.raises(ConfigError, match="which was changed while the experiment ran"):
        job.function(*job.arguments)
    path.write_text("too short")
    with pytest.raises(TextError, match="a window of 64 needs at least 65 there"):
        chosen.jobs()


def test_other_experiments_take_no_text():
    with pytest.raises(ConfigError, match="--text is given, which one-step does not take; experiments that do: lm"):
        experiments.plan("one-step", options={"text": "x"})
    with pytest.raises(ConfigError, match=r"preset is 'reduced', which one-step does not have; allowed: quick, paper"):
        experiments.plan("one-step", "reduced")
    with pytest.raises(ConfigError, match="contenders must have gdssm, which the others are compared with, got gpt2"):
        experiments.plan("recall", options={"contenders": ("gpt2",)})
    with pytest.raises(ConfigError, match="contenders is 'gtp2'"):
        experiments.plan("recall", options={"contenders": ("gdssm", "gtp2")})
    assert experiments.plan("recall", options={"contenders": ("gdssm", "gpt2")}).sizes.contenders == ("gdssm", "gpt2")
    with pytest.raises(ConfigError, match="contenders is 'gdsm'"):
        lm.Preset(contenders=("gdsm",))
    assert experiments.plan("listops", "reduced").sizes.max_length == 200
    for name in ("listops", "images"):
        with pytest.raises(ConfigError, match="contenders must have gdssm-window, the same without memory, got gdssm, attention"):
            experiments.plan(name, options={"contenders": ("gdssm", "attention")})
        assert experiments.plan(name, options={"contenders": ("gdssm", "gdssm-window")}).jobs()


# The records that docs/deep-models.md speaks of


@pytest.mark.parametrize("name", ["images", "in-context-depth", "listops", "lm", "recall"])
def test_the_page_shows_the_record(name):
    """Tables (but the long one of all blocks) and differences are docs/records/NAME's, and every identity holds there."""
    docs = Path(__file__).parent.parent / "docs"
    page = (docs / "deep-models.md").read_text(encoding="utf-8")
    record, results = (json.loads((docs / "records" / name / f"{kind}.json").read_text()) for kind in ("record", "results"))
    assert all(claim["holds"] for claim in results["claims"] if claim["kind"] == "identity")
    answer = next(block for block in record["blocks"] if block["kind"] == "text")
    for block in (b for b in record["blocks"] if b["kind"] == "table" and b["title"] != "After each block"):
        end = -1 if block["heads"][-1] == "CPU ms per step" else None
        for row in block["rows"]:
            shown = (
                f"{cell:,}" if isinstance(cell, int) else f"{cell:g}" if isinstance(cell, float) else cell for cell in row[:end]
            )
            assert f"| {' | '.join('' if cell is None else cell for cell in shown)} |" in page
    for sentence in answer["paragraphs"]:
        if sentence.startswith("Against "):
            assert sentence in page
