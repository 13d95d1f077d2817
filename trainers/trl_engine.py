"""`--engine trl`: the same run on TRL's trainers, in one process or in as many as `accelerate launch` starts, on one machine or several.

The first process has the run folder to itself: it is a `loop.Run`, which logs, evaluates, saves and stops as ever. What that takes of all
processes (answers to held-out items, weights that lie in pieces) it orders from them; between orders they train. This file also has our
settings in TRL's terms. How TRL is made to compute our step is the business of `trl_trainers`, `trl_grpo` and `trl_sft`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from mr1_bench import vllm_setup
from mr1_bench.errors import UserError
from mr1_bench.records import read_json, write_json
from mr1_bench.trainers import alarms, checkpoints, loop, memory, models
from mr1_bench.trainers.config import GRPOConfig, SFTConfig, TrainConfig
from mr1_bench.trainers.engine import stop_tokens
from mr1_bench.trainers.items import open_items
from mr1_bench.trainers.metrics import MetricsLog, Row
from mr1_bench.trainers.mismatch import MismatchError
from mr1_bench.trainers.optimizer import NonFiniteError
from mr1_bench.trainers.trl_crew import Crew

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

    from mr1_bench.trainers.evaluation import HeldOut
    from mr1_bench.trainers.grpo import Sample
    from mr1_bench.trainers.trl_grpo import GRPO
    from mr1_bench.trainers.trl_sft import SFT

_GONE = re.compile(r"closed by peer|reset by peer|Connection refused|Timed out", re.IGNORECASE)  # gloo's errors have no type of their own


def train(config: TrainConfig) -> int:
    """Train as `loop.train`, in this process together with those that the launcher has started beside it.

    Raises:
        UserError: as `loop.train`; or TRL is not installed, a setting means nothing to it, or the run was begun with another number of
            processes.
    """
    needed = {"trl": "scale", "accelerate": "scale"} | ({"vllm": "vllm"} if getattr(config, "rollout", "") == "vllm" else {})
    for package, extra in needed.items():
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--engine trl needs the package {package}, which is not installed: pip install 'mr1-bench[{extra}]'")
    try:
        code = _train(config)
    except RuntimeError as error:
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        if alone or not (isinstance(error, dist.DistError) or _GONE.search(str(error))):
            raise
        words = " ".join(str(error).split())[:200]
        raise UserError(f"another process of this run is gone ({words}). What was saved is kept: run the same command again") from error
    finally:
        checkpoints.close_run(config.out)
    with_vllm = getattr(config, "rollout", "") == "vllm"  # in this process, where it ends its own groups last
    if dist.is_initialized() and not with_vllm:
        dist.destroy_process_group()
    return code


def _train(config: TrainConfig) -> int:
    from accelerate import PartialState

    here = PartialState(cpu=config.device == "cpu" or not torch.cuda.is_available())
    crew = Crew(here.process_index, here.num_processes)
    crew.phase(lambda: _refuse(config, crew.size, sharding(here)))
    available = min((free for free in crew.everyone(memory.available_memory(here.device)) if free is not None), default=None)
    sets = loop.Sets(*(open_items(config, split) for split in ("train", "validation", "test")))
    # What is trained is kept in float32, and the passes are computed in the precision that is asked for.
    dtype = config.dtype if config.lora_rank else "float32"
    loaded = models.load(replace(config, device="cpu", gradient_checkpointing=False, dtype=dtype))
    if not loaded.shares:
        raise UserError(f"--engine trl trains models of the Qwen2-VL family, and --model {config.model} is none; use --engine compact")
    run = TRLRun(config, loaded, sets, crew, here, available) if crew.leads else None
    start = crew.phase(lambda: run and run.open())
    make(config, loaded, sets, crew, run, start).go()
    return int(crew.phase(lambda: run and run.close()))


def make(config: TrainConfig, loaded: models.Loaded, sets: loop.Sets, crew: Crew, run: TRLRun | None, start: dict[str, Any]) -> GRPO | SFT:
    """The trainer of one process; `run` is given to the first one alone, and what the run has come to (`TRLRun.open`) to all."""
    if isinstance(config, GRPOConfig):
        from mr1_bench.trainers.trl_grpo import GRPO

        return GRPO(config, loaded, sets, crew, run, start)
    from mr1_bench.trainers.trl_sft import SFT

    assert isinstance(config, SFTConfig)
    return SFT(config, loaded, sets, crew, run, start)


def sharding(here: PartialState) -> memory.Sharding:
    """What the launcher's configuration divides among the processes; accelerate does FSDP2's part on GPUs only, and falls back to DDP."""
    if _asked("USE_DEEPSPEED") == "true":
        return "all" if _asked("DEEPSPEED_ZERO_STAGE") == "3" else "optimizer"
    if here.distributed_type == "MULTI_CPU":
        return "none"
    return "all" if _asked("USE_FSDP") == "true" else "none"


def _asked(name: str) -> str:
    """What the launcher's configuration asks accelerate for."""
    return os.environ.get(f"ACCELERATE_{name}", "").lower()


