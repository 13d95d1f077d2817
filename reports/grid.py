"""The grid of the reproduction: which runs there are, with which settings, evaluated on what. A preset file in, cells out.

The grid is the paper's (base; SFT, GRPO and GRPO-D on both tasks and several seeds; sweeps of the constant KL weight and of the format
weight) and ours (every KL schedule side by side, the direct-answer baseline). A cell is a run of `mr1-bench train` followed by one of
`mr1-bench eval`; it carries the arguments of both, so that it can run anywhere. This module must not know how cells are run or what lies
on disk.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from mr1_bench.errors import UserError
from mr1_bench.records import sha256_json
from mr1_bench.reports.preset import Cost, Preset
from mr1_bench.reports.study import Arm
from mr1_bench.specs import expand, get_spec
from mr1_bench.trainers import flags
from mr1_bench.trainers.checkpoints import MAY_CHANGE
from mr1_bench.trainers.checks import canonical_tasks, check
from mr1_bench.trainers.config import GRPOConfig, Method, TrainConfig

Family = Literal["vc", "gr"]
FAMILIES: tuple[Family, ...] = ("vc", "gr")
SWEPT: Family = "gr"
"""The paper's sweeps (figures 4 and 6) are on geometry reasoning."""
BASE = "base"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid.

    Attributes:
        name: unique in the grid; the name of its folder.
        arm: what it is for; where it is for several, the first of main, beta, format, schedule.
        folder: where its files lie.
        config: the whole training configuration; None for the base, which is not trained.
        train: arguments of `mr1-bench` that train it; empty for the base.
        model: the checkpoint that training starts from, or that is evaluated as the base.
        tasks: tasks and groups to evaluate on, comma-separated.
        limit: items of each task, the first ones; None: all.
        batch_size: items an evaluation batch.
        device: `cpu` or `cuda`.
        cost: estimated seconds of one core (`cpu`) or one GPU (`cuda`).
    """

    name: str
    arm: Arm
    folder: Path
    config: TrainConfig | None
    train: tuple[str, ...]
    model: str
    tasks: str
    limit: int | None
    batch_size: int
    device: str
    cost: float = field(compare=False)

    @property
    def checkpoint(self) -> Path | str:
        """What is evaluated: the last checkpoint of the training, chosen by nothing but its step; the base as it is."""
        return self.model if self.config is None else self.folder / "last"

    @property
    def evaluate(self) -> tuple[str, ...]:
        """Arguments of `mr1-bench` that evaluate it."""
        words = ["eval", "--model", str(self.checkpoint), "--tasks", self.tasks, "--out", str(self.folder)]
        words += [] if self.limit is None else ["--limit", str(self.limit)]
        return (*words, "--batch-size", str(self.batch_size), "--device", self.device)

    @property
    def command(self) -> str:
        """The line for a shell that makes this cell on any machine; one thread on CPUs, where more are slower for models of this size.

        Last it writes `cell.json`: with a single seed a report cannot tell what a run is for from the runs alone.
        """
        prefix = "OMP_NUM_THREADS=1 mr1-bench " if self.device == "cpu" else "mr1-bench "
        commands = [prefix + shlex.join(words) for words in (self.train, self.evaluate) if words]
        said = json.dumps({"name": self.name, "arm": self.arm})
        return " && ".join([*commands, f"echo {shlex.quote(said)} > {shlex.quote(str(self.folder / 'cell.json'))}"])

    @property
    def items(self) -> dict[str, int]:
        """Items of each task that is evaluated."""
        return evaluated_items(self.tasks, self.limit)


def evaluated_items(tasks: str, limit: int | None) -> dict[str, int]:
    """Number of items of each of our tasks in a list of tasks and groups."""
    sizes = {name: get_spec(name).size for name in expand(tasks)}
    return {name: size if limit is None else min(size, limit) for name, size in sizes.items()}


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide a run's numbers: all but the folder, and what a resumed run may change."""
    return {name: value for name, value in config.asdict().items() if name != "out" and name not in MAY_CHANGE}


def make_grid(preset: Preset, out: Path, model: str | None = None) -> tuple[Cell, ...]:
    """Return the cells of a preset, the base first, each once: a sweep's point that another cell already is has no cell of its own.

    Args:
        preset: what to vary.
        out: folder of the reproduction; cells lie in `out/cells/NAME`.
        model: start from this checkpoint and not from the recipes' one.

    Raises:
        UserError: a recipe or a setting does not exist or cannot be meant; the recipes start from different models.
    """
    maker = _Maker(preset, out / "cells", model)
    cells: dict[str, Cell] = {}
    for cell in maker.all():
        assert cell.config is not None
        cells.setdefault(sha256_json(settings_of(cell.config)), cell)
    models = sorted({cell.model for cell in cells.values()})
    if len(models) != 1:
        raise UserError(f"preset {preset.name}: its recipes start from different models ({', '.join(models)}); one grid has one base")
    names = [cell.name for cell in cells.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"preset {preset.name}: two cells would be called {', '.join(twice)}; values of a sweep must differ in 6 digits")
    return (maker.base(models[0]), *cells.values())


