"""Presets of the reproduction: TOML files that say what to vary and how far, each assumption with its comment, read into plain values.

Shipped ones lie in `presets/`; one's own file is as good. This module must not know what a cell is or how it is run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from mr1_bench.errors import UserError
from mr1_bench.specs import UnknownTaskError, expand, get_spec
from mr1_bench.trainers import flags
from mr1_bench.trainers.config import Method
from mr1_bench.trainers.schedule import SCHEDULES

_PRESETS = Path(__file__).with_name("presets")
_ORDER = ("smoke", "tiny", "paper-2b", "paper-7b")
_FAMILIES = ("vc", "gr")
_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Sweep:
    """Values of one setting, for a method, each with every seed."""

    method: Method
    values: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def points(self) -> list[tuple[float, int]]:
        """Every value with every seed."""
        return [(value, seed) for value in self.values for seed in self.seeds]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a cell is expected to take, in seconds of one core (`device = "cpu"`) or of one GPU.

    Attributes:
        cell: loading, saving, and all else that every cell does once.
        item: one held-out item answered and graded.
        step: one optimisation step, by (family, method).
    """

    cell: float
    item: float
    step: Mapping[tuple[str, str], float]

    def evaluation(self, items: Mapping[str, int]) -> float:
        """Seconds to evaluate some items of some tasks."""
        return self.cell + self.item * sum(items.values())


@dataclass(frozen=True, slots=True)
class Resources:
    """What a cell needs of the node of a cluster that it runs on."""

    cpus: int
    gpus: int
    memory_gib: float


@dataclass(frozen=True, slots=True)
class Preset:
    """What a preset file says.

    Attributes:
        name: the file's name without its ending.
        about: one line for people.
        device: `cpu` (cells side by side, one thread each) or `cuda` (one cell a GPU).
        tasks: tasks and groups that every checkpoint is evaluated on.
        direct: tasks that the base alone is evaluated on beside, which ask for the bare answer; may be empty.
        limit: items of each task; None: all.
        batch_size: items an evaluation batch.
        seeds: training seeds of the main grid.
        recipes: recipe by task family.
        settings: by method, what is set otherwise than in the recipes.
        beta, format: the sweeps of the constant KL weight and of the format weight; None: not swept.
        schedules: KL schedules side by side, each with settings of its own.
        schedule_seeds: seeds of these.
        cost: estimates.
        resources: what a cell declares on a cluster.
        drop_state: remove the optimiser's state of finished trainings.
    """

    name: str
    about: str
    device: str
    tasks: str
    direct: str
    limit: int | None
    batch_size: int
    seeds: tuple[int, ...]
    recipes: Mapping[str, str]
    settings: Mapping[Method, Mapping[str, Any]]
    beta: Sweep | None
    format: Sweep | None
    schedules: Mapping[str, Mapping[str, Any]]
    schedule_seeds: tuple[int, ...]
    cost: Cost
    resources: Resources
    drop_state: bool


def shipped() -> dict[str, Path]:
    """The shipped presets by name."""
    return {path.stem: path for path in sorted(_PRESETS.glob("*.toml"), key=lambda path: _ORDER.index(path.stem))}


def find_preset(name: str) -> Preset:
    """Read a shipped preset by its name, or else a file.

    Raises:
        UserError: there is neither, or the file cannot be used.
    """
    known = shipped()
    path = known.get(name, Path(name))
    if not path.is_file():
        raise UserError(f"--preset {name}: neither a preset nor a file; the presets are {', '.join(known)}{flags.nearest(name, known)}")
    return read_preset(path)


