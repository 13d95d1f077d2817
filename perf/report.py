"""Time and memory of `mr1-bench report` over 100 runs with 1,000 graded answers each; at most 20 s and 2 GiB are allowed.

The runs are made by the tests' own generator and lie on disk as a reproduction leaves them; the report is made by a process of its own,
as a user starts it, once cold and then again over the earlier report.

    python perf/report.py
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import studies  # noqa: E402  (the repository is put on the path first)

SECONDS, GIB = 20.0, 2.0
REPEATS = 2


def main() -> int:
    """Print time and memory of each repeat; exit code 1 where a limit is broken."""
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "study"
        study = studies.make_study(n=500, seeds=15, sweeps=True, steps=200)
        runs, answers = len(study.runs), sum(result.n for run in study.runs for result in run.results.values())
        studies.write_study(study, folder)
        print(f"{runs} runs, {answers:,} graded answers, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        for _ in range(REPEATS):
            seconds, cpu, gib = measure(folder, Path(name) / "report")
            size = sum(path.stat().st_size for path in (Path(name) / "report").rglob("*") if path.is_file()) / 2**20
            print(f"{seconds:5.1f} s wall, {cpu:5.1f} s CPU, {gib:.2f} GiB peak, report of {size:.0f} MiB")
            failed = failed or seconds > SECONDS or gib > GIB
    print(f"limits: {SECONDS:.0f} s, {GIB:.0f} GiB: {'BROKEN' if failed else 'kept'}")
    return int(failed)


def measure(folder: Path, out: Path) -> tuple[float, float, float]:
    """Make the report in a process of its own.

    Returns:
        wall seconds, CPU seconds, and peak resident memory in GiB (of the largest process).
    """
    command = [sys.executable, "-m", "mr1_bench", "report", str(folder), "--out", str(out)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, after.ru_maxrss / 2**20


if __name__ == "__main__":
    sys.exit(main())
