"""How fast a GRPO step is: ours and TRL's GRPOTrainer alternating in one process, same weights, prompts, loss, lengths and precision.

Run from the repository root: `python perf/trainer.py [--shape small medium large] [--trl-checkpointing] [--memory] [--json FILE]`; on a GPU
`--device cuda --shape qwen2-vl-2b qwen2-vl-2b-long`. Each round is one step of TRL's own training loop and then one of ours on the same
prompts, so that a busy machine slows both; medians and the ratio of every round are given. All completions have the same length on both
sides: the end token lies past the vocabulary, so that no draw ends one and neither side needs a rule against it. Our image processing is
counted in our step, although the trainer does it while the step before runs. Peak memory is measured with each side alone in a process of
its own. The distance to the floor is that of the fastest step to the fastest products, which noise only makes slower.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import flops
import shapes
import torch
from shapes import SHAPES, Shape
from trainer_report import PHASES, machine, missed, report
from transformers.utils.logging import disable_progress_bar

from mr1_bench.grading import Score
from mr1_bench.grading import grade as real_grade
from mr1_bench.trainers import grpo
from mr1_bench.trainers.batches import Batch, Processing
from mr1_bench.trainers.config import GRPOConfig
from mr1_bench.trainers.engine import make_engine
from mr1_bench.trainers.items import Item
from mr1_bench.trainers.models import Loaded, make_reference
from mr1_bench.trainers.optimizer import Optimizer

if TYPE_CHECKING:
    from mr1_bench.specs import TaskSpec

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
"""Dense bf16 operations a second that the maker gives for a GPU, 10^12; what utilisation is usually counted against."""


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement."""

    name: str
    shape: Shape
    device: torch.device
    dtype: torch.dtype
    beta: float
    template: str
    checkpointing: bool
    trl_checkpointing: bool
    rounds: int
    warm_up: int

    @property
    def steps(self) -> int:
        """Steps of each side."""
        return self.warm_up + self.rounds


def grade(spec: TaskSpec, gold: str, text: str) -> Score:
    """Grade a text, then call it right or wrong by a hash: random weights never earn anything, and without spread there is no gradient."""
    return replace(real_grade(spec, gold, text), correct=zlib.crc32(text.encode()) % 2 == 0)


def reward(item: Item, text: str) -> float:
    """What a text earns, on either side."""
    return grpo.reward(grade(item.spec, item.gold, text), 1.0)


class Ours:
    """Our trainer on a model of the shape."""

    def __init__(self, job: Job, model: Any, processor: Any, config: GRPOConfig, items: list[Item]) -> None:
        """Make the trainer; it trains the model in place."""
        self._items, self._prompts = items, job.shape.prompts
        self.loaded = Loaded(model=model, processor=processor, shares=True, peft=None, name=job.name, weights_sha256="")
        self.trainer = grpo.GRPO(self.loaded, config, Optimizer(model, config), make_reference(self.loaded))
        self._processing = Processing(processor, model, config, cache_bytes=0)
        self.rows: list[dict[str, Any]] = []

    def batch(self, step: int) -> Batch:
        """The prompts of a step."""
        return self._processing(self._items[step * self._prompts : (step + 1) * self._prompts])

    def step(self, step: int) -> None:
        """Process a batch and train on it; `rows` gets the metrics."""
        start = time.perf_counter()
        batch = self.batch(step)
        processed = time.perf_counter() - start
        with patch.object(grpo, "grade", grade):
            row, _ = self.trainer.step(step, batch, 1e-6)
        self.rows.append(row | {"time_processing": processed, "time_step": time.perf_counter() - start})


@dataclass(frozen=True, slots=True)
class Sides:
    """Both trainers, before their first step; None for one that is not wanted."""

    ours: Ours | None
    theirs: Any


@contextmanager
def build(job: Job, *, ours: bool = True, theirs: bool = True) -> Iterator[Sides]:
    """Make the sides from the same weights and prompts."""
    processor = shapes.build_processor(job.shape)
    items = shapes.build_items(job.shape, job.steps * job.shape.prompts, job.template)
    model = shapes.build_model(job.shape, processor, job.device, job.dtype)
    with tempfile.TemporaryDirectory() as temporary:
        config = settings(job, Path(temporary))
        peer = None
        if theirs:
            import trl_peer

            model.save_pretrained(Path(temporary) / "model")
            processor.save_pretrained(Path(temporary) / "model")
            # In bfloat16 both sides compute in it and keep their weights in float32: TRL by autocasting, ours by a master copy.
            policy = (copy.deepcopy(model) if ours else model).float()
            theirs_config = replace(config, gradient_checkpointing=job.trl_checkpointing)
            peer = trl_peer.build_trainer(policy, Path(temporary) / "model", processor, items, reward, theirs_config)
        yield Sides(Ours(job, model, processor, config, items) if ours else None, peer)


