"""Procedural twins of both tasks: rendered scenes to count in, and geometry diagrams, with exact answers by construction.

`make_item` is the only door. Items are deterministic in (task, split, level, index, seed), train, validation and test are disjoint by
construction (each owns a part of the space of scenes, or of givens), and nothing is read from disk or network. This package must not know
prompts, graders or trainers.
"""

from __future__ import annotations

import io

from mr1_bench.synth.item import DEFAULT_SIZE, FAMILIES, LEVELS, SPLITS, Family, Split, SynthItem

__all__ = ["DEFAULT_SIZE", "FAMILIES", "LEVELS", "SPLITS", "Family", "Split", "SynthItem", "image_png", "make_item"]


def make_item(task: Family, split: Split, level: int, index: int, seed: int = 0) -> SynthItem:
    """Generate one item; the same arguments always give the same question, gold and solution.

    Args:
        task: `vc` (counting) or `gr` (geometry).
        split: `train`, `validation` or `test`.
        level: difficulty, 1 (default tasks) to 5.
        index: position in the endless sequence of the split, from 0.
        seed: another endless sequence; splits stay disjoint across seeds.

    Raises:
        ValueError: an argument outside these ranges.
    """
    if task not in FAMILIES:
        raise ValueError(f"unknown synthetic task {task!r}: use one of {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the synthetic {task} task: use one of {', '.join(SPLITS)}")
    if level not in LEVELS:
        raise ValueError(
            f"level {level!r} of the synthetic {task} task does not exist: use {LEVELS[0]} (easiest) to {LEVELS[-1]} (hardest)"
        )
    if index < 0:
        raise ValueError(f"index {index} of the synthetic {task} task is negative: items are numbered from 0, without an upper end")
    # Imported here so that one task's users do not pay for the other's renderer.
    if task == "vc":
        from mr1_bench.synth.counting import make_counting_item

        return make_counting_item(split, level, index, seed)
    from mr1_bench.synth.geometry import make_geometry_item

    return make_geometry_item(split, level, index, seed)


def image_png(item: SynthItem, size: int = DEFAULT_SIZE) -> bytes:
    """Render the item's picture and encode it as PNG."""
    buffer = io.BytesIO()
    item.draw(size).save(buffer, format="PNG")
    return buffer.getvalue()
