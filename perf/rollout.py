"""How fast completions are drawn: vLLM beside the trainer, our shared-prefix decode and plain `generate`, alternating in one process.

Run from the repository root where vLLM is installed: `python perf/rollout.py [--shape medium large] [--prompts 1 4 16] [--json FILE]`; on a
GPU `--device cuda --shape qwen2-vl-2b`. The engines are the trainer's own, with the same weights, images, prompts and group. Every
completion is cut off at the same length: the end token lies past the vocabulary, and vLLM is told to ignore the tokenizer's. Each draw is
of prompts that no draw of that engine had before and follows a push of the weights, as in training, so that vLLM's caches hold none of
them. Our rollout begins with encoding images and prompts, which the update then uses again; after vLLM's the update has to do that itself,
so a training step pays for vLLM's draw, the push and one encoding. The processing of the images, which the trainer does while the step
before runs, is counted apart; vLLM does it again within its call. The first result is one token for one prompt's group.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import shapes
import torch
from shapes import SHAPES, Shape
from trainer import wait
from trainer_report import machine
from transformers.utils.logging import disable_progress_bar

from mr1_bench import records, vllm_setup
from mr1_bench.tables import print_table
from mr1_bench.trainers import models
from mr1_bench.trainers.batches import Part, Processing
from mr1_bench.trainers.config import GRPOConfig
from mr1_bench.trainers.engine import Engine, SharedEngine, stop_tokens
from mr1_bench.trainers.models import Loaded
from mr1_bench.trainers.plain import PlainEngine
from mr1_bench.trainers.vllm_rollout import Colocated

if TYPE_CHECKING:
    from mr1_bench.trainers.prefix import Completions

ENGINES = ("vllm", "shared", "plain")
MISMATCH = 0.1
"""Mean difference of log-probabilities, nats, above which the trainer would not take vLLM for the same model."""


@dataclass(slots=True)
class Bench:
    """One shape's engines on one model.

    Attributes:
        config: the trainer's settings.
        loaded: the model.
        process: makes a batch of some items.
        vllm: vLLM beside it.
        ours: the trainer's own engines.
        start_s: seconds that vLLM took to start.
    """

    config: GRPOConfig
    loaded: Loaded
    process: Processing
    vllm: Colocated
    ours: dict[str, Engine]
    start_s: float

    def push(self) -> None:
        """Give vLLM the weights."""
        self.vllm.push(models.weights(self.loaded))

    @torch.no_grad()
    def draw(self, name: str, part: Part, limit: int, seed: int) -> Completions:
        """Draw a group of completions of `limit` tokens after each prompt."""
        if name == "vllm":
            self.vllm._config = replace(self.config, max_new_tokens=limit)
            return self.vllm.sample([part], seed)[0].completions
        engine, generator = self.ours[name], torch.Generator(self.loaded.device).manual_seed(seed)
        return engine.sample(engine.encode(part), self.config.num_generations, max_new_tokens=limit, temperature=1.0, generator=generator)

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of a call, all of its work on the device included, and what it returned."""
        wait(self.loaded.device)
        start = time.perf_counter()
        result = work()
        wait(self.loaded.device)
        return time.perf_counter() - start, result


@contextmanager
def opened(args: argparse.Namespace, shape: Shape) -> Iterator[Bench]:
    """Make a model of the shape with random weights, and start the engines on it."""
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    processor = shapes.build_processor(shape)
    model = shapes.build_model(shape, processor, device, dtype)
    loaded = Loaded(model=model, processor=processor, shares=True, peft=None, name=f"the shape {shape}", weights_sha256="")
    stop, pad = stop_tokens(loaded)
    with tempfile.TemporaryDirectory() as name:
        model.save_pretrained(name)
        processor.save_pretrained(name)
        config = GRPOConfig(
            method="grpo",
            task=shapes.TASK,
            model=name,
            out=Path(name) / "out",
            num_generations=shape.group,
            max_new_tokens=shape.new_tokens,
            max_prompt_tokens=2048,  # with the completion no more than the shapes' models have positions for
            max_pixels=2**30,
            dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
            rollout="vllm",
            vllm_args=args.vllm_args or "",
        )
        start = time.perf_counter()
        vllm = Colocated(loaded, config)
        start_s = time.perf_counter() - start
        try:
            torch.set_num_threads(args.threads)  # vLLM has set its own
            make = vllm._parameters  # vLLM refuses an end token past the vocabulary, and has the tokenizer's own beside
            vllm._parameters = lambda **given: make(**given | {"stop_token_ids": [], "ignore_eos": True})
            ours: dict[str, Engine] = {"shared": SharedEngine(model, stop, pad), "plain": PlainEngine(model, processor, stop, pad)}
            yield Bench(config, loaded, Processing(processor, model, config, cache_bytes=0), vllm, ours, start_s)
        finally:
            vllm.close()


