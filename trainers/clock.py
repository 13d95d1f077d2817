"""Where a step's time goes, and the seeds of its random draws: both functions of the step alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Wall-clock seconds of the named phases of a step; on a CUDA device each phase waits for the device to finish it."""

    def __init__(self, device: torch.device) -> None:
        """Start the clock."""
        self._cuda = device.type == "cuda"
        self._start = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        start = time.perf_counter()
        yield
        if self._cuda:
            torch.cuda.synchronize()
        self._phases[phase] = self._phases.get(phase, 0.0) + time.perf_counter() - start

    def times(self) -> dict[str, float]:
        """`time_PHASE` of each phase and `time_step` since the start, seconds."""
        return {f"time_{phase}": seconds for phase, seconds in self._phases.items()} | {"time_step": time.perf_counter() - self._start}


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from what a random draw is for, such as (seed, step, "rollout"): nothing random has to be saved for a resume."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded(device: torch.device, *parts: int | str) -> torch.Generator:
    """A fresh generator on a device, seeded by `seed_of`."""
    return torch.Generator(device).manual_seed(seed_of(*parts))
