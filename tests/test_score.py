"""`mr1-bench score`: the real logs, the JSON and rows it promises, and refusals at the door."""

import json

import pytest

from mr1_bench import cli
from mr1_bench.commands import score
from mr1_bench.logs import read_log
from mr1_bench.r1v import R1VScore, R1VWorkerError
from mr1_bench.stats import wilson

KEYS = ["file", "task", "n", "acc", "acc_r1v", "format", "answered", "disagree"]
ROW_KEYS = ["index", "gold", "text", "extracted", "value", "unit", "correct", "correct_r1v", "format_ok", "status"]

PAIRS = [
    ("140°", "<think>x</think><answer> 140 </answer>"),  # both right
    ("10√{2}", "<answer> 10 </answer>"),  # the published grader reads 10 in the gold
    ("10√{2}", "<think>x</think><answer>10√2</answer>"),  # and no number that touches a tag
    ("5", "no answer"),
]


def run(capsys, *arguments):
    code = cli.main(["score", *map(str, arguments)])
    return code, *capsys.readouterr()


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"gold": gold, "text": text}) + "\n" for gold, text in PAIRS))
    return path


def test_json_is_one_object_and_nothing_else(capsys, log):
    code, out, err = run(capsys, log, "--json")
    assert (code, err) == (0, "")
    (entry,) = json.loads(out)["files"]
    assert list(entry) == KEYS
    assert entry == {
        "file": str(log),
        "task": "mr1_gr",
        "n": 4,
        "acc": 0.5,
        "acc_r1v": 0.5,
        "format": 0.5,
        "answered": 0.75,
        "disagree": 0.5,
    }


def test_rows(capsys, log, tmp_path):
    out = tmp_path / "verdicts.jsonl"
    assert run(capsys, log, "--out", out)[0] == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(list(row) == ROW_KEYS for row in rows)
    assert [(row["index"], row["gold"], row["text"]) for row in rows] == [(index, *pair) for index, pair in enumerate(PAIRS)]
    assert [(row["correct"], row["correct_r1v"]) for row in rows] == [(True, True), (False, True), (True, False), (False, False)]
    assert [row["status"] for row in rows] == ["answered"] * 3 + ["no_answer"]
    assert (rows[2]["extracted"], rows[3]["extracted"], rows[3]["value"]) == ("10√2", None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "verdicts.jsonl"]
    assert out.stat().st_mode & 0o777 == log.stat().st_mode & 0o777
    # What it writes is a log itself, with the same verdicts.
    assert run(capsys, out, "--json")[1].replace("verdicts", "rows") == run(capsys, log, "--json")[1]


