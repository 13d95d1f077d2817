"""The command `mr1-bench`: finds the command's module, runs it, and turns our errors into one line and exit code 2.

A command is a module with `HELP`, `add_arguments(parser)` and `run(args) -> exit code`; it is imported only when it is used, so that
`mr1-bench tasks` does not wait for torch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

import mr1_bench
from mr1_bench.errors import UserError
from mr1_bench.specs import UnknownTaskError

COMMANDS: dict[str, tuple[str, str]] = {
    "tasks": ("mr1_bench.commands.tasks", "list the tasks and groups"),
    "data": ("mr1_bench.commands.data", "build and list data sets"),
    "eval": ("mr1_bench.tasks.evaluate", "evaluate a checkpoint and keep the run record"),
    "parity": ("mr1_bench.tasks.parity", "measure how far vLLM and transformers differ on a checkpoint"),
    "score": ("mr1_bench.commands.score", "regrade logs of model outputs with both graders"),
    "audit": ("mr1_bench.commands.audit", "check a task's golds against the grader, and data sets for near-duplicates"),
    "matrix": ("mr1_bench.reports.matrix", "assemble evaluations into the train-by-test matrix"),
    "reproduce-tables": ("mr1_bench.reports.reproduce", "run the paper's grid and write the report"),
    "report": ("mr1_bench.reports.report", "turn runs into tables, figures and a page"),
    "runs": ("mr1_bench.reports.runs", "list runs as a table"),
    "regress": ("mr1_bench.reports.regress", "compare with a baseline and fail when the model got worse"),
    "baseline": ("mr1_bench.reports.baseline", "save, list and show baselines to compare with"),
    "train": ("mr1_bench.trainers.train", "post-train a model with SFT, GRPO or GRPO-D"),
    "model": ("mr1_bench.trainers.tiny", "print the path of the embedded tiny Qwen2-VL, or make it again"),
}
"""Command name -> module, one-line help."""


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; only the chosen command's module is imported for its options."""
    parser = argparse.ArgumentParser(prog="mr1-bench", description="Evaluate multimodal R1-style models on visual counting and geometry.")
    parser.add_argument("--version", action="version", version=f"mr1-bench {mr1_bench.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module_name, help_text) in COMMANDS.items():
        module = importlib.import_module(module_name) if name == chosen else None
        sub = commands.add_parser(name, help=help_text, description=module.HELP if module else None)
        if module:
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 1 the command found what it looks for (a failed audit, say), 2 bad usage or input.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    args = build_parser(chosen if chosen in COMMANDS else None).parse_args(arguments)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except (UserError, UnknownTaskError) as error:
        print(f"mr1-bench: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `mr1-bench tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE  # as any program; never 0, which would open a gate
    except OSError as error:  # a disk that is full, a folder that cannot be written, a file in the way
        print(f"mr1-bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mr1-bench: interrupted", file=sys.stderr)
        return 130
