"""The gallery: the same items answered by two checkpoints side by side, as a component of any page.

`gallery_of_pairs` makes one from plain item pairs, `study_gallery` from all runs of a study; `write_gallery` writes its data beside the
page and `gallery_html` gives the block to put into it. The data are scripts that assign constants, one for each task and one for each
checkpoint and task, loaded when they are chosen: that works from a file, without a server, and stays fast with thousands of items. What
models wrote is hostile text: it is escaped here and only ever becomes text in the page. This module must not know statistics or the rest
of the report.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mr1_bench import data
from mr1_bench.data import DataAbsentError, DataDamagedError, Example
from mr1_bench.reports.figure_style import method_name, task_name
from mr1_bench.reports.page_frame import environment
from mr1_bench.reports.study import METHODS, Answer, Run, Study
from mr1_bench.specs import SPECS, TaskSpec

LARGEST_IMAGE = 60_000
"""Bytes: a larger picture is made smaller, so that a report of hundreds of photographs can be mailed."""
IMAGE_SIDE = 512
"""Pixels of the longer side of a picture that was made smaller."""
METRICS = ("acc", "acc_r1v", "format", "answered")
_BY_NAME = {spec.name: spec for spec in SPECS}


@dataclass(frozen=True, slots=True)
class Item:
    """What was asked.

    Attributes:
        doc_id: position in the task's data.
        name: the item's own name; may be empty.
        gold: the gold string.
        question: without the prompt around it; empty where the data set is not at hand.
        level: difficulty of an embedded task; None where there is none.
        family: kind of question; empty where nothing is known.
        image: the picture as an encoded file; None where the data set is not at hand.
        note: why the picture or the question is missing; empty otherwise.
        kind: a word or two about the two answers, such as `format lost`; can be filtered by. May be empty.
    """

    doc_id: int
    name: str
    gold: str
    question: str = ""
    level: int | None = None
    family: str = ""
    image: bytes | None = None
    note: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """One item with two answers; either may be missing."""

    task: str
    item: Item
    a: Answer | None
    b: Answer | None


@dataclass(frozen=True, slots=True)
class Side:
    """A checkpoint whose answers can be shown.

    Attributes:
        name: unique in the gallery.
        label: how a person names it.
        method: chooses its colour; `base`, `sft`, `grpo`, `grpo-d` or another word.
        group: heading it is listed under, such as the task trained on.
        answers: by task and `doc_id`.
        r1v_read: whether it is known what `acc_r1v` read; where not, only its verdict is shown.
    """

    name: str
    label: str
    method: str
    group: str
    answers: Mapping[str, Mapping[int, Answer]]
    r1v_read: bool = True


@dataclass(frozen=True, slots=True)
class Gallery:
    """Items by task, and the checkpoints that answered them.

    Attributes:
        items: by task, in the order shown.
        totals: number of items that each task has in all, of which `items` may be a part.
        sides: every checkpoint.
        a, b: names of the two shown first.
        notes: by task, what a reader should know, such as that the data set is not at hand.
    """

    items: Mapping[str, Sequence[Item]]
    totals: Mapping[str, int]
    sides: Sequence[Side]
    a: str
    b: str
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of items shown, all tasks together."""
        return sum(map(len, self.items.values()))


def gallery_of_pairs(pairs: Sequence[Pair], a: tuple[str, str], b: tuple[str, str], *, r1v_read: bool = True) -> Gallery:
    """Make a gallery of plain item pairs, such as the items that flipped between two versions.

    Args:
        pairs: the items with both answers, in the order to show.
        a: label and method of the first side.
        b: label and method of the second side.
        r1v_read: whether it is known what `acc_r1v` read.
    """
    items: dict[str, list[Item]] = {}
    answers: tuple[dict[str, dict[int, Answer]], dict[str, dict[int, Answer]]] = ({}, {})
    for pair in pairs:
        items.setdefault(pair.task, []).append(pair.item)
        for side, answer in zip(answers, (pair.a, pair.b), strict=True):
            if answer is not None:
                side.setdefault(pair.task, {})[pair.item.doc_id] = answer
    sides = [Side(name, label, method, "", found, r1v_read) for name, (label, method), found in zip("ab", (a, b), answers, strict=True)]
    return Gallery(items, {task: len(shown) for task, shown in items.items()}, sides, "a", "b")


