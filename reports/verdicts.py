"""The shapes of a regression gate: snapshots of what a model scored, verdicts about two of them, and the settings that decide.

A snapshot is what one side scored, item by item; a verdict is one line about one metric of one task. Here stand the shapes alone:
`snapshots` and `baseline` read them, `regression` compares them. This module must not know files, statistics or how anything is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

State = Literal["pass", "improved", "regressed", "inconclusive", "not-comparable", "no-baseline"]
"""`pass`: the lower 95 % bound of new - old lies above minus the tolerance. `regressed`: the drop exceeds the tolerance and the paired test
is significant after Holm; `improved` is its mirror. `inconclusive`: neither, so more items are needed. `not-comparable`: other data,
prompt, decoding or items. `no-baseline`: the baseline does not have it."""
STATES: tuple[State, ...] = ("pass", "improved", "regressed", "inconclusive", "not-comparable", "no-baseline")
UNUSABLE: tuple[State, ...] = ("not-comparable", "no-baseline")
"""States of which nothing was compared."""
Direction = Literal["lost", "won"]


@dataclass(frozen=True, slots=True)
class ItemScore:
    """One item as one checkpoint answered it.

    Attributes:
        doc_id: position in the task's data.
        item: the item's own name; empty in results of others.
        gold: the gold string.
        text: what the model wrote (the first answer of several); None where a baseline was saved without texts.
        scores: metric (`acc`, `acc_r1v`, `format`, `answered`) -> 0.0 or 1.0, or the mean over repeats; a grader without verdict is absent.
        value: what `acc` read as the answer; None where it read none.
        tokens: length of the answer (mean over repeats); None where nothing is recorded.
    """

    doc_id: int
    item: str
    gold: str
    text: str | None
    scores: Mapping[str, float]
    value: str | None = None
    tokens: float | None = None


def means_of(items: Sequence[ItemScore]) -> dict[str, float]:
    """Return the mean of each metric over the items that have it."""
    names = dict.fromkeys(metric for item in items for metric in item.scores)
    return {metric: fmean(item.scores[metric] for item in items if metric in item.scores) for metric in names}


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """One checkpoint on one task.

    Attributes:
        identity: what decides what was asked: dataset_sha256, pixels_sha256, prompt_sha256, asked_sha256 (of all inputs as sent),
            decoding (max_new_tokens, temperature, top_p); a key that is not known is absent.
        items: in the order of `doc_id`.
        means: metric -> mean over items.
        measures: `tokens_per_s`, `peak_memory_bytes`, as far as recorded.
        engine: what generated the answers, with its settings; empty where nothing is recorded.
        seed: of training; None where unknown or for a base model.
        repeats: answers an item.
        weights: hash (or name) of this checkpoint.
    """

    identity: Mapping[str, Any]
    items: tuple[ItemScore, ...]
    means: Mapping[str, float]
    measures: Mapping[str, float] = field(default_factory=dict)
    engine: str = ""
    seed: int | None = None
    repeats: int = 1
    weights: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One side of a comparison.

    Attributes:
        source: path of the folder or file it was read from, as the user named it.
        model: path or name of the checkpoint.
        weights: its hash (or name); of several training seeds, of the first.
        created: when it was evaluated, ISO 8601; empty where unknown.
        tasks: by task name, one entry a training seed; nearly always one.
        commit: commit of the user's repository that it belongs to; empty where unknown.
        label: how a person names it, such as `main`.
    """

    source: str
    model: str
    weights: str
    created: str
    tasks: Mapping[str, tuple[TaskSnapshot, ...]]
    commit: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class HistoryTask:
    """One task in an earlier snapshot, without texts.

    Attributes:
        n: number of items.
        asked: hash of what was asked (data, prompt, decoding, items); entries are comparable where it is equal.
        means: metric -> mean.
        scores: metric -> score of each item in the order of `doc_id`; None where there was no verdict.
    """

    n: int
    asked: str
    means: Mapping[str, float]
    scores: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One earlier snapshot of a baseline file, the oldest first in a history."""

    commit: str
    created: str
    model: str
    weights: str
    label: str
    tasks: Mapping[str, HistoryTask]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line about one metric of one task. Shares are between 0 and 1, differences new - old in the metric's unit.

    Attributes:
        task: the task's name; `all tasks` for a measure taken of a whole evaluation.
        metric: `acc`, `acc_r1v`, `format`, `answered`, `agreement` (of the two graders), `tokens` (mean completion length),
            `tokens_per_s` or `peak_memory_bytes`.
        state: the verdict.
        why: one line for a person, without the task's and metric's name.
        headline: whether it belongs to the metrics that Holm corrects together (`acc` of every task).
        gates: whether it counts for the exit code.
        unit: `share`, `tokens`, `tokens/s` or `bytes`.
        better: which direction is better.
        tolerance: the change for the worse that is still no regression, in the metric's unit.
        old, new: values; None where one is absent.
        difference: new - old.
        low, high: its 95 % interval; None where there is none (a single number has no spread).
        n: number of items paired.
        seeds: training seeds, old and new.
        p: of the test, two-sided, uncorrected.
        p_holm: corrected.
        test: what was tested, in words, such as `exact McNemar`; empty where nothing was.
        detectable: smallest true drop that this n shows with 80 % power, in the metric's unit; None where it cannot be said.
        needed: items with which an unchanged model passes with 80 % chance; where this n has as many and did not settle it, those that do
            if the difference stays as it is; None where it cannot be said.
        lost, won: items that turned from right to wrong, and from wrong to right (0/1 metrics only).
        differs: what forbids the comparison: (`data` | `prompt` | `decoding` | `item set`, hash of old, hash of new).
    """

    task: str
    metric: str
    state: State
    why: str
    headline: bool = False
    gates: bool = False
    unit: Literal["share", "tokens", "tokens/s", "bytes"] = "share"
    better: Literal["higher", "lower"] = "higher"
    tolerance: float = 0.0
    old: float | None = None
    new: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    seeds: tuple[int, int] = (1, 1)
    p: float | None = None
    p_holm: float | None = None
    test: str = ""
    detectable: float | None = None
    needed: int | None = None
    lost: int = 0
    won: int = 0
    differs: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Flip:
    """An item whose `acc` turned: `lost` from right to wrong, `won` from wrong to right. The views name its kind."""

    task: str
    direction: Direction
    old: ItemScore
    new: ItemScore


