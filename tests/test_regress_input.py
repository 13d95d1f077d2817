"""What `mr1-bench regress` must not take for evidence, and must not replace: stale, swapped and edited records, and foreign files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mr1_bench.cli import main
from mr1_bench.reports.snapshots import read_snapshot
from tests.test_regress_command import VC, edit_record, edit_rows, plain, regress, samples_of, write_side

pytestmark = pytest.mark.usefixtures("without_collection")


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `good` and `bad`, both of few items."""
    root = tmp_path_factory.mktemp("sides")
    write_side(root / "good", 0.95, 0.95, n=20)
    write_side(root / "bad", 0.2, 0.2, n=20)
    return root


def test_a_folder_that_only_looks_like_a_report_is_left_alone(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names alone do not make a report: its record must be ours, and nothing else may lie there."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("index.html", "regression.json", "junit.xml"):
        (mine / name).write_text('{"kind": "something else"}')
    assert regress(sides / "good", sides / "good", "--out", str(mine)) == 2
    assert len(list(mine.iterdir())) == 3
    (mine / "regression.json").write_text('{"kind": "mr1-bench regression"}')
    (mine / "notes.txt").write_text("precious")
    assert regress(sides / "good", sides / "good", "--out", str(mine)) == 2
    assert len(list(mine.iterdir())) == 4 and "notes.txt" in capsys.readouterr().err
    (mine / "notes.txt").unlink()
    assert regress(sides / "good", sides / "good", "--out", str(mine), "--alpha", "7") == 2
    assert list(mine.iterdir()) == [], "an old report stands for a run whose settings were refused"


def test_an_unfinished_evaluation_beside_a_finished_one_is_refused(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The finished one may be of an older checkpoint: the new one's is the one that counts."""
    runs = tmp_path / "runs"
    shutil.copytree(sides / "good", runs / "eval/old")
    (runs / "eval/new").mkdir()
    (runs / "eval/new/journal.jsonl").write_text('{"identity": "x"}\n')
    assert regress(sides / "good", runs) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(runs / "eval/new") in line and "unfinished" in line
    assert regress(sides / "good", runs / "eval/old") == 0


@pytest.mark.parametrize("text", [None, [None], 3, {"a": 1}], ids=str)
def test_an_answer_that_is_no_text_is_refused(sides: Path, tmp_path: Path, text: Any, capsys: pytest.CaptureFixture[str]) -> None:
    side = tmp_path / "side"
    shutil.copytree(sides / "bad", side)
    edit_rows(samples_of(side), lambda row: row.update(filtered_resps=text))
    assert regress(side, side) == 2
    assert "not a text" in capsys.readouterr().err


def test_lengths_below_zero_are_refused(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    side = tmp_path / "side"
    shutil.copytree(sides / "bad", side)
    edit_rows(side / "journal.jsonl", lambda row: [answer.update(tokens=-5) for answer in row.get("answers", {}).values()])
    assert regress(side, side) == 2
    assert "-5 tokens" in capsys.readouterr().err


def test_with_repeats_the_journal_is_checked(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every score comes from it: one of another evaluation, or changed, is no evidence."""
    side = tmp_path / "side"
    shutil.copytree(sides / "bad", side)
    edit_record(side, lambda run: run["config"].update(repeats=2, temperature=1.0))
    journal = side / "journal.jsonl"
    edit_rows(journal, lambda row: row.update({"answers": both}) if (both := twice(row.get("answers", {}))) else None)
    assert regress(side, side) == 0
    own = journal.read_text()

    def refused(said: str) -> None:
        capsys.readouterr()
        assert regress(side, side) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert str(journal) in line and said in line

    shutil.copy(sides / "good/journal.jsonl", journal)
    edit_rows(journal, lambda row: row.update({"answers": twice(row["answers"])}) if "answers" in row else None)
    refused("identity")
    rows = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([own.splitlines(keepends=True)[0], *rows[1:]]))
    refused("than its samples")
    journal.write_text(own)
    edit_record(side, lambda run: run["tasks"][VC].update(repeats={"n": 2, "avg": {"value": 0.999}}))
    refused("run.json says 0.9990")
    journal.unlink()
    refused("journal")


def twice(answers: dict[str, Any]) -> dict[str, Any]:
    """The answers of a journal as if each had been given twice."""
    return answers | {key.replace("/0/0000", "/1/0000"): answer for key, answer in answers.items()}


def test_a_report_folder_says_that_it_holds_a_sample(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(sides / "good"), "--out", str(tmp_path / "report"), "--gallery", "7"]) == 0
    assert regress(tmp_path / "report", tmp_path / "report") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"7 of 20 items of {VC}" in out and "--gallery all" in out


def test_no_folder_of_the_machine_is_kept(sides: Path, tmp_path: Path) -> None:
    """Neither the checkpoint's place nor that of its tokenizer, of our records and of those of plain lmms-eval."""
    side, theirs = tmp_path / "side", tmp_path / "theirs"
    shutil.copytree(sides / "good", side)
    shutil.copytree(sides / "good", theirs)
    edit_record(side, lambda run: run["model"].update(path="/home/somebody/models/final"))
    results = plain(theirs)
    arguments = "pretrained=/home/somebody/a/final,max_pixels=3136,tokenizer=/home/somebody/other/tok"
    edit_record(theirs, lambda content: content["config"].update(model="qwen2_vl", model_args=arguments), results.name)
    for one in (side, theirs):
        path = tmp_path / f"{one.name}.jsonl"
        assert main(["baseline", "save", str(one), "--to", str(path)]) == 0
        assert "somebody" not in path.read_text() and '"model": "final"' in path.read_text()
    (seed,) = read_snapshot(theirs).tasks[VC]
    assert seed.engine == "qwen2_vl, max_pixels=3136,tokenizer=tok" and "/" not in seed.weights
