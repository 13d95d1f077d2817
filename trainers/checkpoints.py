"""The run folder of a training: a lock, `run.json`, and checkpoints that are there whole or not at all.

    OUT/run.json            kind "train": status, config, identity, package versions, `last`, `best`, results
    OUT/checkpoints/step-000050/            a Hugging Face checkpoint, its run.json (kind "checkpoint") and
                    trainer_state/{state.json, optimizer.safetensors}, in the last `keep` checkpoints only
    OUT/last, OUT/best      relative symlinks into checkpoints/

A process may be killed, or the power cut, at any moment. So a checkpoint is written into a hidden sibling folder, synced, and renamed;
older ones go only after that; and what an interrupted write leaves behind is removed when the folder is opened next. It must not know how
a model is trained or exported: it is handed a function that writes the model's files, tensors, and values.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from mr1_bench.errors import UserError
from mr1_bench.records import FORMAT, RecordError, file_sha256, package_versions, read_json, sha256_json, write_json
from mr1_bench.source import commit
from mr1_bench.trainers.memory import human_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from mr1_bench.trainers.config import TrainConfig

Status = Literal["finished", "stopped"]

MAY_CHANGE = ("log_to", "stop_on_alarm", "keep", "vllm_url", "mismatch_limit")
"""Fields of the configuration that a resumed run may change, for they change no number of it. `out` may be spelled in another way."""

_CHECKPOINTS, _STATE, _LOCK = "checkpoints", "trainer_state", ".lock"
_TENSORS, _VALUES = "optimizer.safetensors", "state.json"
_WRITTEN = ("run.json", "metrics.jsonl", "evals.jsonl", "samples.jsonl", "last", "best")  # each by a hidden file that is then renamed
_BESIDE = (_LOCK, "cell.json", "log.txt")  # of a grid, before the training begins or of a failed attempt: they hold no result
_STEP = re.compile(r"step-\d+")
_NEW, _OLD, _DROPPED = ".new", ".old", ".dropped"  # endings of hidden folders: being written, replaced, being removed
_MARGIN = 16 * 2**20  # bytes to leave free beside a checkpoint: tokenizer, configuration, metrics
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)

# A lock lives as long as its open file, and the kernel frees it when the process ends, however it ends: nothing on disk can go stale.
_held: dict[Path, IO[str]] = {}


def open_run(config: TrainConfig, identity: Mapping[str, Any]) -> Path | None:
    """Make or take over the run folder `config.out`, lock it for this process, and record that the run is running.

    Args:
        config: the settings; all but `MAY_CHANGE` and `out` must be those of the run that the folder holds.
        identity: what else decides the result, as JSON values: hashes of start weights, data, prompts, code. Nothing in it may change.

    Returns:
        The newest checkpoint, to go on from; None where there is none yet. Its checksums are for `load_state` to check.

    Raises:
        UserError: the folder holds other files, or another run (the first differing field is named with both values), or is in use by
            another process, or cannot be written; or the newest checkpoint is incomplete.
    """
    out = config.out
    _refuse_others(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        _lock(out)
        return _open_locked(config, identity)
    except OSError as error:
        close_run(out)
        raise UserError(f"--out {out} cannot be written ({error.strerror}); make room or take the right to it, or choose another") from None
    except BaseException:
        close_run(out)
        raise


def _open_locked(config: TrainConfig, identity: Mapping[str, Any]) -> Path | None:
    out = config.out
    _refuse_others(out)  # again: another process may have begun a run here before the lock was ours
    now = {"config": config.asdict(), "identity": dict(identity)}
    now = json.loads(json.dumps(now))
    run = read_json(out / "run.json") if (out / "run.json").exists() else None
    if run is not None:
        _refuse_changed(out, run, now)
    _clean(out)
    newest = _newest(out)
    if newest is not None:
        _read_values(newest)
    _point(out)
    versions = package_versions()
    if run is None:
        run = {"format": FORMAT, "kind": "train", "method": config.method, "task": config.task, "seed": config.seed}
        run |= {"started": _now(), "packages": versions, "commit": commit(), "results": None}
    elif run["packages"] != versions:
        changed = [name for name in sorted({*versions, *run["packages"]}) if versions.get(name) != run["packages"].get(name)]
        print(
            f"note: this run began with other versions of {', '.join(changed)}; it goes on, but may not be bitwise the same",
            file=sys.stderr,
        )
        run["packages_resumed"] = versions
    done = run.get("status") == "finished" and newest is not None and run.get("last") == _relative(out, newest)
    write_json(out / "run.json", run | now | {"status": "finished" if done else "running"} | _links(out))
    return newest


def close_run(out: Path) -> None:
    """Give the lock of a run folder back; does nothing if this process does not hold it."""
    lock = _held.pop(out.resolve(), None)
    if lock is not None:
        lock.close()


def finish_run(config: TrainConfig, status: Status, results: Mapping[str, Any] | None = None) -> None:
    """Record how a run ended, with its results (JSON values), and give the lock back.

    Args:
        config: the settings of the run.
        status: `finished`, or `stopped` before its last step (by an alarm or a signal); a stopped run can be resumed.
        results: what the run came to, for `run.json`.
    """
    path = config.out / "run.json"
    write_json(path, read_json(path) | {"status": status, "ended": _now(), "results": None if results is None else dict(results)})
    close_run(config.out)


def save(
    config: TrainConfig,
    step: int,
    export: Callable[[Path], None],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    export_bytes: int = 0,
) -> Path:
    """Write a checkpoint, whole or not at all; then point `last` and `best` to the right ones and remove old ones.

    `best` is the checkpoint with the highest `val_accuracy` in its record, the earliest of equals. The last `config.keep` (at least one)
    and the best stay; the trainer's state stays in the last `config.keep` only.

    Args:
        config: the settings of the run, whose folder is open.
        step: optimisation steps done.
        export: writes the model in Hugging Face form into the empty folder it is given.
        tensors: the trainer's tensors (`Optimizer.tensors()`).
        state: the trainer's other state, as JSON values.
        record: added to the checkpoint's `run.json`, `val_accuracy` (None if not evaluated at this step) among it.
        export_bytes: what `export` is expected to write, for the check of free space; the last checkpoint's size if that is larger.

    Raises:
        UserError: the disk is full or fails. The checkpoints before this one are as they were.
    """
    out = config.out
    folder = out / _CHECKPOINTS / f"step-{step:06d}"
    partial = folder.with_name(f".{folder.name}{_NEW}")
    before = _newest(out)
    try:
        expected = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        require_space(out, expected + max(export_bytes, 0 if before is None else _size(before, but=_STATE)))
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        export(partial)
        write_json(partial / "run.json", _record(config, step) | dict(record))
        _write_state(partial, step, tensors, state)
        _publish(partial, folder)
        _point(out)
        _prune(out, max(config.keep, 1))
        write_json(out / "run.json", read_json(out / "run.json") | {"status": "running"} | _links(out))
    except Exception as error:  # the tokenizer's own writer raises a bare Exception where the disk is full
        if not _disk_failed(error):
            raise
        raise UserError(
            f"checkpoint {folder.name} could not be written: {error}. "
            + (f"{before.name} is intact" if before is not None else "There is no earlier one")
            + f". Make room in {out} (a smaller --keep needs less), then run the same command again: it goes on from "
            + (f"{before.name}." if before is not None else "the start.")
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` was given for a checkpoint, after checking every file of it by size and SHA-256.

    Returns:
        The tensors, on the CPU, and the other state.

    Raises:
        UserError: a file is missing or damaged; it says which, and what to do.
    """
    from safetensors.torch import load_file

    content = _read_values(folder)
    for name, facts in content["files"].items():
        if (found := file_sha256(folder / name)) != facts["sha256"]:
            raise _corrupt(folder, f"{name} is damaged: its SHA-256 begins {found[:12]}, but {facts['sha256'][:12]} was written")
    return load_file(folder / _STATE / _TENSORS), content["state"]