def settings(job: Job, out: Path) -> GRPOConfig:
    """Our settings, from which TRL's are made too."""
    return GRPOConfig(
        method="grpo",
        task=shapes.TASK,
        model=job.name,
        out=out,
        steps=job.steps,
        prompts_per_step=job.shape.prompts,
        num_generations=job.shape.group,
        max_new_tokens=job.shape.new_tokens,
        max_pixels=2**30,
        beta_max=job.beta,
        gradient_checkpointing=job.checkpointing,
        dtype="bfloat16" if job.dtype == torch.bfloat16 else "float32",
    )


def measure(job: Job, *, theirs: bool) -> dict[str, Any]:
    """Measure one shape; times in milliseconds."""
    with build(job, theirs=theirs) as sides:
        ours = sides.ours
        assert ours is not None
        if theirs:
            import trl_peer

            peer_ms = [1000 * seconds for seconds in trl_peer.run(sides.theirs, ours.step)][job.warm_up :]
        else:
            for step in range(job.steps):
                ours.step(step)
        rows = ours.rows[job.warm_up :]
        if any(row["length"] != job.shape.new_tokens for row in rows):
            raise SystemExit("our completions do not all have the fixed length: the sides did not do the same work")
        ours_ms = [1000 * row["time_step"] for row in rows]
        rate = flops.product_rate(8192 if job.device.type == "cuda" else 2048, job.device, job.dtype)
        found = {
            "shape": job.name,
            "parameters": sum(parameter.numel() for parameter in ours.loaded.model.parameters()),
            "prompt_tokens": prompt_tokens(ours.batch(0)),
            "completion_tokens": job.shape.new_tokens,
            "ours_ms": median(ours_ms),
            "ours_rounds_ms": ours_ms,
            "split_ms": {phase: 1000 * median(row.get(f"time_{phase}", 0.0) for row in rows) for phase in PHASES},
            "floor": floor(job, ours, min(ours_ms), rate),
            "update": update(job, ours, rows, rate),
        }
    if theirs:
        ratios = [peer / our for peer, our in zip(peer_ms, ours_ms, strict=True)]
        found |= {"trl_ms": median(peer_ms), "trl_rounds_ms": peer_ms, "trl_checkpointing": job.trl_checkpointing}
        found |= {"ratio": median(ratios), "ratio_rounds": ratios}
    return found


def prompt_tokens(batch: Batch) -> float:
    """Mean tokens of a prompt, those of its image among them."""
    return sum(int(part.prompts.mask.sum()) for part in batch.parts if part.prompts) / len(batch.items)


