"""`mr1-bench eval`: evaluates a checkpoint and keeps a run record that can be trusted.

lmms-eval's own command exits 0 when a task is missing or the evaluation failed, keeps nothing when it is killed, and may serve cached
answers of weights that are gone. This command has a true exit code, goes on where it was, and records what each number was made from. It
must not know how answers are graded (the tasks do that), nor lmms-eval's ways (`harness`).
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mr1_bench import data, prompts, records, stats, vllm_setup
from mr1_bench.errors import UserError
from mr1_bench.grading import grade
from mr1_bench.model_files import resolve_model
from mr1_bench.source import commit
from mr1_bench.specs import GROUPS, SPECS, TaskSpec, expand, get_spec
from mr1_bench.tables import percent, print_table
from mr1_bench.tasks import embedded, harness, peak_memory, ranks, vllm_backend
from mr1_bench.tasks.harness import EvalConfig
from mr1_bench.tasks.journal import Answer, Journal
from mr1_bench.tasks.ranks import Ranks

HELP = "Evaluate a checkpoint with lmms-eval, resumably, and write a run record."

NO_PIXEL_CAP = 12845056  # pixels; Qwen2-VL's own upper limit. lmms-eval's default of 602112 would shrink large images.
_HF_BACKENDS = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_5_vl"}
_METRICS = ("acc", "acc_r1v", "format", "answered")
_OUR_NAMES = {spec.name for spec in SPECS}


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
    parser.add_argument("--max-pixels", type=int, help=f"largest image in pixels, hf only (default: {NO_PIXEL_CAP}, in effect no cap)")
    parser.add_argument("--vllm-args", help="settings of vLLM's engine with --backend vllm: KEY=VALUE,… (max_model_len=8192, say)")
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
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed} is not between 0 and {2**32 - 1}")
    if args.max_pixels is not None and args.max_pixels < 28 * 28:
        raise UserError(f"--max-pixels {args.max_pixels}: an image token alone covers 28 x 28 = 784 pixels")
    if args.include_path and not args.include_path.is_dir():
        raise UserError(f"--include-path {args.include_path} is not a folder")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file; name a folder")


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


def choose_device(device: str | None) -> str:
    """Return the device asked for, or a GPU where there is one.

    Raises:
        UserError: PyTorch has none such.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UserError(f"--device {device} is none; use cpu, cuda, cuda:1, …") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device}: PyTorch sees no CUDA GPU here; use --device cpu")
    return device


def _make_config(args: argparse.Namespace, backend: str, crew: Ranks) -> EvalConfig:
    """Return the whole configuration; an option that the backend would ignore is refused, so that the record never claims it."""
    if backend != "vllm" and crew.world > 1 and args.device != "cpu":
        if args.device is not None:
            raise UserError(f"--device {args.device} with {crew.world} processes: leave it out, each takes a GPU of its own, or say cpu")
        ranks.take_gpus(crew, 1)
    if backend in _HF_BACKENDS.values():
        device, max_pixels = choose_device(args.device), args.max_pixels or NO_PIXEL_CAP
    else:
        device, max_pixels = args.device, args.max_pixels
        if max_pixels is not None or (backend == "vllm" and device is not None):
            raise UserError(f"--max-pixels and --device are for --backend hf; {backend} decides these itself")
    return EvalConfig(
        model=args.model,
        tasks=args.tasks,
        backend=backend,
        batch_size=args.batch_size,
        limit=args.limit,
        repeats=args.repeats,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        device=device,
        max_pixels=max_pixels,
    )


def _engine(checkpoint: Path, backend: str, more: str | None, verbose: bool, crew: Ranks) -> dict[str, Any]:
    """Return what else decides the answers: vLLM's version and settings; for other backends the configuration says all."""
    if backend != "vllm":
        if more:
            raise UserError(f"--vllm-args is for --backend vllm, not {backend}")
        return {}
    arguments = vllm_setup.parse_arguments(more)
    gpus = vllm_backend.gpus(arguments)
    vllm_setup.version()
    if arguments.get("distributed_executor_backend") != "ray":  # Ray's are on other machines too
        ranks.take_gpus(crew, gpus)
    vllm_backend.prepare(verbose)
    return vllm_backend.facts(checkpoint, vllm_backend.engine_arguments(checkpoint, arguments))


