"""lmms-eval, driven in this process: its tasks, its models and its files, with our journal between model and evaluation.

What lmms-eval does behind one's back stays in this file: progress bars of its own, errors it swallows, samples it changes while it writes
them. It must not know run records or how answers are graded.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mr1_bench import records
from mr1_bench.errors import UserError
from mr1_bench.specs import SPECS
from mr1_bench.tasks import vllm_backend
from mr1_bench.tasks.journal import Answer, Journal, journaled
from mr1_bench.tasks.ranks import Ranks, ShareDone

_CHUNK_BATCHES = 4  # batches between two writes of the journal


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """What an evaluation is, apart from where it is written. Whole in `run.json`."""

    model: str
    tasks: str
    backend: str
    batch_size: int
    limit: int | None
    repeats: int
    temperature: float
    top_p: float
    seed: int
    device: str | None
    max_pixels: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one evaluation gave.

    Attributes:
        results: lmms-eval's results by task, with filter names, and its task configurations.
        samples: graded rows by task.
        answers: every answer by `task/item/repeat`.
        made: answers made now; the others came from the journal.
        seconds: wall time of generation.
        stamp: what lmms-eval's files beside the journal begin with.
    """

    results: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]]
    answers: dict[str, Answer]
    made: int
    seconds: float
    stamp: str


def quiet(verbose: bool) -> None:
    """Leave the terminal to our own progress bar; must run before lmms_eval is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if verbose:
        return
    import warnings

    import datasets
    import tqdm
    import transformers
    from loguru import logger

    started = tqdm.tqdm.__init__

    @functools.wraps(started)
    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        # lmms-eval's models set `disable` themselves, so tqdm's own variable has no effect. Our bars name their stream.
        started(self, *args, **kwargs | ({} if "file" in kwargs else {"disable": True}))

    tqdm.tqdm.__init__ = silent
    warnings.filterwarnings("ignore")
    logger.remove()
    logger.add(sys.stderr, level="ERROR", format="{message}")
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def open_tasks(names: Sequence[str], include_path: Path | None) -> Any:
    """Return lmms-eval's task manager, ours and further tasks included.

    Raises:
        UserError: it does not know one of the names.
    """
    import lmms_eval.models  # noqa: F401  (its entry points add our tasks)
    from lmms_eval.tasks import TaskManager

    # Indexing lmms-eval's own tasks takes 5 CPU seconds, so that is left out where none of them is asked for.
    further = not {spec.name for spec in SPECS}.issuperset(names)
    manager = TaskManager("ERROR", include_path=str(include_path) if include_path else None, include_defaults=further)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UserError(f"lmms-eval knows no task {', '.join(unknown)}; `mr1-bench tasks` lists ours, `lmms-eval --tasks list` all")
    return manager


def outside_facts(manager: Any, name: str, include_path: Path | None) -> dict[str, Any]:
    """Return what decides the numbers of a task or group that is not in our table, as hashes.

    Covered are the task's whole configuration with the source of its functions, the data, and the files in `include_path`.

    Raises:
        UserError: its data cannot be loaded.
    """
    from tenacity import RetryError

    try:
        loaded = manager.load_task_or_group(name)
    except RetryError as error:
        raise UserError(f"lmms-eval could not load the data of {name}: {error.last_attempt.exception()}") from None
    except ImportError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    facts = {}
    for leaf, task in _leaves(loaded):
        files = [str(path) for path in _strings((task.config.dataset_kwargs or {}).get("data_files")) if Path(path).is_file()]
        content = [records.file_sha256(Path(path)) for path in files] or [split._fingerprint for split in task.dataset.values()]
        settings = {field.name: getattr(task.config, field.name) for field in fields(task.config) if field.name != "dataset_kwargs"}
        config = json.dumps(settings, sort_keys=True, default=_source)
        facts[leaf] = {"dataset_sha256": records.sha256_json(content), "config_sha256": hashlib.sha256(config.encode()).hexdigest()}
    sources = sorted(path for path in include_path.rglob("*") if path.suffix in (".py", ".yaml")) if include_path else []
    return {"task": name, "tasks": facts, "include_path": [(path.name, records.file_sha256(path)) for path in sources]}


def _source(value: Any) -> str:
    """Text of a function of a task's configuration; of anything else that JSON does not know, its type's name."""
    if not inspect.isfunction(value):
        return type(value).__qualname__
    try:
        return inspect.getsource(value)
    except OSError:  # defined where no source file is
        return value.__qualname__


def _leaves(loaded: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, task in loaded.items():
        if isinstance(task, dict):
            yield from _leaves(task)
        else:
            yield str(name), task


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def evaluate(
    manager: Any,
    names: Sequence[str],
    config: EvalConfig,
    model_arguments: dict[str, Any],
    folder: Path,
    journal: Journal | None,
    ranks: Ranks,
) -> Outcome:
    """Evaluate a model on tasks and write lmms-eval's results and samples into a folder.

    A process without a journal makes its share of the answers and writes nothing.

    Raises:
        UserError: lmms-eval has no such model, or could not write its files.
        ShareDone: there is no journal, and this process's share is done.
    """
    import lmms_eval.models
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.loggers import EvaluationTracker
    from loguru import logger

    if config.backend not in lmms_eval.models.list_available_models(include_aliases=True):
        raise UserError(f"lmms-eval has no model {config.backend!r}; use --backend hf, vllm, or one of `lmms-eval models`")
    make = functools.partial(lmms_eval.models.get_model(config.backend), **model_arguments)
    on_vllm = config.backend == "vllm"
    model = vllm_backend.load(Path(model_arguments["model"]), make) if on_vllm else make()
    tokenizer = getattr(model, "tokenizer", None)
    logger.disable("lmms_eval.evaluator")  # it warns of the sampling settings that we pass on purpose
    with _Progress(shown=ranks.first) as progress:
        generate = journaled(
            model.generate_until,
            journal,
            chunk=config.batch_size * _CHUNK_BATCHES,
            seed_all=functools.partial(_seed_everything, config.seed),
            count_tokens=lambda text: len(tokenizer.encode(text)) if tokenizer is not None else 0,
            advance=progress.advance,
            ranks=ranks,
        )
        model.generate_until = progress.watch(generate)
        tracker = EvaluationTracker(output_path=str(folder))
        decoding = [vllm_backend.generation_arguments(Path(model_arguments["model"]))] if on_vllm else []
        if config.temperature > 0:
            decoding.append(f"temperature={config.temperature},top_p={config.top_p},do_sample=True")
        stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
        results = simple_evaluate(
            model=model,
            tasks=list(names),
            task_manager=manager,
            limit=config.limit,
            log_samples=True,
            gen_kwargs=",".join(filter(None, decoding)) or None,
            repeats=config.repeats,
            evaluation_tracker=tracker,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            datetime_str=stamp,
            verbosity="ERROR",
        )
    if journal is None:  # tasks without generation are not divided, and the first process's results count
        raise ShareDone
    samples = {task: [dict(row) for row in rows] for task, rows in results["samples"].items()}
    tracker.general_config_tracker.model_source = config.backend  # it holds the model itself and would copy it whole, which vLLM's refuses
    _write_files(tracker, results, folder, stamp)
    answers = {key.rpartition("/")[0]: answer for key, answer in journal.answers.items()}
    return Outcome(results, samples, answers, progress.made, progress.seconds, stamp)


def _write_files(tracker: Any, results: dict[str, Any], folder: Path, stamp: str) -> None:
    """Write lmms-eval's files; it swallows its own errors and changes the samples, so look at what arrived on disk."""
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples, datetime_str=stamp)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
        path = folder / f"{stamp}_samples_{task}.jsonl"
        if not path.is_file() or path.read_bytes().count(b"\n") != len(rows):
            raise UserError(f"lmms-eval could not write {path}; is the disk full? The answers are kept: run the same command again")
    records.read_json(folder / f"{stamp}_results.json")


