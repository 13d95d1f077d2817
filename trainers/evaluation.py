"""Evaluation during training: greedy answers to held-out items, by the same decoding and the same grader as everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mr1_bench.grading import Score, grade
from mr1_bench.trainers.engine import Engine, read_texts

if TYPE_CHECKING:
    from mr1_bench.trainers.batches import Processing
    from mr1_bench.trainers.items import Item
    from mr1_bench.trainers.models import Loaded

ROWS = 64
"""Items answered side by side."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Answers to held-out items and their scores."""

    items: tuple[Item, ...]
    texts: tuple[str, ...]
    scores: tuple[Score, ...]

    @property
    def accuracy(self) -> float:
        """Share of right answers, as the task's `acc`."""
        return sum(score.correct for score in self.scores) / len(self.scores)

    @property
    def format(self) -> float:
        """Share of answers in the think/answer form."""
        return sum(score.format_ok for score in self.scores) / len(self.scores)


@torch.no_grad()
def evaluate(loaded: Loaded, engine: Engine, processing: Processing, items: Sequence[Item], max_new_tokens: int) -> HeldOut:
    """Answer items greedily and grade the answers."""
    asked: list[Item] = []
    texts: list[str] = []
    for start in range(0, len(items), ROWS):
        for part in processing(items[start : start + ROWS]).parts:
            state = engine.encode(part)
            drawn = engine.sample(state, 1, max_new_tokens=max_new_tokens, temperature=0.0, generator=None)
            asked += part.items
            texts += read_texts(loaded.processor, drawn)
    scores = tuple(grade(item.spec, item.gold, text) for item, text in zip(asked, texts, strict=True))
    return HeldOut(tuple(asked), tuple(texts), scores)
