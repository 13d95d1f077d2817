"""Runs cells as jobs of a Slurm array, through submitit; the jobs outlive this command, and its next start waits for them again.

The signature is that of `workers.run_cells`, behind what is particular to Slurm. Which job is at which cell stands in a file of the grid's
folder, which every node has to see. It must not know what cells are for.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mr1_bench import records
from mr1_bench.errors import UserError
from mr1_bench.reports import attempts
from mr1_bench.reports.attempts import ROOM, Outcome, Ticket
from mr1_bench.reports.preset import Resources
from mr1_bench.reports.workers import TICK_S, Ended, Job, Progress

if TYPE_CHECKING:
    import submitit

KIND = "slurm"
"""Which of submitit's executors: with `local` the same path runs on this machine, without Slurm."""
_UNKNOWN_S = 120.0  # how long neither sacct nor squeue may know a job that has left no result
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d\d):\d\d")


@dataclass(frozen=True, slots=True)
class Slurm:
    """Where and how jobs are submitted.

    Attributes:
        out: the grid's folder, absolute; every node sees it.
        resources: what each cell asks for.
        limit: cells at a time; None: all.
        partition: Slurm's partition; None: its default one.
        minutes: time limit of a job; one that reaches it, or is preempted, is queued again and goes on.
        extra: further options of sbatch.
    """

    out: Path
    resources: Resources
    limit: int | None
    partition: str | None = None
    minutes: int = 24 * 60
    extra: Mapping[str, str | bool] = field(default_factory=dict)

    @property
    def record(self) -> Path:
        """The file that names the jobs."""
        return self.out / ROOM / "slurm.json"


@dataclass(frozen=True, slots=True)
class CellTask:
    """What a job runs. Before its time is up, or when it is preempted, submitit asks for a `checkpoint`, and queues that again."""

    ticket: Ticket

    def __call__(self) -> Outcome:
        """Run the cell."""
        return attempts.run_shared(self.ticket)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same again: training goes on from its last checkpoint. It is no lost node, so attempts are counted anew."""
        from submitit.helpers import DelayedSubmission

        attempts.submit(self.ticket)
        return DelayedSubmission(self)


def minutes_of(text: str) -> int:
    """Read a time limit as Slurm writes it: `MINUTES`, `HH:MM:SS` or `D-HH:MM:SS`.

    Raises:
        ValueError: it is none.
    """
    found = _TIME.fullmatch(text)
    minutes = int(text) if text.isascii() and text.isdigit() else 0
    if found:
        minutes = (int(found["days"] or 0) * 24 + int(found["hours"])) * 60 + int(found["minutes"])
    if minutes < 1:
        raise ValueError(text)
    return minutes


def make_executor(slurm: Slurm) -> submitit.Executor:
    """An executor of submitit with the parameters set.

    Raises:
        UserError: submitit is not installed, there is no Slurm here, or it does not know a parameter.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise UserError("--executor slurm needs submitit, which is not installed: pip install 'mr1-bench[cluster]'") from None
    need = slurm.resources
    common: dict[str, Any] = {"timeout_min": slurm.minutes, "cpus_per_task": need.cpus, "nodes": 1, "tasks_per_node": 1}
    common |= {"gpus_per_node": need.gpus} if need.gpus else {}
    own: dict[str, Any] = {"slurm_additional_parameters": {"requeue": True, **slurm.extra}, "slurm_signal_delay_s": 120}
    own |= {"slurm_partition": slurm.partition} if slurm.partition else {}
    own |= {"slurm_array_parallelism": slurm.limit} if slurm.limit else {}
    memory = {"mem_gb": need.memory_gib} if need.memory_gib else {}
    try:
        executor = submitit.AutoExecutor(slurm.out / ROOM / "jobs" / "%j", cluster=KIND)
        executor.update_parameters(name=f"mr1-{slurm.out.name}", **common, **memory, **own)
    except (RuntimeError, ValueError, NameError) as error:
        raise UserError(
            f"Slurm cannot be used here: {str(error).splitlines()[0]}; run this on a machine that has sbatch and srun"
        ) from None
    return executor


def still_running(slurm: Slurm) -> frozenset[str]:
    """Cells that jobs of an earlier start are still at, or wait in the queue for."""
    jobs = _recorded(slurm)
    return frozenset(name for name, job in jobs.items() if not _is_over(job))


