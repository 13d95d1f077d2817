"""Two snapshots of a model's scores to verdicts: did it get worse, and is that more than noise?

Everything here is a pure function of values; docs/regression.md has the rules. The shapes are in `verdicts`, the tests in
`mr1_bench.stats` and `mr1_bench.paired`, what may be compared in `comparable`. This module must not know files, commands or how a
verdict is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

from mr1_bench import paired, stats
from mr1_bench.paired import Change
from mr1_bench.reports import comparable
from mr1_bench.reports.verdicts import (
    GATE,
    UNUSABLE,
    FlakyItem,
    Flip,
    HistoryEntry,
    HistoryTask,
    ItemScore,
    Regression,
    Settings,
    Snapshot,
    State,
    TaskSnapshot,
    Verdict,
)
from mr1_bench.reports.wording import explain_measure, explain_verdict

HEADLINE = "acc"
SHARES = ("acc", "format", "answered", "acc_r1v", "agreement")
EVERY_TASK = "all tasks"
"""Stands for the task in a verdict about a measure that was taken of a whole evaluation."""
_FLAKY_TURNS = 3
"""From which an item is flaky. Two are common: of 400 items 88 turned twice over snapshots of three different models."""
_Seeds = tuple[TaskSnapshot, ...]


def compare(baseline: Snapshot, current: Snapshot, settings: Settings | None = None, history: Sequence[HistoryEntry] = ()) -> Regression:
    """Compare two snapshots, item by item.

    Args:
        baseline: the old side.
        current: the new side.
        settings: what decides; the defaults of `Settings` where absent.
        history: snapshots before the baseline, the oldest first, for the list of flaky items.
    """
    settings = settings or Settings()
    verdicts: list[Verdict] = []
    changes: list[Change | None] = []
    flips: list[Flip] = []
    unchecked: dict[tuple[str, str], list[str]] = {}
    for task in dict.fromkeys([*current.tasks, *baseline.tasks]):
        old, new = baseline.tasks.get(task), current.tasks.get(task)
        refused = _refusal(task, old, new, settings)
        if refused or not old or not new:
            verdicts += [refused] if refused else []
            changes += [None] if refused else []
            continue
        for what in comparable.unchecked(old[0], new[0]):
            unchecked.setdefault(what, []).append(task)
        for verdict, change in _task_verdicts(task, old, new, settings):
            verdicts.append(verdict)
            changes.append(change)
        flips += _flips(task, old[0], new[0])
    judged = _judge(verdicts, changes, settings) + _measure_verdicts(baseline, current, settings)
    order = sorted(judged, key=lambda one: not one.headline)
    flaky = [item for task in current.tasks for item in _flaky(task, baseline, current, history)]
    flaky.sort(key=lambda one: (-one.turns, one.task, one.doc_id))
    flips.sort(key=lambda one: one.direction != "lost")
    notes = [*comparable.unchecked_notes(unchecked), *_notes(baseline, current)]
    return Regression(baseline, current, tuple(order), tuple(flips), tuple(flaky), settings, tuple(notes))


def exit_code(regression: Regression) -> int:
    """0: nothing to fail on; 1: something regressed (or is in another state of `fail_on`); 2: not comparable or no baseline.

    A comparison in which nothing that gates was compared is never a success, whatever states are allowed.
    """
    gating = [verdict.state for verdict in regression.verdicts if verdict.gates]
    failing = {state for state in gating if state in regression.settings.fail_on}
    if failing.intersection(UNUSABLE) or (regression.settings.fail_on and all(state in UNUSABLE for state in gating)):
        return 2
    return 1 if failing else 0


def history_of(snapshot: Snapshot) -> HistoryEntry:
    """Return a snapshot as an entry of a history: scores of each item, without texts; of several training seeds the first."""
    tasks = {}
    for task, seeds in snapshot.tasks.items():
        first = seeds[0]
        names = dict.fromkeys(metric for item in first.items for metric in item.scores)
        scores = {metric: tuple(item.scores.get(metric) for item in first.items) for metric in names}
        tasks[task] = HistoryTask(len(first.items), comparable.asked_hash(first), first.means, scores)
    return HistoryEntry(snapshot.commit, snapshot.created, snapshot.model, snapshot.weights, snapshot.label, tasks)


def _refusal(task: str, old: _Seeds | None, new: _Seeds | None, settings: Settings) -> Verdict | None:
    """A verdict that nothing can be said of a task; None where the two sides may be compared."""
    bare = Verdict(task, HEADLINE, "not-comparable", "", True, bool(settings.gate), tolerance=settings.tolerance(HEADLINE))
    if not new:
        return replace(bare, why="the current run did not answer it: evaluate it, or leave it out with --tasks")
    mean = fmean(seed.means[HEADLINE] for seed in new)
    if not old:
        advice = "the baseline does not have it: save a new one with `mr1-bench baseline save`"
        return replace(bare, state="no-baseline", why=advice, new=mean, n=len(new[0].items))
    for other in (*old[1:], *new):
        differs = comparable.differences(old[0], other)
        if differs:
            why = comparable.explain(differs, old[0], other)
            seeds = len(old), len(new)
            return replace(bare, why=why, old=fmean(seed.means[HEADLINE] for seed in old), new=mean, seeds=seeds, differs=differs)
    return None


def _score(item: ItemScore, metric: str) -> float | None:
    """An item's score; `agreement` is 1 where both graders say the same."""
    if metric == "tokens":
        return item.tokens
    if metric != "agreement":
        return item.scores.get(metric)
    a, b = item.scores.get("acc"), item.scores.get("acc_r1v")
    return float(a == b) if a in (0.0, 1.0) and b in (0.0, 1.0) else None


