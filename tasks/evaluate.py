"""`mr1-bench eval`: runs lmms-eval in this process and keeps a run record that can be trusted.

lmms-eval's own command exits 0 when a task is missing or the evaluation failed, keeps nothing when it is killed, and may serve cached
answers of weights that are gone. This command has a true exit code, goes on where it was, and records what each number was made from. It
must not know how answers are graded: the tasks do that.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import math
import os
import platform
import random
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mr1_bench import data, prompts, records, stats
from mr1_bench.errors import UserError
from mr1_bench.specs import GROUPS, SPECS, TaskSpec, expand, get_spec
from mr1_bench.tables import percent, print_table

HELP = "Evaluate a checkpoint with lmms-eval, resumably, and write a run record."

NO_PIXEL_CAP = 12845056  # pixels; Qwen2-VL's own upper limit. lmms-eval's default of 602112 would shrink large images.
_HF_BACKENDS = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_5_vl"}
_CHUNK_BATCHES = 4  # batches between two writes of the journal
_OUR_NAMES = {spec.name for spec in SPECS}


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
    device: str
    max_pixels: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--model", required=True, help="checkpoint folder, or a model's name on the hub")
    parser.add_argument(
        "--tasks", required=True, help="tasks or groups, comma-separated: mr1, mr1_synth, mr1_gr, … (see `mr1-bench tasks`)"
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder; the record goes to OUT/eval/NAME/")
    parser.add_argument("--name", help="name of the record (default: made from tasks and identity, so that no record overwrites another)")
    parser.add_argument("--backend", default="hf", help="hf (by the model's type), vllm, or any model of lmms-eval (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="items a generation batch (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first N items of each task")
    parser.add_argument("--repeats", type=int, default=1, help="answers an item, for avg@N and pass@N; needs --temperature (default: 1)")
    parser.add_argument("--temperature", type=float, default=0.0, help="sampling temperature; 0 is greedy (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: cuda where there is one)")
    parser.add_argument(
        "--max-pixels", type=int, default=NO_PIXEL_CAP, help="largest image in pixels (default: %(default)s, in effect no cap)"
    )
    parser.add_argument("--include-path", type=Path, help="folder with further lmms-eval tasks")
    parser.add_argument("--verbose", action="store_true", help="show lmms-eval's own log")


def _check_arguments(args: argparse.Namespace) -> None:
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: at least 1 item is needed")
    if args.batch_size < 1 or args.repeats < 1:
        raise UserError("--batch-size and --repeats must be at least 1")
    if args.temperature < 0 or not 0 < args.top_p <= 1:
        raise UserError("--temperature must be at least 0 and --top-p in (0, 1]")
    if args.repeats > 1 and args.temperature == 0:
        raise UserError(f"--repeats {args.repeats} with --temperature 0 would give the same answer {args.repeats} times; set a temperature")
    if args.name and (Path(args.name).name != args.name or args.name.startswith(".")):
        raise UserError(f"--name {args.name!r} is not a plain folder name")


def resolve_model(name: str) -> Path:
    """Return the folder of a checkpoint: itself, or the hub's snapshot of it.

    Raises:
        UserError: there is no such folder, and the hub has none or cannot be reached; or it is no model folder.
    """
    folder = Path(name)
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
            raise UserError(f"--model {name}: no such folder")
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        try:
            folder = Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            raise UserError(f"--model {name}: no such folder, and the hub gave none ({type(error).__name__})") from None
    if not (folder / "config.json").is_file():
        raise UserError(f"--model {name}: {folder} has no config.json, so it is no checkpoint; name the folder that save_pretrained wrote")
    return folder.resolve()


def _choose_backend(backend: str, checkpoint: Path) -> str:
    if backend != "hf":
        return backend
    model_type = records.read_json(checkpoint / "config.json").get("model_type", "none")
    if model_type not in _HF_BACKENDS:
        raise UserError(
            f"the checkpoint's model_type is {model_type!r}; --backend hf runs {', '.join(_HF_BACKENDS)}. "
            "Name lmms-eval's model for it with --backend."
        )
    return _HF_BACKENDS[model_type]


def _model_arguments(backend: str, checkpoint: Path, config: EvalConfig) -> dict[str, Any]:
    if backend == "vllm":
        return {"model": str(checkpoint), "batch_size": config.batch_size, "seed": config.seed}
    arguments: dict[str, Any] = {"pretrained": str(checkpoint), "batch_size": config.batch_size, "device": config.device}
    if backend in _HF_BACKENDS.values():
        arguments |= {"device_map": config.device, "max_pixels": config.max_pixels}
    return arguments


def _task_facts(name: str, config: EvalConfig) -> dict[str, Any]:
    """Return the facts about a task that decide its numbers; raises where its data is absent."""
    if name not in _OUR_NAMES:
        return {"task": name, "limit": config.limit}
    spec = get_spec(name)
    kwargs = {"level": spec.level, "n": spec.size} if spec.level else {}
    return {
        "task": name,
        "limit": config.limit,
        "size": len(data.load(spec.data, spec.split, **kwargs)),
        "dataset_sha256": data.dataset_hash(spec.data, spec.split, **kwargs),
        "prompt": spec.prompt,
        "prompt_sha256": prompts.prompt_hash(spec.prompt),
        "decoding": {"max_new_tokens": spec.max_new_tokens, "temperature": config.temperature, "top_p": config.top_p},
    }


def _quiet(verbose: bool) -> None:
    """Leave the terminal to our own progress bar; must run before lmms_eval is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if verbose:
        return
    import warnings

    import tqdm

    started = tqdm.tqdm.__init__

    @functools.wraps(started)
    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        started(self, *args, **kwargs | {"disable": True})  # lmms-eval's models set `disable` themselves, so the variable has no effect

    tqdm.tqdm.__init__ = silent

    warnings.filterwarnings("ignore")
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="ERROR", format="{message}")
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _seed_everything(seed: int, text: str) -> None:
    import numpy
    import torch

    value = int.from_bytes(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:4], "big")
    random.seed(value)
    numpy.random.seed(value)
    torch.manual_seed(value)


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _run_lmms_eval(
    config: EvalConfig, names: list[str], checkpoint: Path, backend: str, folder: Path, identity: str, include_path: Path | None
) -> dict[str, Any]:
    """Evaluate, and write lmms-eval's files into the folder.

    Returns:
        lmms-eval's results with the samples, and under `mr1` seconds, answers made now and tokens.
    """
    import lmms_eval.models
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.loggers import EvaluationTracker
    from lmms_eval.tasks import TaskManager
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from mr1_bench.tasks.journal import Journal, journaled

    manager = TaskManager("ERROR", include_path=str(include_path) if include_path else None)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UserError(f"lmms-eval knows no task {', '.join(unknown)}; `mr1-bench tasks` lists ours, `lmms-eval tasks list` its own")
    tracker = EvaluationTracker(output_path=str(folder))
    journal = Journal(folder / "journal.jsonl", identity)
    model = lmms_eval.models.get_model(backend)(**_model_arguments(backend, checkpoint, config))
    tokenizer = getattr(model, "tokenizer", None)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    made = done = total = 0
    generate_seconds = 0.0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("answering", total=None)

        def advance(count: int, cached: bool) -> None:
            nonlocal made, done
            made += 0 if cached else count
            tenths, done = 10 * done // max(total, 1), done + count
            progress.advance(bar, count)
            if not console.is_terminal and 10 * done // max(total, 1) > tenths:
                print(f"answered {done} of {total}", file=sys.stderr, flush=True)

        generate = journaled(
            model.generate_until,
            journal,
            chunk=config.batch_size * _CHUNK_BATCHES,
            seed_all=functools.partial(_seed_everything, config.seed),
            count_tokens=lambda text: len(tokenizer.encode(text)) if tokenizer is not None else 0,
            advance=advance,
        )

        def generate_until(requests: list[Any]) -> list[str]:
            nonlocal generate_seconds, total
            total = len(requests)
            progress.update(bar, total=total)
            start = time.perf_counter()
            answers = generate(requests)
            generate_seconds = time.perf_counter() - start
            return answers

        model.generate_until = generate_until
        sampling = f"temperature={config.temperature},top_p={config.top_p},do_sample=True" if config.temperature > 0 else None
        stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
        try:
            results = simple_evaluate(
                model=model,
                tasks=names,
                task_manager=manager,
                limit=config.limit,
                log_samples=True,
                gen_kwargs=sampling,
                repeats=config.repeats,
                evaluation_tracker=tracker,
                random_seed=config.seed,
                numpy_random_seed=config.seed,
                torch_random_seed=config.seed,
                datetime_str=stamp,
                bootstrap_iters=0 if all(name in _OUR_NAMES for name in names) else 1000,
                verbosity="ERROR",
            )
        finally:
            journal.close()
    if results is None:
        raise UserError("lmms-eval returned no results (another rank holds them?)")
    samples = results.pop("samples")
    answers = {key.rpartition("/")[0]: answer for key, answer in journal.answers.items()}
    results["mr1"] = {"made": made, "seconds": generate_seconds, "answers": answers, "stamp": stamp}
    # lmms-eval's writers change the samples, append to what is there and swallow their errors: keep ours, and check theirs.
    kept = {task: [dict(row) for row in rows] for task, rows in samples.items()}
    tracker.save_results_aggregated(
        results={key: value for key, value in results.items() if key != "mr1"}, samples=samples, datetime_str=stamp
    )
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
        written = folder / f"{stamp}_samples_{task}.jsonl"
        if not written.is_file() or len(written.read_bytes().splitlines()) != len(kept[task]):
            raise UserError(f"lmms-eval could not write {written}: is the disk full?")
    results["samples"] = kept
    return dict(results)


