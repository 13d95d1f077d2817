"""Baseline files: a snapshot to compare with, and its history, in one small file that is committed beside the code.

JSON lines, gzipped where the name ends in `.gz`: a header with the hash of everything after it, then for each task (and training seed) its
facts and one line an item with scores, answer and a hash, then one line for each earlier snapshot without texts. No images. A file that was
cut off or changed is refused, and nothing of the machine's folders is kept. This module must not know commands or verdicts.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import mr1_bench
from mr1_bench.records import RecordError
from mr1_bench.reports.provenance import model_label
from mr1_bench.reports.regression import history_of
from mr1_bench.reports.verdicts import HistoryEntry, HistoryTask, ItemScore, Snapshot, TaskSnapshot, means_of
from mr1_bench.specs import UnknownTaskError, get_spec

KIND = "mr1-bench baseline"
FORMAT = 1
KEPT = 100
"""Snapshots that a history holds at most; the oldest go first."""
_GZIP = b"\x1f\x8b"
_SAVE = "save it again with `mr1-bench baseline save`"


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a baseline file holds.

    Attributes:
        path: the file.
        snapshot: to compare with.
        history: snapshots before it, the oldest first.
    """

    path: Path
    snapshot: Snapshot
    history: tuple[HistoryEntry, ...]


