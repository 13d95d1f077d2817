"""Audits a grader against a data set's golds: whatever a gold can be written as must be right, and every other gold wrong.

What a gold means and how else it can be written comes from `gold_forms`, which shares no code with the grader. This module must not know
where golds come from or how a report is printed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mr1_bench import gold_forms
from mr1_bench.gold_forms import Gold, Term
from mr1_bench.grading import grade
from mr1_bench.specs import TaskSpec

TOLERANCE = 1e-6
"""Relative difference up to which two values are the same (the grader's rule)."""

LARGEST = 1000
"""Distinct golds up to which every pair is tried; of more, each is tried against this many others, its neighbours in value among them."""

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer on which the grader is wrong.

    Attributes:
        gold: the gold.
        answer: what was given as the answer.
        form: how the answer was made: a form's name, or `another gold`.
        expected: whether it is right.
        status: the grader's status.
    """

    gold: str
    answer: str
    form: str
    expected: bool
    status: str


@dataclass(frozen=True, slots=True)
class GoldAudit:
    """Result of an audit.

    Attributes:
        items: number of golds, repeats included.
        golds: number of distinct golds.
        forms: number of answers tried that are right.
        wrong: number of answers tried that are wrong.
        unread: golds that the audit's own reader cannot read: tried only as they stand, and against nothing.
        failures: where the grader is wrong.
    """

    items: int
    golds: int
    forms: int
    wrong: int
    unread: tuple[str, ...]
    failures: tuple[Failure, ...]


def audit_golds(spec: TaskSpec, golds: Sequence[str | int]) -> GoldAudit:
    """Send every gold through the grader, in every form it can be written in, and against every other gold.

    Args:
        spec: the task; its answer kind and whether it is tagged decide the rules.
        golds: the golds of all items.

    Raises:
        ValueError: there is no gold: nothing would have been checked.
    """
    if not golds:
        raise ValueError("no golds to audit")
    distinct = list(dict.fromkeys(str(gold) for gold in golds))
    failures: list[Failure] = []
    forms = wrong = 0
    for gold in distinct:
        for form, answer in _forms(spec, gold):
            forms += 1
            failures += _check(spec, gold, answer, form, expected=True)
    for gold, form, answer in _wrong_answers(spec, distinct):
        wrong += 1
        failures += _check(spec, gold, answer, form, expected=False)
    unread = tuple(gold for gold in distinct if _is_unread(spec, gold))
    return GoldAudit(len(golds), len(distinct), forms, wrong, unread, tuple(failures))


def differ(answer: Gold, gold: Gold) -> bool:
    """Whether an answer is surely wrong for a gold: other values, or a unit that contradicts.

    A missing unit is no contradiction, and a decimal that is the gold rounded to at least three significant digits no other value.
    """
    if answer.unit and gold.unit and answer.unit.dimension != gold.unit.dimension:
        return True
    scale = answer.unit.factor / gold.unit.factor if answer.unit and gold.unit else 1.0
    return not (
        all(any(_same(mine, theirs, scale) for theirs in gold.terms) for mine in answer.terms)
        and all(any(_same(mine, theirs, scale) for mine in answer.terms) for theirs in gold.terms)
    )


def _same(answer: Term, gold: Term, scale: float) -> bool:
    mine, theirs = gold_forms.value_of(answer) * scale, gold_forms.value_of(gold)
    if abs(mine - theirs) <= TOLERANCE * max(abs(mine), abs(theirs)):
        return True
    if not isinstance(answer, gold_forms.Number) or "." not in answer.digits or gold_forms.is_finite_decimal(gold):
        return False
    decimals = len(answer.digits.partition(".")[2])
    significant = len(answer.digits.replace(".", "").lstrip("0"))
    return significant >= 3 and abs(mine - theirs) <= (0.5 * 10.0**-decimals) * scale * (1 + 1e-9)


def _forms(spec: TaskSpec, gold: str) -> Iterator[tuple[str, str]]:
    return _count_forms(gold) if spec.answer == "count" else gold_forms.forms(gold)


def _count_forms(gold: str) -> Iterator[tuple[str, str]]:
    yield "as it stands", gold
    yield "spaces around it", f"  {gold}\n"
    if not gold.isdecimal():
        return
    value = int(gold)
    yield "items", f"{value} items"
    yield "sentence", f"There are {value} items in the image."
    yield "equation", f"n = {value}"
    yield "decimal", f"{value}.0"
    yield "LaTeX", f"${value}$"
    yield "boxed", rf"\boxed{{{value}}}"
    if value < len(_WORDS):
        yield "word", _WORDS[value]
        yield "capital word", f"{_WORDS[value].capitalize()}."


def _wrong_answers(spec: TaskSpec, distinct: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Gold, form and answer of what must be wrong."""
    read = [(gold, found) for gold in distinct if (found := gold_forms.read_gold(gold)) is not None]
    read.sort(key=lambda pair: gold_forms.value_of(pair[1].terms[0]))
    stride = max(1, len(read) // (LARGEST // 2))
    for position, (gold, meaning) in enumerate(read):
        if len(read) <= LARGEST:
            others = read
        else:
            others = read[max(0, position - LARGEST // 4) : position + LARGEST // 4] + read[position % stride :: stride]
        for answer, other in others:
            if differ(other, meaning):
                yield gold, "another gold", answer
    words = [gold for gold in distinct if _is_word(gold)]
    if spec.answer == "math":
        for gold, _ in read:
            yield from ((gold, form, answer) for form, answer in gold_forms.contradictions(gold))
            yield from ((gold, "a word", word) for word in words)
        for word in words:
            yield from ((word, "another word", other) for other in words if other.casefold() != word.casefold())
            yield from ((word, "a value", answer) for answer, _ in read[:: max(1, len(read) // 50)])


def _is_word(gold: str) -> bool:
    """Whether a gold is a text, such as `yes` or `无法确定`, and surely no value."""
    return gold_forms.read_gold(gold) is None and gold.replace(" ", "").isalpha() and gold.casefold() not in _WORDS


def _is_unread(spec: TaskSpec, gold: str) -> bool:
    return not gold.isdecimal() if spec.answer == "count" else gold_forms.read_gold(gold) is None


def _check(spec: TaskSpec, gold: str, answer: str, form: str, *, expected: bool) -> list[Failure]:
    text = f"<think>{form}</think><answer>{answer}</answer>" if spec.tagged else answer
    score = grade(spec, gold, text)
    return [] if score.correct is expected else [Failure(gold, answer, form, expected, score.status)]
