"""`mr1-bench baseline`: saves what a model scored as a small file to commit, and lists and shows such files.

The file format is in `baseline_files`. This module must not know verdicts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mr1_bench import stats
from mr1_bench.errors import UserError
from mr1_bench.reports import baseline_files, comparable
from mr1_bench.reports.baseline_files import Baseline
from mr1_bench.reports.provenance import model_label
from mr1_bench.reports.regress_reports import one_line
from mr1_bench.reports.regression import tasks_of
from mr1_bench.reports.snapshots import read_snapshot
from mr1_bench.reports.verdicts import Snapshot, TaskSnapshot
from mr1_bench.specs import expand
from mr1_bench.tables import percent, print_table

HELP = "Save, list and show baselines: what a model scored, in a small file to commit and to compare with."
TEXTS_UP_TO = 256 * 1024
"""Packed bytes from which on a baseline is saved without texts, unless they are asked for: it is committed again and again."""
_SUFFIXES = (".jsonl", ".jsonl.gz")
_COMMITS = ("GITHUB_SHA", "CI_COMMIT_SHA")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    save = actions.add_parser("save", help="save an evaluation as a baseline; what the file held before becomes its history")
    save.add_argument("source", type=Path, metavar="RUN", help="run folder, results file of lmms-eval, or report folder")
    save.add_argument("--to", type=Path, required=True, metavar="FILE", help="file to write: NAME.jsonl, or NAME.jsonl.gz for a packed one")
    save.add_argument("--label", default="", help="name for people, such as main or v1.2")
    save.add_argument("--commit", help="commit it belongs to (default: that of the CI job, else of the current folder's repository)")
    save.add_argument("--tasks", default="", help="save these tasks or groups only, comma-separated (default: all)")
    texts = save.add_mutually_exclusive_group()
    texts.add_argument(
        "--texts", action="store_true", default=None, help=f"keep what the model wrote even beyond {TEXTS_UP_TO >> 10} KiB packed"
    )
    texts.add_argument(
        "--no-texts", action="store_false", dest="texts", help="leave out what the model wrote; reports then show new answers only"
    )
    save.add_argument("--fresh", action="store_true", help="begin without the history of the file")
    listed = actions.add_parser("list", help="list baselines")
    listed.add_argument("places", nargs="*", type=Path, default=[Path()], metavar="PATH", help="files or folders (default: here)")
    show = actions.add_parser("show", help="show a baseline's tasks, hashes and history")
    show.add_argument("file", type=Path, metavar="FILE")
    show.add_argument("--json", action="store_true", help="print it as JSON, without items")


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    if args.action == "save":
        return _save(args)
    return _list(args.places) if args.action == "list" else _show(baseline_files.read(args.file), args.json)


def _save(args: argparse.Namespace) -> int:
    path: Path = args.to
    if not path.name.endswith(_SUFFIXES):
        raise UserError(f"--to {path}: a baseline's name ends in {' or '.join(_SUFFIXES)}")
    if baseline_files.is_baseline(args.source):
        raise UserError(f"{args.source} is a baseline already: copy it, or name the run folder that it was made of")
    earlier = None
    if path.exists() and not args.fresh:
        if not baseline_files.is_baseline(path):
            raise UserError(f"--to {path} is a file that is no baseline: name another, or add --fresh to replace it")
        earlier = baseline_files.read(path)
    snapshot = read_snapshot(args.source)
    wanted = expand(args.tasks)
    lacking = [task for task in wanted if task not in snapshot.tasks]
    if lacking:
        raise UserError(f"{args.source} has no {', '.join(lacking)}; it has {', '.join(snapshot.tasks)}")
    snapshot = tasks_of(snapshot, wanted) if wanted else snapshot
    commit = current_commit() if args.commit is None else args.commit
    snapshot = replace(snapshot, commit=commit, label=args.label, source=Path(args.source).name)
    history = baseline_files.extend(earlier, snapshot)
    content = baseline_files.dump(snapshot, history, texts=args.texts is not False)
    size = len(baseline_files.pack(content))
    if args.texts is None and size >= TEXTS_UP_TO:
        content = baseline_files.dump(snapshot, history, texts=False)
        print(
            f"What the model wrote is left out, for with it the file takes {size / 1024:,.0f} KiB packed (--texts keeps it): "
            "reports will show new answers only.\n"
        )
    baseline_files.write(path, content)
    _print_tasks(snapshot)
    print(f"\n{path}: {path.stat().st_size / 1024:.0f} KiB, {len(history)} earlier snapshot{'' if len(history) == 1 else 's'}. Commit it.")
    return 0


def current_commit() -> str:
    """The commit that this is about: of the CI job, else of the repository of the current folder; empty where neither is known."""
    for name in _COMMITS:
        if os.environ.get(name):
            return os.environ[name]
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _list(places: Sequence[Path]) -> int:
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            files += sorted(path for path in place.rglob("*.jsonl*") if path.name.endswith(_SUFFIXES) and _is_plain_baseline(path))
        elif place.is_file():
            files.append(place)
        else:
            raise UserError(f"{place} does not exist")
    if not files:
        raise UserError(
            f"no baseline below {', '.join(map(str, places))}; make one with `mr1-bench baseline save RUN --to baselines/main.jsonl.gz`"
        )
    rows = []
    damaged = 0
    for path in files:
        try:
            one = baseline_files.read(path)
        except UserError as error:
            damaged += 1
            rows.append([str(path), "damaged", "", "", "", "", str(error).removeprefix(f"{path} ")])
            continue
        shot = one.snapshot
        accuracy = ", ".join(f"{task} {100 * seeds[0].means['acc']:.1f}" for task, seeds in shot.tasks.items())
        rows.append([str(path), shot.label, shot.commit[:10], shot.created[:16], shot.weights[:12], str(len(one.history)), accuracy])
    _print_table(["file", "label", "commit", "evaluated", "weights", "history", "acc %"], rows, right={5})
    return 2 if damaged else 0


def _is_plain_baseline(path: Path) -> bool:
    """Whether a file in a folder that is listed is meant to be a baseline; other JSON-lines files may lie beside."""
    if path.suffix != ".gz":
        return baseline_files.is_baseline(path)
    try:
        baseline_files.read(path)
    except UserError as error:
        return "is not a baseline of mr1-bench" not in str(error)
    return True


def _show(one: Baseline, as_json: bool) -> int:
    if as_json:
        print(json.dumps(_summary(one), indent=2, ensure_ascii=False))
        return 0
    shot = one.snapshot
    known = [shot.label or "no label", f"commit {shot.commit[:10] or 'unknown'}", f"evaluated {shot.created[:16] or 'unknown'}"]
    print(one_line(f"{one.path}: {', '.join(known)}"))
    print(one_line(f"model {model_label(shot.model)}, weights {shot.weights or 'unknown'}") + "\n")
    _print_tasks(shot)
    for task, seeds in shot.tasks.items():
        hashes = f"items {comparable.items_hash(seeds[0])[:16]}, asked {comparable.asked_hash(seeds[0])[:16]}"
        print(f"\n{task}: {hashes}, {one_line(seeds[0].engine)}")
        for key, value in seeds[0].identity.items():
            print(f"  {one_line(f'{key}: {json.dumps(value) if isinstance(value, dict) else value}')}")
    if one.history:
        print("\nHistory, the oldest first:")
        names = list(dict.fromkeys(task for entry in one.history for task in entry.tasks))
        rows = [
            [entry.commit[:10], entry.created[:16], entry.label, entry.weights[:12]]
            + [f"{100 * entry.tasks[task].means['acc']:.1f}" if task in entry.tasks else "" for task in names]
            for entry in one.history
        ]
        _print_table(["commit", "evaluated", "label", "weights", *(f"{task} acc %" for task in names)], rows)
    return 0


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> None:
    """Print a table; what files say reaches the terminal as visible text only."""
    print_table([one_line(cell) for cell in header], [[one_line(cell) for cell in row] for row in rows], right)


def _print_tasks(snapshot: Snapshot) -> None:
    rows = []
    for task, seeds in snapshot.tasks.items():
        for seed in seeds:
            name = task if len(seeds) == 1 else f"{task}, seed {seed.seed}"
            rest = [f"{100 * seed.means[key]:.1f}" if key in seed.means else "" for key in ("acc_r1v", "format", "answered")]
            rows.append([name, str(len(seed.items)), _accuracy(seed), *rest])
    _print_table(["task", "items", "acc % [95 %]", "acc_r1v %", "format %", "answered %"], rows, right={1, 2, 3, 4, 5})


def _accuracy(seed: TaskSnapshot) -> str:
    mean = seed.means["acc"]
    if seed.repeats > 1:
        return f"{100 * mean:.1f} (avg@{seed.repeats})"
    return percent(mean, *stats.wilson(round(mean * len(seed.items)), len(seed.items)))


def _summary(one: Baseline) -> Mapping[str, Any]:
    """A baseline as JSON, without items and texts."""
    shot = one.snapshot
    tasks = {
        task: [
            {"n": len(seed.items), "seed": seed.seed, "repeats": seed.repeats, "weights": seed.weights, "engine": seed.engine}
            | {"means": dict(seed.means), "measures": dict(seed.measures), "identity": dict(seed.identity)}
            | {"items_sha256": comparable.items_hash(seed), "asked_sha256": comparable.asked_hash(seed)}
            for seed in seeds
        ]
        for task, seeds in shot.tasks.items()
    }
    history = [
        {"commit": entry.commit, "created": entry.created, "label": entry.label, "model": entry.model, "weights": entry.weights}
        | {"tasks": {task: {"n": known.n, "asked_sha256": known.asked, "means": dict(known.means)} for task, known in entry.tasks.items()}}
        for entry in one.history
    ]
    head = {"file": str(one.path), "label": shot.label, "commit": shot.commit, "created": shot.created, "model": shot.model}
    return head | {"weights": shot.weights, "tasks": tasks, "history": history}
