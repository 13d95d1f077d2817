"""The documented example of a task of one's own, from pictures to metrics."""

import json
import shutil
import subprocess
import sys
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
    build(tmp_path)


def build(folder, *more):
    """Build the set from the pictures and questions in a folder, as docs/new-task.md says."""
    prompts, images = folder / "squares.jsonl", folder / "pictures"
    assert main(["data", "build", "--task-name", "toy_squares", "--prompts", str(prompts), "--images", str(images), *more]) == 0


def evaluate(checkpoint, out, include_path):
    """Run `mr1-bench eval` on the toy task; what it printed on stderr, and its records."""
    arguments = ["eval", "--model", str(checkpoint), "--tasks", "toy_squares", "--include-path", str(include_path), "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", "mr1_bench", *arguments, "--device", "cpu"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "toy_squares" in done.stdout
    return done.stderr, {path.parent.name for path in out.glob("eval/*/run.json")}


def test_evaluation_notices_changed_data_prompt_and_decoding(built, tmp_path):
    from mr1_bench.trainers import tiny

    checkpoint, out, own = tiny.build(tmp_path / "tiny"), tmp_path / "out", tmp_path / "task"
    shutil.copytree(FOLDER, own, ignore=shutil.ignore_patterns("__pycache__"))
    _, first = evaluate(checkpoint, out, own)
    record = json.loads(next(out.glob("eval/*/run.json")).read_text())["tasks"]["toy_squares"]
    assert record["metrics"]["acc"]["n"] == 3
    assert "already complete" in evaluate(checkpoint, out, own)[0]
    # The same questions with another picture
    Image.new("RGB", (56, 56), "blue").save(tmp_path / "pictures" / "1.png")
    build(tmp_path, "--force")
    _, second = evaluate(checkpoint, out, own)
    (own / "toy.yaml").write_text((own / "toy.yaml").read_text().replace("max_new_tokens: 64", "max_new_tokens: 4"))
    _, third = evaluate(checkpoint, out, own)
    assert (len(first), len(second), len(third)) == (1, 2, 3)


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
