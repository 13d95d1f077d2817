"""`mr1-bench regress` as a user runs it: exit codes, what it prints and writes, and files that are damaged in many ways."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mr1_bench.cli import main
from tests.studies import make_run, write_evaluation, write_run
from tests.study_answers import fake_hash

pytestmark = pytest.mark.usefixtures("without_collection")
VC, GR = "mr1_vc_synth", "mr1_gr_synth"
N = 60


def write_side(folder: Path, vc: float, gr: float, *, n: int = N, name: str = "", tasks: tuple[str, ...] = (VC, GR)) -> Path:
    """A finished evaluation with these true accuracies."""
    accuracy = {VC: vc, GR: gr}
    run = make_run("base", tasks=tasks, n=n, accuracy={task: accuracy.get(task, 0.5) for task in tasks}, name=name or folder.name, form=1.0)
    write_evaluation(folder, name or folder.name, fake_hash(name or folder.name), None, run.results)
    return folder


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `good` and `bad`: the second is far worse on both tasks."""
    root = tmp_path_factory.mktemp("sides")
    write_side(root / "good", 0.95, 0.95)
    write_side(root / "bad", 0.2, 0.2)
    return root


def regress(baseline: Path, current: Path, *more: str) -> int:
    return main(["regress", "--baseline", str(baseline), "--current", str(current), *more])


