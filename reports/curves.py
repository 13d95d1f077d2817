"""From a study to courses: the sweeps of figures 4 and 6, the KL schedules side by side, and training curves over seeds.

Pure functions to frozen values, like those of `measures`, whose `Measured` they share. This module must not know how anything is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from mr1_bench import stats
from mr1_bench.reports.measures import Measured, check_seeds, check_settings, measure, settings, trained
from mr1_bench.reports.study import METHOD_NAMES, Run, Study

Sweep = Literal["beta", "format", "schedule"]
Quantity = Literal["test_accuracy", "test_format", "validation_accuracy", "accuracy_reward", "format_reward", "beta", "kl"]


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One setting of a sweep, on the task trained on.

    Attributes:
        sweep: which setting was swept: `beta` (constant KL weight β), `format` (weight of the format reward) or `schedule` (course of β).
        task: trained on and tested on.
        method: of the runs, `grpo` or `grpo-d`.
        x: β or weight; of a schedule None.
        label: `0.04`; of a schedule `constant, β = 0.04`, `linear, β 0 to 0.04`, `clipping only (β = 0)`, …
        runs: names.
        acc, acc_r1v, format: None where not measured. With one seed the interval is Wilson's over items.
    """

    sweep: Sweep
    task: str
    method: str
    x: float | None
    label: str
    runs: tuple[str, ...]
    acc: Measured | None
    acc_r1v: Measured | None
    format: Measured | None


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity over training steps, of the runs that differ in their seed only.

    Attributes:
        quantity: `test_accuracy`, `test_format` and `validation_accuracy` (greedy, of evals.jsonl), `accuracy_reward` and `format_reward`
            (mean of the step's completions), `beta`, `kl` (nats a token).
        method: sft, grpo or grpo-d.
        task: trained on.
        arm: `main`, or `schedule` for the points of the sweep of schedules, among them those that the main arm provides.
        label: of the main arm the method's name (`GRPO-D`); of schedules the setting, as in `SweepPoint.label`.
        runs: names, one a seed.
        steps: optimisation steps at which every seed has a value.
        mean: over seeds.
        low, high: 95 % t interval over seeds, within 0 to 1 for shares; empty with one seed.
        least, most: smallest and largest seed; empty with one seed.
        seeds: every seed's values, in the order of `runs`.
        items: test items behind each value; None for quantities of training, and where not recorded.
    """

    quantity: Quantity
    method: str
    task: str
    arm: str
    label: str
    runs: tuple[str, ...]
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    seeds: tuple[tuple[float, ...], ...]
    items: int | None


_SWEPT: Mapping[Sweep, tuple[str, ...]] = {
    "beta": ("beta_max", "beta_min"),
    "format": ("format_weight",),
    "schedule": ("method", "kl_schedule", "beta_max", "beta_min", "kl_horizon", "kl_target"),
}
"""What the runs of a sweep differ in."""
_SCHEDULES = ("constant", "linear", "exponential", "cosine", "adaptive")
_OF_METRICS: Mapping[Quantity, str] = {"accuracy_reward": "accuracy", "format_reward": "format", "beta": "beta", "kl": "kl"}
_OF_EVALS: Mapping[Quantity, tuple[str, str]] = {
    "test_accuracy": ("test", "accuracy"),
    "test_format": ("test", "format"),
    "validation_accuracy": ("validation", "accuracy"),
}


def sweep(study: Study, what: Sweep) -> list[SweepPoint]:
    """The points of a sweep by task and x.

    Beside the sweep's own runs these are runs of the main arm that differ from them in the swept setting only, of the same seeds: its GRPO
    is a point of the sweep of β at its own β. The sweep of schedules takes β = 0 from the sweep of β too.

    Raises:
        RecordError: the sweep's runs differ in more than what is swept, or a seed occurs twice at a point.
    """
    points = []
    own = [run for run in study.runs if run.arm == what and run.config]
    for task in dict.fromkeys(run.task for run in own):
        mine = [run for run in own if run.task == task]
        check_settings(mine, _SWEPT[what])
        groups = _points(study, mine, what)
        points += [_point(groups[key], what) for key in sorted(groups)]
    return points


Key = tuple[float, ...]
"""Orders the points of a sweep, and tells them apart."""


def _points(study: Study, mine: list[Run], what: Sweep) -> dict[Key, list[Run]]:
    groups: dict[Key, list[Run]] = {}
    for run in mine:
        groups.setdefault(_key(run, what), []).append(run)
    for runs in groups.values():
        check_seeds(runs)
    fixed, seeds = settings(mine[0], _SWEPT[what]), {run.seed for run in mine}
    for run in study.runs:
        joins = run.arm == "main" or (what == "schedule" and run.arm == "beta" and run.config.get("beta_max") == 0)
        if joins and run.task == mine[0].task and run.seed in seeds and settings(run, _SWEPT[what]) == fixed:
            runs = groups.setdefault(_key(run, what), [])
            if all(run.seed != other.seed for other in runs):
                runs.append(run)
    return groups


def _key(run: Run, what: Sweep) -> Key:
    config = run.config
    if what == "format":
        return (float(config["format_weight"]),)
    if what == "beta":
        return (float(config["beta_max"]),)
    schedule = str(config["kl_schedule"])
    bounds = float(config["beta_max"]), 0.0 if schedule == "constant" else float(config["beta_min"])
    target = float(config["kl_target"]) if schedule == "adaptive" else 0.0
    place = _SCHEDULES.index(schedule) if schedule in _SCHEDULES else len(_SCHEDULES)
    return -1 if bounds == (0.0, 0.0) else place, *bounds, target, float(config.get("kl_horizon") or 0) if schedule != "constant" else 0.0


def _label(run: Run, what: Sweep) -> str:
    config = run.config
    if what != "schedule":
        return f"{config['format_weight' if what == 'format' else 'beta_max']:g}"
    if config["beta_max"] == 0:
        return "clipping only (β = 0)"
    if config["kl_schedule"] == "constant":
        return f"constant, β = {config['beta_max']:g}"
    return f"{config['kl_schedule']}, β {config['beta_min']:g} to {config['beta_max']:g}"


def _point(runs: list[Run], what: Sweep) -> SweepPoint:
    first = runs[0]
    x = None if what == "schedule" else _key(first, what)[0]
    names = tuple(run.name for run in runs)
    acc, acc_r1v, formed = (measure(runs, first.task, metric) for metric in ("acc", "acc_r1v", "format"))
    return SweepPoint(what, first.task, first.method, x, _label(first, what), names, acc, acc_r1v, formed)


def curves(study: Study) -> list[Curve]:
    """Every quantity over time: of the main arm by method and task, and of the schedules by setting.

    Raises:
        RecordError: runs that would be averaged differ in more than their seed.
    """
    found = []
    for (method, task), runs in trained(study).items():
        found += _curves(runs, (method, task, "main", METHOD_NAMES.get(method, method)))
    by_name = {run.name: run for run in study.runs}
    for point in sweep(study, "schedule"):
        found += _curves([by_name[name] for name in point.runs], (point.method, point.task, "schedule", point.label))
    return found


def _curves(runs: Sequence[Run], what: tuple[str, str, str, str]) -> list[Curve]:
    found = []
    for quantity in (*_OF_EVALS, *_OF_METRICS):
        courses = {run.name: course for run in runs if (course := _course(run, quantity))}
        steps = sorted(set.intersection(*map(set, courses.values()))) if courses else []
        if steps:
            found.append(_curve(quantity, what, steps, courses, _items(runs, quantity)))
    return found


def _course(run: Run, quantity: Quantity) -> dict[int, float]:
    """Values by step; of a step that was recorded twice, as when a run was resumed, the last."""
    if quantity in _OF_EVALS:
        split, key = _OF_EVALS[quantity]
        rows = [row for row in run.evals if row.get("split") == split]
    else:
        key, rows = _OF_METRICS[quantity], list(run.metrics)
    values = {int(row["step"]): row.get(key) for row in rows if "step" in row}
    return {step: float(value) for step, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}


def _items(runs: Sequence[Run], quantity: Quantity) -> int | None:
    """Items behind each value, where all rows agree."""
    if quantity not in _OF_EVALS:
        return None
    counts = {row.get("items") for run in runs for row in run.evals if row.get("split") == _OF_EVALS[quantity][0]}
    count = counts.pop() if len(counts) == 1 else None
    return count if isinstance(count, int) else None


def _curve(
    quantity: Quantity, what: tuple[str, str, str, str], steps: list[int], courses: dict[str, dict[int, float]], items: int | None
) -> Curve:
    method, task, arm, label = what
    rows = [[course[step] for step in steps] for course in courses.values()]
    columns = list(zip(*rows, strict=True))
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    if len(rows) > 1:
        band = stats.band_over_seeds(rows)
        top = math.inf if quantity in ("beta", "kl") else 1.0
        bottom = -math.inf if quantity == "kl" else 0.0
        low = tuple(max(bottom, estimate.low) for estimate in band)
        high = tuple(min(top, estimate.high) for estimate in band)
    return Curve(
        quantity,
        *(method, task, arm, label),
        runs=tuple(courses),
        steps=tuple(steps),
        mean=tuple(fmean(column) for column in columns),
        low=low,
        high=high,
        least=tuple(min(column) for column in columns) if len(rows) > 1 else (),
        most=tuple(max(column) for column in columns) if len(rows) > 1 else (),
        seeds=tuple(tuple(row) for row in rows),
        items=items,
    )
