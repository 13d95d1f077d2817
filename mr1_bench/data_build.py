"""The builder: rows of a source become a stored set, wholly or not at all.

The parquet file is written in a folder of its own beside the set, flushed to disk and moved into place only when every row is in it;
nothing is dropped silently. This file must not know which forms sources have (`data_sources`) or how a set is read (`data`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mr1_bench.data import FORMAT, SPLITS, SYNTHETIC, DataDamagedError, SplitInfo, read_manifest, set_folder
from mr1_bench.data_sources import Fault, Source, SourceRow, sha256_of
from mr1_bench.errors import UserError
from mr1_bench.images import ImageError, NormalImage, normalise
from mr1_bench.specs import SPECS

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_GROUP = 32
"""Rows that are read together: few, because each holds its image."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SHOWN = 10
_FEATURES = {
    **{column: {"dtype": "string", "_type": "Value"} for column in ("id", "question", "gold")},
    "image": {"_type": "Image"},
    **{column: {"dtype": "string", "_type": "Value"} for column in ("solution", "meta")},
}
"""The columns in the Hugging Face form, so that `datasets` decodes the pictures."""


class DataError(UserError):
    """A source with rows that cannot be used; the message names the rows."""


_COUNTED = {spec.data for spec in SPECS if spec.answer == "count"}


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What a build did.

    Attributes:
        path: the set's parquet file.
        outcome: `built`, `replaced` (other content was there), `repaired` (a damaged file was there) or `up to date`.
        info: what the manifest says of the split now.
    """

    path: Path
    outcome: Literal["built", "replaced", "repaired", "up to date"]
    info: SplitInfo


@dataclass(slots=True)
class _Tally:
    """What is gathered while the rows go by."""

    rows: int = 0
    faults: list[Fault] = field(default_factory=list)
    duplicates: list[dict[str, Any]] = field(default_factory=list)
    rows_by_id: dict[str, int] = field(default_factory=dict)
    rows_by_content: dict[bytes, int] = field(default_factory=dict)
    content: Any = field(default_factory=hashlib.sha256)
    golds: Any = field(default_factory=hashlib.sha256)
    metas: Any = field(default_factory=hashlib.sha256)


def check_name(name: str) -> None:
    """Refuse a set name that is no plain folder name or belongs to an embedded set.

    Raises:
        UserError: with the names that are possible.
    """
    if name in SYNTHETIC:
        raise UserError(f"'{name}' is an embedded set: it is generated when it is used, and there is nothing to build")
    if not _NAME.fullmatch(name):
        raise UserError(
            f"'{name}' cannot name a data set: use up to 64 lower-case letters, digits, _ and -, starting with a letter or digit"
        )


def build(
    name: str,
    split: str,
    source: Source,
    *,
    directory: Path,
    allow_missing: bool = False,
    force: bool = False,
    limit: int | None = None,
    progress: bool = False,
) -> BuildResult:
    """Build one split of a set from a source.

    Args:
        name: the set's name.
        split: `test`, `train` or `validation`.
        source: the rows.
        directory: the data directory.
        allow_missing: leave rows out whose image is missing or broken, recording each in the manifest, instead of refusing them.
        force: replace a split of other content, or a damaged manifest.
        limit: take only the first rows.
        progress: show a progress bar on stderr.

    Raises:
        DataError: rows that cannot be used; nothing is written.
        UserError: other content is there already, or another build of the set is running.
    """
    check_name(name)
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}': use one of {', '.join(SPLITS)}")
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory, name):
        known = _known_splits(name, directory, force)
        workshop = directory / f".building-{name}"
        # Whatever a killed build left: the lock says that none is running.
        shutil.rmtree(workshop, ignore_errors=True)
        workshop.mkdir()
        try:
            info = _write_split(workshop / f"{split}.parquet", name, split, source, allow_missing, limit, progress)
            return _publish(workshop, name, split, info, known, directory, force)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path, name: str) -> Iterator[None]:
    """Hold the set's lock; the kernel releases it when the process ends, however it ends."""
    with (directory / f".{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another build of '{name}' in {directory} is running: wait for it, then run this again") from error
        yield


