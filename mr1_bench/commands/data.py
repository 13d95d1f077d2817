"""The `data` command: build sets, list them, and say where they are.

It only turns arguments into calls and results into lines; it must not know how a set is read, built or stored.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mr1_bench.data import SPLITS, SplitInfo, data_dir, how_to_get, read_manifest, set_folder
from mr1_bench.data_build import BuildResult, build, check_name
from mr1_bench.data_sources import Source, open_folder, open_hub, open_prompts
from mr1_bench.errors import UserError
from mr1_bench.specs import SPECS
from mr1_bench.tables import print_table

HELP = "build, list and locate data sets"

_HUB = {("vc", "train"): "leonardPKU/clevr_cogen_a_train", ("gr", "train"): "leonardPKU/GEOQA_R1V_Train_8K"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands and their options."""
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("build", help="make a set as parquet with embedded images", description=_BUILD_HELP)
    make.add_argument("task", nargs="?", metavar="TASK", help="vc or gr (evaluation), vc-train or gr-train (training)")
    make.add_argument("--task-name", metavar="NAME", help="name of a set of your own, in place of TASK")
    make.add_argument("--prompts", type=Path, metavar="FILE", help="JSON-lines file with columns question, ground_truth, image_path")
    make.add_argument("--images", type=Path, metavar="DIR", help="folder of the images that --prompts names")
    make.add_argument("--folder", type=Path, metavar="DIR", help="folder with manifest.jsonl and images/, or with parquet files")
    make.add_argument("--split", choices=SPLITS, help="split to build (default: what TASK says, or test)")
    make.add_argument("--data-dir", type=Path, metavar="DIR", help="data directory (default: MR1_DATA_DIR or the user's cache)")
    make.add_argument("--limit", type=_positive, metavar="N", help="take only the first N rows of the source")
    make.add_argument("--allow-missing", action="store_true", help="leave out rows whose image is missing or broken, and record each")
    make.add_argument("--force", action="store_true", help="replace a split of other content")
    show = actions.add_parser("list", help="list the sets in the data directory")
    show.add_argument("--data-dir", type=Path, metavar="DIR", help="data directory")
    locate = actions.add_parser("path", help="print the data directory, or a set's folder")
    locate.add_argument("name", nargs="?", help="name of a set")
    locate.add_argument("--data-dir", type=Path, metavar="DIR", help="data directory")


_BUILD_HELP = (
    "Make an evaluation or training set as parquet with embedded images, with a manifest of checksums. Nothing is dropped silently, an "
    "interrupted build leaves nothing behind, and building again from the same sources changes nothing."
)


_SHOWN = 10  # rows named on the terminal; the manifest names all


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say; 0 on success.

    Raises:
        UserError: see the message.
    """
    directory = args.data_dir or data_dir()
    if args.action == "build":
        return _build(args, directory)
    if args.action == "list":
        return _list(directory)
    print(set_folder(args.name, directory) if args.name else directory)
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number of rows")
    return number


def _build(args: argparse.Namespace, directory: Path) -> int:
    name, split = resolve_target(args.task, args.task_name, args.split)
    check_name(name)
    source = _open_source(args, name, split)
    result = build(
        name,
        split,
        source,
        directory=directory,
        allow_missing=args.allow_missing,
        force=args.force,
        limit=args.limit,
        progress=sys.stderr.isatty(),
    )
    _report(result, name, split)
    return 0


def resolve_target(task: str | None, task_name: str | None, split: str | None) -> tuple[str, str]:
    """Name and split of the set that TASK, `--task-name` and `--split` ask for.

    Raises:
        UserError: none or both are given, TASK is unknown, or it contradicts the split.
    """
    if (task is None) == (task_name is None):
        raise UserError("give either TASK (vc, gr, vc-train, gr-train) or --task-name NAME for a set of your own")
    if task_name is not None:
        if task_name in {"vc", "gr"}:
            raise UserError(f"'{task_name}' is the name of a set of ours: give it as TASK, or choose another name")
        return task_name, split or "test"
    assert task is not None  # exactly one of the two is given
    base = task.removeprefix("mr1_").removesuffix("_direct")
    name, _, tail = base.partition("-")
    if name in {"vc_synth", "gr_synth"}:
        check_name(name)
    if name not in {"vc", "gr"} or tail not in {"", "train"}:
        raise UserError(f"unknown task '{task}': use vc, gr, vc-train or gr-train, or name a set of your own with --task-name")
    if tail and split not in {None, tail}:
        raise UserError(f"{task} is the {tail} split, but --split says {split}: leave one of them out")
    return name, tail or split or "test"


def _open_source(args: argparse.Namespace, name: str, split: str) -> Source:
    if args.folder and (args.prompts or args.images):
        raise UserError("--folder holds both rows and images: leave --prompts and --images out, or use them without --folder")
    if bool(args.prompts) != bool(args.images):
        raise UserError("--prompts and --images belong together: the file of questions and golds, and the folder of its images")
    if args.folder:
        return open_folder(args.folder, split)
    if args.prompts:
        return open_prompts(args.prompts, args.images)
    if (name, split) in _HUB:
        return open_hub(_HUB[name, split], split)
    raise UserError(f"no source was given for the {split} split of '{name}'. {how_to_get(name, split)}")


def _report(result: BuildResult, name: str, split: str) -> None:
    info = result.info
    print(f"{name} {split}: {result.outcome}, {info.rows} rows, content {info.content_hash[:12]}, {result.path}")
    lines = [f"left out, row {skipped['row']}: {skipped['reason']}" for skipped in info.skipped]
    lines += [
        f"kept, row {duplicate['row']} equals row {duplicate['same_as']} (question, gold and picture)" for duplicate in info.duplicates
    ]
    for line in lines[:_SHOWN]:
        print(f"  {line}")
    if len(lines) > _SHOWN:
        print(f"  … and {len(lines) - _SHOWN} more rows; manifest.json beside the set names each")
    expected = _protocol_rows(name, split)
    if expected is not None and info.rows != expected:
        print(f"  note: the R1-V protocol has {expected} items; a score on these {info.rows} is not comparable with published ones")


def _protocol_rows(name: str, split: str) -> int | None:
    """Number of items that the task table gives for a split of ours."""
    return next((spec.size for spec in SPECS if (spec.data, spec.split) == (name, split)), None)


def _list(directory: Path) -> int:
    folders = sorted(path.parent for path in directory.glob("*/manifest.json") if not path.parent.name.startswith("."))
    if not folders:
        print(f"no data sets in {directory}; docs/data.md says how to build them")
        return 0
    rows = [
        [folder.name, split, str(info.rows), str(len(info.skipped)), str(len(info.duplicates)), info.content_hash[:12], _origin(info)]
        for folder in folders
        for split, info in read_manifest(folder.name, directory).items()
    ]
    print(directory)
    print_table(["set", "split", "rows", "left out", "duplicates", "content", "from"], rows, right={2, 3, 4})
    return 0


def _origin(info: SplitInfo) -> str:
    names = (source.get("name") or source.get("file") or source.get("folder") for source in info.sources)
    return ", ".join(str(name) for name in list(names)[:2] if name)
