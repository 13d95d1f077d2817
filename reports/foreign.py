"""Reads what plain lmms-eval wrote of one evaluation, and what somebody declares of its checkpoint, in the words of our own records.

What the files do not say stays unknown; nothing is guessed. This module must not know runs, arms or what is compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mr1_bench import records
from mr1_bench.records import RecordError
from mr1_bench.reports.evaluations import OURS, Evaluation, Pool, means_of_answers, read_answers
from mr1_bench.reports.study import Result
from mr1_bench.specs import TaskSpec

DECLARATION = "training.json"
"""A file beside (or above) results of plain lmms-eval that says what their checkpoint was trained on, where the checkpoint cannot."""


def is_sampled_plain(path: Path) -> bool:
    """Say whether answers of ours that plain lmms-eval made were sampled rather than greedy, as far as its `*_results.json` says.

    Raises:
        RecordError: the file is damaged.
    """
    content = _read_results(path)
    return any(_asked_plainly(path, content, name)[1] for name in content["results"] if name in OURS)


def read_foreign(path: Path, declared: Mapping[str, Any] | None, pool: Pool) -> Evaluation:
    """Read an evaluation that plain lmms-eval wrote.

    What the checkpoint was trained on is taken from the declaration, else from the `run.json` in the checkpoint's folder, where that is
    at hand; a model of the hub counts as a base model.

    Args:
        path: its `*_results.json`.
        declared: contents of the `training.json` beside it, if any.
        pool: keeps one copy of each text.

    Raises:
        RecordError: a file is damaged, `acc` is missing, a metric is no share, or the training cannot be known.
    """
    content = _read_results(path)
    config = _object(path, content, "config")
    arguments = _arguments(config)
    model = arguments.get("pretrained") or arguments.get("model") or str(content.get("model_name") or "")
    weights, training = _training_of(path, model, declared)
    model = model or str(path.parent)
    stamp = path.name.removesuffix("_results.json")
    results = {}
    for name in (name for name in content["results"] if name in OURS):
        samples = path.parent / f"{stamp}_samples_{name}.jsonl"
        means = _plain_means(path, _object(path, content["results"], name), OURS[name])
        answers = read_answers(samples, OURS[name], pool, {}) if samples.is_file() else ()
        counted = _object(path, _object(path, content, "n-samples"), name).get("effective", len(answers))
        found = means_of_answers(answers)
        differing = [metric for metric in found if metric in means and abs(means[metric] - found[metric]) > 1e-6]
        if differing or (answers and counted != len(answers)):
            said = [f"{metric} of them is {found[metric]:.4f}, but {path.name} says {means[metric]:.4f}" for metric in differing[:1]]
            said += [f"{path.name} says {counted}"] if not differing else []
            raise RecordError(f"{samples} has {len(answers)} answers, and {said[0]}: it was cut off or changed; evaluate again")
        engine = ", ".join(filter(None, (str(config.get("model") or ""), str(config.get("model_args") or ""))))
        identity, _ = _asked_plainly(path, content, name)
        results[name] = Result(name, path.parent, answers, means, identity, engine, foreign=True)
    record = {"kind": "foreign", "results_file": path.name}
    record |= {key: value for key, value in content.items() if key not in ("results", "configs", "groups", "group_subtasks", "samples")}
    return Evaluation(path.parent, model, weights, training, record, results)


def _read_results(path: Path) -> dict[str, Any]:
    content = records.read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise RecordError(f"{path} is not a results file of lmms-eval: it has no object `results`")
    return content


def _object(path: Path, holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object in a file of lmms-eval; empty where there is none."""
    value = holder.get(key)
    if value is not None and not isinstance(value, dict):
        raise RecordError(f"{path}: `{key}` is {str(value)[:40]!r}, expected an object; the file was changed: evaluate again")
    return value or {}


def _arguments(config: Mapping[str, Any]) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in str(config.get("model_args") or "").split(",") if "=" in pair)


