"""The log of a run: rows survive kills and are dropped to the restored step; the bar and the optional sinks show what is logged."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import resource
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from mr1_bench.errors import UserError
from mr1_bench.tasks import harness
from mr1_bench.trainers import metrics
from mr1_bench.trainers.metrics import MetricsLog, read_rows

ROW = {"reward": 1.25, "accuracy": 0.3, "format": 0.95, "kl": None, "beta": 0.0, "loss": -0.1, "tokens_per_s": 1234.5, "time_step": 0.1}


def row(step: int, **changes: Any) -> dict[str, Any]:
    return {"step": step, **ROW, **changes}


def write(out: Path, steps: range) -> MetricsLog:
    log = MetricsLog(out)
    log.truncate_after(steps.start - 1)
    for step in steps:
        log.append(row(step))
        log.append_eval({"step": step, "split": "validation", "accuracy": step / 100})
        log.append_eval({"step": step, "split": "test", "accuracy": step / 200})
        log.append_sample({"step": step, "text": f"<think>\u2028 {step} \ud83d</think>"})
    return log


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_a_row_is_one_line_on_disk_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append(row(1))
    lines = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 2 and lines[1] == b""
    assert json.loads(lines[0]) == row(1)
    assert log.rows == [row(1)]


@pytest.mark.parametrize("restored", [0, 3, 5])
def test_a_resumed_log_is_bitwise_the_uninterrupted_one(tmp_path: Path, restored: int) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for out in (whole, resumed):
        out.mkdir()
    straight = write(whole, range(1, 9))
    write(resumed, range(1, 6))
    with (resumed / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "rew')  # killed in the middle of a line
    again = write(resumed, range(restored + 1, 9))
    assert contents(resumed) == contents(whole)
    assert again.rows == straight.rows and len(again.rows) == 8


@given(cut=st.integers(0, 400), restored=st.integers(0, 4))
def test_any_cut_leaves_whole_rows_up_to_the_restored_step(tmp_path_factory: pytest.TempPathFactory, cut: int, restored: int) -> None:
    out = tmp_path_factory.mktemp("cut")
    lines = [json.dumps(row(step)).encode() + b"\n" for step in range(1, 4)]
    cut = min(cut, sum(map(len, lines)))
    (out / "metrics.jsonl").write_bytes(b"".join(lines)[:cut])
    whole = sum(sum(map(len, lines[: count + 1])) <= cut for count in range(3))
    assert len(read_rows(out / "metrics.jsonl")) == whole
    log = MetricsLog(out)
    log.truncate_after(restored)
    assert (out / "metrics.jsonl").read_bytes() == b"".join(lines[: min(whole, restored)])
    assert [one["step"] for one in log.rows] == list(range(1, min(whole, restored) + 1))


def test_untouched_files_are_not_written_again(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    before = (tmp_path / "metrics.jsonl").stat()
    MetricsLog(tmp_path).truncate_after(3)
    after = (tmp_path / "metrics.jsonl").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("damage", [b"{\n", b"[1]\n", b'{"loss": 1}\n', b"\xff\n", b"\n"])
def test_damage_in_the_middle_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "evals.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 2}\n')
    with pytest.raises(UserError, match=r"evals\.jsonl, line 2, is damaged"):
        MetricsLog(tmp_path).truncate_after(2)
    assert damage in path.read_bytes()


def test_numbers_that_json_lacks_come_back(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append(row(1, loss=math.nan, grad_norm=math.inf, kl=-math.inf))
    log.append_sample({"step": 1, "scores": [math.nan, {"value": math.inf}]})

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    for name in ("metrics", "samples"):
        json.loads((tmp_path / f"{name}.jsonl").read_text(), parse_constant=refuse)
    [back] = read_rows(tmp_path / "metrics.jsonl")
    assert math.isnan(back["loss"]) and back["grad_norm"] == math.inf and back["kl"] == -math.inf
    again = MetricsLog(tmp_path)
    again.truncate_after(1)
    assert math.isnan(again.rows[0]["loss"])


def test_every_float_comes_back_bitwise(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1e-310, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3]
    log = MetricsLog(tmp_path)
    log.append({"step": 1, **{str(index): value for index, value in enumerate(values)}})
    [back] = read_rows(tmp_path / "metrics.jsonl")
    assert [float.hex(back[str(index)]) for index in range(len(values))] == [float.hex(value) for value in values]


def test_a_killed_writer_loses_no_row(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def work() -> None:
        log = MetricsLog(tmp_path)
        for step in range(1, 10_000):
            log.append(row(step))
            theirs.send(step)

    process = fork.Process(target=work)
    process.start()
    said = 0
    while said < 5:
        said = ours.recv()
    process.kill()
    process.join()
    while ours.poll():
        said = ours.recv()
    steps = [one["step"] for one in read_rows(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)) and said <= len(steps) <= said + 1


def test_a_full_disk_is_one_clear_error_and_costs_the_last_row_only(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # fails a write in the middle, as a full disk does
        log = MetricsLog(tmp_path)
        try:
            for step in range(1, 100):
                log.append(row(step))
        except UserError as error:
            theirs.send((len(log.rows), str(error)))

    process = fork.Process(target=work)
    process.start()
    whole, message = ours.recv()
    process.join()
    assert "metrics.jsonl cannot be written (File too large). Make room" in message
    assert (tmp_path / "metrics.jsonl").stat().st_size == 1000
    assert [one["step"] for one in read_rows(tmp_path / "metrics.jsonl")] == list(range(1, whole + 1))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_what_one_wants_to_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tqdm, "__init__", tqdm.__init__)  # undone at the end
    harness.quiet(False)  # as in a process that has evaluated before: other bars are silent, not ours
    stream = Terminal()
    with MetricsLog(tmp_path, steps=10, stream=stream) as log:
        log.truncate_after(4)
        log.append(row(5))
        log.append(row(6, kl=0.0123, beta=0.04))
        log.note("a sample")
    shown = stream.getvalue()
    last = shown.split("\r")[-1]
    assert "60% 6/10" in last and "<" in last
    for text in ("loss -0.1", "reward 1.250", "accuracy 0.300", "format 0.950", "KL 0.012", "β 0.04", "tokens/s 1234"):
        assert text in last, (text, last)
    assert "a sample\n" in shown


def test_a_log_file_gets_a_line_every_tenth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    log = MetricsLog(tmp_path, steps=95, stream=stream)
    log.truncate_after(45)
    for step in range(46, 96):
        now[0] += 60
        log.append(row(step))
    lines = stream.getvalue().splitlines()
    assert [int(line.split()[1].partition("/")[0]) for line in lines] == [55, 65, 75, 85, 95]
    assert lines[0].startswith("step 55/95: loss -0.1, reward 1.250, accuracy 0.300") and lines[0].endswith(", 40:00 left")
    assert "KL" not in lines[0]  # the reference pass was skipped


def test_rows_of_supervised_training_are_shown_too(tmp_path: Path) -> None:
    stream = io.StringIO()
    MetricsLog(tmp_path, steps=1, stream=stream).append({"step": 1, "reward": None, "loss": 2.0})
    assert stream.getvalue() == "step 1/1: loss 2, 00:00 left\n"


@pytest.mark.parametrize(("log_to", "module"), [("tensorboard", "torch.utils.tensorboard"), ("trackio", "trackio")])
def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_to: Any, module: str) -> None:
    def absent(name: str) -> Any:
        assert name == module
        raise ModuleNotFoundError(f"No module named '{log_to}'", name=log_to)

    monkeypatch.setattr(metrics.importlib, "import_module", absent)
    with pytest.raises(UserError, match=rf'pip install "mr1-bench\[{log_to}\]"'):
        MetricsLog(tmp_path, log_to)


def test_a_package_that_is_broken_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'google'", name="google")

    monkeypatch.setattr(metrics.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        MetricsLog(tmp_path, "trackio")


def test_trackio_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = types.SimpleNamespace(log=lambda values, step: calls.append((step, values)))
    fake = types.SimpleNamespace(init=lambda **how: (calls.append(how), run)[1], finish=lambda: calls.append("finished"))
    monkeypatch.setitem(sys.modules, "trackio", fake)
    with MetricsLog(tmp_path, "trackio") as log:
        log.append({"step": 7, "loss": 0.5, "kl": None})
        log.append_eval({"step": 7, "split": "test", "task": "mr1_vc", "accuracy": 0.25})
    assert calls[0]["project"] == "mr1-bench" and calls[0]["name"].startswith(tmp_path.name) and calls[0]["resume"] == "allow"
    assert calls[1:] == [(7, {"loss": 0.5}), (7, {"eval/test/mr1_vc/accuracy": 0.25}), "finished"]


def test_tensorboard_gets_the_numbers_and_hides_rows_after_the_restored_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra [tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, value in ((1, 0.25), (3, 0.5)):  # killed after step 4, and gone on from step 2
        with MetricsLog(tmp_path, "tensorboard") as log:
            log.truncate_after(first - 1)
            for step in (first, first + 1):
                log.append({"step": step, "loss": value})
            if first == 1:
                log.append({"step": 3, "loss": 9.0})
                log.append({"step": 4, "loss": 9.0})
        time.sleep(1.1)  # event files are named by the second
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.25), (2, 0.25), (3, 0.5), (4, 0.5)]
