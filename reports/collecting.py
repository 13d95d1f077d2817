"""A cell's folder as bytes, to send between machines that share no folder, and the way back: whole or not at all, and never over another.

It must not know what lies in a cell, nor how the bytes travel.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from pathlib import Path

from mr1_bench.errors import UserError

_NEW, _OLD = ".new", ".old"


def digest(content: bytes) -> str:
    """SHA-256 (hex) of a packed folder."""
    return hashlib.sha256(content).hexdigest()


def pack(folder: Path) -> bytes:
    """Pack a folder: the same files give the same bytes. Locks stay behind."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.name != ".lock":
                archive.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=_plain)
    return buffer.getvalue()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the owner; and without times that a lock or a way through an archive changes: those of folders and links."""
    member.uid = member.gid = 0
    member.mode &= 0o755  # tarfile's filter takes the group's right to write, so a hash after it would be another
    member.uname = member.gname = ""
    member.mtime = int(member.mtime) if member.isreg() else 0
    return member


def unpack(content: bytes, folder: Path) -> None:
    """Unpack into a new folder. Nothing is written outside of it: names, links and kinds of files are those of tarfile's filter `data`.

    Raises:
        UserError: the bytes are no such folder, or reach outside.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError("--collect needs a Python whose tarfile has extraction filters: 3.11.4, or newer")
    folder.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            archive.extractall(folder, filter="data")
    except tarfile.TarError as error:
        shutil.rmtree(folder)
        raise UserError(f"a cell's folder that was sent cannot be used: {error}") from None


def place(content: bytes, sha256: str, folder: Path, before: str | None, room: Path) -> str:
    """Put a folder that was sent in its place; gives the reason where it is not put there.

    Killed at any moment, the place holds what was there before or what was sent, once `finish` has run.

    Args:
        content: the packed folder.
        sha256: the sender's hash of it.
        folder: where it belongs.
        before: hash of what lay there, packed, when it was sent off; None: nothing did. What has changed since is another's, and stays.
        room: a folder on the same file system, for the time between.

    Raises:
        UserError: the bytes are no folder, or reach outside.
    """
    if digest(content) != sha256:
        return "what was sent back does not have the hash that its node gave it; it was dropped"
    if (digest(pack(folder)) if folder.is_dir() else None) != before:
        return "its folder has changed while it was run elsewhere; what was sent back was dropped"
    new, old = room / (folder.name + _NEW), room / (folder.name + _OLD)
    part = room / f"{folder.name}.part"
    for path in (part, new, old):
        shutil.rmtree(path, ignore_errors=True)
    unpack(content, part)
    part.rename(new)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return ""


def finish(room: Path, cells: Path) -> None:
    """Finish what a kill in the middle of `place` left, and remove the rest."""
    for new in room.glob(f"*{_NEW}"):
        folder = cells / new.name.removesuffix(_NEW)
        if not folder.exists():
            new.rename(folder)
    shutil.rmtree(room, ignore_errors=True)
