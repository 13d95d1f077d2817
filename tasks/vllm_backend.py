"""vLLM as the engine of `mr1-bench eval`: the settings with which it answers as Hugging Face's generate does.

lmms-eval drives vLLM; left to its own settings it computes a float32 checkpoint in bfloat16, lets every answer run to 4096 tokens whatever
the task says, and sends other image bytes than its `qwen2_vl`. It must not know tasks, grading or run records. vLLM is imported in
functions only: it takes long, and most installations have none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mr1_bench import records, vllm_setup
from mr1_bench.errors import UserError
from mr1_bench.vllm_setup import CHUNK_LIMIT_S, LOAD_LIMIT_S, limited


def prepare(verbose: bool = False) -> None:
    """Set the environment that vLLM and lmms-eval read; what the user has set stays. Must run before vLLM is imported."""
    vllm_setup.prepare(verbose)
    # lmms-eval's qwen2_vl sends JPEG of quality 85; its vllm would send PNG.
    os.environ.setdefault("LMMS_IMAGE_ENCODE_FORMAT", "JPEG")
    os.environ.setdefault("LMMS_IMAGE_JPEG_QUALITY", "85")


def gpus(arguments: Mapping[str, Any]) -> int:
    """Return how many GPUs the engine of one process takes.

    Raises:
        UserError: a parallel size is no number from 1, or data parallelism is asked of one engine.
    """
    if arguments.get("data_parallel_size", 1) != 1:  # vLLM has none within a process, and lmms-eval's refusal of it comes late
        raise UserError(
            f"--vllm-args data_parallel_size={arguments['data_parallel_size']}: start as many processes instead, each with an engine of "
            "its own: accelerate launch --num_processes N -m mr1_bench eval …"
        )
    sizes = [arguments.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size")]
    for size in sizes:
        if not isinstance(size, int) or size < 1:
            raise UserError(f"--vllm-args: {size!r} as a parallel size; expected a whole number from 1")
    return int(sizes[0] * sizes[1])


def engine_arguments(checkpoint: Path, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's arguments for a checkpoint: computed in the type it was saved in, as Hugging Face's does.

    On a CPU it runs eagerly (compiling takes longer than most evaluations there) with a cache of 2 GiB.

    Args:
        checkpoint: its folder.
        more: arguments that override these.
    """
    import torch

    config = records.read_json(checkpoint / "config.json")
    inner = config.get("text_config") or {}
    dtype = next((kind for part in (config, inner) for key in ("dtype", "torch_dtype") if (kind := part.get(key))), "auto")
    arguments: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "disable_log_stats": True}
    return arguments | vllm_setup.device_arguments(torch.cuda.is_available()) | dict(more)


def generation_arguments(checkpoint: Path) -> str:
    """Return, as lmms-eval's gen_kwargs, the checkpoint's decoding settings that its vllm leaves out and Hugging Face's generate obeys."""
    path = checkpoint / "generation_config.json"
    penalty = records.read_json(path).get("repetition_penalty") if path.is_file() else None
    return f"repetition_penalty={penalty}" if penalty not in (None, 1, 1.0) else ""


def facts(checkpoint: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides an answer on the engine's side, for the run record."""
    chosen = ("VLLM_ENABLE_V1_MULTIPROCESSING", "LMMS_IMAGE_ENCODE_FORMAT", "LMMS_IMAGE_JPEG_QUALITY")
    return {
        "name": "vllm",
        "version": vllm_setup.version(),
        "arguments": dict(arguments),
        "generation": generation_arguments(checkpoint),
        "environment": {name: os.environ[name] for name in chosen if name in os.environ},
    }


def refuse_cut_answers(outputs: Sequence[Any], limit: int) -> None:
    """Refuse answers that end before their limit because vLLM's context was full: they would be graded as if the model had stopped there.

    Raises:
        UserError: there are some.
    """
    answers = [output.outputs[0] for output in outputs]
    cut = sum(answer.finish_reason == "length" and len(answer.token_ids) < limit for answer in answers)
    if cut:
        raise UserError(
            f"{cut} of {len(answers)} answers were cut off by vLLM's max_model_len before the {limit} tokens allowed: raise it, or "
            "make images smaller; nothing of them was kept"
        )


def load(checkpoint: Path, make: Callable[[], Any]) -> Any:
    """Return lmms-eval's model on vLLM.

    Args:
        checkpoint: its folder, for the message.
        make: constructs it.

    Raises:
        UserError: vLLM cannot load the checkpoint, or has too little memory for it.
    """
    with limited(f"vLLM could not serve {checkpoint}: loading", LOAD_LIMIT_S):
        model = make()
    model.tokenizer = model.client.get_tokenizer()
    chat = model.client.chat

    def whole_answers(messages: Any, sampling_params: Any, **more: Any) -> Any:
        # Its own bar divides by the time that a silenced bar does not keep.
        outputs = chat(messages, sampling_params, **more | {"use_tqdm": False})
        each = sampling_params if isinstance(sampling_params, list) else [sampling_params]
        refuse_cut_answers(outputs, min(one.max_tokens for one in each))
        return outputs

    model.client.chat = whole_answers
    generate = model.generate_until

    def generate_until(requests: Sequence[Any]) -> Any:
        with limited("generation with vLLM", CHUNK_LIMIT_S):
            return generate(requests)

    model.generate_until = generate_until
    return model
