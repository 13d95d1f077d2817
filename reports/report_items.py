"""Reads a report folder of ours back as one side of a comparison: its runs from `report.json`, their answers from the gallery's data.

A report holds as many items a task as its gallery shows; the verdict's n says how many. This module must not know verdicts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mr1_bench.errors import UserError
from mr1_bench.records import RecordError, read_json
from mr1_bench.reports.report import MARKER
from mr1_bench.reports.verdicts import ItemScore, Snapshot, TaskSnapshot, means_of

_GALLERY = "gallery"


def is_report(folder: Path) -> bool:
    """Say whether a folder is a report that `mr1-bench report` wrote."""
    path = folder / "report.json"
    if not path.is_file():
        return False
    content = read_json(path)
    return isinstance(content, dict) and content.get("kind") == MARKER


def report_sizes(path: Path) -> dict[str, int]:
    """Return how many items each task of a report has, whatever its gallery shows; empty where there is no report.

    Args:
        path: as `read_snapshot` takes it, a report that could be read: its folder, or `REPORT/RUN`.
    """
    folder = next((place for place in (path, path.parent) if is_report(place)), None)
    if folder is None or path.is_file():
        return {}
    sizes: dict[str, int] = {}
    for run in read_json(folder / "report.json")["runs"].values():
        for task, result in run["results"].items():
            sizes[task] = max(sizes.get(task, 0), int(result.get("n") or 0))
    return sizes


def read_report(folder: Path, name: str, source: str) -> Snapshot:
    """Read one run of a report, or one method's training seeds.

    Args:
        folder: of the report.
        name: of the run; with `*` of several training seeds, as in `grpo-gr-synth-s*`; may be empty where there is only one run.
        source: how the user named it.

    Raises:
        UserError: the run is not there or has no answers, or a file is damaged.
    """
    path = folder / "report.json"
    try:
        runs: Mapping[str, Any] = read_json(path)["runs"]
        chosen = [run for key, run in runs.items() if fnmatchcase(key, name or "*")]
        if "*" in name:
            chosen = [run for run in chosen if run["arm"] == "main"] or chosen
        methods = {(run["method"], run["task"], run["arm"]) for run in chosen}
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is not a report of `mr1-bench report` ({error!r}); write it again") from None
    if not chosen:
        raise UserError(f"{folder} has no run {name!r}; it has {', '.join(runs)}")
    if len(methods) > 1 or (len(chosen) > 1 and not name):
        raise UserError(
            f"{folder} holds {len(runs)} runs: name one as {folder}/RUN, or seeds as '{folder}/METHOD-s*'; RUN is one of {', '.join(runs)}"
        )
    answers = _Answers(folder)
    tasks: dict[str, tuple[TaskSnapshot, ...]] = {}
    for run in chosen:
        for task, result in run["results"].items():
            found = answers.read(run["run"], task)
            if found:
                tasks[task] = (*tasks.get(task, ()), _task(found, result, run))
    if not tasks or any(len(seeds) != len(chosen) for seeds in tasks.values()):
        raise UserError(
            f"{folder} has no answers of {name or 'its run'}: write the report again with --gallery all, or name the run folder"
        )
    first = chosen[0]
    return Snapshot(source, str(first["model"]), str(first["weights_sha256"]), str(first.get("when") or "")[:16], tasks)


def _task(items: tuple[ItemScore, ...], result: Mapping[str, Any], run: Mapping[str, Any]) -> TaskSnapshot:
    identity = {key: value for key, value in result["identity"].items() if value is not None and key != "limit"}
    measures = {"tokens_per_s": float(result["tokens_per_s"])} if result.get("tokens_per_s") else {}
    return TaskSnapshot(
        identity, items, means_of(items), measures, str(result.get("engine") or ""), run.get("seed"), 1, str(run["weights_sha256"])
    )


class _Answers:
    """The answers in a gallery's data files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / _GALLERY
        path = self._folder / "index.js"
        if not path.is_file():
            raise UserError(f"{folder} has no gallery, so no answers: write the report again with --gallery all, or name the run folder")
        index = _script(path)
        try:
            self._items = {task["key"]: task["items"] for task in index["tasks"]}
            self._parts: dict[str, Mapping[str, str]] = {side["key"]: side["parts"] for side in index["sides"]}
        except (KeyError, TypeError) as error:
            raise RecordError(f"{path} is not the data of a gallery ({error!r}); write the report again") from None

    def read(self, run: str, task: str) -> tuple[ItemScore, ...]:
        """The answers of a run to a task; empty where the gallery has none."""
        part = self._parts.get(run, {}).get(task)
        if part is None:
            return ()
        items, answers = (_script(self._folder / f"{Path(name).name}.js") for name in (self._items[task], part))
        return tuple(_item(item, answer) for item, answer in zip(items, answers, strict=True) if answer is not None)


def _item(item: Mapping[str, Any], answer: Mapping[str, Any]) -> ItemScore:
    scores = {metric: float(value) for metric, value in answer["scores"].items()}
    return ItemScore(item["id"], item["name"], item["gold"], answer["text"], scores, answer["value"], answer["tokens"])


def _script(path: Path) -> Any:
    """The constant that a data file of a gallery assigns."""
    try:
        text = path.read_text(encoding="ascii")
        return json.loads(text.partition(" = ")[2].rstrip().removesuffix(";"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise RecordError(f"{path} is missing or damaged; write the report again with `mr1-bench report`") from None
