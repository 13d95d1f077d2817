"""Reads the folder of one evaluation, ours or one that plain lmms-eval wrote, down to every answer and what the graders read in it.

Our own records need nothing but their folder: the checkpoint may be gone. This module must not know runs, arms or what is compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mr1_bench import records
from mr1_bench.records import RecordError
from mr1_bench.reports.study import Answer, Result
from mr1_bench.specs import SPECS, TaskSpec, UnknownTaskError, get_spec

IDENTITY = ("dataset_sha256", "pixels_sha256", "prompt_sha256", "decoding", "limit")
"""What decides what was asked; equal for all results of a task that may stand in one table."""
DECLARATION = "training.json"
"""A file beside (or above) results of plain lmms-eval that says what their checkpoint was trained on, where the checkpoint cannot."""

_OURS = {spec.name: spec for spec in SPECS}
_ENGINE_SETTINGS = ("device", "batch_size", "max_pixels")
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
    # Not splitlines: lmms-eval writes answers as they are, and U+2028 and its like may stand in them.
    lines = path.read_text(encoding="utf-8", errors="surrogatepass").removesuffix("\n").split("\n")
    if lines == [""]:
        return []
    try:
        rows = json.loads(f"[{','.join(lines)}]")  # in one go: three times as fast, and all rows share their keys' strings
    except json.JSONDecodeError:
        rows = []
    if len(rows) == len(lines) and all(type(row) is dict for row in rows):
        return rows  # type: ignore[no-any-return]  # just checked
    return list(_one_by_one(path, lines))


def _one_by_one(path: Path, lines: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RecordError(
                f"{path}, line {number} of {len(lines)}: not JSON ({error}); the file was cut off or changed: {_AGAIN}"
                if "samples_" in path.name
                else f"{path}, line {number} of {len(lines)}: not JSON ({error}); the file was cut off or changed: run the training again"
            ) from None
        if not isinstance(row, dict):
            raise RecordError(f"{path}, line {number}: expected a JSON object, not {line[:40]!r}")
        yield row


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
    path = folder / "run.json"
    try:
        model, weights, training = (run["model"][key] for key in ("path", "checkpoint_sha256", "training"))
        stamp = str(run["results_file"]).removesuffix("_results.json")
        entries = {name: entry for name, entry in run["tasks"].items() if name in _OURS}
        config = run.get("config", {})
        settings = [f"{key} {config[key]}" for key in _ENGINE_SETTINGS if config.get(key) is not None]
        engine = ", ".join([config["backend"], *settings]) if "backend" in config else ""
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is not a record of `mr1-bench eval` ({error!r}); remove its folder and {_AGAIN}") from None
    tokens = _journal_tokens(folder / "journal.jsonl")
    results = {}
    for name, entry in entries.items():
        samples = folder / f"{stamp}_samples_{name}.jsonl"
        if not samples.is_file():
            raise RecordError(f"{folder} has no {samples.name}, which its run.json names: put it back, or {_AGAIN}")
        answers = _read_answers(samples, _OURS[name], pool, tokens.get(name, {}))
        means = _means(answers)
        _check_own(samples, answers, means, entry)
        identity = {key: entry.get(key) for key in IDENTITY}
        results[name] = Result(name, folder, answers, means, identity, engine, run.get("tokens_per_s"))
    return Evaluation(folder, str(model), str(weights), training, run, results)


def _check_own(path: Path, answers: tuple[Answer, ...], means: Mapping[str, float], entry: Mapping[str, Any]) -> None:
    if len(answers) != entry.get("n", len(answers)):
        raise RecordError(f"{path} has {len(answers)} answers, but run.json says {entry['n']}: it was cut off or changed; {_AGAIN}")
    for metric, recorded in entry.get("metrics", {}).items():
        if metric in means and abs(means[metric] - recorded["value"]) > 1e-9:
            raise RecordError(
                f"{path}: {metric} of its answers is {means[metric]:.4f}, but run.json says {recorded['value']:.4f}: one of them was "
                f"changed; {_AGAIN}"
            )


def read_foreign(path: Path, declared: Mapping[str, Any] | None, pool: Pool) -> Evaluation:
    """Read an evaluation that plain lmms-eval wrote.

    What the checkpoint was trained on is taken from the declaration, else from the `run.json` in the checkpoint's folder, where that is
    at hand; a model of the hub counts as a base model.

    Args:
        path: its `*_results.json`.
        declared: contents of the `training.json` beside it, if any.
        pool: keeps one copy of each text.

    Raises:
        RecordError: a file is damaged, `acc` is missing, or the training cannot be known.
    """
    content = records.read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise RecordError(f"{path} is not a results file of lmms-eval: it has no object `results`")
    config = content.get("config") or {}
    arguments = dict(pair.split("=", 1) for pair in str(config.get("model_args") or "").split(",") if "=" in pair)
    model = arguments.get("pretrained") or arguments.get("model") or str(content.get("model_name") or "")
    weights, training = _training_of(path, model, declared)
    model = model or str(path.parent)
    stamp = path.name.removesuffix("_results.json")
    results = {}
    for name, values in content["results"].items():
        if name not in _OURS:
            continue
        samples = path.parent / f"{stamp}_samples_{name}.jsonl"
        means = {
            key.partition(",")[0]: float(value)
            for key, value in values.items()
            if key.partition(",")[0] in _OURS[name].metrics and isinstance(value, int | float)
        }
        if "acc" not in means:
            raise RecordError(f"{path} has no `acc` of {name}: evaluate again with this version of mr1-bench")
        answers = _read_answers(samples, _OURS[name], pool, {}) if samples.is_file() else ()
        for metric, value in _means(answers).items():
            if metric in means and abs(means[metric] - value) > 1e-6:
                raise RecordError(
                    f"{samples}: {metric} of its {len(answers)} answers is {value:.4f}, but {path.name} says {means[metric]:.4f}: it was "
                    "cut off or changed; evaluate again"
                )
        engine = ", ".join(filter(None, (str(config.get("model") or ""), str(config.get("model_args") or ""))))
        results[name] = Result(name, path.parent, answers, means, {}, engine, foreign=True)
    record = {"kind": "foreign", "results_file": path.name}
    record |= {key: value for key, value in content.items() if key not in ("results", "configs", "groups", "group_subtasks", "samples")}
    return Evaluation(path.parent, model, weights, training, record, results)


def _training_of(path: Path, model: str, declared: Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any] | None]:
    """Weights (a hash, or a name) and training of a checkpoint that plain lmms-eval evaluated."""
    checkpoint = Path(model)
    here = bool(model) and any(checkpoint.glob("*.safetensors"))
    weights = records.checkpoint_sha256(checkpoint) if here else model or str(path.parent)
    if declared is not None:
        return weights, None if declared["method"] == "base" else declared
    if here:
        return weights, records.training_of(checkpoint)
    if not model or checkpoint.is_absolute() or checkpoint.is_dir() or model.startswith((".", "~")):
        what = f"the checkpoint {model} is not here" if model else "it does not name its checkpoint"
        raise RecordError(
            f"{path}: {what}, so what it was trained on is unknown. Say it in {path.parent / DECLARATION}: "
            '{"method": "grpo", "task": "gr", "seed": 0}, or {"method": "base"} for a model before training'
        )
    return weights, None


def read_declaration(path: Path) -> Mapping[str, Any]:
    """Read a `training.json`.

    Raises:
        RecordError: it does not say method and task, or names a task that does not exist.
    """
    content = records.read_json(path)
    if not isinstance(content, dict) or "method" not in content or (content["method"] != "base" and "task" not in content):
        raise RecordError(f'{path}: expected {{"method": "grpo", "task": "gr", "seed": 0}}, or {{"method": "base"}}')
    try:
        for name in str(content.get("task") or "gr").split(","):
            get_spec(name)
    except UnknownTaskError as error:
        raise RecordError(f"{path}: {error}") from None
    return {"method": content["method"], "task": content.get("task", ""), "seed": content.get("seed")}


def _read_answers(path: Path, spec: TaskSpec, pool: Pool, tokens: Mapping[int, int]) -> tuple[Answer, ...]:
    answers: dict[int, Answer] = {}
    for number, row in enumerate(read_rows(path), 1):
        try:
            answer = _answer(row, spec, pool, tokens)
        except (KeyError, TypeError, ValueError, IndexError) as error:
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
    except (RecordError, UnicodeDecodeError):
        return lengths
    for row in rows:
        answers = row.get("answers")
        for key, answer in answers.items() if isinstance(answers, dict) else ():
            task, doc_id, repeat, *_ = key.split("/")
            if repeat == "0" and isinstance(answer.get("tokens"), int):
                lengths.setdefault(task, {})[int(doc_id)] = answer["tokens"]
    return lengths


def _means(answers: tuple[Answer, ...]) -> dict[str, float]:
    """Mean of each metric over the answers that have a verdict."""
    sums: dict[str, list[float]] = {}
    for answer in answers:
        for metric, value in answer.scores.items():
            total = sums.setdefault(metric, [0.0, 0])
            total[0] += value
            total[1] += 1
    return {metric: total / count for metric, (total, count) in sums.items()}
