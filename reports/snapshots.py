"""Reads one side of a comparison: run records, results and samples of lmms-eval, or a report folder, into a `Snapshot`.

What is damaged, ambiguous or without scores is refused with the file's name and what to do. Checkpoints are not needed. This module must
not know verdicts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from mr1_bench.errors import UserError
from mr1_bench.grading import grade
from mr1_bench.records import RecordError, read_json, sha256_json
from mr1_bench.reports.evaluations import Evaluation, Pool, is_sampled, read_own, read_rows
from mr1_bench.reports.folders import Found, find
from mr1_bench.reports.foreign import read_foreign
from mr1_bench.reports.provenance import Places
from mr1_bench.reports.report_items import is_report, read_report
from mr1_bench.reports.study import Answer, Result
from mr1_bench.reports.verdicts import ItemScore, Snapshot, TaskSnapshot, means_of
from mr1_bench.specs import get_spec

_SHOWN = 4
_AGAIN = "evaluate again with `mr1-bench eval`"
_RESULTS = "_results.json"
_CHECKPOINT = ("pretrained", "model")


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """Everything read of one checkpoint."""

    folders: tuple[Path, ...]
    model: str
    weights: str
    training: Mapping[str, Any] | None
    created: str
    tasks: Mapping[str, TaskSnapshot]


def read_snapshot(path: Path) -> Snapshot:
    """Read one side of a comparison.

    Args:
        path: a folder with evaluations of one checkpoint (or of several training seeds of one method), searched to any depth; a results
            file of lmms-eval; a report folder with one run, or `REPORT/RUN` for one of several.

    Raises:
        UserError: there is nothing to compare, a file is damaged or without scores, or there are several models; the message names the file
            and what to do.
    """
    try:
        return _read(path)
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} holds a file that is no UTF-8 text ({error.reason}): it is damaged or foreign; {_AGAIN}") from None


def _read(path: Path) -> Snapshot:
    report, run = (path, "") if is_report(path) else (path.parent, path.name)
    if is_report(report) and not path.is_file():
        return read_report(report, run, str(path))
    if path.is_dir():
        checkpoints = _checkpoints(find([path]))
    elif path.is_file():
        checkpoints = _checkpoints(_found_file(path))
    else:
        raise UserError(f"{path} does not exist: name a run folder, a results file of lmms-eval, a report folder or a saved baseline")
    if not checkpoints:
        raise UserError(f"{path} holds no finished evaluation of an mr1 task: make one with `mr1-bench eval --model … --out {path}`")
    _check_one_method(path, checkpoints)
    seeds = sorted(checkpoints, key=lambda one: -1 if one.training is None else int(one.training.get("seed") or 0))
    names = dict.fromkeys(task for one in seeds for task in one.tasks)
    for one in seeds:
        lacking = [task for task in names if task not in one.tasks]
        if lacking:
            raise UserError(f"{one.folders[0]} has no results of {', '.join(lacking)}, which another training seed in {path} has; {_AGAIN}")
    first = seeds[0]
    tasks = {task: tuple(one.tasks[task] for one in seeds) for task in names}
    return Snapshot(str(path), first.model, _weights(first.weights), max(one.created for one in seeds), tasks)


def _found_file(path: Path) -> Found:
    """The records that a file stands for: `run.json`, or results of lmms-eval."""
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: {_AGAIN}, or name another file")
    if "_samples_" in path.name:
        raise UserError(f"{path} holds samples only: name the *{_RESULTS} beside it, or its folder")
    content = read_json(path) if path.suffix == ".json" else None
    if not isinstance(content, dict) or not (path.name.endswith(_RESULTS) or path.name == "run.json"):
        raise UserError(f"{path} is no saved baseline, no run.json and no *{_RESULTS} of lmms-eval: name one of these, or a folder")
    own = path.parent / "run.json"
    run = read_json(own) if own.is_file() else None
    if isinstance(run, dict) and run.get("kind") == "eval" and path.name in ("run.json", run.get("results_file")):
        return Found(own={path.parent: run})
    if path.name == "run.json":
        raise UserError(
            f"{path} is the record of a {content.get('kind') or 'foreign'} run, not of an evaluation: name one below {path.parent}/eval"
        )
    return Found(foreign=[path])


def _checkpoints(found: Found) -> list[_Checkpoint]:
    """Every evaluation, joined by checkpoint."""
    if found.missing:
        reasons = "; ".join(f"{one.folder}: {one.why}" for one in found.missing[:_SHOWN])
        raise UserError(
            f"{reasons}. What is finished beside it may be of an older checkpoint: finish it, or name the finished one's folder"
        )
    pool = Pool()
    joined: dict[str, _Checkpoint] = {}
    for one, tasks, created in _evaluations(found, pool):
        if not tasks:
            continue
        key = sha256_json([one.weights, one.training])
        known = joined.get(key)
        if known is None:
            joined[key] = _Checkpoint((one.folder,), one.model, one.weights, one.training, created, tasks)
            continue
        twice = [task for task in tasks if task in known.tasks]
        if twice:
            raise UserError(
                f"{known.folders[0]} and {one.folder} both evaluate {', '.join(twice)} of the same checkpoint: name one of them"
            )
        joined[key] = replace(
            known, folders=(*known.folders, one.folder), created=max(known.created, created), tasks={**known.tasks, **tasks}
        )
    return list(joined.values())


def _evaluations(found: Found, pool: Pool) -> Iterable[tuple[Evaluation, dict[str, TaskSnapshot], str]]:
    for folder, run in found.own.items():
        evaluation = read_own(folder, run, pool)
        stamp = str(run["results_file"]).removesuffix(_RESULTS)
        tasks = {}
        for task, result in evaluation.results.items():
            samples = folder / f"{stamp}_samples_{task}.jsonl"
            rows = _check_samples(samples, task, result.answers)
            items, repeats = _items(result.answers), 1
            if is_sampled(run) and run["config"].get("repeats", 1) > 1:
                repeats = int(run["config"]["repeats"])
                items = _repeated(folder / "journal.jsonl", run, task, result.answers)
            identity = {"code_sha256": run.get("code_sha256"), "asked_sha256": _asked(rows)} | dict(result.identity)
            measures = {key: float(run[key]) for key in ("tokens_per_s", "peak_memory_bytes") if run.get(key)}
            tasks[task] = _task(evaluation, result, items, repeats, identity, measures)
        yield evaluation, tasks, str(run.get("started") or "")
    for path in found.foreign:
        declared = next((found.declared[place] for place in (path.parent, *path.parent.parents) if place in found.declared), None)
        evaluation = read_foreign(path, declared or {"method": "base"}, pool)
        content = read_json(path)
        engine, weights = _engine(content.get("config") or {}), _weights(evaluation.weights)
        tasks = {
            task: replace(_foreign_task(path, evaluation, result), engine=engine, weights=weights)
            for task, result in evaluation.results.items()
        }
        yield evaluation, tasks, _date(str(content.get("date") or ""))


def _foreign_task(path: Path, evaluation: Evaluation, result: Result) -> TaskSnapshot:
    samples = path.parent / f"{path.name.removesuffix(_RESULTS)}_samples_{result.task}.jsonl"
    if not result.answers:
        raise UserError(
            f"{path} has no samples beside it ({samples.name}): without scores of each item nothing is tested; "
            "run lmms-eval with --log_samples"
        )
    rows = _check_samples(samples, result.task, result.answers)
    identity = {"asked_sha256": _asked(rows)} | dict(result.identity)
    return _task(evaluation, result, _items(result.answers), 1, identity, {})


def _task(
    evaluation: Evaluation,
    result: Result,
    items: tuple[ItemScore, ...],
    repeats: int,
    identity: Mapping[str, Any],
    measures: Mapping[str, float],
) -> TaskSnapshot:
    known = {key: value for key, value in identity.items() if value is not None and key != "limit"}
    seed = (evaluation.training or {}).get("seed")
    return TaskSnapshot(known, items, means_of(items), measures, result.engine, seed, repeats, evaluation.weights)


def _items(answers: Iterable[Answer]) -> tuple[ItemScore, ...]:
    return tuple(ItemScore(one.doc_id, one.item, one.gold, one.text, one.scores, one.value, one.tokens) for one in answers)


def _check_samples(path: Path, task: str, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return the rows of samples whose answers are texts of this task, with lengths that can be.

    Items of an embedded task carry its data's name: samples of another task in their place show.
    """
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        texts = row["filtered_resps"] if isinstance(row["filtered_resps"], list) else [row["filtered_resps"]]
        if not all(isinstance(text, str) for text in texts):
            raise RecordError(f"{path}, line {number}: the answer is {str(texts[0])[:40]!r}, not a text: the file was changed; {_AGAIN}")
    below = next((answer for answer in answers if answer.tokens is not None and answer.tokens < 0), None)
    if below:
        raise RecordError(
            f"{path}: the answer to item {below.doc_id} has {below.tokens} tokens: the file or the journal was changed; {_AGAIN}"
        )
    spec = get_spec(task)
    if not spec.synthetic:
        return rows
    expected = f"{spec.data}-l{spec.level}-"
    wrong = next((answer.item for answer in answers if answer.item and not answer.item.startswith(expected)), None)
    if wrong:
        raise UserError(
            f"{path} holds items of another task ({wrong}; expected {expected}…): files were swapped; put them back, or {_AGAIN}"
        )
    return rows


