"""The documented example of a task of one's own, from pictures to metrics."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from mr1_bench.cli import main

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "examples" / "toy_task"


@pytest.fixture
def built(tmp_path, monkeypatch):
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "pictures").mkdir()
    lines = []
    for count in (1, 2, 3):
        image = Image.new("RGB", (56, 56), "white")
        for i in range(count):
            ImageDraw.Draw(image).rectangle((4 + 17 * i, 20, 16 + 17 * i, 32), fill="red")
        image.save(tmp_path / "pictures" / f"{count}.png")
        lines.append(json.dumps({"question": "How many red squares?", "ground_truth": count, "image_path": f"./{count}.png"}))
    (tmp_path / "squares.jsonl").write_text("\n".join(lines))
    assert (
        main(
            [
                "data",
                "build",
                "--task-name",
                "toy_squares",
                "--prompts",
                str(tmp_path / "squares.jsonl"),
                "--images",
                str(tmp_path / "pictures"),
            ]
        )
        == 0
    )


def test_toy_task_loads_and_scores(built):
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(FOLDER))
    task = manager.load_task_or_group("toy_squares")["toy_squares"]
    doc = task.test_docs()[1]
    assert task.doc_to_text(doc).startswith("How many red squares? First output the thinking process")
    assert task.doc_to_visual(doc)[0].size == (56, 56)
    row = task.process_results(doc, ["<think>two</think><answer>2</answer>"])
    assert {key: row[key] for key in ("acc", "acc_r1v", "format", "answered")} == {"acc": 1, "acc_r1v": 1, "format": 1, "answered": 1}
    assert row["mr1"]["id"] == doc["id"]
    assert task.process_results(doc, ["3"])["acc"] == 0
