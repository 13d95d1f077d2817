"""Reading logs: the real R1-V files, lines as lmms-eval writes them, and broken files."""

import json

import pytest

from mr1_bench.logs import LogError, LogRow, read_log
from mr1_bench.specs import UnknownTaskError


def write(path, content):
    path.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def test_r1v_logs(real_data):
    found = {path.name: read_log(path) for path in (real_data / "r1v_logs").glob("*.json")}
    assert {name.split("_")[0]: (log.kind, log.task, len(log.rows)) for name, log in found.items()} == {
        "counting": ("r1v", "mr1_vc", 200),
        "geoqa": ("r1v", "mr1_gr", 754),
    }
    geometry = next(log for log in found.values() if log.task == "mr1_gr")
    assert geometry.rows[0].gold == "140°" and geometry.rows[0].text.endswith("<answer>100</answer>")
    assert [row.index for row in geometry.rows] == list(range(754))


def test_a_given_task_wins(tmp_path):
    path = write(tmp_path / "log.json", json.dumps({"accuracy": 0, "results": [{"ground_truth": 4, "model_output": "4"}]}, indent=2))
    assert read_log(path).task == "mr1_vc"
    assert read_log(path, "vc-synth").task == "mr1_vc_synth"
    with pytest.raises(UnknownTaskError, match="mr1_nothing"):
        read_log(path, "mr1_nothing")


@pytest.mark.parametrize(("golds", "task"), [([4, 5], "mr1_vc"), (["140°", "5"], "mr1_gr"), ([4, "5"], "mr1_gr"), ([0.5], "mr1_gr")])
def test_plain_lines(tmp_path, golds, task):
    log = read_log(write(tmp_path / "rows.jsonl", [{"gold": gold, "text": "\u2028<answer>5</answer>"} for gold in golds]))
    assert (log.kind, log.task) == ("plain", task)
    assert log.rows[-1] == LogRow(len(golds) - 1, golds[-1] if golds != [0.5] else "0.5", "\u2028<answer>5</answer>")


def test_a_line_separator_inside_a_string_does_not_end_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"gold": "1", "text": "a\u2028b\x85c"}\r\n\n{"gold": "2", "text": "d"}', encoding="utf-8-sig")
    assert [row.text for row in read_log(path).rows] == ["a\u2028b\x85c", "d"]


def sample(doc_id, target, **responses):
    return {"doc_id": doc_id, "target": target, "doc_hash": "0", "acc": 1.0, "input": "?", **responses}


def test_lmms_eval_samples(tmp_path):
    rows = [
        sample(3, "140°", filtered_resps="<answer>140</answer>"),
        sample(1, "5", resps=["<think>x</think>5"], filtered_resps="5"),
        sample(2, "7", resps="<think>y</think>7", filtered_resps="7"),
    ]
    log = read_log(write(tmp_path / "20250101_120000_samples_mr1_gr_synth_l2.jsonl", rows))
    assert (log.kind, log.task) == ("lmms-eval", "mr1_gr_synth_l2")
    assert log.rows == (LogRow(3, "140°", "<answer>140</answer>"), LogRow(1, "5", "<think>x</think>5"), LogRow(2, "7", "<think>y</think>7"))


def test_lmms_eval_repeats_become_one_row_each(tmp_path):
    rows = [sample(0, "4", resps=[["a"], ["b"], ["c"]], filtered_resps=["a", "b", "c"])]
    log = read_log(write(tmp_path / "x_samples_mr1_vc.jsonl", rows))
    assert log.rows == (LogRow(0, "4", "a", 0), LogRow(0, "4", "b", 1), LogRow(0, "4", "c", 2))


GOOD = json.dumps({"gold": "1", "text": "a"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is empty.*--log_samples"),
        ("a.jsonl", " \n\n", "is empty"),
        ("a.jsonl", GOOD + "\n" + GOOD[:9], r"a\.jsonl, line 2: .*cut off.*delete that line"),
        ("a.jsonl", GOOD + "\n{oops}\n" + GOOD, r"a\.jsonl, line 2: is not JSON"),
        ("a.jsonl", GOOD + "\n[1]", r"line 2: expected a JSON object, found '\[1\]'"),
        ("a.jsonl", "id,answer\n1,4\n", "line 1: expected a JSON object, found 'id,answer'.*known forms"),
        ("a.json", "[" * 100_000, "line 1: expected a JSON object"),
        ("a.json", '{"accuracy": 48.0, "results": [{"ground_truth": 4, "model_ou', "cut off.*get it again"),
        ("a.json", '{\n  "accuracy": 48.0,\n  "results": [\n', "cut off.*get it again"),
        ("a.json", '{"results": []}', "at least one result"),
        ("a.json", '{"results": {"mr1_gr": {"acc": 0.3}}}', "must be a list"),
        ("a.json", '{"results": [{"ground_truth": 4}]}', "result 0: `model_output` must be .*keys are 'ground_truth'"),
        ("a.json", '{"results": [{"ground_truth": null, "model_output": "x"}]}', "result 0: `ground_truth` must be .*found 'null'"),
        ("a.jsonl", '{"question": "?", "answer": "4"}', "line 1: `gold` must be .*keys are 'question', 'answer'.*known forms"),
        ("a.jsonl", '{"gold": true, "text": "4"}', "`gold` must be a string or a number"),
        ("a.jsonl", json.dumps(sample(0, "4", filtered_resps="4")), "so the task is unknown; say --task"),
        ("x_samples_mmmu_val.jsonl", json.dumps(sample(0, "4", filtered_resps="4")), "'mmmu_val', which is not one of ours; say --task"),
        ("x_samples_mr1_vc.jsonl", json.dumps(sample("0", "4", filtered_resps="4")), "`doc_id` must be an integer"),
        ("x_samples_mr1_vc.jsonl", json.dumps(sample(0, "4", filtered_resps=[])), "neither `resps` nor `filtered_resps`"),
        ("x_samples_mr1_vc.jsonl", (json.dumps(sample(0, "4", filtered_resps="4")) + "\n") * 2, "line 2: item 0 is in line 1 already"),
    ],
)
def test_broken_logs_are_refused_with_place_and_remedy(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(LogError, match=message) as caught:
        read_log(path)
    assert name in str(caught.value)


def test_absent_and_binary_files(tmp_path):
    with pytest.raises(LogError, match="cannot be read"):
        read_log(tmp_path / "nothing.json")
    with pytest.raises(LogError, match="cannot be read"):
        read_log(tmp_path)
    (tmp_path / "image.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(LogError, match="not UTF-8"):
        read_log(tmp_path / "image.json")
