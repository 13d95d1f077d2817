"""Readers of the forms data comes in: JSON-lines files beside image folders, and parquet files, at hand or on the hub.

A source gives rows (question, gold, solution, the image's bytes) or faults, each with its row number; it raises only where nothing
can be read at all. This file must not know how images are normalised, how sets are stored, or what a task is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mr1_bench.errors import UserError

QUESTION_COLUMNS = ("question", "problem")
GOLD_COLUMNS = ("ground_truth", "gold", "answer", "solution")
IMAGE_COLUMNS = ("image", "image_path")
INDEX_COLUMNS = ("id", "r1v_index")
"""Columns that name an item; without them the item's position in the file does. `r1v_index` is its place in the R1-V protocol."""

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THINK_TAG = re.compile(r"</?think>")
_SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One item as its source has it.

    Attributes:
        row: number of the row in its source, from 1 (the line number in a JSON-lines file).
        key: what names the item: a number, or the source's own id.
        question: question text.
        gold: gold string, without tags.
        solution: worked solution without tags; empty where the source has none.
        image: bytes of the image file.
        image_name: where the image comes from, relative to its folder.
        meta: all other columns.
    """

    row: int
    key: int | str
    question: str
    gold: str
    solution: str
    image: bytes
    image_name: str
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that gives no item.

    Attributes:
        row: number of the row in its source, from 1.
        reason: what is wrong, the value seen, what was expected.
        image: whether only the image is at fault, so that a subset without it makes sense.
    """

    row: int
    reason: str
    image: bool


@dataclass(frozen=True, slots=True)
class Source:
    """Rows with their number and where they come from.

    Attributes:
        rows: the rows and faults, read as they are asked for; can be read once.
        total: how many there are.
        provenance: JSON-able records of the files (name and SHA-256) and of the repository and revision.
    """

    rows: Iterator[SourceRow | Fault]
    total: int
    provenance: tuple[dict[str, Any], ...]


def open_prompts(prompts: Path, images: Path) -> Source:
    """Read a JSON-lines file whose image column names files under a folder.

    Raises:
        UserError: a file or folder is absent, or the file is not text, or empty.
    """
    if not prompts.is_file():
        raise UserError(f"{prompts} is not a file: give the JSON-lines file of questions and golds with --prompts")
    if not images.is_dir():
        raise UserError(f"{images} is not a folder: give the folder that holds the images with --images")
    lines = _read_lines(prompts)
    provenance = (
        {"kind": "jsonl", "file": prompts.name, "sha256": sha256_of(prompts)},
        {"kind": "images", "folder": images.resolve().name},
    )
    return Source(_prompt_rows(lines, images), len(lines), provenance)


def open_folder(folder: Path, split: str) -> Source:
    """Read a folder that holds `manifest.jsonl` (and usually `images/`), or parquet files with embedded images.

    Raises:
        UserError: the folder is absent or holds neither.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that holds manifest.jsonl and images/, or parquet files")
    manifest = folder / "manifest.jsonl"
    if manifest.is_file():
        return open_prompts(manifest, folder)
    files = _parquet_files(folder, split)
    if not files:
        raise UserError(
            f"{folder} holds neither manifest.jsonl nor parquet files. Expected: manifest.jsonl with one object a line (columns "
            f"question, ground_truth, image) and the images it names, or *.parquet with embedded images."
        )
    return open_parquet(files)


def open_parquet(files: list[Path]) -> Source:
    """Read parquet files in Hugging Face's form: an image struct (or bytes) beside question and gold columns.

    Raises:
        UserError: a file is not parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    total = 0
    for path in files:
        try:
            total += pq.read_metadata(path).num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path} cannot be read as parquet ({error}): fetch it again") from error
    provenance = tuple({"kind": "parquet", "file": path.name, "sha256": sha256_of(path)} for path in files)
    return Source(_parquet_rows(files), total, provenance)


