"""The command: a report is there whole or not at all, nothing else is ever replaced, and nothing of the machine is in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mr1_bench import cli
from mr1_bench.errors import UserError
from mr1_bench.records import RecordError
from mr1_bench.reports import report
from mr1_bench.reports.provenance import Places, model_label
from tests import studies


def test_folders_and_texts_lose_the_machine(tmp_path: Path) -> None:
    root = tmp_path / "my runs"
    (root / "cells" / "a").mkdir(parents=True)
    places = Places([root])
    assert places.name(root / "cells" / "a") == "my runs/cells/a"
    assert places.name(tmp_path / "other") == "other"
    assert places.clean(f"{root}/cells/a/run.json is cut off") == "my runs/cells/a/run.json is cut off"
    assert places.clean("see /usr/lib/python3/x.py, and/or https://a.org/b/c") == "see x.py, and/or https://a.org/b/c"
    assert places.value({"a": [f"{root}/x", 3, None]}) == {"a": ["my runs/x", 3, None]}
    assert model_label("/models/Qwen2-VL-7B-Instruct") == "Qwen2-VL-7B-Instruct"
    assert model_label("/a/b/tiny") == "tiny"


def small(folder: Path) -> Path:
    return studies.write_study(studies.make_study(n=4, seeds=1, sweeps=False), folder)


def test_other_folders_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is no report of mr1-bench"):
        report.write_report([small(tmp_path / "study")], tmp_path / "mine")
    (tmp_path / "mine" / "report.json").write_text('{"kind": "something else"}')
    with pytest.raises(UserError, match="is not replaced"):
        report.check_replaceable(tmp_path / "mine")
    (tmp_path / "mine" / "report.json").write_text('{"kind": "mr1-be')
    with pytest.raises(UserError, match="is not replaced"):
        report.check_replaceable(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UserError, match="is not a folder"):
        report.check_replaceable(tmp_path / "mine" / "thesis.txt")
    with pytest.raises(UserError, match="is no report"):
        report.check_replaceable(tmp_path / "study")


def old_report(folder: Path) -> Path:
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"kind": report.MARKER}))
    (folder / "index.html").write_text("old")
    return folder


def test_an_earlier_report_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = old_report(tmp_path / "report")
    with pytest.raises(RuntimeError, match="in the middle"), report.replacing(out) as part:
        (part / "index.html").write_text("half")
        raise RuntimeError("in the middle")
    assert (out / "index.html").read_text() == "old"
    with report.replacing(out) as part:
        (part / "index.html").write_text("new")
        assert (out / "index.html").read_text() == "old"
    assert (out / "index.html").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_what_a_killed_writer_left_is_removed_and_a_living_one_spared(tmp_path: Path) -> None:
    out = old_report(tmp_path / "report")
    script = (
        "import os, pathlib, signal\nfrom mr1_bench.reports import report\n"
        f"with report.replacing(pathlib.Path({str(out)!r})) as part:\n    (part / 'x').touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    with report.replacing(out) as first:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["report", first.name])
        with report.replacing(out) as second:
            assert first.is_dir() and first != second
            (second / "report.json").write_text(json.dumps({"kind": report.MARKER}))
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_report_that_lost_its_place_is_put_back(tmp_path: Path) -> None:
    old_report(tmp_path / ".report.old-abc")
    with pytest.raises(RuntimeError), report.replacing(tmp_path / "report"):
        raise RuntimeError
    assert (tmp_path / "report" / "index.html").read_text() == "old"


def test_what_fails_beside_is_raised_and_the_process_ended() -> None:
    def fail() -> None:
        raise RecordError("no colour")

    with pytest.raises(RecordError, match="no colour"), report.beside(fail) as wait:
        wait()
    with report.beside(lambda: [1, 2]) as wait:
        assert wait() == [1, 2]


def test_the_command_prints_the_summary_and_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small(tmp_path / "study")
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "report"), "--gallery", "0"]) == 0
    printed = capsys.readouterr().out
    assert "nothing is said about methods" in printed
    assert printed.rstrip().endswith(str(tmp_path / "report" / "index.html"))
    assert not (tmp_path / "report" / "gallery").exists()
    assert 'id="gallery"' not in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(tmp_path / "empty"), "--out", str(tmp_path / "report")]) == 2
    assert "holds no run and no evaluation" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path), "--out", "x", "--gallery", "many"])
    assert "give a number of items" in capsys.readouterr().err
