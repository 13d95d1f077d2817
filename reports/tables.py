"""The report's tables: from a study's statements to texts for people and records for programs. `table_files` writes them.

Every number comes from `analysis`; here is only its wording. What does not exist is left out: no column of published numbers where
nothing published can stand beside ours, no sweep that was not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mr1_bench.reports.analysis import (
    Cell,
    Comparison,
    Confusion,
    Difference,
    Findings,
    Gain,
    MatrixCell,
    Measured,
    Pair,
    Slice,
    SweepPoint,
    Table1,
)
from mr1_bench.reports.curves import Sweep
from mr1_bench.reports.measures import MIN_SEEDS
from mr1_bench.reports.study import METHOD_NAMES, METHODS, Study
from mr1_bench.reports.table_files import Table
from mr1_bench.reports.table_files import write_tables as write_files
from mr1_bench.tables import p_value, percent

_INTERVALS = (
    "In brackets 95 % intervals: Student's t over training seeds (what another seed would give on these items; none where all agree), "
    "or with one checkpoint Wilson over its items."
)
_SWEEPS: Mapping[Sweep, tuple[str, str]] = {
    "beta": ("Constant KL weight", "β"),
    "format": ("Weight of the format reward", "weight"),
    "schedule": ("Schedules of the KL weight", "schedule"),
}


def write_tables(study: Study, folder: Path, findings: Findings) -> list[Path]:
    """Make all tables of a study and write each as Markdown, CSV and LaTeX.

    Args:
        study: the runs.
        folder: to write into.
        findings: what was computed of them.
    """
    return write_files(make_tables(study, findings), folder)


def make_tables(study: Study, findings: Findings) -> list[Table]:
    """All tables that a study has something for, in the order of the report."""
    table1 = findings.table1
    tables = [_table1(table1), _seeds([*table1.cells, *table1.direct]), _gains(findings.gains), _matrix(findings.matrix)]
    tables += [_comparisons(findings.comparisons), _pairs(findings.pairs)]
    tables += [_sweep(what, findings.sweeps.get(what, ())) for what in _SWEEPS]
    tables += [_difficulty(findings.slices), _confusion(study, findings.confusions), _unpublished(findings.unpublished)]
    return [table for table in tables if table.rows]


def _share(measured: Measured | None) -> str:
    if measured is None:
        return ""
    if measured.low is None or measured.high is None:
        return f"{100 * measured.mean:.1f}"
    return percent(measured.mean, measured.low, measured.high)


def _points(difference: Difference | None) -> str:
    return "" if difference is None else percent(difference.value, difference.low, difference.high, sign="+")


def _count(measured: Measured | None) -> str:
    """Items of each checkpoint: never a sum over seeds."""
    counts = sorted({seed.n for seed in measured.seeds if seed.n is not None}) if measured else []
    return ", ".join(map(str, counts))


def _seed_count(measured: Measured | None) -> str:
    return str(len(measured.seeds)) if measured else ""


def _records(measured: Measured | None) -> dict[str, object]:
    """A measured share as plain values."""
    if measured is None:
        return dict.fromkeys(("metric", "mean", "low", "high", "interval", "deviation", "seeds", "n", "runs", "left_out"))
    return {
        "metric": measured.metric,
        "mean": measured.mean,
        "low": measured.low,
        "high": measured.high,
        "interval": measured.interval,
        "deviation": measured.deviation,
        "seeds": len(measured.seeds),
        "n": _count(measured),
        "runs": " ".join(seed.run for seed in measured.seeds),
        "left_out": measured.left_out,
    }


def _limits(prefix: str, difference: Difference | None) -> dict[str, object]:
    names = (prefix, f"{prefix}_low", f"{prefix}_high", f"{prefix}_interval")
    values = (None,) * 4 if difference is None else (difference.value, difference.low, difference.high, difference.method)
    return dict(zip(names, values, strict=True))


def _table1(table: Table1) -> Table:
    cells = [*table.cells, *table.direct]
    compared = any(cell.published for cell in cells)
    header = ["task", "method", "seeds", "n", "acc %", "acc_r1v %", *(["published %", "difference, points"] if compared else []), "remark"]
    rows, records = [], []
    for cell in sorted(cells, key=lambda cell: list(dict.fromkeys(one.task for one in cells)).index(cell.task)):
        versus = cell.published
        main = cell.acc
        beside = [percent(versus.value, versus.low, versus.high) if versus else "", _points(versus.difference) if versus else ""]
        remark = cell.why or (versus.note if versus else "")
        texts = [
            cell.task,
            METHOD_NAMES.get(cell.method, cell.method),
            _seed_count(main),
            _count(main),
            _share(cell.acc),
            _share(cell.acc_r1v),
        ]
        rows.append((*texts, *(beside if compared else []), remark))
        for measured in (cell.acc, cell.acc_r1v):
            record = {"task": cell.task, "method": cell.method, **_records(measured)}
            if compared:
                shown = versus if versus and measured and measured is cell.acc_r1v else None
                record |= {"published": shown.value if shown else None, "published_k": shown.k if shown else None}
                record |= {"published_n": shown.n if shown else None, **_limits("difference", shown.difference if shown else None)}
            if measured:
                records.append(record)
    note = "Each method on the task it was trained on. n counts the items of one checkpoint; seeds are never pooled into it. " + _INTERVALS
    if compared:
        note += (
            " The published number stands beside acc_r1v only, with the Wilson interval of its k/n. The difference is acc_r1v minus "
            "published: with Newcombe's interval, or with several seeds the same construction for other seeds and other items."
        )
    if table.why:
        note += f" {table.why}"
    if not any(cell.why for cell in cells) and not any(cell.published and cell.published.note for cell in cells):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return Table(
        "table1", f"Same-task accuracy{f', {table.model}' if table.model else ''}", note, tuple(header), tuple(rows), tuple(records)
    )


def _seeds(cells: Sequence[Cell]) -> Table:
    compared = any(cell.published for cell in cells)
    rows, records = [], []
    for cell in cells:
        r1v = {seed.run: seed for seed in cell.acc_r1v.seeds} if cell.acc_r1v else {}
        acc = {seed.run: seed for seed in cell.acc.seeds} if cell.acc else {}
        against = dict(cell.published.per_seed) if cell.published else {}
        for run in dict.fromkeys([*acc, *r1v]):
            texts = []
            record: dict[str, object] = {"task": cell.task, "method": cell.method, "run": run, "seed": (acc.get(run) or r1v[run]).seed}
            for name, found in (("acc", acc.get(run)), ("acc_r1v", r1v.get(run))):
                known = found is not None and found.low is not None and found.high is not None
                texts.append(f"{found.k}/{found.n}" if found is not None and known else "")
                texts.append(percent(found.value, found.low or 0.0, found.high or 0.0) if found is not None and known else "")
                keys = ("value", "k", "n", "low", "high")
                record |= {f"{name}_{key}": getattr(found, key) if found else None for key in keys}
            if compared:
                texts.append(_points(against.get(run)))
                record |= _limits("difference", against.get(run))
            seed = "" if record["seed"] is None else str(record["seed"])
            rows.append((cell.task, METHOD_NAMES.get(cell.method, cell.method), run, seed, *texts))
            records.append(record)
    header = ["task", "method", "run", "seed", "acc k/n", "acc %", "acc_r1v k/n", "acc_r1v %"]
    note = "In brackets 95 % Wilson intervals over the items of each checkpoint."
    if compared:
        header.append("difference to published, points")
        note += " Difference: acc_r1v minus published, with Newcombe's 95 % interval."
    return Table("table1_seeds", "Same-task accuracy of every checkpoint", note, tuple(header), tuple(rows), tuple(records))


def _gains(gains: Sequence[Gain]) -> Table:
    compared = any(gain.published is not None or gain.recomputed is not None for gain in gains)
    rows = []
    for gain in gains:
        measured = "" if gain.measured is None else f"{100 * gain.measured:+.2f}"
        if gain.measured is not None and gain.low is not None and gain.high is not None:
            measured += f" [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"
        published = "" if gain.published is None else f"> {100 * gain.published:.2f}"
        recomputed = "" if gain.recomputed is None else f"{100 * gain.recomputed:.2f}"
        beside = (published, recomputed) if compared else ()
        rows.append((gain.name, " and ".join(gain.tasks), gain.metric, measured, *beside, gain.why))
    titles = ("published, %", "from the published table, %") if compared else ()
    header = ("relative gain", "task", "metric", "measured, %", *titles, "remark")
    keys = ("name", "metric", "measured", "low", "high", "published", "recomputed", "why", "definition")
    records = [{"tasks": " ".join(gain.tasks), **{key: getattr(gain, key) for key in keys}} for gain in gains]
    definitions = " ".join(f"{name}: {text}." for name, text in dict.fromkeys((gain.name, gain.definition) for gain in gains))
    note = f"Of the means over training seeds, computed as the paper does; in brackets 95 % intervals over seeds. {definitions}"
    return Table("gains", "Headline relative gains", note, header, tuple(rows), tuple(records))


def _matrix(cells: Sequence[MatrixCell]) -> Table:
    tasks = list(dict.fromkeys(cell.eval_task for cell in cells))
    trained = list(dict.fromkeys((cell.method, cell.train_task) for cell in cells))
    found = {(cell.method, cell.train_task, cell.eval_task): cell for cell in cells}
    rows = []
    for method, train_task in trained:
        row = [METHOD_NAMES.get(method, method), train_task]
        mine = [found.get((method, train_task, task)) for task in tasks]
        row.append(", ".join(sorted({_seed_count(cell.acc) for cell in mine if cell})))
        for cell in mine:
            row += [_share(cell.acc), _points(cell.gain)] if cell else ["", ""]
        rows.append(tuple(row))
    header = ("method", "trained on", "seeds", *(title for task in tasks for title in (f"{task} %", "gain over base, points")))
    records = [
        {"method": cell.method, "train_task": cell.train_task, "eval_task": cell.eval_task, "relation": cell.relation}
        | _records(measured)
        | _limits("gain", cell.gain if measured is (cell.acc) else None)
        for cell in cells
        for measured in (cell.acc, cell.acc_r1v)
        if measured
    ]
    note = (
        f"Accuracy (acc) by what was trained on and what was tested. {_INTERVALS} Gains are over the base on the same items, of one "
        f"checkpoint or of at least {MIN_SEEDS} seeds."
    )
    return Table("matrix", "Train-by-test matrix", note, header, tuple(rows), tuple(records))


def _p(value: float | None) -> str:
    return "" if value is None else p_value(value)


def _comparisons(found: Sequence[Comparison]) -> Table:
    rows = []
    for one in found:
        result = one.why or ("differ" if one.differs else "no difference shown")
        means = ["" if mean is None else f"{100 * mean:.1f}" for mean in (one.mean_a, one.mean_b)]
        names = f"{METHOD_NAMES.get(one.a, one.a)} − {METHOD_NAMES.get(one.b, one.b)}"
        seeds = f"{one.seeds_a}, {one.seeds_b}"
        rows.append((one.train_task, one.eval_task, names, seeds, *means, _points(one.difference), _p(one.p), _p(one.p_holm), result))
    header = ("trained on", "tested on", "methods", "seeds", "first %", "second %", "difference, points", "p", "p (Holm)", "result")
    keys = ("train_task", "eval_task", "relation", "a", "b", "metric", "seeds_a", "seeds_b", "mean_a", "mean_b", "t", "df", "p", "p_holm")
    records = [
        {key: getattr(one, key) for key in keys}
        | _limits("difference", one.difference)
        | {"differs": one.differs, "statement": one.statement, "why": one.why}
        for one in found
    ]
    note = (
        "Statements about methods: Welch's t test with training seeds as the unit, never under 3 seeds, with Holm's correction over this "
        "table. A difference that is not shown may still exist."
    )
    return Table("comparisons", "Methods compared", note, header, tuple(rows), tuple(records))


def _pairs(found: Sequence[Pair]) -> Table:
    rows = []
    for one in found:
        counts = (one.n, one.both, one.only_a, one.only_b, one.neither)
        rows.append(
            (one.eval_task, one.label_a, one.label_b, *map(str, counts), _points(one.difference), _p(one.p), _p(one.p_holm), one.why)
        )
    header = [
        "tested on",
        "first",
        "second",
        "n",
        "both",
        "only first",
        "only second",
        "neither",
        "difference, points",
        "p",
        "p (Holm)",
        "remark",
    ]
    if not any(one.why for one in found):
        header, rows = header[:-1], [row[:-1] for row in rows]
    keys = ("run_a", "run_b", "train_task", "eval_task", "n", "both", "only_a", "only_b", "neither", "p", "p_holm")
    records = [
        {key: getattr(one, key) for key in keys} | _limits("difference", one.difference) | {"statement": one.statement, "why": one.why}
        for one in found
    ]
    note = (
        "Exact McNemar tests of single checkpoints on the same items. They speak of these checkpoints: other seeds of the same methods "
        "differ too, so nothing here is a statement about a method."
    )
    return Table("pairs", "Checkpoints compared", note, tuple(header), tuple(rows), tuple(records))


def _sweep(what: Sweep, points: Sequence[SweepPoint]) -> Table:
    title, name = _SWEEPS[what]
    rows = [
        (one.task, one.label, *(text(one.acc) for text in (_seed_count, _count, _share)), _share(one.acc_r1v), _share(one.format))
        for one in points
    ]
    header = ("task", name, "seeds", "n", "acc %", "acc_r1v %", "format %")
    records = [
        {"sweep": what, "task": one.task, "method": one.method, "x": one.x, "label": one.label, **_records(measured)}
        for one in points
        for measured in (one.acc, one.acc_r1v, one.format)
        if measured
    ]
    note = f"On the task trained on. {_INTERVALS} The paper publishes no such numbers."
    return Table(f"sweep_{what}", title, note, header, tuple(rows), tuple(records))


def _difficulty(slices: Sequence[Slice]) -> Table:
    methods = [method for method in METHODS if any(one.method == method for one in slices)]
    taught = list(dict.fromkeys(one.train_task for one in slices if one.train_task)) or [""]
    parts = {(one.method, one.train_task, one.eval_task, one.by, one.value): one for one in slices}
    rows = []
    for train_task in taught:
        for eval_task, by, value in dict.fromkeys((one.eval_task, one.by, one.value) for one in slices):
            mine = [parts.get((method, "" if method == "base" else train_task, eval_task, by, value)) for method in methods]
            n = next((_count(one.measured) for one in mine if one), "")
            rows.append((train_task, eval_task, f"{by}: {value}", n, *(_share(one.measured) if one else "" for one in mine)))
    header = ("trained on", "tested on", "part", "n", *(f"{METHOD_NAMES.get(method, method)} %" for method in methods))
    records = [
        {"method": one.method, "train_task": one.train_task, "eval_task": one.eval_task, "by": one.by, "value": one.value}
        | _records(one.measured)
        for one in slices
    ]
    note = f"Accuracy (acc) on parts of the items; n counts the part's items. {_INTERVALS} Differences between parts are not tested."
    return Table("difficulty", "Accuracy by difficulty and question family", note, header, tuple(rows), tuple(records))


def _confusion(study: Study, found: Sequence[Confusion]) -> Table:
    named = [answer for one in found for answer in one.answers]
    numbers = sorted({int(answer) for answer in named if answer.isdecimal()})
    columns = [*map(str, numbers), *(answer for answer in ("other", "none") if answer in named)]
    labels = {run.name: run.label for run in study.runs}
    rows, records = [], []
    for one in found:
        for gold, counts in zip(one.golds, one.counts, strict=True):
            by_answer = dict(zip(one.answers, counts, strict=True))
            rows.append((one.task, labels[one.run], str(gold), *(str(by_answer.get(answer, 0)) for answer in columns)))
            records += [{"run": one.run, "task": one.task, "gold": gold, "answer": answer, "items": n} for answer, n in by_answer.items()]
    note = "Items by true count (rows) and answer (columns), a checkpoint at a time. other: anything else; none: no readable answer."
    return Table(
        "confusion", "Counting: true count and answer", note, ("task", "checkpoint", "true", *columns), tuple(rows), tuple(records)
    )


def _unpublished(sentences: Sequence[str]) -> Table:
    note = "Nothing of this is shown as a published number anywhere in the report."
    records = tuple({"unpublished": sentence} for sentence in sentences)
    return Table("unpublished", "What the paper gives no numbers for", note, ("what",), tuple((one,) for one in sentences), records)
