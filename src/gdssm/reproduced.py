"""What `gdssm reproduce` does: run the jobs of experiments, keep what is finished, write claims, records and the report."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .config import counted
from .experiments import Plan
from .experiments.claims import all_required_hold, environment, write_json
from .experiments.jobs import Finished, Kept, run_jobs
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
        self.jobs = {
            f"{name}/{job}": (name, job, made) for name, chosen in self.plans.items() for job, made in chosen.jobs().items()
        }
        self.results: dict[str, Finished] = {}
        self.good = True

    def run(self) -> bool:
        """Run what is left to run, write each experiment as soon as its last job is done, then the report."""
        for key, (name, job, made) in self.jobs.items():
            found = None if self.fresh else self.kept[name].read(job, made)
            if found is not None:
                self.results[key] = found
        if self.results:
            done = f"{len(self.results)} of {counted(len(self.jobs), 'job')}"
            print(f"going on: {done} were finished before (--fresh runs them again)", file=sys.stderr)
        for name in self.plans:
            self._write_if_complete(name)
        waiting = {key: made for key, (_, _, made) in self.jobs.items() if key not in self.results}
        run_jobs(waiting, workers=self.workers, finished=self._finished)
        print(f"report: {write_report(self.out)}")
        for kept in self.kept.values():
            kept.clear()
        return self.good

    def _finished(self, key: str, result: Finished) -> None:
        name, job, made = self.jobs[key]
        self.kept[name].write(job, made, result)
        self.results[key] = result
        self._write_if_complete(name)

    def _write_if_complete(self, name: str) -> None:
        mine = {job: key for key, (owner, job, _) in self.jobs.items() if owner == name}
        if any(key not in self.results for key in mine.values()):
            return
        outcome = self.plans[name].outcome({job: self.results[key].result for job, key in mine.items()})
        seconds = sum(self.results[key].seconds for key in mine.values())
        results = {
            "experiment": name,
            "preset": self.preset,
            "seeds": list(outcome.seeds),
            "claims": [claim.as_record() for claim in outcome.claims],
            "environment": environment(seconds) | {"jobs": len(mine), "workers": self.workers},
        }
        write_json(self.out / name / "record.json", outcome.record)
        write_json(self.out / name / "results.json", results)
        Console().print(summary_table(results))
        self.good = self.good and all_required_hold(outcome.claims)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
