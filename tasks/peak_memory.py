"""The most memory that an evaluation took: on a CUDA device what PyTorch had allocated there, else what the process had resident.

This module must not know models or tasks.
"""

from __future__ import annotations

from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def begin(device: str | None) -> bool:
    """Let the peak begin anew; return whether it can be measured.

    Args:
        device: where the model is, as PyTorch names it; None where another engine holds it.
    """
    if device is None:
        return False
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")
    except OSError:  # not Linux, or not allowed
        return False
    return True


def peak(device: str) -> int:
    """Return the peak since `begin`, in bytes."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024
