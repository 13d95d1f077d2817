"""Figures of what training led to: the sweeps of format weight and KL weight, cross-task accuracy, the train-by-test heat map.

Every function takes values of `analysis` or `curves` and returns a drawing, or None where nothing was measured. This module must not know
files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from mr1_bench.reports.analysis import MatrixCell
from mr1_bench.reports.curves import SweepPoint
from mr1_bench.reports.figure_style import (
    SMALL,
    Drawing,
    Theme,
    error_bars,
    finish_percent,
    grid_of_panels,
    heat,
    is_geometry,
    legend_above,
    line_look,
    mark_look,
    method_name,
    method_order,
    short_task,
    task_name,
    task_order,
)
from mr1_bench.reports.figure_text import Point, bars, extremes, interval, join, leader, number, percent, point, winner
from mr1_bench.reports.measures import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_KEY = "cells: accuracy (%), gain on the base (points)"
_COLUMNS = 9
"""Columns of a heat map side by side at most, so that a number fits its cell."""


Key = tuple[str, str, str]
"""Method, training task, test task."""


def _measured(cells: Sequence[MatrixCell]) -> dict[Key, Measured]:
    return {(cell.method, cell.train_task, cell.eval_task): cell.acc for cell in cells if cell.acc is not None}


def _base(cells: Sequence[MatrixCell], task: str) -> Point | None:
    found = next((value for (method, _, test), value in _measured(cells).items() if (method, test) == ("base", task)), None)
    return point("Base", found) if found else None


def _base_text(cells: Sequence[MatrixCell], tasks: Iterable[str]) -> str:
    known = any(_base(cells, task) for task in tasks)
    return " Dotted line and grey band: the base and its 95 % Wilson interval." if known else ""


def _base_line(axes: Axes, base: Point | None, theme: Theme) -> None:
    """The base model as a dotted line over the whole panel, its interval as a band."""
    if base is None:
        return
    if base.low is not None and base.high is not None:
        axes.axhspan(100 * base.low, 100 * base.high, color=theme.colour("base"), alpha=0.12, linewidth=0)
    axes.axhline(100 * base.value, **line_look("base", theme, markers=False))


def _swept(axes: Axes, xs: Sequence[float], marks: Sequence[Point], method: str, theme: Theme) -> None:
    look, ys = line_look(method, theme), [100 * one.value for one in marks]
    error_bars(axes, xs, ys, [one.ends for one in marks], look)
    axes.plot(xs, ys, **look)


def _points_by_task(swept: Sequence[SweepPoint]) -> dict[tuple[str, str], list[SweepPoint]]:
    """Points with an x and an accuracy, ascending, by task and method."""
    found: dict[tuple[str, str], list[SweepPoint]] = {}
    for one in sorted((one for one in swept if one.x is not None and one.acc is not None), key=lambda one: one.x or 0.0):
        found.setdefault((one.task, one.method), []).append(one)
    return found


def format_weight(swept: Sequence[SweepPoint], cells: Sequence[MatrixCell]) -> Drawing | None:
    """Figure 4: weight of the format reward against accuracy and format accuracy, a panel each, a row a task."""
    groups = _points_by_task(swept)
    if not groups:
        return None
    tasks = task_order(task for task, _ in groups)
    marks = {key: [point(number(one.x or 0.0), one.acc) for one in ones if one.acc] for key, ones in groups.items()}
    forms = {key: [(one.x or 0.0, point(number(one.x or 0.0), one.format)) for one in ones if one.format] for key, ones in groups.items()}

    top = max(one.x or 0.0 for ones in groups.values() for one in ones) or 1.0

    def paint(canvas: Canvas, theme: Theme) -> None:
        grid = canvas.subplots(len(tasks), 2, squeeze=False)
        for (task, method), ones in groups.items():
            left, right = grid[tasks.index(task)]
            _swept(left, [one.x or 0.0 for one in ones], marks[task, method], method, theme)
            if forms[task, method]:
                _swept(right, [x for x, _ in forms[task, method]], [one for _, one in forms[task, method]], method, theme)
        for (left, right), task in zip(grid, tasks, strict=True):
            _base_line(left, _base(cells, task), theme)
            left.set_title(task_name(task))
            finish_percent(left)
            finish_percent(right, "Format accuracy (%)")
            for axes in (left, right):
                axes.set_xlabel("Weight of the format reward")
                axes.set_xlim(-0.05 * top, 1.05 * top)  # from 0 on, also around a single point
        legend_above(canvas, list(grid.flat))

    said = []
    for (task, method), ones in marks.items():
        formed = [one for _, one in forms[task, method]]
        who = f"{method_name(method)} on {task_name(task)}"
        said.append(f"{who}, accuracy: {extremes(ones, 'weight')}." if len(ones) > 1 else f"{who}: {leader(ones)}.")
        if len(formed) > 1:
            said.append(f"Format accuracy: {extremes(formed, 'weight')}.")
    every = [one for ones in marks.values() for one in ones] + [one for pairs in forms.values() for _, one in pairs]
    alt = "Accuracy and format accuracy against the weight of the format reward. " + _listing(marks, "weight")
    caption = f"{' '.join(said)} {bars(every)}{_base_text(cells, tasks)}"
    return Drawing("figure-4-format-weight", "Weight of the format reward", caption, alt, 0.55 + 2.75 * len(tasks), paint)


def _listing(marks: dict[tuple[str, str], list[Point]], axis: str) -> str:
    return " ".join(
        f"{method_name(method)} on {task_name(task)}: " + join([f"{interval(one)} at {axis} {one.label}" for one in ones]) + "."
        for (task, method), ones in marks.items()
    )


def kl_weight(swept: Sequence[SweepPoint], cells: Sequence[MatrixCell]) -> Drawing | None:
    """Figure 6: constant KL weight, β = 0 among them, against accuracy; a panel a task. The values of β are equally spaced."""
    groups = _points_by_task(swept)
    if not groups:
        return None
    tasks = task_order(task for task, _ in groups)
    values = {task: sorted({one.x or 0.0 for (its, _), ones in groups.items() if its == task for one in ones}) for task in tasks}
    marks = {key: [point(number(one.x or 0.0), one.acc) for one in ones if one.acc] for key, ones in groups.items()}

    def paint(canvas: Canvas, theme: Theme) -> None:
        panels = grid_of_panels(canvas, len(tasks), 2)
        for axes, task in zip(panels, tasks, strict=True):
            for (its, method), ones in groups.items():
                if its == task:
                    _swept(axes, [values[task].index(one.x or 0.0) for one in ones], marks[its, method], method, theme)
            _base_line(axes, _base(cells, task), theme)
            names = ["0\n(clip only)" if value == 0 else number(value) for value in values[task]]
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.4, len(names) - 0.6)
            axes.grid(visible=False, axis="x")
            axes.set_title(task_name(task))
            axes.set_xlabel("Constant KL weight β (values equally spaced)")
            finish_percent(axes)
        legend_above(canvas, panels)

    said = []
    for (task, method), ones in marks.items():
        where = f"{method_name(method)} on {task_name(task)}"
        base = _base(cells, task)
        above = (
            ""
            if base is None
            else f" {sum(one.value > base.value for one in ones)} of {len(ones)} are above the base ({percent(base.value)})."
        )
        told = f"{extremes(ones, 'β')}.{_shape(task, ones)}" if len(ones) > 1 else f"{leader(ones)}."
        said.append(f"{where}: {told}{above}")
    caption = f"{' '.join(said)} {bars([one for ones in marks.values() for one in ones])}{_base_text(cells, tasks)}"
    alt = "Accuracy against the constant KL weight β. " + _listing(marks, "β")
    rows = (len(tasks) + 1) // 2
    return Drawing("figure-6-kl-weight", "Constant KL weight", caption, alt, 0.65 + 2.75 * rows, paint)


def _shape(task: str, ones: Sequence[Point]) -> str:
    """Whether the means rise and then fall along the sweep, as the paper's figure 6 does for geometry; empty where no seeds tell a peak."""
    best = winner(ones)
    if len(ones) < 3 or best is None or not is_geometry(task):
        return ""
    peak = ones.index(best)
    inside = 0 < peak < len(ones) - 1
    steps = [later.value - earlier.value for earlier, later in pairwise(ones)]
    if inside and all(step >= 0 for step in steps[:peak]) and all(step <= 0 for step in steps[peak:]):
        return " As in the paper's figure 6 the means rise, then fall."
    return " In the paper's figure 6 accuracy rises, then falls; these means do not."


