"""`mr1-bench matrix`: the train-by-test matrix of the paper's figure 7, from the evaluations of several checkpoints.

A row is a checkpoint, labelled by what its own `run.json` says of its training; a column is an evaluated task. Each cell says whether
that is the task trained on, how accurate the checkpoint is, and what it gained over the base model on the same items.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mr1_bench import records, stats
from mr1_bench.records import Evaluation, RecordError
from mr1_bench.specs import SPECS, TaskSpec, get_spec
from mr1_bench.tables import percent, print_table

HELP = "Assemble the evaluations of several checkpoints into the train-by-test matrix."


@dataclass(frozen=True, slots=True)
class Cell:
    """One checkpoint on one task.

    Attributes:
        k: items answered correctly (`acc`).
        n: items.
        interval: 95 % Wilson interval of k/n.
        relation: `base`, `same-task`, `cross-task`, or `same-task, other data` (trained on the synthetic twin, say).
        gain: accuracy minus the base model's, and its 95 % interval from the same items; None without a base.
    """

    k: int
    n: int
    interval: tuple[float, float]
    relation: str
    gain: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint: its label, its training as recorded, and its cells by task."""

    label: str
    model: str
    training: dict[str, Any] | None
    cells: dict[str, Cell]


def relation(training: dict[str, Any] | None, spec: TaskSpec) -> str:
    """Say how a task relates to what a checkpoint was trained on.

    Raises:
        UnknownTaskError: the recorded training task is none of ours.
    """
    if training is None:
        return "base"
    trained = [get_spec(name) for name in training["task"].split(",")]
    if any(one.data == spec.data for one in trained):
        return "same-task"
    return "same-task, other data" if any(one.family == spec.family for one in trained) else "cross-task"


def _identity(evaluation: Evaluation, task: str) -> dict[str, Any]:
    entry = evaluation.run["tasks"].get(task, {}) if evaluation.run else {}
    return {key: entry.get(key) for key in ("dataset_sha256", "pixels_sha256", "prompt_sha256", "decoding", "limit")}


def _check_comparable(evaluations: list[Evaluation], task: str) -> None:
    first = evaluations[0]
    for other in evaluations[1:]:
        if first.run and other.run:
            mine, its = _identity(first, task), _identity(other, task)
            differing = [key for key in mine if mine[key] != its[key]]
            if differing:
                raise RecordError(
                    f"{task} was evaluated differently in {first.folder} and {other.folder}: {', '.join(differing)} differ; "
                    "evaluate one of them again"
                )


def _label(training: dict[str, Any] | None) -> str:
    if training is None:
        return "base"
    seed = "" if training.get("seed") is None else f" (seed {training['seed']})"
    return f"{training['method']} on {training['task']}{seed}"


def build_matrix(evaluations: list[Evaluation]) -> list[Row]:
    """Assemble evaluations into rows, the base model first.

    Raises:
        RecordError: a checkpoint was evaluated twice on a task, data or prompts differ between checkpoints, items differ, or there are
            several base models.
    """
    ours = {spec.name for spec in SPECS}
    by_model: dict[str, dict[str, Evaluation]] = {}
    for evaluation in evaluations:
        tasks = by_model.setdefault(evaluation.weights, {})
        for task in (name for name in evaluation.results if name in ours):
            if task in tasks:
                raise RecordError(
                    f"{task} was evaluated twice with the same weights: {tasks[task].folder} and {evaluation.folder}; name one"
                )
            tasks[task] = evaluation
    by_model = {weights: tasks for weights, tasks in by_model.items() if tasks}
    names = [spec.name for spec in SPECS if any(spec.name in tasks for tasks in by_model.values())]
    if not names:
        raise RecordError("none of the evaluations is of an mr1 task; evaluate with `mr1-bench eval --tasks mr1_matrix`")
    bases = [tasks for tasks in by_model.values() if all(evaluation.training is None for evaluation in tasks.values())]
    if len(bases) > 1:
        found = ", ".join(sorted({evaluation.model for tasks in bases for evaluation in tasks.values()}))
        raise RecordError(
            f"several models without a training record: {found}. Only the base may lack one; a trained checkpoint says method, task and "
            "seed in its run.json"
        )
    correct: dict[tuple[int, str], dict[int, bool]] = {}
    for name in names:
        holders = [tasks[name] for tasks in by_model.values() if name in tasks]
        _check_comparable(holders, name)
        for evaluation in holders:
            items = evaluation.items(name)
            if not items or any("acc" not in item.metrics for item in items):
                raise RecordError(
                    f"{evaluation.samples[name]} has samples of {name} without `acc`; evaluate again with this version of mr1-bench"
                )
            correct[id(evaluation), name] = {item.doc_id: item.metrics["acc"] == 1.0 for item in items}

    rows = []
    for tasks in by_model.values():
        any_evaluation = next(iter(tasks.values()))
        cells = {}
        for name, evaluation in tasks.items():
            mine = correct[id(evaluation), name]
            base = correct[id(bases[0][name]), name] if bases and name in bases[0] else None
            how = relation(evaluation.training, get_spec(name))
            cells[name] = _cell(mine, base if how != "base" else None, how, f"{name} in {evaluation.folder}")
        rows.append(Row(_label(any_evaluation.training), any_evaluation.model, any_evaluation.training, cells))
    return sorted(rows, key=lambda row: (row.training is not None, row.label, row.model))


def _cell(mine: dict[int, bool], base: dict[int, bool] | None, how: str, where: str) -> Cell:
    k, n = sum(mine.values()), len(mine)
    gain = None
    if base is not None:
        if base.keys() != mine.keys():
            raise RecordError(f"{where}: other items than the base model was evaluated on ({n} against {len(base)}); use the same --limit")
        only_mine = sum(mine[item] and not base[item] for item in mine)
        only_base = sum(base[item] and not mine[item] for item in mine)
        gain = ((only_mine - only_base) / n, *stats.paired_difference(only_mine, only_base, n))
    return Cell(k, n, stats.wilson(k, n), how, gain)


def _text(cell: Cell | None) -> list[str]:
    if cell is None:
        return ["", "", ""]
    gain = "" if cell.gain is None else percent(*cell.gain, sign="+")
    return [percent(cell.k / cell.n, *cell.interval), gain, cell.relation]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders with evaluations, searched recursively")
    parser.add_argument("--json", action="store_true", help="print the matrix as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the matrix."""
    rows = build_matrix(records.read_evaluations(args.folders))
    if args.json:
        cells = [
            {"model": row.model, "training": row.training, "task": task, "k": cell.k, "n": cell.n, "acc": cell.k / cell.n}
            | {"interval": cell.interval, "relation": cell.relation, "gain": cell.gain}
            for row in rows
            for task, cell in row.cells.items()
        ]
        print(json.dumps({"cells": cells}, indent=2))
        return 0
    tasks = [spec.name for spec in SPECS if any(spec.name in row.cells for row in rows)]
    header = ["trained"]
    for task in tasks:
        n = max(row.cells[task].n for row in rows if task in row.cells)
        header += [f"{task} %, n = {n}", "gain, points", "relation"]
    print_table(header, [[row.label, *(text for task in tasks for text in _text(row.cells.get(task)))] for row in rows])
    print("\nAccuracy (acc) with its 95 % Wilson interval; gain over the base on the same items, with its 95 % interval.")
    if not any(row.training is None for row in rows):
        print("No base model among these: gains need one evaluation of the model before training.")
    return 0
