"""The run folder: whole checkpoints or none, whatever is killed, full or damaged; one process, one configuration."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mr1_bench.errors import UserError
from mr1_bench.records import read_json, training_of, write_json
from mr1_bench.trainers import checkpoints
from mr1_bench.trainers.config import GRPOConfig

FORK = multiprocessing.get_context("fork")
IDENTITY = {"weights_sha256": "w1", "data_sha256": {"vc/train": "d1"}, "code_sha256": "c1"}


@pytest.fixture
def config(tmp_path: Path) -> Iterator[GRPOConfig]:
    out = tmp_path / "run"
    yield GRPOConfig(method="grpo-d", task="vc-synth", model="tiny", out=out)
    checkpoints.close_run(out)


def tensors_at(step: int) -> dict[str, torch.Tensor]:
    return {"param/w": torch.full((3, 2), float(step)), "step/w": torch.tensor(float(step))}


def export(folder: Path) -> None:
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def save(config: GRPOConfig, step: int, accuracy: float | None = None) -> Path:
    return checkpoints.save(config, step, export, tensors_at(step), {"step": step, "adapted": 0.1 + 0.2}, {"val_accuracy": accuracy})


def names(config: GRPOConfig) -> list[str]:
    return sorted(path.name for path in (config.out / "checkpoints").iterdir())


def test_a_run_from_start_to_end(config: GRPOConfig) -> None:
    assert checkpoints.open_run(config, IDENTITY) is None
    run = read_json(config.out / "run.json")
    assert (run["kind"], run["status"], run["method"], run["task"], run["seed"]) == ("train", "running", "grpo-d", "vc-synth", 0)
    assert run["config"] == config.asdict() and run["identity"] == IDENTITY and "torch" in run["packages"]
    assert (run["last"], run["best"]) == (None, None)

    folder = save(config, 50, 0.5)
    assert folder == config.out / "checkpoints" / "step-000050"
    record = read_json(folder / "run.json")
    assert (record["kind"], record["step"], record["val_accuracy"]) == ("checkpoint", 50, 0.5)
    assert training_of(folder) == {"method": "grpo-d", "task": "vc-synth", "seed": 0}
    assert (config.out / "last").readlink() == (config.out / "best").readlink() == Path("checkpoints/step-000050")

    checkpoints.finish_run(config, "stopped", {"stopped": "alarm"})
    assert read_json(config.out / "run.json")["status"] == "stopped"
    assert checkpoints.open_run(replace(config, keep=5, stop_on_alarm=True, log_to="trackio"), IDENTITY) == folder
    assert read_json(config.out / "run.json")["status"] == "running"
    tensors, state = checkpoints.load_state(folder)
    assert state == {"step": 50, "adapted": 0.1 + 0.2}
    assert tensors.keys() == tensors_at(50).keys() and all(torch.equal(tensors[name], value) for name, value in tensors_at(50).items())

    save(config, 100, 0.4)
    checkpoints.finish_run(config, "finished", {"best": 0.5})
    run = read_json(config.out / "run.json")
    assert (run["status"], run["last"], run["best"]) == ("finished", "checkpoints/step-000100", "checkpoints/step-000050")
    checkpoints.open_run(config, IDENTITY)  # looking at a finished run does not make it unfinished
    assert read_json(config.out / "run.json")["status"] == "finished"


def test_the_last_and_the_best_stay(config: GRPOConfig) -> None:
    checkpoints.open_run(config, IDENTITY)
    for step, accuracy in [(10, 0.1), (20, 0.7), (30, 0.7), (40, None), (50, 0.2), (60, 0.3)]:
        save(config, step, accuracy)
    assert names(config) == ["step-000020", "step-000050", "step-000060"]  # of two equals the earlier is the best
    assert (config.out / "best").readlink().name == "step-000020"
    assert (config.out / "best" / "model.safetensors").is_file()
    states = [(config.out / "checkpoints" / name / "trainer_state").is_dir() for name in names(config)]
    assert states == [False, True, True]
    save(config, 70, 0.9)
    assert names(config) == ["step-000060", "step-000070"]
    assert (config.out / "best").readlink() == (config.out / "last").readlink()


def test_old_ones_go_only_after_the_new_one_is_there(config: GRPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.open_run(config, IDENTITY)
    config = replace(config, keep=1)
    save(config, 1)
    seen: list[list[str]] = []
    prune = checkpoints._prune
    monkeypatch.setattr(checkpoints, "_prune", lambda out, keep: (seen.append(names(config)), prune(out, keep)))
    save(config, 2)
    assert seen == [["step-000001", "step-000002"]] and names(config) == ["step-000002"]


def test_saving_a_step_again_replaces_it(config: GRPOConfig) -> None:
    checkpoints.open_run(config, IDENTITY)
    save(config, 1, 0.1)
    assert read_json(save(config, 1, 0.2) / "run.json")["val_accuracy"] == 0.2
    assert names(config) == ["step-000001"]


def refusal(config: GRPOConfig, identity: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        checkpoints.open_run(config, IDENTITY if identity is None else identity)
    assert config.out.resolve() not in checkpoints._held
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 2e-6}, "there lr is 1e-06, now it is 2e-06"),
        ({"seed": 1, "steps": 7}, "there seed is 0, now it is 1"),
        ({"device": "cpu"}, "there device is 'auto', now it is 'cpu'"),
        ({"data": Path("x.jsonl")}, "there data is None, now it is 'x.jsonl'"),
    ],
)
def test_another_configuration_is_refused(config: GRPOConfig, changes: dict[str, Any], named: str) -> None:
    checkpoints.open_run(config, IDENTITY)
    before = (config.out / "run.json").read_bytes()
    message = refusal(replace(config, **changes))
    assert named in message and "former value" in message and "choose another --out" in message
    assert (config.out / "run.json").read_bytes() == before


def test_another_identity_or_method_is_refused(config: GRPOConfig) -> None:
    checkpoints.open_run(config, IDENTITY)
    assert "identity.data_sha256.vc/train is 'd1', now it is 'd2'" in refusal(config, IDENTITY | {"data_sha256": {"vc/train": "d2"}})
    assert "identity.code_sha256 is 'c1', now it is absent" in refusal(
        config, {key: IDENTITY[key] for key in ("weights_sha256", "data_sha256")}
    )
    assert "method is 'grpo-d', now it is 'grpo'" in refusal(replace(config, method="grpo"))


def test_out_may_be_spelled_in_another_way(config: GRPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.open_run(config, IDENTITY)
    save(config, 1)
    checkpoints.close_run(config.out)
    monkeypatch.chdir(config.out.parent)
    assert checkpoints.open_run(replace(config, out=Path("run")), IDENTITY) == Path("run/checkpoints/step-000001")


def test_foreign_folders_are_refused_untouched(config: GRPOConfig) -> None:
    config.out.mkdir()
    (config.out / "thesis.tex").write_text("x")
    assert "holds other files (thesis.tex) and no run.json" in refusal(config)
    assert [path.name for path in config.out.iterdir()] == ["thesis.tex"]
    (config.out / "thesis.tex").unlink()
    write_json(config.out / "run.json", {"kind": "eval"})
    assert "holds a run.json of kind 'eval', no training" in refusal(config)
    (config.out / "run.json").write_text("[1")
    assert "not readable as JSON" in refusal(config)
    file = config.out.parent / "file"
    file.write_text("")
    assert "is a file; name a folder" in refusal(replace(config, out=file))
    assert "cannot be written" in refusal(replace(config, out=file / "below"))


@contextmanager
def child(work: Callable[[Connection], None]) -> Iterator[tuple[Connection, BaseProcess]]:
    """A process of its own that runs `work`, forked, since one that imports torch anew takes seconds to start; it is killed at the end."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=work, args=(theirs,))
    process.start()
    theirs.close()
    try:
        yield ours, process
    finally:
        process.kill()
        process.join()