def read_preset(path: Path) -> Preset:
    """Read a preset file.

    Raises:
        UserError: it is unreadable, or a key is missing, unknown or of the wrong kind; the message names file and key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as TOML: {error}") from None
    table = _Table(content, str(path))
    preset = Preset(
        name=path.stem,
        about=table.text("about", ""),
        device=table.choice("device", _DEVICES),
        tasks=table.tasks("tasks"),
        direct=table.tasks("direct", ""),
        limit=table.whole("limit", 1, None),
        batch_size=table.whole("batch_size", 1, 8),
        seeds=table.seeds("seeds"),
        recipes={family: table.inner("recipes").text(family) for family in _FAMILIES},
        settings=_read_settings(table.inner("settings", {})),
        beta=_read_sweep(table.inner("beta"), "grpo") if "beta" in content else None,
        format=_read_sweep(table.inner("format"), None) if "format" in content else None,
        schedules=_read_schedules(table.inner("schedules", {})),
        schedule_seeds=table.inner("schedules", {}).seeds("seeds", ()),
        cost=_read_cost(table.inner("cost")),
        resources=_read_resources(table.inner("resources", {}), 0 if content.get("device") == "cpu" else 1),
        drop_state=table.switch("drop_state"),
    )
    table.refuse_rest()
    if preset.schedules and not preset.schedule_seeds:
        raise UserError(f"{path}: [schedules] has no seeds; expected seeds = [0], say")
    return preset


def _read_settings(table: _Table) -> dict[Method, dict[str, Any]]:
    """Settings of each method: those at the top, as far as a method has them, and those of its own table."""
    own = {method: table.inner(method, {}) for method in flags.METHODS}
    everyone = {name for method in flags.METHODS for name in flags.options(method)}
    table.refuse_others({*everyone, *flags.METHODS})
    shared = {name: table.take(name) for name in table.content if name in everyone}
    found: dict[Method, dict[str, Any]] = {}
    for method in flags.METHODS:
        known = flags.options(method)
        values = {name: known[name].read(value, table.where) for name, value in shared.items() if name in known}
        found[method] = values | own[method].settings(method)
    return found


def _read_sweep(table: _Table, method: Method | None) -> Sweep:
    if method is None:
        method = cast("Method", table.choice("method", ("grpo", "grpo-d")))
    return Sweep(method, table.numbers("values"), table.seeds("seeds"))


def _read_schedules(table: _Table) -> dict[str, dict[str, Any]]:
    table.refuse_others({*SCHEDULES, "seeds"})
    return {form: table.inner(form).settings("grpo-d") for form in table.content if form != "seeds"}


def _read_cost(table: _Table) -> Cost:
    step: dict[tuple[str, str], float] = {}
    for family in _FAMILIES:
        inner = table.inner(family)
        step |= {(family, method): inner.number(method) for method in get_args(Method)}
    return Cost(table.number("cell"), table.number("item"), step)


def _read_resources(table: _Table, gpus: int) -> Resources:
    """What a preset says, or else what the tiny model takes on a CPU, and a cell on a GPU at least."""
    memory = table.number("memory_gib", "GiB") if "memory_gib" in table.content else 2.0 + 14.0 * gpus
    return Resources(table.whole("cpus", 1, 1), table.whole("gpus", 0, gpus), memory)


class _Table:
    """A TOML table that is taken apart key by key, so that what nobody has taken is a mistake and can be named."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content, self.where = content, where
        self._taken: set[str] = set()
        self._inner: dict[str, _Table] = {}

    def take(self, key: str, default: Any = ...) -> Any:
        self._taken.add(key)
        if key not in self.content:
            if default is ...:
                raise UserError(f"{self.where} has no {key}")
            return default
        return self.content[key]

    def _read(self, key: str, kinds: tuple[type, ...], expected: str, default: Any) -> Any:
        value = self.take(key, default)
        if key in self.content and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise UserError(f"{self.where}: {key} = {value!r}; expected {expected}")
        return value

    def text(self, key: str, default: Any = ...) -> str:
        return str(self._read(key, (str,), "a text in quotes", default))

    def switch(self, key: str) -> bool:
        value = self.take(key, False)
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: {key} = {value!r}; expected true or false")
        return value

    def number(self, key: str, of: str = "seconds") -> float:
        value = float(self._read(key, (int, float), f"a number of {of}", ...))
        if not 0 <= value < float("inf"):
            raise UserError(f"{self.where}: {key} = {value}; expected a number of {of}")
        return value

    def whole(self, key: str, least: int, default: Any = ...) -> Any:
        value = self._read(key, (int,), f"a whole number from {least}", default)
        if value is not None and value < least:
            raise UserError(f"{self.where}: {key} = {value}; expected a whole number from {least}")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in choices:
            raise UserError(f"{self.where}: {key} = {value!r}; expected one of {', '.join(choices)}{flags.nearest(value, choices)}")
        return value

    def tasks(self, key: str, default: Any = ...) -> str:
        value = self.text(key, default)
        try:
            for name in expand(value):
                get_spec(name)
        except UnknownTaskError as error:
            raise UserError(f"{self.where}: {key}: {error}") from None
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        values = self._read(key, (list,), "a list of numbers", ...)
        if not values or any(isinstance(one, bool) or not isinstance(one, int | float) for one in values):
            raise UserError(f"{self.where}: {key} = {values!r}; expected a list of numbers")
        return tuple(float(one) for one in values)

    def seeds(self, key: str, default: Any = ...) -> tuple[int, ...]:
        values = self._read(key, (list,), "a list of whole numbers", default)
        if (key in self.content and not values) or any(isinstance(one, bool) or not isinstance(one, int) for one in values):
            raise UserError(f"{self.where}: {key} = {values!r}; expected a list of whole numbers, such as [0, 1, 2]")
        if len(set(values)) < len(values):
            raise UserError(f"{self.where}: {key} = {values!r}: a seed stands there twice; the same seed gives the same run")
        return tuple(values)

    def inner(self, key: str, default: Any = ...) -> _Table:
        if key not in self._inner:
            self._inner[key] = _Table(self._read(key, (dict,), f"a table, [{key}]", default), f"{self.where}, [{key}]")
        return self._inner[key]

    def settings(self, method: Method) -> dict[str, Any]:
        """All of the table as settings of a method."""
        known = flags.options(method)
        self.refuse_others(known)
        return {key: known[key].read(self.take(key), self.where) for key in self.content}

    def refuse_others(self, known: Collection[str]) -> None:
        """Refuse keys that are not known."""
        for key in self.content:
            if key not in known:
                raise UserError(f"{self.where}: no key is called {key!r}{flags.nearest(key.replace('-', '_'), known)}")

    def refuse_rest(self) -> None:
        """Refuse keys that nobody has taken, here and in the tables within."""
        self.refuse_others(self._taken)
        for table in self._inner.values():
            table.refuse_rest()
