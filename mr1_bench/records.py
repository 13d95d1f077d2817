"""Run records: what was run, on what, with what result, in files that another program can trust.

A run is one folder. `run.json` (its `kind` is `train`, `eval` or `checkpoint`) is written last and whole, so that its presence means that
the run is complete; lmms-eval's own results and samples lie beside it. This module writes and reads such folders, and reads folders that
lmms-eval wrote by itself. It must not know how a run is made or shown.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mr1_bench.errors import UserError
from mr1_bench.lmms import task_folder
from mr1_bench.specs import UnknownTaskError, get_spec

FORMAT = 1
_CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_NOT_WEIGHTS = ("run.json", "trainer_state.json")
_PACKAGES = ("mr1-bench", "lmms-eval", "torch", "torchvision", "transformers", "datasets", "math-verify", "pillow", "numpy", "vllm")
_RESULTS = re.compile(r"(?P<stamp>.+)_results\.json")


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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

    Args:
        more: other rooms to cover, such as `trainers`.
    """
    core = Path(__file__).parent
    rooms = {"tasks", "trainers", "reports"}  # beside this folder in a source tree, inside it when installed
    files = [("core", path) for path in core.rglob("*.py") if path.relative_to(core).parts[0] not in rooms]
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


def training_of(checkpoint: Path) -> dict[str, Any] | None:
    """Return what a checkpoint's `run.json` says of its training (`method`, `task`, `seed`), or None for a base model."""
    path = checkpoint / "run.json"
    if not path.is_file():
        return None
    run = read_json(path)
    missing = [key for key in ("method", "task") if not isinstance(run, dict) or key not in run]
    if missing:
        raise RecordError(f"{path} does not say {' and '.join(missing)}: expected an object with method, task and, optionally, seed")
    try:
        for name in run["task"].split(","):
            get_spec(name)
    except UnknownTaskError as error:
        raise RecordError(f"{path}: {error}") from None
    return {"method": run["method"], "task": run["task"], "seed": run.get("seed")}


@dataclass(frozen=True, slots=True)
class Item:
    """One graded answer of an evaluation: its position in the task's data, and its metrics, 0.0 or 1.0 each."""

    doc_id: int
    gold: str
    text: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of one checkpoint, by `mr1-bench eval` or by a plain `lmms-eval` run.

    Attributes:
        folder: where its files lie.
        model: path or name of the checkpoint, as recorded.
        weights: hash of the checkpoint's contents; its name, where the files are not at hand.
        training: `{method, task, seed}` of the checkpoint; None for a base model, or where nothing is recorded.
        run: the whole `run.json`, or None for a plain lmms-eval run.
        results: metric values by task, as lmms-eval wrote them, without filter names.
        samples: path of the samples file by task, where there is one.
    """

    folder: Path
    model: str
    weights: str
    training: dict[str, Any] | None
    run: dict[str, Any] | None
    results: dict[str, dict[str, float]]
    samples: dict[str, Path] = field(default_factory=dict)

    def items(self, task: str) -> list[Item]:
        """Read the graded answers of a task.

        Raises:
            RecordError: there is no samples file, or it is cut off or has no metrics.
        """
        if task not in self.samples:
            raise RecordError(f"{self.folder} has no samples of {task}; run lmms-eval with --log_samples, or mr1-bench eval")
        return list(_read_items(self.samples[task]))


def _read_items(path: Path) -> Iterator[Item]:
    # Not splitlines: lmms-eval writes answers as they are, and U+2028 and its like may stand in them.
    lines = path.read_text(encoding="utf-8", errors="surrogatepass").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            answer = row["filtered_resps"]
            text = answer[0] if isinstance(answer, list) else answer
            metrics = {key: float(value) for key, value in row.items() if isinstance(value, int | float) and key != "doc_id"}
            yield Item(int(row["doc_id"]), str(row["target"]), str(text), metrics)
        except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
            raise RecordError(f"{path}, line {number}: not a sample of lmms-eval ({error!r}); the file may be cut off") from None


def _plain_metrics(results: dict[str, Any]) -> dict[str, float]:
    """Turn `{"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": ...}` into `{"acc": 0.5}`."""
    values: dict[str, float] = {}
    for key, value in results.items():
        name = key.partition(",")[0]
        if isinstance(value, int | float) and "_stderr" not in name and name != "samples":
            values.setdefault(name, float(value))
    return values


def _read_results(path: Path, run: dict[str, Any] | None) -> Evaluation:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise RecordError(f"{path} is not a results file of lmms-eval: it has no object `results`")
    match = _RESULTS.fullmatch(path.name)
    stamp = match["stamp"] if match else ""
    found: dict[str, Path] = {task: path.parent / f"{stamp}_samples_{task}.jsonl" for task in content.get("configs") or content["results"]}
    results = {task: metrics for task, values in content["results"].items() if (metrics := _plain_metrics(values)) and task in found}
    pairs = str(content.get("config", {}).get("model_args") or "").split(",")
    arguments = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    named = arguments.get("pretrained") or arguments.get("model")
    plain = named or str(content.get("model_name") or path.parent)
    model = run["model"]["path"] if run else plain
    samples = {task: file for task, file in found.items() if file.is_file()}
    if run:
        return Evaluation(path.parent, model, run["model"]["checkpoint_sha256"], run["model"]["training"], run, results, samples)
    checkpoint = Path(model)
    if named and checkpoint.is_dir():
        return Evaluation(path.parent, model, checkpoint_sha256(checkpoint), training_of(checkpoint), None, results, samples)
    if named and (checkpoint.is_absolute() or model.startswith((".", "~"))):
        raise RecordError(
            f"{path}: the checkpoint {model} is not there any more, so what it was trained on is unknown; put it back, or evaluate with "
            "mr1-bench eval, which records it"
        )
    return Evaluation(path.parent, model, model, None, None, results, samples)


def read_evaluations(folders: Iterable[Path]) -> list[Evaluation]:
    """Read every complete evaluation under some folders, in the order of their paths.

    A folder with journals or results of an unfinished `mr1-bench eval`, that is without its `run.json`, is passed over.

    Raises:
        RecordError: a folder does not exist or holds no evaluation, or a file in it cannot be read.
    """
    evaluations: list[Evaluation] = []
    for folder in folders:
        if not folder.is_dir():
            raise RecordError(f"{folder} is not a folder")
        found: list[Evaluation] = []
        for path in sorted(folder.rglob("*_results.json")):
            run_path = path.parent / "run.json"
            if run_path.is_file():
                run = read_json(run_path)
                if run.get("results_file") == path.name:
                    found.append(_read_results(path, run))
            elif not (path.parent / "journal.jsonl").is_file():
                found.append(_read_results(path, None))
        if not found:
            raise RecordError(f"{folder} holds no finished evaluation; make one with `mr1-bench eval --model … --tasks … --out {folder}`")
        evaluations.extend(found)
    return evaluations
