"""What `gdssm reproduce` does: run the jobs of experiments, keep what is finished, write claims, records and the report."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from .config import counted
from .experiments import Plan
from .experiments.claims import all_required_hold, environment, write_json
from .experiments.jobs import Finished, Job, Kept, run_jobs
from .report import summary_table, write_report


class Reproduction:
    """Experiments on their way into a directory. `run` says whether every identity and replication holds.

    workers  processes
    fresh    forget what an interrupted run finished

    Results of jobs are kept in out/NAME/jobs as they finish, and removed when all experiments are done.
    """

    def __init__(self, plans: Sequence[Plan], preset: str, out: Path, *, workers: int = 1, fresh: bool = False) -> None:
        self.preset, self.out, self.workers, self.fresh = preset, out, workers, fresh
        self.plans = {chosen.name: chosen for chosen in plans}
        self.kept = {name: Kept(out / name / "jobs") for name in self.plans}
        self.jobs: dict[str, tuple[str, str, Job]] = {}  # by NAME/JOB: experiment, job
        self.results: dict[str, Finished] = {}
        self.complete: set[str] = set()  # experiments all of whose jobs are known: those of their second stage too
        self.good = True
        for name, chosen in self.plans.items():
            self._add(name, chosen.jobs())

    def run(self) -> bool:
        """Run what is left to run, write each experiment as soon as its last job is done, then the report."""
        for key, (name, job, made) in self.jobs.items():
            self._look_up(key, name, job, made)
        for name in self.plans:
            self._go_on(name)
        if self.results:
            done = f"{len(self.results)} of {counted(len(self.jobs), 'job')}"
            print(f"going on: {done} were finished before (--fresh runs them again)", file=sys.stderr)
        while waiting := {key: made for key, (_, _, made) in self.jobs.items() if key not in self.results}:
            run_jobs(waiting, workers=self.workers, finished=self._finished)
        print(f"report: {write_report(self.out)}")
        for kept in self.kept.values():
            kept.clear()
        return self.good

    def _add(self, name: str, jobs: Mapping[str, Job]) -> list[str]:
        """Jobs of an experiment: their keys."""
        added = {f"{name}/{job}": (name, job, made) for job, made in jobs.items()}
        self.jobs |= added
        return list(added)

    def _look_up(self, key: str, name: str, job: str, made: Job) -> None:
        """Take the result that an interrupted run left, if there is one."""
        found = None if self.fresh else self.kept[name].read(job, made)
        if found is not None:
            self.results[key] = found

    def _finished(self, key: str, result: Finished) -> None:
        name, job, made = self.jobs[key]
        self.kept[name].write(job, made, result)
        self.results[key] = result
        self._go_on(name)

    def _go_on(self, name: str) -> None:
        """Where all jobs of an experiment are done: add those that depend on them, or write it if there are none."""
        mine = {job: self.results.get(key) for key, (owner, job, _) in self.jobs.items() if owner == name}
        found = {job: finished for job, finished in mine.items() if finished is not None}
        if len(found) < len(mine):
            return
        if name not in self.complete:
            self.complete.add(name)
            for key in self._add(name, self.plans[name].further({job: finished.result for job, finished in found.items()})):
                self._look_up(key, *self.jobs[key])
            self._go_on(name)
        else:
            self._write(name, found)

    def _write(self, name: str, found: Mapping[str, Finished]) -> None:
        outcome = self.plans[name].outcome({job: finished.result for job, finished in found.items()})
        results = {
            "experiment": name,
            "preset": self.preset,
            "seeds": list(outcome.seeds),
            "claims": [claim.as_record() for claim in outcome.claims],
            "environment": environment(sum(one.seconds for one in found.values())) | {"jobs": len(found), "workers": self.workers},
        }
        write_json(self.out / name / "record.json", outcome.record)
        write_json(self.out / name / "results.json", results)
        Console().print(summary_table(results))
        self.good = self.good and all_required_hold(outcome.claims)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
