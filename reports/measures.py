"""How runs become measured shares: which runs may be averaged, and what interval their mean has.

The unit of an average is the training seed. Runs are averaged only if they differ in nothing but their seed, were asked the same items,
and no seed occurs twice; anything else raises, naming the runs. This module must not know tables or tests.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import stdev
from typing import Any, Literal

from mr1_bench import published, stats
from mr1_bench.records import RecordError
from mr1_bench.reports import arms
from mr1_bench.reports.study import METHODS, Run, Study
from mr1_bench.specs import SPECS, TaskSpec, get_spec

Interval = Literal["seeds", "items", "none"]
"""What an interval rests on: `seeds` (t over training seeds), `items` (Wilson over the items of one checkpoint), `none` (none is known)."""

MIN_SEEDS = 3
"""Fewer training seeds of a method allow no statement about it."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class SeedValue:
    """One checkpoint's share of right answers.

    Attributes:
        run: name of the run (`Run.name`).
        seed: training seed; None for the base and where none is recorded.
        value: the share.
        k, n: counts; None where only the mean is known.
        low, high: 95 % Wilson interval of k/n; None where only the mean is known.
    """

    run: str
    seed: int | None
    value: float
    k: int | None
    n: int | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Measured:
    """A share measured on one or several seeds.

    Attributes:
        metric: `acc`, `acc_r1v`, `format` or `answered`.
        mean: mean over seeds; with one seed its value.
        low, high: its 95 % interval, within 0 to 1; None where `interval` is `none`.
        interval: what the interval rests on: `seeds` with at least 2 seeds that differ, `items` with one; `none` where all seeds agree to
            the last item, or only a mean is known.
        deviation: sample standard deviation over seeds; None with one.
        seeds: every checkpoint by itself.
        left_out: items that some seed has no verdict of this metric on (`acc_r1v` where R1-V's grader gave none): no seed counts them.
    """

    metric: str
    mean: float
    low: float | None
    high: float | None
    interval: Interval
    deviation: float | None
    seeds: tuple[SeedValue, ...]
    left_out: int = 0

    @property
    def values(self) -> list[float]:
        """One share a seed."""
        return [seed.value for seed in self.seeds]


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of two shares with its 95 % interval, a minus b, between -1 and 1. `method` names how the interval was made."""

    value: float
    low: float
    high: float
    method: str


def settings(run: Run, ignored: Collection[str] = ()) -> dict[str, Any]:
    """What makes a run what it is, its code and prompts among it, without the settings named; nothing where only its seed is known."""
    return {key: value for key, value in (arms.settings(run) | arms.made_with(run)).items() if key not in ignored}


def check_alike(runs: Sequence[Run]) -> None:
    """Make sure that runs may be averaged: they differ in nothing but their seeds, and every seed is there once.

    Raises:
        RecordError: see `check_settings` and `check_seeds`.
    """
    check_settings(runs)
    check_seeds(runs)


def check_settings(runs: Sequence[Run], ignored: Collection[str] = ()) -> None:
    """Make sure that runs differ in nothing but their seeds and the settings that may differ.

    Args:
        runs: of one task.
        ignored: names of settings that may differ.

    Raises:
        RecordError: other settings, the starting weights or the training data differ.
    """
    known = [run for run in runs if run.config]
    for run in known[1:]:
        changed = arms.differing(settings(known[0], ignored), settings(run, ignored))
        if changed:
            shown = "; ".join(f"{key} {one!r} and {other!r}" for key, (one, other) in list(changed.items())[:4])
            raise RecordError(
                f"{known[0].folder} and {run.folder} stand for the same thing ({_named(run)}, {run.arm} arm), but differ in more than they "
                f"may: {shown}. Nothing is averaged or compared over that: leave one kind out, or make a report for each."
            )


def check_seeds(runs: Sequence[Run]) -> None:
    """Make sure that no training seed is counted twice.

    Args:
        runs: alike but for their seeds.

    Raises:
        RecordError: a seed occurs twice, or there are several runs and one has no seed.
    """
    by_seed: dict[int | None, Run] = {}
    for run in runs:
        other = by_seed.setdefault(run.seed, run)
        if other is not run:
            what = "have no seed" if run.seed is None else f"have seed {run.seed}"
            raise RecordError(
                f"{other.folder} and {run.folder} are both {_named(run)} and {what}: one of them counted twice would look like more "
                "evidence than there is. Leave one out, or record their seeds in run.json."
            )
    if len(runs) > 1 and None in by_seed:
        raise RecordError(
            f"{by_seed[None].folder} is one of {len(runs)} runs of {_named(runs[0])} but has no seed, so nobody can tell whether it is one "
            "of the others; record its seed in its run.json"
        )


def _named(run: Run) -> str:
    return f"{run.method} on {run.task}" if run.task else run.method


def trained(study: Study, arm: str = "main") -> dict[tuple[str, str], list[Run]]:
    """The trained runs of an arm by (method, training task), in the order of tables, each group fit to be averaged.

    Raises:
        RecordError: see `check_alike`.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in study.runs:
        if run.arm == arm and run.method != "base":
            groups.setdefault((run.method, run.task), []).append(run)
    groups = {key: groups[key] for key in sorted(groups, key=_table_order)}
    for runs in groups.values():
        check_alike(runs)
    _check_starts(study.base, [run for runs in groups.values() for run in runs])
    return groups


