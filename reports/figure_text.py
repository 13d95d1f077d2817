"""Words for captions and alternative texts, made from measured values: who is highest, by how much, and do the intervals overlap.

Plain functions on numbers; nothing here knows a figure or draws. A caption describes what was measured; whether methods differ is decided
by the tests of `analysis`, so no sentence here calls a difference real.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mr1_bench.reports.measures import Measured

Bar = Literal["t", "range", "items", "none"]
"""What an error bar or band shows: `t` 95 % interval over 3 or more seeds, `range` smallest to largest of 2 seeds (a t interval of two
says nothing that can be drawn), `items` 95 % Wilson interval of one checkpoint, `none`."""


@dataclass(frozen=True, slots=True)
class Point:
    """A value to be named or drawn, with what its error bar shows. Shares between 0 and 1."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    bar: Bar = "none"
    seeds: int = 1

    @property
    def ends(self) -> tuple[float, float] | None:
        """Ends of the error bar in per cent; None without one."""
        return None if self.low is None or self.high is None else (100 * self.low, 100 * self.high)


def point(label: str, measured: Measured) -> Point:
    """What to draw of a measured share."""
    values = [seed.value for seed in measured.seeds]
    if len(values) == 2:
        return Point(label, measured.mean, min(values), max(values), "range", 2)
    bar: Bar = {"seeds": "t", "items": "items", "none": "none"}[measured.interval]  # type: ignore[assignment]
    return Point(label, measured.mean, measured.low, measured.high, bar, max(1, len(values)))


def percent(share: float) -> str:
    """A share in per cent, with one decimal."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, without its sign."""
    text = f"{abs(100 * difference):.1f}"
    return f"{text} point{'' if text == '1.0' else 's'}"


def join(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def number(value: float) -> str:
    """A setting such as β or a weight as it was given: `0.04`, `1`."""
    return f"{value:.6g}"


def bars(drawn: Iterable[Point], what: str = "Bars") -> str:
    """Say what error bars or bands show, as a sentence."""
    found = list(drawn)
    seeds = {kind: sorted({one.seeds for one in found if one.bar == kind}) for kind in ("t", "range", "items", "none")}
    parts = []
    if seeds["t"]:
        parts.append(f"95 % t intervals over {join([str(n) for n in seeds['t']])} training seeds")
    if seeds["range"]:
        parts.append("smallest to largest of 2 training seeds")
    if seeds["items"]:
        alone = "of single checkpoints " if parts else ""
        parts.append(f"{alone}95 % Wilson intervals over items, which leave out the spread between training seeds")
    if not parts:
        return "One training seed and no interval."
    tail = "; none where there is one value or all seeds agree" if seeds["none"] else ""
    return f"{what}: {'; '.join(parts)}{tail}."


def overlap(a: Point, b: Point) -> bool | None:
    """Whether two intervals share a value; None where one is missing or only the range of two seeds."""
    if a.low is None or a.high is None or b.low is None or b.high is None or "range" in (a.bar, b.bar):
        return None
    return a.low <= b.high and b.low <= a.high


def leader(ranked: Sequence[Point]) -> str:
    """Say which is highest, by how much over the next, and whether their intervals overlap.

    Returns:
        a clause without a full stop, such as `GRPO-D is highest (64.8 %), 3.2 points above SFT (intervals overlap)`; where one has under
        3 seeds it says that it is about checkpoints.

    Raises:
        ValueError: there is nothing to rank.
    """
    if not ranked:
        raise ValueError("nothing to rank: a caption needs at least one measured value")
    order = sorted(ranked, key=lambda one: -one.value)
    first = order[0]
    if len(order) == 1:
        return f"{first.label} reaches {percent(first.value)}"
    among = "among these checkpoints " if min(one.seeds for one in order) < 3 else ""
    ties = [one.label for one in order if percent(one.value) == percent(first.value)]
    if len(ties) > 1:
        return f"{among}{join(ties)} are level at {percent(first.value)}" + (", the highest" if len(ties) < len(order) else "")
    second = order[1]
    shared = overlap(first, second)
    tail = "" if shared is None else " (intervals overlap)" if shared else " (intervals do not overlap)"
    return f"{among}{first.label} is highest ({percent(first.value)}), {points(first.value - second.value)} above {second.label}{tail}"


def extremes(swept: Sequence[Point], axis: str) -> str:
    """Say where a swept setting does best and worst, and whether the two intervals overlap; a clause without a full stop."""
    best, worst = max(swept, key=lambda one: one.value), min(swept, key=lambda one: one.value)
    if percent(best.value) == percent(worst.value):
        return f"every {axis} gives {percent(best.value)}"
    shared = overlap(best, worst)
    tail = "" if shared is None else ", with intervals that overlap" if shared else ", with intervals that do not overlap"
    return (
        f"highest at {axis} = {best.label} ({percent(best.value)}) and lowest at {worst.label} ({percent(worst.value)}), "
        f"{points(best.value - worst.value)} apart{tail}"
    )


def interval(one: Point) -> str:
    """`62.3 % (58.1 to 66.4)`, or the bare value."""
    if one.low is None or one.high is None:
        return percent(one.value)
    return f"{percent(one.value)} ({100 * one.low:.1f} to {100 * one.high:.1f})"
