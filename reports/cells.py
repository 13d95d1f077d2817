"""What lies in a cell's folder, and whether it is the cell: by the records of training and evaluation, never by a name or `cell.json`.

A cell is known by its settings, its starting weights, its data, prompts and the code, as `run.json` says them; a record is written last,
so what was killed has none. This module reads and compares; the only files that it writes are `cell.json` and moved ones. It must not know
how cells are run.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mr1_bench import data, prompts, records
from mr1_bench.errors import UserError
from mr1_bench.records import RecordError
from mr1_bench.reports.arms import _BOOKKEEPING
from mr1_bench.reports.evaluations import is_sampled, read_course
from mr1_bench.reports.grid import Cell, settings_of
from mr1_bench.specs import expand, get_spec
from mr1_bench.tasks import embedded
from mr1_bench.tasks.evaluate import NO_PIXEL_CAP, why_not_whole
from mr1_bench.trainers import metrics
from mr1_bench.trainers.items import stored_data

CELL, LOG = "cell.json", "log.txt"
_OURS = (CELL, LOG, "eval", ".lock")
_EXACT_EVALUATION = {"repeats": 1, "temperature": 0.0, "top_p": 1.0, "seed": 0, "max_pixels": NO_PIXEL_CAP}
_DECIDE_NOTHING = frozenset({"model", *_BOOKKEEPING}) - {"seed", "method", "task", "eval_every", "eval_items"}
"""Settings that a finished training may have had otherwise: they decide no weights, or are judged by the hash of what they name."""

Status = Literal["done", "new", "resume", "evaluate", "redo", "differs", "busy", "held"]


@dataclass(frozen=True, slots=True)
class State:
    """How far a cell is.

    Attributes:
        status: `done`; `new`, nothing is there; `resume`, training goes on; `evaluate`, only the evaluation is missing; `redo`, what is
            there is damaged, or the beginning of another run, and has to make room; `differs`, it is another run, and finished, so that
            it makes room only where that is asked for; `busy`, another process is at it; `held`, a queue's job of an earlier start is.
        why: for people, with what was seen.
        folder: where it is done; None otherwise.
    """

    status: Status
    why: str
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the records of a cell must say, here and now.

    Attributes:
        config: settings of the training, as JSON; None for the base.
        identity: hashes of starting weights, data, prompts and code, as `run.json` of a training has them.
        evaluation: settings of the evaluation, as its `run.json` has them.
        tasks: hashes and decoding by task.
        code: hash of the code that asks and grades.
    """

    config: Mapping[str, Any] | None
    identity: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    code: str

    @property
    def plan(self) -> str:
        """One hash of all of it."""
        return records.sha256_json(asdict(self))


def want(cell: Cell, weights: str) -> Wanted:
    """What makes a cell on this machine.

    Args:
        cell: the cell.
        weights: hash of the checkpoint that training starts from.

    Raises:
        DataAbsentError: stored data of a task is not built; the message says how to get it.
    """
    identity = {
        "weights_sha256": weights,
        "data_sha256": {} if cell.config is None else stored_data(cell.config),
        "prompts_sha256": records.sha256_json(prompts.TEMPLATES),
        "code_sha256": _code("trainers"),
    }
    settings = None if cell.config is None else json.loads(json.dumps(settings_of(cell.config)))
    evaluation = {"limit": cell.limit, "batch_size": cell.batch_size, **_EXACT_EVALUATION}
    return Wanted(settings, identity, evaluation, {name: _task_facts(name) for name in expand(cell.tasks)}, _code())


@cache
def _code(*more: str) -> str:
    return records.code_sha256(*more)


@cache
def _task_facts(name: str) -> dict[str, Any]:
    """The facts about a task that decide its answers, by the names that an evaluation records them under."""
    spec = get_spec(name)
    kwargs: dict[str, Any] = {"level": spec.level, "n": spec.size} if spec.level else {}
    return {
        "dataset_sha256": data.dataset_hash(spec.data, spec.split, **kwargs),
        "pixels_sha256": embedded.pixels_version() if spec.synthetic else None,
        "prompt_sha256": prompts.prompt_hash(spec.prompt),
        "decoding": {"max_new_tokens": spec.max_new_tokens, "temperature": 0.0, "top_p": 1.0},
    }