def spread(size: int, limit: int) -> list[int]:
    """Positions of `limit` items spaced evenly over `size`, so that every part of the data is seen; all where there are no more."""
    if size <= limit:
        return list(range(size))
    return [index * size // limit for index in range(limit)]


def study_gallery(study: Study, limit: int) -> Gallery | None:
    """Collect the answers of all runs to the same items.

    Args:
        study: the runs; those without answers (results of others without samples) are left out.
        limit: most items a task, spaced evenly over its data.

    Returns:
        None where there is nothing to show: no answers, or a limit of 0.
    """
    items: dict[str, list[Item]] = {}
    totals: dict[str, int] = {}
    notes: dict[str, str] = {}
    for task in study.tasks:
        holders = [run.results[task] for run in study.runs if task in run.results and run.results[task].answers]
        golds = {answer.doc_id: answer for result in holders for answer in result.answers}
        if not golds or limit < 1:
            continue
        order = sorted(golds)
        chosen = [golds[order[position]] for position in spread(len(order), limit)]
        hashes = {str(result.identity.get("dataset_sha256") or "") for result in holders}
        items[task], notes[task] = _items(_BY_NAME.get(task), chosen, hashes)
        totals[task] = len(order)
    sides = []
    labels = _labels(study.runs)
    for run in study.runs:
        wanted = {task: {item.doc_id for item in shown} for task, shown in items.items()}
        answers = {
            task: {answer.doc_id: answer for answer in run.results[task].answers if answer.doc_id in wanted[task]}
            for task in items
            if task in run.results
        }
        if any(answers.values()):
            sides.append(Side(run.name, labels[run.name], run.method, _trained_on(run), answers))
    if not sides:
        return None
    a, b = _first_shown(study, {side.name for side in sides})
    return Gallery(items, totals, sides, a, b, {task: note for task, note in notes.items() if note})


def _trained_on(run: Run) -> str:
    return " and ".join(task_name(task) for task in run.task.split(",")) if run.task else ""


def _labels(runs: Sequence[Run]) -> dict[str, str]:
    """How a person tells runs apart, by name: `GRPO-D on Geometry, seed 0`, with the run's name where another is called the same."""
    plain = {}
    for run in runs:
        trained = f" on {_trained_on(run)}" if run.task else ""
        plain[run.name] = f"{method_name(run.method)}{trained}" + ("" if run.seed is None else f", seed {run.seed}")
    often = Counter(plain.values())
    return {name: label if often[label] == 1 else f"{label} ({name})" for name, label in plain.items()}


def _first_shown(study: Study, names: set[str]) -> tuple[str, str]:
    """The paper's figure 3: SFT beside GRPO-D, trained on the same task; else the two best known methods there are."""
    shown = [run for run in study.runs if run.name in names]
    main = [run for run in shown if run.arm == "main"] or shown

    def first(method: str, task: str) -> Run | None:
        return next((run for run in main if run.method == method and task in (run.task, "")), None)

    tasks = list(dict.fromkeys(run.task for run in main if run.task))
    for a, b in (("sft", "grpo-d"), ("grpo", "grpo-d"), ("sft", "grpo")):
        for task in reversed(tasks):
            one, other = first(a, task), first(b, task)
            if one and other:
                return one.name, other.name
    ordered = sorted(main, key=lambda run: METHODS.index(run.method) if run.method in METHODS else len(METHODS))
    return ordered[0].name, ordered[-1].name


def items_of(task: str, chosen: Sequence[Answer], hashes: set[str]) -> tuple[list[Item], str]:
    """Items of a task with picture and question from the data set; bare ones, and why, where it is not at hand or is another one.

    Args:
        task: its name.
        chosen: one answer an item, in the order to show.
        hashes: dataset hashes that the evaluations recorded; empty strings where none was.
    """
    return _items(_BY_NAME.get(task), chosen, hashes)


def _items(spec: TaskSpec | None, chosen: Sequence[Answer], hashes: set[str]) -> tuple[list[Item], str]:
    """Items with picture and question from the data set; bare ones, and why, where it is not at hand or is another one."""
    examples, note = _examples(spec, chosen, hashes)
    items = []
    for answer in chosen:
        example = examples.get(answer.doc_id)
        if example is None:
            items.append(Item(answer.doc_id, answer.item, answer.gold, level=spec.level if spec else None, note=note))
            continue
        level = spec.level if spec and spec.level is not None else example.meta.get("level")
        family = str(example.meta.get("family") or "")
        items.append(Item(answer.doc_id, example.id, answer.gold, example.question, level, family, small_image(example.image_bytes)))
    return items, note


def _examples(spec: TaskSpec | None, chosen: Sequence[Answer], hashes: set[str]) -> tuple[dict[int, Example], str]:
    if spec is None:
        return {}, "Questions and pictures of tasks of other projects are not at hand; golds and answers are shown."
    size = max(answer.doc_id for answer in chosen) + 1
    try:
        loaded = data.load(spec.data, spec.split, level=spec.level or 1, n=size)
        if not spec.synthetic and any(hashes) and data.dataset_hash(spec.data, spec.split) not in hashes:
            return {}, f"The data set {spec.data} on this machine is not the one that was evaluated: no questions and pictures."
    except (DataAbsentError, DataDamagedError):
        return {}, f"The data set {spec.data} was not at hand when this report was written: no questions and pictures."
    if size > len(loaded):
        return {}, f"The data set {spec.data} on this machine has only {len(loaded)} items: no questions and pictures."
    found = {answer.doc_id: loaded[answer.doc_id] for answer in chosen}
    other = [answer for answer in chosen if not _same(answer, found[answer.doc_id])]
    if other:
        return {}, f"The data set {spec.data} on this machine has another gold at item {other[0].doc_id}: no questions and pictures."
    return found, ""


def _same(answer: Answer, example: Example) -> bool:
    return answer.gold == example.gold and answer.item in ("", example.id)


def small_image(image: bytes) -> bytes:
    """Return a picture as it is, or made smaller where it is larger than `LARGEST_IMAGE`."""
    if len(image) <= LARGEST_IMAGE:
        return image
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82, optimize=True)
    smaller = buffer.getvalue()
    return smaller if len(smaller) < len(image) else image