def _table_order(key: tuple[str, str]) -> tuple[int, int, str]:
    method, task = key
    names = [spec.name for spec in SPECS]
    return METHODS.index(method) if method in METHODS else len(METHODS), names.index(task) if task in names else len(names), task


def _check_starts(base: Run | None, runs: Sequence[Run]) -> None:
    starts = {run.start: run for run in runs if run.start}
    if base is not None and _SHA256.fullmatch(base.weights):
        starts = {base.weights: base} | starts
    if len(starts) > 1:
        first, second = list(starts.values())[:2]
        how = "is not the model that training in" if first is base else "started from other weights than"
        end = " started from" if first is base else ""
        raise RecordError(
            f"the model in {first.folder} {how} {second.folder}{end}, so they cannot be compared; make a report for each starting model"
        )


def paper_model(study: Study) -> str:
    """The paper's name of the model that everything started from; empty where it is none of the paper's, or not certain."""
    models = {str(run.config["model"]) for run in study.runs if run.config.get("model")}
    # A base with the very weights that training started from may lie under any name.
    if study.base and study.base.weights not in {run.start for run in study.runs if run.config.get("model")}:
        models.add(study.base.model)
    names = {published.model_name(model) for model in models}
    return names.pop() if len(names) == 1 else ""


def our_tasks(study: Study) -> list[TaskSpec]:
    """The evaluated tasks that are ours, in the order in which tables print them."""
    evaluated = set(study.tasks)
    return [spec for spec in SPECS if spec.name in evaluated]


def relation_of(run: Run, task: str) -> str:
    """How a task relates to what a run was trained on: `base`, `same-task`, `cross-task` or `same-task, other data` (a twin, say)."""
    if run.method == "base":
        return "base"
    spec, taught = get_spec(task), [get_spec(name) for name in run.task.split(",")]
    if any(one.data == spec.data for one in taught):
        return "same-task"
    return "same-task, other data" if any(one.family == spec.family for one in taught) else "cross-task"


def measure(runs: Sequence[Run], task: str, metric: str, items: Collection[int] | None = None) -> Measured | None:
    """Measure a task over runs that differ in their seed only, on the items that all of them have a verdict of the metric on.

    Args:
        runs: fit to be averaged (`trained`, `check_alike`).
        task: full name of the evaluated task.
        metric: its name.
        items: `doc_id`s to count; all where absent.

    Returns:
        None where no run has a verdict of this metric on these items.

    Raises:
        RecordError: the runs were asked different items.
    """
    seeds: list[SeedValue] = []
    evaluated = [run for run in runs if task in run.results]
    verdicts = {run.name: run.results[task].correct(metric) for run in evaluated}
    counted, left_out = _common_items([run for run in evaluated if verdicts[run.name]], task, metric, items)
    for run in evaluated:
        result, right = run.results[task], verdicts[run.name]
        if not right and not result.answers and metric in result.means and items is None:
            seeds.append(SeedValue(run.name, run.seed, result.means[metric], None, None, None, None))
        elif right and counted:
            k, n = sum(right[item] for item in counted), len(counted)
            seeds.append(SeedValue(run.name, run.seed, k / n, k, n, *stats.wilson(k, n)))
    return replace(over_seeds(metric, seeds), left_out=left_out) if seeds else None


def _common_items(runs: Sequence[Run], task: str, metric: str, items: Collection[int] | None) -> tuple[list[int], int]:
    """The items that every run has a verdict on, and the number of those asked that some run has none on.

    Raises:
        RecordError: the runs were asked different items.
    """
    if not runs:
        return [], 0
    asked = [frozenset(answer.doc_id for answer in run.results[task].answers) for run in runs]
    for run, other in zip(runs, asked, strict=True):
        if other != asked[0]:
            raise RecordError(
                f"{runs[0].results[task].folder} and {run.results[task].folder} hold answers to different items of {task} "
                f"({len(asked[0])} and {len(other)}, {len(asked[0] & other)} in common); evaluate both on the same items"
            )
    wanted = [item for item in sorted(asked[0]) if items is None or item in items]
    common = set.intersection(*(set(run.results[task].correct(metric)) for run in runs))
    counted = [item for item in wanted if item in common]
    return counted, len(wanted) - len(counted)


def over_seeds(metric: str, seeds: Sequence[SeedValue]) -> Measured:
    """Average over seeds; with one seed, take its own interval.

    Where all seeds give the very same share there is no interval: t would give one of no width, as if nothing were uncertain.
    """
    values = [seed.value for seed in seeds]
    if len(values) == 1:
        return Measured(metric, values[0], seeds[0].low, seeds[0].high, "none" if seeds[0].low is None else "items", None, tuple(seeds))
    estimate = stats.mean_over_seeds(values)
    if len(set(values)) == 1:
        return Measured(metric, estimate.value, None, None, "none", 0.0, tuple(seeds))
    # A share lies between 0 and 1, so cutting the interval there loses no coverage.
    low, high = max(0.0, estimate.low), min(1.0, estimate.high)
    return Measured(metric, estimate.value, low, high, "seeds", stdev(values), tuple(seeds))
