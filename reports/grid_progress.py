"""How far a grid of cells is, and how long it will take: measured times of the cells that have ended correct the estimates of the rest."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any

from tqdm import tqdm

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} cells, {elapsed} passed{postfix}"


def in_words(seconds: float) -> str:
    """A time in two units at most, as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def time_left(costs: Sequence[float], workers: int) -> float:
    """Seconds that cells take, some at a time and each whole: the even share, and never less than the longest."""
    return max(sum(costs) / workers, max(costs)) if costs else 0.0


class GridProgress:
    """A bar over the grid on a terminal, a line a cell elsewhere."""

    def __init__(self, costs: Mapping[str, float], workers: int, stream: IO[str] | None = None) -> None:
        """Begin.

        Args:
            costs: estimated seconds of each cell that is run.
            workers: cells at a time.
            stream: where to show it; None: standard error.
        """
        self._left = dict(costs)
        self._prior = 0.1 * sum(costs.values())
        self._count, self._workers = len(costs), workers
        self._running: dict[str, float] = {}
        self._estimated = self._measured = 0.0
        self._stream = sys.stderr if stream is None else stream
        self._bar: tqdm[Any] | None = None
        if costs and self._stream.isatty():
            self._bar = tqdm(total=len(costs), file=self._stream, dynamic_ncols=True, bar_format=_BAR)

    def __enter__(self) -> GridProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def started(self, name: str) -> None:
        """A cell has begun."""
        self._running[name] = time.monotonic()
        self.tick()

    def ended(self, name: str, seconds: float, why: str = "", *, whole: bool = True) -> None:
        """A cell has ended, in its worker after some seconds; `whole`: from its start, so that its time says something of the others'."""
        self._running.pop(name, None)
        cost = self._left.pop(name)
        if whole and not why:
            self._estimated += cost
            self._measured += seconds
        done = self._count - len(self._left)
        left = f", about {in_words(self.seconds_left())} left" if self._left else ""
        outcome = f"failed: {why}" if why else f"done in {in_words(seconds)}"
        if self._bar is None:
            self.note(f"[{done}/{self._count}] {name} {outcome}{left}")
        else:
            if why:
                self.note(f"{name} {outcome}")
            self._bar.update(1)
            self.tick()

    def seconds_left(self) -> float:
        """The estimate: what is left of each cell, by as much as the cells so far took longer or shorter than theirs.

        The estimates weigh in with a tenth of the grid, so that a first short cell does not decide alone.
        """
        if not self._left:
            return 0.0
        factor = (self._measured + self._prior) / (self._estimated + self._prior)
        now = time.monotonic()
        spent = {name: now - began for name, began in self._running.items()}
        rest = [max(cost * factor - spent.get(name, 0.0), 0.1 * cost * factor) for name, cost in self._left.items()]
        return time_left(rest, self._workers)

    def tick(self) -> None:
        """Bring the bar up to date."""
        if self._bar is not None:
            self._bar.set_postfix_str("; ".join(filter(None, [f"about {in_words(self.seconds_left())} left", ", ".join(self._running)])))

    def note(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)
