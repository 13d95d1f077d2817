"""What the paper published as numbers, one frozen row each: OThink-MR1, arXiv 2503.16081.

What it shows in figures only is absent here, never zero and never read off a picture; `UNPUBLISHED` names it. The published figures
follow the R1-V protocol, so they stand beside `acc_r1v` and no other metric. This module must not know what anybody measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

PAPER = "OThink-MR1, arXiv 2503.16081v2"
"""The version whose abstract states the headline gains; version 1 does not."""
METRIC = "acc_r1v"
"""The only metric of ours that measures what the paper measured."""


@dataclass(frozen=True, slots=True)
class Published:
    """One number of the paper.

    Attributes:
        paper: paper and version.
        table: where in it.
        model: the model that was post-trained, as the paper names it.
        method: `base`, `sft`, `grpo` or `grpo-d`.
        train_task: full name of the task trained on; empty for the base.
        eval_task: full name of the task tested on.
        value: accuracy in %, as printed.
        k: right answers that the value stands for. The paper prints no counts; every printed value is a k/n of the R1-V protocol.
        n: items of the R1-V protocol: 200 (counting), 754 (geometry).
    """

    paper: str
    table: str
    model: str
    method: str
    train_task: str
    eval_task: str
    value: float
    k: int
    n: int

    @property
    def source(self) -> str:
        """Paper and table in a few words."""
        return f"{self.paper}, {self.table}"


@dataclass(frozen=True, slots=True)
class Claim:
    """One headline claim of the paper: "more than" so much relative gain.

    Attributes:
        name: in a few words.
        model: the model it is about.
        better, worse: methods.
        cross_task: whether training and test task differ.
        value: relative gain in %, as printed.
        definition: how it comes about.
    """

    name: str
    model: str
    better: str
    worse: str
    cross_task: bool
    value: float
    definition: str


_ITEMS = {"mr1_vc": 200, "mr1_gr": 754}


def _rows(model: str, values: dict[str, tuple[float, float]]) -> list[Published]:
    rows = []
    for method, pair in values.items():
        for (task, n), value in zip(_ITEMS.items(), pair, strict=True):
            train = "" if method == "base" else task
            rows.append(Published(PAPER, "table 1", model, method, train, task, value, round(value * n / 100), n))
    return rows


ROWS: tuple[Published, ...] = (
    *_rows(
        "Qwen2-VL-2B-Instruct",
        {"base": (42.50, 15.52), "grpo": (64.50, 30.24), "sft": (68.50, 32.49), "grpo-d": (76.50, 34.35)},
    ),
    *_rows(
        "Qwen2-VL-7B-Instruct",
        {"base": (76.00, 33.16), "grpo": (76.50, 42.04), "sft": (74.50, 43.50), "grpo-d": (78.00, 45.49)},
    ),
)
"""Table 1, same-task accuracy."""

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "same-task, GRPO-D over SFT",
        "Qwen2-VL-2B-Instruct",
        "grpo-d",
        "sft",
        False,
        5.72,
        "(GRPO-D − SFT) / SFT on the task trained on; the paper's figure is its geometry cell, the smaller of its two tasks",
    ),
    Claim(
        "same-task, GRPO-D over GRPO",
        "Qwen2-VL-2B-Instruct",
        "grpo-d",
        "grpo",
        False,
        13.59,
        "(GRPO-D − GRPO) / GRPO on the task trained on; the paper's figure is its geometry cell, the smaller of its two tasks",
    ),
    Claim(
        "cross-task, GRPO-D over SFT",
        "Qwen2-VL-2B-Instruct",
        "grpo-d",
        "sft",
        True,
        61.63,
        "mean over both directions (trained on counting, tested on geometry, and the reverse) of (GRPO-D − SFT) / SFT; "
        "none of its inputs is published",
    ),
)

UNPUBLISHED: tuple[str, ...] = (
    "Accuracy over training steps (figure 1): a curve without numbers.",
    "Accuracy and format accuracy by weight of the format reward (figure 4), and the weight chosen: a plot without numbers.",
    "Format and accuracy reward over training steps (figure 5): curves without numbers.",
    "Accuracy by constant KL weight (figure 6): a plot without numbers.",
    "Cross-task accuracies (figure 7), from which the average gain of 61.63 % is computed: a plot without numbers.",
    "The formula of GRPO-D's KL weight and its bounds.",
    "Training steps, group size, learning rate, batch size and sizes of the training sets.",
    "The number of training seeds, and any spread over them: each published figure is taken as one checkpoint's.",
)
"""What the paper does not give as numbers, one sentence each; our settings in their place are assumptions, and the recipes say so."""

_MODEL = re.compile(r"(?:models--qwen--)?qwen2-vl-(2|7)b-instruct", re.IGNORECASE)


def model_name(model: str) -> str:
    """Return the paper's name of a model, or an empty string for any other.

    Args:
        model: name on the hub, or path of a folder of that name; the hub's cache folders are understood. A checkpoint inside such a
            folder is another model.
    """
    parts = PurePosixPath(model.strip().replace("\\", "/")).parts
    if len(parts) >= 3 and parts[-2] == "snapshots":
        parts = parts[:-2]
    match = _MODEL.fullmatch(parts[-1]) if parts else None
    return f"Qwen2-VL-{match[1]}B-Instruct" if match else ""


def find(model: str, method: str, train_task: str, eval_task: str) -> Published | None:
    """Return the published number of a model, method, training task and test task; None where there is none.

    Args:
        model: as the paper names it (`model_name`).
        method: `base`, `sft`, `grpo` or `grpo-d`.
        train_task: full name; empty for the base.
        eval_task: full name.
    """
    wanted = (model, method, train_task, eval_task)
    return next((row for row in ROWS if (row.model, row.method, row.train_task, row.eval_task) == wanted), None)
