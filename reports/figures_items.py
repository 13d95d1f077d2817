"""Figures about single items: what was answered for each true count, and accuracy by difficulty level and kind of question.

Every function returns drawings, or None where nothing was measured. This module must not know files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from mr1_bench.reports.breakdowns import Confusion, Slice
from mr1_bench.reports.breakdowns import confusion as confusion_of
from mr1_bench.reports.figure_style import (
    SMALL,
    Drawing,
    Theme,
    error_bars,
    finish_percent,
    grid_of_panels,
    heat,
    legend_above,
    line_look,
    mark_look,
    method_name,
    method_order,
    shorten,
    task_name,
    task_order,
)
from mr1_bench.reports.figure_text import Point, bars, join, leader, percent, point
from mr1_bench.reports.study import Run, Study
from mr1_bench.specs import UnknownTaskError, get_spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_NARROW = 9
"""Columns of a confusion matrix up to which two of them fit side by side."""
_OTHER = ("other", "none")


def _family(task: str) -> str:
    try:
        return get_spec(task.split(",")[0]).family
    except UnknownTaskError:
        return ""


def _seed(run: Run) -> tuple[int, str]:
    return (-1 if run.seed is None else run.seed, run.name)


def confusion(study: Study) -> Drawing | None:
    """What one checkpoint a method answered for each true count: of those trained on counting the one with the lowest seed."""
    trained = [run for run in study.runs if run.arm == "main" and run.method != "base" and _family(run.task) == "vc"]
    firsts = [min((run for run in trained if run.method == method), key=_seed) for method in method_order(run.method for run in trained)]
    matrices = [(run, matrix) for run in firsts if (matrix := confusion_of(study, run))]
    if not matrices:
        return None
    task = matrices[0][1].task
    base = confusion_of(study, study.base, task) if study.base else None
    found = [(study.base, base)] if study.base and base else []
    found += [(run, matrix) for run, matrix in matrices if matrix.task == task]
    golds = sorted({gold for _, one in found for gold in one.golds})
    numbers = sorted({answer for _, one in found for answer in one.answers if answer not in _OTHER}, key=int)
    answers = numbers + [last for last in _OTHER if any(last in one.answers for _, one in found)]
    columns = 2 if len(answers) <= _NARROW else 1

    def paint(canvas: Canvas, theme: Theme) -> None:
        panels = grid_of_panels(canvas, len(found), columns)
        for place, (axes, (run, matrix)) in enumerate(zip(panels, found, strict=True)):
            _confusion_panel(axes, matrix, golds, answers, theme)
            axes.set_title(method_name(run.method))
            axes.set_xlabel("Answered" if place >= len(found) - columns else "")
            axes.set_ylabel("True count" if place % columns == 0 else "")

    said = " ".join(_mistakes(run, matrix) for run, matrix in found)
    which = join([f"{method_name(run.method)}{'' if run.seed is None else f' seed {run.seed}'}" for run, _ in found])
    total = sum(map(sum, found[0][1].counts))
    caption = (
        f"{said} Numbers: items of {task_name(task)} ({total} for each checkpoint); shade: share of the row; outlined: right answers. "
        f"One checkpoint a method: {which}."
    )
    alt = f"Confusion matrices of true counts and answers, one a method. {said}"
    rows = -(-len(found) // columns)
    height = 0.35 + rows * (0.75 + max(4, len(golds)) * 0.29)
    return Drawing("confusion-counting", "Answers by true count", caption, alt, height, paint)


def _confusion_panel(axes: Axes, matrix: Confusion, golds: Sequence[int], answers: Sequence[str], theme: Theme) -> None:
    from matplotlib.patches import Rectangle

    rows = dict(zip(matrix.golds, matrix.counts, strict=True))
    counts = [[rows[gold][matrix.answers.index(one)] if gold in rows and one in matrix.answers else 0 for one in answers] for gold in golds]
    shares: list[list[float | None]] = [[count / sum(row) if sum(row) else 0.0 for count in row] for row in counts]
    text = heat(axes, shares, (0.0, 1.0), theme)
    for row, (gold, line) in enumerate(zip(golds, counts, strict=True)):
        for column, count in enumerate(line):
            colour = text(count / sum(line) if count else 0.0)
            if count:
                axes.text(column, row, str(count), ha="center", va="center", fontsize=SMALL, color=colour)
            if answers[column] == str(gold):
                box = Rectangle((column - 0.43, row - 0.42), 0.86, 0.84, fill=False, edgecolor=colour, linewidth=1.1)
                axes.add_patch(box)
    # `none` a line lower than `other`: side by side they would touch.
    axes.set_xticks(range(len(answers)), [f"\n{one}" if one == "none" and "other" in answers else one for one in answers])
    axes.set_yticks(range(len(golds)), [str(gold) for gold in golds])


def _mistakes(run: Run, matrix: Confusion) -> str:
    """The commonest mistake of a checkpoint, and the counts that it never answers."""
    cells = [
        (count, gold, answer)
        for gold, line in zip(matrix.golds, matrix.counts, strict=True)
        for answer, count in zip(matrix.answers, line, strict=True)
        if answer != str(gold)
    ]
    count, gold, answer = max(cells, key=lambda cell: cell[0], default=(0, 0, ""))
    wrong, total = sum(cell[0] for cell in cells), sum(map(sum, matrix.counts))
    words = {"other": f"answers another number for {gold}", "none": f"gives no readable answer for {gold}"}
    never = f", and never answers {join([str(one) for one in matrix.never])}" if matrix.never else ""
    if not count:
        return f"{method_name(run.method)} makes no mistake{never}."
    what = words.get(answer, f"answers {answer} for {gold}")
    return f"{method_name(run.method)} is wrong on {wrong} of {total}, most often it {what} ({count} times){never}."


def breakdowns(slices: Sequence[Slice]) -> list[Drawing]:
    """Accuracy of base and same-task checkpoints by level, by question family and (real tasks) by gold; a figure each.

    Kinds of questions and golds are shown for the tasks that somebody was trained on, levels for all
    but the direct-answer tasks, which are other tasks at the same level.
    """
    same = [one for one in slices if one.method == "base" or _same_data(one.train_task, one.eval_task)]
    trained = {one.train_task for one in slices}
    own = [one for one in same if one.eval_task in trained]
    found = [_by_level([one for one in same if one.by == "level" and get_spec(one.eval_task).tagged])]
    found += [_by_kind([one for one in own if one.by == kind], kind) for kind in ("family", "gold")]
    return [drawing for drawing in found if drawing is not None]


def _same_data(train_task: str, eval_task: str) -> bool:
    """Whether a task's items come from data that was trained on, perhaps at another level."""
    try:
        return get_spec(eval_task).data in {get_spec(one).data for one in train_task.split(",")}
    except UnknownTaskError:
        return False