@dataclass(frozen=True, slots=True)
class _Maker:
    preset: Preset
    folder: Path
    model: str | None

    def base(self, model: str) -> Cell:
        """The model before training, on the tasks and on the direct-answer tasks."""
        preset = self.preset
        tasks = ",".join(filter(None, (preset.tasks, preset.direct)))
        return self._cell(BASE, "main", None, (), model, tasks, preset.cost.evaluation(evaluated_items(tasks, preset.limit)))

    def all(self) -> Iterator[Cell]:
        """Every trained cell, the main arm first, coinciding ones included."""
        preset = self.preset
        for method in flags.METHODS:
            for family in FAMILIES:
                for seed in preset.seeds:
                    yield self._trained("main", method, family, seed, "")
        if preset.beta is not None:
            for value, seed in preset.beta.points:
                yield self._trained("beta", "grpo", SWEPT, seed, f"beta{value:.6g}", {"beta_max": value})
        if preset.format is not None:
            for value, seed in preset.format.points:
                yield self._trained("format", preset.format.method, SWEPT, seed, f"format{value:.6g}", {"format_weight": value})
        for schedule, settings in preset.schedules.items():
            for seed in preset.schedule_seeds:
                if schedule == "constant":
                    yield self._trained("schedule", "grpo", SWEPT, seed, "constant", settings)
                else:
                    yield self._trained("schedule", "grpo-d", SWEPT, seed, schedule, {"kl_schedule": schedule} | dict(settings))

    def _trained(self, arm: Arm, method: Method, family: Family, seed: int, variant: str, changes: Mapping[str, Any] | None = None) -> Cell:
        preset = self.preset
        name = "-".join(filter(None, (method, family, variant, f"s{seed}")))
        recipe = preset.recipes[family]
        given: dict[str, Any] = {} if self.model is None else {"model": self.model}
        given |= {"out": self.folder / name, "device": preset.device, "seed": seed, **preset.settings[method], **(changes or {})}
        config = flags.resolve(method, flags.read_file(flags.find_file(recipe), method), given)
        check(config)
        config = replace(config, task=canonical_tasks(config.task))
        words = ("train", method, "--config", recipe, *_as_flags(method, given))
        items = evaluated_items(preset.tasks, preset.limit)
        cost = _training_cost(preset.cost, family, config) + preset.cost.evaluation(items)
        return self._cell(name, arm, config, words, config.model, preset.tasks, cost)

    def _cell(self, name: str, arm: Arm, config: TrainConfig | None, words: tuple[str, ...], model: str, tasks: str, cost: float) -> Cell:
        preset = self.preset
        return Cell(
            name=name,
            arm=arm,
            folder=self.folder / name,
            config=config,
            train=words,
            model=model,
            tasks=tasks,
            limit=preset.limit,
            batch_size=preset.batch_size,
            device=preset.device,
            cost=cost,
        )


def _as_flags(method: Method, given: Mapping[str, Any]) -> list[str]:
    """Write settings as flags that `flags.given` reads back."""
    known = flags.options(method)
    words: list[str] = []
    for name, value in given.items():
        flag = known[name].flag
        if known[name].kind is bool:
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, str(value)]
    return words


def _training_cost(cost: Cost, family: Family, config: TrainConfig) -> float:
    """Seconds to train: its steps, and the held-out items answered on the way (validation and test, before the first step too)."""
    looks = 1 + -(-config.steps // config.eval_every) if config.eval_every else 0
    return cost.cell + config.steps * cost.step[family, cast("str", config.method)] + 2 * looks * config.eval_items * cost.item


def longest_first(cells: Sequence[Cell]) -> list[Cell]:
    """The order to run cells in: the base, which everything is measured against, then the longest, so that the end is not one long cell."""
    return sorted(cells, key=lambda cell: (cell.name != BASE, -cell.cost, cell.name))


def describe(cell: Cell) -> tuple[str, str, str, str]:
    """Method, task, seed and what is special about a cell, for tables."""
    config = cell.config
    if config is None:
        return "base", "", "", "not trained"
    special = {"beta": "beta_max", "format": "format_weight", "schedule": "kl_schedule"}.get(cell.arm)
    value = getattr(config, special) if special and isinstance(config, GRPOConfig) else None
    return config.method, config.task, str(config.seed), "" if value is None else f"{special} {value}"
