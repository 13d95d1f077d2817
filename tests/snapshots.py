"""Snapshots for tests of the gate: two sides with scores that a test chooses, without files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mr1_bench.reports.verdicts import ItemScore, Snapshot, TaskSnapshot, means_of

TASK, OTHER = "mr1_vc_synth", "mr1_gr_synth"
IDENTITY = {
    "dataset_sha256": "d" * 64,
    "prompt_sha256": "p" * 64,
    "decoding": {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0},
}


def task_of(rows: Mapping[str, Sequence[float]], *, tokens: Sequence[float] = (), **fields: Any) -> TaskSnapshot:
    """A task from columns of scores, `acc` and others, one number an item."""
    items = tuple(
        ItemScore(
            doc_id=index,
            item=f"item-{index}",
            gold=str(index % 7),
            text=None,
            scores={metric: float(column[index]) for metric, column in rows.items()},
            tokens=tokens[index] if tokens else None,
        )
        for index in range(len(rows["acc"]))
    )
    return TaskSnapshot(**({"identity": IDENTITY, "items": items, "means": means_of(items)} | fields))


def side(tasks: Mapping[str, TaskSnapshot | tuple[TaskSnapshot, ...]], weights: str = "w") -> Snapshot:
    """One side of a comparison."""
    kept = {name: one if isinstance(one, tuple) else (one,) for name, one in tasks.items()}
    return Snapshot("run", "tiny", weights, "2026-01-01T00:00:00+00:00", kept)


def counts(both: int, lost: int, won: int, neither: int) -> tuple[list[float], list[float]]:
    """Old and new scores of so many items."""
    old = [1.0] * (both + lost) + [0.0] * (won + neither)
    new = [1.0] * both + [0.0] * lost + [1.0] * won + [0.0] * neither
    return old, new