def is_baseline(path: Path) -> bool:
    """Say whether a file looks like one of ours, whole or damaged: its first line says so, or it is gzipped."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(200)
    return head.startswith(_GZIP) or KIND.encode() in head


def dump(snapshot: Snapshot, history: Sequence[HistoryEntry] = (), *, texts: bool = True) -> bytes:
    """Return a baseline file's plain bytes; the same for the same values.

    Args:
        snapshot: to save.
        history: earlier snapshots, the oldest first.
        texts: whether to keep what the model wrote; without, reports cannot show old answers.
    """
    rows = [row for task, seeds in snapshot.tasks.items() for seed in seeds for row in _task_rows(task, seed, texts)]
    rows += [{"history": _entry_row(entry)} for entry in history[-KEPT:]]
    body = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    head = {"kind": KIND, "format": FORMAT, "version": mr1_bench.__version__, "label": snapshot.label, "commit": snapshot.commit}
    head |= {"created": snapshot.created, "model": model_label(snapshot.model), "weights": snapshot.weights}
    head |= {"source": snapshot.source, "lines": len(rows)}
    return _header(head | {"sha256": _sha256(head, body)}) + body


def _header(head: Mapping[str, Any]) -> bytes:
    return (json.dumps(head, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _sha256(head: Mapping[str, Any], body: bytes) -> str:
    """One hash for the whole file but the hash itself."""
    return hashlib.sha256(_header(head) + body).hexdigest()


def pack(content: bytes) -> bytes:
    """Gzip a baseline file, always to the same bytes."""
    return gzip.compress(content, 9, mtime=0)


def write(path: Path, content: bytes) -> None:
    """Write a baseline file whole or not at all, packed where its name ends in `.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(pack(content) if path.suffix == ".gz" else content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def extend(earlier: Baseline | None, snapshot: Snapshot) -> tuple[HistoryEntry, ...]:
    """Return the history of a file that is saved again: what it had, and what it held, unless that is the same evaluation."""
    if earlier is None:
        return ()
    old = earlier.snapshot
    same = (old.weights, old.created, old.commit) == (snapshot.weights, snapshot.created, snapshot.commit)
    return earlier.history if same else (*earlier.history, history_of(old))


def read(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        RecordError: it is missing, empty, cut off, changed, foreign, of a newer format, or of a task that this version does not have.
    """
    head, rows = _read_lines(path)
    entries: list[HistoryEntry] = []
    tasks: dict[str, list[TaskSnapshot]] = {}
    left = iter(enumerate(rows, 2))
    for number, row in left:
        try:
            if "history" in row:
                entries.append(_read_entry(row["history"]))
            else:
                task = str(row["task"])
                get_spec(task)
                items = tuple(_read_item(next(left)[1]) for _ in range(row["items"]))
                tasks.setdefault(task, []).append(_read_task(row, items))
        except UnknownTaskError as error:
            raise RecordError(f"{path} is a baseline of another version: {error} Save it again with `mr1-bench baseline save`.") from None
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise RecordError(f"{path}, line {number}: not a line of a baseline ({error!r}); {_SAVE}") from None
    snapshot = Snapshot(
        source=str(path),
        model=str(head.get("model", "")),
        weights=str(head.get("weights", "")),
        created=str(head.get("created", "")),
        tasks={task: tuple(seeds) for task, seeds in tasks.items()},
        commit=str(head.get("commit", "")),
        label=str(head.get("label", "")),
    )
    if not tasks:
        raise RecordError(f"{path} is a baseline without any task; {_SAVE}")
    return Baseline(path, snapshot, tuple(entries))


def _read_lines(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and rows of a file whose hash is right."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; save a baseline with `mr1-bench baseline save RUN --to {path}`") from None
    if not content:
        raise RecordError(f"{path} is empty; {_SAVE}")
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise RecordError(
                f"{path} cannot be unpacked ({error}): it was cut off or changed; restore it from version control, or {_SAVE}"
            ) from None
    first, _, body = content.partition(b"\n")
    try:
        head = json.loads(first)
    except (json.JSONDecodeError, UnicodeDecodeError):
        head = None
    if not isinstance(head, dict) or head.get("kind") != KIND:
        raise RecordError(f"{path} is not a baseline of mr1-bench: its first line is no header with `kind` {KIND!r}; name another file")
    if head.get("format") != FORMAT:
        raise RecordError(f"{path} has baseline format {head.get('format')}, but this version reads {FORMAT}: update mr1-bench, or {_SAVE}")
    known = head.pop("sha256", None)
    if _sha256(head, body) != known:
        lines = body.count(b"\n")
        what = "changed or merged" if lines == head.get("lines") else f"cut off or changed (it has {lines} lines of {head.get('lines')})"
        raise RecordError(f"{path} was {what}: its hash is another; restore it from version control, or {_SAVE}")
    return head, [json.loads(line) for line in body.decode("utf-8", "surrogatepass").split("\n")[:-1]]


def _task_rows(task: str, seed: TaskSnapshot, texts: bool) -> Iterator[dict[str, Any]]:
    yield {
        "task": task,
        "items": len(seed.items),
        "seed": seed.seed,
        "repeats": seed.repeats,
        "weights": seed.weights,
        "engine": seed.engine,
        "identity": dict(seed.identity),
        "measures": dict(seed.measures),
    }
    for item in seed.items:
        row: dict[str, Any] = {"id": item.doc_id, "item": item.item, "gold": item.gold, "scores": _whole(item.scores)}
        row |= {"value": item.value, "tokens": item.tokens, "hash": item_hash(item)}
        yield row | ({"text": item.text} if texts and item.text is not None else {})


def item_hash(item: ItemScore) -> str:
    """Return a short hash of an item and what was answered, checked where the answer is kept, standing for it where not."""
    content = json.dumps([item.doc_id, item.item, item.gold, item.text], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _whole(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores with 0 and 1 as whole numbers, which are shorter."""
    return {metric: int(score) if score in (0.0, 1.0) else score for metric, score in scores.items()}


def _read_task(row: Mapping[str, Any], items: tuple[ItemScore, ...]) -> TaskSnapshot:
    seed = row["seed"]
    if not items:
        raise ValueError("a task without items")
    return TaskSnapshot(
        identity=dict(row["identity"]),
        items=items,
        means=means_of(items),
        measures={name: float(value) for name, value in row["measures"].items()},
        engine=str(row["engine"]),
        seed=None if seed is None else int(seed),
        repeats=int(row["repeats"]),
        weights=str(row["weights"]),
    )


def _read_item(row: Mapping[str, Any]) -> ItemScore:
    scores = {str(metric): float(score) for metric, score in row["scores"].items()}
    if "acc" not in scores:
        raise ValueError(f"item {row['id']} has no score")
    if row["tokens"] is not None and not row["tokens"] >= 0:
        raise ValueError(f"item {row['id']} has {row['tokens']} tokens")
    item = ItemScore(int(row["id"]), str(row["item"]), str(row["gold"]), row.get("text"), scores, row["value"], row["tokens"])
    if item.text is not None and item_hash(item) != row["hash"]:
        raise ValueError(f"item {item.doc_id} has another hash than its answer")
    return item


def _entry_row(entry: HistoryEntry) -> dict[str, Any]:
    tasks = {}
    for task, one in entry.tasks.items():
        scores = {metric: _packed(values) for metric, values in one.scores.items()}
        tasks[task] = {"n": one.n, "asked": one.asked, "scores": scores}
    head = {
        "commit": entry.commit,
        "created": entry.created,
        "label": entry.label,
        "model": model_label(entry.model),
        "weights": entry.weights,
    }
    return head | {"tasks": tasks}


def _packed(values: Sequence[float | None]) -> str | list[float | None]:
    """Scores as `0110.1`, one sign an item (`.`: no verdict); as a list where they are means over repeats."""
    if any(value not in (0.0, 1.0, None) for value in values):
        return list(values)
    return "".join("." if value is None else str(int(value)) for value in values)


def _read_entry(row: Mapping[str, Any]) -> HistoryEntry:
    tasks = {}
    for task, one in row["tasks"].items():
        scores = {}
        for metric, values in one["scores"].items():
            unpacked = tuple(None if value in (".", None) else float(value) for value in values)
            if len(unpacked) != one["n"]:
                raise ValueError(f"{metric} of {task} has {len(unpacked)} scores for {one['n']} items")
            scores[metric] = unpacked
        means = {metric: fmean(known) for metric, values in scores.items() if (known := [one for one in values if one is not None])}
        tasks[task] = HistoryTask(int(one["n"]), str(one["asked"]), means, scores)
    commit, created, model, weights, label = (str(row[key]) for key in ("commit", "created", "model", "weights", "label"))
    return HistoryEntry(commit, created, model, weights, label, tasks)
