"""Run records: hashes, atomic writing, and what of a training is refused. `write_evaluation` serves tests of whatever reads evaluations."""

import json

import pytest

from mr1_bench import records
from mr1_bench.records import RecordError


def write_evaluation(folder, task="mr1_gr", correct=(1, 0, 1, 1), run=None, stamp="20260101_000000", model_args="", limit=None):
    """Write lmms-eval's files as it writes them; with `run` also our run.json."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"doc_id": i, "target": "65°", "filtered_resps": ["<answer>65</answer>"], "acc": float(c), "mr1": {"status": "answered"}}
        for i, c in enumerate(correct)
    ]
    (folder / f"{stamp}_samples_{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = {
        "results": {task: {"alias": task, "acc,none": sum(correct) / len(correct), "acc_stderr,none": 0.1, "samples": 4}},
        "configs": {task: {}},
        "config": {"model": "qwen2_vl", "model_args": model_args},
    }
    (folder / f"{stamp}_results.json").write_text(json.dumps(results))
    if run is not None:
        weights, training = run
        entry = {"dataset_sha256": "d", "prompt_sha256": "p", "decoding": {}, "limit": limit}
        record = {"kind": "eval", "results_file": f"{stamp}_results.json", "tasks": {task: entry}}
        record["model"] = {"path": f"models/{weights}", "checkpoint_sha256": weights, "training": training}
        (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_checkpoint_hash_sees_every_file_that_matters(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    first = records.checkpoint_sha256(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    assert records.checkpoint_sha256(tmp_path) == first
    (tmp_path / "chat_template.jinja").write_text("x")
    second = records.checkpoint_sha256(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weightt")
    assert len({first, second, records.checkpoint_sha256(tmp_path)}) == 3


def test_pickled_checkpoint_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(RecordError, match="no pickled checkpoints"):
        records.checkpoint_sha256(tmp_path)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    records.write_json(path, {"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        records.write_json(path, {"a": 2})
    assert records.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_training_record_of_an_unknown_task_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"method": "sft", "task": "chess"}')
    with pytest.raises(RecordError, match=r"run\.json: no task 'chess'"):
        records.training_of(tmp_path)


def test_training_record_without_task_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"method": "sft"}')
    with pytest.raises(RecordError, match="does not say task"):
        records.training_of(tmp_path)