@dataclass(frozen=True, slots=True)
class FlakyItem:
    """An item that keeps turning over a history.

    Attributes:
        task, doc_id, item, gold: which one; `item` and `gold` as in the current snapshot.
        seen: number of comparable snapshots that answered it.
        right: how often `acc` was 1.
        turns: how often it turned from one snapshot to the next.
    """

    task: str
    doc_id: int
    item: str
    gold: str
    seen: int
    right: int
    turns: int


TOLERANCES = {"format": 0.02, "answered": 0.02, "agreement": 0.02, "tokens": 0.1, "tokens_per_s": 0.2, "peak_memory_bytes": 0.1}
"""Metric -> change for the worse that is still no regression: of shares as a share, of others as a part of the old value. That of `acc` and
`acc_r1v` is `Settings.min_effect`."""


GATE = ("acc", "format", "answered")
"""The metrics that gate where none are named."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides a verdict.

    Attributes:
        min_effect: change of `acc` that matters, as a share (0.01 is 1 point).
        alpha: level of the tests.
        power: chance of finding, for the effect that n items can show and the items needed.
        bootstrap_seed, resamples: of the paired bootstrap.
        tolerances: metric -> tolerance, where it is not that of `TOLERANCES`; of shares a share, of others a part of the old value.
        gate: metrics that count for the exit code. In a gate other than `GATE` a metric that neither side records is not comparable; in
            that one it is left out, because a task that asks for the bare answer has no format.
        fail_on: states that make the exit code not 0: 2 for `not-comparable` and `no-baseline`, else 1.
    """

    min_effect: float = 0.01
    alpha: float = 0.05
    power: float = 0.8
    bootstrap_seed: int = 0
    resamples: int = 10_000
    tolerances: Mapping[str, float] = field(default_factory=dict)
    gate: tuple[str, ...] = GATE
    fail_on: tuple[State, ...] = ("regressed", "not-comparable", "no-baseline")

    def tolerance(self, metric: str) -> float:
        """The tolerance of a metric: a share, or a part of the old value."""
        return self.tolerances.get(metric, TOLERANCES.get(metric, self.min_effect))


@dataclass(frozen=True, slots=True)
class Regression:
    """Everything a comparison found.

    Attributes:
        baseline, current: the two sides, whole.
        verdicts: headline metrics first, in the order of the tasks; then the others.
        flips: items whose `acc` turned (first training seed of either side), lost ones first, in the order of task and `doc_id`.
        flaky: items that keep turning over the baseline's history and the current snapshot, worst first.
        settings: what decided.
        notes: what a reader should know, one sentence each, such as that the prompt is recorded on neither side.
    """

    baseline: Snapshot
    current: Snapshot
    verdicts: tuple[Verdict, ...]
    flips: tuple[Flip, ...]
    flaky: tuple[FlakyItem, ...]
    settings: Settings
    notes: tuple[str, ...] = ()
