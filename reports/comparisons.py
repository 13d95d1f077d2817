"""Statements about methods and about single checkpoints, kept apart: the unit of the first is the training seed, of the second the item.

Two checkpoints may differ on the same items beyond doubt while their methods do not: another seed of either would differ too. So methods
are compared by Welch's t test on the seeds' accuracies, never with fewer than three seeds of each, and with Holm's correction; exact
McNemar tests compare checkpoints and say so. docs/statistics.md has the simulation behind this. This module must not know how anything
is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mr1_bench import published, stats
from mr1_bench.published import CLAIMS, Claim
from mr1_bench.reports.measures import MIN_SEEDS, Difference, Measured, measure, our_tasks, paper_model, relation_of, trained
from mr1_bench.reports.study import METHOD_NAMES, Run, Study
from mr1_bench.specs import get_spec
from mr1_bench.tables import p_text

ALPHA = 0.05
"""Level of the tests."""
METHOD_PAIRS = (("grpo-d", "sft"), ("grpo-d", "grpo"), ("grpo", "sft"))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A statement about two methods, with training seeds as the unit: Welch's t test on the seeds' accuracies on the same items.

    Attributes:
        train_task, eval_task, relation: as in `MatrixCell`.
        a, b: methods.
        metric: `acc`.
        seeds_a, seeds_b: number of training seeds.
        mean_a, mean_b, difference, t, df, p: None under 3 seeds of either, and then `why` says so.
        p_holm: p after Holm's correction over all comparisons of the study.
        differs: whether `p_holm` is below 0.05; None without p.
        statement: the sentence to print; with under 3 seeds the reason why there is none.
        why: the reason; empty with a p.
    """

    train_task: str
    eval_task: str
    relation: str
    a: str
    b: str
    metric: str
    seeds_a: int
    seeds_b: int
    mean_a: float | None
    mean_b: float | None
    difference: Difference | None
    t: float | None
    df: float | None
    p: float | None
    p_holm: float | None
    differs: bool | None
    statement: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two single checkpoints on the same items: exact McNemar. A statement about these checkpoints, not about their methods.

    Attributes:
        run_a, run_b: names of the runs; label_a, label_b: how a person names them.
        eval_task: the task.
        n: common items; both, only_a, only_b, neither: items by who has them right.
        difference: a minus b, 95 % interval for paired items (Bonett and Price); None if `why`.
        p: exact McNemar, not corrected; None if `why`.
        p_holm: after Holm's correction over all pairs of the study.
        statement: the sentence to print.
        why: why there is no test (other items); empty otherwise.
    """

    run_a: str
    run_b: str
    label_a: str
    label_b: str
    train_task: str
    eval_task: str
    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: Difference | None
    p: float | None
    p_holm: float | None
    statement: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Gain:
    """A headline claim of the paper, and the same quantity measured. Relative gains: 0.0572 is 5.72 %.

    Attributes:
        name: `same-task, GRPO-D over SFT`, `same-task, GRPO-D over GRPO` or `cross-task, GRPO-D over SFT`.
        definition: how it is computed, in words and cells.
        metric: `acc` or `acc_r1v`; `published` stands beside `acc_r1v` only.
        tasks: the tasks it is measured on.
        measured: from the means over seeds; None where an input is missing, and then `why` says which.
        low, high: 95 % interval over seeds; None under 3 seeds of either method.
        published: as the paper states it ("more than"), for the paper's 2B model on the real tasks only.
        recomputed: from the published table; None where its inputs are not published.
        why: what is missing, or that this is about checkpoints only; empty otherwise.
    """

    name: str
    definition: str
    metric: str
    tasks: tuple[str, ...]
    measured: float | None
    low: float | None
    high: float | None
    published: float | None
    recomputed: float | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Gains:
    """The headline gains, by metric."""

    gains: tuple[Gain, ...]


def comparisons(study: Study) -> list[Comparison]:
    """Statements about methods: every two trained methods on every (training task, test task) of the main arm.

    Raises:
        RecordError: runs that would be averaged differ in more than their seed.
    """
    groups = trained(study)
    found = []
    for train_task in dict.fromkeys(task for _, task in groups):
        for spec in our_tasks(study):
            for a, b in METHOD_PAIRS:
                one, two = (measure(groups.get((method, train_task), []), spec.name, "acc") for method in (a, b))
                if one and two:
                    related = relation_of(groups[a, train_task][0], spec.name)
                    found.append(_compare(Place(train_task, spec.name, related), a, one, b, two))
    tested = [index for index, comparison in enumerate(found) if comparison.p is not None]
    corrected = stats.holm([p for comparison in found if (p := comparison.p) is not None])
    for index, p_holm in zip(tested, corrected, strict=True):
        comparison = replace(found[index], p_holm=p_holm, differs=p_holm < ALPHA)
        found[index] = replace(comparison, statement=_state(comparison, len(tested)))
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """Where two methods meet: training task, test task and how these relate."""

    train_task: str
    eval_task: str
    relation: str


def _compare(place: Place, a: str, one: Measured, b: str, two: Measured) -> Comparison:
    counts = len(one.seeds), len(two.seeds)
    names = METHOD_NAMES[a], METHOD_NAMES[b]

    def without(why: str) -> Comparison:
        return Comparison(
            *(place.train_task, place.eval_task, place.relation, a, b, one.metric, *counts),
            *(None, None, None, None, None, None, None, None),
            statement=f"{names[0]} and {names[1]} on {place.eval_task}, trained on {place.train_task}: no statement, {why}",
            why=why,
        )

    if min(counts) < MIN_SEEDS:
        had = f"{counts[0]} and {counts[1]}" if counts[0] != counts[1] else str(counts[0])
        return without(f"it needs at least {MIN_SEEDS} training seeds of each, and there are {had}")
    try:
        test = stats.welch(one.values, two.values)
    except ValueError as error:
        return without(str(error))
    difference = Difference(test.difference, max(-1.0, test.low), min(1.0, test.high), "Welch t over seeds")
    return Comparison(
        *(place.train_task, place.eval_task, place.relation, a, b, one.metric, *counts),
        *(one.mean, two.mean, difference, test.t, test.df, test.p),
        p_holm=None,
        differs=None,
        statement="",
    )


def _state(comparison: Comparison, tests: int) -> str:
    a, b, gap = METHOD_NAMES[comparison.a], METHOD_NAMES[comparison.b], comparison.difference
    if gap is None or comparison.p is None or comparison.p_holm is None:
        raise ValueError("only a comparison with a test can be stated")
    numbers = (
        f"{100 * gap.value:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}], Welch t over {comparison.seeds_a} and "
        f"{comparison.seeds_b} training seeds, {p_text(comparison.p)}, after Holm's correction for {tests} "
        f"{'test' if tests == 1 else 'tests'} {p_text(comparison.p_holm)}"
    )
    where = f"on {comparison.eval_task}, trained on {comparison.train_task}"
    if comparison.differs:
        return f"{a} is {'more' if gap.value > 0 else 'less'} accurate than {b} {where}: {numbers}."
    return f"No difference shown between {a} and {b} {where}: {numbers}. That is not evidence that there is none."


def pairs(study: Study) -> list[Pair]:
    """Statements about checkpoints: methods trained on the same task with the same seed, and each checkpoint against the base.

    Raises:
        RecordError: runs of a method differ in more than their seed.
    """
    groups = trained(study)
    found = []
    for train_task in dict.fromkeys(task for _, task in groups):
        meetings: list[tuple[Run, Run]] = []
        for a, b in METHOD_PAIRS:
            seeds = {run.seed: run for run in groups.get((b, train_task), [])}
            meetings += [(run, seeds[run.seed]) for run in groups.get((a, train_task), []) if run.seed in seeds]
        if study.base:
            meetings += [(run, study.base) for (_, task), runs in groups.items() if task == train_task for run in runs]
        for spec in our_tasks(study):
            found += [pair for a, b in meetings if (pair := _pair(a, b, train_task, spec.name))]
    tested = [index for index, pair in enumerate(found) if pair.p is not None]
    for index, p_holm in zip(tested, stats.holm([p for pair in found if (p := pair.p) is not None]), strict=True):
        found[index] = replace(found[index], p_holm=p_holm)
    return found


def _pair(a: Run, b: Run, train_task: str, task: str) -> Pair | None:
    if task not in a.results or task not in b.results:
        return None
    ours, its = a.results[task].correct(), b.results[task].correct()
    if not ours or not its:
        return None
    common = ours.keys() & its.keys()
    both = sum(ours[item] and its[item] for item in common)
    only_a = sum(ours[item] and not its[item] for item in common)
    only_b = sum(its[item] and not ours[item] for item in common)
    n = len(common)
    counts = (n, both, only_a, only_b, n - both - only_a - only_b)
    names = (a.name, b.name, a.label, b.label, train_task, task)
    if ours.keys() != its.keys():
        why = f"they were asked different items ({len(ours)} and {len(its)}, {n} in common)"
        return Pair(*names, *counts, None, None, None, f"{a.label} and {b.label} on {task}: no test, {why}.", why)
    difference = Difference((only_a - only_b) / n, *stats.paired_difference(only_a, only_b, n), "paired items, these two checkpoints")
    p = stats.mcnemar(only_a, only_b)
    statement = (
        f"These two checkpoints on the same {n} items of {task}: only {a.label} has {only_a} right, only {b.label} {only_b} "
        f"({100 * difference.value:+.1f} points [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]), exact McNemar {p_text(p)}. "
        "It says nothing about other seeds of their methods."
    )
    return Pair(*names, *counts, difference, p, None, statement)


def gains(study: Study) -> Gains:
    """The paper's headline relative gains, measured by `acc` and by `acc_r1v`, and published beside the latter.

    Raises:
        RecordError: runs that would be averaged differ in more than their seed.
    """
    groups = trained(study)
    model = paper_model(study)
    taught = [spec for spec in our_tasks(study) if any(task == spec.name for _, task in groups)]
    worlds: dict[str, dict[str, str]] = {}
    for spec in taught:
        worlds.setdefault(spec.name.removeprefix(f"mr1_{spec.family}"), {})[spec.family] = spec.name
    found = []
    for tasks in worlds.values():
        for claim in CLAIMS:
            for metric in ("acc", "acc_r1v"):
                if claim.cross_task:
                    if len(tasks) == 2:
                        found.append(_cross_gain(claim, metric, groups, (tasks["vc"], tasks["gr"]), model))
                else:
                    found += [_same_gain(claim, metric, groups, tasks[family], model) for family in ("vc", "gr") if family in tasks]
    return Gains(tuple(found))


Ratio = tuple[float | None, tuple[float, float] | None, str]
"""A relative gain, its interval over seeds, and why one of them is missing."""


def _ratio(claim: Claim, metric: str, groups: dict[tuple[str, str], list[Run]], train_task: str, eval_task: str) -> Ratio:
    better, worse = (measure(groups.get((method, train_task), []), eval_task, metric) for method in (claim.better, claim.worse))
    for method, measured in ((claim.better, better), (claim.worse, worse)):
        if measured is None:
            return None, None, f"{METHOD_NAMES[method]} trained on {train_task} was not measured on {eval_task}"
    if better is None or worse is None or worse.mean == 0:
        return None, None, f"{METHOD_NAMES[claim.worse]} trained on {train_task} has nothing right on {eval_task}: no relative gain"
    value = better.mean / worse.mean - 1
    seeds = min(len(better.seeds), len(worse.seeds))
    if seeds < MIN_SEEDS:
        what = "1 seed" if seeds == 1 else f"{seeds} seeds"
        return value, None, f"of {what}: about these checkpoints, not about the methods"
    try:
        estimate = stats.relative_gain(better.values, worse.values)
    except ValueError as error:
        return value, None, str(error)
    return value, (estimate.low, estimate.high), ""


def _same_gain(claim: Claim, metric: str, groups: dict[tuple[str, str], list[Run]], task: str, model: str) -> Gain:
    value, limits, why = _ratio(claim, metric, groups, task, task)
    rows = [published.find(model, method, task, task) for method in (claim.better, claim.worse)]
    recomputed = None
    if metric == published.METRIC and rows[0] and rows[1]:
        recomputed = rows[0].value / rows[1].value - 1  # of the printed figures, as the paper's must be: the counts give 5.71 %
    stated = claim.value / 100 if recomputed is not None and model == claim.model and get_spec(task).family == "gr" else None
    low, high = limits or (None, None)
    return Gain(claim.name, claim.definition, metric, (task,), value, low, high, stated, recomputed, why)


def _cross_gain(claim: Claim, metric: str, groups: dict[tuple[str, str], list[Run]], tasks: Sequence[str], model: str) -> Gain:
    ratios = [_ratio(claim, metric, groups, train_task, eval_task) for train_task, eval_task in (tuple(tasks), tuple(reversed(tasks)))]
    values = [value for value, _, _ in ratios if value is not None]
    limits = [pair for _, pair, _ in ratios if pair is not None]
    value = low = high = None
    if len(values) == 2:
        value = sum(values) / 2
    if value is not None and len(limits) == 2:
        # The mean of two independent estimates, from their intervals (Zou and Donner 2008, see stats.square_and_add).
        low = value - sum((one - pair[0]) ** 2 for one, pair in zip(values, limits, strict=True)) ** 0.5 / 2
        high = value + sum((pair[1] - one) ** 2 for one, pair in zip(values, limits, strict=True)) ** 0.5 / 2
    why = "; ".join(dict.fromkeys(reason for _, _, reason in ratios if reason))
    real = set(tasks) == {row.eval_task for row in published.ROWS}
    stated = claim.value / 100 if real and metric == published.METRIC and model == claim.model else None
    return Gain(claim.name, claim.definition, metric, tuple(tasks), value, low, high, stated, None, why)
