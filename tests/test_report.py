"""The command: a report is there whole or not at all, nothing else is ever replaced, and nothing of the machine is in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mr1_bench import cli
from mr1_bench.errors import UserError
from mr1_bench.records import RecordError, write_json
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


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("[Errno 2] No such file: '/home/jo doe/secret thing/x.json'", "[Errno 2] No such file: 'x.json'"),
        ("error:/home/jo/secret/x.py", "error:x.py"),
        ("out=/scratch/jo/x, file:///home/jo/y.html", "out=x, y.html"),
        ("/home/jo: no such folder; /Users/jo", "…: no such folder; …"),
        ("HOME/deep er/x is gone, HOME is not", "x is gone, /… is not"),
        ("TEMP/pytest-of-jo/a/b.json", "b.json"),
        ("a/b of 3/4, 1/2/3, s3://bucket/of/theirs", "a/b of 3/4, 1/2/3, s3://bucket/of/theirs"),
    ],
)
def test_no_path_of_a_machine_is_left_in_a_text(text: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "Jo Doe"
    monkeypatch.setenv("HOME", str(home))
    text = text.replace("HOME/deep er", f"{home}/deep").replace("HOME", str(home)).replace("TEMP", tempfile.gettempdir())
    assert Places([home / "study"]).clean(text) == left


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
    """A writer was killed between the two renames of the exchange."""
    old_report(tmp_path / ".report.old-abc")
    (tmp_path / ".report.part-abc").mkdir()
    with pytest.raises(RuntimeError), report.replacing(tmp_path / "report"):
        raise RuntimeError
    assert (tmp_path / "report" / "index.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_report_that_had_been_replaced_never_comes_back(tmp_path: Path) -> None:
    """A writer was killed after the exchange, and the report was removed by hand later."""
    old_report(tmp_path / ".report.old-abc")
    (tmp_path / ".report.old-mine").mkdir()
    (tmp_path / ".report.old-mine" / "thesis.txt").touch()
    with pytest.raises(RuntimeError), report.replacing(tmp_path / "report"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == [".report.old-mine"]


class Unreadable(RecordError):
    """An error that can be written and not read back."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_what_fails_beside_is_raised_and_the_process_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def fail() -> None:
        raise RecordError("no colour")

    def fail_oddly() -> None:
        raise Unreadable("no", "colour")

    with pytest.raises(RecordError, match="no colour"), report.beside(fail) as wait:
        wait()
    with report.beside(lambda: [1, 2]) as wait:
        assert wait() == [1, 2]
    with pytest.raises(RuntimeError, match=r"cannot be sent.*no colour(.|\n)*in fail_oddly"), report.beside(fail_oddly) as wait:
        wait()
    with pytest.raises(RuntimeError, match=r"cannot be sent.*<lambda>"), report.beside(lambda: lambda: 1) as wait:
        wait()


def test_the_command_prints_the_summary_and_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small(tmp_path / "study")
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "report"), "--gallery", "0"]) == 0
    printed = capsys.readouterr().out
    assert "nothing is said about methods" in printed
    assert printed.rstrip().endswith(str(tmp_path / "report" / "index.html"))
    assert not (tmp_path / "report" / "gallery").exists()
    assert 'id="gallery"' not in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_cells_run_by_their_printed_lines_are_reported_though_one_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one seed only `cell.json`, which a printed line writes last, tells the main arm from the sweeps; the failed cell has none."""
    study = studies.make_study(n=4, seeds=1)
    folder = studies.write_study(study, tmp_path / "study", cells=False)
    for run in study.runs:
        place = folder / "cells" / run.name
        if run.name == "grpo-d-gr-synth-s0":
            shutil.rmtree(place / "eval")
            write_json(place / "run.json", {**run.record, "status": "running", "results": None, "last": None, "best": None})
        else:
            write_json(place / "cell.json", {"name": run.name, "arm": run.arm})
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "report"), "--gallery", "0"]) == 0, capsys.readouterr().err
    said = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert {name: run["arm"] for name, run in said["runs"].items()} == {
        run.name: run.arm for run in study.runs if run.name != "grpo-d-gr-synth-s0"
    }
    assert [(one["run"], one["why"].partition(":")[0]) for one in said["missing"]] == [("grpo-d-gr-synth-s0", "unfinished")]
    assert said["sweeps"].keys() == {"beta", "format", "schedule"}


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(tmp_path / "empty"), "--out", str(tmp_path / "report")]) == 2
    assert "holds no run and no evaluation" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path), "--out", "x", "--gallery", "many"])
    assert "give a number of items" in capsys.readouterr().err
