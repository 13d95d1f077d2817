"""Runs cells side by side in worker processes that stay, so that libraries are imported once a worker and not once a cell.

`run_cells` is the executor of one machine; those of clusters run each cell by `run_one` on its node. A worker is this file run as a
program: it reads one JSON line a cell from its standard input, runs the cell's two commands in its own process, and answers with one line.
What a cell prints goes to the cell's log. A worker that dies takes one cell with it; when the parent dies, however it does, the pipe ends
and so does the worker. It must not know what cells are for.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import queue
import resource
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from mr1_bench.errors import UserError
from mr1_bench.records import RecordError, read_json
from mr1_bench.specs import UnknownTaskError

TICK_S = 1.0
"""Seconds between two looks at the clock while cells run."""
_PATIENCE_S = 10.0  # for a worker to end by itself


@dataclass(frozen=True, slots=True)
class Job:
    """One cell to run.

    Attributes:
        name: the cell's.
        train: arguments of `mr1-bench` that train it; empty where that is done.
        evaluate: arguments of `mr1-bench` that evaluate it.
        run: path of the `run.json` that training leaves.
        log: where everything that it prints is added.
    """

    name: str
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    run: str
    log: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How a cell ended.

    Attributes:
        name: the cell's.
        status: `done`, both commands were; or `failed`.
        why: what went wrong, in a line; empty where nothing did.
        seconds: wall time in the worker, without the time to start it.
        cpu_seconds: time of the worker's process on CPUs, over all threads.
    """

    name: str
    status: Literal["done", "failed"]
    why: str
    seconds: float
    cpu_seconds: float


class Progress(Protocol):
    """What an executor tells while cells run."""

    def started(self, name: str) -> None:
        """A cell has begun."""

    def tick(self) -> None:
        """Some time has passed."""


def run_cells(jobs: Sequence[Job], workers: int, progress: Progress, device: str = "cpu") -> Iterator[Ended]:
    """Run cells, some at a time, in their order; gives each as it ends. No failure of a cell stops another.

    Args:
        jobs: the cells.
        workers: how many at a time; with `cuda` each worker has a GPU of its own.
        progress: is told what happens.
        device: `cpu`: one thread a worker; `cuda`: the cores are shared out.
    """
    waiting = list(reversed(jobs))
    running: dict[int, tuple[_Worker, Job, float]] = {}
    idle = [_Worker(slot, _environment(slot, workers, device)) for slot in range(min(workers, len(jobs)))]
    every = list(idle)
    with selectors.DefaultSelector() as answers:
        try:
            while waiting or running:
                while waiting and idle:
                    worker, job = idle.pop(0), waiting.pop()
                    worker.give(job)
                    answers.register(worker.answers, selectors.EVENT_READ, worker.slot)
                    running[worker.slot] = worker, job, time.monotonic()
                    progress.started(job.name)
                for key, _ in answers.select(TICK_S):
                    worker, job, began = running.pop(key.data)
                    answers.unregister(key.fileobj)
                    answer = worker.answer()
                    if answer is None:
                        ended = _died(worker, job, time.monotonic() - began)
                        worker.end()
                        every.remove(worker)
                        if waiting:
                            worker = _Worker(worker.slot, _environment(worker.slot, workers, device))
                            every.append(worker)
                            idle.append(worker)
                    else:
                        ended = Ended(job.name, **answer)
                        idle.append(worker)
                    yield ended
                progress.tick()
        finally:
            for worker in every:
                worker.end()


def run_one(job: Job, environment: Mapping[str, str], go_on: Callable[[], bool], directory: str | None = None) -> Ended | None:
    """Run one cell in a worker process of its own; None where it was stopped on the way.

    Args:
        job: the cell.
        environment: what differs from this process's.
        go_on: asked now and then; the worker ends when it says no.
        directory: where it runs; None: here.
    """
    worker = _Worker(0, environment, directory)
    began = time.monotonic()
    with selectors.DefaultSelector() as answers:
        try:
            worker.give(job)
            answers.register(worker.answers, selectors.EVENT_READ)
            while not answers.select(TICK_S):
                if not go_on():
                    return None
            answer = worker.answer()
            return _died(worker, job, time.monotonic() - began) if answer is None else Ended(job.name, **answer)
        finally:
            worker.end()


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, shortened."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    except OSError:
        return ""
    line = next((line for line in reversed(lines) if line), "")
    return line if len(line) <= 300 else line[:297] + "…"


