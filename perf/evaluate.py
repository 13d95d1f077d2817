"""How fast `mr1-bench eval` is with each backend, and where its time goes.

Run from the repository root where vLLM is installed: `python perf/evaluate.py [--batch-size 8 128] [--json FILE]`; in the field
`--device cuda --model PATH --tasks mr1`. Every measurement is the whole command in a process of its own, as a user starts it; rounds go
through all batch sizes, the backends alternating, so that a busy machine slows both. Clocks around lmms-eval's model and around the engine
that it drives tell these apart: start (interpreter, imports, data, task index), load (the model), requests (lmms-eval builds them), engine
(transformers' `generate`, or vLLM's `chat`, which also processes the images), wrapper (lmms-eval's code around that: image encoding, for
hf also the processor), journal (our record of each chunk), grading (with lmms-eval's aggregation and files), close (the run record, exit).
The first answers are those of the first chunk, at the time they are kept.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from mr1_bench import records, vllm_setup
from mr1_bench.tables import print_table

PHASES = ("start", "load", "requests", "engine", "wrapper", "journal", "grading", "close")


@dataclass(slots=True)
class Clock:
    """What one process saw, in seconds of the system's monotonic clock, which all processes share.

    Attributes:
        load: when the model began to load.
        loaded: when it was there.
        called, first, answered: when it was first asked, and first and last answered.
        graded: when the answers were graded and lmms-eval's files written.
        model, engine: seconds inside lmms-eval's model, and of those inside the engine that it drives.
    """

    load: float = 0.0
    loaded: float = 0.0
    called: float = 0.0
    first: float = 0.0
    answered: float = 0.0
    graded: float = 0.0
    model: float = 0.0
    engine: float = 0.0

    def around_evaluation(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        """Return the harness's `evaluate`, with this clock on the model that it loads."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            import lmms_eval.models

            get = lmms_eval.models.get_model
            with patch.object(lmms_eval.models, "get_model", lambda name: functools.partial(self._load, get(name))):
                result = evaluate(*args, **kwargs)
            self.graded = time.monotonic()
            return result

        return watched

    def _load(self, make: Callable[..., Any], **arguments: Any) -> Any:
        self.load = time.monotonic()
        model = make(**arguments)
        self.loaded = time.monotonic()
        engine, name = (model.client, "chat") if hasattr(model, "client") else (model.model, "generate")
        setattr(engine, name, self._engine_timed(getattr(engine, name)))
        model.generate_until = self._model_timed(model.generate_until)
        return model

    def _engine_timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.monotonic()
            result = work(*args, **kwargs)
            self.engine += time.monotonic() - start
            return result

        return timed

    def _model_timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(requests: Any) -> Any:
            start = time.monotonic()
            result = work(requests)
            self.answered = time.monotonic()
            self.model += self.answered - start
            if not self.called:
                self.called, self.first = start, self.answered
            return result

        return timed

    def phases(self, begin: float, end: float) -> dict[str, float]:
        """Seconds of each phase of a process that ran from `begin` to `end`; they add up to all of it."""
        journal = self.answered - self.called - self.model
        spans = (self.load - begin, self.loaded - self.load, self.called - self.loaded, self.engine, self.model - self.engine, journal)
        return dict(zip(PHASES, (*spans, self.graded - self.answered, end - self.graded), strict=True))


def run_watched(file: Path, command: list[str]) -> int:
    """Run the command in this process, and write what the clock saw to a file."""
    from mr1_bench.cli import main
    from mr1_bench.tasks import harness

    clock = Clock()
    with patch.object(harness, "evaluate", clock.around_evaluation(harness.evaluate)):
        code = main(["eval", *command])
    records.write_json(file, asdict(clock))
    return code


