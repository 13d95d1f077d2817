"""How fast grading is: ours and math-verify side by side on a real log, the worker's overhead, the adapter, the import.

Run from the repository root with `MR1_REAL_DATA` set: `python perf/scoring.py [--json]`. Rounds alternate between the two graders in one
process, so that a busy machine slows both; the fastest round of each counts, and the ratio is also given round by round.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from mr1_bench.logs import Log, read_log
from mr1_bench.r1v import grade_r1v
from mr1_bench.specs import get_spec

LOG = "r1v_logs/geoqa_test_qwen2vl_7b_instruct_legacy.json"
TARGET_RATIO = 30
TARGET_ADAPTER_MS = 2.0
TARGET_IMPORT_MS = 150.0


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def grade_ours(log: Log) -> int:
    """Grade a log with our grader; the number right. What it remembers of golds and answers is forgotten first."""
    from mr1_bench import answers, grading, units
    from mr1_bench.grading import grade

    for module in (answers, grading, units):
        for member in vars(module).values():
            if hasattr(member, "cache_clear"):
                member.cache_clear()
    spec = get_spec(log.task)
    return sum(grade(spec, row.gold, row.text).correct for row in log.rows)


def grade_math_verify(log: Log) -> int:
    """Grade a log with math-verify in this process's main thread, as R1-V's evaluation script does; the number right."""
    from math_verify import parse, verify
    from math_verify.parser import parse_expr_cached, parse_latex_cached

    for cached in (parse_expr_cached, parse_latex_cached):
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()
    return sum(verify(parse(row.text), parse(str(row.gold))) for row in log.rows)


def grade_in_worker(log: Log) -> int:
    """Grade a log with the published grader in its worker; the number right."""
    return sum(bool(grade_r1v(log.task, row.gold, row.text).correct) for row in log.rows)


def adapter_seconds(log: Log) -> tuple[float, float] | None:
    """Seconds an item that lmms-eval waits for the adapter, and those of them outside the two graders; None where it is not installed."""
    if importlib.util.find_spec("lmms_eval") is None:
        return None
    from mr1_bench.grading import grade
    from mr1_bench.tasks import adapter

    spec = get_spec(log.task)
    process = adapter.processor(spec)
    rows = [({"id": str(row.index), "gold": row.gold}, [row.text]) for row in log.rows]
    whole = min(seconds(lambda: [process(*row) for row in rows]) for _ in range(3)) / len(rows)
    verdicts = {(row.gold, row.text): (grade(spec, row.gold, row.text), grade_r1v(spec, row.gold, row.text)) for row in log.rows}
    # The graders are replaced by a look-up: what is left is the adapter's own work.
    with (
        patch.object(adapter, "grade", lambda _, gold, text: verdicts[gold, text][0]),
        patch.object(adapter, "grade_r1v", lambda _, gold, text: verdicts[gold, text][1]),
    ):
        return whole, min(seconds(lambda: [process(*row) for row in rows]) for _ in range(3)) / len(rows)


def import_seconds(rounds: int = 10) -> float:
    """Seconds that `import mr1_bench` takes in a fresh interpreter, the interpreter's own start taken off; the fastest of some."""
    code = "import time; start = time.perf_counter(); import mr1_bench; print(time.perf_counter() - start)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(rounds)]
    return min(float(run.stdout) for run in runs)


def measure(log: Log, rounds: int) -> dict[str, Any]:
    """Measure everything; times in milliseconds an item unless the name says otherwise."""
    right_ours, right_theirs, right_worker = grade_ours(log), grade_math_verify(log), grade_in_worker(log)
    if right_theirs != right_worker:
        raise SystemExit(f"math-verify credits {right_theirs} in this process and {right_worker} in the worker: one of them is broken")
    ours: list[float] = []
    theirs: list[float] = []
    worker: list[float] = []
    for _ in range(rounds):
        ours.append(seconds(lambda: grade_ours(log)))
        theirs.append(seconds(lambda: grade_math_verify(log)))
        worker.append(seconds(lambda: grade_in_worker(log)))
    ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    n = len(log.rows)
    adapter = adapter_seconds(log)
    return {
        "items": n,
        "right": {"ours": right_ours, "math_verify": right_theirs},
        "items_per_s": {"ours": n / min(ours), "math_verify": n / min(theirs), "worker": n / min(worker)},
        "ratio": min(theirs) / min(ours),
        "ratio_rounds": {"lowest": min(ratios), "median": median(ratios)},
        "worker_overhead_ms": 1000 * (min(worker) - min(theirs)) / n,
        "adapter_ms": None if adapter is None else {"with_both_graders": 1000 * adapter[0], "without": 1000 * adapter[1]},
        "import_ms": 1000 * import_seconds(),
    }


def report(found: dict[str, Any]) -> str:
    """The measurements as lines of text."""
    speed, ratio = found["items_per_s"], found["ratio_rounds"]
    lines = [
        f"{found['items']} outputs of the geometry log",
        f"ours          {speed['ours']:9.0f} items/s   {found['right']['ours']} right",
        f"math-verify   {speed['math_verify']:9.0f} items/s   {found['right']['math_verify']} right",
        f"ours is {found['ratio']:.1f} times faster (target {TARGET_RATIO}; by rounds:"
        f" median {ratio['median']:.1f}, lowest {ratio['lowest']:.1f})",
        f"math-verify in its worker: {speed['worker']:.0f} items/s,"
        f" {found['worker_overhead_ms']:+.2f} ms an item against the same in this process",
        f"import mr1_bench: {found['import_ms']:.0f} ms (target {TARGET_IMPORT_MS:.0f})",
    ]
    adapter = found["adapter_ms"]
    if adapter is not None:
        lines.append(
            f"the lmms-eval adapter: {adapter['with_both_graders']:.2f} ms an item with both graders, "
            f"{adapter['without']:.4f} ms beside them (target {TARGET_ADAPTER_MS:.0f})"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (5)")
    args = parser.parse_args()
    folder = os.environ.get("MR1_REAL_DATA")
    if not folder or not (Path(folder) / LOG).is_file():
        raise SystemExit(f"MR1_REAL_DATA must name a folder that holds {LOG}: the published log this measures on")
    found = measure(read_log(Path(folder) / LOG), args.rounds)
    print(json.dumps(found, indent=2) if args.json else report(found))
    slow_adapter = found["adapter_ms"] is not None and found["adapter_ms"]["with_both_graders"] > TARGET_ADAPTER_MS
    return int(found["ratio"] < TARGET_RATIO or found["import_ms"] > TARGET_IMPORT_MS or slow_adapter)


if __name__ == "__main__":
    sys.exit(main())
