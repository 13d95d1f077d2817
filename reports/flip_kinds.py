"""Names what happened to an item that flipped: format lost, cut off, wrong value, wrong unit, refusal and their mirrors.

The kind is read from the side that is wrong: the new answer of a lost item, the old one of a won item. Plain functions on values; what a
model wrote is only ever searched, never run. This module must not know files or how anything is shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mr1_bench.answers import read_answer
from mr1_bench.grading import extract_answer, extract_direct_answer, grade
from mr1_bench.reports.verdicts import Direction, Flip, ItemScore, TaskSnapshot
from mr1_bench.specs import TaskSpec, UnknownTaskError, get_spec

KIND_NAMES: dict[str, tuple[str, str]] = {
    "empty": ("empty output", "no longer empty"),
    "refusal": ("refusal", "no longer refused"),
    "cut off": ("cut off", "no longer cut off"),
    "format": ("format lost", "format regained"),
    "unreadable": ("unreadable answer", "readable again"),
    "unit": ("wrong unit", "unit put right"),
    "value": ("wrong value", "value put right"),
}
"""Kind -> its name for an item that was lost and for one that was won, in the order in which they are looked for."""

_REFUSAL = re.compile(
    r"\b(?:i(?:['’]m| am) (?:sorry|unable|not able)|i (?:cannot|can['’]?t|could not|couldn['’]t|am unable|won['’]t)|"
    r"as an ai\b|(?:cannot|can['’]?t|could not|unable to|impossible to) (?:be )?"
    r"(?:answer|determine|see|view|help|assist|identify|provide|count)|"
    r"not enough information|insufficient information|no image (?:is |was )?(?:provided|given|attached))|无法|抱歉|不能确定",
    re.IGNORECASE,
)
_LONGEST_SEARCHED = 4000
"""Characters of an answer in which a refusal is looked for: an endless loop of a model is none."""


@dataclass(frozen=True, slots=True)
class KindCount:
    """How often a kind of flip occurred.

    Attributes:
        direction: `lost` or `won`.
        kind: a key of `KIND_NAMES`.
        name: as a person calls it in this direction.
        count: number of items.
    """

    direction: Direction
    kind: str
    name: str
    count: int


def kind_of(flip: Flip, sides: tuple[TaskSnapshot | None, TaskSnapshot | None] = (None, None)) -> str:
    """Say what a flip was, as a key of `KIND_NAMES`.

    Args:
        flip: the item.
        sides: the task on the old and on the new side, whose recorded decoding limit tells what was cut off.
    """
    lost = flip.direction == "lost"
    wrong, side = (flip.new, sides[1]) if lost else (flip.old, sides[0])
    return _kind(flip.task, wrong, _limit(side))


def flip_name(kind: str, direction: Direction) -> str:
    """How a person calls a kind of flip in one direction."""
    return KIND_NAMES[kind][direction == "won"]


def most_frequent(kinds: Iterable[tuple[Direction, str]], top: int = 3) -> Mapping[Direction, tuple[KindCount, ...]]:
    """The most frequent kinds of each direction, the most frequent first; of equal counts in the order of `KIND_NAMES`."""
    counts = Counter(kinds)
    order = list(KIND_NAMES)
    found: dict[Direction, tuple[KindCount, ...]] = {}
    directions: tuple[Direction, ...] = ("lost", "won")
    for direction in directions:
        here = [KindCount(direction, kind, flip_name(kind, direction), n) for (way, kind), n in counts.items() if way == direction]
        found[direction] = tuple(sorted(here, key=lambda one: (-one.count, order.index(one.kind)))[:top])
    return found


def _limit(side: TaskSnapshot | None) -> int | None:
    decoding = side.identity.get("decoding") if side else None
    limit = decoding.get("max_new_tokens") if isinstance(decoding, Mapping) else None
    return limit if isinstance(limit, int) and not isinstance(limit, bool) else None


def _kind(task: str, wrong: ItemScore, limit: int | None) -> str:
    at_limit = wrong.tokens is not None and limit is not None and wrong.tokens >= limit
    if wrong.text is None:
        return _kind_of_scores(wrong, at_limit)
    spec = _spec(task)
    tagged = spec is None or spec.tagged
    answer = extract_answer(wrong.text) if tagged else extract_direct_answer(wrong.text)
    if not wrong.text.strip():
        return "empty"
    if answer is None and at_limit:
        return "cut off"
    tail = wrong.text.rpartition("</think>")[2]
    if _REFUSAL.search((tail if answer is None else answer)[:_LONGEST_SEARCHED]):
        return "refusal"
    if answer is None:
        return "cut off" if wrong.tokens is None and _left_open(wrong.text) else "format"
    if wrong.value is None:
        return "cut off" if at_limit and not tagged else "unreadable"
    return "unit" if spec is not None and _only_unit_differs(spec, wrong) else "value"


def _kind_of_scores(wrong: ItemScore, at_limit: bool) -> str:
    """The kind where no text was kept: what the verdicts alone tell."""
    if wrong.value is not None:
        return "value"
    if at_limit:
        return "cut off"
    return "unreadable" if wrong.scores.get("answered") == 1.0 else "format"


def _left_open(text: str) -> bool:
    """Whether the text ends within a block that it opened: without a count of tokens this is the only sign of a cut."""
    return any(text.count(f"<{tag}>") > text.count(f"</{tag}>") for tag in ("think", "answer"))


def _only_unit_differs(spec: TaskSpec, wrong: ItemScore) -> bool:
    """Whether the answer is right once the gold's unit is dropped: a unit is accepted where the gold has none."""
    gold = read_answer(wrong.gold, counting=spec.answer == "count")
    if gold.unit is None or gold.value is None or wrong.text is None:
        return False
    return grade(spec, gold.value, wrong.text).correct


def _spec(task: str) -> TaskSpec | None:
    try:
        return get_spec(task)
    except UnknownTaskError:
        return None
