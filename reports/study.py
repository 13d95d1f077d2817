"""A study: the runs of an experiment, read from their folders into plain values that tables, figures and the page are made from.

Here stand the shapes alone; `collect` reads them. This module must not know files, statistics or how anything is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mr1_bench.records import METHODS as TRAINED

Arm = Literal["main", "beta", "format", "schedule", "other"]
"""What a run is for: the main grid (table 1, figures 1, 5, 7), a sweep of the constant KL weight (figure 6), of the format weight
(figure 4), of the KL schedules (ours), or none of these."""

METHODS = ("base", *TRAINED)
"""In the order in which tables and figures show them."""
METHOD_NAMES = {"base": "Base", "sft": "SFT", "grpo": "GRPO", "grpo-d": "GRPO-D"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One graded answer.

    Attributes:
        doc_id: position of the item in the task's data.
        item: the item's own name, such as `vc_synth-l1-test-000017`; empty in results of others.
        gold: the gold string.
        text: what the model wrote.
        scores: metric name -> 0.0 or 1.0; a grader that gave no verdict is absent.
        value: what `acc` read as the answer; None where it read none.
        value_r1v: what `acc_r1v` read.
        tokens: length of the answer in tokens; None where nothing is recorded.
    """

    doc_id: int
    item: str
    gold: str
    text: str
    scores: Mapping[str, float]
    value: str | None = None
    value_r1v: str | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One checkpoint on one task.

    Attributes:
        task: the task's full name, such as `mr1_gr_synth`.
        folder: where the evaluation's files lie.
        answers: in the order of `doc_id`; empty where only means are known (results of others without samples).
        means: metric name -> share, as recorded.
        identity: what was asked, of what engine, and by what code it was graded (`evaluations.IDENTITY`); in results of others only what
            their files say.
        engine: what generated the answers, such as `qwen2_vl`, with its settings; empty where nothing is recorded.
        tokens_per_s: as recorded.
        foreign: whether plain lmms-eval wrote it.
    """

    task: str
    folder: Path
    answers: tuple[Answer, ...]
    means: Mapping[str, float]
    identity: Mapping[str, Any]
    engine: str = ""
    tokens_per_s: float | None = None
    foreign: bool = False

    @property
    def n(self) -> int:
        """Number of items answered."""
        return len(self.answers)

    def correct(self, metric: str = "acc") -> dict[int, bool]:
        """Verdicts of a metric by `doc_id`; items without a verdict are absent."""
        return {answer.doc_id: answer.scores[metric] == 1.0 for answer in self.answers if metric in answer.scores}


@dataclass(frozen=True, slots=True)
class Run:
    """One checkpoint: how it was trained, what was seen on the way, and its evaluations.

    Attributes:
        name: short and unique in the study, such as `grpo-d-gr-synth-s0`; also its anchor in the page.
        folder: the run folder; of results of others, the folder of the evaluation.
        model: the checkpoint as recorded.
        weights: its hash.
        method: `base`, `sft`, `grpo` or `grpo-d`.
        task: full name of the task trained on (`mr1_gr_synth`); of several, joined by commas; empty for the base.
        seed: of training; None for the base.
        arm: what the run is for.
        config: the whole training configuration; empty for the base and where only `{method, task, seed}` is known.
        start: hash of the weights that training started from; empty where unknown.
        record: the whole `run.json` of the training, else of the first evaluation.
        metrics: rows of metrics.jsonl, in order (keys: `step`, `reward`, `accuracy`, `format`, `kl`, `beta`, …).
        evals: rows of evals.jsonl (keys: `step`, `split` in `validation`/`test`, `items`, `accuracy`, `format`).
        results: by task.
    """

    name: str
    folder: Path
    model: str
    weights: str
    method: str
    task: str
    seed: int | None
    arm: Arm
    config: Mapping[str, Any]
    start: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Mapping[str, Any], ...] = ()
    evals: tuple[Mapping[str, Any], ...] = ()
    results: Mapping[str, Result] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How a person names it: `GRPO-D on mr1_gr_synth, seed 0`."""
        if self.method == "base":
            return METHOD_NAMES["base"]
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{METHOD_NAMES.get(self.method, self.method)} on {self.task}{seed}"


@dataclass(frozen=True, slots=True)
class Missing:
    """A run that is not in the study, and why: failed, unfinished, not comparable."""

    name: str
    folder: Path
    why: str


@dataclass(frozen=True, slots=True)
class Study:
    """All runs, the base first, then by method, task, arm and seed."""

    runs: tuple[Run, ...]
    missing: tuple[Missing, ...] = ()
    parity: tuple[Mapping[str, Any], ...] = ()
    """Contents of every `parity.json` found: the difference between two engines (written by `mr1-bench parity`)."""

    def select(self, *, method: str | None = None, task: str | None = None, arm: Arm | None = None) -> list[Run]:
        """The runs of a method, a training task and an arm, as far as these are given."""
        return [run for run in self.runs if method in (None, run.method) and task in (None, run.task) and (arm is None or run.arm == arm)]

    @property
    def base(self) -> Run | None:
        """The model before training."""
        return next((run for run in self.runs if run.method == "base"), None)

    @property
    def tasks(self) -> list[str]:
        """Names of the evaluated tasks, in the order of their first appearance."""
        return list(dict.fromkeys(task for run in self.runs for task in run.results))