def _seed_everything(seed: int, text: str) -> None:
    import numpy
    import torch

    value = int.from_bytes(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:4], "big")
    random.seed(value)
    numpy.random.seed(value)
    torch.manual_seed(value)


class _Progress:
    """A progress bar on a terminal, a line every tenth elsewhere, and the time and number of answers made."""

    def __init__(self, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.made = self.done = self.total = 0
        self.seconds = 0.0
        console = Console(stderr=True)
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left")]
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not (shown and console.is_terminal))
        self._lines = shown and self._bar.disable
        self._task = self._bar.add_task("generating", total=None)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, count: int, cached: bool) -> None:
        """Count some answers; called by the journal."""
        self.made += 0 if cached else count
        before, self.done = 10 * self.done // self.total, self.done + count
        self._bar.advance(self._task, count)
        if self._lines and 10 * self.done // self.total > before:
            print(f"generated {self.done} of {self.total}", file=sys.stderr, flush=True)

    def watch(self, generate: Callable[[Sequence[Any]], list[str]]) -> Callable[[Sequence[Any]], list[str]]:
        """Return `generate`, its requests added to the total and its time taken."""

        def generate_until(requests: Sequence[Any]) -> list[str]:
            self.total += len(requests)
            self._bar.update(self._task, total=self.total)
            start = time.perf_counter()
            answers = generate(requests)
            self.seconds += time.perf_counter() - start
            return answers

        return generate_until
