"""Settings from outside: command-line flags and TOML files, both generated from the fields of the trainers' dataclasses.

A setting is resolved in this order, the later winning: the dataclass's default, the method's own default, the file (`--config`), the flags
that were given. What the file holds and the dataclass does not know is refused by name. This module must not know what a setting means:
which values are allowed is `checks`' business.
"""

from __future__ import annotations

import argparse
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mr1_bench.errors import UserError
from mr1_bench.trainers.config import GRPOConfig, Method, SFTConfig, TrainConfig

METHODS: tuple[Method, ...] = get_args(Method)
CONFIGS: dict[Method, type[TrainConfig]] = {"sft": SFTConfig, "grpo": GRPOConfig, "grpo-d": GRPOConfig}
METHOD_DEFAULTS: dict[Method, dict[str, Any]] = {"sft": {}, "grpo": {}, "grpo-d": {"kl_schedule": "linear"}}
"""Where a method's default differs from its dataclass's: the D of GRPO-D is a schedule."""

GROUPS: dict[str, tuple[str, ...]] = {
    "what to train": ("task", "model", "out"),
    "data": ("data", "images", "level", "train_items", "target", "hasty", "seed"),
    "batch": ("steps", "prompts_per_step", "micro_prompts", "max_new_tokens", "max_prompt_tokens", "max_pixels"),
    "optimiser": ("lr", "lr_schedule", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm"),
    "model": ("dtype", "gradient_checkpointing", "freeze_vision", "lora_rank", "lora_alpha", "engine", "device", "trust_remote_code"),
    "GRPO": ("num_generations", "temperature", "inner_updates", "clip", "format_weight", "scale_advantages", "loss_mean"),
    "rollout": ("rollout", "vllm_url", "vllm_args", "importance_cap", "mismatch_limit"),
    "KL": ("kl_schedule", "beta_min", "beta_max", "kl_horizon", "kl_target", "kl_estimator"),
    "evaluation and saving": ("eval_every", "eval_items", "save_every", "keep", "show_every", "log_to", "stop_on_alarm"),
}
"""The order in which help and files show the settings; a method's own help shows those that it has."""

_RECIPES = Path(__file__).with_name("recipes")
_EXPECTED: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    Path: "a path in quotes",
}
_METAVARS: dict[type, str] = {int: "N", float: "X", str: "NAME", Path: "PATH"}


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a trainer.

    Attributes:
        name: the field, and the key in files; the flag has dashes instead.
        kind: bool, int, float, str or Path.
        choices: the texts that are allowed; empty where any is.
        default: its default; `MISSING` where it has to be given.
        optional: whether it may be None, which is its default then.
        help: what it does, in a line.
    """

    name: str
    kind: type
    choices: tuple[str, ...]
    default: Any
    optional: bool
    help: str

    @property
    def flag(self) -> str:
        """The flag's name."""
        return "--" + self.name.replace("_", "-")

    @property
    def expected(self) -> str:
        """What a file may give it, in words."""
        return f"one of {', '.join(self.choices)}" if self.choices else _EXPECTED[self.kind]

    def read(self, value: Any, where: str) -> Any:
        """Turn a TOML or JSON value into the field's.

        Args:
            value: what was read.
            where: the file, for the message.

        Raises:
            UserError: the value has another type, or is none of the choices.
        """
        if value is None and self.optional:
            return None
        wanted = {float: (float, int), Path: (str,)}.get(self.kind, (self.kind,))
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.kind is not bool):
            raise UserError(f"{where}: {self.name} = {value!r}; expected {self.expected}")
        if self.choices and value not in self.choices:
            raise UserError(f"{where}: {self.name} = {value!r}; expected {self.expected}{nearest(str(value), self.choices)}")
        return self.kind(value)


@cache
def options(method: Method) -> dict[str, Option]:
    """The settings of a method by name, in the order of the fields."""
    kinds = typing.get_type_hints(CONFIGS[method])
    defaults = METHOD_DEFAULTS[method]
    found = {}
    for one in fields(CONFIGS[method]):
        if one.metadata.get("flag", True):
            kind, choices, optional = _read_annotation(kinds[one.name])
            found[one.name] = Option(one.name, kind, choices, defaults.get(one.name, one.default), optional, one.metadata["help"])
    return found


