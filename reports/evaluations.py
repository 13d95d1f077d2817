"""Reads the folder of one evaluation of ours, down to every answer and what the graders read in it.

It needs nothing but the folder: the checkpoint may be gone. What plain lmms-eval wrote is read by `foreign`. This module must not know
runs, arms or what is compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mr1_bench import records
from mr1_bench.records import RecordError
from mr1_bench.reports.study import Answer, Result
from mr1_bench.specs import SPECS, TaskSpec

_ASKED = ("dataset_sha256", "pixels_sha256", "prompt_sha256", "decoding", "limit")
IDENTITY = (*_ASKED, "backend", "max_pixels", "code_sha256")
"""What was asked, of what engine, and by what code it was graded; equal for all results of a task that may stand in one table."""

OURS = {spec.name: spec for spec in SPECS}
"""The project's own tasks, by name."""
_ENGINE_SETTINGS = ("device", "batch_size", "max_pixels")
_JOURNAL_KEY = re.compile(r"([^/]+)/(\d{1,9})/0(?:/.*)?")
_AGAIN = "evaluate again with `mr1-bench eval`"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of one checkpoint.

    Attributes:
        folder: where its files lie.
        model: path or name of the checkpoint, as recorded.
        weights: hash of the checkpoint's contents; its name, where the files are not at hand.
        training: `{method, task, seed}`; None for a base model.
        record: our run.json, or what lmms-eval recorded of the run.
        results: by task; only the project's own tasks.
    """

    folder: Path
    model: str
    weights: str
    training: Mapping[str, Any] | None
    record: Mapping[str, Any]
    results: Mapping[str, Result]


class Pool:
    """Gives equal texts, and equal verdicts, one object: answers of many runs to the same items are mostly repetition."""

    def __init__(self) -> None:
        """Begin an empty pool."""
        self._texts: dict[str, str] = {}
        self._scores: dict[tuple[tuple[str, float], ...], dict[str, float]] = {}

    def text(self, value: str) -> str:
        """Return the first text seen that equals this one."""
        return self._texts.setdefault(value, value)

    def scores(self, value: dict[str, float]) -> dict[str, float]:
        """Return the first verdicts seen that equal these."""
        return self._scores.setdefault(tuple(value.items()), value)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file of objects; empty where there is no file.

    Raises:
        RecordError: a line is not an object; the message names it.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="surrogatepass")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise _cut_off(path, f"line {number}", f"not UTF-8 ({error.reason})") from None
    # Not splitlines: lmms-eval writes answers as they are, and U+2028 and its like may stand in them.
    lines = text.removesuffix("\n").split("\n")
    if lines == [""]:
        return []
    try:
        rows = json.loads(f"[{','.join(lines)}]")  # in one go: three times as fast, and all rows share their keys' strings
    except (ValueError, RecursionError):
        rows = []
    if len(rows) == len(lines) and all(type(row) is dict for row in rows):
        return rows  # type: ignore[no-any-return]  # just checked
    return list(_one_by_one(path, lines))


def _one_by_one(path: Path, lines: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _cut_off(path, f"line {number} of {len(lines)}", f"not JSON ({error})") from None
        if not isinstance(row, dict):
            raise RecordError(f"{path}, line {number}: expected a JSON object, not {line[:40]!r}")
        yield row


def _cut_off(path: Path, place: str, what: str) -> RecordError:
    mend = _AGAIN if "samples_" in path.name else "run the training again"
    return RecordError(f"{path}, {place}: {what}; the file was cut off or changed: {mend}")


def read_course(path: Path) -> tuple[dict[str, Any], ...]:
    """Read the rows of a training's metrics.jsonl or evals.jsonl.

    Raises:
        RecordError: a line is not an object, or its step or number of items is no whole number.
    """
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        if type(row.get("step")) is not int or type(row.get("items", 0)) is not int:
            raise _cut_off(path, f"line {number}", "`step` or `items` is missing or no whole number")
    return tuple(rows)


def is_sampled(run: Mapping[str, Any]) -> bool:
    """Say whether the answers of an evaluation of ours were sampled rather than greedy."""
    config = run.get("config", {})
    return bool(config.get("repeats", 1) > 1 or config.get("temperature", 0.0) > 0)


def read_own(folder: Path, run: Mapping[str, Any], pool: Pool) -> Evaluation:
    """Read an evaluation that `mr1-bench eval` wrote.

    Args:
        folder: its folder.
        run: its run.json.
        pool: keeps one copy of each text.

    Raises:
        RecordError: a file is missing or damaged, or does not hold what run.json says.
    """
    records.check_eval_record(run, folder / "run.json")
    stamp = run["results_file"].removesuffix("_results.json")
    entries = {name: entry for name, entry in run["tasks"].items() if name in OURS}
    config = run.get("config", {})
    shown = [f"{key} {config[key]}" for key in _ENGINE_SETTINGS if config.get(key) is not None]
    engine = ", ".join([config["backend"], *shown]) if "backend" in config else ""
    settings = {"backend": config.get("backend"), "max_pixels": config.get("max_pixels"), "code_sha256": run.get("code_sha256")}
    tokens = _journal_tokens(folder / "journal.jsonl")
    results = {}
    for name, entry in entries.items():
        samples = folder / f"{stamp}_samples_{name}.jsonl"
        if not samples.is_file():
            raise RecordError(f"{folder} has no {samples.name}, which its run.json names: put it back, or {_AGAIN}")
        answers = read_answers(samples, OURS[name], pool, tokens.get(name, {}))
        means = means_of_answers(answers)
        _check_own(samples, answers, means, entry)
        identity = {key: entry.get(key) for key in _ASKED} | settings
        results[name] = Result(name, folder, answers, means, identity, engine, run.get("tokens_per_s"))
    model = run["model"]
    return Evaluation(folder, model["path"], model["checkpoint_sha256"], model["training"], run, results)


def _check_own(path: Path, answers: tuple[Answer, ...], means: Mapping[str, float], entry: Mapping[str, Any]) -> None:
    if len(answers) != entry.get("n", len(answers)):
        raise RecordError(f"{path} has {len(answers)} answers, but run.json says {entry['n']}: it was cut off or changed; {_AGAIN}")
    for metric, recorded in entry.get("metrics", {}).items():
        if metric in means and abs(means[metric] - recorded["value"]) > 1e-9:
            raise RecordError(
                f"{path}: {metric} of its answers is {means[metric]:.4f}, but run.json says {recorded['value']:.4f}: one of them was "
                f"changed; {_AGAIN}"
            )


def read_answers(path: Path, spec: TaskSpec, pool: Pool, tokens: Mapping[int, int]) -> tuple[Answer, ...]:
    """Read the samples of a task, in the order of the items.

    Args:
        path: lmms-eval's `*_samples_*.jsonl`.
        spec: the task.
        pool: keeps one copy of each text.
        tokens: lengths of the answers by item, as far as known elsewhere.

    Raises:
        RecordError: it is damaged, holds no answers, or several to one item.
    """
    answers: dict[int, Answer] = {}
    for number, row in enumerate(read_rows(path), 1):
        try:
            answer = _answer(row, spec, pool, tokens)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise RecordError(f"{path}, line {number}: not a sample of lmms-eval ({error!r}); {_AGAIN}") from None
        if "acc" not in answer.scores:
            raise RecordError(f"{path}, line {number}: the sample has no `acc`; evaluate again with this version of mr1-bench")
        if answer.doc_id in answers:
            raise RecordError(
                f"{path}, line {number}: a second answer to item {answer.doc_id}; several answers an item are not averaged here: "
                "evaluate greedily, without --repeats"
            )
        answers[answer.doc_id] = answer
    if not answers:
        raise RecordError(f"{path} holds no answers: {_AGAIN}")
    return tuple(answers[position] for position in sorted(answers))


def _answer(row: Mapping[str, Any], spec: TaskSpec, pool: Pool, tokens: Mapping[int, int]) -> Answer:
    text = row["filtered_resps"]
    scores = {metric: float(row[metric]) for metric in spec.metrics if metric in row}
    if any(value not in (0.0, 1.0) for value in scores.values()):
        raise ValueError(f"a verdict is 0 or 1, not {scores}")
    detail = row.get("mr1") or {}
    doc_id = int(row["doc_id"])
    length = tokens.get(doc_id)
    if length is None:
        counted = (row.get("token_counts") or [None])[0]
        length = counted.get("output_tokens") if isinstance(counted, dict) else None
        length = length if type(length) is int else None
    value, value_r1v = detail.get("value"), detail.get("extracted_r1v")
    return Answer(
        doc_id,
        pool.text(str(detail.get("id") or "")),
        pool.text(str(row["target"])),
        pool.text(str(text[0] if isinstance(text, list) else text)),
        pool.scores(scores),
        None if value is None else pool.text(str(value)),
        None if value_r1v is None else pool.text(str(value_r1v)),
        length,
    )


def _journal_tokens(path: Path) -> dict[str, dict[int, int]]:
    """Lengths of the answers by task and item, as far as the journal tells: it is an aid, so what cannot be read is passed over."""
    lengths: dict[str, dict[int, int]] = {}
    try:
        rows = read_rows(path)
    except RecordError:
        return lengths
    for row in rows:
        answers = row.get("answers")
        for key, answer in answers.items() if isinstance(answers, dict) else ():
            place = _JOURNAL_KEY.fullmatch(key)
            if place and isinstance(answer, dict) and type(answer.get("tokens")) is int:
                lengths.setdefault(place[1], {})[int(place[2])] = answer["tokens"]
    return lengths


def means_of_answers(answers: tuple[Answer, ...]) -> dict[str, float]:
    """Return the mean of each metric over the answers that have a verdict."""
    sums: dict[str, list[float]] = {}
    for answer in answers:
        for metric, value in answer.scores.items():
            total = sums.setdefault(metric, [0.0, 0])
            total[0] += value
            total[1] += 1
    return {metric: total / count for metric, (total, count) in sums.items()}
