"""The trend of a baseline's history: accuracy over commits with intervals, and the change points in it, as a figure.

Versions are joined only where they were asked the same: another data set, prompt, decoding or set of items begins a new stretch, and no
change is looked for across such a break. What a change point is, and what it must show against, stands in `mr1_bench.change_points`. This
module must not know how a history is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mr1_bench import stats
from mr1_bench.change_points import MIN_VERSIONS, Change, change_points
from mr1_bench.reports.figure_style import (
    SMALL,
    Drawing,
    Theme,
    error_bars,
    finish_percent,
    grid_of_panels,
    save,
    shorten,
    task_name,
    task_order,
)
from mr1_bench.reports.figure_text import join, percent
from mr1_bench.reports.figures import Figure
from mr1_bench.reports.verdicts import HistoryEntry, HistoryTask
from mr1_bench.reports.wording import amount
from mr1_bench.tables import p_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_LABELS = 12
"""Most versions that are named below an axis; of more, some evenly spaced ones."""


@dataclass(frozen=True, slots=True)
class Point:
    """One version in a trend.

    Attributes:
        name: commit in short, else label, else date.
        created: when it was evaluated, ISO 8601.
        value: mean score, 0 to 1.
        low, high: its 95 % interval over items.
        n: number of items with a verdict.
        asked: hash of what was asked.
    """

    name: str
    created: str
    value: float
    low: float
    high: float
    n: int
    asked: str


@dataclass(frozen=True, slots=True)
class Trend:
    """One metric of one task over a history.

    Attributes:
        points: the versions that have the task, the oldest first.
        breaks: positions of points from which on something else was asked.
        changes: change points; `index` counts in `points`.
    """

    task: str
    metric: str
    points: tuple[Point, ...]
    breaks: tuple[int, ...]
    changes: tuple[Change, ...]

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """Begin and end (excluded) of each stretch of versions that were asked the same."""
        return list(pairwise([0, *self.breaks, len(self.points)]))

    @property
    def levels(self) -> list[tuple[int, int, float]]:
        """Begin, end (excluded) and mean of each piece between breaks and change points."""
        edges = sorted({0, len(self.points), *self.breaks, *(change.index for change in self.changes)})
        return [(start, end, fmean(one.value for one in self.points[start:end])) for start, end in pairwise(edges)]


# --- from a history to trends


def trends(history: Sequence[HistoryEntry], metric: str = "acc", *, alpha: float = 0.05, min_effect: float = 0.01) -> list[Trend]:
    """Make the trend of every task that at least two versions have.

    Args:
        history: versions, the oldest first.
        metric: which.
        alpha: chance of marking anything, in all tasks together, where nothing shifted; divided among the stretches (Bonferroni).
        min_effect: smallest shift that is marked, as a share.
    """
    tasks = task_order(task for entry in history for task in entry.tasks)
    drafts = [(task, found) for task in tasks if len(found := list(_with_scores(history, task, metric))) > 1]
    stretches = sum(end - start > 1 for _, found in drafts for start, end in _stretches([one.asked for _, one in found]))
    return [_trend(task, metric, found, alpha / max(1, stretches), min_effect) for task, found in drafts]


def _with_scores(history: Sequence[HistoryEntry], task: str, metric: str) -> Iterator[tuple[HistoryEntry, HistoryTask]]:
    for entry in history:
        found = entry.tasks.get(task)
        if found is not None and any(score is not None for score in found.scores.get(metric, ())):
            yield entry, found


def _stretches(asked: Sequence[str]) -> list[tuple[int, int]]:
    breaks = [index for index in range(1, len(asked)) if asked[index] != asked[index - 1]]
    return list(pairwise([0, *breaks, len(asked)]))


def _trend(task: str, metric: str, found: Sequence[tuple[HistoryEntry, HistoryTask]], alpha: float, min_effect: float) -> Trend:
    stretches = _stretches([one.asked for _, one in found])
    points = tuple(_point(entry, one, metric) for entry, one in found)
    changes: list[Change] = []
    for start, end in stretches:
        table = _common([one.scores[metric] for _, one in found[start:end]])
        if table and end - start > 1:
            for one in change_points(table, alpha=alpha, min_effect=min_effect):
                changes.append(replace(one, index=start + one.index))
    return Trend(task, metric, points, tuple(start for start, _ in stretches[1:]), tuple(changes))


def _common(rows: Sequence[Sequence[float | None]]) -> list[list[float]]:
    """The scores of the items on which every version has a verdict; empty where there is no such item."""
    if len({len(row) for row in rows}) != 1:
        return []
    kept = [column for column in zip(*rows, strict=True) if all(score is not None for score in column)]
    return [list(row) for row in zip(*kept, strict=True)]


def _point(entry: HistoryEntry, one: HistoryTask, metric: str) -> Point:
    scores = [score for score in one.scores[metric] if score is not None]
    value, n = sum(scores) / len(scores), len(scores)
    if all(score in (0.0, 1.0) for score in scores):
        low, high = stats.wilson(round(sum(scores)), n)
    elif n > 1:
        estimate = stats.mean_over_seeds(scores)  # Student's t over items here, whose means over repeats are no counts
        low, high = max(0.0, estimate.low), min(1.0, estimate.high)
    else:
        low, high = 0.0, 1.0
    return Point(version_name(entry), entry.created, value, low, high, n, one.asked)


def version_name(entry: HistoryEntry) -> str:
    """How a figure names a version: its commit in short, else its label, else the day, else the beginning of its weights' hash."""
    return shorten(entry.commit[:7] or entry.label or entry.created[:10] or entry.weights[:7] or "unnamed", 12)