def _crossed(cells: Sequence[MatrixCell], values: dict[Key, Measured]) -> list[tuple[str, str]]:
    """Pairs of training and test task, each way, where the test task is one that somebody was trained on (else all pairs)."""
    cross = {(cell.method, cell.train_task, cell.eval_task) for cell in cells if cell.relation == "cross-task"}
    found = {(train, test) for method, train, test in values if (method, train, test) in cross}
    trained = {part for cell in cells for part in cell.train_task.split(",")}
    chosen = {pair for pair in found if pair[1] in trained} or found
    trains, tests = task_order(train for train, _ in sorted(chosen)), task_order(test for _, test in sorted(chosen))
    return [(train, test) for train in trains for test in tests if (train, test) in chosen]


def cross_task(cells: Sequence[MatrixCell]) -> Drawing | None:
    """Figure 7: accuracy on the task that was not trained on, a panel for each direction, the base as a line."""
    values = _measured(cells)
    pairs = _crossed(cells, values)
    if not pairs:
        return None
    methods = method_order(method for method, train, test in values if (train, test) in pairs)
    found = {pair: {method: values[method, *pair] for method in methods if (method, *pair) in values} for pair in pairs}

    def paint(canvas: Canvas, theme: Theme) -> None:
        panels = grid_of_panels(canvas, len(pairs), 2)
        for axes, (pair, ones) in zip(panels, found.items(), strict=True):
            _base_line(axes, _base(cells, pair[1]), theme)
            for place, method in enumerate(methods):
                if method in ones:
                    _seeds_and_mean(axes, place, ones[method], method, theme)
            axes.set_xticks(range(len(methods)), [method_name(method) for method in methods])
            axes.set_xlim(-0.6, len(methods) - 0.4)
            axes.grid(visible=False, axis="x")
            axes.set_title(f"Trained on {task_name(pair[0])},\ntested on {task_name(pair[1])}", fontweight="normal")
            finish_percent(axes, "Accuracy (%)" if axes in panels[::2] else "")
        legend_above(canvas, panels)

    marks = {pair: [point(method_name(method), value) for method, value in ones.items()] for pair, ones in found.items()}
    said = " ".join(
        f"Trained on {task_name(train)}, tested on {task_name(test)}: {leader(ones)}{_beside(_base(cells, test))}."
        for (train, test), ones in marks.items()
    )
    every = [one for ones in marks.values() for one in ones]
    seeds = " Small open marks: single seeds." if any(one.seeds > 1 for one in every) else ""
    caption = f"{said} {bars(every)}{seeds}{_base_text(cells, [test for _, test in pairs])}"
    alt = "Accuracy on the task that was not trained on. " + " ".join(
        f"Trained on {task_name(train)}, tested on {task_name(test)}: " + join([f"{one.label} {interval(one)}" for one in ones]) + "."
        for (train, test), ones in marks.items()
    )
    rows = (len(pairs) + 1) // 2
    return Drawing("figure-7-cross-task", "Cross-task accuracy", caption, alt, 0.5 + 3.0 * rows, paint)


