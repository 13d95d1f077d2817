"""How much faster an evaluation, or a training with `--engine trl`, is with two processes than with one, on CPUs: the whole command, as a
user starts it, alternating.

Run from the repository root: `OMP_NUM_THREADS=1 python perf/processes.py [--work training] [--rounds 5] [--json FILE]`. Answers a second
are counted over the time of generation, which run.json holds, steps a second by the median step but for the first two; the whole command
includes starting Python and, for two, torchrun. That both gave the same answers, or took the same β and learning rates, is checked.
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


STEPS = 12
TRAIN = {"task": "gr-synth", "steps": STEPS, "prompts-per-step": 8, "num-generations": 8, "max-new-tokens": 64, "eval-every": 0, "lr": 1e-5}


def run(processes: int, command: list[str]) -> dict[str, float]:
    """Run one of our commands; its wall-clock and CPU seconds, and the machine's load."""
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    start, before = time.monotonic(), os.times()
    subprocess.run([sys.executable, *launcher, "-m", "mr1_bench", *command, "--device", "cpu"], check=True, capture_output=True)
    wall, after = time.monotonic() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": wall, "cpu_s": cpu, "load": os.getloadavg()[0]}


def evaluate(processes: int, items: int) -> tuple[dict[str, float], Any]:
    """Evaluate the embedded model once; what was measured, and the answers."""
    with tempfile.TemporaryDirectory() as out:
        took = run(processes, ["eval", "--model", "tiny", "--tasks", TASK, "--limit", str(items), "--out", out])
        (folder,) = Path(out).glob("eval/*")
        record = json.loads((folder / "run.json").read_text())
        (samples,) = folder.glob("*_samples_*.jsonl")
        answers = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    assert record["processes"] == processes
    return took | {"rate": items / record["time_generate_s"]}, answers


def train(processes: int, _: int) -> tuple[dict[str, float], Any]:
    """Train the embedded model for a few steps; what was measured, and β and learning rate of the steps."""
    flags = [part for name, value in TRAIN.items() for part in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        took = run(processes, ["train", "grpo-d", "--engine", "trl", "--model", "tiny", *flags, "--out", str(out)])
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == STEPS
    return took | {"rate": 1 / median(row["time_step"] for row in rows[2:])}, [(row["beta"], row["lr"]) for row in rows]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=("evaluation", "training"), default="evaluation", help="what to measure (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (%(default)s)")
    parser.add_argument("--items", type=int, default=600, help="items an evaluation (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file too")
    args = parser.parse_args()
    rounds = []
    for _ in range(args.rounds):
        measure = evaluate if args.work == "evaluation" else train
        (one, did), (two, did_too) = measure(1, args.items), measure(2, args.items)
        if did != did_too:
            raise SystemExit("two processes did other work than one")
        rounds.append({"1": one, "2": two, "ratio": two["rate"] / one["rate"]})
        print({key: round(value, 2) for key, value in rounds[-1].items() if key == "ratio"}, one, two, flush=True)
    found: dict[str, Any] = {
        name: {key: median(each[name][key] for each in rounds) for key in ("rate", "wall_s", "cpu_s")} for name in ("1", "2")
    }
    found["ratio"] = median(each["ratio"] for each in rounds)
    print(json.dumps(found, indent=1))
    if args.json:
        command = (
            f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python perf/processes.py --work {args.work} --rounds {args.rounds}"
            f" --items {args.items}"
        )
        machine = {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"command": command, "machine": machine, "median": found, "rounds": rounds}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
