"""What runs the cells: worker processes of this machine, a Ray cluster, or Slurm; the flags of `reproduce-tables` for it, and what they do.

It must not know what cells are for, nor how an executor works.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mr1_bench.errors import UserError
from mr1_bench.reports import attempts, collecting, executor_ray, executor_slurm
from mr1_bench.reports.preset import Resources
from mr1_bench.reports.workers import Ended, Job, Progress

_OF_SLURM = ("slurm_partition", "slurm_time", "slurm_gpus", "slurm_arg")
_OF_RAY = ("address", "collect")
_OF_BOTH = ("cell_cpus", "cell_gpus", "cell_memory_gib")
_ANY = 10_000  # cells at a time, where the queue alone decides


@dataclass(frozen=True, slots=True)
class Executor:
    """Something that runs cells.

    Attributes:
        run: runs them, gives each as it ends, and tells of their progress.
        workers: how many at a time.
        held: cells that jobs of an earlier start are still at: to be waited for, and not to be touched.
    """

    run: Callable[[Sequence[Job], Progress], Iterator[Ended]]
    workers: int
    held: frozenset[str] = frozenset()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    group = parser.add_argument_group("on a cluster (docs/reproduce.md)")
    group.add_argument("--executor", choices=("local", "ray", "slurm"), default="local", help="what runs the cells (default: local)")
    group.add_argument("--cell-cpus", type=int, metavar="N", help="CPUs that a cell declares (default: the preset's)")
    group.add_argument("--cell-gpus", type=int, metavar="N", help="GPUs that a cell declares (default: the preset's)")
    group.add_argument("--cell-memory-gib", type=float, metavar="GIB", help="memory that a cell declares; 0: none (default: the preset's)")
    group.add_argument("--address", metavar="HOST:PORT", help="ray: the cluster, or auto (default: RAY_ADDRESS, else this machine alone)")
    group.add_argument("--collect", action="store_true", help="ray: the nodes do not share --out; cells are sent back when they end")
    group.add_argument("--slurm-partition", metavar="NAME", help="slurm: the partition (default: Slurm's)")
    group.add_argument("--slurm-time", metavar="TIME", help="slurm: limit of a job: MINUTES, HH:MM:SS or D-HH:MM:SS (default: 1-00:00:00)")
    group.add_argument("--slurm-gpus", type=int, metavar="N", help="slurm: GPUs of a job (default: as --cell-gpus)")
    group.add_argument(
        "--slurm-arg", action="append", metavar="KEY=VALUE", help="slurm: another option of sbatch; may be given several times"
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse options that cannot be meant.

    Raises:
        UserError: an option of another executor, or a value that is none.
    """
    of = {"local": (), "ray": _OF_RAY + _OF_BOTH, "slurm": _OF_SLURM + _OF_BOTH}[args.executor]
    for name in (*_OF_BOTH, *_OF_RAY, *_OF_SLURM):
        if getattr(args, name) not in (None, False) and name not in of:
            raise UserError(f"--{name.replace('_', '-')} means nothing with --executor {args.executor}")
    for name, least in (("cell_cpus", 1), ("cell_gpus", 0), ("cell_memory_gib", 0), ("slurm_gpus", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {value}: at least {least} is needed")
    _minutes(args.slurm_time)
    _extra(args.slurm_arg)


@contextmanager
def connect(args: argparse.Namespace, out: Path, default: Resources) -> Iterator[Executor]:
    """The executor of a cluster, for as long as it is connected to.

    Args:
        args: with the options above, checked.
        out: the grid's folder, absolute.
        default: what a cell needs, as the preset has it.

    Raises:
        UserError: a package is missing, or the cluster does not answer or is too small.
    """
    gpus = args.cell_gpus if args.slurm_gpus is None else args.slurm_gpus
    need = Resources(
        cpus=default.cpus if args.cell_cpus is None else args.cell_cpus,
        gpus=default.gpus if gpus is None else gpus,
        memory_gib=default.memory_gib if args.cell_memory_gib is None else args.cell_memory_gib,
    )
    if args.executor == "ray":
        with executor_ray.connect(args.address):
            cluster = executor_ray.RayCluster(out, need, args.workers, args.collect)
            slots = executor_ray.count_slots(need)
            yield Executor(lambda jobs, progress: executor_ray.run_cells(cluster, jobs, progress), min(slots, args.workers or slots))
    else:
        minutes, extra = _minutes(args.slurm_time), _extra(args.slurm_arg)
        slurm = executor_slurm.Slurm(out, need, args.workers, args.slurm_partition, minutes, extra)
        queue = executor_slurm.make_executor(slurm)
        held = executor_slurm.still_running(slurm)
        yield Executor(lambda jobs, progress: executor_slurm.run_cells(slurm, queue, jobs, progress, held), args.workers or _ANY, held)


def recover(out: Path, held: Collection[str]) -> None:
    """After an earlier start that was killed: finish what it was putting in place, and stop what is still at cells that are not held."""
    collecting.finish(out / attempts.ROOM / "parcels", out / "cells")
    attempts.revoke(out, held)


def _minutes(text: str | None) -> int:
    try:
        return executor_slurm.minutes_of("1-00:00:00" if text is None else text)
    except ValueError:
        raise UserError(f"--slurm-time {text}: expected MINUTES, HH:MM:SS or D-HH:MM:SS, such as 90 or 1-12:00:00") from None


def _extra(given: Sequence[str] | None) -> dict[str, str | bool]:
    pairs = [text.removeprefix("--").partition("=") for text in given or ()]
    for key, _, _ in pairs:
        if not key or not key.replace("-", "").isalnum():
            raise UserError(f"--slurm-arg {key!r}: expected KEY=VALUE, an option of sbatch, such as account=lab")
    return {key: value if equals else True for key, equals, value in pairs}