def patches(shape: Shape) -> int:
    """Patches of an image."""
    return (shape.pixels // 14) ** 2


def floor(job: Job, ours: Ours, step_ms: float, large: float) -> dict[str, float]:
    """The least time of a step, by its operations at the rate of large products, and by its own products taken alone."""
    length = prompt_tokens(ours.batch(0))
    counted = flops.step(job.shape, patches(job.shape), length)
    products = [product for one in counted.passes for product in one.products]
    seconds = flops.seconds_of_products(products, job.device, job.dtype)
    own = sum(product.flops for product in products) / seconds
    attention = sum(one.attention for one in counted.passes)
    own_ms = 1000 * (seconds + attention / own)
    return {
        "gflop": counted.flops / 1e9,
        "gflops_large": large / 1e9,
        "gflops_own": own / 1e9,
        "floor_large_ms": 1000 * counted.flops / large,
        "floor_own_ms": own_ms,
        "distance_large": step_ms * large / counted.flops / 1000,
        "distance_own": step_ms / own_ms,
    }


def update(job: Job, ours: Ours, rows: list[dict[str, Any]], rate: float) -> dict[str, float]:
    """Time and utilisation of the update: image and prompt forward (which the rollout shares), completions forward, backward."""
    encode = seconds_to_encode(job, ours)
    passes = encode + median(row["time_policy"] + row["time_backward"] for row in rows)
    whole = passes + median(row["time_optimizer"] for row in rows)
    operations = flops.update_flops(job.shape, patches(job.shape), prompt_tokens(ours.batch(0)))
    found = {
        "encode_ms": 1000 * encode,
        "forward_backward_ms": 1000 * passes,
        "tflop": operations / 1e12,
        "utilisation_of_measured_rate": operations / passes / rate,
        "with_optimizer_of_measured_rate": operations / whole / rate,
    }
    name = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else ""
    for gpu, peak in PEAK_TFLOPS.items():
        if gpu in name and job.dtype == torch.bfloat16:
            found["utilisation"] = operations / passes / peak / 1e12
            found["utilisation_with_optimizer"] = operations / whole / peak / 1e12
    return found


def seconds_to_encode(job: Job, ours: Ours) -> float:
    """Seconds of the images' and prompts' forward pass, its gradient graph kept."""
    engine = make_engine(ours.loaded, ours.loaded.model, recompute=job.checkpointing)
    part = ours.batch(0).parts[0]
    found = []
    for _ in range(5):
        wait(job.device)
        start = time.perf_counter()
        engine.encode(part)
        wait(job.device)
        found.append(time.perf_counter() - start)
    return median(found)


def wait(device: torch.device) -> None:
    """Wait until a CUDA device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Memory


def peak_memory(job: Job, side: str) -> float:
    """MiB that one side's steps need at their peak: on a GPU all it allocates, on a CPU how far the resident set grows over them."""
    with build(replace(job, rounds=2, warm_up=1), ours=side == "ours", theirs=side == "trl") as sides:
        cuda = job.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(job.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
        before = 0.0 if cuda else resident("VmRSS")
        if sides.ours is not None:
            for step in range(3):
                sides.ours.step(step)
        else:
            sides.theirs.train()
        return torch.cuda.max_memory_allocated(job.device) / 2**20 if cuda else resident("VmHWM") - before


def resident(field: str) -> float:
    """MiB of a field of this process's status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(lines[field].split()[0]) / 1024


def peak_of_each(args: argparse.Namespace, name: str, sides: list[str]) -> dict[str, float]:
    """Peak memory of each side, MiB, each alone in a fresh process."""
    command = [sys.executable, __file__, "--shape", name, "--device", args.device, "--threads", str(args.threads), "--beta", str(args.beta)]
    command += ["--prompt", args.prompt] + ["--checkpointing"] * args.checkpointing + ["--trl-checkpointing"] * args.trl_checkpointing
    found = {}
    for side in sides:
        run = subprocess.run([*command, "--peak-of", side], capture_output=True, text=True, check=False)
        if run.returncode:
            raise SystemExit(f"measuring the memory of {side} failed:\n{run.stderr[-2000:]}")
        found[side] = float(run.stdout.splitlines()[-1])
    return found


# Command line


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["small", "medium", "large"], help="what to measure")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="alternating rounds that count (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before them (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    parser.add_argument("--beta", type=float, default=0.04, help="KL weight; 0: no reference pass on either side (%(default)s)")
    parser.add_argument(
        "--prompt", choices=["vc_think", "vc_direct"], default="vc_think", help="R1-V's prompt, or our short one (%(default)s)"
    )
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on our side")
    parser.add_argument("--trl-checkpointing", action="store_true", help="gradient checkpointing on TRL's side")
    parser.add_argument("--without-trl", action="store_true", help="measure our side alone, as happens where trl is not installed")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too")
    parser.add_argument("--peak-of", choices=["ours", "trl"], help="print one side's peak memory in MiB and nothing else")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file too")
    return parser.parse_args()


def main() -> int:
    """Measure and print; 1 if a target is missed."""
    args = parse()
    torch.set_num_threads(args.threads)
    disable_progress_bar()
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    switches = (args.beta, args.prompt, args.checkpointing, args.trl_checkpointing, args.rounds, args.warm_up)
    jobs = [Job(name, SHAPES[name], device, dtype, *switches) for name in args.shape]
    if args.peak_of:
        print(peak_memory(jobs[0], args.peak_of))
        return 0
    theirs = not args.without_trl and importlib.util.find_spec("trl") is not None
    results = []
    for job in jobs:
        found = measure(job, theirs=theirs)
        if args.memory:
            found["peak_mib"] = peak_of_each(args, job.name, ["ours", "trl"] if theirs else ["ours"])
        results.append(found)
        print(report(found), flush=True)
    faults = [fault for found in results for fault in missed(found)]
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(device, args.threads), "shapes": results, "missed": faults}, indent=2) + "\n")
    for fault in faults:
        print(f"missed: {fault}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