def _plain_means(path: Path, values: Mapping[str, Any], spec: TaskSpec) -> dict[str, float]:
    means = {}
    for key, value in values.items():
        metric = key.partition(",")[0]
        if metric in spec.metrics and type(value) in (int, float):
            if not 0 <= value <= 1:  # nan is not
                raise RecordError(f"{path}: {metric} of {spec.name} is {value}, expected a share between 0 and 1; evaluate again")
            means[metric] = float(value)
    if "acc" not in means:
        raise RecordError(f"{path} has no `acc` of {spec.name}: evaluate again with this version of mr1-bench")
    return means


def _asked_plainly(path: Path, content: Mapping[str, Any], task: str) -> tuple[dict[str, Any], bool]:
    """What a file of lmms-eval says of how a task was asked, in the words of our records, and whether answers were sampled."""
    config, entry = _object(path, content, "config"), _object(path, _object(path, content, "configs"), task)
    kwargs = {key: value for key, value in _object(path, entry, "generation_kwargs").items() if value is not None}
    temperature = kwargs.get("temperature", 1.0 if kwargs.get("do_sample") else 0.0)
    numbers = {"temperature": temperature, "top_p": kwargs.get("top_p", 1.0), "repeats": entry.get("repeats", 1)}
    numbers |= {"max_new_tokens": kwargs.get("max_new_tokens", 0), "limit": config.get("limit") or 0}
    for key, value in numbers.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise RecordError(f"{path}: `{key}` of {task} is {str(value)[:40]!r}, expected a number; the file was changed: evaluate again")
    identity: dict[str, Any] = {}
    if "max_new_tokens" in kwargs:
        top_p = float(numbers["top_p"]) if temperature else 1.0
        identity["decoding"] = {"max_new_tokens": int(numbers["max_new_tokens"]), "temperature": float(temperature), "top_p": top_p}
    if "limit" in config:
        limit = config["limit"]
        identity["limit"] = int(limit) if limit is not None and limit == int(limit) else limit
    # Called from Python, lmms-eval notes something else here than the name of its model class.
    if re.fullmatch(r"\w+", str(config.get("model") or "")):
        identity["backend"] = config["model"]
    pixels = _arguments(config).get("max_pixels", "")
    if pixels.isdecimal() and len(pixels) < 20:
        identity["max_pixels"] = int(pixels)
    return identity, temperature > 0 or numbers["repeats"] > 1


def _training_of(path: Path, model: str, declared: Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any] | None]:
    """Weights (a hash, or a name) and training of a checkpoint that plain lmms-eval evaluated."""
    checkpoint = Path(model)
    try:
        here = bool(model) and any(checkpoint.glob("*.safetensors"))
        there = here or checkpoint.is_absolute() or checkpoint.is_dir() or model.startswith((".", "~"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: {model[:80]!r} is the name of no checkpoint ({error})") from None
    weights = records.checkpoint_sha256(checkpoint) if here else model or str(path.parent)
    if declared is not None:
        return weights, None if declared["method"] == "base" else declared
    if here:
        return weights, records.training_of(checkpoint)
    if not model or there:
        what = f"the checkpoint {model} is not here" if model else "it does not name its checkpoint"
        raise RecordError(
            f"{path}: {what}, so what it was trained on is unknown. Say it in {path.parent / DECLARATION}: "
            '{"method": "grpo", "task": "gr", "seed": 0}, or {"method": "base"} for a model before training'
        )
    return weights, None


def read_declaration(path: Path) -> Mapping[str, Any]:
    """Read a `training.json`.

    Raises:
        RecordError: it does not say method and task, or one of these or the seed is none.
    """
    content = records.read_json(path)
    if not isinstance(content, dict) or "method" not in content or (content["method"] != "base" and "task" not in content):
        raise RecordError(f'{path}: expected {{"method": "grpo", "task": "gr", "seed": 0}}, or {{"method": "base"}}')
    if content["method"] == "base":
        return {"method": "base", "task": "", "seed": None}
    records.check_training(content, path)
    return {"method": content["method"], "task": content["task"], "seed": content.get("seed")}
