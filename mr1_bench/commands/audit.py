"""`mr1-bench audit`: is the grader right about every gold of a data set, and does the test set repeat the training set?

It must not know how golds are read or compared (`audit`, `gold_forms`) or how likeness is measured (`near_dup`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mr1_bench.audit import GoldAudit, audit_golds
from mr1_bench.errors import UserError
from mr1_bench.logs import read_golds
from mr1_bench.specs import SPECS, TaskSpec, UnknownTaskError, get_spec
from mr1_bench.tables import print_table

if TYPE_CHECKING:
    from mr1_bench.data import Example
    from mr1_bench.near_dup import NearDuplicate

HELP = """Send every gold of a task, or of a file (R1-V prompts, a manifest.jsonl, a log), through the grader: in every form it can be
written in it must be right, and against every other gold wrong. With --train and --test, look for items of the test set that are in the
training set. The exit code is 1 if anything was found."""

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Target:
    """Golds to audit, by which task's rules."""

    name: str
    spec: TaskSpec
    golds: tuple[str | int, ...]


def find_targets(name: str | None, task: str | None) -> list[Target]:
    """Find the golds that the user means.

    Args:
        name: a task, a file, or None for all tasks whose data is there.
        task: the task whose rules count for a file; recognised if None (golds that are all whole numbers up to 99: counting).

    Raises:
        UserError: no such file or task, a broken file, or a task whose data has not been built.
    """
    if name is None:
        return _present_tasks()
    if Path(name).is_file():
        golds = read_golds(Path(name))
        spec = get_spec(task) if task else get_spec("mr1_vc" if all(_is_small(gold) for gold in golds) else "mr1_gr")
        return [Target(name, spec, golds)]
    try:
        spec = get_spec(name)
    except UnknownTaskError as error:
        raise UserError(f"{name!r} is neither a file nor a task; {error}") from error
    return [Target(spec.name, spec, _golds_of(spec))]


def _is_small(gold: str | int) -> bool:
    return str(gold).isdecimal() and len(str(gold)) <= 2


def _golds_of(spec: TaskSpec) -> tuple[str, ...]:
    if spec.level is not None:  # without the pictures, which take nearly all the time
        from mr1_bench.synth import make_item

        return tuple(make_item(spec.family, "test", spec.level, index).gold for index in range(spec.size))
    from mr1_bench import data

    return tuple(example.gold for example in data.load(spec.data, spec.split))


def _present_tasks() -> list[Target]:
    from mr1_bench.data import DataAbsentError

    targets = []
    for spec in SPECS:
        try:
            targets.append(Target(spec.name, spec, _golds_of(spec)))
        except DataAbsentError:
            print(f"mr1-bench: {spec.name} is left out: its data is not built (`mr1-bench data build {spec.data}`)", file=sys.stderr)
    return targets


def load_examples(name: str, split: str) -> Sequence[Example]:
    """Load the items of one side of the near-duplicate audit.

    Args:
        name: a task, a data set, or a folder in a form that `data build` takes.
        split: `train` or `test`, for tasks and data sets.

    Raises:
        UserError: nothing of that name is there, or a row of the folder is at fault.
    """
    from mr1_bench import data

    if Path(name).is_dir():
        return _folder_examples(Path(name), split)
    try:
        spec = get_spec(name)
    except UnknownTaskError:
        return data.load(name, split)
    return data.load(spec.data, split, level=spec.level or 1, n=spec.size)


def _folder_examples(folder: Path, split: str) -> list[Example]:
    from mr1_bench.data import Example
    from mr1_bench.data_sources import Fault, open_folder
    from mr1_bench.images import ImageError, normalise

    examples = []
    for row in open_folder(folder, split).rows:
        if isinstance(row, Fault):
            raise UserError(f"{folder}, row {row.row}: {row.reason}; mend or delete that row")
        try:
            image = normalise(row.image).png
        except ImageError as error:
            raise UserError(f"{folder}, row {row.row}: image {row.image_name}: {error}; mend or delete that row") from error
        examples.append(Example(f"{folder.name}:{row.key}", row.question, row.gold, row.solution, image, {}))
    return examples


