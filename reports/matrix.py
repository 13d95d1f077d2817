"""`mr1-bench matrix`: the train-by-test matrix of the paper's figure 7, checkpoint by checkpoint.

A row is a checkpoint, labelled by what is recorded of its training; a column is an evaluated task. Each cell says whether that is the task
trained on, how accurate the checkpoint is, and what it gained over the base model on the same items. What the numbers are is decided by
`analysis`, what may stand beside what by `collect`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mr1_bench.reports.analysis import MatrixCell, matrix_row
from mr1_bench.reports.collect import read_study
from mr1_bench.reports.study import Run
from mr1_bench.tables import percent, print_table

HELP = "Assemble the evaluations of several checkpoints into the train-by-test matrix."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders with evaluations, searched recursively")
    parser.add_argument("--json", action="store_true", help="print the matrix as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the matrix."""
    study = read_study(args.folders)
    rows = [(one, {cell.eval_task: cell for cell in matrix_row(study, [one])}) for one in study.runs if one.results]
    if args.json:
        cells = [_record(one, cell) for one, row in rows for cell in row.values()]
        print(json.dumps({"cells": cells}, indent=2, allow_nan=False))
        return 0
    tasks = list(dict.fromkeys(task for _, row in rows for task in row))
    header = ["run", "trained"]
    for task in tasks:
        sizes = {one.results[task].n for one, row in rows if task in row}
        header += [f"{task} %, n = {max(sizes)}" if max(sizes) else f"{task} %", "gain, points", "relation"]
    print_table(header, [[one.name, one.label, *(text for task in tasks for text in _texts(row.get(task)))] for one, row in rows])
    print("\nAccuracy (acc) with its 95 % Wilson interval; gain over the base on the same items, with its 95 % interval.")
    if study.base is None:
        print("No base model among these: gains need one evaluation of the model before training.")
    return 0


def _texts(cell: MatrixCell | None) -> list[str]:
    if cell is None or cell.acc is None:
        return ["", "", ""]
    acc, gain = cell.acc, cell.gain
    share = f"{100 * acc.mean:.1f}" if acc.low is None or acc.high is None else percent(acc.mean, acc.low, acc.high)
    return [share, "" if gain is None else percent(gain.value, gain.low, gain.high, sign="+"), cell.relation]


def _record(one: Run, cell: MatrixCell) -> dict[str, object]:
    training = None if one.method == "base" else {"method": one.method, "task": one.task, "seed": one.seed}
    seed = cell.acc.seeds[0] if cell.acc else None
    gain = None if cell.gain is None else [cell.gain.value, cell.gain.low, cell.gain.high]
    counts = {key: getattr(seed, key, None) for key in ("k", "n")}
    limits = None if seed is None or seed.low is None else [seed.low, seed.high]
    return (
        {"run": one.name, "model": one.model, "training": training, "task": cell.eval_task, **counts}
        | {"acc": seed.value if seed else None, "interval": limits}
        | {"relation": cell.relation, "gain": gain}
    )
