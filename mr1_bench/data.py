"""The data directory: where the sets lie, what a stored set looks like, and how its examples are read.

A set is a folder `<data directory>/<name>/` with one parquet file a split and a `manifest.json` that holds their checksums. Embedded sets
(`vc_synth`, `gr_synth`) are generated instead. This file must not know how a set is built (`data_build`), which forms its sources
have (`data_sources`), or what a prompt or a grader is.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from mr1_bench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from mr1_bench.synth import Family, Split

FORMAT = 1
"""Version of the stored form; a set of another version has to be built again."""
SPLITS = ("train", "validation", "test")
SYNTHETIC = {"vc_synth": "vc", "gr_synth": "gr"}
"""Embedded sets and the task whose generator makes them."""


class DataAbsentError(UserError):
    """A set or split that has not been built; the message says how to get it."""


class DataDamagedError(UserError):
    """A stored set that its manifest contradicts; the message says how to mend it."""


@dataclass(frozen=True, slots=True)
class Example:
    """One item of a set.

    Attributes:
        id: unique name in its split, such as `gr-test-000017`.
        question: the question, as the prompt template's `{Question}`.
        gold: the gold string.
        solution: worked solution without tags, for SFT; empty where the source has none.
        image_bytes: the picture as an encoded file; RGB, composited on white.
        meta: all else the source said, with the picture's original size.
    """

    id: str
    question: str
    gold: str
    solution: str
    image_bytes: bytes
    meta: dict[str, Any]

    @property
    def image(self) -> Image:
        """The picture, decoded anew on each access, in RGB."""
        from PIL import Image

        return Image.open(io.BytesIO(self.image_bytes)).convert("RGB")


class Examples(Sequence[Example]):
    """A split's examples, read when they are asked for, so that a large training set does not have to fit in memory."""

    def __init__(self, size: int, read: Callable[[int], Example]) -> None:
        """Hold `size` examples that `read` gives by position."""
        self._size = size
        self._read = read

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._read(position) for position in range(*index.indices(self._size))]
        position = index + self._size if index < 0 else index
        if not 0 <= position < self._size:
            raise IndexError(f"example {index} of {self._size}")
        return self._read(position)

    def __iter__(self) -> Iterator[Example]:
        return (self._read(position) for position in range(self._size))


@dataclass(frozen=True, slots=True)
class SplitInfo:
    """What the manifest says of one split: counts and checksums.

    Attributes:
        rows: number of examples.
        sha256: checksum (hex) of the parquet file.
        content_hash: SHA-256 over id, question, gold, solution and pixels of all rows, whatever the file's encoding.
        golds_hash: SHA-256 over id and gold of all rows.
        meta_hash: SHA-256 over the meta columns.
        sources: where the rows come from.
        skipped: rows left out, each with `row` (from 1) and `reason`.
        duplicates: rows kept that equal an earlier one, each with `row` and `same_as`.
    """

    rows: int
    sha256: str
    content_hash: str
    golds_hash: str
    meta_hash: str
    sources: tuple[dict[str, Any], ...]
    skipped: tuple[dict[str, Any], ...]
    duplicates: tuple[dict[str, Any], ...]


def data_dir() -> Path:
    """The data directory: `MR1_DATA_DIR`, or `mr1-bench` in the user's cache folder."""
    chosen = os.environ.get("MR1_DATA_DIR")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "mr1-bench"


def set_folder(name: str, directory: Path | None = None) -> Path:
    """Folder of a set, whether or not it exists."""
    return (directory or data_dir()) / name


def parquet_path(name: str, split: str = "test", directory: Path | None = None) -> Path:
    """Path of a split's parquet file.

    Raises:
        DataAbsentError: the split has not been built.
    """
    read_info(name, split, directory)
    return set_folder(name, directory) / f"{split}.parquet"


