"""A cell's attempt on a node of a cluster: in the grid's folder where every node sees it, else in a scratch folder that is sent back.

What is submitted is a `Ticket`, and what comes back an `Outcome`, whichever queue carries them. A node that was given up may come back, and
a queue may start a job whose command has long gone: so a cell has a claim, a file that the command writes before it submits, and that each
attempt takes over when it begins. An attempt that finds another's claim stops itself. This module must not know Ray, nor Slurm.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mr1_bench import records
from mr1_bench.reports import collecting
from mr1_bench.reports.cells import is_locked
from mr1_bench.reports.workers import TICK_S, Ended, Job, run_one, variables

ROOM = ".cluster"
"""Folder in the grid's folder for claims and for what a queue keeps."""
ATTEMPTS = 4
"""How often a cell is begun in one start of the command, so that one that brings its nodes down ends."""
_STOP_S = 3 * TICK_S  # for an attempt to see that its claim is gone, for which it looks every tick, and to stop
_SEEN_S = 15.0  # for a file of another machine to show: network file systems remember for a while that there was none
_SCRATCH = "mr1-cell-"
_FRESH_S = 60.0  # for a scratch folder's process to lock it
_LOCK_S = 150.0  # for a lock of a lost node to lapse: NFS keeps it for 90 s


@dataclass(frozen=True, slots=True)
class Ticket:
    """A cell on its way to a node.

    Attributes:
        job: the cell.
        out: the grid's folder.
        start: which submission this is; the claim begins with it.
        code: hash of the code that it has to be run with.
        threads: threads on CPUs.
        directory: where relative paths in the job start from, if the node has it.
        data: the data folder, for nodes whose environment names none; None: the default one.
    """

    job: Job
    out: str
    start: str
    code: str
    threads: int
    directory: str
    data: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: `ended`; or `refused`, as nothing of this grid can run on that node; never both."""

    ended: Ended | None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A cell's folder as bytes, with their hash; `ended` as in `Outcome`."""

    outcome: Outcome
    content: bytes
    sha256: str


def make_ticket(job: Job, out: Path, threads: int) -> Ticket:
    """The ticket of a new submission."""
    data = os.environ.get("MR1_DATA_DIR")
    return Ticket(job, str(out), uuid.uuid4().hex, own_code(), threads, str(Path.cwd()), data and str(Path(data).resolve()))


def claim_of(out: Path, name: str) -> Path:
    """The file that says whose a cell is: the submission's id, then the attempt's and its number once it has begun."""
    return out / ROOM / "claims" / name


def submit(ticket: Ticket) -> None:
    """Take the cell for this submission; to be called before it goes off. Attempts of earlier submissions stop then."""
    records.write_atomic(claim_of(Path(ticket.out), ticket.job.name), ticket.start)


def renew(ticket: Ticket) -> None:
    """Let the cell begin anew, its attempts counted from one, where it is this submission's still."""
    claim = _read(claim_of(Path(ticket.out), ticket.job.name))
    if claim and claim[0] == ticket.start:
        submit(ticket)


def withdraw(out: Path, name: str) -> None:
    """Take a cell back: nothing runs it any more, and what does after all stops."""
    claim_of(out, name).unlink(missing_ok=True)


def revoke(out: Path, held: Collection[str]) -> None:
    """Take back what an earlier start has left claimed, but for the cells that are held; gives what runs them the time to stop."""
    names = {path.name for path in claim_of(out, "any").parent.glob("*")} - set(held)
    for name in names:
        withdraw(out, name)
    if names:
        time.sleep(_STOP_S)


def has_begun(out: Path, name: str) -> bool:
    """Whether an attempt of the last submission of a cell has begun."""
    return len(_read(claim_of(out, name))) > 1


def own_code() -> str:
    """Hash of this machine's code, with that which runs cells."""
    return records.code_sha256("trainers", "reports")


def check_code(expected: str) -> str:
    """Why nothing can run on this node, if it has another version of mr1-bench; else empty."""
    if own_code() == expected:
        return ""
    return f"node {socket.gethostname()} has another version of mr1-bench than this machine; install the same on every node"


def offer_token(out: Path) -> str:
    """Write a token for one node to read."""
    token = uuid.uuid4().hex
    records.write_atomic(out / ROOM / f"token-{token}", "")
    return token


def answer_token(out: str, token: str) -> str:
    """On a node: read the token, and write the answer that the command looks for; gives the reason where that fails."""
    folder = Path(out) / ROOM
    if not _wait((folder / f"token-{token}").is_file, _SEEN_S):
        return _not_shared(out)
    try:
        records.write_atomic(folder / f"answer-{token}", "")
    except OSError as error:
        return f"node {socket.gethostname()} cannot write in {out} ({error.strerror}); give it the right to, or add --collect"
    return ""


