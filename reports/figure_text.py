"""Words for captions and alternative texts, made from measured values.

Plain functions on numbers; nothing here knows a figure or draws. A caption says what was measured, and names a winner only where the
training seeds tell one (`winner`).
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


def winner(ranked: Sequence[Point]) -> Point | None:
    """The one that a caption may call the highest, if any.

    It and every other must have a 95 % t interval over 3 or more training seeds, and its own lie above all of theirs: what no interval of
    seeds tells apart is not ranked.
    """
    first, *others = sorted(ranked, key=lambda one: -one.value)
    above = [one.high for one in others if one.bar == "t" and one.high is not None]
    known = first.bar == "t" and first.low is not None and len(above) == len(others) > 0
    return first if known and max(above) < (first.low or 0.0) else None


def leader(ranked: Sequence[Point]) -> str:
    """Say who is highest, by how much over the next, where the seeds tell (`winner`); else only what each reaches.

    Returns:
        a clause without a full stop, such as `GRPO-D is highest (64.8 %), 3.2 points above SFT (intervals do not overlap)` or
        `SFT 61.6 % and GRPO-D 64.8 %`.

    Raises:
        ValueError: there is nothing to name.
    """
    if not ranked:
        raise ValueError("nothing to name: a caption needs at least one measured value")
    if len(ranked) == 1:
        return f"{ranked[0].label} reaches {percent(ranked[0].value)}"
    first = winner(ranked)
    if first is None:
        return join([f"{one.label} {percent(one.value)}" for one in ranked])
    second = max((one for one in ranked if one is not first), key=lambda one: one.value)
    gap = points(first.value - second.value)
    return f"{first.label} is highest ({percent(first.value)}), {gap} above {second.label} (intervals do not overlap)"


def extremes(swept: Sequence[Point], axis: str) -> str:
    """Say between which values a swept setting moves, and where it is highest if the seeds tell; a clause without a full stop."""
    values = [one.value for one in swept]
    if percent(min(values)) == percent(max(values)):
        return f"every {axis} gives {percent(max(values))}"
    best = winner(swept)
    told = f", highest at {axis} = {best.label}, whose interval overlaps no other" if best else ""
    return f"between {percent(min(values))} and {percent(max(values))}{told}"


def interval(one: Point) -> str:
    """`62.3 % (58.1 to 66.4)`, or the bare value."""
    if one.low is None or one.high is None:
        return percent(one.value)
    return f"{percent(one.value)} ({100 * one.low:.1f} to {100 * one.high:.1f})"