def open_hub(name: str, split: str) -> Source:
    """Fetch a public data set's parquet files by name and read them.

    Raises:
        UserError: it cannot be fetched; the message says how to do it by hand.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # The hub's error is a subclass of its HTTP client's base error, which is another library in each major version.
    network_errors: tuple[type[Exception], ...] = (OSError, *(kind for kind in HfHubHTTPError.__mro__[:2] if issubclass(kind, Exception)))
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=["*.parquet"]))
    except network_errors as error:
        raise UserError(
            f"{name} cannot be fetched ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}). On a machine "
            f"with a network run `hf download {name} --repo-type dataset --local-dir DIR`, bring DIR here, and add `--folder DIR` to "
            "this command."
        ) from error
    files = _parquet_files(folder, split)
    if not files:
        raise UserError(f"{name} holds no parquet files: fetch it by hand and give its folder with --folder")
    source = open_parquet(files)
    # A snapshot lies in a folder named by its commit.
    return Source(source.rows, source.total, ({"kind": "hub", "name": name, "revision": folder.name}, *source.provenance))


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parquet_files(folder: Path, split: str) -> list[Path]:
    """All parquet files under a folder; only the split's own where the files are named by split."""
    files = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    named = [path for path in files if path.name.startswith(_SPLIT_NAMES)]
    return [path for path in named if path.name.startswith(split)] if named else files


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers and lines, blank ones left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): convert it") from error
    # Not splitlines(): it also breaks at U+2028 and the like, which JSON strings may hold.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty: expected one JSON object a line")
    return lines


def _prompt_rows(lines: list[tuple[int, str]], images: Path) -> Iterator[SourceRow | Fault]:
    find = image_finder(images)
    for position, (number, line) in enumerate(lines):
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
        except ValueError as error:
            yield Fault(number, f"not a JSON object ({error})", image=False)
            continue
        if not isinstance(record, dict):
            yield Fault(number, f"a JSON {type(record).__name__} where an object was expected", image=False)
            continue
        yield make_row(record, number, position, lambda value: _file_image(value, find))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")


def _parquet_rows(files: list[Path]) -> Iterator[SourceRow | Fault]:
    import pyarrow.parquet as pq

    number = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=32):
                for record in batch.to_pylist():
                    number += 1
                    yield make_row(record, number, number - 1, _embedded_image)


def make_row(record: dict[str, Any], number: int, position: int, read_image: Callable[[Any], tuple[bytes, str] | str]) -> SourceRow | Fault:
    """Turn a record with any of the known column names into a row, or say what is wrong with it."""
    question_column = _column(record, QUESTION_COLUMNS)
    gold_column = _column(record, GOLD_COLUMNS)
    image_column = _column(record, IMAGE_COLUMNS)
    wanted = (("question", question_column, QUESTION_COLUMNS), ("gold", gold_column, GOLD_COLUMNS), ("image", image_column, IMAGE_COLUMNS))
    for what, column, names in wanted:
        if column is None:
            return Fault(number, f"no {what} column: has {_names(record)}; expected one of {', '.join(names)}", image=False)
    assert question_column is not None and gold_column is not None and image_column is not None  # the loop above returned otherwise
    question, gold = record[question_column], _gold_text(record[gold_column])
    if not isinstance(question, str) or not question.strip():
        return Fault(number, f"{question_column} is {question!r}: expected a non-empty text", image=False)
    if gold is None:
        return Fault(number, f"{gold_column} is {record[gold_column]!r}: expected a non-empty text or a finite number", image=False)
    solution = _solution_text(record.get("solution"), gold_column == "solution")
    key_column = _column(record, INDEX_COLUMNS)
    key = position if key_column is None else record[key_column]
    if isinstance(key, bool) or not isinstance(key, (int, str)) or key == "":
        return Fault(number, f"{key_column} is {key!r}: expected a whole number or a non-empty text", image=False)
    if not all(_encodable(text) for text in (question, gold, solution, str(key))):
        return Fault(number, "the text holds an unpaired surrogate, which no file can store: mend the escape in it", image=False)
    loaded = read_image(record[image_column])
    if isinstance(loaded, str):
        return Fault(number, loaded, image=True)
    used = {question_column, gold_column, image_column, "solution", key_column}
    meta = {name: value for name, value in record.items() if name not in used}
    return SourceRow(number, key, question, gold, solution, loaded[0], loaded[1], meta)