def _task_verdicts(task: str, old: _Seeds, new: _Seeds, settings: Settings) -> list[tuple[Verdict, Change | None]]:
    """Verdicts of a task without their states, and what the test found."""
    found: list[tuple[Verdict, Change | None]] = []
    for metric in (*SHARES, "tokens"):
        sides = tuple([[_score(item, metric) for item in seed.items] for seed in side] for side in (old, new))
        has = tuple(any(score is not None for row in side for score in row) for side in sides)
        shape = Verdict(task, metric, "pass", "", metric == HEADLINE, metric in settings.gate, seeds=(len(old), len(new)))
        if metric == "tokens":
            shape = replace(shape, unit="tokens", better="lower")
        if not all(has):
            if any(has) or (shape.gates and settings.gate != GATE):
                found.append((_recorded(shape, *has), None))
            continue
        columns = [column for column in zip(*sides[0], *sides[1], strict=True) if None not in column]
        absent, alone = _absent(*sides)
        total = len(old[0].items)
        if len(columns) < 2 or alone > settings.tolerance(metric) * total:
            why = f"recorded of other items: {absent} of {total:,}" if absent else f"only {len(columns)} items have it on both sides"
            found.append((replace(shape, state="not-comparable", why=why, n=len(columns)), None))
            continue
        if absent:
            shape = replace(shape, why=f"left out: {absent} of {total:,} items")
        rows = [[score for score in row if score is not None] for row in zip(*columns, strict=True)]
        found.append(_tested(shape, rows[: len(old)], rows[len(old) :], settings))
    return found


def _recorded(shape: Verdict, old: bool, new: bool) -> Verdict:
    """A verdict about a metric that one side, or both, do not have."""
    where = "in the baseline only" if old else "in the current run only" if new else "on neither side"
    state: State = "no-baseline" if new else "not-comparable"
    return replace(shape, state=state, why=f"recorded {where}; leave it out of --gate, or evaluate with what records it")


def _absent(old: Sequence[Sequence[float | None]], new: Sequence[Sequence[float | None]]) -> tuple[str, int]:
    """The items without a score in words, empty where there are none, and how many of them lack it on one side only."""
    gone = [tuple(None in column for column in zip(*side, strict=True)) for side in (old, new)]
    ways = list(zip(*gone, strict=True))
    kinds = ((True, False), "absent from the baseline"), ((False, True), "absent from the current run"), ((True, True), "from both sides")
    words = " and ".join(f"{ways.count(way):,} {text}" for way, text in kinds if way in ways)
    return words, ways.count((True, False)) + ways.count((False, True))


def _tested(shape: Verdict, old: list[list[float]], new: list[list[float]], settings: Settings) -> tuple[Verdict, Change]:
    """Test a metric of the same items on both sides, one row a training seed."""
    n = len(old[0])
    means = fmean(map(fmean, old)), fmean(map(fmean, new))
    tolerance = settings.tolerance(shape.metric) * (1.0 if shape.unit == "share" else means[0])
    shape = replace(shape, old=means[0], new=means[1], n=n, tolerance=tolerance)
    scale = 1.0 if shape.unit == "share" else max(means)  # of a length: once as long, or empty
    if max(len(old), len(new)) > 1:
        change = paired.change_over_seeds(old, new, scale=scale)
        return replace(shape, test=f"t test over {len(old)} and {len(new)} training seeds and {n} items"), change
    pairs = list(zip(old[0], new[0], strict=True))
    if shape.unit == "share" and all(score in (0.0, 1.0) for pair in pairs for score in pair):
        lost, won = sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)
        change = paired.share_change(lost, won, n, stats.mcnemar(won, lost))
        return replace(shape, test="exact McNemar", lost=lost, won=won), change
    seed, resamples = settings.bootstrap_seed, settings.resamples
    change = paired.paired_bootstrap([b - a for a, b in pairs], seed, resamples, scale=scale)
    return replace(shape, test=f"paired bootstrap, {resamples:,} resamples, seed {seed}"), change


