"""Attempts at a cell, and folders that are sent: a cell belongs to one attempt, and what is sent replaces nothing that it should not."""

import io
import tarfile
import threading
from dataclasses import replace

import pytest

from mr1_bench.errors import UserError
from mr1_bench.reports import attempts, collecting
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
    assert not attempts.is_answered(tmp_path, attempts.offer_token(tmp_path))


def fill(folder, text):
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "weights").write_text(text)
    (folder / "last").symlink_to("checkpoints/step-1")
    (folder / ".lock").touch()
    return folder


def place(content, folder, before=None):
    return collecting.place(content, collecting.digest(content), folder, before, folder.parent.parent / "room")


def test_folder_that_is_sent_arrives_whole(tmp_path):
    content = collecting.pack(fill(tmp_path / "there", "good"))
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