def _column(record: dict[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in record), None)


def _names(record: dict[str, Any]) -> str:
    return ", ".join(list(record)[:12]) or "no columns"


def _gold_text(value: Any) -> str | None:
    """The gold string: the content of the last answer tag if there is one, numbers as they are written; None if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    tagged = _ANSWER.findall(value)
    return (tagged[-1] if tagged else value).strip() or None


def _solution_text(value: Any, is_gold: bool) -> str:
    """The worked part of a solution: what stands before its last answer tag, without think tags; all of it where it has no such tag.

    Where the column is also the gold's and has no tag, it is an answer and not a solution.
    """
    if not isinstance(value, str):
        return ""
    tagged = list(_ANSWER.finditer(value))
    if not tagged and is_gold:
        return ""
    return _THINK_TAG.sub("", value[: tagged[-1].start()] if tagged else value).strip()


def _encodable(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _embedded_image(value: Any) -> tuple[bytes, str] | str:
    if isinstance(value, bytes):
        return value, ""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"], PurePosixPath(value.get("path") or "").name
    return f"the image column holds no embedded bytes but {str(value)[:60]!r}"


def _file_image(value: Any, find: Callable[[str], Path | str]) -> tuple[bytes, str] | str:
    if not isinstance(value, str) or not value.strip():
        return f"the image column is {value!r}: expected the path of a file"
    path = find(value)
    if isinstance(path, str):
        return path
    try:
        return path.read_bytes(), path.name
    except OSError as error:
        return f"image {value} cannot be read ({error.strerror})"


def image_finder(folder: Path) -> Callable[[str], Path | str]:
    """Make a function from the image path a row names to the file under `folder`, or to the reason why there is none.

    The longest tail of the path that exists directly under the folder wins: `./Geo170K/images/test/0.png` is looked for as
    `Geo170K/images/test/0.png`, `images/test/0.png`, `test/0.png` and `0.png`. Failing that, the folder is searched for a file whose
    own path ends with the same two or more parts. A bare file name deeper in the folder is not enough: `train/0.png` and
    `test/0.png` are different pictures.
    """
    index: dict[str, list[tuple[str, ...]]] | None = None
    # The folder's name and not its path: the reasons go into manifests, which must not depend on where the files lay.
    shown = f"{folder.resolve().name}/"

    def find(name: str) -> Path | str:
        nonlocal index
        parts = tuple(part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in {"/", "..", "."})
        for start in range(len(parts)):
            path = folder.joinpath(*parts[start:])
            # Not Path.is_file(), which raises on a name too long for the file system.
            if os.path.isfile(path):  # noqa: PTH113
                return path
        if not parts:
            return f"image {name!r} names no file"
        if index is None:
            index = _index_folder(folder)
        ranked = [(_common_tail(parts, found), found) for found in index.get(parts[-1], [])]
        longest = max((count for count, _ in ranked), default=0)
        best = [found for count, found in ranked if count == longest]
        if longest < min(2, len(parts)):
            hint = f" (there is {'/'.join(best[0])}: if that is it, give its folder)" if best else ""
            return f"image {name} is missing under {shown}{hint}"
        if len(best) > 1:
            return f"image {name} is ambiguous under {shown}: {', '.join('/'.join(found) for found in sorted(best)[:3])}"
        return folder.joinpath(*best[0])

    return find


def _index_folder(folder: Path) -> dict[str, list[tuple[str, ...]]]:
    """All files under the folder by base name, as their relative parts."""
    index: dict[str, list[tuple[str, ...]]] = {}
    for top, _, names in os.walk(folder):
        parts = Path(top).relative_to(folder).parts
        for name in names:
            index.setdefault(name, []).append((*parts, name))
    return index


def _common_tail(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    count = 0
    for left, right in zip(reversed(one), reversed(other), strict=False):
        if left != right:
            break
        count += 1
    return count