def _beside(base: Point | None) -> str:
    return "" if base is None else f"; the base {percent(base.value)}"


def _seeds_and_mean(axes: Axes, place: float, measured: Measured, method: str, theme: Theme) -> None:
    mark = point(method_name(method), measured)
    look = mark_look(method, theme)
    error_bars(axes, [place], [100 * mark.value], [mark.ends], look)
    axes.plot([place], [100 * mark.value], markersize=8, **look)
    if len(measured.seeds) > 1:
        shares = [100 * seed.value for seed in measured.seeds]
        hollow = {"markerfacecolor": "none", "markeredgecolor": look["color"], "markersize": 4.5, "label": None}
        axes.plot([place + 0.24] * len(shares), shares, **look | hollow)


def heat_map(cells: Sequence[MatrixCell]) -> Drawing | None:
    """Train by test: a column for each method and training task, a row for each test task."""
    values = _measured(cells)
    trains = task_order(train for _, train, _ in values)
    columns = [
        (method, train)
        for method in method_order(one for one, _, _ in values)
        for train in trains
        if (method, train) in {key[:2] for key in values}
    ]
    if len(columns) < 2:
        return None
    tests = task_order(test for _, _, test in values)
    at = {(cell.method, cell.train_task, cell.eval_task): cell for cell in cells}
    parts = [columns[start : start + _COLUMNS] for start in range(0, len(columns), _COLUMNS)]
    means = [value.mean for value in values.values()]

    def paint(canvas: Canvas, theme: Theme) -> None:
        grid = canvas.subplots(len(parts), 1, squeeze=False)
        for axes, part in zip(grid[:, 0], parts, strict=True):
            shown = [[values.get((*column, test)) for column in part] for test in tests]
            text = heat(axes, [[None if one is None else one.mean for one in row] for row in shown], (min(means), max(means)), theme)
            for row, test in enumerate(tests):
                for place, column in enumerate(part):
                    _cell_text(axes, (place, row), values.get((*column, test)), at.get((*column, test)), text, theme)
            axes.set_xticks(range(len(part)), [short_task(train, trains) for _, train in part])
            axes.set_yticks(range(len(tests)), [task_name(test) for test in tests])
            axes.set(xlabel="trained on" if part is not parts[-1] else f"trained on\n{_KEY}", ylabel="tested on")
            _method_heads(axes, [method for method, _ in part], theme)

    gains = [cell for key, cell in at.items() if cell.gain is not None and key in values]
    said = ""
    if gains:
        said = f"Differences to the base: {_signed(min(map(_gain, gains)))} to {_signed(max(map(_gain, gains)))} points. "
        crossed = [cell for cell in gains if cell.relation == "cross-task"]
        said += f"{sum(_gain(cell) < 0 for cell in crossed)} of {len(crossed)} cross-task cells lie below the base. " if crossed else ""
    seeds = join([str(n) for n in sorted({len(value.seeds) for (method, _, _), value in values.items() if method != "base"})])
    mean = "one checkpoint each" if seeds == "1" else f"means over {seeds} seeds"
    key = f"Cells: accuracy in % ({mean}), below it the difference to the base in points; outlined: tested on the task trained on."
    alt = "Heat map of accuracy by training and test task. " + " ".join(
        f"{method_name(method)}{f' trained on {task_name(train)}' if train else ''}, tested on {task_name(test)}: {percent(value.mean)}."
        for (method, train, test), value in values.items()
    )
    height = 0.3 + 0.2 + len(parts) * (0.95 + 0.56 * len(tests))
    return Drawing("train-by-test", "Train-by-test matrix", f"{said}{key}", alt, height, paint)


