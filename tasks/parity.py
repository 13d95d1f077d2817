"""`mr1-bench parity`: how far apart two engines, vLLM and Hugging Face's generate, are on one checkpoint, as numbers and as a gate.

Both answer the same items greedily, each in a process of its own (`parity_engines`), one after the other. Written are `parity.json`, which
the report shows, and `parity_items.jsonl` with every item. It must not know how an engine is driven.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mr1_bench import records, stats, vllm_setup
from mr1_bench.errors import UserError
from mr1_bench.grading import Score, grade
from mr1_bench.model_files import resolve_model
from mr1_bench.specs import get_spec
from mr1_bench.tables import p_text, percent
from mr1_bench.tasks import vllm_backend
from mr1_bench.tasks.evaluate import choose_device
from mr1_bench.tasks.parity_engines import first_difference, read_items

HELP = "Answer the same items with vLLM and with transformers, and measure how much the engines differ."

_WORST = 5  # items described in the record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--model", required=True, help="checkpoint folder, `tiny`, or a model's name on the hub")
    parser.add_argument("--task", required=True, help="one task of `mr1-bench tasks`")
    parser.add_argument("--n", type=int, default=100, help="first items of the task (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="run folder; the record goes to OUT/parity/NAME/parity.json")
    parser.add_argument("--max-answer-diff", type=float, help="exit with 1 where a greater share of the answers differs (0.01 is 1 %%)")
    parser.add_argument("--batch-size", type=int, default=8, help="items a batch of transformers (default: %(default)s)")
    parser.add_argument("--device", help="where transformers runs: cpu, cuda, … (default: cuda where there is one)")
    parser.add_argument("--vllm-args", help="settings of vLLM's engine: KEY=VALUE,… (max_model_len=8192, say)")
    parser.add_argument("--time-limit", type=float, default=3600.0, help="seconds each engine may take (default: %(default)g)")


@dataclass(frozen=True, slots=True)
class Item:
    """One item as both engines answered it.

    Attributes:
        id: the item's name.
        gold: its gold.
        texts: answers by engine.
        scores: their grades by engine.
        fork: first position at which the tokens differ, None where they are the same.
        tokens: the two tokens there, as text; empty for an engine that had ended.
        logprobs: at the fork, what each engine gives its own token and the other's: vLLM's, then transformers'; None where not known.
        gaps: for every token that vLLM chose, its log-probability less transformers', in nats.
        same_prompt: whether both saw the same prompt tokens.
    """

    id: str
    gold: str
    texts: dict[str, str]
    scores: dict[str, Score]
    fork: int | None
    tokens: dict[str, str]
    logprobs: dict[str, list[float | None]]
    gaps: list[float]
    same_prompt: bool

    @property
    def same_answer(self) -> bool:
        """Whether both answers say the same, right or wrong."""
        vllm, hf = self.scores["vllm"], self.scores["hf"]
        return (vllm.value, vllm.unit, vllm.status) == (hf.value, hf.unit, hf.status)

    @property
    def widest(self) -> float:
        """Largest absolute difference of a token's log-probability, in nats."""
        return max(map(abs, self.gaps), default=0.0)


def compare(task: str, ids: Sequence[str], golds: Sequence[str], vllm: Mapping[str, Any], hf: Mapping[str, Any], decode: Any) -> list[Item]:
    """Put the two engines' answers side by side.

    Args:
        task: the task's name.
        ids: the items' names.
        golds: their golds.
        vllm: what `parity_engines.run_vllm` returned.
        hf: what `parity_engines.run_hf` returned.
        decode: turns token ids into text.
    """
    items = []
    for name, gold, a, b in zip(ids, golds, vllm["answers"], hf["answers"], strict=True):
        fork = first_difference(a["tokens"], b["tokens"])
        texts = {"vllm": decode(a["tokens"]), "hf": decode(b["tokens"])}
        tokens: dict[str, str] = {}
        logprobs: dict[str, list[float | None]] = {}
        if fork is not None:
            tokens = {"vllm": decode(a["tokens"][fork : fork + 1]), "hf": decode(b["tokens"][fork : fork + 1])}
            if fork < min(len(a["tokens"]), len(b["tokens"])):
                logprobs["vllm"] = [a["logprobs"][fork], a["alternatives"][fork].get(str(b["tokens"][fork]))]
                logprobs["hf"] = [b["logprob_at_fork"], b["logprobs_of_vllm"][fork]]
        items.append(
            Item(
                id=name,
                gold=gold,
                texts=texts,
                scores={engine: grade(task, gold, text) for engine, text in texts.items()},
                fork=fork,
                tokens=tokens,
                logprobs=logprobs,
                gaps=[x - y for x, y in zip(a["logprobs"], b["logprobs_of_vllm"], strict=True)],
                same_prompt=a["prompt"] == b["prompt"],
            )
        )
    return items


