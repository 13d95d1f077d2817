"""Finds run folders, evaluations and cells below folders, and tells the finished from the failed and the half-written.

It must not know what runs and evaluations hold (`evaluations`, `foreign`, `collect`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import walk
from pathlib import Path
from typing import Any, get_args

from mr1_bench.records import RecordError, check_eval_record, check_train_record, read_json
from mr1_bench.reports.foreign import DECLARATION, read_declaration
from mr1_bench.reports.study import Arm, Missing

_ARMS: tuple[Arm, ...] = get_args(Arm)
_LINKS = ("last", "best")
"""Links inside a run that lead to its checkpoints."""
_PLAN, _CELLS, _NOT_CELLS = "reproduce.json", "cells", ("replaced", "report")
"""The plan of a grid, and what lies beside it: its cells, and superseded ones and the report, which are no part of it."""


@dataclass(slots=True)
class Found:
    """Records found, by folder.

    Attributes:
        trainings: `run.json` of training runs, finished or not.
        own: `run.json` of finished evaluations of ours.
        foreign: results files of plain lmms-eval.
        declared: what `training.json` files say.
        cells: `cell.json` of finished cells.
        parity: `parity.json` files.
        planned: folder and arm of each cell that the plan of a grid names, by name.
        grids: folders whose folders are cells, by a plan or by their name.
        missing: what is not to be read, and why.
    """

    trainings: dict[Path, dict[str, Any]] = field(default_factory=dict)
    own: dict[Path, dict[str, Any]] = field(default_factory=dict)
    foreign: list[Path] = field(default_factory=list)
    declared: dict[Path, Mapping[str, Any]] = field(default_factory=dict)
    cells: dict[Path, dict[str, Any]] = field(default_factory=dict)
    parity: list[Path] = field(default_factory=list)
    planned: dict[str, tuple[Path, Arm]] = field(default_factory=dict)
    grids: set[Path] = field(default_factory=set)
    missing: list[Missing] = field(default_factory=list)


def find(folders: Sequence[Path]) -> Found:
    """Search folders to any depth; what a link leads to is searched too, and nothing is read twice.

    Raises:
        RecordError: a folder does not exist or holds nothing of ours, or a record is not readable.
    """
    found = Found()
    listed: dict[Path, frozenset[str]] = {}
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise RecordError(f"{folder} is not a folder")
    # The outer ones first, so that a folder inside another is seen where it belongs.
    for folder in sorted(folders, key=lambda one: len(one.resolve().parts)):
        before = len(listed)
        repeated = folder.resolve() in seen
        for path, files in _walk(folder, seen):
            listed[path] = files
        if not repeated and not any(_is_ours(files) for files in list(listed.values())[before:]):
            raise RecordError(
                f"{folder} holds no run and no evaluation: make one with `mr1-bench train METHOD … --out {folder}` or "
                f"`mr1-bench eval --model … --tasks … --out {folder}`, or name another folder"
            )
    left_out = _read_cells(listed, found)
    for path, files in listed.items():
        if path not in left_out and left_out.isdisjoint(path.parents):
            _read_folder(path, files, found)
    for name, (folder, arm) in found.planned.items():
        found.grids.add(folder.parent)
        if folder in listed and folder not in left_out:  # made by its command and not by the executor, so without a cell.json
            found.cells.setdefault(folder, {"name": name, "arm": arm})
    return found


def _walk(folder: Path, seen: set[Path]) -> Iterable[tuple[Path, frozenset[str]]]:
    for name, folders, files in walk(folder, followlinks=True):
        path = Path(name)
        real = path.resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        skipped = (*_LINKS, *(_NOT_CELLS if _PLAN in files else ()))
        folders[:] = sorted(one for one in folders if one not in skipped and not one.startswith("."))
        yield path, frozenset(files)


def _is_ours(files: frozenset[str]) -> bool:
    return not files.isdisjoint({"run.json", "cell.json", "journal.jsonl", _PLAN}) or any(one.endswith("_results.json") for one in files)


def _read_cells(listed: Mapping[Path, frozenset[str]], found: Found) -> set[Path]:
    """Read the cells' own records; return the folders that are not to be read, whose reasons are noted."""
    left_out: set[Path] = set()
    for path in (path for path, files in listed.items() if "cell.json" in files):
        try:
            cell = read_json(path / "cell.json")
        except RecordError as error:
            cell = {"status": "failed", "why": f"half-written: {error}"}
        if not isinstance(cell, dict) or cell.get("arm", "main") not in _ARMS:
            raise RecordError(f"{path / 'cell.json'}: expected an object whose `arm` is one of {', '.join(_ARMS)}")
        if "plan" in cell:
            found.grids.add(path.parent)
        if cell.get("status", "done") == "done":
            found.cells[path] = cell
        elif _is_whole(path, listed):  # the record of an older attempt: what it says of the outcome is not so any more
            if "name" in cell:
                found.cells[path] = cell
        else:
            left_out.add(path)
            why = str(cell.get("why") or f"status {cell['status']}")
            found.missing.append(Missing(str(cell.get("name") or path.name), path, why))
    return left_out


