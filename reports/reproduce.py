"""`mr1-bench reproduce-tables`: runs what is missing of a preset's grid, and writes the report.

It looks at what lies in the output folder, says of every cell what it skips, goes on with or does again, and why; has the rest run; and
hands the folders to the report. Killed at any moment, the same command goes on. It must not know how a cell is trained, evaluated or shown.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from mr1_bench import cli, data, records
from mr1_bench.errors import UserError
from mr1_bench.model_files import EMBEDDED, resolve_model
from mr1_bench.reports import cells as on_disk
from mr1_bench.reports import executors
from mr1_bench.reports.cells import State, Wanted
from mr1_bench.reports.executors import Executor
from mr1_bench.reports.grid import Cell, describe, longest_first, make_grid
from mr1_bench.reports.grid_progress import GridProgress, in_words, time_left
from mr1_bench.reports.preset import Preset, find_preset, shipped
from mr1_bench.reports.workers import Job, run_cells
from mr1_bench.specs import get_spec
from mr1_bench.tables import print_table
from mr1_bench.trainers.checks import check_here

HELP = "Run whatever is missing of the paper's grid of runs, and write the report: tables, figures and a page."

FAILED = 3
"""Exit code when cells have failed; the report is written without them and says so."""
_RECORD, _CELLS, _ASIDE, _REPORT, _LOCK = "reproduce.json", "cells", "replaced", "report", ".lock"
_OURS = (_RECORD, _CELLS, _ASIDE, _REPORT, _LOCK)


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell, what its records must say, and how far it is; `wanted` is None where model or data are not on this machine."""

    cell: Cell
    wanted: Wanted | None
    state: State

    @property
    def place(self) -> Path:
        """Where it lies once it is run: where it was found, else in the grid's own folder."""
        return self.state.folder or self.cell.folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--preset", required=True, metavar="NAME", help=f"{', '.join(shipped())}, or a TOML file of your own")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the grid; the same command again goes on")
    parser.add_argument("--plan", action="store_true", help="print the grid with estimates and the command of every cell, and stop")
    parser.add_argument("--workers", type=int, metavar="N", help="cells at a time (default: one a CPU core, or one a GPU)")
    parser.add_argument("--model", help="start from this checkpoint: a folder or a model id (default: the preset's)")
    parser.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="take cells that were run elsewhere from here, as they are (DIR/NAME or DIR/cells/NAME); may be given several times",
    )
    parser.add_argument("--redo", action="store_true", help="do finished cells again whose settings, data or code are not today's")
    executors.add_arguments(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """The script `reproduce-tables`: `mr1-bench reproduce-tables` under a name of its own."""
    return cli.main(["reproduce-tables", *(sys.argv[1:] if argv is None else argv)])


def run(args: argparse.Namespace) -> int:
    """Run the grid, or print it.

    Returns:
        0 when every cell is there and the report is written, 3 when cells have failed.
    """
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: at least 1 is needed")
    for folder in args.also:
        if not folder.is_dir():
            raise UserError(f"--also {folder} is not a folder")
    executors.check_arguments(args)
    preset = find_preset(args.preset)
    out: Path = args.out if args.executor == "local" else args.out.resolve()
    grid = make_grid(preset, out, args.model)
    _check_out(out, preset, grid)
    if args.plan:
        planned, known = _plan_as_far_as_known(grid, args.also)
        _print_plan(preset, planned, known)
        if known:
            _say(planned, args.workers or (_worker_count("cpu", None) if preset.device == "cpu" else 1), out)
        return 0
    workers = _worker_count(preset.device, args.workers) if args.executor == "local" else 0
    weights = _check_here(grid)
    with _only_one(out), _executor(args, out, preset, workers) as executor:
        _check_out(out, preset, grid)
        executors.recover(out, executor.held)
        planned = [_wait_for(executor.held, _plan(cell, on_disk.want(cell, weights), args.also)) for cell in grid]
        if not args.redo:
            _refuse_others(planned, out)
        records.write_json(out / _RECORD, _record(preset, grid))
        failed = _run_missing(planned, out, executor, preset)
        if failed:
            print(f"{len(failed)} of {len(grid)} cells failed; the same command tries them again:", file=sys.stderr)
            print("\n".join(f"  {name}: {why}" for name, why in failed.items()), file=sys.stderr)
        if len(failed) < len(grid):
            _report([one.place for one in planned if one.place.is_dir()], out / _REPORT)
    return FAILED if failed else 0


def _executor(args: argparse.Namespace, out: Path, preset: Preset, workers: int) -> AbstractContextManager[Executor]:
    if args.executor != "local":
        return executors.connect(args, out, preset.resources)
    return nullcontext(Executor(lambda jobs, progress: run_cells(jobs, workers, progress, preset.device), workers))


def _check_out(out: Path, preset: Preset, grid: Sequence[Cell]) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UserError: a file, other files, or another grid.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if not out.is_dir():
        return
    others = sorted(path.name for path in out.iterdir() if path.name not in _OURS and not path.name.startswith("."))
    if others and not (out / _RECORD).is_file():
        shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise UserError(f"--out {out} holds other files ({shown}) and no {_RECORD}; choose a folder that is empty or does not exist")
    if (out / _RECORD).is_file():
        record = records.read_json(out / _RECORD)
        for key, now in (("preset", preset.name), ("model", grid[0].model)):
            then = record.get(key) if isinstance(record, dict) else None
            if then != now:
                raise UserError(f"--out {out} holds the grid of another {key}: {then}, not {now}; choose another folder")


def _record(preset: Preset, grid: Sequence[Cell]) -> dict[str, object]:
    arms = {cell.name: cell.arm for cell in grid}
    return {"format": records.FORMAT, "kind": "grid", "preset": preset.name, "model": grid[0].model, "about": preset.about, "cells": arms}


def _check_here(grid: Sequence[Cell]) -> str:
    """Refuse before any time is spent what cannot work on this machine; gives the hash of the starting weights.

    Raises:
        UserError: the model or a package is missing.
        DataAbsentError: data is not built; the message names the command that builds it.
    """
    for cell in grid:
        for name in cell.items:
            spec = get_spec(name)
            if not spec.synthetic:
                data.parquet_path(spec.data, spec.split)
        if cell.config is not None:
            check_here(cell.config)
    return records.checkpoint_sha256(resolve_model(grid[0].model))


def _worker_count(device: str, wanted: int | None) -> int:
    """As many workers as are wanted; by default one a core, or a GPU.

    Raises:
        UserError: the preset needs a GPU and there is none, or there are fewer than workers.
    """
    if device == "cpu":
        return wanted or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UserError(
            "this preset trains on CUDA GPUs and PyTorch sees none here. `--plan` prints the commands to run elsewhere; "
            "`--preset tiny` runs in miniature on a CPU"
        )
    if wanted is not None and wanted > count:
        raise UserError(f"--workers {wanted}: each needs a GPU of its own, and PyTorch sees {count} here")
    return wanted or count


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Hold the folder for this process; the kernel lets go when it ends, however it ends.

    Raises:
        UserError: another process holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another reproduce-tables is running in {out}: wait for it, or stop it, or choose another --out") from None
        except OSError as error:  # some network file systems know no locks
            print(f"note: {out} cannot be locked ({error.strerror}): see to it that only one process runs in it", file=sys.stderr)
        yield


def _plan(cell: Cell, wanted: Wanted, also: Sequence[Path]) -> Planned:
    """How far a cell is; what is not complete in its own folder may be complete in another."""
    own = on_disk.look(cell.folder, wanted)
    if own.status != "done":
        for folder in (place for root in also for place in (root / _CELLS / cell.name, root / cell.name) if place.is_dir()):
            if on_disk.look(folder, wanted).status == "done":
                return Planned(cell, wanted, State("done", f"run in {folder}", folder))
    return Planned(cell, wanted, own)


def _wait_for(held: Collection[str], one: Planned) -> Planned:
    """A cell that a job of an earlier start is at is neither judged nor touched before that has ended."""
    if one.cell.name not in held or one.state.status == "done":
        return one
    return replace(one, state=State("held", "its job of an earlier start is in the queue, or runs"))


def _plan_as_far_as_known(grid: Sequence[Cell], also: Sequence[Path]) -> tuple[list[Planned], bool]:
    """As `_plan` for all cells, and whether anything is known: a plan can be made where there is neither the model nor the data."""
    try:
        if not _is_at_hand(grid[0].model):
            raise UserError(f"the model {grid[0].model} has not been fetched to this machine")
        weights = _check_here(grid)
    except UserError as error:
        print(f"note: the cells cannot run here as things are, so which are done is not known. {error}", file=sys.stderr)
        return [Planned(cell, None, State("new", "")) for cell in grid], False
    return [_plan(cell, on_disk.want(cell, weights), also) for cell in grid], True


def _is_at_hand(model: str) -> bool:
    """Whether a model can be opened without fetching it."""
    if model == EMBEDDED or model.count("/") != 1 or Path(model).is_dir():
        return True  # or it is a folder that does not exist, which opening it will say
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "config.json"), str)


