"""Runs cells as jobs of a Slurm array, through submitit; the jobs outlive this command, and its next start waits for them again.

The signature is that of `workers.run_cells`, behind what is particular to Slurm. Which job is at which cell stands in a file of the grid's
folder, which every node has to see. It must not know what cells are for.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
"""Which of submitit's executors."""
_RUNS = frozenset({"PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING"})
_AGAIN = frozenset({"REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT", "NODE_FAIL", "PREEMPTED"})
"""Slurm's states of a job that will run again; the last two may be an end too, and leave the queue within minutes then."""
_EARLIER = "its job was submitted by an earlier start, maybe of an earlier version of mr1-bench, and could not run"
_ASK_S = 15.0  # between two questions to the queue
_RESULT_S = 60.0  # for the result of a job that has ended to show: network file systems take some time
_UNKNOWN_S = 120.0  # how long the queue may not know a job that has left no result
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

        attempts.renew(self.ticket)
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
    """Cells that jobs of an earlier start are still at, or wait in the queue for; forgets the others."""
    jobs = _recorded(slurm)
    queue = _Queue()
    queue.look(jobs.values())
    held = frozenset(name for name, job in jobs.items() if not _has_result(job) and queue.may_run(job))
    _forget(slurm, jobs.keys() - held)
    return held


def run_cells(
    slurm: Slurm, executor: submitit.Executor, jobs: Sequence[Job], progress: Progress, held: Collection[str] = ()
) -> Iterator[Ended]:
    """Submit cells, but for those that an earlier start's jobs are at; gives each as it ends. No failure of a cell stops another.

    Args:
        slurm: where.
        executor: as `make_executor` gives it.
        jobs: the cells.
        progress: is told what happens.
        held: as `still_running` gave it before the cells were looked at; what has ended since has its result read.

    Raises:
        UserError: Slurm takes no job, or a node cannot run any cell.
    """
    recorded = _recorded(slurm)
    running = {job.name: recorded[job.name] for job in jobs if job.name in held}
    running |= _submit(slurm, executor, [job for job in jobs if job.name not in held])
    waiting = set(running)
    queue = _Queue()
    try:
        while running:
            for name in [name for name in waiting if attempts.has_begun(slurm.out, name)]:
                waiting.discard(name)
                progress.started(name)
            queue.look(running.values())
            for name, job in list(running.items()):
                if _has_result(job):
                    outcome = _outcome(name, job)
                elif queue.is_gone(job):
                    outcome = Outcome(_without_result(name, job, f"ended without a result ({queue.said(job)})"))
                else:
                    continue
                del running[name]
                attempts.withdraw(slurm.out, name)
                _forget(slurm, {name})
                if outcome.ended is None and name not in held:
                    raise UserError(outcome.refused)
                yield outcome.ended or Ended(name, "failed", f"{_EARLIER}: {outcome.refused}", 0.0, 0.0)
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

    return {name: submitit.SlurmJob(slurm.out / ROOM / "jobs" / "%j", number) for name, number in records.read_json(slurm.record).items()}


def _forget(slurm: Slurm, names: Collection[str]) -> None:
    """Take cells out of the record of jobs: theirs have ended, or are lost."""
    if names:
        records.write_json(slurm.record, {name: number for name, number in records.read_json(slurm.record).items() if name not in names})


def _has_result(job: submitit.Job[Outcome]) -> bool:
    return job.paths.result_pickle.is_file()


def _outcome(name: str, job: submitit.Job[Outcome]) -> Outcome:
    """What a cell's job has left."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return job.result()
    except (FailedJobError, UncompletedJobError) as error:  # an exception that is none of the cell's, or its time is up
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
        return Outcome(_without_result(name, job, f"failed: {lines[-1] if lines else type(error).__name__}"))


def _without_result(name: str, job: submitit.Job[Outcome], how: str) -> Ended:
    return Ended(name, "failed", f"its job {job.job_id} {how}; logs in {job.paths.folder}", 0.0, 0.0)


class _Queue:
    """What Slurm says of jobs, asked now and then for all at once. Where it does not answer, jobs count as running."""

    def __init__(self) -> None:
        self._asked = float("-inf")
        self._states: Mapping[str, str] | None = None
        self._last: dict[str, str] = {}
        self._since: dict[str, float] = {}

    def look(self, jobs: Iterable[submitit.Job[Outcome]]) -> None:
        """Ask, if it is time to."""
        ids = [job.job_id for job in jobs]
        now = time.monotonic()
        if not ids or now - self._asked < _ASK_S:
            return
        self._states, self._asked = ask_queue(ids), now
        if self._states is None:
            self._since.clear()
            return
        self._last |= self._states
        for number in ids:
            if self._states.get(number) in _RUNS | _AGAIN:
                self._since.pop(number, None)
            else:
                self._since.setdefault(number, now)

    def may_run(self, job: submitit.Job[Outcome]) -> bool:
        """Whether a job is in the queue, or runs, as far as can be said."""
        return self._states is None or job.job_id not in self._since

    def is_gone(self, job: submitit.Job[Outcome]) -> bool:
        """Whether a job that has left no result will leave none: it has ended, or is not in the queue, for a while."""
        since = self._since.get(job.job_id)
        limit = _RESULT_S if job.job_id in (self._states or {}) else _UNKNOWN_S
        return since is not None and time.monotonic() - since >= limit

    def said(self, job: submitit.Job[Outcome]) -> str:
        """What Slurm said of a job last."""
        known = job.job_id in (self._states or {})
        last = self._last.get(job.job_id)
        return f"state {last}" if known else "Slurm does not know it any more" + (f"; its last state was {last}" if last else "")


def ask_queue(ids: Collection[str]) -> Mapping[str, str] | None:
    """The states of those jobs that Slurm's queue lists, ended ones for some minutes too; None where it does not answer."""
    arrays = ",".join(sorted({number.partition("_")[0] for number in ids}))
    words = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={arrays}"]
    try:
        queue = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if queue.returncode != 0 and "nvalid job id" not in queue.stderr:
        return None
    return {words[0]: words[1] for line in queue.stdout.splitlines() if len(words := line.split()) == 2}
