"""`mr1-bench score`: grades logged outputs again, with our grader and with the published one, and shows where they differ.

It must not know how a log is written (`logs`) or how an answer is read (`grading`, `r1v`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mr1_bench.errors import UserError
from mr1_bench.grading import Score, grade
from mr1_bench.logs import FORMS, Log, LogRow, read_log
from mr1_bench.r1v import R1VScore, R1VWorkerError, grade_r1v
from mr1_bench.specs import TaskSpec, get_spec
from mr1_bench.stats import Estimate, avg_at_n
from mr1_bench.tables import percent, print_table

HELP = f"""Grade logs of model outputs again. A log is {FORMS}. `acc` is our grader, `acc_r1v` the published one of the R1-V protocol
(over the outputs on which it reaches a verdict), `format` the share in the think/answer form, `answered` the share with an answer."""

_LISTED = 12


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A logged output with both verdicts; `published` is None where the published grader was not asked."""

    row: LogRow
    score: Score
    published: R1VScore | None

    @property
    def correct_r1v(self) -> bool | None:
        """The published verdict; None where there is none."""
        return None if self.published is None else self.published.correct

    @property
    def disagree(self) -> bool:
        """Whether both graders reach a verdict, and not the same."""
        return self.correct_r1v is not None and self.correct_r1v != self.score.correct


@dataclass(frozen=True, slots=True)
class LogScore:
    """A graded log.

    Attributes:
        log: the log.
        acc: our accuracy with its 95 % interval, clustered by item where items have several outputs.
        acc_r1v: share that the published grader credits, of the outputs on which it reaches a verdict; None where it was not asked.
        format: share in the think/answer form; None for a task whose prompt does not ask for it.
        answered: share of outputs with an answer.
        rows: the outputs with their verdicts.
    """

    log: Log
    acc: Estimate
    acc_r1v: float | None
    format: float | None
    answered: float
    rows: tuple[ScoredRow, ...]

    @property
    def unjudged(self) -> list[ScoredRow]:
        """Outputs on which the published grader ran out of time or died."""
        return [row for row in self.rows if row.published is not None and row.published.correct is None]

    @property
    def disagree(self) -> float | None:
        """Share of outputs on which the two graders differ; None where the published one was not asked."""
        return None if self.acc_r1v is None else sum(row.disagree for row in self.rows) / len(self.rows)


def score_log(log: Log, *, published: bool = True) -> LogScore:
    """Grade every output of a log.

    Args:
        log: the log.
        published: whether to ask the published grader too, which a task without tags never does: it has no verdict on bare answers.

    Raises:
        R1VWorkerError: the published grader does not work in this environment.
    """
    spec = get_spec(log.task)
    both = published and spec.tagged
    rows = tuple(_score_row(spec, row, both) for row in _watched(log.rows, log.path.name))
    items: dict[int, list[bool]] = {}
    for scored in rows:
        items.setdefault(scored.row.index, []).append(scored.score.correct)
    verdicts = [row.correct_r1v for row in rows if row.correct_r1v is not None]
    return LogScore(
        log=log,
        acc=avg_at_n(list(items.values())),
        acc_r1v=sum(verdicts) / len(verdicts) if verdicts else None,
        format=sum(row.score.format_ok for row in rows) / len(rows) if spec.tagged else None,
        answered=sum(row.score.extracted is not None for row in rows) / len(rows),
        rows=rows,
    )


def _score_row(spec: TaskSpec, row: LogRow, published: bool) -> ScoredRow:
    return ScoredRow(row, grade(spec, row.gold, row.text), grade_r1v(spec, row.gold, row.text) if published else None)


def _watched(rows: Sequence[LogRow], label: str) -> Iterable[LogRow]:
    if not sys.stderr.isatty():
        return rows
    from rich.console import Console
    from rich.progress import track

    return track(rows, description=label, console=Console(stderr=True), transient=True)


def summary(result: LogScore) -> dict[str, Any]:
    """Return a log's entry in the JSON output; shares between 0 and 1, None where a metric does not apply.

    `r1v_no_verdict`, the number of outputs on which the published grader gave up, is there only if there are any.
    """
    entry = {
        "file": str(result.log.path),
        "task": result.log.task,
        "n": len(result.rows),
        "acc": result.acc.value,
        "acc_r1v": result.acc_r1v,
        "format": result.format,
        "answered": result.answered,
        "disagree": result.disagree,
    }
    return entry | ({"r1v_no_verdict": len(result.unjudged)} if result.unjudged else {})