def _refuse_others(planned: Sequence[Planned], out: Path) -> None:
    """Refuse to throw finished work aside unasked.

    Raises:
        UserError: finished cells are of other settings, data or code.
    """
    others = [f"  {one.cell.name}: {one.state.why}" for one in planned if one.state.status == "differs"]
    if others:
        raise UserError(
            "\n".join([f"finished cells that are not what would be run now ({len(others)} of {len(planned)}):", *others])
            + f"\nadd --redo to do them again (what is there is moved to {out / _ASIDE}), or choose another --out; "
            f"for a report of what is there: mr1-bench report {out}"
        )


def _run_missing(planned: Sequence[Planned], out: Path, executor: Executor, preset: Preset) -> dict[str, str]:
    """Run every cell that is not done, and record how each ended; gives the reasons of those that failed, by name."""
    missing = {one.cell.name: one for one in planned if one.state.status != "done"}
    _say(planned, executor.workers, out)
    failed: dict[str, str] = {}
    for one in planned:
        assert one.wanted is not None
        if one.state.status == "done" and one.state.folder == one.cell.folder:
            _settle(one, preset, out / _ASIDE)
        elif one.state.status == "busy":
            failed[one.cell.name] = one.state.why
        elif one.state.status not in ("done", "held"):
            room = on_disk.make_room(one.cell, out / _ASIDE, one.state)
            if room is not None:
                print(f"  {one.cell.name}: what was there is now in {room}", file=sys.stderr)
    order = longest_first([one.cell for name, one in missing.items() if name not in failed])
    jobs = [_job(cell, missing[cell.name].state) for cell in order]
    with GridProgress({cell.name: cell.cost for cell in order}, executor.workers) as progress:
        for ended in executor.run(jobs, progress):
            one = missing[ended.name]
            assert one.wanted is not None
            _refuse_changed_code(one.wanted)
            state = on_disk.look(one.cell.folder, one.wanted)
            why = ended.why
            if ended.status == "done" and state.status != "done":
                why = f"both commands ended well, and yet the cell is not complete: {state.why}"
            facts = {"seconds": ended.seconds, "cpu_seconds": ended.cpu_seconds, "resumed": one.state.status != "new"}
            if why:
                failed[ended.name] = why
                on_disk.write_cell(one.cell, one.wanted, "failed", why, facts)
            else:
                _settle(one, preset, out / _ASIDE, facts, progress.note)
            progress.ended(ended.name, ended.seconds, why, whole=one.state.status == "new")
    return failed