def measure(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measure one shape; times in seconds."""
    shape, rounds = SHAPES[name], args.warm_up + args.rounds
    items = iter(shapes.build_items(shape, rounds * (sum(args.prompts) + 1) + 1))
    found: dict[str, Any] = {"shape": name, "completion_tokens": shape.new_tokens, "group": shape.group}
    with opened(args, shape) as bench:
        rows, found["cold_s"] = [], first_results(bench, next(items), 0)
        for number in range(rounds):
            row: dict[str, Any] = {"draws": {}}
            for count in args.prompts:
                row["draws"][count] = one_size(bench, [next(items) for _ in range(count)], number)
            item = next(items)
            rows.append(row | {"first_s": first_results(bench, item, number)})
            print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        part = bench.process([item]).parts[0]
        found |= {"vllm_start_s": bench.start_s, "mismatch": mismatch(bench, part)}
        found["parameters"] = sum(parameter.numel() for parameter in bench.loaded.model.parameters())
        found["prompt_tokens"] = int(part.prompts.mask.sum()) if part.prompts else 0
    if not found["mismatch"] <= MISMATCH:
        raise SystemExit(
            f"{name}: log-probabilities of the engines differ by {found['mismatch']:.3g} nats: they did not run the same model"
        )
    return found | {"rounds": rows[args.warm_up :]}


def first_results(bench: Bench, item: Any, seed: int) -> dict[str, float]:
    """Draw one token for one prompt's group; seconds of each engine."""
    part = bench.process([item]).parts[0]
    bench.push()
    return {engine: bench.timed(functools.partial(bench.draw, engine, part, 1, seed))[0] for engine in ENGINES}


def one_size(bench: Bench, items: list[Any], seed: int) -> dict[str, float]:
    """Draw after the same prompts with every engine; seconds of each, and of processing, push and encoding."""
    found: dict[str, float] = {}
    found["processing"], batch = bench.timed(lambda: bench.process(items))
    found["push"], _ = bench.timed(bench.push)
    with torch.no_grad():
        found["encode"], _ = bench.timed(lambda: bench.ours["shared"].encode(batch.parts[0]))
    for engine in ENGINES:
        limit = bench.config.max_new_tokens
        found[engine], drawn = bench.timed(functools.partial(bench.draw, engine, batch.parts[0], limit, seed))
        if drawn.lengths.tolist() != [limit] * len(items) * bench.config.num_generations:
            raise SystemExit(f"completions of {engine} do not all have the fixed length: the engines did not do the same work")
    return found


@torch.no_grad()
def mismatch(bench: Bench, part: Part) -> float:
    """Mean difference, in nats, of the log-probabilities that vLLM and the model give to vLLM's own completions."""
    bench.vllm._config = bench.config
    (drawn,), engine = bench.vllm.sample([part], 0), bench.ours["shared"]
    logprobs, _ = engine.logprobs(engine.encode(part), drawn.completions, temperature=1.0)
    return float((logprobs - drawn.logprobs)[drawn.completions.mask].abs().mean())


# Report


def spread(values: list[float], digits: int = 0) -> str:
    """Median and range."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(found: dict[str, Any]) -> None:
    """Print one shape's rates, ratios and times; ratios are those of each round."""
    rounds = found["rounds"]
    print(
        f"\n{found['shape']}: {found['parameters'] / 1e6:.2f}M parameters, prompts of about {found['prompt_tokens']} tokens, "
        f"{found['group']} completions of {found['completion_tokens']} each; log-probabilities differ by {found['mismatch']:.1g} nats"
    )
    rates, costs = [], []
    for count in rounds[0]["draws"]:
        draws = [row["draws"][count] for row in rounds]
        tokens = count * found["group"] * found["completion_tokens"]
        rates.append([str(count), *(spread([tokens / draw[engine] for draw in draws]) for engine in ENGINES)])
        in_a_step = [draw["vllm"] + draw["push"] + draw["encode"] for draw in draws]
        rates[-1] += [
            spread([draw["shared"] / draw["vllm"] for draw in draws], 2),
            spread([draw["shared"] / seconds for draw, seconds in zip(draws, in_a_step, strict=True)], 2),
            spread([draw["plain"] / draw["shared"] for draw in draws], 2),
        ]
        costs.append([str(count), *(spread([1000 * draw[what] for draw in draws]) for what in ("push", "encode", "processing", *ENGINES))])
    print("tokens/s, and how many times as fast")
    head = ["prompts", *ENGINES, "vllm : shared", "in a training step", "shared : plain"]
    print_table(head, rates, right=set(range(len(head))))
    print("ms a draw")
    head = ["prompts", "push", "encode", "processing", *ENGINES]
    print_table(head, costs, right=set(range(len(head))))
    first = [f"{name} {spread([1000 * row['first_s'][name] for row in rounds])}" for name in ENGINES]
    cold = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in found["cold_s"].items())
    print(f"first result, ms: {', '.join(first)}; the very first: {cold}, and vLLM's start before it {found['vllm_start_s']:.1f} s")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["medium", "large"], help="what to measure (medium large)")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4, 16], help="prompts a draw, each with its group (1 4 16)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="alternating rounds that count (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before them (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; set OMP_NUM_THREADS too (%(default)s)")
    parser.add_argument("--vllm-args", help="settings of vLLM's engine, KEY=VALUE,…, as of mr1-bench train")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file too")
    return parser.parse_args()


def main() -> int:
    """Measure and print."""
    args = parse()
    torch.set_num_threads(args.threads)
    disable_progress_bar()
    results = []
    for name in args.shape:
        results.append(measure(args, name))
        report(results[-1])
    if args.json:
        described = machine(torch.device(args.device), args.threads) | {"vllm": vllm_setup.version(), "load_average": os.getloadavg()[0]}
        records.write_json(args.json, {"machine": described, "shapes": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