# --- in words


def change_sentence(trend: Trend, change: Change) -> str:
    """One sentence about a change point, without the task: `from 64.0 % to 57.8 % at 3f2a1bc (p = 0.0004)`."""
    few = "" if change.wobble_known else f"; fewer than {MIN_VERSIONS} versions, so not held against the wobble between versions"
    return f"from {percent(change.before)} to {percent(change.after)} at {trend.points[change.index].name} ({p_text(change.p)}{few})"


def _sentences(trend: Trend) -> str:
    name, last = task_name(trend.task), trend.points[-1]
    said = f"{name}: {len(trend.points)} versions, now {percent(last.value)}"
    found = [change_sentence(trend, change) for change in trend.changes]
    said += f"; {'changes' if len(found) > 1 else 'a change'} {join(found)}." if found else "; no change point."
    if trend.breaks:
        names = [trend.points[index].name for index in trend.breaks]
        said += f" Something else was asked from {join(names)} on: scores before and after are not comparable."
    return said


# --- as a figure


def drawing(found: Sequence[Trend], *, alpha: float = 0.05, min_effect: float = 0.01) -> Drawing | None:
    """The figure of some trends, one panel a task; None without any."""
    if not found:
        return None
    columns = 2 if max(len(one.points) for one in found) <= 8 else 1

    def paint(canvas: Canvas, theme: Theme) -> None:
        for axes, trend in zip(grid_of_panels(canvas, len(found), columns), found, strict=True):
            _paint(axes, trend, theme)

    caption = (
        " ".join(map(_sentences, found))
        + " Bars: 95 % intervals over items. Steps: mean between change points. A change point (vertical line) shows against other items "
        f"and, from {MIN_VERSIONS} versions on, against the wobble from version to version, at {alpha:g} for all tasks together, and is at "
        f"least {amount(min_effect, 'share', exact=True)} large."
    )
    alt = "Trend of accuracy over versions. " + " ".join(
        f"{task_name(one.task)}: {', '.join(f'{point.name} {percent(point.value)}' for point in one.points)}." for one in found
    )
    rows = -(-len(found) // min(columns, len(found)))
    metric = {"acc": "Accuracy"}.get(found[0].metric, found[0].metric)
    return Drawing("trend", f"{metric} over versions", caption, alt, 0.4 + 2.9 * rows, paint)


def _paint(axes: Axes, trend: Trend, theme: Theme) -> None:
    line, mark = theme.ramp[3], theme.colour("grpo-d")
    xs = list(range(len(trend.points)))
    ys = [100 * one.value for one in trend.points]
    for start, end, mean in trend.levels:
        axes.plot([start - 0.4, end - 0.6], [100 * mean] * 2, color=line, alpha=0.35, linewidth=5, solid_capstyle="butt")
    for start, end in trend.stretches:
        axes.plot(xs[start:end], ys[start:end], color=line, marker="o", markeredgecolor=theme.paper, markersize=5.5, linewidth=1.4)
    few = len(xs) <= 40  # more bars than that hide what they belong to; a band shows the same
    ends = [(100 * one.low, 100 * one.high) for one in trend.points]
    if few:
        error_bars(axes, xs, ys, ends, {"color": line})
    else:
        for start, end in trend.stretches:
            lows, highs = zip(*ends[start:end], strict=True)
            axes.fill_between(xs[start:end], lows, highs, color=line, alpha=0.15, linewidth=0)
    for change in trend.changes:
        axes.axvline(change.index - 0.5, color=mark, linewidth=1.5, linestyle=(0, (4, 2)))
    for index in trend.breaks:
        axes.axvline(index - 0.5, color=theme.muted, linewidth=1.2, linestyle=(0, (1, 1.6)))
    axes.set_title(task_name(trend.task), pad=16)
    axes.set_xlim(-0.6, len(xs) - 0.4)
    finish_percent(axes)
    _annotate(axes, trend, theme, mark)
    step = -(-len(xs) // _LABELS)
    shown = list(range(len(xs) - 1, -1, -step))[::-1]  # the newest is always named
    axes.set_xticks(shown, [trend.points[index].name for index in shown], rotation=40, ha="right", rotation_mode="anchor")
    axes.grid(visible=False, axis="x")


def _annotate(axes: Axes, trend: Trend, theme: Theme, mark: str) -> None:
    """Name changes and breaks above the panel, where no data are."""
    place: dict[str, Any] = {
        "xycoords": ("data", "axes fraction"),
        "ha": "center",
        "va": "bottom",
        "fontsize": SMALL,
        "annotation_clip": False,
    }
    for change in trend.changes:
        text = amount(change.after - change.before, "share", sign=True, bare=True)
        axes.annotate(text, (change.index - 0.5, 1.0), color=mark, fontweight="bold", **place)
    for index in trend.breaks:
        axes.annotate("asked anew", (index - 0.5, 1.0), color=theme.muted, **place)


def draw_trends(history: Sequence[HistoryEntry], folder: Path, *, alpha: float = 0.05, min_effect: float = 0.01) -> list[Figure]:
    """Draw the trend of a history as PNG, SVG and PDF; an empty list where no task has two versions.

    Args:
        history: versions, the oldest first.
        folder: where the files go; made if need be.
        alpha: see `trends`.
        min_effect: see `trends`.
    """
    drawn = drawing(trends(history, alpha=alpha, min_effect=min_effect), alpha=alpha, min_effect=min_effect)
    if drawn is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    return [Figure(drawn.name, drawn.title, drawn.caption, save(drawn, folder), drawn.alt)]