def require_space(out: Path, needed: int) -> None:
    """Refuse to go on where the disk of an existing folder has no room for a checkpoint of `needed` bytes.

    Raises:
        UserError: it has not; the message has the numbers.
    """
    free = shutil.disk_usage(out).free
    if free < needed + _MARGIN:
        raise UserError(
            f"the disk of {out} is full: a checkpoint takes {human_bytes(needed)}, {human_bytes(free)} are free. Make room (a smaller "
            "--keep needs less), then run the same command again: it goes on from its last checkpoint, which is intact"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _refuse_others(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if not out.is_dir() or (out / "run.json").is_file():
        return
    others = sorted(path.name for path in out.iterdir() if path.name not in _BESIDE and not path.name.startswith(".run.json."))
    if others:
        shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise UserError(f"--out {out} holds other files ({shown}) and no run.json; choose a folder that is empty or does not exist")


def _lock(out: Path) -> None:
    close_run(out)  # a run of this process that ended by an exception
    file = (out / _LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"another process is training in {out}: wait for it, or stop it, or choose another --out") from None
    except OSError as error:  # some network file systems know no locks, and are usable all the same
        print(f"note: {out} cannot be locked ({error.strerror}): see to it that only one process trains in it", file=sys.stderr)
    _held[out.resolve()] = file


def _refuse_changed(out: Path, run: Any, now: Mapping[str, Any]) -> None:
    kind = run.get("kind") if isinstance(run, dict) else None
    if kind != "train" or not all(isinstance(run.get(key), dict) for key in ("config", "identity", "packages")):
        raise UserError(f"--out {out} holds a run.json of kind {kind!r}, no training; choose another folder")
    ignored = {"config.out", *(f"config.{name}" for name in MAY_CHANGE)}
    old, new = dict(_flat(run["config"], "config")), dict(_flat(now["config"], "config"))
    old |= _flat(run["identity"], "identity")
    new |= _flat(now["identity"], "identity")
    for name in [*new, *(name for name in old if name not in new)]:
        if name not in ignored and (name not in old or name not in new or old[name] != new[name]):
            then, value = (repr(side[name]) if name in side else "absent" for side in (old, new))
            field = name.removeprefix("config.")
            raise UserError(
                f"--out {out} holds another run: there {field} is {then}, now it is {value}. "
                f"Give it its former value to go on with that run, or choose another --out to begin a new one"
            )


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Pairs of dotted name and value of nested objects, so that a difference can be named."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    else:
        yield name, value


def _steps(out: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted((path for path in (out / _CHECKPOINTS).glob("step-*") if _STEP.fullmatch(path.name)), key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _newest(out: Path) -> Path | None:
    return next(reversed(_steps(out)), None)


def _relative(out: Path, folder: Path) -> str:
    return folder.relative_to(out).as_posix()


def _size(folder: Path, *, but: str) -> int:
    """Bytes of a folder's files, without those of one folder in it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != but)
    return sum(path.stat().st_size for path in files)


def _clean(out: Path) -> None:
    """Remove what killed writes left behind. A checkpoint that was set aside, but not yet replaced, comes back."""
    for name in _WRITTEN:
        for path in out.glob(f".{name}.*"):
            path.unlink()
    for path in (out / _CHECKPOINTS).glob(".step-*"):
        whole = path.with_name(path.name.removesuffix(_OLD)[1:])
        if path.name.endswith(_OLD) and not whole.exists():
            path.replace(whole)
        else:
            shutil.rmtree(path)
    for path in (out / _CHECKPOINTS).glob(f"step-*/.{_STATE}{_DROPPED}"):
        shutil.rmtree(path)


def _record(config: TrainConfig, step: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": "checkpoint",
        "method": config.method,
        "task": config.task,
        "seed": config.seed,
        "step": step,
        "config": config.asdict(),
    }


def _write_state(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    (folder / _STATE).mkdir(exist_ok=True)  # another engine's export may have put its own state there
    save_file(dict(tensors), folder / _STATE / _TENSORS)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = {_relative(folder, path): {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files}
    content = {"format": FORMAT, "step": step, "state": dict(state), "files": facts}
    write_json(folder / _STATE / _VALUES, content | {"sha256": sha256_json(content)})


def _read_values(folder: Path) -> dict[str, Any]:
    """The content of state.json, after checking it, and that every file it lists is there with its size.

    Raises:
        UserError: something is missing or damaged.
    """
    path = folder / _STATE / _VALUES
    if not path.parent.is_dir():
        raise UserError(
            f"{folder} has no {_STATE}, for newer checkpoints took its place and are gone, so the run cannot go on; "
            f"begin a new one from its weights: --model {folder} and another --out"
        )
    try:
        content = read_json(path)
    except RecordError as error:
        raise _corrupt(folder, str(error)) from None
    if not isinstance(content, dict) or content.pop("sha256", None) != sha256_json(content):
        raise _corrupt(folder, f"{_STATE}/{_VALUES} is damaged: it does not match its own checksum")
    for name, facts in content["files"].items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != facts["bytes"]:
            seen = "is missing" if found is None else f"has {found} bytes"
            raise _corrupt(folder, f"{name} {seen}, but {facts['bytes']} bytes were written")
    return content


def _corrupt(folder: Path, what: str) -> UserError:
    earlier = [path for path in _steps(folder.parent.parent) if _step_of(path) < _step_of(folder) and (path / _STATE).is_dir()]
    then = f"goes on from {earlier[-1].name}" if earlier else "starts from the beginning"
    return UserError(f"checkpoint {folder} is corrupt: {what}. Remove that folder; the same command then {then}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(partial: Path, folder: Path) -> None:
    """Give a whole checkpoint its name, so that at any moment either it or what it replaces is there."""
    for path in sorted(partial.rglob("*"), reverse=True):
        _sync(path)
    _sync(partial)
    old = folder.with_name(f".{folder.name}{_OLD}")
    if folder.exists():
        folder.replace(old)
    partial.replace(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _accuracy(folder: Path) -> float | None:
    path = folder / "run.json"
    value = read_json(path).get("val_accuracy") if path.is_file() else None
    return None if value is None else float(value)


def _best(out: Path) -> Path | None:
    scored = [(accuracy, folder) for folder in _steps(out) if (accuracy := _accuracy(folder)) is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None  # of equals, `max` takes the first


def _point(out: Path) -> None:
    """Make `last` and `best` point to the right checkpoints, decided from these alone, so that the next opening mends what a kill left."""
    for name, folder in (("last", _newest(out)), ("best", _best(out))):
        link = out / name
        if folder is None:
            link.unlink(missing_ok=True)
        elif not link.is_symlink() or link.readlink() != folder.relative_to(out):
            fresh = out / f".{name}.link"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(folder.relative_to(out))
            fresh.replace(link)
    _sync(out)


def _links(out: Path) -> dict[str, str | None]:
    return {name: (out / name).readlink().as_posix() if (out / name).is_symlink() else None for name in ("last", "best")}


def _prune(out: Path, keep: int) -> None:
    best = _best(out)
    for folder in _steps(out)[:-keep]:
        gone = folder / _STATE if folder == best else folder
        if gone.exists():
            hidden = gone.with_name(f".{gone.name}{_DROPPED}")
            gone.replace(hidden)
            shutil.rmtree(hidden)


def _disk_failed(error: Exception) -> bool:
    """Whether an exception says that the disk is full or fails; writers in Rust say so in their text only."""
    if isinstance(error, OSError):
        return error.errno in _DISK_ERRORS
    return any(f"os error {code})" in str(error) for code in _DISK_ERRORS)