def read_manifest(name: str, directory: Path | None = None) -> dict[str, SplitInfo]:
    """What the manifest says of each split of a set; empty where there is no manifest.

    Raises:
        DataDamagedError: the manifest is not one of ours, or of another format version.
    """
    path = set_folder(name, directory) / "manifest.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise DataDamagedError(f"{path} cannot be read ({error}). {_rebuild_advice(name)}") from error
    try:
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise DataDamagedError(f"{path} has format {record['format']}; this version reads {FORMAT}. {_rebuild_advice(name)}")
        return {split: _parse_info(entry) for split, entry in record["splits"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataDamagedError(f"{path} is not a manifest ({type(error).__name__}: {error}). {_rebuild_advice(name)}") from error


def _parse_info(entry: dict[str, Any]) -> SplitInfo:
    fields: dict[str, Any] = {name: entry[name] for name in ("rows", "sha256", "content_hash", "golds_hash", "meta_hash")}
    fields |= {name: tuple(entry[name]) for name in ("sources", "skipped", "duplicates")}
    return SplitInfo(**fields)


def read_info(name: str, split: str, directory: Path | None = None) -> SplitInfo:
    """What the manifest says of one split.

    Raises:
        DataAbsentError: the split has not been built.
        DataDamagedError: the manifest cannot be used.
    """
    splits = read_manifest(name, directory)
    if split not in splits:
        raise DataAbsentError(absence_advice(name, split, directory))
    return splits[split]


def load(name: str, split: str = "test", *, level: int = 1, n: int = 600, directory: Path | None = None, verify: bool = True) -> Examples:
    """Open a split of a set.

    Args:
        name: a set in the data directory (`vc`, `gr`, or one of your own), or an embedded one (`vc_synth`, `gr_synth`).
        split: `test`, `train` or `validation`.
        level: difficulty of an embedded set, 1 to 5; ignored for others.
        n: number of items of an embedded set; ignored for others.
        directory: data directory, if not the default one.
        verify: compare the file's checksum with the manifest's; done once a process for an unchanged file.

    Raises:
        DataAbsentError: the split has not been built; the message says how to get it.
        DataDamagedError: the file is absent, or differs from its manifest.
        UserError: no such split, or no items asked of an embedded set.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}' of '{name}': use one of {', '.join(SPLITS)}")
    if name in SYNTHETIC:
        if n < 1:
            raise UserError(f"{n} items of '{name}' were asked for: an embedded set has any positive number")
        return Examples(n, functools.partial(_read_synthetic, name, split, level))
    info = read_info(name, split, directory)
    path = set_folder(name, directory) / f"{split}.parquet"
    try:
        stamp = _stamp(path)
    except OSError as error:
        raise DataDamagedError(f"{path} cannot be read ({error.strerror}). {_rebuild_advice(name)}") from error
    if verify and _checksum(path, stamp) != info.sha256:
        raise DataDamagedError(f"{path} differs from the checksum in its manifest. {_rebuild_advice(name)}")
    starts = _group_starts(path, stamp)
    if starts[-1] != info.rows:
        raise DataDamagedError(f"{path} holds {starts[-1]} rows; its manifest says {info.rows}. {_rebuild_advice(name)}")
    return Examples(info.rows, functools.partial(_read_stored, path, stamp))


def dataset_hash(name: str, split: str = "test", *, level: int = 1, n: int = 600, directory: Path | None = None) -> str:
    """Hash (SHA-256, hex) of a split's content, for run records and caches.

    For a stored set it covers ids, questions, golds, solutions and pixels. For an embedded one it covers level, split, image size and
    the text of its `n` items, but no pixels: those follow from the code's version and Pillow's.

    Raises:
        DataAbsentError: the split has not been built.
    """
    if name not in SYNTHETIC:
        return read_info(name, split, directory).content_hash
    return _synthetic_hash(name, split, level, n)


def absence_advice(name: str, split: str, directory: Path | None = None) -> str:
    """One paragraph: how to get a set that is not in the data directory."""
    where = set_folder(name, directory)
    head = f"The {split} split of the data set '{name}' is not built (looked in {where}; MR1_DATA_DIR chooses another directory). "
    return head + how_to_get(name, split)


def how_to_get(name: str, split: str) -> str:
    """The commands that build a split of a set, and where its files come from."""
    known = _HOW_TO_GET.get((name, split))
    if known:
        return known
    option = "" if split == "test" else f" --split {split}"
    return (
        f"Build it from a JSON-lines file of questions and golds and a folder of images: `mr1-bench data build --task-name {name}{option} "
        "--prompts FILE.jsonl --images DIR`. docs/data.md describes the form; `mr1-bench data list` shows the sets there are."
    )


_HOW_TO_GET = {
    ("vc", "test"): (
        "Take `src/eval/prompts/superclevr_test200_counting_problems.jsonl` from the repository Deep-Agent/R1-V and the image archive of "
        "Super-CLEVR (pictures 025000 to 025199 are needed), then run `mr1-bench data build vc --prompts "
        "superclevr_test200_counting_problems.jsonl --images DIR`, where DIR holds superCLEVR_new_025000.png and the others."
    ),
    ("gr", "test"): (
        "Take `src/eval/prompts/geoqa_test_prompts.jsonl` from the repository Deep-Agent/R1-V and the image archive (images.zip) of the "
        "data set Luckyjhg/Geo170K, then run `mr1-bench data build gr --prompts geoqa_test_prompts.jsonl --images DIR`, where DIR is the "
        "unpacked archive or its images/test folder."
    ),
    ("vc", "train"): (
        "With a network run `mr1-bench data build vc-train`, which fetches leonardPKU/clevr_cogen_a_train (70k items, several GB). Without "
        "one, bring that data set's parquet files here and run `mr1-bench data build vc-train --folder DIR`."
    ),
    ("gr", "train"): (
        "With a network run `mr1-bench data build gr-train`, which fetches leonardPKU/GEOQA_R1V_Train_8K (8k items). Without one, bring "
        "that data set's parquet files here and run `mr1-bench data build gr-train --folder DIR`."
    ),
}


def _rebuild_advice(name: str) -> str:
    return f"Build '{name}' again with `mr1-bench data build ... --force` from the same sources (docs/data.md)."


Stamp = tuple[int, int]


def _stamp(path: Path) -> Stamp:
    """Size in bytes and modification time in ns: what tells a replaced file from the one that was read before."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=32)
def _checksum(path: Path, stamp: Stamp) -> str:  # noqa: ARG001  (the stamp is part of the cache's key)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=8)
def _group_starts(path: Path, stamp: Stamp) -> list[int]:  # noqa: ARG001
    """Position of the first row of each row group, and the number of rows at the end."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataDamagedError(f"{path} is not a parquet file ({error}). {_rebuild_advice(path.parent.name)}") from error
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return starts


def _read_stored(path: Path, stamp: Stamp, position: int) -> Example:
    from bisect import bisect_right

    starts = _group_starts(path, stamp)
    group = bisect_right(starts, position) - 1
    return _read_group(path, stamp, group)[position - starts[group]]


@functools.lru_cache(maxsize=8)
def _read_group(path: Path, stamp: Stamp, group: int) -> list[Example]:  # noqa: ARG001
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        records = file.read_row_group(group).to_pylist()
    return [
        Example(row["id"], row["question"], row["gold"], row["solution"], row["image"]["bytes"], json.loads(row["meta"])) for row in records
    ]


def _read_synthetic(name: str, split: str, level: int, position: int) -> Example:
    from mr1_bench.synth import image_png, make_item

    item = make_item(cast("Family", SYNTHETIC[name]), cast("Split", split), level, position)
    meta = {"family": item.family, "level": item.level, **item.meta}
    return Example(item.id, item.question, item.gold, item.solution, image_png(item), meta)


@functools.lru_cache(maxsize=32)
def _synthetic_hash(name: str, split: str, level: int, n: int) -> str:
    from mr1_bench.synth import DEFAULT_SIZE, make_item

    digest = hashlib.sha256(json.dumps([name, split, level, n, DEFAULT_SIZE]).encode())
    for index in range(n):
        item = make_item(cast("Family", SYNTHETIC[name]), cast("Split", split), level, index)
        digest.update(json.dumps([item.id, item.question, item.gold, item.solution]).encode())
    return digest.hexdigest()
