"""Attempts at a cell, and folders that are sent: a cell belongs to one attempt, and what is sent replaces nothing that it should not."""

import fcntl
import io
import os
import tarfile
import threading
from dataclasses import replace

import pytest

from mr1_bench.errors import UserError
from mr1_bench.reports import attempts, collecting, executor_slurm
from mr1_bench.reports.cells import is_locked
from mr1_bench.reports.workers import Job
from tests.clusters import running_cells
from tests.test_reproduce import wait_for


def ticket(out, name="cell"):
    folder = out / "cells" / name
    return attempts.make_ticket(Job(name, (), ("tasks",), str(folder / "run.json"), str(folder / "log.txt")), out, 1)


def test_attempt_that_is_taken_over_stops_itself(tmp_path, monkeypatch):
    """A node that was given up and is alive after all, at a cell that another has begun."""
    monkeypatch.setattr(attempts, "_STOP_S", 0.0)
    mine, found = ticket(tmp_path), []
    attempts.submit(mine)
    first = threading.Thread(target=lambda: found.append(attempts.run_shared(mine)))
    first.start()
    wait_for(lambda: running_cells(tmp_path / "cells" / "cell" / "log.txt"))
    assert attempts.has_begun(tmp_path, "cell")
    attempts.submit(ticket(tmp_path))
    first.join(30)
    assert found[0].ended.why == "another attempt of this cell has taken over"
    assert not running_cells(tmp_path / "cells" / "cell" / "log.txt")
    assert "was taken back, or submitted again" in attempts.run_shared(mine).ended.why  # and a job that begins late does nothing


def test_claims_of_a_killed_start_are_taken_back(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "_STOP_S", 0.0)
    monkeypatch.setattr(attempts, "_SEEN_S", 0.0)
    for name in ("a", "b"):
        attempts.submit(ticket(tmp_path, name))
    attempts.revoke(tmp_path, {"b"})
    assert [path.name for path in attempts.claim_of(tmp_path, "a").parent.iterdir()] == ["b"]
    assert "was taken back" in attempts.run_shared(ticket(tmp_path, "a")).ended.why


def test_cell_that_brings_its_nodes_down_ends(tmp_path):
    mine = ticket(tmp_path)
    attempts.submit(mine)
    attempts.claim_of(tmp_path, "cell").write_text(f"{mine.start} somebody {attempts.ATTEMPTS}")
    assert "its node was lost, or ended it, 4 times" in attempts.run_shared(mine).ended.why


def test_node_with_other_code_or_without_the_folder_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "_SEEN_S", 0.0)
    mine = ticket(tmp_path)
    assert "has another version of mr1-bench" in attempts.run_shared(replace(mine, code="another")).refused
    assert "has another version of mr1-bench" in attempts.run_apart(replace(mine, code="another"), None).outcome.refused
    assert f"does not see {tmp_path}" in attempts.run_shared(mine).refused
    assert f"does not see {tmp_path}" in attempts.answer_token(str(tmp_path), "none")
    token = attempts.offer_token(tmp_path)
    assert not attempts.is_answered(tmp_path, token)
    attempts.drop_token(tmp_path, token)
    assert not list((tmp_path / ".cluster").glob("token-*"))


def test_warned_attempt_that_has_lost_its_cell_does_not_take_it_back(tmp_path):
    mine, claim = ticket(tmp_path), attempts.claim_of(tmp_path, "cell")
    attempts.submit(mine)
    claim.write_text(f"{mine.start} me 3")
    executor_slurm.CellTask(mine).checkpoint()
    assert claim.read_text() == mine.start  # counted anew
    other = ticket(tmp_path)
    attempts.submit(other)
    executor_slurm.CellTask(mine).checkpoint()
    assert claim.read_text() == other.start
    attempts.withdraw(tmp_path, "cell")
    executor_slurm.CellTask(mine).checkpoint()
    assert not claim.exists()


def test_attempt_that_is_taken_over_while_it_waits_for_a_lock_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "run_one", lambda *args: pytest.fail("it was begun"))
    mine = ticket(tmp_path)
    folder = tmp_path / "cells" / "cell"
    folder.mkdir(parents=True)
    attempts.submit(mine)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(attempts, "is_locked", lambda path: attempts.submit(ticket(tmp_path)) or is_locked(path))
        assert attempts.run_shared(mine).ended.why == "another attempt of this cell has taken over"


def test_scratch_folders_of_ended_attempts_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(attempts, "_FRESH_S", 0.0)
    for name in ("mr1-cell-left", "mr1-cell-busy", "another"):
        (tmp_path / name / "cell").mkdir(parents=True)
    (tmp_path / "mr1-cell-link").symlink_to("another")
    with attempts._locked(tmp_path / "mr1-cell-busy") as held:
        assert held
        attempts._sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "mr1-cell-busy", "mr1-cell-link"]


def fill(folder, text):
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "weights").write_text(text)
    (folder / "last").symlink_to("checkpoints/step-1")
    (folder / ".lock").touch()
    return folder


def place(content, folder, before=None):
    return collecting.place(content, collecting.digest(content), folder, before, folder.parent.parent / "room")


def test_folder_that_is_sent_arrives_whole(tmp_path):
    umask = os.umask(0o002)  # what a group may write, tarfile does not bring back
    try:
        there = fill(tmp_path / "there", "good")
    finally:
        os.umask(umask)
    content = collecting.pack(there)
    folder = tmp_path / "cells" / "cell"
    assert place(content, folder) == ""
    assert (folder / "last" / "weights").read_text() == "good"
    assert (folder / "last").is_symlink()
    assert collecting.pack(folder) == content  # the lock stayed behind
    better = collecting.pack(fill(tmp_path / "better", "better"))
    assert place(better, folder, collecting.digest(content)) == ""
    assert (folder / "last" / "weights").read_text() == "better"
    assert not any((tmp_path / "room").iterdir())


def test_second_result_of_a_cell_and_a_damaged_one_are_dropped(tmp_path):
    first, second = (collecting.pack(fill(tmp_path / name, name)) for name in ("first", "second"))
    folder = tmp_path / "cells" / "cell"
    assert place(first, folder) == ""
    assert "has changed while it was run elsewhere" in place(second, folder)
    assert "does not have the hash" in collecting.place(second, "0" * 64, folder, collecting.digest(first), tmp_path / "room")
    assert (folder / "last" / "weights").read_text() == "first"


@pytest.mark.parametrize("name", ["../outside", "/outside", "link/outside"])
def test_folder_that_reaches_outside_is_refused(tmp_path, name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../.." if name.startswith("link") else "."
        archive.addfile(link)
        member = tarfile.TarInfo(str(tmp_path / "outside") if name.startswith("/") else name)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"bad"))
    room = tmp_path / "deep" / "room"
    try:
        collecting.unpack(buffer.getvalue(), room / "cell")
    except UserError as error:
        assert "cannot be used" in str(error)
    assert [path for path in tmp_path.rglob("outside") if room / "cell" not in path.parents] == []


def test_kill_between_two_renames_loses_nothing(tmp_path):
    folder, room = tmp_path / "cells" / "cell", tmp_path / "room"
    folder.parent.mkdir()
    fill(room / "cell.new", "new")
    fill(room / "cell.old", "old")
    collecting.finish(room, folder.parent)
    assert (folder / "last" / "weights").read_text() == "new"
    fill(room / "cell.new", "later")
    fill(room / "cell.part", "half")
    collecting.finish(room, folder.parent)
    assert (folder / "last" / "weights").read_text() == "new"
    assert not room.exists()
