"""`reproduce-tables --executor slurm`: what submitit hands to sbatch; and its own local executor, the same path without Slurm."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mr1_bench import cli, records
from mr1_bench.errors import UserError
from mr1_bench.reports import attempts, executor_slurm
from mr1_bench.reports.executor_slurm import Slurm, make_executor, minutes_of, run_cells, still_running
from mr1_bench.reports.preset import Resources, find_preset
from mr1_bench.reports.workers import Ended, Job
from tests.clusters import below, command, last_step, running_cells
from tests.test_reproduce import DRIVER, PRESET, TRAINED, arguments, rows, wait_for

pytestmark = pytest.mark.scale
STEPS = 40
LOCAL = """import sys
from mr1_bench.reports import executor_slurm
from tests.processes import is_running
executor_slurm.KIND = "local"
executor_slurm.ask_queue = lambda ids: {one: "RUNNING" if is_running(int(one)) else "COMPLETED" for one in ids}
"""
ONE = DRIVER.replace(f'in ("base", "{TRAINED}")', f'== "{TRAINED}"').replace("import sys\n", LOCAL)


class Quiet:
    def started(self, name):
        pass

    def tick(self):
        pass


def job(out, name):
    folder = out / "cells" / name
    return Job(name, (), ("tasks",), str(folder / "run.json"), str(folder / "log.txt"))


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Programs that answer as Slurm's do, and keep what they are asked: none of it is here."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def answer(name, text):
        (programs / name).write_text(f"#!/bin/sh\nprintf '%s\\n' \"$0 $*\" >> {tmp_path}/asked\n{text}\n")
        (programs / name).chmod(0o755)

    answer("srun", "exit 1")
    answer("sbatch", f"cp \"$1\" {tmp_path}/script; echo 'Submitted batch job 42'")
    answer("squeue", "")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return answer


def test_array_is_submitted_with_what_a_cell_declares(queue, tmp_path):
    need = find_preset("paper-2b").resources
    slurm = Slurm(tmp_path / "grid", need, 3, "gpu", minutes_of("1-12:30:00"), {"account": "lab", "exclusive": True})
    found = executor_slurm._submit(slurm, make_executor(slurm), [job(slurm.out, "a"), job(slurm.out, "b")])
    script = (tmp_path / "script").read_text()
    for line in (
        "#SBATCH --array=0-1%2",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=2190",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=32GB",
        "#SBATCH --account=lab",
        "#SBATCH --exclusive",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --job-name=mr1-grid",
    ):
        assert line in script.splitlines(), script
    assert f"-u -m submitit.core._submit {slurm.out}/.cluster/jobs/%j" in script
    assert {name: handle.job_id for name, handle in found.items()} == {"a": "42_0", "b": "42_1"}
    assert records.read_json(slurm.record) == {"a": "42_0", "b": "42_1"}
    submitted = {path.name for path in (slurm.out / ".cluster" / "jobs").glob("*/*_submitted.pkl")}
    assert submitted == {"42_0_submitted.pkl", "42_1_submitted.pkl"}
    assert not attempts.has_begun(slurm.out, "a")
    # The next start finds them in the queue, as long as Slurm does not say that they have ended; and forgets those that have.
    for states in ("PENDING RUNNING", "SUSPENDED PREEMPTED", "NODE_FAIL REQUEUED"):
        queue("squeue", "printf '42_0 %s\\n42_1 %s\\n' " + states)
        assert still_running(slurm) == {"a", "b"}
    queue("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert still_running(slurm) == {"a", "b"}
    queue("squeue", "printf '42_0 RUNNING\\n42_1 CANCELLED\\n'")
    assert still_running(slurm) == {"a"}
    assert records.read_json(slurm.record) == {"a": "42_0"}
    asked = (tmp_path / "asked").read_text()
    assert "squeue --noheader --array --states=all --format=%i %T --jobs=42\n" in asked


def test_job_that_slurm_does_not_know_any_more_has_failed(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(executor_slurm, "_UNKNOWN_S", 0.0)
    slurm = Slurm(tmp_path / "grid", Resources(1, 0, 0), None)
    for submissions in (1, 2):  # the next start has it run again
        assert still_running(slurm) == frozenset()
        (ended,) = run_cells(slurm, make_executor(slurm), [job(slurm.out, "a")], Quiet())
        assert (ended.name, ended.status) == ("a", "failed")
        assert "its job 42 ended without a result (Slurm does not know it any more)" in ended.why
        assert not attempts.claim_of(slurm.out, "a").exists()  # should it run after all, it does nothing
        assert records.read_json(slurm.record) == {}
        assert (tmp_path / "asked").read_text().count("/sbatch ") == submissions


def test_job_that_slurm_has_ended_is_waited_for_and_forgotten(queue, tmp_path, monkeypatch):
    """One that Slurm stops for a while has not ended; one that was cancelled has, and its last state is said."""
    monkeypatch.setattr(executor_slurm, "_RESULT_S", 0.0)
    monkeypatch.setattr(executor_slurm, "_ASK_S", 0.0)
    monkeypatch.setattr(executor_slurm, "TICK_S", 0.01)
    slurm = Slurm(tmp_path / "grid", Resources(1, 0, 0), None)
    states = iter(["PENDING", "SUSPENDED", "PREEMPTED", "NODE_FAIL", "RUNNING", "CANCELLED"])
    monkeypatch.setattr(Quiet, "tick", lambda self: queue("squeue", f"echo 42 {next(states, 'CANCELLED')}"))
    queue("squeue", "echo 42 PENDING")
    (ended,) = run_cells(slurm, make_executor(slurm), [job(slurm.out, "a")], Quiet())
    assert "its job 42 ended without a result (state CANCELLED)" in ended.why
    assert next(states, None) is None


def leave(slurm, content, number="42"):
    """What a job of an earlier start has left, or still may."""
    records.write_json(slurm.record, {"a": number})
    path = executor_slurm._recorded(slurm)["a"].paths.result_pickle
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(("success", content)))


def test_held_job_that_ends_before_the_cells_are_run_is_not_submitted_again(queue, tmp_path):
    slurm = Slurm(tmp_path / "grid", Resources(1, 0, 0), None)
    leave(slurm, attempts.Outcome(Ended("a", "done", "", 1.0, 1.0)))
    (ended,) = run_cells(slurm, make_executor(slurm), [job(slurm.out, "a")], Quiet(), {"a"})
    assert ended == Ended("a", "done", "", 1.0, 1.0)
    assert "sbatch" not in ((tmp_path / "asked").read_text() if (tmp_path / "asked").is_file() else "")
    assert records.read_json(slurm.record) == {}


def test_job_of_an_earlier_version_fails_its_cell_alone(queue, tmp_path, capsys):
    """Waited for, it is a failed cell; submitted by this start, it is the node that is wrong, and that ends the command."""
    slurm = Slurm(tmp_path / "grid", Resources(1, 0, 0), None)
    leave(slurm, attempts.Outcome(None, "node n1 has another version"))
    jobs = [job(slurm.out, "a")]
    (ended,) = run_cells(slurm, make_executor(slurm), jobs, Quiet(), {"a"})
    assert ended.status == "failed"
    assert "submitted by an earlier start, maybe of an earlier version of mr1-bench, and could not run: node n1" in ended.why
    with pytest.raises(UserError, match="node n1 has another version"):
        list(run_cells(slurm, make_executor(slurm), jobs, Quiet()))
    assert "jobs go on" not in capsys.readouterr().err
    assert records.read_json(slurm.record) == {}


def test_refusal_of_sbatch_is_said(queue, tmp_path):
    queue("sbatch", "echo 'sbatch: error: invalid partition specified: nowhere' >&2; exit 1")
    slurm = Slurm(tmp_path / "grid", Resources(1, 0, 0), None, "nowhere")
    with pytest.raises(UserError, match="Slurm took no job: sbatch: error: invalid partition specified: nowhere"):
        list(run_cells(slurm, make_executor(slurm), [job(slurm.out, "a")], Quiet()))


def test_without_slurm_that_is_said(tmp_path):
    with pytest.raises(UserError, match=r"Slurm cannot be used here: .*; run this on a machine that has sbatch and srun"):
        make_executor(Slurm(tmp_path, Resources(1, 0, 0), None))


@pytest.mark.parametrize(("text", "minutes"), [("90", 90), ("01:30:00", 90), ("2-01:00:30", 2940)])
def test_time_limits_are_slurms(text, minutes):
    assert minutes_of(text) == minutes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slurm-time", "90"], "--slurm-time means nothing with --executor local"),
        (["--executor", "slurm", "--collect"], "--collect means nothing with --executor slurm"),
        (["--executor", "slurm", "--slurm-time", "90:00"], "--slurm-time 90:00: expected MINUTES, HH:MM:SS"),
        (["--executor", "slurm", "--slurm-arg", "=x"], "expected KEY=VALUE"),
        (["--executor", "ray", "--cell-cpus", "0"], "--cell-cpus 0: at least 1 is needed"),
    ],
)
def test_bad_usage_is_one_line_and_nothing_is_made(words, message, tmp_path, capsys):
    assert cli.main(["reproduce-tables", "--preset", "smoke", "--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_missing_package_is_named(executor, package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["reproduce-tables", "--preset", "smoke", "--out", str(tmp_path / "out"), "--executor", executor]) == 2
    assert "pip install 'mr1-bench[cluster]'" in capsys.readouterr().err


def test_command_is_killed_and_its_job_preempted_and_there_is_one_job(tmp_path, tiny_checkpoint, monkeypatch):
    """On submitit's local executor: the next start waits for the job of the killed one; warned by its queue, that goes on where it was."""
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path / "data"))
    out, preset = tmp_path / "out", tmp_path / "mini.toml"
    preset.write_text(PRESET.replace("steps = 6", f"steps = {STEPS}").replace("eval_every = 6", f"eval_every = {STEPS}"))
    words = [*arguments(preset, tiny_checkpoint, out), "--executor", "slurm", "--slurm-time", "20"]
    cell = out / "cells" / TRAINED

    def start(output):
        return subprocess.Popen([sys.executable, "-c", ONE, *words], stdout=output, stderr=output, text=True)

    def step():
        return last_step(cell)

    first = start(subprocess.DEVNULL)  # what it starts outlives it, and would hold a pipe open
    try:
        wait_for(lambda: step() >= 2 or first.poll() is not None)
    finally:
        first.kill()
        first.wait()
    jobs = records.read_json(out / ".cluster" / "slurm.json")
    (worker,) = running_cells(cell / "log.txt")
    second = start(subprocess.PIPE)
    try:
        (parent,) = (pid for pid in below(int(jobs[TRAINED])) if "submitit.core._submit" in command(pid))
        os.kill(parent, signal.SIGUSR2)
        assert step() < STEPS, "the warning came too late to test anything"
        _, said = second.communicate(timeout=300)
    finally:
        second.kill()
    assert second.returncode == 0, said
    assert f"wait for {TRAINED}: its job of an earlier start is in the queue, or runs" in said
    assert f"{TRAINED} done" in said
    assert records.read_json(out / ".cluster" / "slurm.json") == {}
    assert len(list((out / ".cluster" / "jobs").glob("[0-9]*"))) == 1
    assert (cell / "log.txt").read_text().count("$ mr1-bench train grpo") == 2
    assert [row["step"] for row in rows(cell / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert len(list((cell / "eval").glob("*/run.json"))) == 1
    assert not Path(f"/proc/{worker}").exists()
