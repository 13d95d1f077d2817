"""`mr1-bench eval` under `accelerate launch`: the answers of one process, whatever number of processes begins, is killed and goes on."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from mr1_bench.cli import main
from mr1_bench.errors import UserError
from mr1_bench.model_files import resolve_model
from mr1_bench.tasks import evaluate, ranks, vllm_backend
from tests.processes import children

pytestmark = pytest.mark.scale
ITEMS = 96  # a chunk of 16 each, so that both processes answer several
COMMAND = ["eval", "--model", "tiny", "--tasks", "mr1_vc_synth", "--limit", str(ITEMS), "--temperature", "1", "--seed", "5"]
COMMAND += ["--device", "cpu", "--batch-size", "4"]


@pytest.fixture(autouse=True, scope="module")
def data_directory(tmp_path_factory):
    os.environ["MR1_DATA_DIR"] = str(tmp_path_factory.getbasetemp() / "mr1-data")
    yield
    del os.environ["MR1_DATA_DIR"]


def launch(out, *, processes=2):
    """Start an evaluation by several processes; without a GPU `accelerate launch` starts several only with --multi_gpu."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)]
    command = [*accelerate, "-m", "mr1_bench", *COMMAND, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def record_of(out):
    (path,) = out.glob("eval/*/run.json")
    return json.loads(path.read_text()), path.parent


def rows_of(folder):
    (path,) = folder.glob("*_samples_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def journal_of(out):
    found = {}
    for path in out.glob("eval/*/journal.jsonl"):
        for line in path.read_bytes().split(b"\n")[1:-1]:  # the last may be half written
            with_answers = json.loads(line)["answers"]
            assert not found.keys() & with_answers.keys(), "answered twice"
            found |= with_answers
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The evaluation by one process."""
    out = tmp_path_factory.mktemp("alone")
    assert main([*COMMAND, "--out", str(out)]) == 0
    return out


def test_two_processes_give_the_answers_of_one(alone, tmp_path):
    process = launch(tmp_path)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert out.count("record: ") == 1
    assert "generated 96 of 96" in error
    one, folder_of_one = record_of(alone)
    two, folder_of_two = record_of(tmp_path)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["identity"] == one["identity"]
    assert two["tasks"] == one["tasks"]
    assert rows_of(folder_of_two) == rows_of(folder_of_one)
    assert journal_of(tmp_path) == journal_of(alone)
    assert two["answers"] == {"total": ITEMS, "made_in_this_run": ITEMS}
    assert [path.name for path in folder_of_two.parent.iterdir()] == [folder_of_two.name]

    again = launch(tmp_path)
    out_again, error = again.communicate(timeout=300)
    assert again.returncode == 0, error
    assert "already complete" in error
    assert out_again == out


def test_killed_with_two_processes_it_goes_on_with_one(alone, tmp_path, capsys):
    process = launch(tmp_path)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and not journal_of(tmp_path):
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    victim = max(children(process.pid))
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    _, error = process.communicate(timeout=120)
    assert time.monotonic() - start < 60
    assert process.returncode != 0
    said = [line for line in error.splitlines() if line.startswith("mr1-bench: ")]
    assert len(said) == 1 and "run the same command again" in said[0], error
    kept = journal_of(tmp_path)
    assert 0 < len(kept) < ITEMS
    assert not list(tmp_path.glob("eval/*/run.json"))

    assert main([*COMMAND, "--out", str(tmp_path)]) == 0
    record, folder = record_of(tmp_path)
    assert record["answers"] == {"total": ITEMS, "made_in_this_run": ITEMS - len(kept)}
    assert rows_of(folder) == rows_of(record_of(alone)[1])
    assert journal_of(tmp_path) == journal_of(alone)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "cuda:1"], "each takes a GPU of its own"),
        (["--backend", "llava_hf", "--device", "cuda:1"], "each takes a GPU of its own"),
        (["--backend", "vllm", "--vllm-args", "data_parallel_size=2"], "start as many processes instead"),
        (["--backend", "vllm", "--vllm-args", "tensor_parallel_size=two"], "expected a whole number from 1"),
    ],
)
def test_what_several_gpus_cannot_do_is_one_line(tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.setattr(ranks, "join", lambda: ranks.Ranks(0, 2, 0, 2))
    device = COMMAND.index("--device")
    assert main([*COMMAND[:device], *COMMAND[device + 2 :], *more, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "world", "own"),
    [
        (["--backend", "hf"], 2, "1"),
        (["--backend", "llava_hf"], 2, "1"),
        (["--backend", "llava_hf"], 1, "0,1"),
        (["--backend", "llava_hf", "--device", "cpu"], 2, "0,1"),
        (["--backend", "vllm"], 2, "1"),
        (["--backend", "vllm", "--vllm-args", "tensor_parallel_size=2"], 2, "4 GPUs are needed"),
        (["--backend", "vllm", "--vllm-args", "tensor_parallel_size=8"], 1, "8 GPUs are needed"),
        (["--backend", "vllm", "--vllm-args", "tensor_parallel_size=8,distributed_executor_backend=ray"], 1, "0,1"),
    ],
)
def test_whatever_the_backend_each_process_has_gpus_of_its_own(tmp_path, monkeypatch, more, world, own):
    """On a machine with two GPUs, as PyTorch counts them."""
    import torch

    from mr1_bench import vllm_setup

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(vllm_setup, "version", lambda: "0")
    monkeypatch.setattr(vllm_backend, "prepare", lambda verbose: None)  # it sets the environment for good
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    args = parser.parse_args(["--model", "tiny", "--tasks", "mr1_vc_synth", "--out", str(tmp_path), *more])
    checkpoint, crew = resolve_model("tiny"), ranks.Ranks(world - 1, world, world - 1, world)
    try:
        config = evaluate._make_config(args, evaluate._choose_backend(args.backend, checkpoint), crew)
        evaluate._engine(checkpoint, config.backend, args.vllm_args, args.verbose, crew)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == own
    except UserError as error:
        assert own in str(error) and not own[-1].isdigit()


def test_the_gpus_of_an_engine():
    assert vllm_backend.gpus({}) == 1
    assert vllm_backend.gpus({"data_parallel_size": 1, "tensor_parallel_size": 4, "pipeline_parallel_size": 2}) == 8