def _model_arguments(checkpoint: Path, config: EvalConfig, engine: dict[str, Any]) -> dict[str, Any]:
    if config.backend == "vllm":  # lmms-eval takes the greater of its model's and the task's max_new_tokens
        return {"model": str(checkpoint), "batch_size": config.batch_size, "max_new_tokens": 1, **engine["arguments"]}
    arguments: dict[str, Any] = {"pretrained": str(checkpoint), "batch_size": config.batch_size}
    if config.device is not None:
        arguments["device"] = config.device
    if config.backend in _HF_BACKENDS.values():
        arguments |= {"device_map": config.device, "max_pixels": config.max_pixels}
    return arguments


def _task_facts(spec: TaskSpec, config: EvalConfig) -> dict[str, Any]:
    """Return the facts about a task that decide its answers; raises where its data is absent."""
    kwargs: dict[str, Any] = {"level": spec.level, "n": spec.size} if spec.level else {}
    if spec.synthetic:
        embedded.parquet_path(spec)  # generated now, so that a data directory that cannot be written shows before the model is loaded
    return {
        "task": spec.name,
        "size": len(data.load(spec.data, spec.split, **kwargs)),
        "dataset_sha256": data.dataset_hash(spec.data, spec.split, **kwargs),
        "pixels_sha256": embedded.pixels_version() if spec.synthetic else None,
        "prompt": spec.prompt,
        "prompt_sha256": prompts.prompt_hash(spec.prompt),
        "decoding": {"max_new_tokens": spec.max_new_tokens, "temperature": config.temperature, "top_p": config.top_p},
    }


def _score_task(rows: list[dict[str, Any]], answers: dict[str, Answer], name: str, max_new_tokens: int | None) -> dict[str, Any]:
    """Return a task's entry in run.json: each metric's mean, k, n and Wilson interval, and the answers' lengths."""
    entry: dict[str, Any] = {"n": len(rows), "metrics": {}}
    for metric in _METRICS:
        values = [row[metric] for row in rows if metric in row]
        if values:
            k = round(sum(values))
            entry["metrics"][metric] = {"value": k / len(values), "k": k, "n": len(values)}
            entry["metrics"][metric] |= dict(zip(("low", "high"), stats.wilson(k, len(values)), strict=True))
            if len(values) < len(rows):
                entry["metrics"][metric]["no_verdict"] = len(rows) - len(values)
    tokens = [answer["tokens"] for key, answer in answers.items() if key.startswith(f"{name}/")]
    entry["tokens"] = {"completion": sum(tokens), "mean": sum(tokens) / max(len(tokens), 1), "longest": max(tokens, default=0)}
    if max_new_tokens:
        entry["cut_off"] = sum(count >= max_new_tokens for count in tokens)
    return entry


def _score_repeats(spec: TaskSpec, rows: list[dict[str, Any]], answers: dict[str, Answer], repeats: int) -> dict[str, Any]:
    correct = []
    for row in rows:
        texts = [answers[f"{spec.name}/{row['doc_id']}/{repeat}"]["text"] for repeat in range(repeats)]
        correct.append([grade(spec, str(row["target"]), text).correct for text in texts])
    return {"n": repeats, "avg": asdict(stats.avg_at_n(correct)), "pass": asdict(stats.pass_at_k(correct, repeats))}


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
        ["task", "items", "acc % [95 %]", "acc_r1v %", "format %", "answered %", "mean tokens", "cut off"], rows, right={1, 3, 4, 5, 6, 7}
    )
    for name, entry in run["tasks"].items():
        if "repeats" in entry:
            r = entry["repeats"]
            print(f"{name}: avg@{r['n']} {_percent(r['avg'])}, pass@{r['n']} {_percent(r['pass'])}")
        if entry.get("outside"):
            print(f"{name}: {', '.join(f'{metric} {value:.4g}' for metric, value in entry['outside'].items())}")
    for name, entry in run["tasks"].items():
        if name in _OUR_NAMES and entry["n"] < get_spec(name).size:
            print(f"{name}: {entry['n']} of the task's {get_spec(name).size} items, so not comparable with results on all of them")
    print(f"\nrecord: {folder}")


