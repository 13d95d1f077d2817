"""Workers of the reproduction: a cell that fails, crashes or is killed takes no other with it; and the time that is left."""

import io
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from mr1_bench.errors import UserError
from mr1_bench.reports.grid_progress import GridProgress
from mr1_bench.reports.workers import Job, run_cells
from mr1_bench.trainers import checkpoints
from tests.processes import children, is_running


@pytest.fixture(autouse=True)
def data_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path / "data"))


class Watch:
    """A progress that kills the worker of one cell."""

    def __init__(self, doomed=""):
        self.doomed, self.names = doomed, []

    def started(self, name):
        self.names.append(name)
        deadline = time.monotonic() + 20
        while name == self.doomed and time.monotonic() < deadline:  # just after it was started a process may not have its command line yet
            for pid in children(os.getpid()):
                if "mr1_bench.reports.workers" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
                    return
            time.sleep(0.01)

    def tick(self):
        pass


def test_failing_cells_do_not_stop_the_others(tmp_path, tiny_checkpoint):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    (broken / "tokenizer.json").write_text("no json")

    def job(name, *words):
        return Job(name, (), words, str(tmp_path / name / "run.json"), str(tmp_path / f"{name}.log"))

    evaluation = ("eval", "--tasks", "mr1_vc_synth", "--limit", "1", "--device", "cpu", "--out", str(tmp_path / "out"), "--model")
    jobs = [
        job("mistake", *evaluation, str(tmp_path / "nowhere")),
        job("fine", "tasks"),
        job("crash", *evaluation, str(broken)),
        job("killed", "tasks"),
    ]
    watch = Watch("killed")
    ended = {one.name: one for one in run_cells(jobs, 1, watch)}
    assert watch.names == list(ended) == ["mistake", "fine", "crash", "killed"]
    assert {name: one.status for name, one in ended.items()} == {"mistake": "failed", "fine": "done", "crash": "failed", "killed": "failed"}
    assert "nowhere: no such folder" in ended["mistake"].why
    assert "mr1_gr_synth" in (tmp_path / "fine.log").read_text()
    assert ended["crash"].why.startswith("its process ended with code 1; its log ends: ")
    assert "Traceback" in (tmp_path / "crash.log").read_text()
    assert ended["killed"].why.startswith("its process was ended by SIGKILL")
    assert not [pid for pid in children(os.getpid()) if is_running(pid) and "reports.workers" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_training_begins_beside_what_a_grid_left_of_an_attempt_and_beside_nothing_else(tmp_path):
    """`cell.json` and the log of a cell that failed hold no result, whichever grid they are of: the folder is as good as empty."""
    (tmp_path / "cell.json").write_text('{"name": "another", "status": "failed"}')
    (tmp_path / "log.txt").touch()
    checkpoints._refuse_others(tmp_path)
    (tmp_path / "eval").mkdir()
    with pytest.raises(UserError, match=r"holds other files \(eval\)"):
        checkpoints._refuse_others(tmp_path)


def test_time_left_follows_what_was_measured():
    stream = io.StringIO()
    progress = GridProgress({"a": 10.0, "b": 10.0, "c": 10.0, "d": 10.0}, 1, stream)
    assert progress.seconds_left() == pytest.approx(40, abs=0.5)
    progress.started("a")
    progress.ended("a", 30.0)
    assert progress.seconds_left() == pytest.approx(30 * (30 + 4) / (10 + 4), abs=0.5)
    progress.ended("b", 0.1, "no luck")  # says nothing of how long a cell takes
    assert progress.seconds_left() == pytest.approx(20 * (30 + 4) / (10 + 4), abs=0.5)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("[1/4] a done in 30 s, about 73 s left")
    assert lines[1].startswith("[2/4] b failed: no luck")