def _by_level(slices: Sequence[Slice]) -> Drawing | None:
    """Level against accuracy, a line a method, a panel a task family; None with a single level, which is no comparison."""
    panels_of: dict[str, dict[str, dict[int, Slice]]] = {}
    for one in slices:
        panels_of.setdefault(_family(one.eval_task), {}).setdefault(one.method, {})[int(one.value)] = one
    panels_of = {family: panels_of[family] for family in sorted(panels_of, reverse=True)}
    panels_of = {family: ones for family, ones in panels_of.items() if len({level for points in ones.values() for level in points}) > 1}
    if not panels_of:
        return None
    marks = {
        family: {
            method: {level: point(method_name(method), one.measured) for level, one in sorted(ones[method].items())}
            for method in method_order(ones)
        }
        for family, ones in panels_of.items()
    }

    def paint(canvas: Canvas, theme: Theme) -> None:
        panels = grid_of_panels(canvas, len(marks), 2)
        for axes, (family, ones) in zip(panels, marks.items(), strict=True):
            levels = sorted({level for by_level in ones.values() for level in by_level})
            for place, (method, by_level) in enumerate(ones.items()):
                shift = 0.035 * (levels[-1] - levels[0]) * (place - (len(ones) - 1) / 2)
                xs, ys = [level + shift for level in by_level], list(by_level.values())
                shares, look = [100 * one.value for one in ys], line_look(method, theme)
                error_bars(axes, xs, shares, [one.ends for one in ys], look)
                axes.plot(xs, shares, **look)
            axes.set_xticks(levels)
            axes.set_title("Counting" if family == "vc" else "Geometry")
            axes.set_xlabel("Difficulty level")
            axes.grid(visible=False, axis="x")
            finish_percent(axes, "Accuracy (%)" if axes is panels[0] else "")
        legend_above(canvas, panels)

    said = []
    for family, ones in marks.items():
        hardest = max(level for by_level in ones.values() for level in by_level)
        told = leader(
            [by_level[hardest] for method, by_level in ones.items() if hardest in by_level and (method != "base" or len(ones) == 1)]
        )
        said.append(f"{'Counting' if family == 'vc' else 'Geometry'}, level {hardest}: {told}.")
    every = [one for ones in marks.values() for by_level in ones.values() for one in by_level.values()]
    alt = "Accuracy by difficulty level. " + " ".join(
        f"{'Counting' if family == 'vc' else 'Geometry'}, {method_name(method)}: "
        + join([f"{percent(one.value)} at level {level}" for level, one in by_level.items()])
        + "."
        for family, ones in marks.items()
        for method, by_level in ones.items()
    )
    return Drawing("accuracy-by-level", "Accuracy by difficulty level", f"{' '.join(said)} {bars(every)}", alt, 3.3, paint)