def _entries(outcome: harness.Outcome, facts: dict[str, Any], names: list[str], config: EvalConfig) -> dict[str, Any]:
    """Return the tasks' entries in run.json, in the order asked for; tasks that are not ours keep their own metrics beside."""
    entries: dict[str, Any] = {}
    order = {name: position for position, name in enumerate(names)}
    for name, rows in sorted(outcome.samples.items(), key=lambda pair: order.get(pair[0], len(order))):
        decoding = outcome.results["configs"][name].get("generation_kwargs") or {}
        entry = facts.get(name, {}) | {"limit": config.limit} | _score_task(rows, outcome.answers, name, decoding.get("max_new_tokens"))
        if name not in _OUR_NAMES:
            values = {key.partition(",")[0]: value for key, value in outcome.results["results"][name].items() if isinstance(value, float)}
            entry["outside"] = {key: value for key, value in values.items() if "_stderr" not in key and key not in entry["metrics"]}
        elif config.repeats > 1:
            entry["repeats"] = _score_repeats(get_spec(name), rows, outcome.answers, config.repeats)
        entries[name] = entry
    return entries


def _group_means(entries: dict[str, Any], tasks: str) -> dict[str, dict[str, float]]:
    """Return the unweighted means over the tasks of each group of ours that was asked for."""
    groups = {}
    for group in (part.strip() for part in tasks.split(",")):
        members = [entries[name]["metrics"] for name in GROUPS.get(group, ()) if name in entries and name in _OUR_NAMES]
        if len(members) > 1 and len(members) == len(GROUPS[group]):
            shared = set.intersection(*(set(metrics) for metrics in members))
            groups[group] = {key: math.fsum(metrics[key]["value"] for metrics in members) / len(members) for key in sorted(shared)}
    return groups


def why_not_whole(folder: Path, run: Mapping[str, Any]) -> str:
    """Say what is missing or damaged of the files that an evaluation's record names; empty where they are as they were written.

    Args:
        folder: where they lie.
        run: the record, checked by `records.check_eval_record`. Of one without hashes only the number of lines is compared.
    """
    recorded = run.get("sha256")
    hashes = recorded if isinstance(recorded, dict) else {}
    for name in (run["results_file"], *(run.get("sample_files") or [])):
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if name in hashes:
            if records.file_sha256(path) != hashes[name]:
                return f"its file {name} is damaged or was changed"
            continue
        task = next((task for task in run["tasks"] if name.endswith(f"_samples_{task}.jsonl")), None)
        if task is not None and path.read_bytes().count(b"\n") != run["tasks"][task].get("n"):
            return f"its file {name} is cut off"
    return ""