def summarise(items: Sequence[Item]) -> dict[str, Any]:
    """Return the record's numbers, in the order in which the report shows them.

    Differences of log-probabilities are vLLM's less transformers', in nats, over all tokens that vLLM chose.

    Raises:
        UserError: there is no item.
    """
    import numpy as np

    if not items:
        raise UserError("no items to compare")
    n = len(items)
    right = {engine: [item.scores[engine].correct for item in items] for engine in ("vllm", "hf")}
    only = {engine: sum(a and not b for a, b in zip(right[engine], right[other], strict=True)) for engine, other in _PAIRS}
    low, high = stats.paired_difference(only["vllm"], only["hf"], n)
    gaps = np.array([gap for item in items for gap in item.gaps])
    size = np.abs(gaps)
    different = sum(not item.same_answer for item in items)
    return {
        "items": n,
        "prompts": {"identical": sum(item.same_prompt for item in items), "of": n},
        "texts": {"identical": sum(item.fork is None for item in items), "of": n},
        "answers": {"identical": n - different, "of": n, "differing share": different / n},
        "accuracy": {
            **{engine: sum(right[engine]) / n for engine in ("vllm", "hf")},
            "difference": (only["vllm"] - only["hf"]) / n,
            "low": low,
            "high": high,
            "only vllm right": only["vllm"],
            "only hf right": only["hf"],
            "McNemar p": stats.mcnemar(only["vllm"], only["hf"]),
        },
        "log-probability difference": {
            "tokens": len(gaps),
            "mean": float(gaps.mean()),
            "mean size": float(size.mean()),
            "median size": float(np.quantile(size, 0.5)),
            "99 % below": float(np.quantile(size, 0.99)),
            "largest": float(size.max()),
        },
        "worst items": {item.id: describe(item) for item in worst(items)},
    }


_PAIRS = (("vllm", "hf"), ("hf", "vllm"))


def worst(items: Sequence[Item]) -> list[Item]:
    """Return the few items that differ most: in their answers first, then in their texts, then in their log-probabilities."""
    order = sorted(items, key=lambda item: (item.same_answer, item.fork is None, -item.widest))
    return order[:_WORST]


def describe(item: Item) -> str:
    """Return one line on where an item's answers part."""
    gap = f"largest log-probability difference {item.widest:.2g}"
    if item.fork is None:
        return f"same tokens, {gap}"
    line = f"token {item.fork}: vllm {item.tokens['vllm']!r}, hf {item.tokens['hf']!r}"
    if item.logprobs:
        margins = {engine: f"{own - other:.2g}" for engine, (own, other) in item.logprobs.items() if own is not None and other is not None}
        line += f" (own above the other's by {', '.join(f'{margin} in {engine}' for engine, margin in margins.items())})" if margins else ""
    return f"{line}; answers {item.scores['vllm'].value} and {item.scores['hf'].value}; {gap}"


def _run_engine(name: str, request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run one engine's process to its end; its own words go to a log beside the record."""
    path, log = folder / f"{name}_request.json", folder / f"{name}.log"
    records.write_json(path, dict(request))
    environment = dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-m", "mr1_bench.tasks.parity_engines", name, str(path)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(request["limit_s"])
        except subprocess.TimeoutExpired:
            raise UserError(f"{name} took longer than {request['limit_s']:g} s and was stopped; see {log}, or raise --time-limit") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()] or ["nothing"]
        ours = [line.removeprefix("mr1-bench: ") for line in said if line.startswith("mr1-bench: ")]
        raise UserError(ours[-1] if ours else f"{name} ended with code {code}: {said[-1].strip()[:300]}; see {log}")
    answers: dict[str, Any] = records.read_json(Path(request[f"{name}_file"]))
    return answers


def _check_arguments(args: argparse.Namespace) -> None:
    size = get_spec(args.task).size
    if not 1 <= args.n <= size:
        raise UserError(f"--n {args.n}: {args.task} has 1 to {size} items")
    if args.max_answer_diff is not None and not 0 <= args.max_answer_diff <= 1:
        raise UserError(f"--max-answer-diff {args.max_answer_diff} is not a share between 0 and 1")
    if args.batch_size < 1 or not args.time_limit > 0:
        raise UserError("--batch-size and --time-limit must be positive")


