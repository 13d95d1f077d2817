"""`mr1-bench runs`: lists the runs and evaluations below some folders, what they are, and how accurate.

It lists also what a report would refuse, and says why. It must not know how runs are read (`collect`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mr1_bench.reports import collect, frames
from mr1_bench.reports.study import METHOD_NAMES, Result, Run, Study
from mr1_bench.tables import percent, print_table

HELP = "List the runs and evaluations below some folders."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders with runs, searched to any depth")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object a run and task, as a list, with all columns")
    form.add_argument("--csv", action="store_true", help="print the same as CSV")


def run(args: argparse.Namespace) -> int:
    """Print the table; what forbids to compare the runs goes to standard error."""
    study, problems = collect.survey(args.folders)
    if args.json:
        print(json.dumps(frames.rows(study), indent=2, ensure_ascii=False, allow_nan=False))
    elif args.csv:
        print(frames.run_frame(study).to_csv(index=False), end="")
    else:
        _print(study)
    if problems:
        print(f"\nmr1-bench report would refuse these runs together ({len(problems)}):", file=sys.stderr)
        print("\n".join(f"- {problem}" for problem in problems), file=sys.stderr)
    return 0


def _print(study: Study) -> None:
    tasks = study.tasks
    sizes = {task: max(one.results[task].n for one in study.runs if task in one.results) for task in tasks}
    header = ["run", "method", "trained on", "arm", "seed", "steps", "status"]
    header += [f"{task} acc %, n = {sizes[task]}" if sizes[task] else f"{task} acc %" for task in tasks]
    table = [[*_about(one), *(_accuracy(one.results.get(task), sizes[task]) for task in tasks), str(one.folder)] for one in study.runs]
    for missing in study.missing:
        table.append([missing.name, "", "", "", "", "", "missing", *[""] * len(tasks), str(missing.folder)])
    print_table([*header, "folder"], table, right={4, 5})
    if tasks:
        print("\nAccuracy (acc) with its 95 % Wilson interval over the items.")
    _print_missing(study)


def _print_missing(study: Study) -> None:
    if study.missing:
        print("\nMissing:")
        width = max(len(one.name) for one in study.missing)
        print("\n".join(f"  {one.name:{width}}  {one.why}" for one in study.missing))


def _about(one: Run) -> Sequence[str]:
    seed = "" if one.seed is None else str(one.seed)
    method = METHOD_NAMES.get(one.method, one.method)
    arm = "" if one.method == "base" else one.arm
    return one.name, method, one.task, arm, seed, str(one.config.get("steps", "")), "finished"


def _accuracy(result: Result | None, size: int) -> str:
    if result is None:
        return ""
    _, n, low, high = frames.counts(result)
    if n is None or low is None or high is None:
        return f"{100 * result.means['acc']:.1f} (no samples)"
    return percent(result.means["acc"], low, high) + (f" n = {n}" if n != size else "")
