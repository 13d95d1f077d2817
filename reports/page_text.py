"""The words of the page that are computed: the summary's sentences, the notes on statistics, and numbers as text.

Plain functions from analysed values to text without markup. A sentence about a method is only made where enough training seeds allow one.
This module must not know HTML or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mr1_bench.reports.analysis import Comparison, Findings, Measured, Table1
from mr1_bench.reports.figure_style import method_name, task_name
from mr1_bench.reports.measures import MIN_SEEDS
from mr1_bench.reports.study import METHODS, Run, Study
from mr1_bench.tables import p_text

ARM_NAMES = {"beta": "the constant KL weight", "format": "the weight of the format reward", "schedule": "the course of the KL weight"}


def percent(share: float) -> str:
    """A share in per cent, `65.2`."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference in points with its sign, a true minus, and no sign for zero: `+4.1`, `−0.3`, `0.0`."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def join(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def count(number: int, one: str, more: str = "") -> str:
    """`1 run`, `3 runs`."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def summary(study: Study, findings: Findings, model: str) -> list[str]:
    """Two to four plain sentences: what was run, what was measured on each task, and which methods the seeds suffice to tell apart.

    Args:
        study: the runs.
        findings: what was computed of them.
        model: the model that training started from, as a person names it; empty where it is not known.
    """
    leads = _leads(findings.table1)
    sentences = [_what_was_run(study, findings.table1.tasks, model)]
    if leads:
        sentences.append(_measured(leads))
        sentences.append(_certainty(leads, findings.comparisons))
    return [*sentences, *_sweeps(study)]


def _what_was_run(study: Study, order: Sequence[str], model: str) -> str:
    main = [run for run in study.runs if run.arm == "main" and run.method != "base"]
    start = f"the base model ({model})" if model else "the base model"
    if not main:
        names = join([method_name(one) for one in METHODS if any(run.method == one for run in study.runs)] or ["checkpoints"])
        return f"This report is of {count(len(study.runs), 'evaluated checkpoint')} ({names}){_asked(study)}."
    methods = join([method_name(one) for one in METHODS if any(run.method == one for run in main)])
    trained = sorted({run.task for run in main}, key=lambda task: (order.index(task) if task in order else len(order), task))
    tasks = join([task_name(one) for one in trained])
    seeds = sorted({len([run for run in main if (run.method, run.task) == key]) for key in {(run.method, run.task) for run in main}})
    each = count(seeds[0], "training seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} training seeds"
    compared = f"{start} and {methods}" if study.base else methods
    return f"{compared[0].upper()}{compared[1:]} were compared, trained on {tasks} with {each} each{_asked(study)}."


def _asked(study: Study) -> str:
    sizes = {task: max((run.results[task].n for run in study.runs if task in run.results), default=0) for task in study.tasks}
    known = {task: n for task, n in sizes.items() if n}
    if not known:
        return ""
    if len(set(known.values())) == 1:
        return (
            f" and asked the same {next(iter(known.values())):,} items of {'each task' if len(known) > 1 else task_name(next(iter(known)))}"
        )
    return f" and asked the same items: {join([f'{n:,} of {task_name(task)}' for task, n in known.items()])}"


@dataclass(frozen=True, slots=True)
class _Lead:
    """The methods of one task, the best first."""

    task: str
    ranked: tuple[tuple[str, Measured], ...]


def _leads(table: Table1) -> list[_Lead]:
    leads = []
    for task in table.tasks:
        for metric in ("acc", "acc_r1v"):
            cells = [(cell.method, getattr(cell, metric)) for cell in table.cells if cell.task == task]
            ranked = sorted(((method, one) for method, one in cells if one is not None), key=lambda pair: -pair[1].mean)
            if len(ranked) > 1:
                leads.append(_Lead(task, tuple(ranked)))
                break
    return leads


def _measured(leads: Sequence[_Lead]) -> str:
    """What was measured, in the same order everywhere: which is best is for the tests over seeds to say."""
    parts = []
    for lead in leads:
        shares = dict(lead.ranked)
        order = sorted(shares, key=lambda method: METHODS.index(method) if method in METHODS else len(METHODS))
        listed = join([f"{method_name(method)} {percent(shares[method].mean)} %" for method in order])
        parts.append(f"on {task_name(lead.task)}: {listed}")
    return f"Same-task accuracy ({leads[0].ranked[0][1].metric}) {'; '.join(parts)}."


def _certainty(leads: Sequence[_Lead], comparisons: Sequence[Comparison]) -> str:
    """Whether the best trained method of each task can be told from the next one, by the tests over seeds."""
    told, untold, unsaid = [], [], []
    for lead in leads:
        trained = [method for method, _ in lead.ranked if method != "base"]
        if len(trained) < 2:
            continue
        wanted = {trained[0], trained[1]}
        here = [one for one in comparisons if (one.train_task, one.eval_task) == (lead.task, lead.task) and {one.a, one.b} == wanted]
        if not here or here[0].p_holm is None:
            unsaid.append(task_name(lead.task))
        elif here[0].differs:
            told.append(f"{method_name(trained[0])} over {method_name(trained[1])} on {task_name(lead.task)} ({p_text(here[0].p_holm)})")
        else:
            names = f"{method_name(trained[0])} and {method_name(trained[1])}"
            untold.append(f"{names} on {task_name(lead.task)} ({p_text(here[0].p_holm)})")
    said = []
    if told:
        said.append(f"with training seeds as the unit, the seeds suffice to put {join(told)}, after Holm's correction")
    if untold:
        start = "they do not suffice" if told else "with training seeds as the unit, these seeds do not suffice"
        said.append(f"{start} to tell apart {join(untold)}{'' if told else ', after Holm’s correction'}")
    if unsaid:
        where = "" if len(unsaid) == len(leads) else f" on {join(unsaid)}"
        said.append(
            f"with fewer than {MIN_SEEDS} training seeds of a method nothing is said about methods{where}, only about these checkpoints"
        )
    if not said:
        return "Only one trained method was measured, so no methods are compared."
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _sweeps(study: Study) -> list[str]:
    found = [name for arm, name in ARM_NAMES.items() if any(run.arm == arm for run in study.runs)]
    if not found:
        return []
    runs = sum(run.arm in ARM_NAMES for run in study.runs)
    return [f"{count(runs, 'more run')} sweep {join(found)}."]


STATISTICS = (
    "Accuracy is the share of items answered rightly, in per cent; differences are in percentage points. Brackets hold 95 % intervals.",
    "One checkpoint: k right of n items, with Wilson's interval. It says how well this checkpoint would do on more such items, and nothing "
    "about another training seed.",
    "Several training seeds: the mean over seeds with Student's t interval, the seed being the unit. Seeds are never pooled into n: 3 "
    "seeds on 600 items are 3 observations, not 1,800.",
    "A statement about a method is Welch's t test on the seeds' accuracies, from 3 seeds of each method on, with Holm's correction over "
    "all such statements of this page. Tests on items between single checkpoints of two methods would call a difference where there is "
    "none far more often than the 5 % they promise, because training itself varies; so those are labelled as statements about checkpoints.",
    "Two checkpoints on the same items: exact McNemar test, and Bonett and Price's interval of the difference.",
    "Published figures are taken as k of n items of one checkpoint and compared with acc_r1v only, the grader they were made with: "
    "Newcombe's interval of the difference.",
    "“No difference shown” is not “no difference”: look at the width of the interval.",
)
"""Notes for the reader."""


def start_of(study: Study) -> Run | None:
    """The run that says which model training started from."""
    return study.base or next((run for run in study.runs if run.config.get("model")), None)