def _refuse_changed_code(wanted: Wanted) -> None:
    """Stop where the code has been edited under a running grid: which version made a cell cannot be told then.

    Raises:
        UserError: it has been.
    """
    if records.code_sha256("trainers") != wanted.identity["code_sha256"]:
        raise UserError(
            "the code of mr1-bench has changed while the grid was running, so its cells would be of two versions; run the same command "
            "again: it lists the finished cells of the earlier version, and does them again with --redo"
        )


def _settle(
    one: Planned, preset: Preset, aside: Path, facts: Mapping[str, object] | None = None, note: Callable[[str], None] | None = None
) -> None:
    """Leave one evaluation in a cell, and write what marks it as done, for the report and for people; the next start looks anew."""
    assert one.wanted is not None
    for moved in on_disk.drop_other_evaluations(one.cell, one.wanted, aside):
        text = f"{one.cell.name}: an evaluation that does not count is now in {moved}"
        if note is None:
            print(f"  {text}", file=sys.stderr)
        else:
            note(text)
    on_disk.write_cell(one.cell, one.wanted, "done", facts=facts)
    if preset.drop_state:
        on_disk.drop_optimizer_state(one.cell.folder)


def _job(cell: Cell, state: State) -> Job:
    train = () if state.status == "evaluate" else cell.train
    return Job(cell.name, train, cell.evaluate, str(cell.folder / "run.json"), str(cell.folder / on_disk.LOG))