def script_json(value: Any) -> str:
    """Write a value as JSON that is safe in a script: plain ASCII without a character that HTML or JavaScript would read."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


_SUFFIXES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


def _suffix(image: bytes) -> str:
    return next((suffix for head, suffix in _SUFFIXES.items() if image.startswith(head)), "png")


def write_gallery(gallery: Gallery, out: Path, folder: str = "gallery") -> None:
    """Write the data of a gallery.

    Args:
        gallery: what to show.
        out: folder of the page.
        folder: name of the folder within it that gets `index.js`, `items-*.js`, `answers-*.js` and `images/`.
    """
    target = out / folder
    (target / "images").mkdir(parents=True, exist_ok=True)
    tasks = []
    for number, (task, items) in enumerate(gallery.items.items()):
        rows = [_item_row(target, folder, number, item) for item in items]
        _write_part(target, f"items-{number}", rows)
        shown = {"key": task, "title": task_name(task), "items": f"items-{number}", "n": len(items), "of": gallery.totals[task]}
        tasks.append(shown | {"note": gallery.notes.get(task, "")})
    sides = []
    for index, side in enumerate(gallery.sides):
        parts = {}
        for number, (task, items) in enumerate(gallery.items.items()):
            if side.answers.get(task):
                parts[task] = f"answers-{number}-{index}"
                _write_part(target, parts[task], [_answer_row(side.answers[task].get(item.doc_id)) for item in items])
        shown = {"key": side.name, "label": side.label, "method": side.method, "methodName": method_name(side.method)}
        sides.append(shown | {"group": side.group, "r1vRead": side.r1v_read, "parts": parts})
    index_ = {"folder": folder, "tasks": tasks, "sides": sides, "a": gallery.a, "b": gallery.b, "parts": {}}
    (target / "index.js").write_text(f"window.MR1_GALLERY = {script_json(index_)};\n", encoding="ascii")


def _write_part(target: Path, name: str, rows: list[Any]) -> None:
    (target / f"{name}.js").write_text(f'MR1_GALLERY.parts["{name}"] = {script_json(rows)};\n', encoding="ascii")


def _item_row(target: Path, folder: str, task_number: int, item: Item) -> dict[str, Any]:
    row: dict[str, Any] = {"id": item.doc_id, "name": item.name, "gold": item.gold, "question": item.question, "level": item.level}
    row |= {"family": item.family, "note": item.note, "kind": item.kind, "image": ""}
    if item.image is not None:
        name = f"images/{task_number}-{item.doc_id}.{_suffix(item.image)}"
        (target / name).write_bytes(item.image)
        row["image"] = f"{folder}/{name}"
    return row


def _answer_row(answer: Answer | None) -> dict[str, Any] | None:
    if answer is None:
        return None
    scores = {metric: int(answer.scores[metric]) for metric in METRICS if metric in answer.scores}
    return {"text": answer.text, "value": answer.value, "r1v": answer.value_r1v, "tokens": answer.tokens, "scores": scores}


def gallery_html(gallery: Gallery, folder: str = "gallery") -> Markup:
    """Return the block to put into a page that has our style sheet: controls, and a place that the script fills with items.

    The page must also load `assets/gallery.js`, after this block.
    """
    return Markup(environment().get_template("gallery.html").render(gallery=gallery, folder=folder))
