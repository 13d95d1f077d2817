"""Breakdowns of accuracy: what was answered for each true count, and how accuracy depends on level, question family and gold.

Pure functions to frozen values, like those of `measures`, whose `Measured` they share. This module must not know how anything is shown.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

from mr1_bench.reports.measures import Measured, measure, our_tasks, trained
from mr1_bench.reports.study import Answer, Run, Study
from mr1_bench.specs import TaskSpec
from mr1_bench.synth import Family, Split, make_item

By = Literal["level", "family", "gold"]
_SYNTH = re.compile(r"(?P<family>vc|gr)_synth-l(?P<level>\d)-(?P<split>[a-z]+)-(?P<index>\d+)(?:-s(?P<seed>\d+))?")
_LONG_NUMBER = 5
"""Digits of what is no count any more."""
_FORMS = (("π", r"π|\\pi"), ("root", r"√|\\sqrt"), ("fraction", r"\\frac|/"), ("degrees", "°"), ("number with a unit", r"\d\s*[a-zA-Z]"))


@dataclass(frozen=True, slots=True)
class Confusion:
    """What one checkpoint answered for each true count.

    Attributes:
        run, task: names.
        golds: true counts, ascending: the rows.
        answers: the columns: whole numbers as text, ascending, then `other` (anything else) and `none` (no readable answer), if they occur.
        counts: rows of numbers of items.
        never: golds that the checkpoint never answered (class collapse).
    """

    run: str
    task: str
    golds: tuple[int, ...]
    answers: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    never: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """Accuracy (`acc`) of a method on a part of a task's items.

    Attributes:
        method, train_task, eval_task: as in `MatrixCell`.
        by: `level` (of the embedded tasks), `family` (kind of question, embedded tasks), `gold` (real tasks: number of objects in
            counting, form of the gold in geometry).
        value: the part: `1`, `count_color`, `isosceles`, `degrees`, …
        measured: every seed on these items, with n of these items.
    """

    method: str
    train_task: str
    eval_task: str
    by: By
    value: str
    measured: Measured


def confusion(study: Study, run: Run, task: str | None = None) -> Confusion | None:
    """The confusion matrix of one run on a counting task.

    Args:
        study: the study it belongs to, whose order of tasks decides.
        run: the run.
        task: full name; where absent its own training task if that is counting, else the first counting task it was evaluated on.

    Returns:
        None where the run has no answers to a counting task.
    """
    counting = [spec.name for spec in our_tasks(study) if spec.answer == "count" and _answered(run, spec.name)]
    own = [name for name in counting if name in run.task.split(",")]
    name = task or next(iter([*own, *counting]), None)
    if name is None or name not in counting:
        return None
    answers = [answer for answer in run.results[name].answers if answer.gold.strip().isdecimal() and len(answer.gold) < _LONG_NUMBER]
    golds = sorted({int(answer.gold) for answer in answers})
    if not golds:
        return None
    known = [str(number) for number in range(min(golds), max(golds) + 1)]
    cells = Counter((int(answer.gold), _answer_class(answer, known)) for answer in answers)
    seen = {column for _, column in cells}
    columns = [*known, *(name for name in ("other", "none") if name in seen)]
    counts = tuple(tuple(cells[gold, column] for column in columns) for gold in golds)
    return Confusion(run.name, name, tuple(golds), tuple(columns), counts, tuple(gold for gold in golds if str(gold) not in seen))


def confusions(study: Study) -> list[Confusion]:
    """Confusion matrices: of the base on every counting task, of the main arm's runs on the counting task that they were trained on."""
    runs = [run for group in trained(study).values() for run in group]
    tasks = [spec.name for spec in our_tasks(study) if spec.answer == "count" and spec.tagged]
    wanted = [(study.base, task) for task in tasks if study.base]
    wanted += [(run, task) for run in runs for task in tasks if task in run.task.split(",")]
    return [matrix for run, task in wanted if run and (matrix := confusion(study, run, task))]


def _answered(run: Run, task: str) -> bool:
    return task in run.results and bool(run.results[task].answers)


def _answer_class(answer: Answer, known: list[str]) -> str:
    if answer.value is None:
        return "none"
    text = answer.value.strip()
    number = str(int(text)) if text.isdecimal() and len(text) < _LONG_NUMBER else text
    return number if number in known else "other"


def by_difficulty(study: Study) -> list[Slice]:
    """Accuracy by level and by question family (real tasks: by gold), for the base and the main arm.

    Raises:
        RecordError: runs that would be averaged differ in more than their seed, or were asked different items.
    """
    groups: dict[tuple[str, str], list[Run]] = {("base", ""): [study.base]} if study.base else {}
    groups |= trained(study)
    parts = {spec.name: _parts(study, spec) for spec in our_tasks(study)}
    slices = []
    for (method, train_task), runs in groups.items():
        for task, found in parts.items():
            for (by, value), items in found.items():
                measured = measure(runs, task, "acc", items)
                if measured:
                    slices.append(Slice(method, train_task, task, by, value, measured))
    return slices


def _parts(study: Study, spec: TaskSpec) -> dict[tuple[By, str], frozenset[int]]:
    """Items of a task by what they are, in the order in which they are shown."""
    parts: dict[tuple[By, str], set[int]] = {}
    for run in study.runs:
        for answer in run.results[spec.name].answers if spec.name in run.results else ():
            for part in _kinds(spec, answer.item, answer.gold):
                parts.setdefault(part, set()).add(answer.doc_id)
    return {part: frozenset(parts[part]) for part in sorted(parts, key=_order)}


def _order(part: tuple[By, str]) -> tuple[int, int, str]:
    by, value = part
    return ("level", "family", "gold").index(by), int(value) if value.isdecimal() else 0, value


@lru_cache(maxsize=100_000)
def _kinds(spec: TaskSpec, item: str, gold: str) -> tuple[tuple[By, str], ...]:
    if not spec.synthetic:
        if spec.answer == "count":
            return (("gold", gold.strip()),)
        return (("gold", next((name for name, pattern in _FORMS if re.search(pattern, gold)), "number")),)
    match = _SYNTH.fullmatch(item)
    if match is None:
        return (("level", str(spec.level)),)
    level, index, seed = int(match["level"]), int(match["index"]), int(match["seed"] or 0)
    made = make_item(cast("Family", match["family"]), cast("Split", match["split"]), level, index, seed)
    return ("level", str(level)), ("family", made.family)
