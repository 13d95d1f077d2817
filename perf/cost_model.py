"""What a run costs on GPUs, from a stated model: operations, bytes and network traffic of the paper's recipes.

Nothing here is measured. A GPU's time is the sum of what it waits for: files (starting, loading, saving); launches (a decoding step's
fixed cost); memory (weights and cache read while decoding, optimiser); compute; network; and idle, where there is less work than GPUs.
Nothing overlaps, which leans to the high side. This file must not know how costs are shown (`scaling`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import flops
from shapes import SHAPES, Shape

from mr1_bench.reports.grid import Cell, make_grid
from mr1_bench.reports.preset import Preset, find_preset
from mr1_bench.specs import get_spec
from mr1_bench.trainers.config import GRPOConfig, TrainConfig

KINDS = ("files", "launches", "memory", "compute", "network", "idle")

# The machine: eight NVIDIA H100 SXM a node. Numbers of the makers' data sheets.
PEAK = 989e12
BANDWIDTH = 3.35e12
NVLINK = 450e9
INFINIBAND = 50e9
NODE = 8
MEMORY = 80e9

# How much of that is reached, and what it costs beside.
MFU = 0.35
REACHED = 0.7
LAUNCH_S = 3e-3
START_S = 120.0
DISK = 2e9

CHARS_PER_TOKEN = 3.0
CHAT_TOKENS = 20
TARGET_TOKENS = 10


@dataclass(frozen=True, slots=True)
class Task:
    """Lengths of a task in tokens: image while training and testing, text, answers on average and at the longest."""

    train_image: int
    test_image: int
    text: int
    mean: int
    longest: int


TASKS = {"vc": Task(187, 391, 75, 51, 380), "gr": Task(22, 22, 117, 173, 1632)}


@dataclass(frozen=True, slots=True)
class Model:
    """A model and how it is trained.

    Attributes:
        name: for tables.
        shape: its sizes.
        size: `2b` or `7b`, part of the names of recipes and presets.
        tied: whether the output head is the embedding.
        rank: of the adapters; 0 where all weights are trained.
    """

    name: str
    shape: Shape
    size: str
    tied: bool
    rank: int

    @property
    def layer(self) -> int:
        """Weights of a decoder layer."""
        s = self.shape
        return 2 * s.hidden**2 + 2 * s.hidden * s.key_heads * s.head + 3 * s.hidden * s.mlp

    @property
    def decoded(self) -> int:
        """Weights that a decoding step reads: the decoder and the output head."""
        return self.shape.layers * self.layer + self.shape.vocabulary * self.shape.hidden

    @property
    def total(self) -> int:
        """All weights."""
        s, merged = self.shape, 4 * self.shape.vision_hidden
        tower = s.vision_layers * 12 * s.vision_hidden**2 + merged**2 + merged * s.hidden
        return self.decoded + (0 if self.tied else s.vocabulary * s.hidden) + tower

    @property
    def trained(self) -> int:
        """Weights that are trained."""
        s = self.shape
        widths = 4 * s.hidden + 2 * (s.hidden + s.key_heads * s.head) + 3 * (s.hidden + s.mlp)
        return s.layers * self.rank * widths if self.rank else self.total

    @property
    def sharded(self) -> bool:
        """Whether weights, masters, moments, gradients and reference (20 bytes each) are more than one GPU holds."""
        return not self.rank and 20 * self.total > MEMORY

    @property
    def cache(self) -> int:
        """Bytes of keys and values of a token."""
        return 2 * 2 * self.shape.layers * self.shape.key_heads * self.shape.head


_7B = replace(SHAPES["qwen2-vl-2b"], hidden=3584, mlp=18944, heads=28, key_heads=4, vocabulary=152064)
MODELS = {
    "2B": Model("2B", SHAPES["qwen2-vl-2b"], "2b", tied=True, rank=0),
    "7B": Model("7B, adapters", _7B, "7b", tied=False, rank=64),
    "7B-all": Model("7B, all weights", _7B, "7b", tied=False, rank=0),
}


class Seconds(dict[str, float]):
    """Seconds of one GPU by what it waits for."""

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds({kind: self.get(kind, 0.0) + other.get(kind, 0.0) for kind in KINDS})

    def __mul__(self, times: float) -> Seconds:
        return Seconds({kind: times * seconds for kind, seconds in self.items()})

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.values())

    @property
    def bottleneck(self) -> str:
        """What takes longest."""
        return max(KINDS, key=lambda kind: self.get(kind, 0.0))


def _forward(model: Model, samples: float, image: int, text: int, tokens: int) -> tuple[float, float]:
    """Operations of a forward pass over samples that each carry their prompt: of the vision tower, and of the decoder."""
    one = replace(model.shape, prompts=1, group=1)
    decoder = flops.prompt(one, image + text) + flops.completions(one, image + text, tokens)
    return samples * flops.vision(one, 4 * image).flops, samples * decoder.flops


def decoding(model: Model, samples: float, prompts: float, image: int, task: Task, limit: int) -> Seconds:
    """Seconds in which one GPU answers `prompts` different prompts, `samples` answers in all, at once."""
    one, length, mean = replace(model.shape, prompts=1, group=1), image + task.text, min(task.mean, limit)
    steps = min(task.longest, limit)
    prefill = prompts * (flops.vision(one, 4 * image).flops + flops.prompt(one, length).flops) / (PEAK * MFU)
    read = (steps * 2 * model.decoded + samples * mean * (length + mean / 2) * model.cache) / (BANDWIDTH * REACHED)
    work = samples * flops.completions(one, length, mean, at_once=1).flops / (PEAK * MFU)
    found = Seconds(launches=steps * LAUNCH_S, compute=prefill)
    return found + (Seconds(memory=read) if read > work else Seconds(compute=work))


def _spread(size: float, gpus: int) -> float:
    """Seconds in which every GPU has received `size` bytes that lie spread over all: between nodes each port carries its share."""
    nodes = math.ceil(gpus / NODE)
    inside = min(gpus, NODE)
    within = size * (inside - 1) / inside / NVLINK
    return (within + size / inside * (nodes - 1) / nodes / INFINIBAND) / REACHED


def step(model: Model, config: TrainConfig, task: Task, gpus: int) -> Seconds:
    """Seconds of one training step on each of some GPUs."""
    grouped = isinstance(config, GRPOConfig)
    all_samples = config.prompts_per_step * (config.num_generations if isinstance(config, GRPOConfig) else 1)
    busy = min(gpus, all_samples)
    samples = all_samples / busy
    tokens = min(task.mean, config.max_new_tokens) if grouped else TARGET_TOKENS
    vision, decoder = _forward(model, samples, task.train_image, task.text, tokens)
    learning = decoder if model.rank else vision + decoder  # beside adapters the tower is frozen: no backward pass, nothing computed again
    passes = vision + decoder + learning * (int(config.gradient_checkpointing) + (1 if model.rank else 2))
    work = Seconds()
    if isinstance(config, GRPOConfig):
        passes += vision + decoder if config.beta_max else 0  # the reference
        prompts = max(1.0, config.prompts_per_step / busy)
        work += decoding(model, samples, prompts, task.train_image, task, config.max_new_tokens)
    work += Seconds(compute=passes / (PEAK * MFU))
    found = work * (busy / gpus) + Seconds(idle=work.total * (1 - busy / gpus))
    gathers = 4 if grouped else 2  # forward and again backward; for the reference, and for the rollout
    weights, gradients = _spread(2 * model.total, gpus), _spread(4 * model.trained, gpus)
    traffic = gathers * weights + gradients if model.sharded else 2 * gradients
    return found + Seconds(memory=28 * model.trained / (gpus if model.sharded else 1) / (BANDWIDTH * REACHED), network=traffic)


def answering(model: Model, task: Task, items: int, limit: int, chunk: int, gpus: int) -> Seconds:
    """Seconds on each of some GPUs to answer items in chunks."""
    chunks = math.ceil(items / chunk)
    each = decoding(model, items / chunks, items / chunks, task.test_image, task, limit)
    return each * (chunks / gpus) + Seconds(idle=each.total * (math.ceil(chunks / gpus) - chunks / gpus))


def start(model: Model) -> Seconds:
    """Seconds to start a process and load the model."""
    return Seconds(files=START_S + 2 * model.total / DISK)


@lru_cache
def _preset(model: Model) -> Preset:
    return find_preset(f"paper-{model.size}")


@lru_cache
def cells(model: Model, seeds: int = 1) -> tuple[Cell, ...]:
    """The paper's grid with some seeds in every arm."""
    preset, wanted = _preset(model), tuple(range(seeds))
    sweeps: dict[str, Any] = {name: replace(getattr(preset, name), seeds=wanted) for name in ("beta", "format")}
    return make_grid(replace(preset, seeds=wanted, schedule_seeds=wanted, **sweeps), Path("grid"))


