"""A Ray cluster of several node processes on this machine, for tests, and what they look at in it."""

import json
import os
import shutil
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

from tests.processes import children, is_running

STORE = 80 * 2**20  # bytes of object store a node, near Ray's least
SETTINGS = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 10}


@contextmanager
def ray_cluster(patch, nodes):
    """A head without CPUs, and nodes with one each; nothing of it is left at the end. Gives the cluster and the nodes."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # the paths of Ray's sockets have to be short
    (Path(folder) / "ray").mkdir()
    # Ray gives its workers way to all else by default, which on a busy machine stops them.
    for name, value in {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}.items():
        patch.setenv(name, value)
    patch.delenv("RAY_ADDRESS", raising=False)
    from ray.cluster_utils import Cluster

    common = {"include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": SETTINGS, **common})
    try:
        added = [cluster.add_node(num_cpus=1, **common) for _ in range(nodes)]
        yield cluster, added
    finally:
        started = below(os.getpid())
        cluster.shutdown()
        for pid in started:
            if is_running(pid) and ("ray::" in command(pid) or "site-packages/ray/" in command(pid)):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def below(pid):
    """Every process that a process has started, and theirs."""
    found = children(pid)
    return [*found, *(one for child in found for one in below(child))]


def command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def running_cells(log):
    """The worker processes that write a cell's log, on whichever node."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(path.parent.name)
        try:
            if "mr1_bench.reports.workers" in path.read_text() and Path(f"/proc/{pid}/fd/1").readlink() == log:
                found.append(pid)
        except OSError:
            continue
    return found


def last_step(cell):
    """The last step in a cell's metrics, which may be written to at this moment; 0: none yet."""
    path = cell / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def kill_node(node):
    """End a node as a power cut does: its raylet and all below it."""
    raylet = node.all_processes["raylet"][0].process.pid
    for pid in [raylet, *below(raylet)]:
        os.kill(pid, signal.SIGKILL)