def test_a_second_process_is_refused_until_the_first_is_killed(config: GRPOConfig) -> None:
    def hold(pipe: Connection) -> None:
        checkpoints.open_run(config, {})
        pipe.send("open")
        time.sleep(600)

    with child(hold) as (pipe, _):
        assert pipe.recv() == "open"
        assert "another process is training in" in refusal(config, {})
    assert checkpoints.open_run(config, {}) is None


def test_leftovers_of_killed_writes_are_removed(config: GRPOConfig) -> None:
    checkpoints.open_run(config, IDENTITY)
    save(config, 1, 0.5)
    folder = save(config, 2, 0.6)
    inside = config.out / "checkpoints"
    (inside / ".step-000003.new" / "trainer_state").mkdir(parents=True)
    (inside / ".step-000000.dropped").mkdir()
    (folder / ".trainer_state.dropped").mkdir()
    (inside / "step-000001").replace(inside / ".step-000001.old")  # set aside, and killed before the new one took its name
    (config.out / ".run.json.abc").write_text("{")
    (config.out / ".last.link").symlink_to("nowhere")
    (config.out / "best").unlink()
    (config.out / "last").unlink()
    (config.out / "last").symlink_to("checkpoints/step-000001")
    checkpoints.close_run(config.out)
    assert checkpoints.open_run(config, IDENTITY) == folder
    assert names(config) == ["step-000001", "step-000002"]
    assert sorted(path.name for path in config.out.iterdir()) == [".lock", "best", "checkpoints", "last", "run.json"]
    assert (config.out / "last").readlink() == (config.out / "best").readlink() == Path("checkpoints/step-000002")
    assert not (folder / ".trainer_state.dropped").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "run.json", "trainer_state/optimizer.safetensors", "trainer_state/state.json"])