def item(scored: ScoredRow) -> dict[str, Any]:
    """Return an output's line in the file of rows."""
    row, score = scored.row, scored.score
    return {
        "index": row.index,
        "gold": row.gold,
        "text": row.text,
        "extracted": score.extracted,
        "value": score.value,
        "unit": score.unit,
        "correct": score.correct,
        "correct_r1v": scored.correct_r1v,
        "format_ok": score.format_ok,
        "status": score.status,
    }


def write_rows(path: Path, results: Sequence[LogScore]) -> None:
    """Write one line an output, whole or not at all; lines name their file if there are several, and the repeat where items have several.

    Raises:
        UserError: the file cannot be written.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            temporary = Path(stream.name)
            for result in results:
                repeats = any(scored.row.repeat for scored in result.rows)
                for scored in result.rows:
                    line = item(scored)
                    line |= {"repeat": scored.row.repeat} if repeats else {}
                    line |= {"file": str(result.log.path)} if len(results) > 1 else {}
                    stream.write(_encode(line))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give --out a file in a folder that exists and is yours") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _encode(line: dict[str, Any]) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # an unpaired surrogate in a model's output has no UTF-8 form, but a JSON escape
        return json.dumps(line).encode() + b"\n"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _print_results(results: Sequence[LogScore]) -> None:
    header = ["file", "task", "n", "acc % [95 %]", "acc_r1v %", "format %", "answered %", "ours only", "R1-V only"]
    rows = []
    for result in results:
        ours, theirs = _disagreements(result)
        counts = ["", ""] if result.acc_r1v is None else [str(len(ours)), str(len(theirs))]
        shares = [_percent(result.acc_r1v), _percent(result.format), _percent(result.answered)]
        rows.append(
            [
                result.log.path.name,
                result.log.task,
                str(len(result.rows)),
                percent(result.acc.value, result.acc.low, result.acc.high),
                *shares,
                *counts,
            ]
        )
    print_table(header, rows, right=set(range(2, len(header))))
    for result in results:
        for name, indices in zip(("ours", "R1-V"), _disagreements(result), strict=True):
            if indices:
                more = f", and {len(indices) - _LISTED} more (--out lists all)" if len(indices) > _LISTED else ""
                print(f"{result.log.path.name}: right for {name} only: items {', '.join(map(str, indices[:_LISTED]))}{more}")


def _disagreements(result: LogScore) -> tuple[list[int], list[int]]:
    """Items that only our grader, and that only the published one credits."""
    differing = [row for row in result.rows if row.disagree]
    return [row.row.index for row in differing if row.score.correct], [row.row.index for row in differing if not row.score.correct]


def _warn(result: LogScore) -> None:
    name = result.log.path.name
    if result.unjudged:
        items = ", ".join(str(row.row.index) for row in result.unjudged[:_LISTED])
        print(
            f"mr1-bench: {name}: the published grader reached no verdict on {len(result.unjudged)} outputs (time limit); acc_r1v leaves "
            f"them out. Items {items}",
            file=sys.stderr,
        )
    bad = [row.row for row in result.rows if row.score.status == "bad_gold"]
    if bad:
        golds = ", ".join(f"{row.index} ({row.gold!r})" for row in bad[:_LISTED])
        print(f"mr1-bench: {name}: {len(bad)} golds cannot be read and count as wrong; is --task right? Items {golds}", file=sys.stderr)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="logs of model outputs")
    parser.add_argument("--task", help="task whose rules grade the logs; recognised if not given (integer golds: mr1_vc, else mr1_gr)")
    parser.add_argument("--json", action="store_true", help="print one JSON object with shares between 0 and 1, and nothing else")
    parser.add_argument("--out", type=Path, metavar="ROWS.jsonl", help="also write both verdicts on every output, one JSON object a line")
    parser.add_argument("--no-r1v", action="store_true", help="leave the published grader out (it takes most of the time)")


def run(args: argparse.Namespace) -> int:
    """Grade the logs and print the table or the JSON object."""
    if args.out is not None and any(args.out.resolve() == path.resolve() for path in args.files):
        raise UserError(f"--out {args.out} is one of the logs; give it another name")
    if args.out is not None and not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: there is no folder {args.out.parent}; make it first")
    logs = [read_log(path, args.task) for path in args.files]
    try:
        results = [score_log(log, published=not args.no_r1v) for log in logs]
    except R1VWorkerError as error:
        raise UserError(f"{error}; or leave that grader out with --no-r1v") from error
    for result in results:
        _warn(result)
    if args.out is not None:
        write_rows(args.out, results)
    if args.json:
        print(json.dumps({"files": [summary(result) for result in results]}, indent=2))
    else:
        _print_results(results)
    return 0