def test_exit_codes_and_reports(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert regress(sides / "good", sides / "bad", "--out", str(out)) == 1
    said = capsys.readouterr()
    assert said.out.count("regressed") >= 2 and "exact McNemar" in said.out and not said.err
    assert {path.name for path in out.iterdir()} >= {"summary.md", "junit.xml", "regression.json", "index.html"}
    content = json.loads((out / "regression.json").read_text())
    assert content["exit_code"] == 1 and {one["state"] for one in content["verdicts"] if one["headline"]} == {"regressed"}
    assert regress(sides / "bad", sides / "good", "--out", str(out)) == 0  # improved; the old report is replaced
    assert json.loads((out / "regression.json").read_text())["exit_code"] == 0
    assert regress(sides / "good", sides / "good") == 0


def test_fail_on_narrows_and_widens(sides: Path) -> None:
    good, bad = sides / "good", sides / "bad"
    assert regress(good, bad, "--fail-on", "none") == 0
    assert regress(bad, good, "--fail-on", "regressed,improved") == 1
    assert regress(good, good, "--fail-on", "regressed,inconclusive") == 1  # 60 items cannot rule out a point
    assert regress(good, bad, "--tasks", "mr1_synth", "--min-effect", "99") == 0


def test_a_new_task_can_be_allowed(sides: Path, tmp_path: Path) -> None:
    more = write_side(tmp_path / "more", 0.95, 0.95, name="good", tasks=(VC, GR, "mr1_vc_synth_l2"))
    assert regress(sides / "good", more) == 2
    assert regress(sides / "good", more, "--allow", "no-baseline") == 0
    assert regress(sides / "good", more, "--tasks", "mr1_synth") == 0


def test_a_baseline_that_does_not_exist_yet_is_no_baseline_and_no_pass(
    sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regress(tmp_path / "main.jsonl", sides / "good") == 2
    assert "mr1-bench baseline save" in capsys.readouterr().err
    assert regress(tmp_path / "main", sides / "good", "--allow", "no-baseline") == 2
    assert regress(tmp_path / "main", sides / "good", "--fail-on", "none") == 2


def test_the_exit_code_is_the_verdict_when_nobody_reads(sides: Path, tmp_path: Path) -> None:
    """`mr1-bench regress … | true`: the pipe is closed before anything is printed."""
    command = [sys.executable, "-m", "mr1_bench", "regress", "--baseline", str(sides / "good"), "--current", str(sides / "bad")]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads((tmp_path / "out/regression.json").read_text())["exit_code"] == 1


def test_what_files_say_is_visible_on_the_terminal(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    side = tmp_path / "side"
    shutil.copytree(sides / "good", side)
    edit_record(side, lambda run: run["config"].update(backend="\x1b[31mred\n::error::x"))
    assert regress(sides / "good", side) == 0
    out = capsys.readouterr().out
    assert "⟨U+001B⟩[31mred ::error::x" in out and "\x1b" not in out


def test_plan(sides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["regress", "--plan", "754", "--discordant", "20"]) == 0
    out = capsys.readouterr().out
    rows = {words[0]: words[-1] for line in out.splitlines() if (words := line.split()) and words[0] in ("200", "754", "2,000")}
    assert set(rows) == {"200", "754", "2,000"} and "yours" in out
    assert main(["regress", "--plan", "--baseline", str(sides / "good")]) == 0
    assert "60 (mr1_vc_synth)" in capsys.readouterr().out


USAGE = [
    ["--min-effect", "-1"],
    ["--alpha", "2"],
    ["--gate", "accuracy"],
    ["--gate", ""],
    ["--fail-on", "worse"],
    ["--tolerance", "format"],
    ["--tolerance", "format=x"],
    ["--tolerance", "speed=2"],
    ["--tasks", "mr1_gr_synth_l3"],
    ["--tasks", "nonsense"],
    ["--seed", "-1"],
]


@pytest.mark.parametrize("options", USAGE, ids=" ".join)
def test_bad_usage(sides: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert regress(sides / "good", sides / "good", *options) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_an_out_folder_with_other_files_is_left_alone(sides: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert regress(sides / "good", sides / "good", "--out", str(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_an_old_report_never_stands_for_a_comparison_that_failed(sides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert regress(sides / "good", sides / "good", "--out", str(out)) == 0
    assert regress(sides / "good", tmp_path / "gone", "--out", str(out)) == 2
    assert not (out / "junit.xml").exists()


# --- bad input


def samples_of(folder: Path, task: str = VC) -> Path:
    (found,) = folder.glob(f"*_samples_{task}.jsonl")
    return found


def edit_rows(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit_record(folder: Path, change: Callable[[Any], object], name: str = "run.json") -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "samples empty": lambda side: samples_of(side).write_text(""),
    "samples gone": lambda side: samples_of(side).unlink(),
    "samples cut off": lambda side: samples_of(side).write_bytes(samples_of(side).read_bytes()[:-200]),
    "samples without the last row": lambda side: samples_of(side).write_text(
        "".join(samples_of(side).read_text().splitlines(keepends=True)[:-1])
    ),
    "samples without scores": lambda side: edit_rows(samples_of(side), lambda row: row.pop("acc")),
    "samples with null scores": lambda side: edit_rows(samples_of(side), lambda row: row.update(acc=None)),
    "samples with other scores": lambda side: edit_rows(samples_of(side), lambda row: row.update(acc=1.0)),
    "samples binary": lambda side: samples_of(side).write_bytes(b"\xff\xfe\x00" * 99),
    "samples swapped between tasks": lambda side: swap(samples_of(side, VC), samples_of(side, GR)),
    "record empty": lambda side: (side / "run.json").write_text(""),
    "record cut off": lambda side: (side / "run.json").write_text((side / "run.json").read_text()[:300]),
    "record a list": lambda side: (side / "run.json").write_text("[]"),
    "record foreign": lambda side: (side / "run.json").write_text('{"kind": "eval", "name": "something else"}'),
    "record of another data set": lambda side: edit_record(side, lambda run: run["tasks"][VC].update(dataset_sha256="f" * 64)),
    "record of another prompt": lambda side: edit_record(side, lambda run: run["tasks"][VC].update(prompt_sha256="f" * 64)),
    "record of other decoding": lambda side: edit_record(side, lambda run: run["tasks"][VC]["decoding"].update(max_new_tokens=7)),
    "record of another task": lambda side: edit_record(side, lambda run: run["tasks"].update(mr1_vc_synth_v9=run["tasks"].pop(VC))),
    "folder empty": lambda side: [path.unlink() for path in side.iterdir()],
    "folder gone": shutil.rmtree,
}


@pytest.mark.parametrize("where", ["good", "bad"])
@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused_in_one_line_that_names_the_file(
    sides: Path, tmp_path: Path, what: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sides, tmp_path / "sides")
    DAMAGE[what](tmp_path / "sides" / where)
    # A drop that would fail must not come out as a pass, nor a model that is as good.
    assert regress(tmp_path / "sides/good", tmp_path / "sides/bad") == 2
    said = capsys.readouterr()
    if what.startswith("record of") or (what == "folder gone" and where == "good"):
        assert "not-comparable" in said.out or "no-baseline" in said.out or "not comparable" in said.out
    else:
        (line,) = said.err.strip().splitlines()
        assert str(tmp_path / "sides" / where) in line and ("; " in line or ": " in line)
    assert "Traceback" not in said.err


def plain(side: Path) -> Path:
    """The results and samples that plain lmms-eval would have left."""
    for name in ("run.json", "journal.jsonl"):
        (side / name).unlink()
    (side / "training.json").write_text('{"method": "base"}')
    (results,) = side.glob("*_results.json")
    return results


def test_results_of_plain_lmms_eval(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(sides, tmp_path / "sides")
    good, bad = plain(tmp_path / "sides/good"), plain(tmp_path / "sides/bad")
    assert regress(good, bad) == 1
    assert regress(good.parent, sides / "bad") == 1  # ours against theirs
    assert "not checked" in capsys.readouterr().out
    samples_of(bad.parent).unlink()
    assert regress(good, bad) == 2
    assert "--log_samples" in capsys.readouterr().err
    assert regress(samples_of(good.parent), bad) == 2
    assert "samples only" in capsys.readouterr().err


def test_sides_given_the_wrong_way_round(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "main.jsonl.gz"
    assert main(["baseline", "save", str(sides / "good"), "--to", str(saved), "--commit", "abc"]) == 0
    assert regress(saved, sides / "bad") == 1
    assert regress(sides / "bad", saved) == 2
    assert "swapped" in capsys.readouterr().err
    older = tmp_path / "older"
    shutil.copytree(sides / "good", older)
    edit_record(older, lambda run: run.update(started="2025-01-01T00:00:00+00:00"))
    assert regress(saved, older) == 2
    assert regress(saved, older, "--older") == 0
    assert regress(sides / "good", older) == 2  # folders know their times as well
    assert "swapped" in capsys.readouterr().err
    assert regress(sides / "good", older, "--older") == 0


def test_training_seeds_are_one_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, levels in (("old", (0.80, 0.82, 0.81)), ("new", (0.30, 0.32, 0.31))):
        for seed, level in enumerate(levels):
            accuracy = {VC: level, GR: level}
            write_run(make_run("grpo", GR, seed, name=f"{place}-s{seed}", accuracy=accuracy, n=N, form=1.0), tmp_path / place, cell=False)
    assert regress(tmp_path / "old", tmp_path / "new") == 1
    assert "3 and 3 training seeds" in capsys.readouterr().out
    shutil.rmtree(samples_of(tmp_path / "new/cells/new-s1/eval/main").parent)
    assert regress(tmp_path / "old", tmp_path / "new") == 1
    assert "3 and 2 training seeds" in capsys.readouterr().out


def test_repeats_are_averaged_within_an_item(sides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two answers to each item, both from the journal: the right first one and an empty second make a half."""
    side = tmp_path / "side"
    shutil.copytree(sides / "good", side)
    edit_record(side, lambda run: run["config"].update(repeats=2, temperature=1.0))

    def second(row: dict[str, Any]) -> None:
        answers = row.get("answers", {})
        row["answers"] = answers | {key.replace("/0/0000", "/1/0000"): {"text": "no idea", "tokens": 3} for key in answers}

    edit_rows(side / "journal.jsonl", second)
    assert regress(sides / "good", side) == 1
    out = capsys.readouterr().out
    assert "paired bootstrap" in out and " 60 " in out
    saved = tmp_path / "saved.jsonl.gz"
    assert main(["baseline", "save", str(side), "--to", str(saved)]) == 0
    assert "avg@2" in capsys.readouterr().out
    assert regress(saved, side) == 0
    edit_rows(side / "journal.jsonl", lambda row: row.get("answers", {}).popitem() if row.get("answers") else None)
    assert regress(saved, side) == 2
    assert "1 of 2 answers" in capsys.readouterr().err


def test_two_models_in_one_folder_are_named(sides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert regress(sides, sides / "bad") == 2
    assert "2 models" in capsys.readouterr().err


WEIRD: list[Any] = [None, True, -1, 0, 1e308, float("nan"), "", "x", "../../etc", [], [[]], {}, {"a": 1}, "\ud800", 10**40]


def some_place(value: Any, draw: random.Random) -> tuple[Any, Any]:
    """A random container in a JSON value, and a key of it."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw.choice(keys)
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.2:
            return value, key
        value = inner


def mutate(path: Path, others: list[Path], kind: str, draw: random.Random) -> None:
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "bytes":
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + draw.randbytes(draw.randrange(1, 4)) + content[at + draw.randrange(3) :])
    elif kind == "copy":
        path.write_bytes(draw.choice(others).read_bytes())
    elif kind == "gzip":
        path.write_bytes(gzip.compress(content))
    else:
        lines = [content.decode()] if path.suffix == ".json" else content.decode().splitlines()
        index = draw.randrange(len(lines))
        value = json.loads(lines[index])
        holder, key = some_place(value, draw)
        if kind == "drop":
            del holder[key]
        else:
            holder[key] = draw.choice(WEIRD)
        lines[index] = json.dumps(value)
        path.write_text("\n".join(lines) + "\n")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**9),
    kind=st.sampled_from(["cut", "bytes", "copy", "gzip", "drop", "value"]),
    where=st.sampled_from(["good", "bad"]),
    foreign=st.booleans(),
)
def test_a_mutated_file_is_refused_or_changes_nothing(
    sides: Path, tmp_path: Path, seed: int, kind: str, where: str, foreign: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The undamaged comparison regresses. With one file damaged it still does, or is refused: never a pass, never a traceback."""
    draw = random.Random(seed)
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(sides, work)
    if foreign:
        plain(work / "good")
        plain(work / "bad")
    files = sorted(path for path in work.rglob("*") if path.is_file())
    path = draw.choice([file for file in files if file.parent.name == where])
    mutate(path, [file for file in files if file != path], kind, draw)
    code = regress(work / "good", work / "bad")
    said = capsys.readouterr()
    assert code in (1, 2)
    if code == 2 and "verdict" not in said.out:
        (line,) = said.err.strip().splitlines()
        assert str(work) in line