def test_one_flipped_bit_is_found(config: GRPOConfig, name: str) -> None:
    checkpoints.open_run(config, IDENTITY)
    save(config, 50)
    folder = save(config, 100)
    path = folder / name
    content = bytearray(path.read_bytes())
    content[content.index(b"100") + 2 if path.suffix == ".json" else len(content) - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        checkpoints.load_state(folder)
    message = str(caught.value)
    assert f"checkpoint {folder} is corrupt: {name} is damaged" in message
    assert message.endswith("Remove that folder; the same command then goes on from step-000050")


@pytest.mark.parametrize(("name", "seen"), [("config.json", "is missing"), ("trainer_state/optimizer.safetensors", "has 10 bytes")])
def test_missing_and_short_files_are_found_on_opening(config: GRPOConfig, name: str, seen: str) -> None:
    checkpoints.open_run(config, IDENTITY)
    folder = save(config, 100)
    if seen == "is missing":
        (folder / name).unlink()
    else:
        os.truncate(folder / name, 10)
    message = refusal(config)
    assert f"{name} {seen}" in message and message.endswith("Remove that folder; the same command then starts from the beginning")


def test_the_remedy_works(config: GRPOConfig) -> None:
    checkpoints.open_run(config, IDENTITY)
    first = save(config, 50, 0.9)
    second = save(config, 100, 0.95)
    (second / "trainer_state" / "state.json").write_text("{")
    assert "not readable as JSON" in refusal(config)
    shutil.rmtree(second)
    assert checkpoints.open_run(config, IDENTITY) == first
    assert (config.out / "last").readlink() == (config.out / "best").readlink() == Path("checkpoints/step-000050")


def test_a_best_without_trainer_state_is_no_place_to_go_on(config: GRPOConfig) -> None:
    config = replace(config, keep=1)
    checkpoints.open_run(config, IDENTITY)
    best = save(config, 1, 0.9)
    shutil.rmtree(save(config, 2, 0.1))
    message = refusal(config)
    assert f"{best} has no trainer_state" in message and f"--model {best}" in message


def test_a_disk_too_small_is_refused_before_writing(config: GRPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.open_run(config, IDENTITY)
    save(config, 1)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 20 * 2**20})())
    with pytest.raises(UserError, match=r"is full: a checkpoint takes 50.0 MiB, 20.0 MiB are free. Make room"):
        checkpoints.save(config, 2, pytest.fail, {}, {}, {}, export_bytes=50 * 2**20)
    save(config, 2)  # a small one has room


def test_other_failures_of_the_export_are_not_disguised(config: GRPOConfig) -> None:
    checkpoints.open_run(config, IDENTITY)

    def broken(folder: Path) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        checkpoints.save(config, 2, broken, {}, {}, {})
    assert names(config) == []