def _judge(verdicts: Sequence[Verdict], changes: Sequence[Change | None], settings: Settings) -> list[Verdict]:
    """Give each verdict its state: Holm within the headline metrics, within the others that gate, and within the rest.

    A verdict fails in one direction only, so that each of the two families that gate errs in at most half of alpha, and both in alpha.
    """
    families: tuple[Callable[[Verdict], bool], ...] = (
        lambda one: one.headline,
        lambda one: one.gates and not one.headline,
        lambda one: not one.gates and not one.headline,
    )
    judged = list(verdicts)
    for belongs in families:
        places = [(index, change) for index, change in enumerate(changes) if change is not None and belongs(verdicts[index])]
        corrected = stats.holm([change.p for _, change in places])
        for (index, change), p_holm in zip(places, corrected, strict=True):
            judged[index] = _settle(verdicts[index], change, p_holm, len(places), settings)
    return judged


def state_of(difference: float, low: float, p: float, tolerance: float, alpha: float) -> State:
    """Return the state of a tested metric.

    Args:
        difference: new - old, counted so that more is better.
        low: lower limit of its 95 % interval.
        p: corrected p-value.
        tolerance: the change that matters.
        alpha: level of the test.
    """
    if p < alpha and abs(difference) > tolerance:
        return "regressed" if difference < 0 else "improved"
    return "pass" if low > -tolerance else "inconclusive"


def _settle(verdict: Verdict, change: Change, p_holm: float, family: int, settings: Settings) -> Verdict:
    sign = 1 if verdict.better == "higher" else -1
    worst = change.low if sign > 0 else -change.high
    state = state_of(sign * change.difference, worst, p_holm, verdict.tolerance, settings.alpha)
    detectable, needed = _sight(verdict, change, settings.alpha / family, settings.power)
    had_enough = state == "inconclusive" and needed is not None and needed <= verdict.n
    if had_enough:
        needed = _settled_at(verdict.n, sign * change.difference, (change.high - change.low) / 2, verdict.tolerance)
    verdict = replace(
        verdict,
        state=state,
        difference=change.difference,
        low=change.low,
        high=change.high,
        p=change.p,
        p_holm=p_holm,
        detectable=detectable,
        needed=needed,
    )
    return replace(verdict, why="; ".join(filter(None, (explain_verdict(verdict, family, settings, had_enough), verdict.why))))


def _sight(verdict: Verdict, change: Change, alpha: float, power: float) -> tuple[float | None, int | None]:
    """The smallest drop that this comparison shows, and with how many items an unchanged model passes."""
    n, tolerance = verdict.n, verdict.tolerance
    if verdict.test == "exact McNemar":
        differing = (verdict.lost + verdict.won) / n
        detectable = paired.smallest_visible_drop(n, differing, alpha, power, tolerance)
        return detectable, paired.items_to_pass(tolerance, differing, power) if tolerance > 0 else None
    ruled_out = paired.visible_difference(change.se, 1 - stats.LEVEL, power)
    needed = max(2, math.ceil(n * (ruled_out / tolerance) ** 2)) if tolerance > 0 and verdict.seeds == (1, 1) else None
    return paired.visible_difference(change.se, alpha, power, tolerance), needed


def _settled_at(n: int, gain: float, half: float, tolerance: float) -> int | None:
    """Items with which an interval of half width `half` over n items settles a change near the tolerance, if the change stays as it is."""
    gap = -gain if gain < -tolerance else gain + tolerance
    needed = n * (half / gap) ** 2 if gap > 0 else math.inf
    return max(n + 1, math.ceil(needed)) if needed <= paired.MOST_ITEMS else None