def recipe(model: Model, method: str, family: str) -> TrainConfig:
    """The paper's recipe of a method on a task."""
    found = (cell.config for cell in cells(model) if cell.arm == "main" and cell.config is not None)
    return next(config for config in found if (config.method, config.task) == (method, family))


def training(model: Model, config: TrainConfig, gpus: int) -> Seconds:
    """Seconds of a whole training on each of some GPUs."""
    task = TASKS[config.task]
    found = start(model) + step(model, config, task, gpus) * config.steps
    times = math.ceil(config.steps / config.eval_every) if config.eval_every else 0
    found += answering(model, task, 2 * config.eval_items, config.max_new_tokens, 4 * _preset(model).batch_size, gpus) * times
    saved = 2 * model.total + 12 * model.trained  # weights; masters and moments
    return found + Seconds(files=saved / DISK) * math.ceil(config.steps / config.save_every)


def evaluation(model: Model, tasks: Iterable[tuple[str, int]], gpus: int) -> Seconds:
    """Seconds of an evaluation of (task, items) on each of some GPUs."""
    found = start(model)
    for name, items in tasks:
        spec = get_spec(name)
        found += answering(model, TASKS[spec.data], items, spec.max_new_tokens, 4 * _preset(model).batch_size, gpus)
    return found


def fits(model: Model, gpus: int) -> bool:
    """Whether a training fits into the memory of some GPUs: 20 bytes a weight among all, and vLLM's own copy on each; no more counted."""
    return not model.sharded or 20 * model.total / gpus + 2 * model.total <= MEMORY
