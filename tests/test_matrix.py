"""The train-by-test matrix: labels from training records, gains on the same items, and what must not be compared."""

import json

import pytest

from mr1_bench import records
from mr1_bench.records import RecordError
from mr1_bench.reports.matrix import build_matrix, relation
from mr1_bench.specs import get_spec
from tests.test_records import write_evaluation

SFT_GR = {"method": "sft", "task": "gr", "seed": 0}


def matrix(*folders):
    return build_matrix(records.read_evaluations(folders))


def test_hand_worked_cell(tmp_path):
    base = write_evaluation(tmp_path / "base", correct=(1, 0, 0, 0), run=("w0", None))
    trained = write_evaluation(tmp_path / "sft", correct=(0, 1, 1, 1), run=("w1", SFT_GR))
    rows = matrix(trained, base)
    assert [row.label for row in rows] == ["base", "sft on gr (seed 0)"]
    assert rows[0].cells["mr1_gr"].gain is None
    cell = rows[1].cells["mr1_gr"]
    assert (cell.k, cell.n, cell.relation) == (3, 4, "same-task")
    assert cell.interval == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson for 3 of 4
    assert cell.gain[0] == 0.5  # three fixed, one broken, of four
    assert cell.gain[1] < 0.5 < cell.gain[2]


@pytest.mark.parametrize(
    ("trained", "task", "expected"),
    [
        ("gr", "mr1_gr", "same-task"),
        ("gr", "mr1_vc", "cross-task"),
        ("vc-synth", "mr1_vc_synth", "same-task"),
        ("vc-synth", "mr1_gr_synth", "cross-task"),
        ("vc_synth", "mr1_vc", "same-task, other data"),
        ("mr1_gr", "mr1_gr_direct", "same-task"),
    ],
)
def test_relation(trained, task, expected):
    assert relation({"method": "grpo", "task": trained}, get_spec(task)) == expected


def test_same_weights_twice_is_refused(tmp_path):
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, run=("w", None))
    with pytest.raises(RecordError, match="twice with the same weights"):
        matrix(tmp_path)


def test_plain_and_own_evaluations_of_one_checkpoint_are_one_row(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    write_evaluation(tmp_path / "plain", model_args=f"pretrained={model}")
    write_evaluation(tmp_path / "own", task="mr1_vc", run=(records.checkpoint_sha256(model), None))
    (row,) = matrix(tmp_path / "plain", tmp_path / "own")
    assert sorted(row.cells) == ["mr1_gr", "mr1_vc"]


def test_two_bases_are_refused(tmp_path):
    write_evaluation(tmp_path / "a", run=("w0", None))
    write_evaluation(tmp_path / "b", run=("w1", None))
    with pytest.raises(RecordError, match="several models without a training record"):
        matrix(tmp_path)


def test_other_prompt_is_refused(tmp_path):
    write_evaluation(tmp_path / "a", run=("w0", None))
    b = write_evaluation(tmp_path / "b", run=("w1", SFT_GR))
    run = json.loads((b / "run.json").read_text())
    run["tasks"]["mr1_gr"]["prompt_sha256"] = "other"
    (b / "run.json").write_text(json.dumps(run))
    with pytest.raises(RecordError, match="prompt_sha256 differ"):
        matrix(tmp_path)


def test_other_items_are_refused(tmp_path):
    base = write_evaluation(tmp_path / "a", correct=(1, 0, 1), model_args="pretrained=x")
    trained = write_evaluation(tmp_path / "b", run=("w1", SFT_GR))
    with pytest.raises(RecordError, match="other items than the base"):
        matrix(base, trained)


def test_command_prints_the_matrix(tmp_path, capsys):
    from mr1_bench.cli import main

    write_evaluation(tmp_path / "base", correct=(1, 0, 0, 0), run=("w0", None))
    write_evaluation(tmp_path / "vc", correct=(1, 0, 1, 0), run=("w1", {"method": "grpo-d", "task": "vc", "seed": 2}))
    assert main(["matrix", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "grpo-d on vc (seed 2)" in out
    assert "cross-task" in out
    assert "50.0 [15.0, 85.0]" in out
    assert "+25.0" in out
    assert main(["matrix", str(tmp_path), "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert {(cell["relation"], cell["k"]) for cell in cells} == {("base", 1), ("cross-task", 2)}


def test_empty_folder_is_one_clear_line(tmp_path, capsys):
    from mr1_bench.cli import main

    assert main(["matrix", str(tmp_path)]) == 2
    assert "no finished evaluation" in capsys.readouterr().err
