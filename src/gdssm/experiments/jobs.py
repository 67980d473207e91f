"""The independent jobs that experiments consist of: run one after another or on several processes, kept as they finish.

A job is a function of a module and its arguments; its result is JSON data and depends on nothing else. Results are files,
so an interrupted run goes on where it stopped, to the same numbers: JSON keeps every bit of a float. Read `run_jobs` first.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .. import progress
from .claims import write_json

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """function(*arguments) -> JSON data. The function belongs to a module; arguments are told apart by their repr."""

    function: Callable[..., Result]
    arguments: tuple[Any, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 of the function's name, the arguments, this package's source and torch's version."""
        parts = [self.function.__module__, self.function.__qualname__, repr(self.arguments), _source(), _torch_version()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Finished:
    """A job's result and the seconds it took."""

    result: Result
    seconds: float


class Kept:
    """The results of finished jobs, a file for each in a folder; results of other code or other settings do not count."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str, job: Job) -> Finished | None:
        """The result of a job that was finished before; None where there is none, or a damaged one."""
        try:
            found = json.loads(self._path(name).read_text(encoding="utf-8"))
            if found["fingerprint"] == job.fingerprint() and isinstance(found["result"], dict):
                return Finished(found["result"], float(found["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def write(self, name: str, job: Job, finished: Finished) -> None:
        """Keep a result, whole or not at all."""
        content = {"fingerprint": job.fingerprint(), "seconds": finished.seconds, "result": finished.result}
        write_json(self._path(name), content)

    def clear(self) -> None:
        """Remove every kept result, and the folder where nothing else is in it."""
        for path in self.folder.glob("*.json"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def run_jobs(
    jobs: Mapping[str, Job], *, workers: int = 1, finished: Callable[[str, Finished], None] | None = None
) -> dict[str, Finished]:
    """Run all jobs, and call finished(name, result) after each, in this process. Results by name, in the order of jobs.

    workers 1: in this process, in order. More: on so many processes with one torch thread each, which end with this one.
    The first exception of a job is raised; results that were there before it have been handed to `finished`.
    """
    results: dict[str, Finished] = {}
    several = min(workers, len(jobs)) > 1
    for name, result in _on_processes(jobs, min(workers, len(jobs))) if several else _in_turn(jobs):
        results[name] = result
        if finished is not None:
            finished(name, result)
    return {name: results[name] for name in jobs}


def _in_turn(jobs: Mapping[str, Job]) -> Iterator[tuple[str, Finished]]:
    for i, (name, job) in enumerate(jobs.items()):
        if len(jobs) > 1:
            print(f"job {i + 1} of {len(jobs)}: {name}", file=sys.stderr, flush=True)
        yield name, _timed(job)


def _timed(job: Job) -> Finished:
    start = time.monotonic()
    result = json.loads(json.dumps(job.function(*job.arguments)))  # what a file would give back: lists for tuples
    return Finished(result, time.monotonic() - start)


def _on_processes(jobs: Mapping[str, Job], workers: int) -> Iterator[tuple[str, Finished]]:
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in whatever state they are
    news = context.SimpleQueue()
    with (
        progress.Board(len(jobs)) as board,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(news,)) as pool,
    ):
        try:
            pending: dict[Future[Finished], str] = {pool.submit(_timed, job): name for name, job in jobs.items()}
            while pending:
                done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                while not news.empty():
                    board.hear(*news.get())
                for future in done:
                    name = pending.pop(future)
                    result = future.result()
                    board.finish()
                    yield name, result
                board.show()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start_worker(news: Any) -> None:
    """A worker leaves ctrl-C to its parent, ends when the parent has ended, and tells it how far its job is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    worker = os.getpid()
    progress.listener = lambda label, done, total: news.put((worker, label, done, total))
    os.environ["OMP_NUM_THREADS"] = "1"  # torch, which a job imports after this, reads it once


@cache
def _source() -> str:
    """SHA-256 of this package's source, so that numbers of two versions of it are never mixed."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def _torch_version() -> str:
    import torch

    return str(torch.__version__)