def _is_whole(cell: Path, listed: Mapping[Path, frozenset[str]]) -> bool:
    """Whether a cell is trained to its end (or is a base) and evaluated, with records that can be read."""
    evaluated = [path / "run.json" for path, files in listed.items() if path.parent == cell / "eval" and "run.json" in files]
    try:
        run, kind = _read_record(cell / "run.json") if "run.json" in listed[cell] else ({}, "")
        kinds = {_read_record(path)[1] for path in evaluated}
    except RecordError:
        return False
    return kinds == {"eval"} and (kind != "train" or run.get("status") == "finished")


def _read_folder(path: Path, files: frozenset[str], found: Found) -> None:
    run, kind = _read_record(path / "run.json") if "run.json" in files else ({}, "")
    results = sorted(name for name in files if name.endswith("_results.json"))
    if kind == "train":
        found.trainings[path] = run
        if path.parent.name == _CELLS:
            found.grids.add(path.parent)
    if kind == "eval":
        found.own[path] = run
    elif "journal.jsonl" in files:
        found.missing.append(Missing(path.name, path, "unfinished evaluation: run the same `mr1-bench eval` again to go on"))
    else:
        found.foreign += [path / name for name in results]
    if DECLARATION in files:
        found.declared[path] = read_declaration(path / DECLARATION)
    if _PLAN in files:
        plan = read_json(path / _PLAN)
        cells = plan.get("cells") if isinstance(plan, dict) else None
        if not isinstance(cells, dict) or any(arm not in _ARMS for arm in cells.values()):
            raise RecordError(f"{path / _PLAN} is no plan of `mr1-bench reproduce-tables`: expected an object `cells` of name and arm")
        found.planned |= {name: (path / _CELLS / name, arm) for name, arm in cells.items()}
    if "parity.json" in files:
        found.parity.append(path / "parity.json")


def _read_record(path: Path) -> tuple[dict[str, Any], str]:
    """A `run.json` and its kind: `train`, `eval` or `checkpoint`; empty for one that somebody wrote by hand for a checkpoint.

    Raises:
        RecordError: it is none of ours, or a field is missing or of another kind.
    """
    run = read_json(path)
    kind = run.get("kind", "") if isinstance(run, dict) else None
    if kind == "train":
        check_train_record(run, path)
    elif kind == "eval":
        check_eval_record(run, path)
    elif kind != "checkpoint" and not (kind == "" and {"method", "task"} <= run.keys()):
        raise RecordError(
            f"{path} is no record of a run: its `kind` is {str(kind)[:40]!r}, expected train, eval or checkpoint; it was changed or is "
            "damaged: put it right, or leave its folder out"
        )
    return run, str(kind)
