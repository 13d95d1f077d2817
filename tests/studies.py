"""Studies for tests and benchmarks: realistic runs of a small grid in memory, and the folders that such runs leave.

Items are real ones of the embedded tasks, answers are in the think/answer form, rows of metrics and evaluations have the keys of a real
run. Accuracies are drawn around true ones that the caller may set, so that a test can know what an analysis should find. Nothing here
needs a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mr1_bench import prompts
from mr1_bench.records import sha256_json
from mr1_bench.reports.collect import sort_runs
from mr1_bench.reports.study import Answer, Arm, Missing, Result, Run, Study
from mr1_bench.specs import get_spec
from mr1_bench.trainers.config import GRPOConfig, SFTConfig, TrainConfig
from mr1_bench.trainers.schedule import KLWeight, adapt, beta_at
from tests.study_answers import fake_hash, item_of, make_answers, make_result, seeded

TASKS = ("mr1_vc_synth", "mr1_gr_synth")
BETA, FORMAT_WEIGHT = 0.04, 0.5
"""Of the main arm."""
BETAS = (0.0, 0.01, 0.04, 0.16, 0.64)
FORMAT_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SCHEDULES = ("constant", "linear", "exponential", "cosine", "adaptive")
ACCURACY = {
    "base": {"same": 0.45, "cross": 0.45},
    "sft": {"same": 0.60, "cross": 0.40},
    "grpo": {"same": 0.58, "cross": 0.50},
    "grpo-d": {"same": 0.65, "cross": 0.54},
}
"""True accuracies: method -> on the task trained on, on others."""
_PACKAGES = {"mr1-bench": "0.1.0", "lmms-eval": "0.7.3", "torch": "2.15.0", "transformers": "5.20.2", "numpy": "2.4.6"}
_STAMP = "20260101_000000"


def _config(method: str, task: str, seed: int, steps: int, out: Path, changes: Mapping[str, Any]) -> TrainConfig:
    common: dict[str, Any] = {"method": method, "task": task, "model": "tiny", "out": out, "seed": seed, "steps": steps}
    common |= {"eval_every": max(steps // 5, 1), "eval_items": 100, "max_new_tokens": 64}
    if method == "sft":
        return SFTConfig(**common, lr=1e-3, **changes)
    schedule = "linear" if method == "grpo-d" else "constant"
    return GRPOConfig(**(common | {"lr": 2e-4, "kl_schedule": schedule, "beta_max": BETA, "format_weight": FORMAT_WEIGHT} | dict(changes)))


def _metrics(config: TrainConfig, start: float, end: float, form: float) -> tuple[dict[str, Any], ...]:
    draw = seeded("metrics", config.asdict())
    rows: list[dict[str, Any]] = []
    beta: float | None = None
    for step in range(1, config.steps + 1):
        done = step / config.steps
        row: dict[str, Any] = dict.fromkeys(("reward", "accuracy", "format", "kl", "beta", "clip_share", "zero_spread_share"))
        row = {"step": step} | row | {"loss": 2.0 * (1 - done) + 0.2 + draw.gauss(0, 0.02), "entropy": 0.2, "cut_off_share": 0.0}
        if isinstance(config, GRPOConfig):
            weight = KLWeight(config.kl_schedule, config.beta_min, config.beta_max, config.steps, config.kl_target)
            beta = beta_at(weight, step - 1, beta)
            accuracy = min(1.0, max(0.0, start + (end - start) * done + draw.gauss(0, 0.06)))
            share = min(1.0, max(0.0, 0.8 + (form - 0.8) * min(1.0, 3 * done) + draw.gauss(0, 0.02)))
            kl = None if beta == 0 else 0.12 * done / (1 + 30 * beta) * (1 + draw.gauss(0, 0.1))
            row |= {"reward": accuracy + config.format_weight * share, "accuracy": accuracy, "format": share, "kl": kl, "beta": beta}
            row |= {"loss": draw.gauss(0, 0.001), "clip_share": 0.01, "zero_spread_share": 0.3, "time_rollout": 0.4}
            if config.kl_schedule == "adaptive":
                beta = adapt(weight, beta, kl or 0.0)
        row |= {"length": 24.0 + draw.gauss(0, 1), "grad_norm": 0.6, "lr": config.lr, "time_policy": 0.3, "time_step": 1.1}
        rows.append(row | {"tokens_per_s": 2500.0})
    return tuple(rows)


def _evals(config: TrainConfig, start: float, end: float, form: float) -> tuple[dict[str, Any], ...]:
    draw = seeded("evals", config.asdict())
    rows = []
    for step in range(0, config.steps + 1, config.eval_every):
        done = step / config.steps
        for split in ("validation", "test"):
            share = min(1.0, max(0.0, start + (end - start) * done**0.7 + draw.gauss(0, 0.02)))
            formed = round(min(1.0, 0.8 + (form - 0.8) * min(1.0, 3 * done)), 2)
            n = config.eval_items
            rows.append({"step": step, "split": split, "items": n, "accuracy": round(share * n) / n, "format": formed})
    return tuple(rows)


def _train_record(config: TrainConfig, start: str, evals: Sequence[Mapping[str, Any]], status: str = "finished") -> dict[str, Any]:
    last = {row["split"]: row["accuracy"] for row in evals}
    point = {"step": config.steps, "validation": last["validation"], "test": last["test"], "items": config.eval_items}
    identity = {
        "weights_sha256": start,
        "data_sha256": {},
        "prompts_sha256": sha256_json(prompts.TEMPLATES),
        "code_sha256": fake_hash("code"),
    }
    return {
        "format": 1,
        "kind": "train",
        "method": config.method,
        "task": config.task,
        "seed": config.seed,
        "started": "2026-01-01T00:00:00+00:00",
        "packages": _PACKAGES,
        "results": {"first": point | {"step": 0}, "last": point, "best": point} if status == "finished" else None,
        "config": config.asdict(),
        "identity": identity,
        "status": status,
        "last": f"checkpoints/step-{config.steps:06d}" if status == "finished" else None,
        "best": f"checkpoints/step-{config.steps:06d}" if status == "finished" else None,
    } | ({"ended": "2026-01-01T00:01:00+00:00"} if status == "finished" else {})


def _eval_record(name: str, weights: str, training: Mapping[str, Any] | None, results: Mapping[str, Result]) -> dict[str, Any]:
    """The run.json of the evaluation of one checkpoint on all its tasks."""
    entries: dict[str, Any] = {}
    for task, result in results.items():
        spec = get_spec(task)
        metrics = {}
        for metric, value in result.means.items():
            n = sum(metric in answer.scores for answer in result.answers)
            metrics[metric] = {"value": value, "k": round(value * n), "n": n, "low": 0.0, "high": 1.0}
        lengths = [answer.tokens or 0 for answer in result.answers]
        tokens = {"completion": sum(lengths), "mean": sum(lengths) / len(lengths), "longest": max(lengths)}
        entry = {"task": task, "size": spec.size, "prompt": spec.prompt} | dict(result.identity)
        settings = {key: entry.pop(key) for key in ("backend", "max_pixels", "code_sha256")}
        entries[task] = entry | {"n": result.n, "metrics": metrics, "tokens": tokens, "cut_off": 0}
    tokens_per_s = next(iter(results.values())).tokens_per_s
    return {
        "format": 1,
        "kind": "eval",
        "identity": fake_hash("eval", name, weights),
        "code_sha256": settings.pop("code_sha256"),
        "results_file": f"{_STAMP}_results.json",
        "sample_files": [f"{_STAMP}_samples_{task}.jsonl" for task in results],
        "model": {
            "path": "tiny" if training is None else f"cells/{name}/last",
            "checkpoint_sha256": weights,
            "training": None if training is None else {key: training[key] for key in ("method", "task", "seed")},
        },
        "config": {"model": name, "tasks": ",".join(results), "batch_size": 100, "seed": 0, "device": "cpu"} | settings,
        "tasks": entries,
        "groups": {},
        "packages": _PACKAGES,
        "python": "3.11.7",
        "started": "2026-01-01T00:02:00+00:00",
        "tokens_per_s": tokens_per_s,
    }


def make_run(
    method: str,
    task: str = "",
    seed: int = 0,
    *,
    arm: Arm = "main",
    changes: Mapping[str, Any] | None = None,
    name: str | None = None,
    tasks: Sequence[str] = TASKS,
    n: int | Mapping[str, int] = 60,
    accuracy: Mapping[str, float] | None = None,
    form: float = 0.97,
    steps: int = 50,
    root: Path = Path("study"),
    hostile: bool = False,
) -> Run:
    """Make one run with its evaluations.

    Args:
        method: `base` or a training method.
        task: full name of the task trained on.
        seed: of training.
        arm: what the run is for.
        changes: settings that differ from the main arm's, such as `{"beta_max": 0.16}`.
        name: its name and folder; made of the rest where absent.
        tasks: evaluated tasks.
        n: items of each.
        accuracy: true accuracy on each; `ACCURACY` where absent.
        form: true share of answers in the think/answer form.
        steps: of training.
        root: folder of the study, which need not exist.
        hostile: see `make_answers`.
    """
    changes = dict(changes or {})
    base = method == "base"
    short = task.removeprefix("mr1_").replace("_", "-")
    extra = "".join(f"-{key.replace('_', '-')}-{value}" for key, value in changes.items())
    name = name or ("base" if base else f"{method}-{short}-s{seed}{extra}")
    folder = root / "cells" / name
    start = fake_hash("start")
    results = {}
    for one in tasks:
        same = "same" if not base and get_spec(one).family == get_spec(task).family else "cross"
        true = accuracy[one] if accuracy else ACCURACY[method][same]
        answers = make_answers(one, n if isinstance(n, int) else n[one], true, name=name, form=form, hostile=hostile)
        results[one] = make_result(folder / "eval" / "main", one, answers)
    weights = start if base else fake_hash("weights", name)
    if base:
        record = _eval_record(name, weights, None, results)
        return Run(name, folder, "tiny", weights, "base", "", None, "main", {}, record=record, results=results)
    config = _config(method, short, seed, steps, folder, changes)
    first, last = ACCURACY["base"]["same"], results[task].means["acc"] if task in results else 0.5
    evals = _evals(config, first, last, form)
    return Run(
        name=name,
        folder=folder,
        model=f"cells/{name}/last",
        weights=weights,
        method=method,
        task=task,
        seed=seed,
        arm=arm,
        config=config.asdict(),
        start=start,
        record=_train_record(config, start, evals),
        metrics=_metrics(config, first, last, form),
        evals=evals,
        results=results,
    )


def make_study(
    *,
    n: int | Mapping[str, int] = 60,
    seeds: int = 3,
    tasks: Sequence[str] = TASKS,
    more_tasks: Sequence[str] = (),
    accuracy: Mapping[str, Mapping[str, float]] | None = None,
    spread: float = 0.02,
    sweeps: bool = True,
    steps: int = 50,
    root: Path = Path("study"),
    hostile: bool = False,
) -> Study:
    """Make the runs of a small reproduction: base, main grid, and sweeps of β, format weight and schedule on the last of `tasks`.

    With the defaults: 1 base, 3 methods x 2 tasks x 3 seeds, 4 + 4 + 3 sweep runs; main-arm GRPO (β 0.04, format weight 0.5) and GRPO-D
    (linear) are the other points of the sweeps.

    Args:
        n: items of each task.
        seeds: training seeds of the main grid.
        tasks: trained and evaluated; `("mr1_vc", "mr1_gr")` makes a study of the real tasks, with invented items.
        more_tasks: evaluated only, such as `mr1_gr_synth_l3`.
        accuracy: true accuracies like `ACCURACY`.
        spread: standard deviation of the true accuracy over training seeds.
        sweeps: whether to make the sweeps.
        steps: of training.
        root: folder of the study, which need not exist.
        hostile: put HTML and script into every tenth answer.
    """
    truth = accuracy or ACCURACY
    evaluated = (*tasks, *more_tasks)

    def run(method: str, task: str, seed: int, arm: Arm, changes: Mapping[str, Any], shift: float = 0.0, form: float = 0.97) -> Run:
        drift = seeded("seed", method, task, seed).gauss(0, spread)
        true = {}
        for one in evaluated:
            same = "same" if method != "base" and get_spec(one).family == get_spec(task).family else "cross"
            harder = 0.06 * ((get_spec(one).level or 1) - 1)
            true[one] = min(0.99, max(0.01, truth[method][same] + shift - harder + (0.0 if method == "base" else drift)))
        shared: dict[str, Any] = {"tasks": evaluated, "n": n, "accuracy": true, "steps": steps, "root": root, "hostile": hostile}
        return make_run(method, task, seed, arm=arm, changes=changes, form=form, **shared)

    runs = [run("base", tasks[0], 0, "main", {}, form=0.9)]
    runs += [run(method, task, seed, "main", {}) for method in ("sft", "grpo", "grpo-d") for task in tasks for seed in range(seeds)]
    if sweeps:
        last = tasks[-1]
        runs += [run("grpo", last, 0, "beta", {"beta_max": beta}, -abs(beta - 0.04) / 4) for beta in BETAS if beta != BETA]
        for weight in FORMAT_WEIGHTS:
            if weight != FORMAT_WEIGHT:
                form = 0.55 + 0.44 * min(1.0, 2 * weight)
                runs.append(run("grpo", last, 0, "format", {"format_weight": weight}, -0.08 * abs(weight - 0.5), form))
        for schedule in ("exponential", "cosine", "adaptive"):
            lowest = {"beta_min": 0.01} if schedule == "adaptive" else {}
            runs.append(run("grpo-d", last, 0, "schedule", {"kl_schedule": schedule} | lowest))
    return Study(tuple(sort_runs(runs)))


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


def _sample(task: str, answer: Answer) -> dict[str, Any]:
    spec = get_spec(task)
    detail = {"extracted": answer.value, "value": answer.value, "unit": None}
    detail |= {"status": "answered" if answer.value is not None else "no_answer"}
    if spec.tagged:
        detail |= {"extracted_r1v": answer.value_r1v, "status_r1v": "answered" if answer.value_r1v is not None else "no_answer"}
    head = {"doc_id": answer.doc_id, "target": answer.gold, "filtered_resps": answer.text, "token_counts": [None], "doc_hash": "0" * 64}
    asked = prompts.render(spec.prompt, item_of(task, answer.doc_id).question)
    return head | dict(answer.scores) | {"mr1": detail | {"id": answer.item}, "input": asked}


def write_evaluation(folder: Path, name: str, weights: str, training: Mapping[str, Any] | None, results: Mapping[str, Result]) -> None:
    """Write the folder of one evaluation: run.json, journal, lmms-eval's results and samples."""
    folder.mkdir(parents=True, exist_ok=True)
    record = _eval_record(name, weights, training, results)
    journal: list[dict[str, Any]] = [{"identity": record["identity"]}]
    plain: dict[str, Any] = {}
    for task, result in results.items():
        _lines(folder / f"{_STAMP}_samples_{task}.jsonl", [_sample(task, answer) for answer in result.answers])
        keys = [f"{task}/{answer.doc_id}/0/{'0' * 16}" for answer in result.answers]
        rows = {key: {"text": answer.text, "tokens": answer.tokens} for key, answer in zip(keys, result.answers, strict=True)}
        journal.append({"answers": rows})
        plain[task] = {"alias": task} | {f"{metric},none": value for metric, value in result.means.items()} | {"mr1,none": []}
    _lines(folder / "journal.jsonl", journal)
    configs = {task: {"task": task} for task in results}
    files = {"results": plain, "configs": configs, "config": {"model": "qwen2_vl", "model_args": f"pretrained=/gone/{name}"}}
    (folder / record["results_file"]).write_text(json.dumps(files), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(record, indent=2), encoding="utf-8")


