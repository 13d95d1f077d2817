"""How much faster an evaluation is with two processes than with one, on CPUs: the whole command, as a user starts it, alternating.

Run from the repository root: `OMP_NUM_THREADS=1 python perf/processes.py [--rounds 5] [--json FILE]`. Answers a second are counted over the
time of generation, which run.json holds; the whole command includes starting Python, lmms-eval and, for two, torchrun. That both gave
the same answers is checked in every round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

TASK = "mr1_gr_synth"


def measure(processes: int, items: int) -> dict[str, Any]:
    """Evaluate the embedded model once."""
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, *launcher, "-m", "mr1_bench", "eval", "--model", "tiny", "--tasks", TASK, "--limit", str(items)]
        start, before = time.monotonic(), os.times()
        subprocess.run([*command, "--device", "cpu", "--out", out], check=True, capture_output=True)
        wall, after = time.monotonic() - start, os.times()
        (folder,) = Path(out).glob("eval/*")
        run = json.loads((folder / "run.json").read_text())
        (samples,) = folder.glob("*_samples_*.jsonl")
        answers = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    assert run["processes"] == processes
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"items_per_s": items / run["time_generate_s"], "wall_s": wall, "cpu_s": cpu, "load": os.getloadavg()[0], "answers": answers}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (%(default)s)")
    parser.add_argument("--items", type=int, default=600, help="items an evaluation (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file too")
    args = parser.parse_args()
    rounds = []
    for _ in range(args.rounds):
        one, two = measure(1, args.items), measure(2, args.items)
        if one.pop("answers") != two.pop("answers"):
            raise SystemExit("two processes gave other answers than one")
        rounds.append({"1": one, "2": two, "ratio": two["items_per_s"] / one["items_per_s"]})
        print({key: round(value, 2) for key, value in rounds[-1].items() if key == "ratio"}, one, two, flush=True)
    found: dict[str, Any] = {
        name: {key: median(each[name][key] for each in rounds) for key in ("items_per_s", "wall_s", "cpu_s")} for name in ("1", "2")
    }
    found["ratio"] = median(each["ratio"] for each in rounds)
    print(json.dumps(found, indent=1))
    if args.json:
        command = (
            f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python perf/processes.py --rounds {args.rounds} --items {args.items}"
        )
        machine = {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"command": command, "machine": machine, "median": found, "rounds": rounds}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