def look(folder: Path, wanted: Wanted) -> State:
    """Say how far the cell in a folder is."""
    if wanted.config is None:
        return _look_at_evaluation(folder, wanted, wanted.identity["weights_sha256"]) if folder.is_dir() else State("new", "not run yet")
    training = _look_at_training(folder, wanted)
    if training is not None:
        return training
    return _look_at_evaluation(folder, wanted, records.checkpoint_sha256(folder / "last"))


def _look_at_training(folder: Path, wanted: Wanted) -> State | None:
    """How far training is; None when it is complete."""
    path = folder / "run.json"
    if is_locked(folder / ".lock"):
        return State("busy", f"another process is training in {folder}")
    if not path.is_file():
        others = sorted(one.name for one in folder.iterdir() if one.name not in _OURS) if folder.is_dir() else []
        if others:
            return State("redo", f"there are files ({', '.join(others[:3])}) and no run.json")
        return State("new", _failed_before(folder) or "not run yet")
    try:
        run = records.read_json(path)
        records.check_train_record(run, path)
    except RecordError as error:
        return State("redo", str(error))
    finished = run["status"] == "finished" and _is_whole(folder / "last")
    difference = _first_difference(run, wanted, but=_DECIDE_NOTHING if finished else frozenset())
    damage = _damage(folder, finished)
    if damage or (difference and not finished):
        return State("redo", damage or difference)
    if difference:
        return State("differs", difference)
    if finished:
        return None
    failed = _failed_before(folder)
    step = str(run.get("last") or "").rpartition("-")[2].lstrip("0") or "0"
    return State("resume", f"training is at step {step} of {run['config']['steps']}" + (f"; {failed}" if failed else ""))


def _damage(folder: Path, finished: bool) -> str:
    """What is wrong with the logs of a training; empty where nothing is. Of one that goes on the last line may be cut off."""
    try:
        for name in ("metrics.jsonl", "evals.jsonl"):
            if (folder / name).is_file():
                (read_course if finished else metrics.read_rows)(folder / name)
    except UserError as error:
        return str(error)
    return ""


def _first_difference(run: Mapping[str, Any], wanted: Wanted, *, but: frozenset[str]) -> str:
    """In words, the first thing in which a training is another than the wanted one; empty where there is none.

    Args:
        run: its record.
        wanted: the other.
        but: settings that do not count.
    """
    identity = run.get("identity", {})
    for key, said in (("weights_sha256", "it started from other weights"), ("data_sha256", "it was trained on other data")):
        if identity.get(key) != wanted.identity[key]:
            return said
    for key, value in (wanted.config or {}).items():
        if key not in but and run["config"].get(key, ...) != value:
            return f"{key} was {run['config'].get(key)!r} and is now {value!r}"
    for key, said in (("prompts_sha256", "prompts have changed since"), ("code_sha256", "the code has changed since")):
        if identity.get(key) != wanted.identity[key]:
            return said
    return ""


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a training, or of an evaluation's journal."""
    if not path.is_file():
        return False
    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


def _is_whole(checkpoint: Path) -> bool:
    return (checkpoint / "run.json").is_file() and any(checkpoint.glob("*.safetensors"))


def _look_at_evaluation(folder: Path, wanted: Wanted, weights: str) -> State:
    reasons = []
    for path in sorted(folder.glob("eval/*/run.json")):
        try:
            why = _why_not(_read_evaluation(path), path.parent, wanted, weights)
        except RecordError as error:
            why = str(error)
        if not why:
            return State("done", "", folder)
        reasons.append(f"the evaluation in {path.parent.name} does not count: {why}")
    failed = _failed_before(folder)
    return State("evaluate", "; ".join(filter(None, [*reasons, failed])) or "it has not been evaluated yet")