def write_run(run: Run, root: Path, *, cell: bool = True) -> Path:
    """Write one run's folder below `root`/cells, as a cell of a reproduction or (`cell=False`) as made by hand."""
    folder = root / "cells" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    training = None
    if run.method != "base":
        training = {"method": run.method, "task": run.config["task"], "seed": run.seed}
        (folder / "run.json").write_text(json.dumps(dict(run.record), indent=2), encoding="utf-8")
        _lines(folder / "metrics.jsonl", run.metrics)
        _lines(folder / "evals.jsonl", run.evals)
        _lines(folder / "samples.jsonl", [])
        (folder / ".lock").touch()
    if run.results:
        write_evaluation(folder / "eval" / "main", run.name, run.weights, training, run.results)
    if cell:
        entry = {"format": 1, "name": run.name, "arm": run.arm, "plan": fake_hash("plan", run.name), "status": "done"}
        (folder / "cell.json").write_text(json.dumps(entry), encoding="utf-8")
    return folder


def write_study(study: Study, folder: Path, *, cells: bool = True) -> Path:
    """Write a study in the layout of a reproduction: `folder`/cells/NAME/…, missing runs as failed cells."""
    for run in study.runs:
        write_run(run, folder, cell=cells)
    for missing in study.missing:
        write_missing(missing, folder)
    return folder


def write_missing(missing: Missing, folder: Path) -> None:
    """Write a cell that failed."""
    cell = folder / "cells" / missing.name
    cell.mkdir(parents=True, exist_ok=True)
    entry = {
        "format": 1,
        "name": missing.name,
        "arm": "main",
        "plan": fake_hash("plan", missing.name),
        "status": "failed",
        "why": missing.why,
    }
    (cell / "cell.json").write_text(json.dumps(entry), encoding="utf-8")