def _known_splits(name: str, directory: Path, force: bool) -> dict[str, SplitInfo]:
    try:
        return read_manifest(name, directory)
    except DataDamagedError:
        if not force:
            raise
        return {}


def _write_split(path: Path, name: str, split: str, source: Source, allow_missing: bool, limit: int | None, progress: bool) -> SplitInfo:
    """Write all rows to a parquet file and say what is in it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = schema()
    tally = _Tally()
    batch: list[dict[str, Any]] = []
    plain = [column for column in _FEATURES if column != "image"]
    # The pictures are compressed already.
    compression = {**dict.fromkeys(plain, "zstd"), "image.bytes": "none", "image.path": "zstd"}
    total = source.total if limit is None else min(limit, source.total)
    with pq.ParquetWriter(path, columns, compression=compression, use_dictionary=False, write_statistics=False) as writer:
        for row in _watched(source.rows, total, f"{name} {split}", progress):
            record = _record(row, name, split, tally)
            if record is not None:
                batch.append(record)
            if len(batch) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(batch, schema=columns))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=columns))
    _refuse_faults(tally, total, allow_missing)
    return SplitInfo(
        rows=tally.rows,
        sha256=sha256_of(path),
        content_hash=tally.content.hexdigest(),
        golds_hash=tally.golds.hexdigest(),
        meta_hash=tally.metas.hexdigest(),
        sources=(*source.provenance, *([] if limit is None else [{"kind": "limit", "rows": limit}])),
        skipped=tuple({"row": fault.row, "reason": fault.reason} for fault in tally.faults),
        duplicates=tuple(tally.duplicates),
    )


def schema() -> pa.Schema:
    """Return the columns of a stored split, marked so that `datasets` decodes the pictures."""
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [(column, image if column == "image" else pa.string()) for column in _FEATURES]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})})


def _watched(rows: Iterator[SourceRow | Fault], total: int, label: str, show: bool) -> Iterator[SourceRow | Fault]:
    """The first `total` rows, with a progress bar on stderr if asked for."""
    if not show:
        for _, row in zip(range(total), rows, strict=False):
            yield row
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        for _, row in zip(range(total), rows, strict=False):
            yield row
            bar.advance(task)


def _record(row: SourceRow | Fault, name: str, split: str, tally: _Tally) -> dict[str, Any] | None:
    """Normalise a row, note it in the tally, and give its record; None for a row at fault."""
    if isinstance(row, Fault):
        tally.faults.append(row)
        return None
    identity = f"{name}-{split}-{row.key:06d}" if isinstance(row.key, int) else row.key
    earlier = tally.rows_by_id.setdefault(identity, row.row)
    if earlier != row.row:
        tally.faults.append(Fault(row.row, f"id {identity} is also that of row {earlier}: ids must be unique", image=False))
        return None
    if name in _COUNTED and not row.gold.strip().isdecimal():
        tally.faults.append(Fault(row.row, f"gold {row.gold!r} is not a whole number, as a count has to be", image=False))
        return None
    try:
        picture = normalise(row.image)
    except ImageError as error:
        tally.faults.append(Fault(row.row, f"image {row.image_name}: {error}", image=True))
        return None
    meta = json.dumps(_meta(row, picture), sort_keys=True, default=_describe)
    _note(row, identity, picture, meta, tally)
    image = {"bytes": picture.png, "path": f"{Path(row.image_name).stem or identity}.png"}
    return {"id": identity, "question": row.question, "gold": row.gold, "image": image, "solution": row.solution, "meta": meta}


def _meta(row: SourceRow, picture: NormalImage) -> dict[str, Any]:
    """The source's other columns, and what was done to the picture."""
    facts = {
        "file": row.image_name,
        "original_size": list(picture.original_size),
        "original_mode": picture.original_mode,
        "changes": list(picture.changes),
    }
    return {**row.meta, "source_row": row.row, "source_image": facts}