def test_table_says_where_the_graders_disagree_and_does_not_wrap(capsys, log, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = run(capsys, log)
    header, _, row, *notes = out.splitlines()
    assert code == 0
    assert header.split("  ")[0] == "file" and header.endswith("R1-V only")
    low, high = wilson(2, 4)
    assert row.split() == f"rows.jsonl mr1_gr 4 50.0 [{100 * low:.1f}, {100 * high:.1f}] 50.0 50.0 75.0 1 1".split()
    assert notes == ["rows.jsonl: right for ours only: items 2", "rows.jsonl: right for R1-V only: items 1"]


def test_real_logs(capsys, real_data, tmp_path):
    files = sorted((real_data / "r1v_logs").glob("*.json"))
    out = tmp_path / "rows.jsonl"
    code, printed, err = run(capsys, *files, "--json", "--out", out)
    entries = json.loads(printed)["files"]
    assert (code, err) == (0, "")
    assert [(entry["task"], entry["n"], round(entry["acc_r1v"] * entry["n"], 6)) for entry in entries] == [
        ("mr1_vc", 200, 165),
        ("mr1_vc", 200, 96),
        ("mr1_gr", 754, 231),
    ]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for entry, file in zip(entries, files, strict=True):
        mine = [row for row in rows if row["file"] == str(file)]
        assert entry["acc"] == sum(row["correct"] for row in mine) / len(mine)
        assert entry["disagree"] == sum(row["correct"] != row["correct_r1v"] for row in mine) / len(mine)
        assert entry["format"] == sum(row["format_ok"] for row in mine) / len(mine)


def test_a_task_without_tags_has_no_published_verdict(capsys, log):
    (entry,) = json.loads(run(capsys, log, "--json", "--task", "mr1_gr_direct")[1])["files"]
    assert (entry["task"], entry["acc"], entry["acc_r1v"], entry["format"], entry["disagree"]) == ("mr1_gr_direct", 0.5, None, None, None)


def test_without_the_published_grader(capsys, log, monkeypatch):
    def absent(*_):
        raise R1VWorkerError("no math-verify here")

    monkeypatch.setattr(score, "grade_r1v", absent)
    (entry,) = json.loads(run(capsys, log, "--json", "--no-r1v")[1])["files"]
    assert (entry["acc"], entry["acc_r1v"], entry["disagree"], entry["format"]) == (0.5, None, None, 0.5)
    code, out, err = run(capsys, log)
    assert (code, out) == (2, "") and "no math-verify here; or leave that grader out with --no-r1v" in err


def test_a_time_limit_is_left_out_and_said(capsys, log, monkeypatch):
    real = score.grade_r1v
    monkeypatch.setattr(
        score, "grade_r1v", lambda spec, gold, text: R1VScore(None, None, "timeout") if gold == "5" else real(spec, gold, text)
    )
    _, out, err = run(capsys, log, "--json")
    (entry,) = json.loads(out)["files"]
    assert (entry["acc_r1v"], entry["r1v_no_verdict"], entry["disagree"]) == (2 / 3, 1, 0.5)
    assert "no verdict on 1 outputs (time limit)" in err and "Items 3" in err


def test_unreadable_golds_are_said(capsys, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"gold": "many", "text": "<answer>4</answer>"}\n')
    _, out, err = run(capsys, path, "--json", "--task", "mr1_vc")
    assert json.loads(out)["files"][0]["acc"] == 0.0
    assert "1 golds cannot be read" in err and "0 ('many')" in err


def test_repeats_are_clustered_by_item(capsys, tmp_path):
    path = tmp_path / "t_samples_mr1_vc.jsonl"
    texts = ["<answer>4</answer>"] * 4
    path.write_text(
        "".join(json.dumps({"doc_id": n, "target": "4" if n else "5", "resps": texts, "filtered_resps": "-"}) + "\n" for n in range(4))
    )
    result = score.score_log(read_log(path), published=False)
    assert (len(result.rows), result.acc.n, result.acc.value) == (16, 4, 0.75)
    assert (result.acc.low, result.acc.high) == pytest.approx(wilson(3, 4), abs=0.02)
    run(capsys, path, "--no-r1v", "--out", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["index"], row["repeat"]) for row in rows] == [(n, repeat) for n in range(4) for repeat in range(4)]


def test_unpaired_surrogates_survive(capsys, tmp_path):
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_text(json.dumps({"gold": "140°", "text": "\ud800<answer> 140 </answer>\x00"}) + "\n")
    assert run(capsys, path, "--json", "--out", out)[0] == 0
    assert json.loads(out.read_bytes())["text"] == "\ud800<answer> 140 </answer>\x00"


def test_refusals(capsys, log, tmp_path):
    for arguments, message in [
        ((tmp_path / "none.json",), "none.json: cannot be read"),
        ((log, "--task", "mr1_nothing"), "no task 'mr1_nothing'"),
        ((log, "--out", log), "is one of the logs"),
        ((log, "--out", tmp_path / "no" / "rows.jsonl"), "there is no folder"),
        ((log, "--no-r1v", "--out", tmp_path), "cannot be written"),
    ]:
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "") and message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_failed_write_leaves_the_old_rows(log, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    result = score.score_log(read_log(log), published=False)
    monkeypatch.setattr(score, "item", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        score.write_rows(out, [result])
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]
