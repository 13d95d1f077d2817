"""`mr1-bench regress`: compares a model with its baseline and fails when it got worse, and only then.

Exit codes: 0 nothing to fail on, 1 something regressed, 2 not comparable, no baseline, or bad input. This module reads and prints; what
decides is in `regression`, and how reports look is in `regress_reports`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from mr1_bench.errors import UserError
from mr1_bench.reports import baseline_files
from mr1_bench.reports.regress_files import check_out, write_reports
from mr1_bench.reports.regress_plan import DISCORDANT, plan_text, planned_tasks
from mr1_bench.reports.regress_reports import one_line, outcome, value_text
from mr1_bench.reports.regression import compare, exit_code, history_of, tasks_of
from mr1_bench.reports.report import replacing
from mr1_bench.reports.report_items import report_sizes
from mr1_bench.reports.snapshots import read_snapshot
from mr1_bench.reports.verdicts import STATES, TOLERANCES, UNUSABLE, HistoryEntry, Regression, Settings, Snapshot, State, Verdict
from mr1_bench.specs import expand
from mr1_bench.tables import format_table

HELP = "Compare a model with its baseline, item by item, and fail when it got worse: exit 0 no, 1 regressed, 2 not comparable."
METRICS = ("acc", "acc_r1v", *TOLERANCES)
_FLAKY_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--baseline", type=Path, metavar="A", help="the old side: saved baseline, run folder, lmms-eval results, or REPORT/RUN"
    )
    parser.add_argument("--current", type=Path, metavar="B", help="the new side: run folder, lmms-eval results, or REPORT/RUN")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write summary.md, junit.xml, regression.json and a page here")
    parser.add_argument("--tasks", default="", help="compare these tasks or groups only, comma-separated (default: all of both sides)")
    parser.add_argument("--min-effect", type=float, default=1.0, metavar="POINTS", help="change of acc that matters (default: %(default)s)")
    parser.add_argument("--alpha", type=float, default=0.05, help="level of the tests (default: %(default)s)")
    parser.add_argument(
        "--fail-on",
        default="regressed",
        metavar="STATES",
        help=f"states that fail, of {', '.join(STATES)}, comma-separated; "
        "not-comparable and no-baseline fail besides; `none` for nothing at all (default: %(default)s)",
    )
    parser.add_argument("--allow", default="", metavar="STATES", help="states that do not fail, such as no-baseline for a task that is new")
    parser.add_argument(
        "--gate",
        default="acc,format,answered",
        metavar="METRICS",
        help=f"metrics that may fail, of {', '.join(METRICS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        action="append",
        default=[],
        metavar="METRIC=X",
        help="change for the worse that is no regression: points "
        "for shares, %% of the old value for tokens, tokens_per_s and peak_memory_bytes; may be given again",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the paired bootstrap; recorded (default: %(default)s)")
    parser.add_argument("--power", type=float, default=0.8, help="for what n items can show and the items needed (default: %(default)s)")
    parser.add_argument("--older", action="store_true", help="allow a baseline that was evaluated after the current run")
    parser.add_argument(
        "--plan", nargs="*", type=int, metavar="N", help="print the smallest drop that N items (or the sides' own) show, and stop"
    )
    parser.add_argument(
        "--discordant", type=float, nargs="+", metavar="PERCENT", help="for --plan: share of items that differ (default: 10 20 30)"
    )


def run(args: argparse.Namespace) -> int:
    """Compare, write the reports, and print one line a verdict."""
    if args.out and args.plan is None:
        _clear(args.out)  # before anything can fail, so that an old report never stands for a new one
    settings = _settings(args)
    if args.plan is not None:
        print(_plan(args, settings))
        return 0
    if args.baseline is None or args.current is None:
        raise UserError("give both --baseline A and --current B, or --plan")
    regression, history = _compare(args, settings)
    code = exit_code(regression)
    lines = _lines(regression)
    if args.out:
        lines.append(f"\nReport: {write_reports(regression, args.out, history)}")
    _print(lines)
    return code


def _print(lines: Sequence[str]) -> None:
    """Print, whether or not anybody reads it: in `mr1-bench regress … | head` the exit code is the verdict all the same."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _settings(args: argparse.Namespace) -> Settings:
    if not 0 <= args.min_effect < 100:
        raise UserError(f"--min-effect {args.min_effect:g}: give points, at least 0 and less than 100")
    if not 0 < args.alpha < 1 or not 0 < args.power < 1:
        raise UserError(f"--alpha {args.alpha:g} and --power {args.power:g} must lie between 0 and 1")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: at least 0")
    gate = _names(args.gate, METRICS, "--gate")
    if not gate:
        raise UserError(f"--gate names no metric, so nothing could ever fail; name some of {', '.join(METRICS)}")
    failing: tuple[State, ...] = ()
    if args.fail_on.strip() != "none":
        allowed = _states(args.allow, "--allow")
        failing = tuple(state for state in STATES if state in (*_states(args.fail_on, "--fail-on"), *UNUSABLE) and state not in allowed)
    tolerances = dict(_tolerance(text) for text in args.tolerance)
    return Settings(args.min_effect / 100, args.alpha, args.power, args.seed, tolerances=tolerances, gate=gate, fail_on=failing)