def run(args: argparse.Namespace) -> int:
    """Run both engines, write the record, print it; 1 where the gate is not passed."""
    _check_arguments(args)
    spec = get_spec(args.task)
    arguments = vllm_setup.parse_arguments(args.vllm_args)
    version = vllm_setup.version()
    checkpoint = resolve_model(args.model)
    items = read_items(spec.name, args.n)
    settings = vllm_backend.engine_arguments(checkpoint, arguments)
    request = {
        "checkpoint": str(checkpoint),
        "task": spec.name,
        "n": args.n,
        "max_new_tokens": spec.max_new_tokens,
        "batch_size": args.batch_size,
        "device": choose_device(args.device),
        "vllm_args": settings,
        "limit_s": args.time_limit,
    }
    weights = records.checkpoint_sha256(checkpoint)
    name = f"{spec.name}-{records.sha256_json([weights, version, {k: v for k, v in request.items() if k != 'limit_s'}])[:8]}"
    folder = args.out / "parity" / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".working-", dir=folder) as working:
        request |= {f"{engine}_file": str(Path(working) / f"{engine}.json") for engine in ("vllm", "hf")}
        answers = {engine: _run_engine(engine, request, folder) for engine in ("vllm", "hf")}
    compared = compare(
        spec.name, [item.id for item in items], [item.gold for item in items], answers["vllm"], answers["hf"], _decoder(checkpoint)
    )
    summary = summarise(compared)
    differing, allowed = summary["answers"]["differing share"], args.max_answer_diff
    verdict = "not asked" if allowed is None else "passed" if differing <= allowed else "failed"
    times = {engine: {key: round(value, 2) for key, value in answers[engine].items() if key.endswith("_s")} for engine in answers}
    made = {
        "hf": sum(len(answer["tokens"]) for answer in answers["hf"]["answers"]),
        "vllm": summary["log-probability difference"]["tokens"],
    }
    record = {
        "kind": "parity",
        "model": {"path": args.model, "checkpoint_sha256": weights},
        "task": spec.name,
        "gate": {"verdict": verdict, "allowed share of differing answers": allowed},
        **summary,
        "vllm": {"version": version, "dtype": answers["vllm"]["dtype"], "tokens": made["vllm"], **times["vllm"], **settings},
        "hf": {
            "dtype": answers["hf"]["dtype"],
            "tokens": made["hf"],
            **times["hf"],
            "device": request["device"],
            "batch_size": args.batch_size,
        },
        "decoding": {"max_new_tokens": spec.max_new_tokens, "temperature": 0.0, "images": "lossless"},
        "packages": records.package_versions(),
    }
    lines = [json.dumps(asdict(item) | {"same_answer": item.same_answer}, ensure_ascii=False) for item in compared]
    records.write_atomic(folder / "parity_items.jsonl", "\n".join(lines) + "\n")
    records.write_json(folder / "parity.json", record)
    _print_record(record, folder)
    return 1 if verdict == "failed" else 0


def _decoder(checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True)


def _print_record(record: Mapping[str, Any], folder: Path) -> None:
    accuracy, gaps = record["accuracy"], record["log-probability difference"]
    engines = f"{record['vllm']['version']} and transformers {record['packages']['transformers']}"
    print(f"{record['task']}, {record['items']} items, {engines}, greedy")
    for what in ("prompts", "texts", "answers"):
        print(f"identical {what}: {record[what]['identical']} of {record[what]['of']}")
    print(f"accuracy: vllm {100 * accuracy['vllm']:.1f} %, hf {100 * accuracy['hf']:.1f} %, ", end="")
    difference = percent(accuracy["difference"], accuracy["low"], accuracy["high"], "+")
    print(f"difference {difference}, McNemar {p_text(accuracy['McNemar p'])}")
    print(
        f"log-probabilities of {gaps['tokens']} tokens differ by {gaps['mean size']:.2g} nats on average (mean {gaps['mean']:+.2g}), "
        f"99 % by less than {gaps['99 % below']:.2g}, at most {gaps['largest']:.2g}"
    )
    for item, line in record["worst items"].items():
        print(f"  {item}: {line}")
    for engine in ("vllm", "hf"):
        facts = record[engine]
        print(f"{engine}: {facts['dtype']}, loaded in {facts['load_s']:.1f} s, {facts['tokens']} tokens in {facts['generate_s']:.1f} s")
    if record["gate"]["verdict"] != "not asked":
        share, allowed = record["answers"]["differing share"], record["gate"]["allowed share of differing answers"]
        print(f"gate {record['gate']['verdict']}: {100 * share:.1f} % of the answers differ, {100 * allowed:g} % are allowed")
    print(f"\nrecord: {folder / 'parity.json'}")