def _score_task(name: str, rows: list[dict[str, Any]], answers: dict[str, Any], config: EvalConfig) -> dict[str, Any]:
    """Return a task's entry in run.json: each metric's mean, k, n and Wilson interval; with repeats avg@N and pass@N as well."""
    spec = get_spec(name)
    entry: dict[str, Any] = {"n": len(rows), "metrics": {}}
    for metric in spec.metrics:
        values = [row[metric] for row in rows if metric in row]
        if values:
            k = round(sum(values))
            entry["metrics"][metric] = {"value": k / len(values), "k": k, "n": len(values)}
            entry["metrics"][metric] |= dict(zip(("low", "high"), stats.wilson(k, len(values)), strict=True))
    tokens = [answer["tokens"] for key, answer in answers.items() if key.startswith(f"{name}/")]
    entry["tokens"] = {"completion": sum(tokens), "mean": sum(tokens) / max(len(tokens), 1), "longest": max(tokens, default=0)}
    entry["cut_off"] = sum(count >= spec.max_new_tokens for count in tokens)
    if spec.tagged and any("acc_r1v" not in row for row in rows):
        entry["r1v_no_verdict"] = sum("acc_r1v" not in row for row in rows)
    if config.repeats > 1:
        entry["repeats"] = _score_repeats(spec, rows, answers, config)
    return entry


