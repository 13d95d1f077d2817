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

from mr1_bench.trainers import models
from mr1_bench.trainers.batches import Processing
from mr1_bench.trainers.config import GRPOConfig
from mr1_bench.trainers.items import batch_indices, open_items
from tests.launches import GRPO, LIMIT_S, SFT, complaints, finish, kill_all, ranks, rows, said, start, timeless, wait_for_step
from tests.processes import children, is_running

pytest.importorskip("trl", reason="trl is not installed")

pytestmark = pytest.mark.scale


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
    assert finish(process) == 0, said(out)
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
    (line,) = complaints(out)
    assert "was begun with 3 processes, and now there are 2" in line
    assert len(rows(out)) == 5


def test_a_process_that_dies_on_another_machine_ends_this_one_with_one_line(tmp_path):
    """Two launchers, as two machines have: the one whose process lives is not told by its own launcher."""
    out = tmp_path / "run"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = f"--nnodes 2 --nproc_per_node 1 --master_addr 127.0.0.1 --master_port {port}".split()
    flags = [*GRPO.replace("--steps 5", "--steps 500").split(), "--out", str(out)]
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


def first_long_prompt(rank: int) -> tuple[int, int]:
    """A seed and a limit of tokens: the first prompt that is too long is one of that process's, in the fourth step or later."""
    for seed in range(100):
        config = GRPOConfig(method="grpo-d", task="vc-synth", model="tiny", out=Path("unused"), device="cpu", seed=seed)
        loaded = models.load(config)
        reading, items = Processing(loaded.processor, loaded.model, config), open_items(config, "train")
        order = [items[index] for step in range(5) for index in batch_indices(len(items), 2, seed, step)]
        lengths = [reading([item]).parts[0].prompts.ids.shape[1] for item in order]
        place = lengths.index(max(lengths))
        if place >= 6 and place % 2 == rank:
            return seed, max(lengths) - 1
    raise AssertionError("there is none")


@pytest.mark.parametrize(("flags", "rank"), [(GRPO, 1), (SFT, 0)], ids=["grpo", "sft"])
def test_an_item_that_one_process_cannot_use_ends_all_of_them(tmp_path, flags, rank):
    seed, limit = first_long_prompt(rank)
    out = tmp_path / "run"
    process = start(out, f"{flags} --eval-every 0 --seed {seed} --max-prompt-tokens {limit}")
    wait_for_step(2, out, process)
    assert finish(process, 60) != 0  # within a minute
    assert any("Raise --max-prompt-tokens" in line for line in complaints(out)), said(out)
    assert (out / "last").exists()


def test_a_held_out_item_that_the_first_process_cannot_use_ends_all_of_them(tmp_path):
    """In what it has ordered from the others, who wait for it there."""
    out = tmp_path / "run"
    process = start(out, f"{GRPO} --max-prompt-tokens 73")  # the first validation item has 74, all those of step 1 have fewer
    assert finish(process, LIMIT_S / 2) != 0
    assert any("validation" in line and "has 74 tokens" in line for line in complaints(out)), said(out)
