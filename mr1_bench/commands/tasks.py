"""`mr1-bench tasks`: the table of tasks and groups, or the folder for lmms-eval's `--include_path`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from mr1_bench import lmms
from mr1_bench.specs import GROUPS, SPECS, TaskSpec
from mr1_bench.tables import print_table

HELP = "Print the tasks that mr1-bench registers with lmms-eval."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--path", action="store_true", help="print only the folder with the YAML files (for lmms-eval --include_path)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def _row(spec: TaskSpec) -> list[str]:
    kind = f"{spec.answer}, {'tagged' if spec.tagged else 'bare'}"
    return [spec.name, spec.data, spec.split, str(spec.size), spec.prompt, kind, spec.metric, f"{100 * spec.chance:.1f} %"]


def run(args: argparse.Namespace) -> int:
    """Print what was asked for."""
    if args.path:
        print(lmms.task_folder())
    elif args.json:
        print(json.dumps({"tasks": [asdict(spec) for spec in SPECS], "groups": {name: list(of) for name, of in GROUPS.items()}}, indent=2))
    else:
        print_table(
            ["task", "data", "split", "items", "prompt", "answer", "metric", "chance"], [_row(spec) for spec in SPECS], right={3, 7}
        )
        print()
        print_table(["group", "tasks"], [[name, ", ".join(members)] for name, members in GROUPS.items()])
    return 0