def _read_previous(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The record of an earlier evaluation in a folder, None where it cannot be read; and what is wrong with it or its files."""
    path = folder / "run.json"
    try:
        run: dict[str, Any] = records.read_json(path)
        records.check_eval_record(run, path)
    except records.RecordError as error:
        if not (folder / "journal.jsonl").is_file():
            raise
        return None, f"its record is damaged ({error})"  # the journal says which evaluation it is
    return run, why_not_whole(folder, run)


def _find_complete(folder: Path, identity: str, code: str) -> dict[str, Any] | None:
    """The record in a folder where nothing is left to do; raises where the folder is another's."""
    if not (folder / "run.json").is_file():
        if not (folder / "journal.jsonl").is_file() and any(folder.glob("*_results.json")):
            raise UserError(f"{folder} holds results that mr1-bench eval did not write; choose another --name or --out")
        return None
    previous, damage = _read_previous(folder)
    if previous is not None and previous.get("identity") != identity:
        what = "other weights, data, prompt, decoding or versions"
        raise UserError(f"{folder} holds another evaluation ({what}); choose another --name or --out")
    if previous is not None and not damage and previous.get("code_sha256") == code:
        return previous
    print(f"{damage or 'mr1-bench has changed since'}: grading the same answers again", file=sys.stderr)
    return None


def run(args: argparse.Namespace) -> int:
    """Evaluate one checkpoint; print the table and where the record is. Under a launcher its processes share the work."""
    crew = ranks.join()
    return crew.run(lambda: _run(args, crew))


def _run(args: argparse.Namespace, crew: Ranks) -> int:
    _check_arguments(args)
    names = expand(args.tasks)
    if not names:
        raise UserError("--tasks names no task")
    harness.quiet(args.verbose)
    checkpoint = resolve_model(args.model)
    config = _make_config(args, _choose_backend(args.backend, checkpoint), crew)
    engine = _engine(checkpoint, config.backend, args.vllm_args, args.verbose, crew)
    training = records.training_of(checkpoint)
    weights = records.checkpoint_sha256(checkpoint)
    facts = {name: _task_facts(get_spec(name), config) for name in names if name in _OUR_NAMES}
    outside = [name for name in names if name not in _OUR_NAMES]
    manager = harness.open_tasks(names, args.include_path) if outside else None
    facts |= {name: harness.outside_facts(manager, name, args.include_path) for name in outside}

    versions = records.package_versions()
    settings = {key: value for key, value in asdict(config).items() if key not in ("model", "tasks")}
    decisive = {"checkpoint": weights, "tasks": facts, "settings": settings, "packages": versions}
    identity = records.sha256_json(decisive | ({"engine": engine} if engine else {}))
    crew.agree("weights, data, prompts, settings or versions", identity)
    code = records.code_sha256()
    folder = args.out / "eval" / (args.name or f"{'+'.join(part.strip() for part in args.tasks.split(','))[:60]}-{identity[:8]}")
    complete = _find_complete(folder, identity, code) if crew.first else None
    if crew.tell("state", "complete" if complete else "open") == "complete":
        if complete:
            print("already complete, nothing to do\n", file=sys.stderr)
            _print_results(complete, folder)
        return 0
    arguments = _model_arguments(checkpoint, config, engine)
    manager = manager or harness.open_tasks(names, args.include_path)
    if not crew.first:
        harness.evaluate(manager, names, config, arguments, folder, None, crew)
        return 0

    start = time.perf_counter()
    memory_shows = peak_memory.begin(config.device)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with Journal(folder / "journal.jsonl", identity) as journal:
        # Of a killed run, or of an earlier version of the graders; kept until the new record stands.
        superseded = [*folder.glob("*_results.json"), *folder.glob("*_samples_*.jsonl")]
        outcome = harness.evaluate(manager, names, config, arguments, folder, journal, crew)
        entries = _entries(outcome, facts, names, config)
        tokens = sum(answer["tokens"] for answer in outcome.answers.values())
        results_file = f"{outcome.stamp}_results.json"
        sample_files = [f"{outcome.stamp}_samples_{name}.jsonl" for name in outcome.samples]
        all_made_now = outcome.made == len(outcome.answers) and outcome.seconds > 0
        record = {
            "format": records.FORMAT,
            "kind": "eval",
            "identity": identity,
            "code_sha256": code,
            "commit": commit(),
            "results_file": results_file,
            "sample_files": sample_files,
            "sha256": {name: records.file_sha256(folder / name) for name in (results_file, *sample_files)},
            "model": {"path": args.model, "checkpoint_sha256": weights, "training": training},
            "config": asdict(config),
            "engine": engine or None,
            "tasks": entries,
            "groups": _group_means(entries, args.tasks),
            "packages": versions,
            "python": platform.python_version(),
            "started": started,
            "time_wall_s": round(time.perf_counter() - start, 3),
            "time_generate_s": round(outcome.seconds, 3),
            "answers": {"total": len(outcome.answers), "made_in_this_run": outcome.made},
            "tokens": tokens,
            "tokens_per_s": round(tokens / outcome.seconds, 1) if all_made_now else None,
            "processes": crew.world,
            "peak_memory_bytes": peak_memory.peak(str(config.device)) if memory_shows and all_made_now else None,
        }
        records.write_json(folder / "run.json", record)
        for path in superseded:
            path.unlink(missing_ok=True)
    _print_results(record, folder)
    return 0