@pytest.mark.parametrize("large", [10, 100_000])
def test_a_write_that_fails_leaves_the_checkpoint_before_it(config: GRPOConfig, large: int) -> None:
    # A limit on file sizes fails a real write in the middle, as a full disk does: in the exported weights, or in the trainer's state.
    def write(pipe: Connection) -> None:
        checkpoints.open_run(config, {})
        save(config, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoints.save(
                config, 2, lambda to: save_file({"w": torch.ones(large)}, to / "model.safetensors"), {"w": torch.ones(100_000)}, {}, {}
            )
        except UserError as error:
            pipe.send(str(error))

    with child(write) as (pipe, process):
        message = pipe.recv()
        process.join()
    assert message.startswith("checkpoint step-000002 could not be written: ")
    assert "File too large" in message and "step-000001 is intact" in message
    assert message.endswith("it goes on from step-000001.")
    assert names(config) == ["step-000001"]
    assert checkpoints.open_run(config, {}) == config.out / "checkpoints" / "step-000001"
    checkpoints.load_state(config.out / "checkpoints" / "step-000001")


def test_killed_at_random_moments_it_never_loses_a_checkpoint(config: GRPOConfig) -> None:
    def work(pipe: Connection) -> None:
        folder = checkpoints.open_run(config, {})
        step = 0 if folder is None else checkpoints.load_state(folder)[1]["step"]
        while True:
            pipe.send(step)
            step += 1
            tensors = {"w": torch.full((1000,), float(step))}
            write = partial(save_file, tensors)
            record = {"val_accuracy": step * 5 % 7}
            checkpoints.save(config, step, lambda to, write=write: write(to / "model.safetensors"), tensors, {"step": step}, record)

    draw = random.Random(0)
    reached = 0
    for _ in range(12):
        with child(work) as (pipe, process):
            assert pipe.recv() >= reached  # what was once saved is still there
            for _ in range(draw.randrange(1, 4)):
                reached = pipe.recv()
            time.sleep(draw.uniform(0, 0.03))
            process.kill()
            process.join()
    newest = checkpoints.open_run(config, {})
    assert newest is not None
    tensors, state = checkpoints.load_state(newest)
    assert tensors["w"].tolist() == [float(state["step"])] * 1000 and state["step"] >= reached
    assert torch.equal(load_file(newest / "model.safetensors")["w"], tensors["w"])
    assert not [name for name in names(config) if name.startswith(".")]
    accuracies = [read_json(config.out / "checkpoints" / name / "run.json")["val_accuracy"] for name in names(config)]
    assert read_json(config.out / "best" / "run.json")["val_accuracy"] == max(accuracies) == 6


_CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.symlink"}


def kill_at(change: int) -> None:
    """Kill this process just before it changes the file system for the n-th time from now on."""
    left = change

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


@pytest.mark.parametrize("step", [2, 3])
def test_killed_before_each_change_of_the_disk(config: GRPOConfig, step: int) -> None:
    # Every moment of a save that prunes and strips, and of one that replaces its own step: a whole checkpoint is always there.
    config = replace(config, keep=1)
    checkpoints.open_run(config, {})
    save(config, 1, 0.9)
    save(config, 2, 0.5)
    checkpoints.close_run(config.out)
    template = config.out.with_name("template")
    shutil.copytree(config.out, template, symlinks=True)
    for change in range(200):
        shutil.rmtree(config.out)
        shutil.copytree(template, config.out, symlinks=True)

        def work(pipe: Connection, change: int = change) -> None:
            kill_at(change)
            checkpoints.open_run(config, {})
            save(config, step, 0.9)
            pipe.send("done")

        with child(work) as (pipe, process):
            process.join()
            done = pipe.poll() and process.exitcode == 0
        newest = checkpoints.open_run(config, {})
        assert newest is not None and newest.name in {"step-000002", f"step-00000{step}"}
        assert checkpoints.load_state(newest)[1]["step"] == int(newest.name[-1])
        assert (config.out / "last").resolve() == newest.resolve()
        assert (config.out / "best").readlink().name == "step-000001"
        assert not [name for name in names(config) if name.startswith(".")]
        checkpoints.close_run(config.out)
        if done:
            break
    assert done and change > 20