def _score_repeats(spec: TaskSpec, rows: list[dict[str, Any]], answers: dict[str, Any], config: EvalConfig) -> dict[str, Any]:
    from mr1_bench.grading import grade

    correct = []
    for row in rows:
        texts = [answers[f"{spec.name}/{row['doc_id']}/{repeat}"]["text"] for repeat in range(config.repeats)]
        correct.append([grade(spec, str(row["target"]), text).correct for text in texts])
    pass_at = stats.pass_at_k(correct, config.repeats)
    return {"n": config.repeats, "avg": asdict(stats.avg_at_n(correct)), "pass": asdict(pass_at)}


def _percent(estimate: dict[str, Any]) -> str:
    return percent(estimate["value"], estimate["low"], estimate["high"])


def _print_results(run: dict[str, Any], folder: Path) -> None:
    rows = []
    for name, entry in run["tasks"].items():
        metrics = entry.get("metrics", {})
        cells = [name, str(entry.get("n", "")), _percent(metrics["acc"]) if "acc" in metrics else ""]
        cells += [f"{100 * metrics[key]['value']:.1f}" if key in metrics else "" for key in ("acc_r1v", "format", "answered")]
        rows.append([*cells, f"{entry['tokens']['mean']:.0f}" if "tokens" in entry else "", str(entry.get("cut_off", ""))])
    for group, mean in run["groups"].items():
        cells = [f"{100 * mean[key]:.1f}" if key in mean else "" for key in ("acc", "acc_r1v", "format", "answered")]
        rows.append([f"{group} (mean of tasks)", "", *cells, "", ""])
    print_table(
        ["task", "items", "acc % [95 %]", "acc_r1v %", "format %", "answered %", "tokens", "cut off"], rows, right={1, 3, 4, 5, 6, 7}
    )
    for name, entry in run["tasks"].items():
        if "repeats" in entry:
            r = entry["repeats"]
            print(f"{name}: avg@{r['n']} {_percent(r['avg'])}, pass@{r['n']} {_percent(r['pass'])}")
        elif "foreign" in entry:
            print(f"{name}: {', '.join(f'{metric} {value:.4g}' for metric, value in entry['foreign'].items())}")
    print(f"\nrecord: {folder}")