def _repeated(journal: Path, run: Mapping[str, Any], task: str, answers: Sequence[Answer]) -> tuple[ItemScore, ...]:
    """Scores of an item averaged over its repeats; graded from the journal, for samples hold one answer an item.

    The journal must be that of the evaluation: its identity, the answers that the samples hold too, and the mean that run.json notes.
    """
    repeats = int(run["config"]["repeats"])
    texts = _journal_texts(journal, str(run.get("identity")), task)
    items = []
    for answer in answers:
        found = [texts.get((answer.doc_id, repeat)) for repeat in range(repeats)]
        kept = [one for one in found if one is not None]
        if len(kept) < repeats:
            raise UserError(f"{journal} has {len(kept)} of {repeats} answers to item {answer.doc_id} of {task}: it was cut off; {_AGAIN}")
        if kept[0][0] != answer.text:
            raise RecordError(
                f"{journal} has another answer to item {answer.doc_id} of {task} than its samples: one of them was changed; {_AGAIN}"
            )
        scores = [grade(task, answer.gold, text) for text, _ in kept]
        means = {"acc": fmean(score.correct for score in scores), "answered": fmean(score.status == "answered" for score in scores)}
        if "format" in answer.scores:
            means["format"] = fmean(score.format_ok for score in scores)
        lengths = [length for _, length in kept if length is not None]
        length = fmean(lengths) if len(lengths) == repeats else None
        items.append(ItemScore(answer.doc_id, answer.item, answer.gold, kept[0][0], means, scores[0].value, length))
    noted = (run["tasks"][task].get("repeats") or {}).get("avg", {}).get("value")
    mean = fmean(item.scores["acc"] for item in items)
    if noted is not None and abs(noted - mean) > 1e-9:
        raise RecordError(
            f"{journal}: acc of its answers to {task} is {mean:.4f}, but run.json says {noted:.4f}: it was changed, or graded by another "
            f"version; {_AGAIN}"
        )
    return tuple(items)


