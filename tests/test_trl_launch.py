"""Several processes of `--engine trl` as accelerate starts them: killed, resumed, evaluated; and what a launch refuses."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import children, is_running

pytest.importorskip("trl", reason="trl is not installed")

pytestmark = pytest.mark.scale
LIMIT_S = 300  # a busy machine
FLAGS = "train grpo-d --engine trl --task vc-synth --model tiny --device cpu --steps 5 --prompts-per-step 2 --num-generations 4"
FLAGS += " --max-new-tokens 48 --eval-every 5 --eval-items 3 --save-every 2 --show-every 1 --lr 2e-4 --kl-schedule linear"


def command(out: Path) -> list[str]:
    """`--cpu` would start one process only, for accelerate leaves more to MPI; `--multi_gpu` starts them where there is no GPU too."""
    launcher = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 -m mr1_bench"
    return [sys.executable, "-m", *launcher.split(), *FLAGS.split(), "--out", str(out)]


def start(out: Path) -> subprocess.Popen:
    with out.with_suffix(".log").open("w") as log:
        return subprocess.Popen(command(out), stdout=log, stderr=log, start_new_session=True)


def rows(out: Path, name: str = "metrics") -> list[dict]:
    path = out / f"{name}.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def timeless(out: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if not key.startswith(("time_", "tokens_per_s"))} for row in rows(out)]


def wait_for_step(step: int, out: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + LIMIT_S
    while not any(row["step"] >= step for row in rows(out)):
        if process.poll() is not None or time.monotonic() > end:
            finish(process, 0.1)
            raise AssertionError(out.with_suffix(".log").read_text())
        time.sleep(0.05)


def ranks(launcher: int) -> dict[int, int]:
    """Process ids of a launch, by rank; the launcher may have started another one."""
    found = {}
    for pid in children(launcher):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        rank = next((int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")), None)
        found |= ranks(pid) if rank is None else {rank: pid}
    return found


def kill_all(launcher: subprocess.Popen) -> None:
    """At once, so that none can do anything more; the ranks have sessions of their own."""
    pids = list(ranks(launcher.pid).values())
    os.killpg(launcher.pid, signal.SIGKILL)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    launcher.wait(60)


def finish(process: subprocess.Popen, limit: float = LIMIT_S) -> int:
    try:
        return process.wait(limit)
    finally:
        if process.poll() is None:
            kill_all(process)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run of two processes that was killed twice: one process of it, then all."""
    out = tmp_path_factory.mktemp("launch") / "run"
    process = start(out)
    wait_for_step(3, out, process)
    started = ranks(process.pid)
    os.kill(started[1], signal.SIGKILL)
    assert finish(process, 60) != 0  # within a minute, and nobody is left
    assert not any(is_running(pid) for pid in started.values())
    lost = timeless(out)

    process = start(out)
    wait_for_step(4, out, process)
    kill_all(process)
    assert timeless(out)[: len(lost)] == lost  # the step that was lost was taken again as it had been

    process = start(out)
    assert finish(process) == 0, out.with_suffix(".log").read_text()
    return out


def test_a_killed_run_of_two_processes_goes_on_to_its_end(resumed):
    run = json.loads((resumed / "run.json").read_text())
    assert (run["status"], run["identity"]["processes"], run["last"]) == ("finished", 2, "checkpoints/step-000005")
    assert [row["step"] for row in rows(resumed)] == [1, 2, 3, 4, 5]
    assert [row["beta"] for row in rows(resumed)] == pytest.approx([0, 0.01, 0.02, 0.03, 0.04])
    assert all(row["grad_norm"] > 0 for row in rows(resumed)) and rows(resumed)[-1]["kl"] > 0


def test_lmms_eval_loads_the_result(resumed, tmp_path):
    """... and finds what the two processes, one of them with an item more, have found together."""
    flags = ["--tasks", "mr1_vc_synth", "--limit", "3", "--device", "cpu", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "mr1_bench", "eval", "--model", str(resumed / "last"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.rglob("run.json")
    (accuracy,) = (row["accuracy"] for row in rows(resumed, "evals") if (row["step"], row["split"]) == (5, "test"))
    assert json.loads(record.read_text())["tasks"]["mr1_vc_synth"]["metrics"]["acc"]["value"] == pytest.approx(accuracy)


def test_another_number_of_processes_is_refused_by_all(resumed, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(resumed, out, symlinks=True)
    run = json.loads((out / "run.json").read_text())
    run["identity"]["processes"] = 3
    (out / "run.json").write_text(json.dumps(run))
    started = time.monotonic()
    assert finish(start(out)) != 0
    assert time.monotonic() - started < LIMIT_S / 2
    said = [line for line in out.with_suffix(".log").read_text().splitlines() if line.startswith("mr1-bench:")]
    assert len(said) == 1 and "was begun with 3 processes, and now there are 2" in said[0]
    assert len(rows(out)) == 5


def test_a_process_that_dies_on_another_machine_ends_this_one_with_one_line(tmp_path):
    """Two launchers, as two machines have: the one whose process lives is not told by its own launcher."""
    out = tmp_path / "run"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = f"--nnodes 2 --nproc_per_node 1 --master_addr 127.0.0.1 --master_port {port}".split()
    flags = [*FLAGS.replace("--steps 5", "--steps 500").split(), "--out", str(out)]
    machines = []
    for rank in (0, 1):
        launcher = [sys.executable, "-m", "torch.distributed.run", *place, "--node_rank", str(rank), "-m", "mr1_bench"]
        with (tmp_path / f"{rank}.log").open("w") as log:
            machines.append(subprocess.Popen([*launcher, *flags], stdout=log, stderr=log, start_new_session=True))
    here, there = machines
    try:
        deadline = time.monotonic() + LIMIT_S
        while not (out / "last" / "run.json").exists():
            assert here.poll() is None and time.monotonic() < deadline, (tmp_path / "0.log").read_text()
            time.sleep(0.1)
        for pid in [*children(there.pid), there.pid]:
            os.kill(pid, signal.SIGKILL)
        assert here.wait(timeout=60) != 0
        (line,) = [line for line in (tmp_path / "0.log").read_text().splitlines() if line.startswith("mr1-bench:")]
        assert "another process of this run is gone" in line
        assert (out / "last" / "run.json").exists()
    finally:
        for machine in machines:
            for pid in [*children(machine.pid), machine.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