def rows_of(config: TrainConfig, size: int) -> tuple[int, int]:
    """Sequences that a process computes at a time, and how many times a step.

    Raises:
        UserError: a step cannot be divided so.
    """
    group = config.num_generations if isinstance(config, GRPOConfig) else 1
    rows = config.prompts_per_step * group
    if rows % size:
        each = f" of {group} completions" if group > 1 else ""
        raise UserError(f"--prompts-per-step {config.prompts_per_step}{each} cannot be divided among {size} processes; choose a multiple")
    own = rows // size
    at_once = min(config.micro_prompts * group or own, own)
    if own % at_once:
        raise UserError(
            f"--micro-prompts {config.micro_prompts} is {at_once} sequences, and a process has {own} a step, no multiple of that"
        )
    return at_once, own // at_once


def arguments(config: TrainConfig, loaded: models.Loaded, crew: Crew, steps: int) -> Any:
    """The settings in TRL's terms, for some steps. β, learning rate and seeds are set at each step."""
    trl: Any = importlib.import_module("trl")

    at_once, times = rows_of(config, crew.size)
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    common: dict[str, Any] = {
        "output_dir": str(config.out),
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": times,
        "learning_rate": config.lr,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.dtype == "bfloat16",
        "gradient_checkpointing": config.gradient_checkpointing,
        "ddp_find_unused_parameters": False,  # each prompt has its picture, so each weight has a gradient
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if not isinstance(config, GRPOConfig):
        return trl.SFTConfig(max_steps=steps, max_length=None, train_sampling_strategy="sequential", **common)
    stops, _ = stop_tokens(loaded)
    return trl.GRPOConfig(
        max_steps=steps * config.inner_updates,
        num_generations=config.num_generations,
        num_iterations=config.inner_updates,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        scale_rewards="group" if config.scale_advantages else "none",
        beta=0.0,
        shuffle_dataset=False,
        **common | {"logging_steps": config.inner_updates} | _vllm(config, stops),
    )


def _vllm(config: GRPOConfig, stops: tuple[int, ...]) -> dict[str, Any]:
    """Who draws the completions, and where they end."""
    trl: Any = importlib.import_module("trl")

    if config.rollout not in ("vllm", "vllm-server"):
        return {"generation_kwargs": {"eos_token_id": list(stops)}}
    known = trl.GRPOConfig.__dataclass_fields__
    given = {f"vllm_{key}": value for key, value in vllm_setup.parse_arguments(config.vllm_args).items()}
    if unknown := [name for name in given if name not in known]:
        raise UserError(
            f"--vllm-args: TRL has no setting {unknown[0]}; --engine trl takes gpu_memory_utilization, tensor_parallel_size and the like"
        )
    return given | {
        "use_vllm": True,
        "vllm_mode": "server" if config.vllm_url else "colocate",
        "vllm_server_base_url": config.vllm_url or None,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": config.importance_cap,
        "generation_kwargs": {"stop_token_ids": list(stops), "ignore_eos": True},  # what ends one is the policy's own
    }


def _refuse(config: TrainConfig, size: int, divided: memory.Sharding) -> None:
    """Refuse what TRL cannot honour, and a run that was begun with another number of processes; nothing is loaded yet."""
    rows_of(config, size)
    if config.device.startswith("cuda:"):
        raise UserError(f"--device {config.device}: with --engine trl the launcher assigns the GPUs; leave it out")
    if divided != "none" and config.lora_rank:
        raise UserError(
            f"--lora-rank {config.lora_rank} with FSDP2 or DeepSpeed: adapters need nothing divided, so launch with "
            "configs/accelerate/ddp-*.yaml, or train all weights: --lora-rank 0 --lora-alpha 0, and about a tenth of --lr"
        )
    if _asked("USE_DEEPSPEED") == "true" and (_asked("DEEPSPEED_ZERO_STAGE") not in ("2", "3") or _offloads()):
        raise UserError("--engine trl takes DeepSpeed with ZeRO stage 2 or 3 and nothing offloaded (configs/accelerate/zero*.yaml)")
    unlike = {"VERSION": "2", "OFFLOAD_PARAMS": "false", "CPU_RAM_EFFICIENT_LOADING": "false"}
    if _asked("USE_FSDP") == "true" and any(os.environ.get(f"FSDP_{name}", "").lower() != value for name, value in unlike.items()):
        raise UserError("--engine trl takes FSDP of version 2, nothing offloaded, each process loading (configs/accelerate/fsdp2-*.yaml)")
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # the launcher's word is the stronger one in TRL
    if asked not in ("no", "bf16" if config.dtype == "bfloat16" else "no"):
        raise UserError(
            f"--dtype {config.dtype}, but the launcher asks for {asked}: give --dtype bfloat16, or launch with --mixed_precision no"
        )
    if isinstance(config, GRPOConfig) and config.rollout == "shared":
        raise UserError("--rollout shared: TRL computes image and prompt once a completion; use --rollout auto, or --engine compact")
    record = read_json(config.out / "run.json") if (config.out / "run.json").is_file() else {}
    begun = record.get("identity", {}).get("processes") if isinstance(record, dict) else None
    if begun is not None and begun != size:
        raise UserError(
            f"--out {config.out} was begun with {begun} processes, and now there are {size}: launch it with --num_processes {begun}, or "
            "choose another --out"
        )


def _offloads() -> bool:
    return any(_asked(f"DEEPSPEED_OFFLOAD_{part}_DEVICE") not in ("", "none") for part in ("OPTIMIZER", "PARAM"))


class TRLRun(loop.Run):
    """The run as its first process keeps it."""

    def __init__(
        self, config: TrainConfig, loaded: models.Loaded, sets: loop.Sets, crew: Crew, here: PartialState, available: int | None
    ) -> None:
        super().__init__(config, loaded, sets)
        self._crew, self._device, self._sharding, self._least_memory = crew, here.device, sharding(here), available
        self._weights: dict[str, Tensor] = {}
        self._tensors: dict[str, Tensor] = {}
        self._adapted: float | None = None
        self._code = 0

    def open(self) -> dict[str, Any]:
        """Check the machine, take over the run folder, and give the state to go on from."""
        self.check_memory()
        self._bytes = super()._export_bytes()  # before the weights are divided
        resumed = checkpoints.open_run(self._config, loop.identity(self._config, self._loaded) | {"processes": self._crew.size})
        self.check_space()
        if resumed is not None:
            self._tensors, state = checkpoints.load_state(resumed)
            self._done = self._saved = state["step"]
            self._adapted = state["adapted"]
        self._log = MetricsLog(self._config.out, self._config.log_to, steps=self._config.steps)
        self._log.truncate_after(self._done)
        return {"step": self._done, "adapted": self._adapted}

    def take_tensors(self) -> dict[str, Tensor]:
        """The optimiser's state to go on from; it is given once."""
        tensors, self._tensors = self._tensors, {}
        return tensors

    def begin(self) -> None:
        """Evaluate the start."""
        if self._done == 0 and self._config.eval_every:
            self._evaluate(self._log)

    def took(self, row: Row, samples: list[Sample], adapted: float | None) -> bool:
        """Write down a step, and do what is due after it; gives whether to stop."""
        self._done, self._adapted = row["step"], adapted
        self._log.append(row)
        raised = self._after_step(self._log, samples)
        if raised and self._config.stop_on_alarm:
            self._code = self._stop(self._log, raised[0].message)
        return self._code != 0

    def failed(self, error: NonFiniteError | MismatchError, *, intact: bool) -> None:
        """Stop at a step that could not be taken."""
        causes = f". {alarms.not_finite(self._config)}" if isinstance(error, NonFiniteError) else ""
        self._code = self._stop(self._log, f"step {self._done + 1}: {error}{causes}", intact=intact)

    def close(self) -> int:
        """End the run; gives the exit code."""
        self._log.close()
        if self._code == 0:
            checkpoints.finish_run(self._config, "finished", self._results())
            self._print_summary()
        return self._code

    def _available(self) -> int | None:
        return self._least_memory

    def _workload(self, prompt_tokens: int | None) -> memory.Workload:
        load = memory.workload(
            self._loaded.model,
            self._config,
            shared=False,
            prompt_tokens=prompt_tokens,
            processes=self._crew.size,
            sharding=self._sharding,
        )
        return replace(load, cuda=self._device.type == "cuda")

    def _export_bytes(self) -> int:
        return self._bytes

    def _answer(self, split: str) -> HeldOut:
        answers: HeldOut = self._crew.order("answer", split)
        return answers

    def _save(self) -> None:
        if self._saved != self._done:
            self._weights, self._tensors = self._crew.order("gather")
            super()._save()
            self._weights, self._tensors = {}, {}

    def _state(self) -> tuple[dict[str, Tensor], float | None]:
        return self._tensors, self._adapted

    def _export(self, folder: Path) -> None:
        if self._loaded.peft is not None:
            super()._export(folder)
        else:
            dtype = getattr(torch, self._config.dtype)
            models.export(self._loaded, folder, {name: value.to(dtype) for name, value in self._weights.items()})
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings.pop("use_cache", None)  # transformers' Trainer has switched it off in the model's configuration
        write_json(folder / "config.json", settings | {"dtype": self._config.dtype})
