"""Several processes of `--engine trl`, as accelerate starts them: started, watched, killed, and what they wrote."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.processes import children

LIMIT_S = 300  # a busy machine
RUN = "--engine trl --task vc-synth --model tiny --device cpu --steps 5 --prompts-per-step 2 --max-new-tokens 48"
RUN += " --eval-every 5 --eval-items 3 --save-every 2 --show-every 1 --lr 2e-4"
GRPO = f"train grpo-d {RUN} --num-generations 4 --kl-schedule linear"
SFT = f"train sft {RUN}"
DDP = "--multi_gpu --num_processes 2 --num_machines 1"
"""`--cpu` would start one process only, for accelerate leaves more to MPI; `--multi_gpu` starts them where there is no GPU too."""


def start(
    out: Path, flags: str = GRPO, *, launch: str = DDP, module: str = "mr1_bench", environment: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """Start a launch; what it prints goes to `OUT.log`."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *launch.split(), "--main_process_port", "0", "-m", module]
    with out.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [*launcher, *flags.split(), "--out", str(out)],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | (environment or {}),
        )


def said(out: Path) -> str:
    return out.with_suffix(".log").read_text()


def complaints(out: Path) -> list[str]:
    """The lines by which our command refuses or gives up."""
    return [line for line in said(out).splitlines() if line.startswith("mr1-bench:")]


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
            raise AssertionError(said(out))
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
