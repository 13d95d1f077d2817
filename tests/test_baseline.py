"""Baseline files: they keep everything that a verdict needs, stay small, are written whole, and refuse every damage."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mr1_bench.cli import main
from mr1_bench.records import RecordError
from mr1_bench.reports import baseline, baseline_files
from mr1_bench.reports.baseline_files import Baseline
from mr1_bench.reports.regression import compare, history_of
from mr1_bench.reports.verdicts import ItemScore, Snapshot, TaskSnapshot, means_of
from tests.snapshots import IDENTITY, OTHER, TASK, side, task_of
from tests.test_regress_command import write_side


def shot(commit: str = "c0", turned: int = 0, n: int = 50) -> Snapshot:
    """A snapshot whose first `turned` items are wrong."""
    column = [float(index >= turned) for index in range(n)]
    one = side({TASK: task_of({"acc": column, "format": [1.0] * n}, tokens=[20.0] * n), OTHER: task_of({"acc": column})}, weights=commit)
    return replace(one, commit=commit, source="")


def saved(path: Path, snapshot: Snapshot, *, texts: bool = True) -> Baseline:
    """Write a snapshot as `baseline save` does, and read it back."""
    earlier = baseline_files.read(path) if path.exists() else None
    baseline_files.write(path, baseline_files.dump(snapshot, baseline_files.extend(earlier, snapshot), texts=texts))
    return baseline_files.read(path)


texts = st.text(st.characters(codec=None), max_size=12)  # with lone surrogates, which models do write
items = st.builds(
    ItemScore,
    doc_id=st.integers(0, 10**6),
    item=texts,
    gold=texts,
    text=st.none() | texts,
    scores=st.fixed_dictionaries(
        {"acc": st.sampled_from([0.0, 0.25, 1.0])}, optional={"format": st.sampled_from([0.0, 1.0]), "acc_r1v": st.sampled_from([0.0, 1.0])}
    ),
    value=st.none() | texts,
    tokens=st.none() | st.integers(0, 4096) | st.floats(0, 4096),
)


def _task(chosen: list[ItemScore], seed: int | None, engine: str) -> TaskSnapshot:
    return TaskSnapshot(IDENTITY, tuple(chosen), means_of(chosen), {"tokens_per_s": 12.5}, engine, seed, 4, "w")


tasks = st.builds(_task, st.lists(items, min_size=1, max_size=5), st.none() | st.integers(0, 9), texts)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from([TASK, OTHER]), st.tuples(tasks, tasks), min_size=1), texts, st.booleans())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, by_task: dict, label: str, packed: bool) -> None:  # type: ignore[type-arg]
    path = tmp_path_factory.mktemp("b") / ("x.jsonl.gz" if packed else "x.jsonl")
    snapshot = Snapshot("", "tiny", "w", "2026-01-01", by_task, "c", label)
    found = saved(path, snapshot).snapshot
    assert replace(found, source="") == snapshot


def test_a_history_grows_and_does_not_repeat_itself(tmp_path: Path) -> None:
    path = tmp_path / "main.jsonl"
    first, second = shot("c0"), shot("c1", 3)
    assert saved(path, first).history == ()
    assert saved(path, second).history == (history_of(first),)
    assert saved(path, second).history == (history_of(first),)  # the same evaluation again
    many = baseline_files.dump(second, [history_of(shot(f"c{index}", n=4)) for index in range(150)])
    baseline_files.write(path, many)
    kept = baseline_files.read(path).history
    assert (len(kept), kept[-1].commit) == (baseline_files.KEPT, "c149")


def test_history_tells_flaky_items_after_reading(tmp_path: Path) -> None:
    path = tmp_path / "main.jsonl.gz"
    for commit, turned in (("a", 0), ("b", 2), ("c", 0)):
        found = saved(path, shot(commit, turned))
    flaky = compare(found.snapshot, shot("d", 1), history=found.history).flaky
    assert [(one.doc_id, one.turns) for one in flaky if one.task == TASK] == [(0, 3)], "two turns are no habit"


def test_the_same_snapshot_gives_the_same_bytes(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    saved(a, shot())
    saved(b, shot())
    assert a.read_bytes() == b.read_bytes()


def test_a_baseline_of_the_real_size_is_small(tmp_path: Path) -> None:
    """954 items with texts of 600 characters and a full history stay below what a repository minds."""
    draw = random.Random(0)
    words = [f"word{index}" for index in range(500)]

    def text() -> str:
        return " ".join(draw.choices(words, k=90))

    kept = tuple(ItemScore(i, f"item-{i}", "4", text(), {"acc": float(draw.random() < 0.6), "format": 1.0}, "4", 200) for i in range(954))
    snapshot = Snapshot("", "m", "w", "", {TASK: (TaskSnapshot(IDENTITY, kept, means_of(kept)),)})
    path = tmp_path / "x.jsonl.gz"
    baseline_files.write(path, baseline_files.dump(snapshot, [history_of(snapshot)] * 100, texts=True))
    assert path.stat().st_size < 400_000
    baseline_files.write(path, baseline_files.dump(snapshot, texts=False))
    assert path.stat().st_size < 40_000


def test_without_texts_a_changed_answer_still_shows(tmp_path: Path) -> None:
    item = ItemScore(0, "a", "4", "four", {"acc": 1.0})
    assert baseline_files.item_hash(item) != baseline_files.item_hash(replace(item, text="4"))
    found = saved(tmp_path / "x.jsonl", shot(), texts=False)
    assert all(one.text is None for one in found.snapshot.tasks[TASK][0].items)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "main.jsonl"
    saved(path, shot())
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        baseline_files.write(path, b"x" * 100)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_every_cut_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    saved(path, shot("c0", n=4))
    saved(path, shot("c1", n=4))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(RecordError, match=r"x\.jsonl.*(save|another file)"):
            baseline_files.read(path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_every_changed_byte_is_refused_or_changes_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    snapshot = saved(path, shot(n=4)).snapshot
    content = path.read_bytes()
    draw = random.Random(1)
    for place in range(len(content)):
        other = draw.choice([value for value in range(256) if value != content[place]])
        path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
        try:
            assert baseline_files.read(path).snapshot == snapshot  # such as the header of gzip, which holds a time
        except RecordError as error:
            assert str(path) in str(error)


def test_lines_that_were_merged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    saved(path, shot(n=4))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "<<<<<<< main\n", *lines[2:]]))
    with pytest.raises(RecordError, match="restore it from version control"):
        baseline_files.read(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"not json\n", "is not a baseline"),
        (b'{"kind": "other"}\n', "is not a baseline"),
        (b"[]\n", "is not a baseline"),
        (b"\xff\xfe\n", "is not a baseline"),
        (gzip.compress(b"hello"), "is not a baseline"),
        (b'{"kind": "mr1-bench baseline", "format": 99}\n', "update mr1-bench"),
    ],
)
def test_foreign_files(tmp_path: Path, content: bytes, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    current = write_side(tmp_path / "run", 0.5, 0.5, n=5)
    assert main(["regress", "--baseline", str(path), "--current", str(current)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(path) in line and said in line


def test_a_task_that_this_version_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    old = shot(n=4)
    baseline_files.write(path, baseline_files.dump(replace(old, tasks={"mr1_vc_synth_v0": old.tasks[TASK]})))
    with pytest.raises(RecordError, match="another version"):
        baseline_files.read(path)


def test_save_list_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("GITHUB_SHA", "CI_COMMIT_SHA"):
        monkeypatch.delenv(name, raising=False)
    runs = [write_side(tmp_path / name, level, level, n=20) for name, level in (("one", 0.8), ("two", 0.4))]
    path = tmp_path / "baselines" / "main.jsonl.gz"
    monkeypatch.setenv("GITHUB_SHA", "a" * 40)
    assert main(["baseline", "save", str(runs[0]), "--to", str(path), "--label", "main"]) == 0
    assert main(["baseline", "save", str(runs[1]), "--to", str(path), "--label", "next", "--commit", "b" * 40]) == 0
    capsys.readouterr()
    assert main(["baseline", "list", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "main.jsonl.gz" in out and "next" in out and "bbbbbbbbbb" in out and "journal" not in out
    assert main(["baseline", "show", str(path)]) == 0
    assert "aaaaaaaaaa" in capsys.readouterr().out
    assert main(["baseline", "show", str(path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["commit"] == "b" * 40 and len(content["history"]) == 1 and content["tasks"][TASK][0]["n"] == 20
    assert main(["baseline", "save", str(runs[1]), "--to", str(path), "--fresh", "--tasks", TASK]) == 0
    again = baseline_files.read(path)
    assert again.history == () and list(again.snapshot.tasks) == [TASK]


def test_texts_are_kept_while_the_file_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = write_side(tmp_path / "run", 0.5, 0.5, n=20), tmp_path / "x.jsonl.gz"

    def kept(*options: str) -> bool:
        assert main(["baseline", "save", str(run), "--to", str(path), "--fresh", *options]) == 0
        return all(item.text is not None for item in baseline_files.read(path).snapshot.tasks[TASK][0].items)

    assert kept() and not kept("--no-texts")
    assert "left out" not in capsys.readouterr().out
    monkeypatch.setattr(baseline, "TEXTS_UP_TO", 100)
    assert not kept()
    assert sum("--texts" in line for line in capsys.readouterr().out.splitlines()) == 1
    assert kept("--texts")


def test_a_damaged_file_is_listed_and_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl"):
        saved(tmp_path / name, replace(shot(n=4), label=f"\x1b[2J{name[0]}"))
    for name in ("a.jsonl", "b.jsonl.gz"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    assert main(["baseline", "list", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert out.count("  damaged  ") == 2 and "cut off" in out and "⟨U+001B⟩[2Jc" in out and "\x1b" not in out


def test_an_items_hash_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    one = ItemScore(0, "a", "4", "four", {"acc": 1.0})
    with monkeypatch.context() as patched:
        patched.setattr(baseline_files, "item_hash", lambda item: "0" * 16)
        baseline_files.write(path, baseline_files.dump(side({TASK: TaskSnapshot(IDENTITY, (one,), {"acc": 1.0})})))
    with pytest.raises(RecordError, match="another hash"):
        baseline_files.read(path)


def test_save_refuses_what_would_lose_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_side(tmp_path / "run", 0.5, 0.5, n=5)
    notes = tmp_path / "notes.jsonl"
    notes.write_text("mine\n")
    assert main(["baseline", "save", str(run), "--to", str(notes)]) == 2
    assert notes.read_text() == "mine\n"
    assert main(["baseline", "save", str(run), "--to", str(tmp_path / "x.json")]) == 2
    assert main(["baseline", "save", str(run), "--to", str(tmp_path / "x.jsonl"), "--tasks", "mr1_vc"]) == 2
    assert main(["baseline", "save", str(tmp_path / "gone"), "--to", str(tmp_path / "x.jsonl")]) == 2
    path = tmp_path / "ok.jsonl"
    assert main(["baseline", "save", str(run), "--to", str(path)]) == 0
    assert main(["baseline", "save", str(path), "--to", str(tmp_path / "y.jsonl")]) == 2  # a baseline is no run
    path.write_bytes(path.read_bytes()[:-5])
    assert main(["baseline", "save", str(run), "--to", str(path)]) == 2  # its history would be lost
    assert main(["baseline", "list", str(tmp_path / "run")]) == 2
    assert "Traceback" not in capsys.readouterr().err