def run_cells(slurm: Slurm, executor: submitit.Executor, jobs: Sequence[Job], progress: Progress) -> Iterator[Ended]:
    """Submit cells, but for those that an earlier start's jobs are at; gives each as it ends. No failure of a cell stops another.

    Args:
        slurm: where.
        executor: as `make_executor` gives it.
        jobs: the cells.
        progress: is told what happens.

    Raises:
        UserError: Slurm takes no job, or a node cannot run any cell.
    """
    held = still_running(slurm)
    recorded = _recorded(slurm)
    running = {name: job for name, job in recorded.items() if name in held and name in {one.name for one in jobs}}
    running |= _submit(slurm, executor, [job for job in jobs if job.name not in running])
    waiting = set(running)
    lost = _Lost()
    try:
        while running:
            for name in [name for name in waiting if attempts.has_begun(slurm.out, name)]:
                waiting.discard(name)
                progress.started(name)
            for name, job in list(running.items()):
                if _is_over(job):
                    ended = _ended(name, job)
                elif lost.has(job):
                    ended = Ended(name, "failed", f"Slurm does not know its job {job.job_id} any more; it has left no result", 0.0, 0.0)
                else:
                    continue
                del running[name]
                attempts.withdraw(slurm.out, name)
                yield ended
            time.sleep(TICK_S)
            progress.tick()
    finally:
        if running:
            ids = " ".join(job.job_id for job in running.values())
            print(f"\njobs go on in the queue ({ids}); the same command waits for them, `scancel {ids}` ends them", file=sys.stderr)


def _submit(slurm: Slurm, executor: submitit.Executor, jobs: Sequence[Job]) -> dict[str, submitit.Job[Outcome]]:
    """Submit cells as one array.

    The claims are written before: should this process end before the ids are, the next start submits again, and the jobs that nobody knows
    of end without having done anything.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if not jobs:
        return {}
    tickets = [attempts.make_ticket(job, slurm.out, max(1, slurm.resources.cpus)) for job in jobs]
    for ticket in tickets:
        attempts.submit(ticket)
    try:
        with executor.batch():
            submitted = [executor.submit(CellTask(ticket)) for ticket in tickets]
    except (FailedJobError, FailedSubmissionError, OSError) as error:  # what sbatch has to say comes last
        raise UserError(f"Slurm took no job: {str(error).strip().splitlines()[-1]}") from None
    found = {job.name: handle for job, handle in zip(jobs, submitted, strict=True)}
    old = records.read_json(slurm.record) if slurm.record.is_file() else {}
    records.write_json(slurm.record, old | {name: handle.job_id for name, handle in found.items()})
    return found


def _recorded(slurm: Slurm) -> dict[str, submitit.Job[Outcome]]:
    """The jobs of earlier starts, by cell."""
    if not slurm.record.is_file():
        return {}
    import submitit
    from submitit.local.local import LocalJob

    kind: Callable[[Path, str], submitit.Job[Outcome]] = LocalJob if KIND == "local" else submitit.SlurmJob
    return {name: kind(slurm.out / ROOM / "jobs" / "%j", number) for name, number in records.read_json(slurm.record).items()}


def _is_over(job: submitit.Job[Outcome]) -> bool:
    if KIND != "local":
        return job.done()
    if job.paths.result_pickle.is_file():
        return True
    try:  # of an earlier start's job submitit's local executor knows the number alone, which is the process's
        return os.waitpid(int(job.job_id), os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return not Path(f"/proc/{job.job_id}").exists()


class _Lost:
    """Finds jobs that Slurm has not known for a while: neither its accounting, which not every cluster has, nor its queue."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def has(self, job: submitit.Job[Outcome]) -> bool:
        """Whether a job is one of them."""
        if KIND != "slurm" or job.watcher.get_state(job.job_id, mode="cache") != "UNKNOWN":
            self._since.pop(job.job_id, None)
            return False
        now = time.monotonic()
        if now - self._since.setdefault(job.job_id, now) < _UNKNOWN_S:
            return False
        self._since[job.job_id] = now
        try:
            queue = subprocess.run(["squeue", "--noheader", "--jobs", job.job_id], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return not queue.stdout.strip() and (queue.returncode == 0 or "nvalid job id" in queue.stderr)


def _ended(name: str, job: submitit.Job[Outcome]) -> Ended:
    """How a cell's job ended."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        outcome = job.result()
    except (FailedJobError, UncompletedJobError) as error:  # an exception that is none of the cell's; ended by Slurm: memory, a node
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
        why = f"its job {job.job_id} ended without a result (state {job.state}): {lines[0]}; logs in {job.paths.folder}"
        return Ended(name, "failed", why, 0.0, 0.0)
    if outcome.ended is None:
        raise UserError(outcome.refused)
    return outcome.ended
