"""The one shape that both embedded generators hand out: a question, its exact answer, its worked solution and its picture.

Everything that uses synthetic data (the lmms-eval tasks, the data builder, the trainers, the audit) reads these fields and
nothing else. This file must not know how a scene or a diagram is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Family = Literal["vc", "gr"]
"""`vc`: visual counting. `gr`: geometry reasoning."""
Split = Literal["train", "validation", "test"]

FAMILIES: tuple[Family, ...] = ("vc", "gr")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LEVELS: tuple[int, ...] = (1, 2, 3, 4, 5)
DEFAULT_SIZE = 112
"""Side of the square picture in pixels that the tasks use; a multiple of Qwen2-VL's 28."""


@dataclass(frozen=True, slots=True)
class SynthItem:
    """One generated example. Text is fixed by (task, split, level, index, seed) on every platform; pixels by Pillow's version too.

    Attributes:
        id: unique name such as `vc_synth-l1-test-000017`; the seed is appended when it is not 0.
        question: the question as the prompt template's `{Question}`.
        gold: the exact answer as a gold string (`4`, `65°`).
        solution: worked text without tags that ends with the answer; what SFT puts between the think tags.
        family: the question's family, such as `count_color` or `angle_sum`.
        level: difficulty, 1 to 5.
        meta: JSON-able facts of the scene or construction, enough to check `gold` without the generator.
        draw: `draw(size)` renders a new square RGB image of `size` by `size` pixels.
    """

    id: str
    question: str
    gold: str
    solution: str
    family: str
    level: int
    meta: dict[str, Any]
    draw: Callable[[int], Image] = field(repr=False, compare=False)


def item_id(task: Family, split: Split, level: int, index: int, seed: int) -> str:
    """Name an item: `vc_synth-l1-test-000017`, with `-s3` appended for seed 3."""
    return f"{task}_synth-l{level}-{split}-{index:06d}" + (f"-s{seed}" if seed else "")
