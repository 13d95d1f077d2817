"""Correct or not: the one grader that evaluation, reward, regrading and the gold audit call.

It takes the answer out of a model's text, has gold and answer read by the same reader (`answers`), and compares them. It must not know
prompts, data or metrics, and it never raises on any text: what cannot be read is a status.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from mr1_bench.answers import Reading, compact, read_answer
from mr1_bench.quantities import Quantity, equal

if TYPE_CHECKING:
    from mr1_bench.specs import TaskSpec

Status = Literal["answered", "no_answer", "unparseable", "bad_gold"]
"""`answered`: a value (or a text for a text gold) was read. `no_answer`: no closed answer block, or an empty direct answer.
`unparseable`: an answer that is not clearly one value or a list of values. `bad_gold`: the gold itself cannot be read."""


@dataclass(frozen=True, slots=True)
class Score:
    """Verdict on one model output.

    Attributes:
        extracted: raw text of the answer, None where there is none.
        value: canonical spelling of the values read (`140`, `2.4`, `5/13`, `3.46410161514`), several joined by a comma, or the normal
            form of a text answer; None where nothing could be read.
        unit: canonical unit given in the answer (`deg`, `cm`, `cm^2`), None where there is none.
        correct: whether the answer is the gold.
        format_ok: whether the whole output has the think/answer form that the R1-V format reward asks for.
        status: how far grading came.
    """

    extracted: str | None
    value: str | None
    unit: str | None
    correct: bool
    format_ok: bool
    status: Status


@dataclass(frozen=True, slots=True)
class _Gold:
    quantities: tuple[Quantity, ...] = ()
    text: str | None = None


_OPEN, _CLOSE, _THINK_OPEN, _THINK_CLOSE = "<answer>", "</answer>", "<think>", "</think>"
_HINGE = re.compile(r"</think>\s*+<answer>")
# What missing cells of a table turn into as text.
_ABSENT = frozenset({"nan", "none", "null", "<na>"})
_WORDY: tuple[str, ...] = ("no_value", "algebra", "relation", "ratio")


def grade(task: str | TaskSpec, gold: str | int, text: str) -> Score:
    """Grade one model output; pure, and linear in the length of the text.

    Args:
        task: a task's row or its name; only its answer kind and whether it is tagged matter.
        gold: the reference answer, for example `10√{2}cm`, `30°或50°`, `4`, `无法确定`.
        text: the whole model output.

    Raises:
        UnknownTaskError: `task` is a name that no row has. Nothing else is raised, whatever the gold and the text.
    """
    spec = _spec(task)
    format_ok = has_format(text)
    extracted = extract_answer(text) if spec.tagged else extract_direct_answer(text)
    counting = spec.answer == "count"
    reference = _read_gold(str(gold), counting)
    if reference is None:
        return Score(extracted, None, None, False, format_ok, "bad_gold")
    if extracted is None:
        return Score(None, None, None, False, format_ok, "no_answer")
    if reference.text is not None:
        value = compact(extracted)
        status: Status = "answered" if value else "unparseable"
        return Score(extracted, value or None, None, value == reference.text, format_ok, status)
    reading = read_answer(extracted, counting=counting)
    if not reading.quantities:
        return Score(extracted, None, None, False, format_ok, "unparseable")
    return Score(extracted, reading.value, reading.unit, _matches(reading, reference), format_ok, "answered")


def extract_answer(text: str) -> str | None:
    """Content of the last closed `<answer>` block, None where there is none. Of nested blocks the innermost last one counts."""
    close = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, close) if close >= 0 else -1
    if start < 0:
        return None
    start += len(_OPEN)
    return text[start : text.find(_CLOSE, start)]


def extract_direct_answer(text: str) -> str | None:
    """Answer of an output that was not asked for tags: a closed block if it has one, else all of it after any closed thinking."""
    block = extract_answer(text)
    if block is not None:
        return block
    return text[text.rfind(_THINK_CLOSE) + len(_THINK_CLOSE) if _THINK_CLOSE in text else 0 :].strip() or None


def has_format(text: str) -> bool:
    r"""Whether the text full-matches `<think>.*?</think>\s*<answer>.*?</answer>` with dots matching newlines, in linear time.

    This is the R1-V format reward. A backtracking match of that pattern is quadratic in the number of tags.
    """
    if not (text.startswith(_THINK_OPEN) and text.endswith(_CLOSE)):
        return False
    return _HINGE.search(text, len(_THINK_OPEN), len(text) - len(_CLOSE)) is not None


def _spec(task: str | TaskSpec) -> TaskSpec:
    if not isinstance(task, str):
        return task
    from mr1_bench.specs import get_spec

    return get_spec(task)


@lru_cache(maxsize=8192)
def _read_gold(gold: str, counting: bool) -> _Gold | None:
    """The gold as values or as a text, None where it is neither."""
    block = extract_answer(gold)
    reading = read_answer(gold if block is None else block, counting=counting)
    if reading.quantities:
        return _Gold(reading.quantities)
    text = compact(gold if block is None else block)
    wordy = reading.failure in _WORDY and text not in _ABSENT and any(sign.isalnum() for sign in text) and not set(text) & set("\\√")
    return _Gold(text=text) if wordy and not counting else None


def _matches(reading: Reading, gold: _Gold) -> bool:
    """Whether answer and gold are the same set of values."""
    answers = reading.quantities
    return all(any(equal(answer, each) for each in gold.quantities) for answer in answers) and all(
        any(equal(answer, each) for answer in answers) for each in gold.quantities
    )