def measure(args: argparse.Namespace, backend: str, batch_size: int, limit: int | None) -> dict[str, Any]:
    """Evaluate once in a fresh process; seconds of each phase and what was made."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = ["--model", args.model, "--tasks", args.tasks, "--out", str(folder / "out"), "--backend", backend]
        command += ["--batch-size", str(batch_size), *(["--limit", str(limit)] if limit else [])]
        if backend == "vllm":
            command += ["--vllm-args", args.vllm_args] if args.vllm_args else []
        else:
            command += ["--device", args.device]
        begin = time.monotonic()
        done = subprocess.run(
            # -P: this folder is not searched for modules, since lmms-eval imports another `evaluate`.
            [sys.executable, "-P", __file__, "--watched", str(folder / "clock.json"), *command],
            env=os.environ | {"OMP_NUM_THREADS": str(args.threads)},
            capture_output=True,
            text=True,
            timeout=args.time_limit,
            check=False,
        )
        end = time.monotonic()
        if done.returncode:
            raise SystemExit(f"evaluating with {backend} failed:\n{done.stderr[-2000:]}")
        clock = Clock(**records.read_json(folder / "clock.json"))
        (record,) = folder.glob("out/eval/*/run.json")
        run = records.read_json(record)
    correct = {task: entry["metrics"]["acc"]["k"] for task, entry in run["tasks"].items() if "acc" in entry.get("metrics", {})}
    items = run["answers"]["total"]
    return {
        "items": items,
        "tokens": run["tokens"],
        "correct": correct,
        "wall_s": end - begin,
        "first_answers_s": clock.first - begin,
        "items_per_s": items / clock.model,
        "items_per_s_in_all": items / (end - begin),
        "phases_s": clock.phases(begin, end),
        "load_average": os.getloadavg()[0],
    }


def measure_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All backends at all batch sizes, alternating; one entry each with its rounds."""
    for backend in args.backend:  # data sets are made, kernels compiled and files read once before anything counts
        measure(args, backend, args.batch_size[0], 1)
    cells: dict[tuple[int, str], list[dict[str, Any]]] = {(size, backend): [] for size in args.batch_size for backend in args.backend}
    for number in range(args.rounds):
        for (size, backend), rounds in cells.items():
            rounds.append(measure(args, backend, size, args.limit))
            print(f"round {number + 1}: {backend}, batch size {size}: {rounds[-1]['wall_s']:.1f} s", file=sys.stderr, flush=True)
    return [{"batch_size": size, "backend": backend, "rounds": rounds} for (size, backend), rounds in cells.items()]


def middle(rounds: list[dict[str, Any]], key: str) -> str:
    """Median and range of a number over the rounds."""
    values = [row[key] for row in rounds]
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def report(cells: list[dict[str, Any]]) -> None:
    """Print rates and phases; medians over the rounds."""
    rates, phases = [], []
    for cell in cells:
        rounds = cell["rounds"]
        name = [cell["backend"], str(cell["batch_size"])]
        made = [str(rounds[0]["items"]), str(rounds[0]["tokens"]), "+".join(map(str, rounds[0]["correct"].values()))]
        rates.append([*name, *made, *(middle(rounds, key) for key in ("items_per_s", "items_per_s_in_all", "first_answers_s"))])
        phases.append([*name, *(f"{median(row['phases_s'][phase] for row in rounds):.2f}" for phase in PHASES), middle(rounds, "wall_s")])
    head = ["backend", "batch", "items", "tokens", "right", "items/s generating", "items/s in all", "first answers, s"]
    print_table(head, rates, right=set(range(1, len(head))))
    print("\nseconds:")
    print_table(["backend", "batch", *PHASES, "in all"], phases, right=set(range(1, len(PHASES) + 3)))
    by_name = {(cell["backend"], cell["batch_size"]): cell["rounds"] for cell in cells}
    for (backend, size), rounds in by_name.items():
        if backend == "vllm" and ("hf", size) in by_name:
            pairs = list(zip(rounds, by_name["hf", size], strict=True))
            ratios = {key: [ours[key] / theirs[key] for ours, theirs in pairs] for key in ("items_per_s", "items_per_s_in_all")}
            words = [f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" for values in ratios.values()]
            print(f"batch size {size}: vllm is {words[0]} times as fast as hf generating, {words[1]} in all")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="checkpoint folder (%(default)s: the embedded model)")
    parser.add_argument("--tasks", default="mr1_synth", help="tasks or groups (%(default)s)")
    parser.add_argument("--limit", type=int, default=256, help="items a task; 0: all (%(default)s)")
    parser.add_argument("--backend", nargs="+", default=["hf", "vllm"], choices=["hf", "vllm"], help="what to measure (both)")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[8, 128], help="items a batch (8 128)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (%(default)s)")
    parser.add_argument("--device", default="cpu", help="of the hf backend: cpu or cuda; vLLM's build decides for itself (%(default)s)")
    parser.add_argument("--vllm-args", help="as of mr1-bench eval")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    parser.add_argument("--time-limit", type=float, default=3600, help="longest wait for one evaluation, in seconds (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file too")
    return parser.parse_args()


def main() -> int:
    """Measure and print."""
    args = parse()
    cells = measure_all(args)
    report(cells)
    if args.json:
        import torch
        from trainer_report import machine

        settings = {key: value for key, value in vars(args).items() if key != "json"}
        described = machine(torch.device(args.device), args.threads) | {"vllm": vllm_setup.version()}
        records.write_json(args.json, {"machine": described, "settings": settings, "cells": cells})
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watched"]:
        sys.exit(run_watched(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(main())