def is_answered(out: Path, token: str) -> bool:
    """Whether a node's answer to the token shows here."""
    return _wait((out / ROOM / f"answer-{token}").is_file, _SEEN_S)


def drop_token(out: Path, token: str) -> None:
    """Take a token and its answer away."""
    for word in ("token", "answer"):
        (out / ROOM / f"{word}-{token}").unlink(missing_ok=True)


def run_shared(ticket: Ticket) -> Outcome:
    """Run a cell on this node, in the grid's folder."""
    refused = check_code(ticket.code)
    claim = claim_of(Path(ticket.out), ticket.job.name)
    if not refused and not _wait(claim.is_file, _SEEN_S) and not claim.parent.is_dir():
        refused = _not_shared(ticket.out)
    if refused:
        return Outcome(None, refused)
    start, *earlier = _read(claim) or [""]
    number = 1 + int(earlier[1]) if earlier else 1
    if start != ticket.start:
        return Outcome(_failed(ticket, "it was taken back, or submitted again, before it began"))
    if number > ATTEMPTS:
        return Outcome(_failed(ticket, f"its node was lost, or ended it, {ATTEMPTS} times"))
    mine = f"{ticket.start} {uuid.uuid4().hex} {number}"
    records.write_atomic(claim, mine)
    if earlier:
        time.sleep(_STOP_S)
    folder = Path(ticket.job.run).parent
    _wait(lambda: not _holds(claim, mine) or not any(is_locked(path) for path in _locks(folder)), _LOCK_S)
    begin = _holds(claim, mine)
    ended = run_one(ticket.job, _variables(ticket), lambda: _holds(claim, mine), _directory(ticket)) if begin else None
    return Outcome(ended or _failed(ticket, "another attempt of this cell has taken over"))


def run_apart(ticket: Ticket, begun: bytes | None) -> Parcel:
    """Run a cell on this node in a scratch folder, and pack what it leaves.

    Args:
        ticket: the cell.
        begun: its folder so far, packed; None where there is none.
    """
    refused = check_code(ticket.code)
    if refused:
        return Parcel(Outcome(None, refused), b"", "")
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_SCRATCH) as scratch, _locked(scratch):
        folder = Path(scratch) / ticket.job.name
        if begun is not None:
            collecting.unpack(begun, folder)
        ended = run_one(_moved(ticket.job, folder), _variables(ticket), lambda: True, _directory(ticket))
        content = collecting.pack(folder)
    return Parcel(Outcome(ended), content, collecting.digest(content))


def _sweep() -> None:
    """Remove scratch folders on this node whose process has ended without: a killed command's, or those of a worker that was ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        try:
            found = path.lstat()
            if found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode) and time.time() - found.st_mtime > _FRESH_S:
                with _locked(path) as free:
                    if free:
                        shutil.rmtree(path, ignore_errors=True)
        except OSError:  # another attempt has removed it
            continue


@contextmanager
def _locked(folder: str | Path) -> Iterator[bool]:
    """Hold a folder for this process, whose end lets go of it, however it ends; gives whether it is held, which not every disk knows."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    except OSError:
        held = False
    try:
        yield held
    finally:
        os.close(descriptor)


def _moved(job: Job, folder: Path) -> Job:
    """The same cell in another folder."""
    here = str(Path(job.run).parent)

    def move(word: str) -> str:
        return str(folder) + word[len(here) :] if word == here or word.startswith(here + "/") else word

    train, evaluate = (tuple(map(move, words)) for words in (job.train, job.evaluate))
    return replace(job, train=train, evaluate=evaluate, run=move(job.run), log=move(job.log))


def _variables(ticket: Ticket) -> dict[str, str]:
    data = {} if ticket.data is None or "MR1_DATA_DIR" in os.environ else {"MR1_DATA_DIR": ticket.data}
    return variables(ticket.threads) | data


def _directory(ticket: Ticket) -> str | None:
    return ticket.directory if Path(ticket.directory).is_dir() else None


def _locks(folder: Path) -> Iterator[Path]:
    yield folder / ".lock"
    yield from folder.glob("eval/*/journal.jsonl")


def _holds(claim: Path, mine: str) -> bool:
    try:
        return claim.read_text() == mine
    except FileNotFoundError:
        return False
    except OSError:  # a network file system that is away for a moment
        return True


def _read(claim: Path) -> list[str]:
    return claim.read_text().split() if claim.is_file() else []


def _failed(ticket: Ticket, why: str) -> Ended:
    return Ended(ticket.job.name, "failed", why, 0.0, 0.0)


def _not_shared(out: str) -> str:
    return (
        f"node {socket.gethostname()} does not see {out}: name a folder that every node shares, or add --collect "
        "(Ray only), which has the cells sent back"
    )


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until something holds, for some time at most; gives whether it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
