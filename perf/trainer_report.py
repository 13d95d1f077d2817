"""What `trainer.py` measured, as lines of text, and which of the targets it misses. This file must not know how anything is measured."""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

import torch

TARGET_RATIO, TARGET_SMALLEST, GOAL_RATIO = 2.0, 2.7, 3.0
TARGET_UTILISATION = 0.40
PHASES = ("processing", "rollout", "reward", "reference", "policy", "backward", "optimizer")


def report(found: dict[str, Any]) -> str:
    """One shape's measurements as lines of text."""
    split, least, update = found["split_ms"], found["floor"], found["update"]
    lines = [
        f"{found['shape']}: {found['parameters'] / 1e6:.2f}M parameters, prompts of {found['prompt_tokens']:.0f} tokens, "
        f"completions of {found['completion_tokens']}"
    ]
    if "ratio" in found:
        rounds = found["ratio_rounds"]
        lines += [
            f"  TRL {found['trl_ms']:.0f} ms{' with checkpointing' if found['trl_checkpointing'] else ''}, ours {found['ours_ms']:.0f} ms: "
            f"ratio {found['ratio']:.2f} (rounds {min(rounds):.2f} to {max(rounds):.2f}; goal {GOAL_RATIO})",
            "  rounds: " + " ".join(f"{ratio:.2f}" for ratio in rounds),
        ]
    else:
        lines.append(f"  ours {found['ours_ms']:.0f} ms")
    lines += [
        "  split of our step, ms: " + ", ".join(f"{phase} {split[phase]:.1f}" for phase in PHASES),
        f"  floor: {least['gflop']:.2f} GFLOP; at {least['gflops_large']:.0f} GFLOP/s (large products) {least['floor_large_ms']:.1f} ms, "
        f"its own products alone {least['floor_own_ms']:.1f} ms ({least['gflops_own']:.0f} GFLOP/s); "
        f"our step is {least['distance_large']:.2f} and {least['distance_own']:.2f} times these",
        f"  update (encode, policy, backward): {update['forward_backward_ms']:.1f} ms, "
        f"{100 * update['utilisation_of_measured_rate']:.0f} % of the large-product rate"
        + (
            f"; model FLOPs utilisation {100 * update['utilisation']:.1f} %, with the optimiser "
            f"{100 * update['utilisation_with_optimizer']:.1f} % (target {100 * TARGET_UTILISATION:.0f} %)"
            if "utilisation" in update
            else ""
        ),
    ]
    if "peak_mib" in found:
        lines.append("  peak memory, MiB: " + ", ".join(f"{side} {size:.0f}" for side, size in found["peak_mib"].items()))
    return "\n".join(lines)


def missed(found: dict[str, Any]) -> list[str]:
    """Targets that a shape's measurements miss."""
    faults = []
    target = TARGET_SMALLEST if found["shape"] == "small" else TARGET_RATIO
    if found.get("ratio", target) < target:
        faults.append(f"ratio {found['ratio']:.2f}, target {target}")
    if found["update"].get("utilisation", 1.0) < TARGET_UTILISATION:
        faults.append(f"utilisation {100 * found['update']['utilisation']:.1f} %, target {100 * TARGET_UTILISATION:.0f} %")
    peak = found.get("peak_mib", {})
    if "trl" in peak and peak["ours"] > peak["trl"]:
        faults.append(f"peak memory {peak['ours']:.0f} MiB, TRL's {peak['trl']:.0f} MiB")
    return [f"{found['shape']}: {fault}" for fault in faults]


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """What the numbers were measured on."""
    import transformers

    found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    if importlib.util.find_spec("trl"):
        from importlib.metadata import version

        found["trl"] = version("trl")
    on_gpu = device.type == "cuda"
    return found | {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "threads": threads,
    }
