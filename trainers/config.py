"""The settings of each trainer: one frozen dataclass a trainer, the single home of every hyper-parameter.

Command-line flags and recipe files are generated from these fields (`flags`), and the whole resolved object is written to `run.json`.
Defaults follow R1-V's recipe where it states a value; the comments of the shipped recipes mark what is assumed. It must not know torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mr1_bench.trainers.schedule import Schedule

Method = Literal["sft", "grpo", "grpo-d"]
KLEstimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["sequence", "token"]


def _option(default: Any, help_text: str) -> Any:
    """A field with a default and the help text of its flag."""
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """What all trainers share."""

    method: Method = field(metadata={"help": "sft, grpo or grpo-d", "flag": False})
    task: str = field(metadata={"help": "task to train on: vc, gr, vc-synth or gr-synth; several joined by commas take turns"})
    model: str = field(metadata={"help": "starting checkpoint: a folder or a model id; `tiny` is the embedded model"})
    out: Path = field(metadata={"help": "run folder; run the same command again to resume"})

    data: Path | None = _option(None, "train on your own JSON-lines file (question, gold, image, perhaps solution), not on the task's data")
    images: Path | None = _option(None, "folder of the images that --data names")
    level: int = _option(1, "difficulty of a synthetic task, 1 to 5")
    train_items: int = _option(0, "train on the first N items; 0: all (of a synthetic task: 4000)")
    seed: int = _option(0, "seed of data order, sampling and adapter initialisation")

    steps: int = _option(100, "batches of prompts to train on")
    prompts_per_step: int = _option(8, "prompts in a batch")
    micro_prompts: int = _option(0, "prompts computed at a time, to save memory; 0: all of the batch")
    max_new_tokens: int = _option(512, "tokens of a completion at most; longer ones are cut off")
    max_prompt_tokens: int = _option(4096, "longest prompt, image tokens among them; a longer one is refused")
    max_pixels: int = _option(401408, "images are scaled down to at most this many pixels")

    lr: float = _option(1e-6, "peak learning rate")
    lr_schedule: Literal["constant", "linear", "cosine"] = _option("linear", "course after the warm-up, down to 0 unless constant")
    warmup_steps: int = _option(0, "steps over which the learning rate rises linearly from 0")
    weight_decay: float = _option(0.0, "decoupled weight decay (AdamW) of matrices")
    adam_beta1: float = _option(0.9, "AdamW's first decay rate")
    adam_beta2: float = _option(0.999, "AdamW's second decay rate")
    max_grad_norm: float = _option(1.0, "gradients are scaled down to this norm")

    dtype: Literal["float32", "bfloat16"] = _option("float32", "precision of the model; with bfloat16 the optimiser keeps float32 weights")
    gradient_checkpointing: bool = _option(False, "recompute activations in the backward pass: less memory, about a third slower")
    freeze_vision: bool = _option(False, "do not train the vision tower")
    lora_rank: int = _option(0, "train low-rank adapters of this rank instead of all weights; 0: all weights")
    lora_alpha: int = _option(0, "scale of the adapters; 0: twice the rank")
    engine: Literal["compact", "trl"] = _option("compact", "compact: one process; trl: TRL's trainers, on as many GPUs as are launched")
    device: str = _option("auto", "auto, cpu, cuda or cuda:N")
    trust_remote_code: bool = _option(False, "run code that comes with a model; only for models you trust")

    eval_every: int = _option(50, "evaluate on validation and test items every N steps, and at the end; 0: never")
    eval_items: int = _option(200, "validation items, and test items, of each evaluation")
    save_every: int = _option(50, "write a checkpoint every N steps, and at the end")
    keep: int = _option(2, "checkpoints to keep, beside the best by validation accuracy")
    show_every: int = _option(10, "print and keep a few sampled completions every N steps; 0: never")
    log_to: Literal["none", "tensorboard", "trackio"] = _option("none", "send the metrics there too")
    stop_on_alarm: bool = _option(False, "save and stop with exit code 3 at the first alarm")

    def asdict(self) -> dict[str, Any]:
        """All fields, as JSON values."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig(TrainConfig):
    """Supervised fine-tuning on the completion only."""

    target: Literal["solution", "answer"] = _option("solution", "what to learn: worked solution and answer, or the answer alone")
    hasty: str = _option("", "family=share,...: this share of these question families' solutions stops a step early (synthetic, level 1)")
    lr: float = _option(2e-5, "peak learning rate")


@dataclass(frozen=True, kw_only=True, slots=True)
class GRPOConfig(TrainConfig):
    """GRPO, and GRPO-D, which is GRPO with a KL schedule that is not constant."""

    num_generations: int = _option(8, "G: completions sampled for each prompt")
    temperature: float = _option(1.0, "sampling temperature")
    inner_updates: int = _option(1, "μ: optimisation steps on each batch of completions")
    clip: float = _option(0.2, "ε of the clipped surrogate")
    format_weight: float = _option(1.0, "w: reward = accuracy + w * format")
    scale_advantages: bool = _option(True, "divide advantages by the group's standard deviation, as published")
    loss_mean: Aggregation = _option("sequence", "mean over each completion first, as published, or over all tokens")

    kl_schedule: Schedule = _option("constant", "course of the KL weight β; constant is GRPO")
    beta_min: float = _option(0.0, "lower bound of β; it may be 0")
    beta_max: float = _option(0.04, "upper bound of β, and its value where it is constant")
    kl_horizon: float = _option(1.0, "share of the steps after which β has reached its upper bound")
    kl_target: float = _option(0.05, "KL that the adaptive schedule steers to, nats a token")
    kl_estimator: KLEstimator = _option("k3", "estimator of the KL at a token")

    rollout: Literal["auto", "shared", "plain", "vllm", "vllm-server"] = _option(
        "auto", "shared: prompt and image once a group; plain: by transformers alone; auto: shared if possible; vllm: by vLLM"
    )
    vllm_url: str = _option("", "address of the server of --rollout vllm-server, as in http://host:8000")
    vllm_args: str = _option("", "settings of vLLM's engine, KEY=VALUE,..., as in gpu_memory_utilization=0.4")
    importance_cap: float = _option(2.0, "vLLM's tokens are weighted by p_trainer / p_vllm, at most so much")
    mismatch_limit: float = _option(0.1, "stop where log-probabilities of trainer and vLLM differ by more, nats a token; 0: never")