def _died(worker: _Worker, job: Job, seconds: float) -> Ended:
    code = worker.process.wait()
    if code < 0:
        name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
        how = f"its process was ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    else:
        how = f"its process ended with code {code}"
    line = last_line(Path(job.log))
    return Ended(job.name, "failed", how + (f"; its log ends: {line}" if line else ""), round(seconds, 1), 0.0)


class _Worker:
    """The parent's end of a worker process."""

    def __init__(self, slot: int, environment: Mapping[str, str], directory: str | None = None) -> None:
        self.slot = slot
        # A group of its own: Ctrl-C is the parent's affair. PYTHONUNBUFFERED: the log shows how far it is.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mr1_bench.reports.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
            cwd=directory,
            process_group=0,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._jobs, self.answers = self.process.stdin, self.process.stdout

    def give(self, job: Job) -> None:
        """Send a job; that the process is gone shows when it is asked for its answer."""
        with contextlib.suppress(BrokenPipeError):
            self._jobs.write(json.dumps(asdict(job)).encode() + b"\n")
            self._jobs.flush()

    def answer(self) -> dict[str, Any] | None:
        """The answer to the last job; None where the process died on it."""
        line = self.answers.readline()
        answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return answer

    def end(self) -> None:
        """End the process: by itself where it is idle, else by force; what it was at goes on in the next start."""
        with contextlib.suppress(BrokenPipeError):
            self._jobs.close()
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.answers.close()


def _environment(slot: int, workers: int, device: str) -> dict[str, str]:
    threads = 1 if device == "cpu" else max(1, (os.cpu_count() or 1) // workers)
    found = variables(threads)
    if device == "cuda":
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        found["CUDA_VISIBLE_DEVICES"] = visible[slot] if slot < len(visible) else str(slot)
    return found


def variables(threads: int) -> dict[str, str]:
    """What every worker's environment has."""
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def main() -> int:
    """The worker: run the jobs that come, until there are no more or the parent is gone."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm warns every process of a job; the parent answers, and ends this one
    # The pipe is moved where nothing that a cell prints can reach it.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    jobs_in = os.fdopen(os.dup(0), "r", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    busy = threading.Event()
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs_in, waiting, busy), daemon=True).start()
    while (line := waiting.get()) is not None:
        job = Job(**json.loads(line))
        _log_to(Path(job.log))
        answer = _run(job)
        busy.clear()  # before the answer, which brings the next job
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def _listen(jobs: IO[str], waiting: queue.SimpleQueue[str | None], busy: threading.Event) -> None:
    """Take jobs over as they come. The end of the pipe means that the parent wants no more, or is gone: nobody waits for the cell then."""
    for line in jobs:
        busy.set()
        waiting.put(line)
    if busy.is_set():
        os._exit(1)  # every file of a run is written whole or not at all, so a cell can be left anywhere
    waiting.put(None)


def _log_to(path: Path) -> None:
    """Send everything that this process and its libraries print to a file, beside what is there."""
    sys.stdout.flush()
    sys.stderr.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _run(job: Job) -> dict[str, Any]:
    """Run a cell. A mistake of the user's makes it fail; an exception that is none of ours ends this process, its traceback in the log."""
    _import_all()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    why = ""
    try:
        for words in filter(None, (job.train, job.evaluate)):
            print(f"$ mr1-bench {shlex.join(words)}", flush=True)
            code = _command(words)
            if code != 0:
                why = _stopped(job) or f"mr1-bench {words[0]} ended with code {code}"
                break
    except (UserError, UnknownTaskError) as error:
        why = str(error)
    if why:
        print(f"failed: {why}", flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    status = "failed" if why else "done"
    seconds, cpu_seconds = time.perf_counter() - wall, _cpu_seconds() - cpu
    return {"status": status, "why": why, "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}


def _import_all() -> None:
    """Import what every cell needs, so that the first one is not charged with it; does nothing the second time."""
    import torch

    from mr1_bench.tasks import harness

    if "lmms_eval" in sys.modules:
        return
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    harness.quiet(False)
    import lmms_eval.evaluator
    import lmms_eval.models

    lmms_eval.models.get_model("qwen2_vl")


def _command(words: Sequence[str]) -> int:
    """Run `mr1-bench WORDS` in this process, and give back the memory that it took."""
    import torch

    from mr1_bench.cli import build_parser

    args: argparse.Namespace = build_parser(words[0]).parse_args(list(words))
    code: int = args.run(args)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return code


def _stopped(job: Job) -> str:
    """Why a training has stopped before its end, as its record says."""
    try:
        run = read_json(Path(job.run))
    except RecordError:
        return ""
    return str((run.get("results") or {}).get("stopped", "")) if run.get("status") == "stopped" else ""


def _cpu_seconds() -> float:
    mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    sys.exit(main())
