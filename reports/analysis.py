"""From a study to the statements of the report: the paper's table and the train-by-test matrix, with intervals.

Pure functions from `Study` to frozen values that `dataclasses.asdict` turns into JSON. This is the door to all of them: comparisons of
methods and of checkpoints stand in `comparisons`, sweeps and training curves in `curves`, confusion and difficulty in `breakdowns`. All
shares are between 0 and 1. The unit of a statement about a method is the training seed, of one about a checkpoint the item; seeds are
never pooled into n. This module must not know how anything is shown, nor the paper's numbers but through `mr1_bench.published`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from mr1_bench import published, stats
from mr1_bench.published import Published
from mr1_bench.records import RecordError
from mr1_bench.reports.breakdowns import Confusion, Slice, by_difficulty, confusion, confusions
from mr1_bench.reports.comparisons import Comparison, Gain, Gains, Pair, comparisons, gains, pairs
from mr1_bench.reports.curves import Curve, Sweep, SweepPoint, curves, sweep
from mr1_bench.reports.measures import (
    MIN_SEEDS,
    Difference,
    Measured,
    SeedValue,
    measure,
    our_tasks,
    paper_model,
    relation_of,
    trained,
)
from mr1_bench.reports.study import METHODS, Run, Study
from mr1_bench.specs import get_spec
from mr1_bench.stats import Estimate

__all__ = [
    "Cell",
    "Comparison",
    "Confusion",
    "Curve",
    "Difference",
    "Findings",
    "Gain",
    "Gains",
    "MatrixCell",
    "Measured",
    "Pair",
    "SeedValue",
    "Slice",
    "SweepPoint",
    "Table1",
    "Versus",
    "WHY_TWO_GRADERS",
    "analyse",
    "by_difficulty",
    "comparisons",
    "confusion",
    "confusions",
    "curves",
    "gains",
    "matrix",
    "matrix_row",
    "pairs",
    "sweep",
    "table1",
    "unpublished",
]

WHY_TWO_GRADERS = (
    "acc grades the answer inside the <answer> tags and accepts every form of the right value, so it is the one to trust; acc_r1v is the "
    "published R1-V grader, which the paper's numbers follow, so it is the only one that can be set beside them. They differ because "
    "acc_r1v hands a geometry output to math-verify whole, so that it misreads golds such as 10√{2} or 15π or takes a number out of the "
    "reasoning, and because in counting it takes nothing but bare digits between the tags."
)


@dataclass(frozen=True, slots=True)
class Versus:
    """A published number beside ours. Made of `acc_r1v` only, for the real tasks and the paper's models only.

    Attributes:
        value: the published share (0 to 1).
        k, n: the counts that it stands for.
        low, high: its 95 % Wilson interval.
        source: paper and table.
        difference: ours minus published: Newcombe with one seed, the same construction for other seeds and other items with 3 or more;
            None with two, which say nothing of their method.
        per_seed: by run name, every checkpoint against the published one (Newcombe).
        note: what to keep in mind, such as another number of items; empty otherwise.
    """

    value: float
    k: int
    n: int
    low: float
    high: float
    source: str
    difference: Difference | None
    per_seed: tuple[tuple[str, Difference], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of table 1: a method trained on a task, on that task (base: not trained).

    Attributes:
        method, task: as in `Run.method` and `Result.task`.
        acc: None where it was not measured.
        acc_r1v: None where it was not measured (direct tasks have none); over the items that all seeds have a verdict on.
        published: None where the paper has no such number or ours cannot be set beside it.
        why: why there is no measured number, or none that the published one can be compared with, or what is missing in it.
    """

    method: str
    task: str
    acc: Measured | None
    acc_r1v: Measured | None
    published: Versus | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Table1:
    """The paper's table 1, measured.

    Attributes:
        tasks: columns.
        methods: rows, in the order of `METHODS`; every (method, task) has a cell.
        cells: method by method, tasks in order.
        direct: extra cells of the direct-answer prompts (`mr1_vc_direct`), if evaluated; no published numbers.
        model: the paper's name of the model that everything started from, if it is one of the paper's; else empty.
        why: why no published number stands beside any cell of the real tasks; empty where one does, and without real tasks.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    cells: tuple[Cell, ...]
    direct: tuple[Cell, ...]
    model: str
    why: str = ""

    def cell(self, method: str, task: str) -> Cell:
        """Return one cell."""
        return next(cell for cell in self.cells if (cell.method, cell.task) == (method, task))


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """A method trained on one task, tested on another (figure 7 off the diagonal).

    Attributes:
        method: base, sft, grpo, grpo-d.
        train_task: empty for the base.
        eval_task: the task tested on.
        relation: `base`, `same-task`, `cross-task` or `same-task, other data`.
        acc, acc_r1v: as in `Cell`; `gain` is of `acc`.
        gain: mean minus the base's accuracy on the same items: over items with one seed, over seeds with 3 or more; None for the base, with
            two seeds, and where there is nothing to make an interval of.
    """

    method: str
    train_task: str
    eval_task: str
    relation: str
    acc: Measured | None
    acc_r1v: Measured | None
    gain: Difference | None


def table1(study: Study) -> Table1:
    """Same-task accuracy by method and task: the main arm, and the base.

    Columns are the tasks that something was trained on; without any training, the think-and-answer tasks that the base was evaluated on.

    Raises:
        RecordError: runs that would be averaged differ in more than their seed.
    """
    groups = trained(study)
    specs = our_tasks(study)
    taught = {task for _, task in groups}
    columns = [spec.name for spec in specs if spec.name in taught] or [spec.name for spec in specs if spec.tagged and study.base]
    rows = [method for method in METHODS if (method == "base" and study.base) or any(name == method for name, _ in groups)]
    model = paper_model(study)
    cells = [_cell(method, task, _runs_of(study, groups, method, task), model) for method in rows for task in columns]
    direct = []
    for spec in specs:
        if not spec.tagged:
            for method in rows:
                taught_on = [task for name, task in groups if name == method and "," not in task and get_spec(task).data == spec.data]
                runs = [run for task in taught_on or [""] for run in _runs_of(study, groups, method, task)]
                cell = _cell(method, spec.name, runs, "") if len(taught_on) < 2 else None
                if cell is not None and cell.acc is not None:
                    direct.append(cell)
    why = ""
    if not model and {row.eval_task for row in published.ROWS} & set(columns):
        why = "The starting model is not known to be one of the paper's, so no published number stands beside ours."
    return Table1(tuple(columns), tuple(rows), tuple(cells), tuple(direct), model, why)


def _runs_of(study: Study, groups: dict[tuple[str, str], list[Run]], method: str, task: str) -> list[Run]:
    if method == "base":
        return [study.base] if study.base else []
    return groups.get((method, task), [])


def _cell(method: str, task: str, runs: list[Run], model: str) -> Cell:
    acc, acc_r1v = measure(runs, task, "acc"), measure(runs, task, "acc_r1v")
    if acc is None and acc_r1v is None:
        return Cell(
            method, task, None, None, None, "no finished run of this method on this task" if not runs else "trained, but not evaluated"
        )
    row = published.find(model, method, "" if method == "base" else task, task)
    why = _without_verdict(runs, task, acc_r1v) if get_spec(task).tagged else ""
    if row is not None and acc_r1v is None:
        why = f"published, but only {published.METRIC} can be compared with it, and that was not measured"
    return Cell(method, task, acc, acc_r1v, None if row is None else _versus(row, acc_r1v), why)


def _without_verdict(runs: list[Run], task: str, acc_r1v: Measured | None) -> str:
    """What `acc_r1v` lacks; empty where it lacks nothing."""
    evaluated = [run.name for run in runs if task in run.results]
    measured = {seed.run for seed in acc_r1v.seeds} if acc_r1v else set()
    if measured != set(evaluated):
        return f"acc_r1v is missing in {', '.join(name for name in evaluated if name not in measured)}"
    left_out = acc_r1v.left_out if acc_r1v else 0
    return f"acc_r1v leaves out {left_out} item{'s' * (left_out != 1)} that R1-V's grader gave no verdict on" if left_out else ""


def _versus(row: Published, measured: Measured | None) -> Versus:
    """Set the published number beside ours; `measured` is by `acc_r1v`."""
    low, high = stats.wilson(row.k, row.n)
    per_seed = []
    for seed in measured.seeds if measured else ():
        if seed.k is not None and seed.n is not None:
            limits = stats.newcombe(seed.k, seed.n, row.k, row.n)
            per_seed.append((seed.run, Difference(seed.value - row.k / row.n, *limits, "Newcombe")))
    difference = None
    counts = {seed.n for seed in measured.seeds} if measured else set()
    items = counts.pop() if len(counts) == 1 else None
    if measured and len(measured.seeds) == 1 and per_seed:
        difference = per_seed[0][1]
    elif measured and items and len(measured.seeds) >= MIN_SEEDS:
        ours = stats.mean_over_seeds_and_items(measured.values, items)
        limits = stats.square_and_add(ours, Estimate(row.k / row.n, low, high, row.n))
        difference = Difference(measured.mean - row.k / row.n, *limits, "square-and-add: seeds (t), items (Wilson), published (Wilson)")
    asked = {seed.n for seed in measured.seeds} - {None, row.n} if measured else set()
    notes = [f"measured on {', '.join(map(str, sorted(filter(None, asked))))} items, published on {row.n}"] if asked else []
    if measured and 1 < len(measured.seeds) < MIN_SEEDS:
        notes.append(f"of {len(measured.seeds)} seeds: compared with the published number one by one only")
    return Versus(row.k / row.n, row.k, row.n, low, high, row.source, difference, tuple(per_seed), "; ".join(notes))


def matrix(study: Study) -> list[MatrixCell]:
    """Accuracy by method, training task and test task: the main arm, the base first.

    Raises:
        RecordError: runs that would be averaged differ in more than their seed, or were asked other items than the base.
    """
    groups = [*([[study.base]] if study.base else []), *trained(study).values()]
    return [cell for runs in groups for cell in matrix_row(study, runs)]


def matrix_row(study: Study, runs: list[Run]) -> list[MatrixCell]:
    """The cells of runs that differ in their seed only, or of one checkpoint.

    Raises:
        RecordError: they were asked other items than each other or than the base.
    """
    cells = []
    for spec in our_tasks(study):
        acc, acc_r1v = measure(runs, spec.name, "acc"), measure(runs, spec.name, "acc_r1v")
        if acc is not None or acc_r1v is not None:
            gain = _gain(study.base, runs, spec.name) if runs[0].method != "base" else None
            cells.append(MatrixCell(runs[0].method, runs[0].task, spec.name, relation_of(runs[0], spec.name), acc, acc_r1v, gain))
    return cells


def _gain(base: Run | None, runs: list[Run], task: str) -> Difference | None:
    measured, start = measure(runs, task, "acc"), measure([base], task, "acc") if base else None
    if base is None or measured is None or start is None:
        return None
    value = measured.mean - start.mean
    if len(measured.seeds) > 1:
        if measured.interval == "none" or len(measured.seeds) < MIN_SEEDS:
            return None
        estimate = stats.mean_over_seeds([share - start.mean for share in measured.values])
        return Difference(value, max(-1.0, estimate.low), min(1.0, estimate.high), "t over seeds, the base's answers taken as they are")
    if measured.interval == "none" or start.interval == "none":
        return None
    holder = next(run for run in runs if run.name == measured.seeds[0].run)
    ours, its = holder.results[task].correct(), base.results[task].correct()
    if ours.keys() != its.keys():
        raise RecordError(
            f"{holder.results[task].folder} holds other items of {task} than the base's {base.results[task].folder} ({len(ours)} and "
            f"{len(its)}); evaluate both with the same --limit"
        )
    only_ours = sum(ours[item] and not its[item] for item in ours)
    only_base = sum(its[item] and not ours[item] for item in ours)
    return Difference(value, *stats.paired_difference(only_ours, only_base, len(ours)), "paired items, these two checkpoints")


def unpublished() -> list[str]:
    """What the paper did not publish as numbers, one sentence each."""
    return list(published.UNPUBLISHED)


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that is computed of a study; `dataclasses.asdict` gives its JSON.

    Attributes:
        sweeps: points by sweep: `beta`, `format`, `schedule`; only those with points.
        confusions: of counting, one a checkpoint of the base and the main arm.
        slices: accuracy by difficulty and kind of question.
        unpublished: what the paper did not publish as numbers.
    """

    table1: Table1
    matrix: Sequence[MatrixCell]
    comparisons: Sequence[Comparison]
    pairs: Sequence[Pair]
    gains: Sequence[Gain]
    sweeps: Mapping[str, Sequence[SweepPoint]]
    confusions: Sequence[Confusion]
    slices: Sequence[Slice]
    unpublished: Sequence[str]


def analyse(study: Study) -> Findings:
    """Compute everything that a report says of a study, once.

    Raises:
        RecordError: runs that would be averaged differ in more than their seed.
    """
    names: tuple[Sweep, ...] = get_args(Sweep)
    return Findings(
        table1=table1(study),
        matrix=matrix(study),
        comparisons=comparisons(study),
        pairs=pairs(study),
        gains=gains(study).gains,
        sweeps={name: points for name in names if (points := sweep(study, name))},
        confusions=confusions(study),
        slices=by_difficulty(study),
        unpublished=unpublished(),
    )
