"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

PATIENCE = 2.0  # seconds before a short task's progress is shown
NEWS = 0.5  # seconds from one report to a listener to the next

listener: Callable[[str, int, int], None] | None = None
"""Where a worker process sends label, steps done and their number, in place of showing them."""


def track(total: int, label: str, *, unit: str = "step", every: float = 10.0, first: int = 0) -> Iterator[int]:
    """first .. total-1, shown on standard error; plain lines come every `every` seconds and at the end."""
    if listener is not None:
        yield from _reported(total, label, first, listener)
        return
    if total > first and sys.stderr.isatty():
        yield from _bar(total, label, unit, first)
        return
    start = shown = time.monotonic()
    for i in range(first, total):
        yield i
        now = time.monotonic()
        if now - shown >= every:
            shown = now
            rate = (i + 1 - first) / (now - start)
            left = (total - i - 1) / rate
            print(f"{label}: {i + 1}/{total} {unit}s, {rate:.0f} per second, {left:.0f} s left", file=sys.stderr, flush=True)
    print(f"{label}: {total - first} {unit}s in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def _reported(total: int, label: str, first: int, tell: Callable[[str, int, int], None]) -> Iterator[int]:
    told = 0.0
    for i in range(first, total):
        yield i
        now = time.monotonic()
        if now - told >= NEWS:
            told = now
            tell(label, i + 1, total)


def _bar(total: int, label: str, unit: str, first: int) -> Iterator[int]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=first, rate="")
        for i in range(first, total):
            yield i
            bar.update(task, advance=1, rate=f"{(i + 1 - first) / (time.monotonic() - start):.0f} {unit}s/s")


class Board:
    """Progress of many jobs on several workers: the whole, and what each worker is at."""

    def __init__(self, total: int, *, every: float = 10.0) -> None:
        self.total, self.every = total, every
        self.done = 0
        self.start = self.shown = time.monotonic()
        self.at: dict[int, tuple[str, int, int]] = {}
        self.bars: Bars | None = None
        self.tasks: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bars
            from rich.progress import TimeRemainingColumn

            self.bars = Bars(*Bars.get_default_columns()[:3], TimeRemainingColumn(), console=Console(stderr=True))
            self.bars.start()
            self.tasks[0] = self.bars.add_task("all jobs", total=self.total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bars is not None:
            self.bars.stop()
        elif kind is None:
            print(f"{self.total} jobs in {time.monotonic() - self.start:.0f} s", file=sys.stderr, flush=True)

    def hear(self, worker: int, label: str, done: int, total: int) -> None:
        """A worker is at a step of its job."""
        self.at[worker] = (label, done, total)
        if self.bars is not None:
            if worker not in self.tasks:
                self.tasks[worker] = self.bars.add_task(label)
            self.bars.update(self.tasks[worker], description=label, completed=done, total=total)

    def finish(self) -> None:
        """One more job is done."""
        self.done += 1
        if self.bars is not None:
            self.bars.update(self.tasks[0], completed=self.done)

    def show(self) -> None:
        """A plain line, where there is no terminal and the last one is old enough."""
        now = time.monotonic()
        if self.bars is not None or now - self.shown < self.every:
            return
        self.shown = now
        left = f", about {(now - self.start) / self.done * (self.total - self.done):.0f} s left" if self.done else ""
        busy = "".join(f"; {label} {done}/{total}" for label, done, total in self.at.values())
        print(f"{self.done} of {self.total} jobs{left}{busy}", file=sys.stderr, flush=True)


class Progress:
    """One line on standard error while a file is read: none in the first two seconds, none where stderr is not a terminal."""

    def __init__(self) -> None:
        self._due = time.monotonic() + PATIENCE
        self._shown = False

    def of(self, what: str) -> Callable[[float], None]:
        """A function that shows the fraction done."""

        def watch(fraction: float) -> None:
            now = time.monotonic()
            if now >= self._due and sys.stderr.isatty():
                print(f"\r\x1b[K{what}: {fraction:.0%}", end="", file=sys.stderr, flush=True)
                self._due, self._shown = now + 0.2, True

        return watch

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False
