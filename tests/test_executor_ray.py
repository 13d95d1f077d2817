"""`reproduce-tables --executor ray` on a real cluster of node processes: one is lost, the command is killed, folders are not shared."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from mr1_bench import records
from mr1_bench.errors import UserError
from mr1_bench.reports import executor_ray
from mr1_bench.reports.executor_ray import RayCluster
from mr1_bench.reports.grid import make_grid
from mr1_bench.reports.preset import Resources, read_preset
from mr1_bench.reports.workers import Job
from tests.clusters import below, kill_node, last_step, ray_cluster, running_cells
from tests.processes import is_running
from tests.test_reproduce import PRESET, TRAINED, arguments, rows, wait_for

STEPS = 40
SMALL = Resources(1, 0, 0.5)

# Two cells are enough to lose one; the report is the real one.
pytestmark = pytest.mark.scale
DRIVER = f"""
import sys
from mr1_bench import cli
from mr1_bench.reports import reproduce
whole = reproduce.make_grid
reproduce.make_grid = lambda *args: tuple(cell for cell in whole(*args) if cell.name in ("base", "{TRAINED}"))
sys.exit(cli.main(["reproduce-tables", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MR1_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        with ray_cluster(patch, nodes=2) as found:
            yield found


class Quiet:
    def started(self, name):
        pass

    def tick(self):
        pass


def run(cluster, out, jobs, **kwargs):
    with executor_ray.connect(cluster[0].address):
        return {one.name: one for one in executor_ray.run_cells(RayCluster(out, SMALL, None, **kwargs), jobs, Quiet())}


def evaluation(out, name, model):
    folder = out / "cells" / name
    words = ("eval", "--model", str(model), "--tasks", "mr1_vc_synth", "--out", str(folder), "--limit", "1", "--device", "cpu")
    return Job(name, (), words, str(folder / "run.json"), str(folder / "log.txt"))


def test_cells_are_sent_back_and_one_that_fails_takes_no_other_with_it(cluster, tmp_path, tiny_checkpoint):
    out = tmp_path / "out"
    (tmp_path / "mini.toml").write_text(PRESET)
    (cell,) = (one for one in make_grid(read_preset(tmp_path / "mini.toml"), out, str(tiny_checkpoint)) if one.name == TRAINED)
    trained = Job(TRAINED, cell.train, cell.evaluate, str(cell.folder / "run.json"), str(cell.folder / "log.txt"))
    ended = run(cluster, out, [evaluation(out, "broken", tmp_path / "nowhere"), trained], collect=True)
    assert {name: one.status for name, one in ended.items()} == {"broken": "failed", TRAINED: "done"}, ended[TRAINED].why
    assert "nowhere: no such folder" in ended["broken"].why
    assert "no such folder" in (out / "cells" / "broken" / "log.txt").read_text()
    assert records.read_json(cell.folder / "run.json")["status"] == "finished"
    (record,) = (cell.folder / "eval").glob("*/run.json")
    evaluated = records.read_json(record)
    records.check_eval_record(evaluated, record)
    assert evaluated["model"]["checkpoint_sha256"] == records.checkpoint_sha256(cell.folder / "last")
    assert not [path for path in Path(tempfile.gettempdir()).glob("mr1-cell-*") if (path / TRAINED).is_dir()]
    assert sorted(path.name for path in (out / ".cluster").rglob("*")) == ["claims", "parcels"]


def test_folder_that_is_not_shared_is_said_at_once(cluster, tmp_path, monkeypatch):
    """The same path names another folder in every process that runs elsewhere: what a folder that is not shared is on another machine."""
    monkeypatch.chdir(tmp_path)
    out = Path("/proc/self/cwd/out")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"does not see /proc/self/cwd/out: .* add --collect") as error:
        run(cluster, out, [evaluation(out, "any", tmp_path)], collect=False)
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 60


def test_resources_that_no_node_has_are_said(cluster, monkeypatch):
    monkeypatch.setattr(executor_ray, "_PATIENCE_S", 1.0)
    with (
        executor_ray.connect(cluster[0].address),
        pytest.raises(UserError, match=r"declares \(1 CPU, 8 GPU, 0.5 GiB\); the nodes have: .*1 CPU, 0 GPU"),
    ):
        executor_ray.count_slots(Resources(1, 8, 0.5))
    with executor_ray.connect(cluster[0].address):
        assert executor_ray.count_slots(SMALL) == 2


def test_cluster_that_is_not_there_is_said():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(UserError, match=f"no Ray cluster answers at {address}"), executor_ray.connect(address):
        pass
    assert time.monotonic() - began < 60


def test_what_listens_and_is_no_cluster_is_said(monkeypatch):
    """Ray itself asks it again and again."""
    monkeypatch.setattr(executor_ray, "_HEAD_S", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"no Ray cluster answers at {address} \(what listens there"), executor_ray.connect(address):
            pass


def test_node_that_does_not_answer_is_named_after_a_while(cluster, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / ".cluster").mkdir(parents=True)
    with executor_ray.connect(cluster[0].address):
        nodes = executor_ray._Nodes(RayCluster(out, SMALL, None, False))
        with monkeypatch.context() as patch:
            patch.setattr(executor_ray, "_ANSWER_S", 0.0)
            nodes.check(executor_ray._nodes())  # asked again later
            patch.setattr(executor_ray, "_SILENT_S", 0.0)
            with pytest.raises(UserError, match=r"node [0-9.]+ does not answer \(GetTimeoutError\); take it out"):
                nodes.check(executor_ray._nodes())
        assert not list((out / ".cluster").glob("token-*"))
        nodes.check(executor_ray._nodes())
        assert nodes._good == {node["NodeID"] for node in executor_ray._nodes()}
        assert not list((out / ".cluster").iterdir())


def test_grid_outlives_its_command_and_one_of_its_nodes(cluster, tmp_path, tiny_checkpoint):
    """The command is killed, and its cells stop; begun again, a node is lost: nothing is lost or counted twice, and there is a report."""
    out, preset = tmp_path / "out", tmp_path / "mini.toml"
    preset.write_text(PRESET.replace("steps = 6", f"steps = {STEPS}").replace("eval_every = 6", f"eval_every = {STEPS}"))
    words = [*arguments(preset, tiny_checkpoint, out), "--executor", "ray", "--address", cluster[0].address, "--cell-memory-gib", "0.5"]
    words[words.index("--workers") + 1] = "2"
    cell = out / "cells" / TRAINED

    def start(output):
        return subprocess.Popen([sys.executable, "-c", DRIVER, *words], stdout=output, stderr=output, text=True)

    def step():
        return last_step(cell)

    first = start(subprocess.DEVNULL)
    try:
        wait_for(lambda: step() >= 2 or first.poll() is not None)
    finally:
        first.kill()
        first.wait()
    wait_for(lambda: not running_cells(cell / "log.txt"), 30)
    stopped = step()
    assert 2 <= stopped < STEPS, "the kill came too late to test anything"

    second = start(subprocess.PIPE)
    try:
        wait_for(lambda: step() > stopped or second.poll() is not None)
        (pid,) = running_cells(cell / "log.txt")
        (node,) = (one for one in cluster[1] if pid in below(one.all_processes["raylet"][0].process.pid))
        kill_node(node)
        lost = step()
        printed, said = second.communicate(timeout=300)
    finally:
        second.kill()
    assert not is_running(pid)
    assert second.returncode == 0, said
    assert stopped < lost < STEPS, "the kill came too late to test anything"
    assert f"go on {TRAINED}: training is at step" in said
    assert [row["step"] for row in rows(cell / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert (cell / "log.txt").read_text().count("$ mr1-bench train grpo") == 3
    for name in ("base", TRAINED):
        assert len(list((out / "cells" / name / "eval").glob("*/run.json"))) == 1
        assert records.read_json(out / "cells" / name / "cell.json")["status"] == "done"
    assert (out / "report" / "index.html").is_file(), printed
    assert not (out / "replaced").exists()
    assert not list((out / ".cluster" / "claims").iterdir())
    assert [path.name for path in (out / ".cluster").iterdir()] == ["claims"]


WATCHING = """
import sys, time
from mr1_bench.reports import executor_ray
from mr1_bench.reports.preset import Resources
with executor_ray.connect(sys.argv[1]):
    executor_ray.count_slots(Resources(1, 0, 0.5))
    executor_ray._HEAD_S = 15.0
    print("connected", flush=True)
    while executor_ray._nodes():
        time.sleep(0.2)
"""


def test_head_that_dies_ends_the_command_with_a_line(cluster):
    """The last test here: nothing can be done with the cluster after it."""
    command = [sys.executable, "-c", WATCHING, cluster[0].address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stdout.readline() == "connected\n"
            os.kill(cluster[0].head_node.all_processes["gcs_server"][0].process.pid, signal.SIGKILL)
            _, said = watching.communicate(timeout=60)
        finally:
            watching.kill()
    assert watching.returncode == 2, said
    assert said.strip() == "mr1-bench: the Ray cluster's head does not answer any more; the same command goes on once it does"