def run(args: argparse.Namespace) -> int:
    """Evaluate one checkpoint; print the table and where the record is."""
    _check_arguments(args)
    names = expand(args.tasks)
    if not names:
        raise UserError("--tasks names no task")
    _quiet(args.verbose)
    checkpoint = resolve_model(args.model)
    backend = _choose_backend(args.backend, checkpoint)
    training = records.training_of(checkpoint)
    weights = records.checkpoint_sha256(checkpoint)
    config = EvalConfig(
        args.model,
        args.tasks,
        backend,
        args.batch_size,
        args.limit,
        args.repeats,
        args.temperature,
        args.top_p,
        args.seed,
        args.device or _default_device(),
        args.max_pixels,
    )
    facts = {name: _task_facts(name, config) for name in names}
    versions = records.package_versions()
    settings = {key: value for key, value in asdict(config).items() if key not in ("model", "tasks")}
    identity = records.sha256_json({"checkpoint": weights, "tasks": facts, "settings": settings, "packages": versions})
    folder = args.out / "eval" / (args.name or f"{'+'.join(args.tasks.split(','))[:60]}-{identity[:8]}")
    if (folder / "run.json").is_file():
        previous = records.read_json(folder / "run.json")
        if previous.get("identity") != identity:
            raise UserError(
                f"{folder} holds another evaluation (other weights, data, prompt, decoding or versions); choose another --name or --out"
            )
        print("already complete, nothing to do\n", file=sys.stderr)
        _print_results(previous, folder)
        return 0

    for leftover in [*folder.glob("*_results.json"), *folder.glob("*_samples_*.jsonl")]:
        leftover.unlink()  # of a run that was killed while it wrote; its answers are in the journal
    start = time.perf_counter()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    results = _run_lmms_eval(config, names, checkpoint, backend, folder, identity, args.include_path)
    own = results["mr1"]

    entries: dict[str, Any] = {}
    for name, rows in sorted(results["samples"].items(), key=lambda pair: names.index(pair[0]) if pair[0] in names else len(names)):
        if name in _OUR_NAMES:
            entries[name] = facts[name] | _score_task(name, rows, own["answers"], config)
        else:
            values = {key.partition(",")[0]: value for key, value in results["results"][name].items() if isinstance(value, float)}
            entries[name] = facts.get(name, {}) | {
                "n": len(rows),
                "foreign": {key: value for key, value in values.items() if "_stderr" not in key},
            }
    groups = {}
    for group in args.tasks.split(","):
        members = [entries[name]["metrics"] for name in GROUPS.get(group, ()) if "metrics" in entries.get(name, {})]
        if len(members) > 1 and len(members) == len(GROUPS[group]):
            shared = set.intersection(*(set(metrics) for metrics in members))
            groups[group] = {key: math.fsum(metrics[key]["value"] for metrics in members) / len(members) for key in sorted(shared)}
    tokens = sum(answer["tokens"] for answer in own["answers"].values())
    record = {
        "format": records.FORMAT,
        "kind": "eval",
        "identity": identity,
        "results_file": f"{own['stamp']}_results.json",
        "model": {"path": args.model, "checkpoint_sha256": weights, "training": training},
        "config": asdict(config),
        "tasks": entries,
        "groups": groups,
        "packages": versions,
        "python": platform.python_version(),
        "started": started,
        "time_wall_s": round(time.perf_counter() - start, 3),
        "time_generate_s": round(own["seconds"], 3),
        "answers": {"total": len(own["answers"]), "made_in_this_run": own["made"]},
        "tokens": tokens,
        "tokens_per_s": round(tokens / own["seconds"], 1) if own["made"] == len(own["answers"]) and own["seconds"] > 0 else None,
    }
    records.write_json(folder / "run.json", record)
    _print_results(record, folder)
    return 0