def _describe(value: Any) -> str:
    """What stands in the meta column for a value that JSON does not have."""
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def _note(row: SourceRow, identity: str, picture: NormalImage, meta: str, tally: _Tally) -> None:
    """Count a good row, add it to the hashes, and remember duplicates."""
    tally.rows += 1
    content = json.dumps([row.question, row.gold, picture.pixel_hash]).encode()
    first = tally.rows_by_content.setdefault(hashlib.sha256(content).digest(), row.row)
    if first != row.row:
        tally.duplicates.append({"row": row.row, "same_as": first})
    tally.content.update(json.dumps([identity, row.question, row.gold, row.solution, picture.pixel_hash]).encode() + b"\n")
    tally.golds.update(json.dumps([identity, row.gold]).encode() + b"\n")
    tally.metas.update(json.dumps([identity, meta]).encode() + b"\n")


def _refuse_faults(tally: _Tally, total: int, allow_missing: bool) -> None:
    """Raise if rows are at fault, naming them, unless only images are and that was allowed."""
    hard = [fault for fault in tally.faults if not (fault.image and allow_missing)]
    if hard:
        shown = "\n".join(f"  row {fault.row}: {fault.reason}" for fault in hard[:_SHOWN])
        more = f"\n  and {len(hard) - _SHOWN} more" if len(hard) > _SHOWN else ""
        only_images = all(fault.image for fault in hard)
        advice = "Mend them, or leave these rows out with --allow-missing." if only_images else "Mend them and run this again."
        raise DataError(f"{len(hard)} of {total} rows cannot be used; nothing was written.\n{shown}{more}\n{advice}")
    if not tally.rows:
        why = f" The first: row {tally.faults[0].row}, {tally.faults[0].reason}." if tally.faults else ""
        raise DataError(f"no row is left of {total}: a set without rows would make every score meaningless; nothing was written.{why}")


def _publish(
    workshop: Path, name: str, split: str, info: SplitInfo, known: dict[str, SplitInfo], directory: Path, force: bool
) -> BuildResult:
    """Move the finished split into place, unless it is there already."""
    folder = set_folder(name, directory)
    target = folder / f"{split}.parquet"
    old = known.get(split)
    intact = old is not None and target.is_file() and sha256_of(target) == old.sha256
    same = old is not None and _identity(old) == _identity(info)
    if old is not None and same and intact:
        return BuildResult(target, "up to date", old)
    if old is not None and not same and not force:
        raise UserError(
            f"{target} holds something else: {_difference(old, info)}. Nothing was changed. Replace it with --force, or build under "
            "another name with --task-name."
        )
    folder.mkdir(exist_ok=True)
    _flush(workshop / target.name)
    if old is not None:
        # A kill between the two moves below then leaves a split that is absent, never one that contradicts its manifest.
        _write_manifest(workshop, folder, name, {key: value for key, value in known.items() if key != split})
    (workshop / target.name).replace(target)
    _write_manifest(workshop, folder, name, {**known, split: info})
    _flush(directory)
    return BuildResult(target, "built" if old is None else "repaired" if same else "replaced", info)


def _identity(info: SplitInfo) -> tuple[Any, ...]:
    return info.content_hash, info.meta_hash, info.skipped


def _difference(old: SplitInfo, new: SplitInfo) -> str:
    """How a split of the same name differs, in words."""
    if old.content_hash != new.content_hash:
        return f"{old.rows} rows ({old.content_hash[:12]}), where this source gives {new.rows} ({new.content_hash[:12]})"
    return "the same questions, golds and pictures, but other meta columns or other rows left out than this source gives"


def _write_manifest(workshop: Path, folder: Path, name: str, splits: dict[str, SplitInfo]) -> None:
    """Write the manifest atomically. No time stamp: the same sources give the same bytes."""
    from mr1_bench import __version__

    record = {
        "format": FORMAT,
        "name": name,
        "builder": f"mr1-bench {__version__}",
        "splits": {split: asdict(splits[split]) for split in sorted(splits)},
    }
    path = workshop / "manifest.json"
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _flush(path)
    path.replace(folder / path.name)
    _flush(folder)


def _flush(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