def _names(text: str, known: Sequence[str], option: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))
    for name in names:
        if name not in known:
            raise UserError(f"{option} {text}: {name!r} is none of {', '.join(known)}")
    return names


def _states(text: str, option: str) -> tuple[State, ...]:
    names = _names(text, STATES, option)
    return tuple(state for state in STATES if state in names)


def _tolerance(text: str) -> tuple[str, float]:
    metric, _, number = text.partition("=")
    try:
        value = float(number.rstrip("%"))
    except ValueError:
        value = -1.0
    if metric not in METRICS or not 0 <= value < 1000:
        raise UserError(
            f"--tolerance {text}: expected METRIC=NUMBER, such as format=2 or tokens_per_s=20; METRIC is one of {', '.join(METRICS)}"
        )
    return metric, value / 100


def _compare(args: argparse.Namespace, settings: Settings) -> tuple[Regression, tuple[HistoryEntry, ...]]:
    """Read both sides and compare them; the history ends with the current snapshot."""
    baseline, history = _read_side(args.baseline, missing_ok=True)
    missing = not baseline.tasks
    if missing:  # --allow no-baseline is for a new task; a file that is not there may as well be a wrong name
        settings = replace(settings, fail_on=tuple(dict.fromkeys((*settings.fail_on, "no-baseline"))))
    saved = baseline_files.is_baseline(args.current)
    if saved and not baseline_files.is_baseline(args.baseline):
        raise UserError(f"--current {args.current} is a saved baseline and --baseline {args.baseline} is not: they are swapped")
    current, _ = _read_side(args.current)
    names = expand(args.tasks)
    if names:
        lacking = [name for name in names if name not in current.tasks and name not in baseline.tasks]
        if lacking:
            raise UserError(f"--tasks: neither side has {', '.join(lacking)}; the current run has {', '.join(current.tasks)}")
        baseline, current = tasks_of(baseline, names), tasks_of(current, names)
    newer = _is_newer(baseline, current)
    if newer and not args.older:
        raise UserError(
            f"--baseline {args.baseline} was evaluated at {baseline.created}, after --current {args.current} at {current.created}: "
            "the sides are swapped, or the current model is to be evaluated again; add --older if that is meant"
        )
    regression = compare(baseline, current, settings, history)
    notes = [*regression.notes, *_sample_notes(args.baseline, baseline), *_sample_notes(args.current, current)]
    if newer:
        notes.append(f"The baseline was evaluated after the current run ({baseline.created} and {current.created}).")
    if missing:
        notes.append(f"The baseline {args.baseline.name} does not exist: save one with `mr1-bench baseline save`.")
        advice = f"save a baseline with `mr1-bench baseline save {args.current} --to {args.baseline}`"
        print(f"mr1-bench: {args.baseline} does not exist: {advice}", file=sys.stderr)
    regression = replace(regression, notes=tuple(notes))
    return regression, (*history, *((history_of(baseline),) if baseline.tasks else ()), history_of(current))


