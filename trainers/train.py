"""`mr1-bench train`: post-trains a model with SFT, GRPO or GRPO-D.

Turns flags and a recipe into one configuration, refuses what cannot work before any time is spent, and hands over to `loop`. Importing it,
and asking for help, does not load torch. It must not know how training goes.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from functools import partial
from typing import Any

from mr1_bench.errors import UserError
from mr1_bench.trainers import flags
from mr1_bench.trainers.checks import canonical_tasks, check, check_here
from mr1_bench.trainers.config import Method, TrainConfig

HELP = """Post-train a vision-language model: supervised (sft), with GRPO (grpo), or with GRPO-D (grpo-d), which is GRPO whose KL weight
follows a schedule. The same command again resumes a run that was stopped."""

_METHODS: dict[Method, str] = {
    "sft": "supervised fine-tuning on worked solutions or answers",
    "grpo": "group-relative policy optimisation with a constant KL weight",
    "grpo-d": "GRPO with a KL weight that grows on a schedule: explore early, exploit late",
}
_EXAMPLES = """\
examples:
  a first run, on a CPU, in minutes
    mr1-bench train {method} --config tiny-vc --out runs/vc
  a recipe, with flags that override it
    mr1-bench train {method} --config paper-2b-gr --out runs/gr-2b --seed 1 --steps 500
  your own questions and images, graded as geometry
    mr1-bench train {method} --task gr --model Qwen/Qwen2-VL-2B-Instruct --data mine.jsonl --images pictures --out runs/mine

recipes: {recipes}"""


class _Parser(argparse.ArgumentParser):
    """A parser that answers a mistyped flag with the nearest one there is."""

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse, and refuse what is not known."""
        parsed, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            word = unknown[0].partition("=")[0]
            flag_names = [name for name in self._option_string_actions if name.startswith("--")]
            self.error(f"no flag is called {word}{flags.nearest(word, flag_names)}")
        return parsed, unknown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare one subcommand a method, with the flags of that method alone."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _examples("grpo-d")
    parser.set_defaults(method=None, show_help=parser.print_help)
    methods = parser.add_subparsers(dest="method", metavar="METHOD", title="methods", parser_class=_Parser)
    for method, help_text in _METHODS.items():
        sub = methods.add_parser(
            method,
            help=help_text,
            description=f"Train with {method}: {help_text}.",
            usage=f"mr1-bench train {method} [--config RECIPE_OR_FILE] --task TASK --model MODEL --out DIR [flags]",
            epilog=_examples(method),
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=30),
            allow_abbrev=False,
        )
        sub.add_argument("--config", metavar="RECIPE_OR_FILE", help="take settings from a shipped recipe or a TOML file; flags override it")
        sub.add_argument("--dry-run", action="store_true", help="print the resolved settings as a TOML file, and stop")
        flags.add_flags(sub, method)


def _examples(method: Method) -> str:
    return _EXAMPLES.format(method=method, recipes=", ".join(flags.recipes()))


def resolve(args: argparse.Namespace) -> TrainConfig:
    """Return the whole configuration of a command line, checked as far as its values go.

    Raises:
        UserError: the file or a value is wrong, or something is missing.
    """
    method: Method = args.method
    from_file = flags.read_file(flags.find_file(args.config), method) if args.config else {}
    config = flags.resolve(method, from_file, flags.given(args, method))
    check(config)
    return replace(config, task=canonical_tasks(config.task))


def run(args: argparse.Namespace) -> int:
    """Train, or print what would be trained."""
    if args.method is None:
        args.show_help()
        return 2
    config = resolve(args)
    if args.dry_run:
        print(flags.to_toml(config), end="")
        return 0
    check_here(config)
    if config.engine == "trl":
        from mr1_bench.trainers import trl_engine

        return trl_engine.train(config)
    if (size := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise UserError(f"{size} processes were launched, and --engine compact is for one: add --engine trl")
    from mr1_bench.trainers import loop  # torch takes seconds to import

    return loop.train(config)
