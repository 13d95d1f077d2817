"""Completions drawn by vLLM: an engine beside the trainer that is given the policy's weights before every draw.

`Colocated` is an engine in the trainer's own process, `vllm_server.Server` one on another device or machine; both give the tokens and the
log-probabilities that vLLM drew them with, from which `grpo` corrects for what the two engines compute differently. Weights never go
through a disk, and every cache that holds something computed with the old ones is emptied. This file must not know rewards or losses. vLLM
is imported in functions only.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from mr1_bench import vllm_setup
from mr1_bench.errors import UserError
from mr1_bench.model_files import resolve_model
from mr1_bench.trainers.batches import limit_size
from mr1_bench.trainers.clock import seed_of
from mr1_bench.trainers.config import GRPOConfig
from mr1_bench.trainers.engine import stop_tokens
from mr1_bench.trainers.prefix import Completions
from mr1_bench.vllm_setup import CHUNK_LIMIT_S, LOAD_LIMIT_S, limited

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from mr1_bench.trainers.batches import Part
    from mr1_bench.trainers.config import TrainConfig
    from mr1_bench.trainers.models import Loaded

SETTINGS = {
    "model": "--model",
    "dtype": "--dtype",
    "max_model_len": "--max-prompt-tokens and --max-new-tokens",
    "trust_remote_code": "--trust-remote-code",
} | dict.fromkeys(("seed", "logprobs_mode", "load_format"), "mr1-bench itself")
SETTINGS |= dict.fromkeys(
    ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
    "where it runs: beside the trainer on one GPU (a server may have more)",
)
"""Arguments of vLLM that training decides, and by what."""
_GPU_SHARE = 0.3  # of the GPU's memory for vLLM's weights and cache, where nothing else is asked for: the trainer needs the larger part
_ON_CPU = {
    # Whole blocks of a prompt are cached, and the usual block of 128 tokens there is longer than many a prompt.
    "block_size": 32,
    # A seeded request whose prompt is split between two batches fails there: its random state would have to be turned back.
    "enable_chunked_prefill": False,
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """G completions after each prompt of a part, and the log-probability, in nats, that the engine drew each token with; 0 at padding."""

    completions: Completions
    logprobs: Float[Tensor, "N T"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion as vLLM gives it, end token included; `prompt` as vLLM read it, image tokens expanded."""

    prompt: Sequence[int]
    tokens: Sequence[int]
    logprobs: Sequence[float]