def _read_annotation(annotation: Any) -> tuple[type, tuple[str, ...], bool]:
    """Split a field's annotation into type, choices, and whether None is allowed."""
    if get_origin(annotation) in (typing.Union, types.UnionType):
        (inner,) = (one for one in get_args(annotation) if one is not type(None))
        kind, choices, _ = _read_annotation(inner)
        return kind, choices, True
    if get_origin(annotation) is Literal:
        return str, get_args(annotation), False
    return annotation, (), False


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` if a known name is close to a mistyped one, else nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def add_flags(parser: argparse.ArgumentParser, method: Method) -> None:
    """Declare a method's flags, in groups. A flag that is not given leaves no trace, so that the file's value shows through."""
    known = options(method)
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for option in (known[name] for name in names if name in known):
            shape: dict[str, Any] = {"type": option.kind, "metavar": _METAVARS.get(option.kind)}
            if option.kind is bool:
                shape = {"action": argparse.BooleanOptionalAction}
            elif option.choices:
                shape = {"choices": option.choices}
            text = option.help.replace("%", "%%") + _show_default(option)
            group.add_argument(option.flag, dest=option.name, default=argparse.SUPPRESS, help=text, **shape)


def _show_default(option: Option) -> str:
    if option.default is MISSING:
        return " (required, here or in --config)"
    if option.default is None:
        return ""
    shown = {True: "on", False: "off"}[option.default] if option.kind is bool else option.default
    return f" (default: {shown})"


def given(args: argparse.Namespace, method: Method) -> dict[str, Any]:
    """The settings that were given as flags."""
    return {name: getattr(args, name) for name in options(method) if hasattr(args, name)}


def recipes() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.toml"))}


def find_file(name: str) -> Path:
    """Return the file that `--config` names: a shipped recipe by its name, or else a file.

    Raises:
        UserError: there is neither.
    """
    known = recipes()
    if name in known:
        return known[name]
    if not Path(name).is_file():
        raise UserError(f"--config {name}: neither a file nor a recipe; the recipes are {', '.join(known)}{nearest(name, known)}")
    return Path(name)


def read_file(path: Path, method: Method) -> dict[str, Any]:
    """Read a method's settings from a TOML file.

    Keys before the first table are shared: a method takes those that it has. The keys of its own table, `[sft]`, `[grpo]` or `[grpo-d]`,
    win over them. Tables of other methods are checked, so that a mistake shows whichever method runs, and left.

    Raises:
        UserError: the file is unreadable, or has a key that no trainer knows, or a value of the wrong type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as TOML: {error}") from None
    everyone = {name: option for one in METHODS for name, option in options(one).items()}
    shared = {key: value for key, value in content.items() if key not in METHODS}
    values = {key: value for key, value in _read_table(shared, everyone, str(path)).items() if key in options(method)}
    for one in METHODS:
        table = content.get(one, {})
        if not isinstance(table, dict):
            raise UserError(f"{path}: {one} = {table!r}; expected a table, [{one}], with the settings of that method alone")
        own = _read_table(table, options(one), f"{path}, [{one}]")
        if one == method:
            values |= own
    return values


def _read_table(table: Mapping[str, Any], known: Mapping[str, Option], where: str) -> dict[str, Any]:
    for key in table:
        if key == "method":
            raise UserError(
                f"{where}: the method is named on the command line, mr1-bench train {{{','.join(METHODS)}}}; remove the key method"
            )
        if key not in known:
            raise UserError(f"{where}: no setting is called {key!r}{nearest(key.replace('-', '_'), [*known, *METHODS])}")
    return {key: known[key].read(value, where) for key, value in table.items()}


def resolve(method: Method, from_file: Mapping[str, Any], flags: Mapping[str, Any]) -> TrainConfig:
    """Combine defaults, a file's values and flags, the later winning.

    Raises:
        UserError: a setting without a default is in neither.
    """
    values = METHOD_DEFAULTS[method] | {**from_file} | {**flags}
    missing = [option.flag for name, option in options(method).items() if option.default is MISSING and name not in values]
    if missing:
        raise UserError(f"train {method} needs {', '.join(missing)}; `mr1-bench train {method} --help` describes the flags")
    return CONFIGS[method](method=method, **values)


def from_dict(values: Mapping[str, Any], where: str) -> TrainConfig:
    """Read back what `TrainConfig.asdict` wrote, through JSON.

    Args:
        values: the object; a setting that it lacks, because an older version wrote it, takes its default.
        where: the file, for messages.

    Raises:
        UserError: the object is no configuration of ours.
    """
    method = values.get("method")
    if method not in METHODS:
        raise UserError(f"{where}: method = {method!r}; expected one of {', '.join(METHODS)}")
    rest = {key: value for key, value in values.items() if key != "method"}
    return resolve(method, _read_table(rest, options(method), where), {})


def to_toml(config: TrainConfig) -> str:
    """Write a configuration as a file that `read_file` reads back."""
    values = config.asdict()
    lines = [f"# mr1-bench train {config.method} --config THIS_FILE"]
    for title, names in GROUPS.items():
        rows = [f"{name} = {_toml_value(values[name])}" for name in names if values.get(name) is not None]
        lines += ["", f"# {title}", *rows] if rows else []
    return "\n".join(lines) + "\n"


def _toml_value(value: str | bool | int | float) -> str:
    if isinstance(value, str):  # JSON's escapes are TOML's, except that TOML wants DEL escaped too
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
