"""Reads logs of model outputs, whoever wrote them: R1-V's JSON, lmms-eval's samples, plain JSON lines.

A log is read whole or refused with the file, the line and the remedy: half a log graded in silence is a wrong number. It must not know
how outputs are graded; what a task is it asks `specs`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mr1_bench.errors import UserError
from mr1_bench.specs import UnknownTaskError, get_spec

LogKind = Literal["r1v", "lmms-eval", "plain"]

FORMS = (
    'R1-V\'s {"accuracy": …, "results": [{"ground_truth", "model_output"}, …]}; lmms-eval\'s *_samples_TASK.jsonl (from --log_samples); '
    'or one {"gold": …, "text": …} a line'
)
"""The forms that are understood, for messages and help."""

GOLD_KEYS = ("ground_truth", "gold", "target", "answer", "solution")
"""Keys under which a line may hold its gold; the first that is there counts. Tags around it are taken off."""

_ANSWER = re.compile(r"<answer>([^<]*)</answer>")
_SAMPLES_NAME = re.compile(r"(?:^|_)samples_(.+)\.jsonl$")


class LogError(UserError):
    """A file that is no log of a known form, or a broken one; the message names file and line."""


@dataclass(frozen=True, slots=True)
class LogRow:
    """One output of a model.

    Attributes:
        index: the item: lmms-eval's `doc_id`; in the other forms, the position in the file from 0.
        gold: the gold as the log has it.
        text: the model's whole output.
        repeat: number of the sample among several of one item, from 0.
    """

    index: int
    gold: str | int
    text: str
    repeat: int = 0


@dataclass(frozen=True, slots=True)
class Log:
    """A log, read.

    Attributes:
        path: the file.
        kind: who wrote it.
        task: name of the task whose rules grade it.
        rows: the outputs in the file's order; at least one.
    """

    path: Path
    kind: LogKind
    task: str
    rows: tuple[LogRow, ...]


def read_log(path: Path, task: str | None = None) -> Log:
    """Read a log of any of the forms in `FORMS`.

    Args:
        path: the file.
        task: the task; if None it is recognised: from the name of a samples file; else `mr1_vc` if every gold is a JSON integer, and
            `mr1_gr` if not.

    Raises:
        LogError: the file is absent, empty, cut off or of no known form, or its task cannot be recognised.
        mr1_bench.specs.UnknownTaskError: there is no task of the given name.
    """
    if task is not None:
        task = get_spec(task).name
    content = _read_text(path)
    whole = _parse_whole(content)
    if whole is not None and "results" in whole:
        rows = _r1v_rows(path, whole["results"])
        kind: LogKind = "r1v"
    else:
        numbered = list(_numbered_objects(path, content))
        kind = "lmms-eval" if _is_sample(numbered[0][1]) else "plain"
        rows = _sample_rows(path, numbered) if kind == "lmms-eval" else _plain_rows(path, numbered)
    return Log(path, kind, task or _recognise(path, kind, rows), tuple(rows))


def read_golds(path: Path) -> tuple[str | int, ...]:
    """Read only the golds: of a log, or of a JSON-lines file of questions such as R1-V's prompts or a data folder's `manifest.jsonl`.

    Raises:
        LogError: the file is absent, empty or cut off, or a line has no gold.
    """
    content = _read_text(path)
    whole = _parse_whole(content)
    if whole is not None and "results" in whole:
        return tuple(row.gold for row in _r1v_rows(path, whole["results"]))
    return tuple(_gold_of_line(f"{path}, line {number}", row) for number, row in _numbered_objects(path, content))


def _gold_of_line(where: str, row: dict[str, Any]) -> str | int:
    key = next((key for key in GOLD_KEYS if key in row), None)
    if key is None:
        raise LogError(f"{where}: no gold: expected one of the keys {', '.join(GOLD_KEYS)}, but the keys are {', '.join(row) or 'none'}")
    gold = _gold(where, row, key)
    block = None if isinstance(gold, int) else _ANSWER.search(gold)
    return gold if block is None else block[1].strip()


def _read_text(path: Path) -> str:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror}); give the path of a log: {FORMS}") from error
    except UnicodeDecodeError as error:
        raise LogError(f"{path}: is not UTF-8 text (byte {error.start}); give a log: {FORMS}") from error
    if not content.strip():
        raise LogError(f"{path}: is empty: nothing was logged; run the evaluation again (lmms-eval logs outputs with --log_samples)")
    return content


def _parse_whole(content: str) -> dict[str, Any] | None:
    """The content if it is one JSON object."""
    try:
        value = json.loads(content)
    except (json.JSONDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _numbered_objects(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines(): a line separator inside a JSON string is part of it.
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    for number, line in lines:
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise LogError(_broken_line(path, number, number == lines[-1][0], line, error)) from error
        if not isinstance(value, dict):
            raise LogError(f"{path}, line {number}: expected a JSON object, found {_show(value)}; known forms: {FORMS}")
        yield number, value


def _broken_line(path: Path, number: int, last: bool, line: str, error: Exception) -> str:
    if number == 1 and not line.lstrip().startswith("{"):
        return f"{path}, line 1: expected a JSON object, found {_show(line)}; known forms: {FORMS}"
    if number == 1 and ('"results"' in line or line.strip() == "{"):
        return f"{path}: is not whole JSON, as if cut off while it was written ({error}); get it again"
    if last:
        return f"{path}, line {number}: is not whole JSON, as if cut off while it was written; finish the run, or delete that line"
    return f"{path}, line {number}: is not JSON ({error}); mend or delete that line"


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _is_sample(row: dict[str, Any]) -> bool:
    return "doc_id" in row and "target" in row


def _r1v_rows(path: Path, results: Any) -> list[LogRow]:
    if not isinstance(results, list) or not results:
        raise LogError(f"{path}: `results` must be a list with at least one result, found {_show(results)}; get the log again")
    rows = []
    for index, result in enumerate(results):
        where = f"{path}, result {index}"
        if not isinstance(result, dict):
            raise LogError(f"{where}: expected an object, found {_show(result)}")
        rows.append(LogRow(index, _gold(where, result, "ground_truth"), _text(where, result, "model_output")))
    return rows


def _plain_rows(path: Path, numbered: Sequence[tuple[int, dict[str, Any]]]) -> list[LogRow]:
    return [
        LogRow(index, _gold(f"{path}, line {number}", row, "gold"), _text(f"{path}, line {number}", row, "text"))
        for index, (number, row) in enumerate(numbered)
    ]


def _sample_rows(path: Path, numbered: Sequence[tuple[int, dict[str, Any]]]) -> list[LogRow]:
    rows: list[LogRow] = []
    seen: dict[int, int] = {}
    for number, row in numbered:
        where = f"{path}, line {number}"
        index = row.get("doc_id")
        if not isinstance(index, int):
            raise LogError(f"{where}: `doc_id` must be an integer, found {_show(index)}; it is no line that lmms-eval wrote")
        if index in seen:
            raise LogError(f"{where}: item {index} is in line {seen[index]} already, as if two runs went to one file; keep one of the two")
        seen[index] = number
        gold = _gold(where, row, "target")
        # Where both are there, `filtered_resps` has lost its thinking block or went through a filter; `resps` is what the model said.
        texts = list(_strings(row.get("resps", row.get("filtered_resps"))))
        if not texts:
            raise LogError(f"{where}: neither `resps` nor `filtered_resps` holds an output; the task must be one that generates text")
        rows += [LogRow(index, gold, text, repeat) for repeat, text in enumerate(texts)]
    return rows


def _strings(value: Any) -> Iterator[str]:
    """The outputs in lmms-eval's nesting, which is one list a request around one list a response, unless there is just one."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _gold(where: str, row: dict[str, Any], key: str) -> str | int:
    value = row.get(key)
    if isinstance(value, float):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise LogError(f"{where}: `{key}` must be a string or a number, {_found(row, key)}; known forms: {FORMS}")
    return value


def _text(where: str, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise LogError(f"{where}: `{key}` must be the model's output as a string, {_found(row, key)}; known forms: {FORMS}")
    return value


def _found(row: dict[str, Any], key: str) -> str:
    return f"found {_show(row[key])}" if key in row else f"but the keys are {', '.join(map(repr, row)) or 'none'}"


def _recognise(path: Path, kind: LogKind, rows: Sequence[LogRow]) -> str:
    if kind != "lmms-eval":
        return "mr1_vc" if all(isinstance(row.gold, int) for row in rows) else "mr1_gr"
    named = _SAMPLES_NAME.search(path.name)
    if named is None:
        raise LogError(f"{path}: its name does not end in samples_TASK.jsonl, so the task is unknown; say --task TASK")
    try:
        return get_spec(named[1]).name
    except UnknownTaskError as error:
        raise LogError(
            f"{path}: logs the task {named[1]!r}, which is not one of ours; say --task TASK, whose rules are to grade it"
        ) from error