class Sampler(Protocol):
    """What draws completions in place of the policy itself."""

    def push(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the policy's weights, and forget what was computed with others."""

    def sample(self, parts: Sequence[Part], step: int) -> list[Drawn]:
        """Draw the completions of a step's parts, all at once; the same weights, step and seed give the same ones."""

    def close(self) -> None:
        """Let go of the engine."""


@contextmanager
def opened(loaded: Loaded, config: TrainConfig) -> Iterator[Sampler | None]:
    """The sampler that a configuration asks for, for the length of a `with` block; None where the policy draws by itself.

    Raises:
        UserError: vLLM is not installed, cannot load the checkpoint or has too little memory, or its server cannot be used.
    """
    if not isinstance(config, GRPOConfig) or config.rollout not in ("vllm", "vllm-server"):
        yield None
        return
    from mr1_bench.trainers.vllm_server import Server

    sampler = Colocated(loaded, config) if config.rollout == "vllm" else Server(loaded, config)
    try:
        yield sampler
    finally:
        sampler.close()


class Colocated:
    """vLLM in this process, on the trainer's device."""

    def __init__(self, loaded: Loaded, config: GRPOConfig) -> None:
        """Load the starting checkpoint into vLLM.

        Raises:
            UserError: vLLM cannot load it, or has too little memory.
        """
        self._loaded, self._config = loaded, config
        vllm_setup.prepare()
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over within the process
        self._complete = False
        cuda = loaded.device.type == "cuda"
        arguments: dict[str, Any] = {
            "model": str(resolve_model(config.model)),
            "dtype": config.dtype,
            "seed": 0,
            "max_model_len": longest(loaded, config),
            # After the temperature, as the trainer's own log-probabilities are.
            "logprobs_mode": "processed_logprobs",
            "trust_remote_code": config.trust_remote_code,
            "enable_prefix_caching": True,
            "generation_config": "vllm",
            "limit_mm_per_prompt": {"image": 1} | ({"video": 0} if loaded.shares else {}),
            "mm_processor_kwargs": image_sizes(loaded, config) or None,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        arguments |= vllm_setup.device_arguments(cuda) | ({"gpu_memory_utilization": _GPU_SHARE} if cuda else _ON_CPU)
        arguments |= vllm_setup.parse_arguments(config.vllm_args, SETTINGS)
        with limited(f"vLLM could not serve {config.model}: loading", LOAD_LIMIT_S):
            import transformers
            from vllm import LLM, SamplingParams

            transformers.logging.set_verbosity_error()  # it warns of how videos are processed
            self._engine = LLM(**arguments)
            self._parameters = SamplingParams

    def push(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights from memory, through vLLM's own loader, which splits and joins them as its layers need."""
        with limited("giving vLLM the new weights", CHUNK_LIMIT_S):
            if not self._complete:
                self._engine.apply_model(_poison)
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
            if not self._complete:
                self._refuse_missing()
            # Keys and values of prompts, and encoded images, of which the loader empties the worker's store and not the scheduler's list.
            if not self._engine.reset_prefix_cache():
                raise RuntimeError("its prefix cache, which holds keys and values of the old weights, could not be emptied")
            self._engine.llm_engine.reset_encoder_cache()

    def _refuse_missing(self) -> None:
        """Refuse a model of which vLLM's loader does not take every weight: it only logs what it leaves as it was.

        Raises:
            UserError: there are such weights.
        """
        (missing,) = self._engine.apply_model(_poisoned)
        if missing:
            raise UserError(
                f"vLLM did not take {len(missing)} of the policy's weights, {missing[0]} for one: its samples would not be the policy's"
            )
        self._complete = True

    def sample(self, parts: Sequence[Part], step: int) -> list[Drawn]:
        """Draw with the prompt computed once a group: vLLM caches it."""
        decoding = sampling(self._loaded, self._config)
        asked = [(text, item) for part in parts for text, item in zip(part.texts, part.items, strict=True)]
        prompts = [{"prompt": text, "multi_modal_data": {"image": item.image.convert("RGB")}} for text, item in asked]
        settings = [self._parameters(**decoding, logprobs=0, detokenize=False, seed=one) for one in seeds(self._config, step, parts)]
        with limited("drawing completions with vLLM", CHUNK_LIMIT_S):
            outputs = self._engine.generate(prompts, settings, use_tqdm=False)
        return collect(self._loaded, parts, [[_answer(output, one) for one in output.outputs] for output in outputs])

    def close(self) -> None:
        """End the engine."""
        self._engine.llm_engine.engine_core.shutdown()


def _poison(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data.fill_(torch.nan)


def _poisoned(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.is_floating_point() and parameter.isnan().any()]


def reserved_memory(config: TrainConfig, device: torch.device) -> int:
    """Bytes of the trainer's device that vLLM will take beside it."""
    if not isinstance(config, GRPOConfig) or config.rollout != "vllm" or device.type != "cuda":
        return 0
    share = vllm_setup.parse_arguments(config.vllm_args, SETTINGS).get("gpu_memory_utilization", _GPU_SHARE)
    return int(share * torch.cuda.get_device_properties(device).total_memory)


def longest(loaded: Loaded, config: GRPOConfig) -> int:
    """Tokens of the longest prompt and completion, as far as the model has positions."""
    settings: Any = loaded.model.config
    room = getattr(settings.get_text_config(), "max_position_embeddings", None)
    needed = config.max_prompt_tokens + config.max_new_tokens
    return needed if room is None else min(needed, int(room))


def sampling(loaded: Loaded, config: GRPOConfig) -> dict[str, Any]:
    """The sampling parameters with which vLLM draws from the policy as it is, whatever the checkpoint's generation config says."""
    plain = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    stop, _ = stop_tokens(loaded)
    limits = {"max_tokens": config.max_new_tokens, "stop_token_ids": list(stop), "ignore_eos": True}  # what ends one is the policy's own
    return {"n": config.num_generations, "temperature": config.temperature} | plain | limits


def seeds(config: GRPOConfig, step: int, parts: Sequence[Part]) -> list[int]:
    """The seed of each prompt's completions in a step; an item that is twice in a batch has two."""
    seen: Counter[str] = Counter()
    found = []
    for item in (item for part in parts for item in part.items):
        found.append(seed_of(config.seed, step, "rollout", item.id, seen[item.id]))
        seen[item.id] += 1
    return found


def image_sizes(loaded: Loaded, config: GRPOConfig) -> dict[str, Any]:
    """The trainer's limits of an image's size, as settings of the processor, which is the same in vLLM."""
    return {"size": limit_size(loaded.processor.image_processor, config.max_pixels)} if loaded.shares else {}


def collect(loaded: Loaded, parts: Sequence[Part], groups: Sequence[Sequence[Answer]]) -> list[Drawn]:
    """Put vLLM's answers together: one group a prompt, in the order of the parts and their prompts.

    Raises:
        UserError: vLLM read a prompt as other tokens than the trainer does.
    """
    left = iter(groups)
    return [_collect(loaded, part, [next(left) for _ in part.items]) for part in parts]


def _collect(loaded: Loaded, part: Part, groups: Sequence[Sequence[Answer]]) -> Drawn:
    if part.prompts is not None:
        for ids, mask, item, group in zip(part.prompts.ids, part.prompts.mask, part.items, groups, strict=True):
            ours, theirs = ids[mask].tolist(), list(group[0].prompt)
            if ours != theirs:
                raise UserError(
                    f"{item.id}: vLLM reads the prompt as {len(theirs)} tokens that are not the trainer's {len(ours)}; does it serve "
                    f"{loaded.name} with that checkpoint's own tokenizer, chat template and image processor?"
                )
    answers = [answer for group in groups for answer in group]
    _, pad = stop_tokens(loaded)
    completions = Completions.join([answer.tokens for answer in answers], pad, loaded.device)
    logprobs = torch.zeros(completions.ids.shape)
    for row, answer in enumerate(answers):
        logprobs[row, : len(answer.logprobs)] = torch.tensor(answer.logprobs)
    return Drawn(completions, logprobs.to(loaded.device))


def _answer(output: Any, one: Any) -> Answer:
    logprobs = [table[token].logprob for table, token in zip(one.logprobs, one.token_ids, strict=True)]
    return Answer(output.prompt_token_ids, one.token_ids, logprobs)
