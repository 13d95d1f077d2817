"""Runs cells on a Ray cluster, each as a task with declared CPUs, GPUs and memory; Ray runs those of a lost node again on another.

The signature is that of `workers.run_cells`, behind what is particular to Ray. A cell runs in a process of its own beneath Ray's worker
(`attempts`), so that one that crashes is a failed cell, as on one machine, and only a lost node is a lost task. It must not know what cells
are for.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mr1_bench.errors import UserError
from mr1_bench.reports import attempts, collecting
from mr1_bench.reports.attempts import ATTEMPTS, ROOM, Outcome, Parcel
from mr1_bench.reports.preset import Resources
from mr1_bench.reports.workers import TICK_S, Ended, Job, Progress

_PATIENCE_S = 40.0
"""How long a cluster may lack a node that is large enough: at the start, or after one was lost."""
_HEAD_S = 40.0  # for the cluster's head to answer
_ANSWER_S = 40.0  # for a node to start a process and answer
_SILENT_S = 100.0  # that a node may leave questions without an answer
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A cluster that this process is connected to.

    Attributes:
        out: the grid's folder, absolute.
        resources: what each cell declares.
        limit: cells at a time; None: as many as the cluster takes.
        collect: the nodes do not share `out`; cells are sent back.
    """

    out: Path
    resources: Resources
    limit: int | None
    collect: bool

    @property
    def parcels(self) -> Path:
        """Where cells lie that are being put in place."""
        return self.out / ROOM / "parcels"


@contextmanager
def connect(address: str | None) -> Iterator[None]:
    """Connect to a cluster, and leave it at the end; its tasks end then.

    Args:
        address: `HOST:PORT`, `auto`, or None: what `RAY_ADDRESS` names, else a cluster of this machine alone, which ends too.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--executor ray needs Ray, which is not installed: pip install 'mr1-bench[cluster]'") from None
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself asks for many minutes
            socket.create_connection((host, int(port)), timeout=10).close()
            _probe(address)
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        what = " ".join(str(error).split())[:300]
        raise UserError(f"no Ray cluster answers at {address} ({what}); start one with `ray start --head`, or correct --address") from None
    try:
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Ask the head of a cluster anything, in another process, as what is no Ray may leave one waiting without end.

    Raises:
        OSError: it does not answer.
    """
    words = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check", "--address", address]
    try:
        answer = subprocess.run(words, capture_output=True, timeout=_HEAD_S, check=False)
    except subprocess.TimeoutExpired:
        raise OSError("what listens there is no Ray, or hangs") from None
    if answer.returncode != 0:
        raise OSError("what listens there is no Ray")


def count_slots(resources: Resources) -> int:
    """Cells that the cluster takes at a time; waits a while for the first node that is large enough.

    Raises:
        UserError: there is none.
    """
    watch = _Watch(resources)
    while not (slots := watch.slots(_nodes())):
        time.sleep(TICK_S)
    return slots


def run_cells(cluster: RayCluster, jobs: Sequence[Job], progress: Progress) -> Iterator[Ended]:
    """Run cells on the cluster, in their order; gives each as it ends. No failure of a cell stops another.

    Args:
        cluster: where.
        jobs: the cells.
        progress: is told what happens.

    Raises:
        UserError: a node cannot run any cell: it does not see the folder, or has another version; or no node is large enough.
    """
    import ray

    need, watch, nodes_seen = cluster.resources, _Watch(cluster.resources), _Nodes(cluster)
    options = {"num_cpus": need.cpus, "num_gpus": need.gpus, "memory": int(need.memory_gib * _GIB), "retry_exceptions": False}
    run: Any = ray.remote(attempts.run_apart if cluster.collect else attempts.run_shared).options(max_retries=ATTEMPTS - 1, **options)
    waiting = list(reversed(jobs))
    running: dict[Any, tuple[Job, str | None]] = {}
    while waiting or running:
        nodes = _nodes()
        slots = watch.slots(nodes)
        nodes_seen.check([node for node in nodes if _fits(node, need)])
        while waiting and len(running) < min(slots, cluster.limit or slots):
            job = waiting.pop()
            ticket = attempts.make_ticket(job, cluster.out, max(1, need.cpus))
            attempts.submit(ticket)
            begun = _begun(job) if cluster.collect else None
            reference = run.remote(ticket, begun) if cluster.collect else run.remote(ticket)
            running[reference] = job, None if begun is None else collecting.digest(begun)
            progress.started(job.name)
        if not running:  # no node for the moment
            time.sleep(TICK_S)
            continue
        for reference in ray.wait(list(running), timeout=TICK_S)[0]:
            job, before = running.pop(reference)
            result = _take(cluster, job, before, reference)
            attempts.withdraw(cluster.out, job.name)
            yield result
        progress.tick()


def _begun(job: Job) -> bytes | None:
    folder = Path(job.run).parent
    return collecting.pack(folder) if folder.is_dir() else None