def _gain(cell: MatrixCell) -> float:
    return cell.gain.value if cell.gain else 0.0


def _signed(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−")


def _cell_text(
    axes: Axes, at: tuple[int, int], value: Measured | None, cell: MatrixCell | None, text: Callable[[float], str], theme: Theme
) -> None:
    """Write a cell's accuracy and gain, and outline it where the test is on the task trained on."""
    from matplotlib.patches import Rectangle

    if value is None or cell is None:
        axes.text(*at, "–", ha="center", va="center", color=theme.muted)
        return
    colour = text(value.mean)
    below = f"\n{_signed(cell.gain.value)}" if cell.gain else ""
    axes.text(*at, f"{100 * value.mean:.1f}{below}", ha="center", va="center", fontsize=SMALL, color=colour)
    if cell.relation == "same-task":
        axes.add_patch(Rectangle((at[0] - 0.44, at[1] - 0.42), 0.88, 0.84, fill=False, edgecolor=colour, linewidth=1.2))


def _method_heads(axes: Axes, methods: Sequence[str], theme: Theme) -> None:
    """Write each method above its columns, over a rule in its colour."""
    for method in dict.fromkeys(methods):
        places = [place for place, its in enumerate(methods) if its == method]
        left, right = places[0] - 0.48, places[-1] + 0.48
        axes.plot([left, right], [-0.6, -0.6], color=theme.colour(method), linewidth=3, clip_on=False, solid_capstyle="butt")
        axes.text((left + right) / 2, -0.68, method_name(method), ha="center", va="bottom", fontweight="bold")