def _journal_texts(journal: Path, identity: str, task: str) -> dict[tuple[int, int], tuple[str, int | None]]:
    """Answers to a task and their lengths in tokens, by item and repeat."""
    rows = read_rows(journal)
    if not rows or rows[0].get("identity") != identity:
        raise RecordError(f"{journal} is not the journal of the evaluation in run.json (its identity is another): put it back, or {_AGAIN}")
    texts: dict[tuple[int, int], tuple[str, int | None]] = {}
    for number, row in enumerate(rows, 1):
        try:
            for key, answer in row.get("answers", {}).items():
                name, doc_id, repeat, *_ = key.split("/")
                length = answer.get("tokens")
                if not isinstance(answer["text"], str) or (length is not None and (type(length) is not int or length < 0)):
                    raise ValueError("an answer is a text and a number of tokens")
                if name == task:
                    texts[int(doc_id), int(repeat)] = answer["text"], length
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(f"{journal}, line {number}: not a line of a journal ({error!r}); {_AGAIN}") from None
    return texts


def _asked(samples: Iterable[Mapping[str, Any]]) -> str | None:
    """One hash for the inputs of all items as they were sent; None where they are not recorded."""
    rows = [(row["doc_id"], row.get("input")) for row in samples]
    if any(asked is None for _, asked in rows):
        return None
    return sha256_json(sorted((doc_id, json.dumps(asked, sort_keys=True)) for doc_id, asked in rows))


def _engine(config: Mapping[str, Any]) -> str:
    """What generated answers for plain lmms-eval, with its settings: not which checkpoint, and nothing of the machine's folders."""
    settings: list[str] = []
    named = False
    for part in str(config.get("model_args") or "").split(","):
        named = part.partition("=")[0].strip() in _CHECKPOINT if "=" in part else named  # a path may hold commas
        settings += [] if named or not part.strip() else [part.strip()]
    return Places(()).clean(", ".join(filter(None, (str(config.get("model") or ""), ",".join(settings)))))


def _weights(weights: str) -> str:
    """What tells a checkpoint: a hash, or its name on the hub; empty where all that is known is its folder on some machine."""
    local = weights.startswith((".", "~", "/")) or "\\" in weights or Path(weights).is_dir()
    return "" if local else weights


def _date(stamp: str) -> str:
    """lmms-eval's `20261121_141550` as ISO 8601; its zone is not recorded in a fixed place."""
    day, _, time = stamp.partition("_")
    if len(day) != 8 or len(time) != 6 or not (day + time).isdecimal():
        return ""
    return f"{day[:4]}-{day[4:6]}-{day[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}"


def _check_one_method(path: Path, checkpoints: Sequence[_Checkpoint]) -> None:
    """Several checkpoints are one side only as training seeds of one method."""
    if len(checkpoints) == 1:
        return
    asked = {None if one.training is None else (one.training["method"], one.training["task"]) for one in checkpoints}
    seeds = [None if one.training is None else one.training.get("seed") for one in checkpoints]
    if len(asked) == 1 and None not in asked and None not in seeds and len(set(seeds)) == len(seeds):
        return
    shown = ", ".join(str(one.folders[0]) for one in checkpoints[:_SHOWN]) + (", …" if len(checkpoints) > _SHOWN else "")
    raise UserError(f"{path} holds {len(checkpoints)} models ({shown}): name the folder of one, or of one method's training seeds")
