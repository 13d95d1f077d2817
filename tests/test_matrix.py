"""`mr1-bench matrix`: a row a checkpoint, labels from training records, gains on the same items. What is refused, `collect` tests."""

import json
from dataclasses import replace

import pytest

from mr1_bench import records
from mr1_bench.cli import main
from mr1_bench.reports.measures import relation_of
from tests.studies import make_run
from tests.test_records import write_evaluation

SFT_GR = {"method": "sft", "task": "gr", "seed": 0}


def matrix(capsys, *folders):
    """Cells as printed, by model and task."""
    assert main(["matrix", *map(str, folders), "--json"]) == 0
    return {(cell["model"], cell["task"]): cell for cell in json.loads(capsys.readouterr().out)["cells"]}


def test_hand_worked_cell(tmp_path, capsys):
    base = write_evaluation(tmp_path / "base", correct=(1, 0, 0, 0), run=("w0", None))
    trained = write_evaluation(tmp_path / "sft", correct=(0, 1, 1, 1), run=("w1", SFT_GR))
    cells = matrix(capsys, trained, base)
    assert cells["models/w0", "mr1_gr"]["gain"] is None
    cell = cells["models/w1", "mr1_gr"]
    assert (cell["k"], cell["n"], cell["acc"], cell["relation"]) == (3, 4, 0.75, "same-task")
    assert cell["training"] == {"method": "sft", "task": "mr1_gr", "seed": 0}
    assert cell["interval"] == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson for 3 of 4
    assert cell["gain"][0] == 0.5  # three fixed, one broken, of four
    assert cell["gain"][1] < 0.5 < cell["gain"][2]


@pytest.mark.parametrize(
    ("trained", "task", "expected"),
    [
        ("mr1_gr", "mr1_gr", "same-task"),
        ("mr1_gr", "mr1_vc", "cross-task"),
        ("mr1_vc_synth", "mr1_vc_synth", "same-task"),
        ("mr1_vc_synth", "mr1_gr_synth", "cross-task"),
        ("mr1_vc_synth", "mr1_vc", "same-task, other data"),
        ("mr1_gr", "mr1_gr_direct", "same-task"),
        ("mr1_gr,mr1_vc_synth", "mr1_vc", "same-task, other data"),
    ],
)
def test_relation(trained, task, expected):
    assert relation_of(replace(make_run("grpo", "mr1_gr_synth", n=1), task=trained), task) == expected


def test_plain_and_own_evaluations_of_one_checkpoint_are_one_row(tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    write_evaluation(tmp_path / "plain", model_args=f"pretrained={model}")
    write_evaluation(tmp_path / "own", task="mr1_vc", run=(records.checkpoint_sha256(model), None))
    cells = matrix(capsys, tmp_path / "plain", tmp_path / "own")
    assert {task for _, task in cells} == {"mr1_gr", "mr1_vc"}
    assert len({cell["run"] for cell in cells.values()}) == 1


def test_what_a_report_refuses_is_refused(tmp_path, capsys):
    write_evaluation(tmp_path / "a", run=("w0", None))
    write_evaluation(tmp_path / "b", run=("w1", None))
    assert main(["matrix", str(tmp_path)]) == 2
    assert "2 models without a training record" in capsys.readouterr().err


def test_command_prints_the_matrix(tmp_path, capsys):
    write_evaluation(tmp_path / "base", correct=(1, 0, 0, 0), run=("w0", None))
    write_evaluation(tmp_path / "vc", correct=(1, 0, 1, 0), run=("w1", {"method": "grpo-d", "task": "vc", "seed": 2}))
    assert main(["matrix", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "GRPO-D on mr1_vc, seed 2" in out
    assert "cross-task" in out
    assert "50.0 [15.0, 85.0]" in out
    assert "+25.0" in out
    assert main(["matrix", str(tmp_path), "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert {(cell["relation"], cell["k"]) for cell in cells} == {("base", 1), ("cross-task", 2)}


def test_empty_folder_is_one_clear_line(tmp_path, capsys):
    assert main(["matrix", str(tmp_path)]) == 2
    assert "holds no run and no evaluation" in capsys.readouterr().err