def _read_evaluation(path: Path) -> dict[str, Any]:
    run: dict[str, Any] = records.read_json(path)
    records.check_eval_record(run, path)
    return run


def _why_not(run: Mapping[str, Any], folder: Path, wanted: Wanted, weights: str) -> str:
    """Why an evaluation is not the wanted one; empty where it is."""
    if run["model"]["checkpoint_sha256"] != weights:
        return "it is of other weights"
    for key, value in wanted.evaluation.items():
        if run.get("config", {}).get(key) != value:
            return f"{key} was {run.get('config', {}).get(key)!r} and is now {value!r}"
    for name, facts in wanted.tasks.items():
        if name not in run["tasks"]:
            return f"it is not of {name}"
        for key, value in facts.items():
            if run["tasks"][name].get(key) != value:
                return f"{key} of {name} has changed since"
    if run.get("code_sha256") != wanted.code:
        return "the code has changed since (answers are kept and graded again)"
    return why_not_whole(folder, run)


def _failed_before(folder: Path) -> str:
    """What `cell.json` says of a failure; nothing is decided by it."""
    try:
        cell = records.read_json(folder / CELL)
    except RecordError:
        return ""
    failed = isinstance(cell, dict) and cell.get("status") == "failed"
    return f"it failed before: {cell.get('why')}" if failed else ""


def write_cell(
    cell: Cell, wanted: Wanted, status: Literal["done", "failed"], why: str = "", facts: Mapping[str, Any] | None = None
) -> None:
    """Write `cell.json`, the last file of a cell. What is known of an earlier attempt stays, as the last attempt may have done little."""
    path = cell.folder / CELL
    old: Mapping[str, Any] = {}
    if path.is_file():
        try:
            old = records.read_json(path)
        except RecordError:
            old = {}
    content = {"format": records.FORMAT, "name": cell.name, "arm": cell.arm, "plan": wanted.plan, "status": status}
    kept = {key: old[key] for key in ("seconds", "cpu_seconds", "resumed") if old.get("plan") == wanted.plan and key in old}
    records.write_json(path, content | ({"why": why} if why else {}) | kept | dict(facts or {}))


def make_room(cell: Cell, aside: Path, state: State) -> Path | None:
    """Move what is in the way of a cell's next attempt aside; gives the folder that it is in now, if there was something.

    Results are never removed: they may have cost days.
    """
    of_other_weights = state.status == "new" and cell.config is not None and (cell.folder / "eval").is_dir()
    return _move(cell.folder, aside, cell.name) if state.status in ("redo", "differs") or of_other_weights else None


def drop_other_evaluations(cell: Cell, wanted: Wanted, aside: Path) -> list[Path]:
    """Move aside what would count as a second evaluation of a finished cell, or as a damaged one.

    The first that is the wanted one stays, and so do evaluations of other tasks and sampled ones.
    """
    weights = wanted.identity["weights_sha256"] if cell.config is None else records.checkpoint_sha256(cell.folder / "last")
    moved: list[Path] = []
    kept = False
    for path in sorted(cell.folder.glob("eval/*/run.json")):
        try:
            run = _read_evaluation(path)
        except RecordError:
            run = None
        if run is not None and (is_sampled(run) or wanted.tasks.keys().isdisjoint(run["tasks"])):
            continue
        if run is not None and not kept and not _why_not(run, path.parent, wanted, weights):
            kept = True
            continue
        moved.append(_move(path.parent, aside, f"{cell.name}-{path.parent.name}"))
    return moved


def drop_optimizer_state(folder: Path) -> None:
    """Remove the optimiser's state of a finished training: three times the size of the weights, and of no use any more."""
    for path in (folder / "checkpoints").glob("step-*/trainer_state"):
        shutil.rmtree(path)


def _move(folder: Path, aside: Path, name: str) -> Path:
    """Move a folder to a free name below another; gives the name."""
    number = 1
    while (aside / f"{name}-{number}").exists():
        number += 1
    target = aside / f"{name}-{number}"
    aside.mkdir(parents=True, exist_ok=True)
    folder.replace(target)
    return target