def _print_golds(target: Target, audit: GoldAudit) -> None:
    print(
        f"{target.name}: {audit.items} golds, {audit.golds} of them distinct. Graded: {audit.forms} right answers (every gold in every "
        f"form) and {audit.wrong} wrong ones (other golds, contradicting units). Wrong verdicts: {len(audit.failures)}"
    )
    if audit.unread:
        shown = ", ".join(audit.unread[:_SHOWN])
        print(f"{len(audit.unread)} golds are no value that the audit itself can read, and were tried as they stand: {shown}")
    if audit.failures:
        rows = [
            [failure.gold, failure.answer.strip(), failure.form, _should(failure.expected), failure.status] for failure in audit.failures
        ]
        print_table(["gold", "answer", "form", "should be", "status"], rows[:_SHOWN])
        if len(rows) > _SHOWN:
            print(f"… and {len(rows) - _SHOWN} more (--json lists all)")


def _should(expected: bool) -> str:
    return "right" if expected else "wrong"


_MEANING = {
    "duplicate": "the same picture and the same question: the item is in both sets",
    "image": "the same picture, another question",
    "text": "the same wording and numbers, another picture",
    "template": "the same wording, other numbers and another picture",
}


def _print_duplicates(found: Sequence[NearDuplicate], sizes: tuple[int, int]) -> None:
    counts: Counter[str] = Counter(each.kind for each in found)
    test_items = {kind: len({each.test_id for each in found if each.kind == kind}) for kind in _MEANING}
    print(f"near-duplicates of {sizes[0]} training items among {sizes[1]} test items:")
    rows = [[kind, str(test_items[kind]), str(counts[kind]), meaning] for kind, meaning in _MEANING.items()]
    print_table(["kind", "test items", "entries", "meaning"], rows, right={1, 2})
    worst = [each for each in found if each.kind in ("duplicate", "image")][:_SHOWN]
    if worst:
        print()
        cells = [[e.kind, e.test_id, e.train_id, f"{e.text_similarity:.2f}", f"{e.image_similarity:.3f}"] for e in worst]
        print_table(["kind", "test item", "training item", "text", "image"], cells, right={3, 4})
        more = counts["duplicate"] + counts["image"] - len(worst)
        if more:
            print(f"… and {more} more (--json lists all)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("target", nargs="?", metavar="TASK|FILE", help="what to audit; all tasks whose data is there if not given")
    parser.add_argument("--task", help="for a FILE: the task whose rules count")
    parser.add_argument("--train", metavar="DATA", help="training side of the near-duplicate audit: a task, data set or folder")
    parser.add_argument("--test", metavar="DATA", help="test side of the near-duplicate audit: a task, data set or folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object with everything that was found, and nothing else")


def run(args: argparse.Namespace) -> int:
    """Audit, print what failed; 1 if anything did: a wrong verdict, or a test item that is in the training set."""
    if (args.train is None) != (args.test is None):
        raise UserError("the near-duplicate audit compares two sets: give both --train and --test")
    comparing = args.train is not None
    targets = [] if comparing and args.target is None else find_targets(args.target, args.task)
    audits = [(target, audit_golds(target.spec, target.golds)) for target in targets]
    found: list[NearDuplicate] = []
    sizes = (0, 0)
    if comparing:
        from mr1_bench.near_dup import find_near_duplicates

        train, test = load_examples(args.train, "train"), load_examples(args.test, "test")
        sizes = (len(train), len(test))
        found = find_near_duplicates(train, test)
    if args.json:
        print(json.dumps(_report(audits, found if comparing else None), indent=2, ensure_ascii=False))
    else:
        for target, audit in audits:
            _print_golds(target, audit)
        if comparing:
            _print_duplicates(found, sizes)
    failed = any(audit.failures for _, audit in audits) or any(each.kind == "duplicate" for each in found)
    return 1 if failed else 0


def _report(audits: Sequence[tuple[Target, GoldAudit]], found: Sequence[NearDuplicate] | None) -> dict[str, Any]:
    report: dict[str, Any] = {"golds": [{"name": target.name, "task": target.spec.name} | asdict(audit) for target, audit in audits]}
    return report if found is None else report | {"near_duplicates": [asdict(each) for each in found]}
