"""What must hold of a configuration before any time is spent, as far as it can be known without torch.

`check` looks at values alone; `check_here` at this machine: files, built data, packages. Each raises a `UserError` of one line that says
what was seen, what was expected and what to do. They must not know models: what only weights or devices can tell is `models` and `memory`'s
business.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mr1_bench import data, vllm_setup
from mr1_bench.errors import UserError
from mr1_bench.specs import LEVELS, TaskSpec, UnknownTaskError, get_spec
from mr1_bench.synth import hasty
from mr1_bench.trainers.config import GRPOConfig, SFTConfig, TrainConfig
from mr1_bench.trainers.flags import nearest, options
from mr1_bench.trainers.schedule import KLWeight

TASKS = ("vc", "gr", "vc-synth", "gr-synth")
"""What can be trained on; tasks that ask for the bare answer are for evaluation only."""

_SMALLEST_IMAGE = 28 * 28  # pixels of one image token of Qwen2-VL
_SEEDS = 2**63  # what torch takes as a seed

_Rule = tuple[Callable[[Any], bool], str]


def _at_least(low: int) -> _Rule:
    return lambda value: bool(value >= low), f"at least {low}"


_POSITIVE: _Rule = (lambda value: 0 < value < math.inf, "a number above 0")
_NOT_NEGATIVE: _Rule = (lambda value: 0 <= value < math.inf, "0 or a number above it")
_DECAY_RATE: _Rule = (lambda value: 0 <= value < 1, "a number from 0 to below 1")

_RULES: dict[str, _Rule] = {
    "level": (lambda value: value in LEVELS, f"a level from {LEVELS[0]} to {LEVELS[-1]}"),
    "train_items": _at_least(0),
    "seed": (lambda value: 0 <= value < _SEEDS, "a whole number from 0 to 2^63 - 1"),
    "steps": _at_least(1),
    "prompts_per_step": _at_least(1),
    "micro_prompts": _at_least(0),
    "max_new_tokens": _at_least(1),
    "max_prompt_tokens": _at_least(1),
    "max_pixels": _at_least(_SMALLEST_IMAGE),
    "lr": _POSITIVE,
    "warmup_steps": _at_least(0),
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": _DECAY_RATE,
    "adam_beta2": _DECAY_RATE,
    "max_grad_norm": _POSITIVE,
    "lora_rank": _at_least(0),
    "lora_alpha": _at_least(0),
    "device": (lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None, "auto, cpu, cuda or cuda:N"),
    "eval_every": _at_least(0),
    "eval_items": _at_least(1),
    "save_every": _at_least(1),
    "keep": _at_least(1),
    "show_every": _at_least(0),
    "num_generations": (
        lambda value: value >= 2,
        "at least 2: a completion is judged against the others of its group, and one alone teaches nothing",
    ),
    "temperature": (
        lambda value: 0 < value < math.inf,
        "a number above 0: greedy completions of a prompt are all the same, and teach nothing",
    ),
    "inner_updates": _at_least(1),
    "clip": (lambda value: 0 < value < 1, "a number between 0 and 1"),
    "format_weight": _NOT_NEGATIVE,
    "importance_cap": _POSITIVE,
    "mismatch_limit": _NOT_NEGATIVE,
    "kl_horizon": (lambda value: 0 < value <= 1, "a share of the steps, above 0 and at most 1"),
}
"""Each setting's own range; bounds of β are the KL weight's business."""


def trainable(names: str) -> list[TaskSpec]:
    """Return the tasks of a comma-separated list.

    Raises:
        UserError: a name is no task, or is a task that cannot be trained on.
    """
    return [_find(part.strip()) for part in names.split(",")]


def _find(name: str) -> TaskSpec:
    there_are = f"expected {', '.join(TASKS)}, or several joined by commas"
    try:
        spec = get_spec(name)
    except UnknownTaskError:
        raise UserError(f"--task {name!r}: no such task{nearest(name, TASKS)}; {there_are}") from None
    if not spec.tagged:
        raise UserError(f"--task {name}: it asks for the bare answer, without the tags that the reward looks for; train on {spec.family}")
    if spec.level not in (None, 1):
        raise UserError(f"--task {name}: the level is a setting of its own; give --task {spec.family}-synth --level {spec.level}")
    return spec


def canonical_tasks(names: str) -> str:
    """Write a list of tasks in one way, so that `mr1_vc` and `vc` are the same configuration.

    Raises:
        UserError: as `trainable`.
    """
    return ",".join(spec.name.removeprefix("mr1_").replace("_", "-") for spec in trainable(names))


def check(config: TrainConfig) -> None:
    """Refuse a configuration that cannot be meant.

    Raises:
        UserError: a value out of its range, or values that contradict each other.
    """
    for name, option in options(config.method).items():
        holds, expected = _RULES.get(name, (None, ""))
        value = getattr(config, name)
        if holds is not None and not holds(value):
            raise UserError(f"{option.flag} {value}: expected {expected}")
    _check_tasks(config)
    _check_sizes(config)
    if isinstance(config, GRPOConfig):
        _check_kl(config)
        _check_rollout(config)
    if isinstance(config, SFTConfig) and config.hasty:
        _check_hasty(config)


def _check_hasty(config: SFTConfig) -> None:
    try:
        shares = hasty.parse_shares(config.hasty)
    except ValueError as error:
        raise UserError(f"--hasty {error}") from None
    synthetic = config.data is None and config.level == 1 and all(spec.synthetic for spec in trainable(config.task))
    if not synthetic or config.target != "solution":
        raise UserError("--hasty shortens the worked solutions of the synthetic tasks at level 1; leave it out with other data or targets")
    known = hasty.FAMILIES
    unknown = [family for family in shares if family not in known]
    if unknown:
        raise UserError(f"--hasty {unknown[0]}: no such question family{nearest(unknown[0], known)}; expected one of {', '.join(known)}")


def _check_tasks(config: TrainConfig) -> None:
    specs = trainable(config.task)
    if not config.model:
        raise UserError("--model is empty: give a checkpoint's folder, a model id, or tiny")
    if config.level != 1 and not any(spec.synthetic for spec in specs):
        raise UserError(f"--level {config.level}: only the synthetic tasks have levels; leave it out, or train on vc-synth or gr-synth")
    if config.images is not None and config.data is None:
        raise UserError(f"--images {config.images} without --data: name the JSON-lines file of questions and golds that belongs to them")
    if config.data is not None and len(specs) > 1:
        raise UserError(f"--data with --task {config.task}: name the one task whose prompt and grader your set is for")


def _check_sizes(config: TrainConfig) -> None:
    if config.micro_prompts > config.prompts_per_step:
        raise UserError(
            f"--micro-prompts {config.micro_prompts}: more than --prompts-per-step {config.prompts_per_step}; 0 takes all at a time"
        )
    if config.warmup_steps >= config.steps and config.warmup_steps:
        raise UserError(f"--warmup-steps {config.warmup_steps} of --steps {config.steps}: the learning rate would never reach its peak")
    if config.lora_alpha and not config.lora_rank:
        raise UserError(f"--lora-alpha {config.lora_alpha} without adapters: give --lora-rank too, or leave it out")
    if config.out.resolve() == Path(config.model).resolve():
        raise UserError(f"--out {config.out} is the starting checkpoint's own folder; give the run a folder of its own")


def _check_kl(config: GRPOConfig) -> None:
    if config.method == "grpo" and config.kl_schedule != "constant":
        raise UserError(
            f"grpo keeps the KL weight constant; --kl-schedule {config.kl_schedule} is what the D of grpo-d is: "
            f"mr1-bench train grpo-d --kl-schedule {config.kl_schedule}"
        )
    KLWeight(config.kl_schedule, config.beta_min, config.beta_max, config.steps, config.kl_target)


def _check_rollout(config: GRPOConfig) -> None:
    if (config.rollout == "vllm-server") != bool(config.vllm_url):
        missing = (
            "the server's address is missing: add --vllm-url http://host:8000" if not config.vllm_url else "it is for --rollout vllm-server"
        )
        raise UserError(f"--rollout {config.rollout}{f' with --vllm-url {config.vllm_url}' if config.vllm_url else ''}: {missing}")
    if config.vllm_url and not re.fullmatch(r"https?://[^/\s]+(:\d{1,5})?/?", config.vllm_url):
        raise UserError(f"--vllm-url {config.vllm_url}: expected an address without a path, as in http://host:8000")
    if config.rollout == "vllm" and config.device.startswith("cuda:") and config.device != "cuda:0":
        number = config.device.removeprefix("cuda:")
        raise UserError(
            f"--device {config.device} with --rollout vllm: vLLM takes the first GPU it sees; set CUDA_VISIBLE_DEVICES={number}"
        )
    if config.vllm_args and config.rollout != "vllm":
        raise UserError(
            f"--vllm-args with --rollout {config.rollout}: it is for --rollout vllm; a server is given its settings when it starts"
        )


def check_here(config: TrainConfig) -> None:
    """Refuse what this machine lacks: files, built data, packages.

    Raises:
        UserError: something is not there; the message says how to get it.
    """
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"--out {config.out} is a file; give a folder")
    if config.data is not None and not config.data.is_file():
        raise UserError(f"--data {config.data}: no such file; give a JSON-lines file with question, gold and image in each line")
    if config.images is not None and not config.images.is_dir():
        raise UserError(f"--images {config.images}: no such folder; give the folder that the images' names in --data start from")
    if config.data is None:
        for spec in trainable(config.task):
            if not spec.synthetic:
                data.parquet_path(spec.data, "train")
    if config.lora_rank:
        _need("peft", "lora", f"--lora-rank {config.lora_rank}")
    if getattr(config, "rollout", "auto") in ("vllm", "vllm-server"):
        vllm_setup.version()
    if config.log_to != "none":
        _need(config.log_to, config.log_to, f"--log-to {config.log_to}")


def _need(package: str, extra: str, flag: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f'{flag} needs the package {package}, which is not installed: pip install "mr1-bench[{extra}]"')