def _read_side(path: Path, *, missing_ok: bool = False) -> tuple[Snapshot, tuple[HistoryEntry, ...]]:
    if baseline_files.is_baseline(path):
        saved = baseline_files.read(path)
        return saved.snapshot, saved.history
    if path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz")) and "_samples_" not in path.name:
        return baseline_files.read(path).snapshot, ()  # says what is wrong with it
    if missing_ok and not path.exists() and not (path.parent / "report.json").is_file():
        return Snapshot(str(path), "", "", "", {}), ()
    return read_snapshot(path), ()


def _sample_notes(path: Path, snapshot: Snapshot) -> list[str]:
    """Of a report folder: how many of the items of a task are compared, where these are not all."""
    sizes = report_sizes(path)
    counts = [(task, len(seeds[0].items), sizes.get(task, 0)) for task, seeds in snapshot.tasks.items()]
    parts = [f"{shown:,} of {whole:,} items of {task}" for task, shown, whole in counts if shown < whole]
    if not parts:
        return []
    return [f"The report {path.name} holds {', '.join(parts)}, and these alone are compared: write it with `--gallery all` to have all."]


def _is_newer(baseline: Snapshot, current: Snapshot) -> bool:
    """Whether the baseline was evaluated after the current run, as far as both times are known with their zone."""
    try:
        old, new = (datetime.fromisoformat(side.created) for side in (baseline, current))
    except ValueError:
        return False
    return old.tzinfo is not None and new.tzinfo is not None and old > new


def _clear(out: Path) -> None:
    """Make room for a report: remove an earlier one, and nothing else.

    Raises:
        UserError: the folder holds something else.
    """
    check_out(out)
    if out.exists() and any(out.iterdir()):
        with replacing(out, check_out):
            pass  # an empty folder takes its place


def _lines(regression: Regression) -> list[str]:
    """What is printed, one line a verdict: those that gate, then the others. What files say is made visible."""
    lines = []
    for title, gates in (("", True), ("\nReported, not gating:", False)):
        chosen = [one for one in regression.verdicts if one.gates is gates]
        if chosen:
            lines += [title] if title else []
            lines.append(format_table(["verdict", "task", "metric", "old", "new", "n", "why"], list(map(_row, chosen)), right={3, 4, 5}))
    if regression.flaky:
        shown = ", ".join(f"{one.task} {one.item or one.doc_id} ({one.turns} turns)" for one in regression.flaky[:_FLAKY_SHOWN])
        more = ", …" if len(regression.flaky) > _FLAKY_SHOWN else ""
        lines.append("\n" + one_line(f"{len(regression.flaky)} flaky items over the history: {shown}{more}"))
    if regression.notes:
        lines.append("\n" + "\n".join(one_line(f"Note: {note}") for note in regression.notes))
    return [*lines, "\n" + one_line(outcome(regression))]


def _row(verdict: Verdict) -> list[str]:
    old, new = ("" if value is None else value_text(value, verdict.unit) for value in (verdict.old, verdict.new))
    cells = [verdict.state, verdict.task, verdict.metric, old, new, f"{verdict.n:,}" if verdict.n else "", verdict.why]
    return list(map(one_line, cells))


def _plan(args: argparse.Namespace, settings: Settings) -> str:
    """The plan for the user's sizes: those given, else those of the tasks of either side."""
    sizes = {"yours" if len(args.plan) == 1 else f"yours, {number}": n for number, n in enumerate(args.plan, 1)}
    sides = [_read_side(path)[0] for path in (args.baseline, args.current) if path is not None]
    of_tasks, tests = planned_tasks(sides, expand(args.tasks))
    sizes |= of_tasks
    if any(n < 1 or n > 10**7 for n in sizes.values()):
        raise UserError(f"--plan {' '.join(map(str, args.plan))}: give numbers of items between 1 and 10,000,000")
    shares = [percent / 100 for percent in args.discordant] if args.discordant else list(DISCORDANT)
    if any(not 0 < share <= 1 for share in shares):
        raise UserError("--discordant: give per cent, more than 0 and at most 100")
    return plan_text(sizes, settings, shares, tests)