def _measure_verdicts(baseline: Snapshot, current: Snapshot, settings: Settings) -> list[Verdict]:
    """Verdicts about single numbers, which have no spread: by tolerance alone, and only of the same engine on both sides."""
    found: list[Verdict] = []
    for metric in ("tokens_per_s", "peak_memory_bytes"):
        by_task: dict[str, Verdict] = {}
        for task, new in current.tasks.items():
            old = baseline.tasks.get(task, ())
            values = [[seed.measures[metric] for seed in side if metric in seed.measures] for side in (old, new)]
            if old and values[0] and values[1]:
                engines = {seed.engine for seed in (*old, *new)}
                by_task[task] = _measured(task, metric, fmean(values[0]), fmean(values[1]), engines, settings)
            elif old and metric in settings.gate:
                by_task[task] = _recorded(Verdict(task, metric, "pass", "", gates=True), bool(values[0]), bool(values[1]))
        shared = {(one.old, one.new, one.state) for one in by_task.values()}
        if len(by_task) > 1 and len(shared) == 1:  # taken of a whole evaluation
            found.append(replace(next(iter(by_task.values())), task=EVERY_TASK))
        else:
            found += by_task.values()
    return found


def _measured(task: str, metric: str, old: float, new: float, engines: set[str], settings: Settings) -> Verdict:
    speed = metric == "tokens_per_s"
    verdict = Verdict(task, metric, "pass", "", gates=metric in settings.gate, unit="tokens/s" if speed else "bytes")
    tolerance = settings.tolerance(metric) * old
    verdict = replace(verdict, better="higher" if speed else "lower", old=old, new=new, difference=new - old, tolerance=tolerance)
    if len(engines) > 1:
        return replace(verdict, state="not-comparable", why=f"other engines or settings: {' and '.join(sorted(map(repr, engines)))}")
    better = (new - old) * (1 if speed else -1)
    state: State = "regressed" if better < -tolerance else "improved" if better > tolerance else "pass"
    verdict = replace(verdict, state=state)
    return replace(verdict, why=explain_measure(verdict))


def _right(item: ItemScore) -> bool:
    return item.scores.get(HEADLINE, 0.0) > 0.5


def _flips(task: str, old: TaskSnapshot, new: TaskSnapshot) -> list[Flip]:
    pairs = [(a, b) for a, b in zip(old.items, new.items, strict=True) if _right(a) != _right(b)]
    return [Flip(task, "lost" if _right(a) else "won", a, b) for a, b in pairs]


def _flaky(task: str, baseline: Snapshot, current: Snapshot, history: Sequence[HistoryEntry]) -> list[FlakyItem]:
    """Items that turned often over the comparable snapshots."""
    if not history:
        return []
    new = current.tasks[task][0]
    asked = comparable.asked_hash(new)
    entries = [*history, history_of(baseline), history_of(current)]
    known = [entry.tasks[task] for entry in entries if task in entry.tasks and entry.tasks[task].asked == asked]
    rows = [one.scores[HEADLINE] for one in known if HEADLINE in one.scores]
    found = []
    for item, scores in zip(new.items, zip(*rows, strict=True), strict=True):
        right = [score > 0.5 for score in scores if score is not None]
        turns = sum(a != b for a, b in pairwise(right))
        if turns >= _FLAKY_TURNS:
            found.append(FlakyItem(task, item.doc_id, item.item, item.gold, len(right), sum(right), turns))
    return found


def _notes(baseline: Snapshot, current: Snapshot) -> list[str]:
    """What a reader should know besides."""
    notes = []
    if baseline.weights and baseline.weights == current.weights:
        notes.append(f"Both sides are the same checkpoint (weights {current.weights[:12]}).")
    shared = [(baseline.tasks[task], new) for task, new in current.tasks.items() if task in baseline.tasks]
    if shared and all(len(old) == len(new) == 1 for old, new in shared) and any(new[0].seed is not None for _, new in shared):
        notes.append("One checkpoint a side: the verdicts speak of these checkpoints, not of the training that made them.")
    versions = _values(shared, lambda one: str(one.identity.get("code_sha256") or ""))
    if len(versions) > 1:
        notes.append("The two sides were graded by different versions of mr1-bench; `mr1-bench eval` grades kept answers again.")
    engines = _values(shared, lambda one: one.engine)
    if len(engines) > 1:
        notes.append(f"The answers come from different engines or settings: {' and '.join(sorted(engines))}.")
    return notes


def _values(shared: Sequence[tuple[_Seeds, _Seeds]], read: Callable[[TaskSnapshot], str]) -> set[str]:
    return {value for old, new in shared for seed in (*old, *new) if (value := read(seed))}


def tasks_of(snapshot: Snapshot, names: Sequence[str]) -> Snapshot:
    """Return a snapshot with some of its tasks only, in the order given; names that it lacks are left out."""
    kept: Mapping[str, _Seeds] = {name: snapshot.tasks[name] for name in names if name in snapshot.tasks}
    return replace(snapshot, tasks=kept)
