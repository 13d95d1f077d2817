"""Run records: hashes, atomic writing, and reading evaluations of ours and of plain lmms-eval, whole or damaged."""

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


def test_reads_a_plain_lmms_eval_run(tmp_path):
    write_evaluation(tmp_path / "a", model_args="pretrained=some/model,device=cpu")
    (evaluation,) = records.read_evaluations([tmp_path])
    assert evaluation.results == {"mr1_gr": {"acc": 0.75}}
    assert (evaluation.model, evaluation.weights) == ("some/model", "some/model")
    assert (evaluation.training, evaluation.run) == (None, None)
    assert [item.metrics["acc"] for item in evaluation.items("mr1_gr")] == [1.0, 0.0, 1.0, 1.0]
    assert evaluation.items("mr1_gr")[0].text == "<answer>65</answer>"


def test_plain_run_takes_training_from_the_checkpoint(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "run.json").write_text(json.dumps({"method": "sft", "task": "gr", "seed": 1, "more": 2}))
    write_evaluation(tmp_path / "out", model_args=f"pretrained={model}")
    (evaluation,) = records.read_evaluations([tmp_path / "out"])
    assert evaluation.training == {"method": "sft", "task": "gr", "seed": 1}
    assert evaluation.weights == records.checkpoint_sha256(model)


def test_plain_run_of_a_checkpoint_that_is_gone_is_not_called_base(tmp_path):
    write_evaluation(tmp_path / "out", model_args=f"pretrained={tmp_path / 'gone'}")
    with pytest.raises(RecordError, match="not there any more"):
        records.read_evaluations([tmp_path / "out"])


def test_line_separators_inside_an_answer(tmp_path):
    folder = write_evaluation(tmp_path / "a", correct=(1, 0))
    path = folder / "20260101_000000_samples_mr1_gr.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["filtered_resps"] = ["a\u2028b\x85c\x0bd"]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    (evaluation,) = records.read_evaluations([folder])
    assert [item.text for item in evaluation.items("mr1_gr")] == ["a\u2028b\x85c\x0bd", "<answer>65</answer>"]


def test_unfinished_evaluation_is_passed_over(tmp_path):
    write_evaluation(tmp_path / "done", run=("w", None))
    unfinished = write_evaluation(tmp_path / "unfinished")
    (unfinished / "journal.jsonl").write_text("")
    assert [evaluation.folder for evaluation in records.read_evaluations([tmp_path])] == [tmp_path / "done"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "20260101_000000_results.json").write_text('{"results": {'), "cut off"),
        (lambda f: (f / "20260101_000000_results.json").write_text('{"a": 1}'), "no object `results`"),
        (lambda f: (f / "20260101_000000_results.json").unlink(), "no finished evaluation"),
    ],
)
def test_damaged_results_are_named(tmp_path, damage, message):
    folder = write_evaluation(tmp_path / "a")
    damage(folder)
    with pytest.raises(RecordError, match=message):
        records.read_evaluations([folder])


def test_cut_samples_are_named_with_their_line(tmp_path):
    folder = write_evaluation(tmp_path / "a")
    path = folder / "20260101_000000_samples_mr1_gr.jsonl"
    path.write_text(path.read_text()[:-20])
    (evaluation,) = records.read_evaluations([folder])
    with pytest.raises(RecordError, match=r"samples_mr1_gr\.jsonl, line 4"):
        evaluation.items("mr1_gr")


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
