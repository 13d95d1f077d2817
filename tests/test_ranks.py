"""Processes that share an evaluation: each piece of work is done once, and whatever happens to one, all end with one line."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta

import pytest

from mr1_bench.errors import UserError
from mr1_bench.tasks import ranks
from mr1_bench.tasks.ranks import Ranks, own_gpus
from tests.processes import is_running

pytestmark = pytest.mark.scale

WORK = """
import os, sys, time
from mr1_bench.errors import UserError
from mr1_bench.tasks import ranks

attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
crew = ranks.join()
with open(f"{sys.argv[2]}{crew.rank}", "w") as file:
    file.write(str(os.getpid()))

def work():
    assert not any(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    what = sys.argv[1]
    if what == "twice":
        what = ("last fails", "go")[int(attempt)]
    crew.agree("settings", str(crew.rank) if what == "differ" else "same")
    if what == "last fails" and crew.rank == crew.world - 1:
        raise UserError("no space here")
    if what == "crash" and crew.rank == 1:
        raise ZeroDivisionError("of no use")
    if what == "all fail":
        raise UserError("nothing to do")
    if what == "garbage" and not crew.first:
        crew._store.set("result1/0/0", b"no answer")
        crew._store.set("result1/0", b"1")
    got = {}
    for number in crew.divide(list(range(9)), got.__setitem__):
        time.sleep(0.01 if what == "go" else 600)
        crew.hand_in(number, number * number)
    if crew.first:
        assert got == {number: number * number for number in range(9)}, got
        print("done", flush=True)
    return 0

sys.exit(crew.run(work))
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def processes(tmp_path, what, world=2, **env):
    """`world` processes that do `what`, without a launcher over them: the first holds the store."""
    script = tmp_path / "work.py"
    script.write_text(WORK)
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()} | env
    started = []
    for rank in range(world):
        own = {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        command = [sys.executable, str(script), what, str(tmp_path / "pid")]
        started.append(
            subprocess.Popen(command, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        )
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def end(started, limit=60):
    """Exit codes and what was said, once all have ended."""
    deadline = time.monotonic() + limit
    said = [process.communicate(timeout=max(0.1, deadline - time.monotonic())) for process in started]
    return [process.returncode for process in started], "".join(out for out, _ in said), "".join(error for _, error in said)


def lines(text):
    return [line for line in text.splitlines() if line.startswith("mr1-bench: ")]


def wait_for(condition, limit=60):
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("what", "world", "codes", "line"),
    [
        ("go", 3, [0, 0, 0], None),
        ("differ", 2, [2, 2], "process 1 of 2: settings here differ"),
        ("last fails", 3, [2, 2, 2], "process 2 of 3: no space here"),
        ("all fail", 3, [2, 2, 2], "nothing to do"),
        ("crash", 2, [2, 1], "process 1 of 2 crashed; what was answered is kept"),
        ("garbage", 2, [2, 2], "what another process handed in cannot be read"),
    ],
)
def test_all_end_alike_and_one_says_why(tmp_path, what, world, codes, line):
    with processes(tmp_path, what, world) as started:
        found, out, error = end(started)
    assert found == codes, error
    assert out == ("done\n" if line is None else "")
    assert len(lines(error)) == (line is not None), error
    assert line is None or line in error
    assert ("ZeroDivisionError: of no use" in error) == (what == "crash")


@pytest.mark.parametrize(("rank", "how"), [(0, signal.SIGKILL), (0, signal.SIGSTOP), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_process_that_dies_or_hangs_ends_the_others(tmp_path, rank, how):
    with processes(tmp_path, "wait", 3, MR1_RANK_SILENCE_S=8) as started:
        wait_for(lambda: len(list(tmp_path.glob("pid*"))) == 3)
        time.sleep(2)  # some beats
        os.kill(started[rank].pid, how)
        rest = [process for process in started if process is not started[rank]]
        codes, _, error = end(rest)
        assert codes == [2, 2]
        assert len(lines(error)) == 1, error
        gone = "the launcher or the first process is gone" if rank == 0 else f"process {rank} of 3 gave no sign"
        assert gone in error and "run the same command again" in error


def test_without_their_launcher_they_end(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(WORK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen([*torchrun, str(script), "wait", str(tmp_path / "pid")], stderr=log, stdout=log)
    found = []
    try:
        wait_for(lambda: len(list(tmp_path.glob("pid*"))) == 2)
        wait_for(lambda: all((tmp_path / f"pid{rank}").read_text() for rank in (0, 1)))
        found = [int((tmp_path / f"pid{rank}").read_text()) for rank in (0, 1)]
        time.sleep(2)
        launcher.kill()
        launcher.wait()
        wait_for(lambda: not any(is_running(pid) for pid in found))
    finally:
        launcher.kill()
        for pid in filter(is_running, found):
            os.kill(pid, signal.SIGKILL)
    assert len(lines((tmp_path / "log").read_text())) in (1, 2)  # nobody is left through whom they could settle who says it


def test_what_a_first_attempt_left_in_the_store_does_not_end_the_second(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(WORK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    command = [*torchrun, "--max_restarts", "1", str(script), "twice", str(tmp_path / "pid")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "done\n"
    assert len(lines(found.stderr)) == 1 and "no space here" in found.stderr


@pytest.fixture
def crew(monkeypatch):
    from torch.distributed import TCPStore

    made = []

    def make(world):
        server = TCPStore("127.0.0.1", 0, None, True, timeout=timedelta(seconds=20), wait_for_workers=False)
        stores = [TCPStore("127.0.0.1", server.port, None, False, timeout=timedelta(seconds=20)) for _ in range(world)]
        monkeypatch.setattr(ranks, "_BEAT_S", 0.02)
        found = [Ranks(rank, world, rank, world, store, 30.0) for rank, store in enumerate(stores)]
        made.extend([*found, server])
        return found

    yield make
    for one in made:
        if isinstance(one, Ranks):
            one._stop.set()
            one._left.set()
    time.sleep(0.2)


def test_every_piece_is_done_once_and_arrives_whole(crew):
    members = crew(4)
    pieces = [2, 3, 5, 7, *range(10, 60)]
    done, got, lock = Counter(), {}, threading.Lock()

    def work(member):
        for number in member.divide(pieces if member.first else [], got.__setitem__):
            with lock:
                done[number] += 1
            # the longest is more than the store takes at once, compressed too
            text = os.urandom(6 << 20).hex() if number == 5 else f"√ of {number}"
            member.hand_in(number, {"text": text, "rank": member.rank})

    threads = [threading.Thread(target=work, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done == Counter(pieces)
    assert sorted(got) == pieces
    assert len(got[5]["text"]) == 12 << 20
    assert got[7]["text"] == "√ of 7"


def test_those_that_are_done_wait_for_the_first_as_long_as_it_lives(crew, monkeypatch):
    first, other = crew(2)
    monkeypatch.setattr(ranks, "_ANSWER_LIMIT_S", 0.1)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(other._finish()))
    thread.start()
    time.sleep(1)
    assert thread.is_alive()
    first._finish()
    thread.join(20)
    assert ended == [None]


def test_a_first_process_that_has_closed_its_journal_still_beats(crew):
    first, other = crew(2)
    arrived = []

    def closed(number, result):
        arrived.append(number)
        raise ValueError("write to closed file")

    first._receive = closed
    other.hand_in(0, "an answer")
    wait_for(lambda: arrived, 20)
    beat = int(other._store.get("beat0"))
    wait_for(lambda: int(other._store.get("beat0")) > beat + 2, 20)  # before the watch over it ends this process


def test_alone_nothing_is_shared():
    alone, got = Ranks(), {}
    assert alone.first and alone.tell("key", "value") == "value"
    for _ in range(2):
        got.clear()
        for number in alone.divide([4, 2], got.__setitem__):
            alone.hand_in(number, -number)
        assert got == {4: -4, 2: -2}
    assert alone.run(lambda: 7) == 7


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set but 'RANK' is not"),
        ({"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "cannot be reached"),
    ],
)
def test_half_a_launcher_is_refused(monkeypatch, env, message):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        ranks.join()


@pytest.mark.parametrize("text", ["abc", "nan", "0", "-1", "inf", ""])
def test_a_wrong_silence_is_named(monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MR1_RANK_SILENCE_S", text)
    with pytest.raises(UserError, match=f"^MR1_RANK_SILENCE_S={text}: expected seconds, more than 0"):
        ranks.join()


def test_each_process_has_gpus_of_its_own():
    visible = ["0", "1", "GPU-a", "GPU-b"]
    assert [own_gpus(Ranks(rank + 4, 8, rank, 4), 1, visible) for rank in range(4)] == [["0"], ["1"], ["GPU-a"], ["GPU-b"]]
    assert [own_gpus(Ranks(rank, 2, rank, 2), 2, visible) for rank in range(2)] == [["0", "1"], ["GPU-a", "GPU-b"]]
    for members, each in ((Ranks(0, 5, 0, 5), 1), (Ranks(1, 2, 1, 2), 3), (Ranks(), 8)):
        with pytest.raises(UserError, match="GPUs are needed on this machine"):
            own_gpus(members, each, visible)