def kind_name(value: str) -> str:
    """How a person writes a question family or kind of gold: `count color` for `count_color`, `gold 3` for `3`."""
    if value.isdecimal():
        return f"gold {shorten(value, 12)}"
    return shorten(value.replace("_", " "), 22)


def _by_kind(slices: Sequence[Slice], by: Literal["family", "gold"]) -> Drawing | None:
    """A row for each kind of item, a mark a method, a panel a task; a task with a single kind is left out."""
    kinds = {
        task: found
        for task in task_order(one.eval_task for one in slices)
        if len(found := list(dict.fromkeys(one.value for one in slices if one.eval_task == task))) > 1
    }
    if not kinds:
        return None
    tasks = list(kinds)
    methods = method_order(one.method for one in slices)
    marks = {
        (one.eval_task, one.value, one.method): point(method_name(one.method), one.measured) for one in slices if one.eval_task in kinds
    }
    sizes = {(one.eval_task, one.value): one.measured.seeds[0].n for one in slices if one.measured.seeds}

    def paint(canvas: Canvas, theme: Theme) -> None:
        grid = canvas.subplots(len(tasks), 1, squeeze=False, sharex=True, height_ratios=[len(kinds[task]) + 0.4 for task in tasks])
        for axes, task in zip(grid[:, 0], tasks, strict=True):
            for row, kind in enumerate(kinds[task]):
                for place, method in enumerate(methods):
                    mark = marks.get((task, kind, method))
                    if mark is not None:
                        y = row + 0.2 * (place - (len(methods) - 1) / 2)
                        look = mark_look(method, theme)
                        if mark.ends:
                            axes.plot(mark.ends, [y, y], color=look["color"], linewidth=1.4, solid_capstyle="butt")
                        axes.plot([100 * mark.value], [y], **look)
                if row % 2:
                    axes.axhspan(row - 0.5, row + 0.5, color=theme.grid, alpha=0.35, linewidth=0)
            names = [f"{kind_name(kind)}{f' ({n})' if (n := sizes.get((task, kind))) else ''}" for kind in kinds[task]]
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.grid(visible=False, axis="y")
            axes.set_title(task_name(task))
        low, high = grid[-1, 0].get_xlim()
        grid[-1, 0].set_xlim(max(-1.0, low), min(101.0, high))
        grid[-1, 0].set_xlabel("Accuracy (%)")
        legend_above(canvas, list(grid[:, 0]))

    what = "question family" if by == "family" else "gold answer"
    said = " ".join(filter(None, (_spread(task, kinds[task], methods, marks) for task in tasks)))
    alt = f"Accuracy by {what}. " + " ".join(
        f"{task_name(task)}, {kind_name(kind)}: "
        + join(
            [
                f"{marks[task, kind, method].label} {percent(marks[task, kind, method].value)}"
                for method in methods
                if (task, kind, method) in marks
            ]
        )
        + "."
        for task in tasks
        for kind in kinds[task]
    )
    caption = f"{said} In brackets the number of items. {bars(marks.values())}"
    height = 0.7 + sum(0.45 + 0.62 * len(kinds[task]) for task in tasks)
    return Drawing(f"accuracy-by-{by}", f"Accuracy by {what}", caption, alt, height, paint)


def _spread(task: str, kinds: Sequence[str], methods: Sequence[str], marks: dict[tuple[str, str, str], Point]) -> str:
    """Between which values the last method in the tables' order moves over the kinds."""
    method = methods[-1]
    shares = [marks[task, kind, method].value for kind in kinds if (task, kind, method) in marks]
    if len(shares) < 2:
        return ""
    return f"{task_name(task)}: {method_name(method)} is between {percent(min(shares))} and {percent(max(shares))}."