def _take(cluster: RayCluster, job: Job, before: str | None, reference: Any) -> Ended:
    """How a cell's task ended; what it sent is put in its place."""
    import ray

    try:
        sent: Outcome | Parcel = ray.get(reference)
    except ray.exceptions.RayError as error:  # every attempt lost, or an exception that is none of the cell's
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Ended(job.name, "failed", f"Ray gave it up: {lines[-1] if lines else type(error).__name__}"[:300], 0.0, 0.0)
    outcome = sent.outcome if isinstance(sent, Parcel) else sent
    if outcome.ended is None:
        raise UserError(outcome.refused)
    if isinstance(sent, Parcel):
        dropped = collecting.place(sent.content, sent.sha256, Path(job.run).parent, before, cluster.parcels)
        if dropped:
            return Ended(job.name, "failed", dropped, outcome.ended.seconds, outcome.ended.cpu_seconds)
    return outcome.ended


def _nodes() -> list[Mapping[str, Any]]:
    """The nodes that are alive.

    Where the head does not answer, this process ends, with a line: Ray, which has no limit of its own here, ends it after a minute
    with a trace.
    """
    import ray

    found: list[Mapping[str, Any]] = []

    def ask() -> None:
        with suppress(ray.exceptions.RayError, RuntimeError, OSError):
            found.extend(ray.nodes())

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_HEAD_S)
    if not found:  # an end in order would wait for the head too
        print("\nmr1-bench: the Ray cluster's head does not answer any more; the same command goes on once it does", file=sys.stderr)
        sys.stderr.flush()
        os._exit(2)
    return [node for node in found if node["Alive"]]


def _declared(resources: Resources) -> dict[str, float]:
    found = {"CPU": float(resources.cpus), "GPU": float(resources.gpus), "memory": resources.memory_gib * _GIB}
    return {name: amount for name, amount in found.items() if amount > 0}


def _fits(node: Mapping[str, Any], resources: Resources) -> int:
    """Cells that a node takes at a time."""
    return min(int(node["Resources"].get(name, 0) // amount) for name, amount in _declared(resources).items())


class _Watch:
    """Counts what a cluster takes, and loses patience when that is nothing."""

    def __init__(self, resources: Resources) -> None:
        self._resources, self._since = resources, time.monotonic()

    def slots(self, nodes: Sequence[Mapping[str, Any]]) -> int:
        """Cells at a time, now.

        Raises:
            UserError: none, for a while.
        """
        slots = sum(_fits(node, self._resources) for node in nodes)
        if slots:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > _PATIENCE_S:
            have = "; ".join(sorted({_amounts(node["Resources"]) for node in nodes})) or "none"
            raise UserError(
                f"no node of the Ray cluster has what a cell declares ({_amounts(_declared(self._resources))}); the nodes have: {have}. "
                "Declare less with --cell-cpus, --cell-gpus and --cell-memory-gib, or add a node; the same command goes on"
            )
        return slots


def _amounts(found: Mapping[str, float]) -> str:
    return f"{found.get('CPU', 0):g} CPU, {found.get('GPU', 0):g} GPU, {found.get('memory', 0) / _GIB:.1f} GiB"


class _Nodes:
    """Asks every node once, before cells run on it, whether it sees the folder, and can be seen to; and for its version of the code."""

    def __init__(self, cluster: RayCluster) -> None:
        self._out, self._collect = cluster.out, cluster.collect
        self._since: dict[str, float] = {}
        self._good: set[str] = set()

    def check(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """Ask those that have not answered yet, all at once.

        Raises:
            UserError: one cannot run cells, or has not answered several times.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        new = [node for node in nodes if node["NodeID"] not in self._good]
        if not new:
            return
        code, began = attempts.own_code(), time.monotonic()
        tokens = {node["NodeID"]: None if self._collect else attempts.offer_token(self._out) for node in new}
        asked = []
        for node in new:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ask = ray.remote(_ask).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
            asked.append((node, ask.remote(str(self._out), tokens[node["NodeID"]], code)))
        try:
            for node, answer in asked:
                self._hear(node, answer, tokens[node["NodeID"]], began)
        finally:
            for token in filter(None, tokens.values()):
                attempts.drop_token(self._out, token)

    def _hear(self, node: Mapping[str, Any], answer: Any, token: str | None, began: float) -> None:
        """Take a node's answer to what it was asked at the time `began`."""
        import ray

        address, since = node["NodeManagerAddress"], self._since.setdefault(node["NodeID"], began)
        try:
            refused = ray.get(answer, timeout=max(0.0, began + _ANSWER_S - time.monotonic()))
        except ray.exceptions.RayTaskError as error:
            refused = f"node {address} cannot run mr1-bench: {str(error).splitlines()[-1]}"
        except ray.exceptions.RayError as error:  # lost meanwhile, or slow: asked again in the next round
            if time.monotonic() - since < _SILENT_S:
                return
            refused = f"node {address} does not answer ({type(error).__name__}); take it out of the cluster, or start its Ray anew"
        if token is not None and not refused and not attempts.is_answered(self._out, token):
            refused = f"what node {address} writes in {self._out} does not show here: share that folder, or add --collect"
        if refused:
            raise UserError(refused)
        self._good.add(node["NodeID"])


def _ask(out: str, token: str | None, code: str) -> str:
    return attempts.check_code(code) or ("" if token is None else attempts.answer_token(out, token))
