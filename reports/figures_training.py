"""Figures of what happens during training: test accuracy, rewards, KL weight and KL over steps, and the KL schedules side by side.

Every function takes values of `curves` and returns a drawing, or None where nothing was measured. Rewards and KL are noisy from step to
step: they are shown as a running mean that the caption names, over the raw values. This module must not know files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mr1_bench import stats
from mr1_bench.reports.curves import Curve, SweepPoint
from mr1_bench.reports.figure_style import (
    SMALL,
    Drawing,
    Theme,
    finish_percent,
    grid_of_panels,
    legend_above,
    line_look,
    method_name,
    method_order,
    method_style,
    shorten,
    task_name,
    task_order,
)
from mr1_bench.reports.figure_text import Point, bars, join, leader, number, percent, point
from mr1_bench.reports.study import Run, Study
from mr1_bench.trainers.schedule import SCHEDULES, KLWeight, beta_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_WINDOWS = 20
"""The running mean of a curve spans this part of its steps: short enough to show a fall within training."""
_HEADROOM = 1.35
"""Height of the axis of KL over the highest running mean: single steps may be hundreds of times higher."""
_DRAWN = 160
"""Values drawn of a running mean at most; more cannot be seen."""


def _by_task(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    found: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve.steps:
            found.setdefault(curve.task, []).append(curve)
    return {
        task: sorted(ones, key=lambda one: method_order([two.method for two in ones]).index(one.method)) for task, ones in found.items()
    }


def _band(curve: Curve) -> tuple[Sequence[float], Sequence[float]] | None:
    if len(curve.seeds) >= 3:
        return curve.low, curve.high
    return (curve.least, curve.most) if len(curve.seeds) == 2 else None


def _at(curve: Curve, index: int) -> Point:
    band, seeds = _band(curve), len(curve.seeds)
    if band is None:
        return Point(method_name(curve.method), curve.mean[index])
    return Point(method_name(curve.method), curve.mean[index], band[0][index], band[1][index], "t" if seeds >= 3 else "range", seeds)


def _percents(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]


def accuracy(curves: Sequence[Curve]) -> Drawing | None:
    """Figure 1: greedy test accuracy against the training step, one panel a task."""
    tasks = _by_task([one for one in curves if one.quantity == "test_accuracy" and one.arm == "main"])
    if not tasks:
        return None

    def paint(canvas: Canvas, theme: Theme) -> None:
        panels = grid_of_panels(canvas, len(tasks), 2)
        for axes, (task, ones) in zip(panels, tasks.items(), strict=True):
            for curve in ones:
                band = _band(curve)
                if band:
                    axes.fill_between(
                        curve.steps, _percents(band[0]), _percents(band[1]), color=theme.colour(curve.method), alpha=0.16, linewidth=0
                    )
                axes.plot(curve.steps, _percents(curve.mean), **line_look(curve.method, theme))
            axes.set_title(task_name(task))
            axes.set_xlabel("Training step")
            finish_percent(axes, "Test accuracy (%)" if axes in panels[::2] else "")
        legend_above(canvas, panels)

    everything = [one for ones in tasks.values() for one in ones]
    last = {task: [_at(one, -1) for one in ones] for task, ones in tasks.items()}
    said = " ".join(f"{task_name(task)}, at the last step: {leader(ends)}." for task, ends in last.items())
    items = sorted({one.items for one in everything if one.items})
    asked = f" Each value: greedy answers to {join([str(n) for n in items])} test items." if items else ""
    alt = "Line chart of test accuracy against training step. " + " ".join(
        f"{task_name(task)}: "
        + join([f"{method_name(one.method)} from {percent(one.mean[0])} to {percent(one.mean[-1])}" for one in ones])
        + "."
        for task, ones in tasks.items()
    )
    caption = f"{said}{asked} {bars([end for ends in last.values() for end in ends], 'Bands')}"
    rows = (len(tasks) + 1) // 2
    return Drawing("figure-1-accuracy-over-training", "Test accuracy over training", caption, alt, 0.55 + 2.75 * rows, paint)


def window_of(steps: int) -> int:
    """Width of the running mean over a curve of so many values: odd, so that it is centred."""
    return max(1, steps // _WINDOWS) | 1


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred running mean; at the ends the mean of what the window still covers."""
    half, total, sums = window // 2, 0.0, [0.0]
    for value in values:
        total += value
        sums.append(total)
    edges = [(max(0, index - half), min(len(values), index + half + 1)) for index in range(len(values))]
    return [(sums[high] - sums[low]) / (high - low) for low, high in edges]


