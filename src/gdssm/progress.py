"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator

PATIENCE = 2.0  # seconds before a short task's progress is shown


def track(total: int, label: str, *, unit: str = "step", every: float = 10.0, first: int = 0) -> Iterator[int]:
    """first .. total-1, shown on standard error; plain lines come every `every` seconds and at the end."""
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