_VERBS = {
    "done": "skip",
    "new": "run",
    "resume": "go on",
    "evaluate": "evaluate",
    "redo": "do again",
    "differs": "do again with --redo",
    "busy": "leave alone",
    "held": "wait for",
}


def _say(planned: Sequence[Planned], workers: int, out: Path) -> None:
    """Say of each cell what happens to it and why, but for those that are simply not there yet."""
    by_status: dict[str, list[Planned]] = {}
    for one in planned:
        by_status.setdefault(one.state.status, []).append(one)
    counts = ", ".join(f"{len(found)} to {_VERBS[status]}" for status, found in by_status.items())
    costs = [one.cell.cost for one in planned if one.state.status not in ("done", "busy")]
    left = f"; about {in_words(time_left(costs, workers))} with {min(workers, len(costs))} at a time" if costs else ""
    print(f"{len(planned)} cells: {counts}{left}", file=sys.stderr)
    for status in ("done", "resume", "evaluate", "redo", "differs", "busy", "held"):
        for one in by_status.get(status, []):
            print(f"  {_VERBS[status]} {one.cell.name}: {one.state.why or 'complete, and made from the same'}", file=sys.stderr)
    for one in by_status.get("new", []):
        if one.state.why != "not run yet":
            print(f"  run {one.cell.name}: {one.state.why}", file=sys.stderr)
    names = {one.cell.name for one in planned}
    others = sorted(path.name for path in (out / _CELLS).glob("[!.]*") if path.name not in names)
    if others:
        print(f"  leave alone {', '.join(others)}: no cells of this grid, so not in the report", file=sys.stderr)


def _print_plan(preset: Preset, planned: Sequence[Planned], known: bool) -> None:
    """Print the grid: a table and the commands for people, one line a cell that a shell can run for programs."""
    unit = "core" if preset.device == "cpu" else "GPU"
    now = {one.cell.name: _VERBS[one.state.status] if known else "not known" for one in planned}
    if not sys.stdout.isatty():
        for cell in (one.cell for one in planned):
            print(f"{cell.command}  # {cell.name}: about {in_words(cell.cost)} of one {unit}, {now[cell.name]}")
        return
    rows = []
    for cell in (one.cell for one in planned):
        items = "+".join(str(count) for count in cell.items.values())
        rows.append([cell.name, cell.arm, *describe(cell), items, in_words(cell.cost), now[cell.name]])
    print(f"{preset.name}: {preset.about}\n")
    print_table(["cell", "for", "method", "trained on", "seed", "swept", "items", f"about, one {unit}", "now"], rows, right={4, 7})
    print("\nCommands, to run anywhere. Piped, this prints one line a cell and nothing else.\n")
    for cell in (one.cell for one in planned):
        print(f"{cell.command}  # {cell.name}\n")


def _report(folders: Sequence[Path], out: Path) -> None:
    """Write the report of the cells, and print where it is."""
    from mr1_bench.reports.report import write_report

    page, sentences = write_report(folders, out)
    print("\n".join(sentences))
    print(f"\nreport: {page}")