def _smooth_line(axes: Axes, curve: Curve, theme: Theme, scale: float) -> list[float]:
    """Draw raw values faintly, their running mean, and the band of the seeds' running means; return the running mean."""
    window = window_of(len(curve.steps))
    smooth = [scale * value for value in running_mean(curve.mean, window)]
    colour = theme.colour(curve.method)
    axes.plot(curve.steps, [scale * value for value in curve.mean], color=colour, alpha=0.28, linewidth=0.7)
    chosen = _thin(len(smooth))
    steps = [curve.steps[index] for index in chosen]
    if len(curve.seeds) >= 2:
        seeds = [running_mean(one, window) for one in curve.seeds]
        lows, highs = zip(*(_spread([one[index] for one in seeds]) for index in chosen), strict=True)
        cap = 1.0 if curve.quantity in ("accuracy_reward", "format_reward") else float("inf")
        axes.fill_between(
            steps,
            [scale * max(0.0, low) for low in lows],
            [scale * min(cap, high) for high in highs],
            color=colour,
            alpha=0.16,
            linewidth=0,
        )
    look = dict(line_look(curve.method, theme)) | {"markevery": max(1, len(chosen) // 6)}
    axes.plot(steps, [smooth[index] for index in chosen], **look)
    return smooth


def _thin(values: int) -> list[int]:
    if values <= _DRAWN:
        return list(range(values))
    return sorted({round(index * (values - 1) / (_DRAWN - 1)) for index in range(_DRAWN)})


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """What a band shows of some seeds: the t interval of three or more, smallest and largest of two."""
    if len(values) == 2:
        return min(values), max(values)
    estimate = stats.mean_over_seeds(values)
    return estimate.low, estimate.high


def _smoothing(curves: Sequence[Curve]) -> str:
    windows = sorted({window_of(len(one.steps)) for one in curves})
    seeds = [_at(one, -1) for one in curves]
    if windows == [1]:
        return bars(seeds, "Bands")
    return f"Lines: running mean over {join([str(n) for n in windows])} steps, the raw mean faint behind. {bars(seeds, 'Bands')}"


def _ends(curve: Curve) -> tuple[float, float]:
    smooth = running_mean(curve.mean, window_of(len(curve.steps)))
    return smooth[0], smooth[-1]


def rewards(curves: Sequence[Curve]) -> Drawing | None:
    """Figure 5: accuracy and format reward against the training step, a row each, one column a task."""
    kinds = {"accuracy_reward": "Accuracy reward (%)", "format_reward": "Format reward (%)"}
    tasks = _by_task([one for one in curves if one.quantity in kinds and one.arm == "main"])
    if not tasks:
        return None

    def paint(canvas: Canvas, theme: Theme) -> None:
        grid = canvas.subplots(len(kinds), len(tasks), squeeze=False, sharex="col", sharey="row")
        for column, (task, ones) in enumerate(tasks.items()):
            for row, kind in enumerate(kinds):
                axes = grid[row][column]
                for curve in (one for one in ones if one.quantity == kind):
                    _smooth_line(axes, curve, theme, 100)
            grid[0][column].set_title(task_name(task))
            grid[-1][column].set_xlabel("Training step")
        for line, label in zip(grid, kinds.values(), strict=True):
            finish_percent(line[0], label)
        legend_above(canvas, list(grid.flat))

    found = [one for ones in tasks.values() for one in ones]
    moves = []
    for task, ones in tasks.items():
        for kind, name in (("format_reward", "format"), ("accuracy_reward", "accuracy")):
            ends = [(method_name(one.method), *_ends(one)) for one in ones if one.quantity == kind]
            if ends:
                told = join([f"{label} from {percent(first)} to {percent(last)}" for label, first, last in ends])
                moves.append(f"{task_name(task)}, {name}: {told}.")
    first = _first_move(found)
    caption = f"{first}{' '.join(moves)} Rewards are means over the completions sampled at a step. {_smoothing(found)}"
    alt = "Line charts of accuracy and format reward against training step. " + " ".join(moves)
    return Drawing("figure-5-rewards", "Format and accuracy reward over training", caption, alt, 4.9, paint)


def _first_move(curves: Sequence[Curve]) -> str:
    """Say which of the two rewards comes earlier to half of its way, where all curves agree; else nothing."""
    halves: dict[tuple[str, str], dict[str, int]] = {}
    for curve in curves:
        smooth = running_mean(curve.mean, window_of(len(curve.steps)))
        if smooth[-1] - smooth[0] < 0.01:
            return ""
        middle = (smooth[0] + smooth[-1]) / 2
        at = next(step for step, value in zip(curve.steps, smooth, strict=True) if value >= middle)
        halves.setdefault((curve.task, curve.method), {})[curve.quantity] = at
    both = [one for one in halves.values() if len(one) == 2]
    if both and len(both) == len(halves):
        if all(one["format_reward"] < one["accuracy_reward"] for one in both):
            return "The format reward has made half of its way before the accuracy reward in every curve. "
        if all(one["accuracy_reward"] < one["format_reward"] for one in both):
            return "The accuracy reward has made half of its way before the format reward in every curve. "
    return ""


def beta_and_kl(curves: Sequence[Curve]) -> Drawing | None:
    """KL weight and KL to the starting model against the training step, one column a task."""
    kinds = {"beta": "KL weight β", "kl": "KL (nats a token)"}
    tasks = _by_task([one for one in curves if one.quantity in kinds and one.arm == "main"])
    if not tasks:
        return None

    def paint(canvas: Canvas, theme: Theme) -> None:
        grid = canvas.subplots(len(kinds), len(tasks), squeeze=False, sharex="col", sharey="row")
        tops: dict[str, float] = {}
        for column, (task, ones) in enumerate(tasks.items()):
            for row, (kind, label) in enumerate(kinds.items()):
                axes = grid[row][column]
                for curve in (one for one in ones if one.quantity == kind):
                    if kind == "kl":
                        top = max(_smooth_line(axes, curve, theme, 1))
                    else:
                        look = dict(line_look(curve.method, theme)) | {"markevery": max(1, len(curve.steps) // 6)}
                        axes.plot(curve.steps, curve.mean, **look)
                        top = max(curve.mean)
                    tops[kind] = max(tops.get(kind, 0.0), top)
                axes.set_ylabel(label if column == 0 else "")
            grid[0][column].set_title(task_name(task))
            grid[-1][column].set_xlabel("Training step")
        for (kind, room), line in zip({"beta": 1.12, "kl": _HEADROOM}.items(), grid, strict=True):
            top = tops.get(kind) or 1.0
            low = -0.04 * top
            line[0].set_ylim(min(low, line[0].get_ylim()[0]) if kind == "kl" else low, room * top)
        legend_above(canvas, list(grid.flat))

    ends = {
        task: [(method_name(one.method), _ends(one)[1], max(one.mean)) for one in ones if one.quantity == "kl"]
        for task, ones in tasks.items()
    }
    told = [
        f"{task_name(task)}: KL at the end {join([f'{last:.3g} ({label})' for label, last, _ in found])} nats a token."
        for task, found in ends.items()
        if found
    ]
    everything = [one for ones in tasks.values() for one in ones]
    kls = [one for one in everything if one.quantity == "kl"]
    highest = max((peak for found in ends.values() for _, _, peak in found), default=0.0)
    smooth_top = max((max(running_mean(one.mean, window_of(len(one.steps)))) for one in kls), default=0.0)
    cut = f" Single steps reach {highest:.3g} and are cut off." if highest > _HEADROOM * smooth_top > 0 else ""
    betas = [one for one in everything if one.quantity == "beta"]
    weights = [f"{method_name(one.method)} {_from_to(one.mean)}" for one in betas]
    courses = f"β from first to last step: {join(list(dict.fromkeys(weights)))}. " if weights else ""
    off = " While β is 0 no reference is computed, so KL is missing there." if any(0 in one.mean for one in betas) else ""
    caption = f"{courses}{' '.join(told)}{cut}{off} {_smoothing(kls or everything)}"
    alt = f"Line charts of the KL weight and of the KL to the starting model against training step. {courses}{' '.join(told)}"
    return Drawing("beta-and-kl", "KL weight and KL over training", caption, alt, 4.9, paint)


def _from_to(betas: Sequence[float]) -> str:
    return f"{number(betas[0])} throughout" if len(set(betas)) == 1 else f"{number(betas[0])} to {number(betas[-1])}"


def _beta_course(run: Run, recorded: Curve | None) -> tuple[Sequence[float], Sequence[float]]:
    """β by step (from 1): from the schedule where it is a function of the step, else as recorded."""
    config = run.config
    kind = config.get("kl_schedule")
    if kind not in SCHEDULES or kind == "adaptive" or "steps" not in config:
        return (recorded.steps, recorded.mean) if recorded else ((), ())
    steps = int(config["steps"])
    horizon = max(1, round(steps * float(config.get("kl_horizon", 1.0))))
    weight = KLWeight(kind, float(config["beta_min"]), float(config["beta_max"]), horizon)
    chosen = [index + 1 for index in _thin(steps)]
    return chosen, [beta_at(weight, step - 1) for step in chosen]


def schedules(study: Study, swept: Sequence[SweepPoint], curves: Sequence[Curve]) -> Drawing | None:
    """Every KL schedule in a row of its own: β(s), the KL that came of it, and the accuracy it led to."""
    runs = {run.name: run for run in study.runs}
    rows = [one for one in swept if one.acc is not None and one.runs and one.runs[0] in runs]
    if not rows:
        return None
    over_time = {(one.task, one.label, one.quantity): one for one in curves if one.arm == "schedule"}
    several = len({one.task for one in rows}) > 1
    labels = [_wrapped(one.label) + (f"\n{task_name(one.task)}" if several else "") for one in rows]
    marks = [point(shorten(one.label, 40).replace(", β", " with β"), one.acc) for one in rows if one.acc is not None]

    def paint(canvas: Canvas, theme: Theme) -> None:
        grid = canvas.subplots(len(rows), 3, squeeze=False, sharex="col", sharey="col")
        for line, one, mark, label in zip(grid, rows, marks, labels, strict=True):
            colour = theme.colour(one.method)
            course = _beta_course(runs[one.runs[0]], over_time.get((one.task, one.label, "beta")))
            _area(line[0], *course, colour)
            kl = over_time.get((one.task, one.label, "kl"))
            if kl is None:
                line[1].grid(visible=False)
                line[1].text(0.5, 0.5, "not computed", transform=line[1].transAxes, ha="center", color=theme.muted, fontsize=SMALL)
            else:
                _area(line[1], kl.steps, running_mean(kl.mean, window_of(len(kl.steps))), colour)
            line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=SMALL)
            _dot(line[2], mark, colour, method_style(one.method).marker, theme)
        for axes, title in zip(grid[0], ("KL weight β", "KL (nats a token)", "Accuracy"), strict=True):
            axes.set_title(title)
            axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
            axes.locator_params(axis="y", nbins=2)
        for axes, title in zip(grid[-1], ("Training step", "Training step", "Accuracy (%)"), strict=True):
            axes.set_xlabel(title)
        for axes in grid[:, 2]:
            axes.set(ylim=(-1, 1), yticks=[])
            axes.spines["left"].set_visible(False)

    tasks = join([task_name(task) for task in task_order(one.task for one in rows)])
    windows = sorted({window_of(len(one.steps)) for (_, _, quantity), one in over_time.items() if quantity == "kl"})
    smoothed = f" KL: running mean over {join([str(n) for n in windows])} steps." if windows not in ([], [1]) else ""
    caption = f"{tasks}: {leader(marks)}.{smoothed} {bars(marks)}"
    alt = f"Small charts, one row a KL schedule, {tasks}. " + " ".join(
        f"{mark.label}: accuracy {percent(mark.value)}{_last_kl(over_time.get((one.task, one.label, 'kl')))}."
        for one, mark in zip(rows, marks, strict=True)
    )
    return Drawing("kl-schedules", "KL schedules side by side", caption, alt, 0.85 + 0.8 * len(rows), paint)


def _last_kl(curve: Curve | None) -> str:
    return "" if curve is None else f", KL at the end {_ends(curve)[1]:.3g}"


def _wrapped(label: str) -> str:
    """A schedule's label on two lines: its form, then its bounds."""
    return shorten(label, 40).replace(", ", "\n", 1).replace(" (", "\n(", 1)


def _area(axes: Axes, steps: Sequence[float], values: Sequence[float], colour: str) -> None:
    axes.plot(steps, values, color=colour, linewidth=1.8)
    axes.fill_between(steps, values, color=colour, alpha=0.14, linewidth=0)


def _dot(axes: Axes, mark: Point, colour: str, marker: str, theme: Theme) -> None:
    if mark.ends:
        axes.plot(mark.ends, [0, 0], color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot([100 * mark.value], [0], color=colour, marker=marker, markersize=7, markeredgecolor=theme.paper, linestyle="none")
