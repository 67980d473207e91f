"""Jobs of experiments: the same results on one process and on several, kept as they finish, whoever stops the run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jobs_to_run
from gdssm import cli, experiments, reproduced
from gdssm.experiments import jobs, one_step
from gdssm.experiments.jobs import Finished, Job, Kept, run_jobs
from gdssm.settings import TrainConfig
from gdssm.tasks import LinearRegression

TINY = one_step.Preset(
    seeds=(0,),
    full_seeds=(0,),
    eval_tasks=50,
    curve_tasks=20,
    curve_points=2,
    training=TrainConfig(task=LinearRegression(3, 3, 6), steps=5, batch=8, warmup=2),
)


def test_processes_give_the_bits_that_this_process_gives():
    wanted = {f"job-{i}": Job(jobs_to_run.number, (i,)) for i in range(5)}
    here = run_jobs(wanted)
    order = []
    there = run_jobs(wanted, workers=2, finished=lambda name, _: order.append(name))
    assert list(here) == list(there) == list(wanted)
    assert sorted(order) == sorted(wanted)
    for name in wanted:
        assert there[name].result["threads"] == 1
        assert here[name].result | {"threads": 1} == there[name].result
        assert there[name].result["pair"] == [int(name[-1]), None]  # as a file gives it back


def test_several_workers_are_other_processes():
    found = run_jobs({str(i): Job(jobs_to_run.process) for i in range(2)}, workers=2)
    assert os.getpid() not in {one.result["pid"] for one in found.values()}
    assert run_jobs({"one": Job(jobs_to_run.process)}, workers=2)["one"].result["pid"] == os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_finished_before_a_failure_is_handed_over(workers):
    seen = []
    work = {"good": Job(jobs_to_run.number, (1,)), "bad": Job(jobs_to_run.fail), "later": Job(jobs_to_run.slow, (600.0,))}
    with pytest.raises(ValueError, match="no result"):
        run_jobs(work, workers=workers, finished=lambda name, _: seen.append(name))
    assert seen in (["good"], [])[: 1 if workers == 1 else 2]  # on two processes the failure may come first


def test_a_kept_result_counts_for_the_same_job_and_source_alone(tmp_path, monkeypatch):
    kept, job = Kept(tmp_path / "jobs"), Job(jobs_to_run.number, (1,))
    assert kept.read("a", job) is None
    kept.write("a", job, Finished({"x": 1 / 3}, 2.5))
    assert kept.read("a", job) == Finished({"x": 1 / 3}, 2.5)
    assert kept.read("a", Job(jobs_to_run.number, (2,))) is None
    assert kept.read("a", Job(jobs_to_run.slow, (1,))) is None
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_source", lambda: "another version")
        assert kept.read("a", job) is None
    path = tmp_path / "jobs" / "a.json"
    text = path.read_text()
    for damaged in ("", text[: len(text) // 2], "[]", "{}", text.replace('"seconds": 2.5', '"seconds": null')):
        path.write_text(damaged)
        assert kept.read("a", job) is None
    kept.clear()
    assert not (tmp_path / "jobs").exists()


def test_a_result_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        Kept(tmp_path).write("a", Job(jobs_to_run.number, (1,)), Finished({"x": float("nan")}, 1.0))
    assert list(tmp_path.iterdir()) == []


def stopped(tmp_path: Path, sign: signal.Signals) -> tuple[subprocess.Popen, list[int]]:
    """The program after its quick jobs were kept and the signal was sent, and the ids of its workers."""
    program = [sys.executable, jobs_to_run.__file__, str(tmp_path / "jobs")]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "jobs").glob("quick-*.json"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    workers = [json.loads(path.read_text())["result"]["pid"] for path in (tmp_path / "jobs").glob("quick-*.json")]
    (os.killpg if sign == signal.SIGINT else os.kill)(process.pid, sign)  # ctrl-C reaches the whole group
    process.wait(120)
    return process, workers


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_keeps_what_is_finished_and_leaves_no_worker(tmp_path, sign):
    process, workers = stopped(tmp_path, sign)
    out, _ = process.communicate()
    assert out == ("stopped\n" if sign == signal.SIGINT else "")
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["quick-0.json", "quick-1.json"]


def test_an_interrupted_reproduction_goes_on_to_the_same_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(one_step.PRESETS, "quick", TINY)
    monkeypatch.setattr(reproduced, "write_report", lambda out: out / "report.html")  # has tests of its own
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def reproduce(out, *more):
        with pytest.raises(SystemExit) as stop:
            cli.main(["reproduce", "one-step", "--workers", "1", "--out", str(out), *more])
        return stop.value.code, capsys.readouterr().err

    ran = []
    variant = one_step.trained_variant

    def counted(sizes, decay):
        ran.append(decay)
        return variant(sizes, decay)

    def interrupted(sizes, decay):
        if decay == "full":
            raise KeyboardInterrupt
        return variant(sizes, decay)

    for make in (counted, interrupted):
        make.__module__, make.__qualname__ = variant.__module__, variant.__qualname__
    monkeypatch.setattr(one_step, "trained_variant", counted)
    assert reproduce(whole)[0] == 1
    assert not (whole / "one-step" / "jobs").exists()
    monkeypatch.setattr(one_step, "trained_variant", interrupted)
    code, err = reproduce(parts)
    assert code == 130
    assert "finished jobs are kept" in err
    assert [path.name for path in parts.rglob("*.*")] == ["head-decay.json"]
    ran.clear()
    monkeypatch.setattr(one_step, "trained_variant", counted)
    code, err = reproduce(parts)
    assert (code, ran) == (1, ["full"])
    assert "going on: 1 of 2 jobs were finished before" in err
    assert (parts / "one-step" / "record.json").read_bytes() == (whole / "one-step" / "record.json").read_bytes()
    first, second = (json.loads((out / "one-step" / "results.json").read_text())["claims"] for out in (whole, parts))
    assert first == second
    assert not (parts / "one-step" / "jobs").exists()
    monkeypatch.setattr(one_step, "trained_variant", interrupted)
    assert reproduce(parts)[0] == 130
    ran.clear()
    monkeypatch.setattr(one_step, "trained_variant", counted)
    assert reproduce(parts, "--fresh")[0] == 1
    assert ran == ["head", "full"]


def test_an_experiment_runs_in_python_without_files(monkeypatch, tmp_path):
    monkeypatch.setitem(one_step.PRESETS, "quick", TINY)
    monkeypatch.chdir(tmp_path)
    found = experiments.run("one-step", seeds=2, first_seed=7)
    assert found.seeds == (7, 8)
    assert [len(variant["seeds"]) for variant in found.record["variants"]] == [2, 2]
    assert list(tmp_path.iterdir()) == []
