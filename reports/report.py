"""`mr1-bench report`: folders of runs to one folder with tables, figures, all numbers as JSON, and a page.

Everything is written into a folder beside the wanted one, which then takes its place, so that a report is there whole or not at all. A
folder that is not a report of ours is never replaced.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import mr1_bench
from mr1_bench import published
from mr1_bench.errors import UserError
from mr1_bench.records import code_sha256, write_json
from mr1_bench.reports import analysis, page_text
from mr1_bench.reports.analysis import Findings, analyse
from mr1_bench.reports.collect import read_study
from mr1_bench.reports.figures import draw_all
from mr1_bench.reports.gallery import gallery_html, study_gallery, write_gallery
from mr1_bench.reports.page import write_page
from mr1_bench.reports.provenance import Places, model_label, provenance
from mr1_bench.reports.study import Study
from mr1_bench.reports.tables import write_tables

HELP = "Turn runs into tables, figures, data and a page that opens without a server."
MARKER = "mr1-bench report"
"""Value of `kind` in `report.json`: a folder that has it may be replaced."""
FORMAT = 1
GALLERY_ITEMS = 200
T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders with runs, searched recursively")
    parser.add_argument("--out", type=Path, required=True, metavar="REPORT", help="folder to write; an earlier report there is replaced")
    parser.add_argument(
        "--gallery",
        type=_item_count,
        default=GALLERY_ITEMS,
        metavar="N",
        help="items a task in the gallery, spaced evenly over its data; `all`, or 0 for no gallery (default: %(default)s)",
    )


def _item_count(text: str) -> int:
    if text == "all":
        return 10**9
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of items, or `all`")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Write the report and print what it says."""
    began = time.monotonic()
    path, sentences = write_report(args.folders, args.out, gallery_items=args.gallery)
    print("\n".join(sentences))
    print(f"\nReport written in {time.monotonic() - began:.0f} s: {path}")
    return 0


def write_report(folders: Sequence[Path], out: Path, *, gallery_items: int = GALLERY_ITEMS) -> tuple[Path, list[str]]:
    """Read runs and write their report.

    Args:
        folders: with runs, searched recursively.
        out: the report's folder; replaced where it is an earlier report.
        gallery_items: most items a task in the gallery; 0 for none.

    Returns:
        path of the page, and the sentences of its summary.

    Raises:
        RecordError: runs cannot be read, or may not stand in one study.
        UserError: `out` is something else than a report.
    """
    check_replaceable(out)
    study = read_study(folders)
    findings = analyse(study)
    places = Places(folders)
    code = code_sha256("reports")
    sentences = page_text.summary(study, findings, start_label(study))
    with replacing(out) as part:
        with beside(lambda: draw_all(study, part / "figures")) as figures:
            tables = write_tables(study, part / "tables", findings)
            gallery = study_gallery(study, gallery_items)
            if gallery:
                write_gallery(gallery, part)
            write_json(part / "report.json", as_json(study, findings, places, sentences, code))
            drawn = figures()
        block = gallery_html(gallery) if gallery else None
        write_page(part, study, findings, drawn, block, places, sentences, tables=_by_table(tables), code=code)
    return out / "index.html", sentences


@contextmanager
def beside(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Let a forked process work while the block goes on; the function it gives waits for the result, or raises what the work raised.

    With one core, or where processes cannot be forked, the work is done when it is waited for.
    """
    if (os.cpu_count() or 1) < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield work
        return
    context = multiprocessing.get_context("fork")  # the study is large, and the child reads it where it lies
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(work, sender))
    process.start()
    sender.close()

    def wait() -> T:
        try:
            done, value = receiver.recv()
        except EOFError:
            process.join()
            raise UserError(f"a process of the report was ended from outside (exit code {process.exitcode}): is memory short?") from None
        if not done:
            raise value
        result: T = value
        return result

    try:
        yield wait
    finally:
        process.terminate()
        process.join()
        receiver.close()


def _send_result(work: Callable[[], Any], sender: Connection) -> None:
    try:
        result = (True, work())
    except Exception as error:  # noqa: BLE001  (raised again where the result is waited for)
        error.add_note("".join(traceback.format_exception(error)))
        result = (False, error)
    try:
        pickle.loads(pickle.dumps(result))  # the errors of some libraries can be written and not read back
    except Exception as error:  # noqa: BLE001  (pickling runs code of whatever is pickled)
        notes = "".join(getattr(result[1], "__notes__", ()))
        result = (False, RuntimeError(f"the result of a process of the report cannot be sent ({error}): {result[1]!r}\n{notes}"))
    sender.send(result)


def start_label(study: Study) -> str:
    """The model that training started from, as a person names it; empty where it is not known."""
    start = page_text.start_of(study)
    return model_label(str(start.config.get("model") or start.model)) if start else ""


def as_json(study: Study, findings: Findings, places: Places, sentences: Sequence[str], code: str) -> dict[str, Any]:
    """All numbers of a report with where they come from: every `run` in them is a key of `runs`.

    Shares are between 0 and 1.
    """
    runs = {run.name: provenance(run, places) for run in study.runs}
    missing = [{"run": one.name, "folder": places.name(one.folder), "why": places.clean(one.why)} for one in study.missing]
    head = {"kind": MARKER, "format": FORMAT, "version": mr1_bench.__version__, "code_sha256": code, "summary": list(sentences)}
    curves = [dataclasses.asdict(curve) for curve in analysis.curves(study)]
    paper = [dataclasses.asdict(row) for row in published.ROWS]
    body = dataclasses.asdict(findings) | {"curves": curves, "published": paper, "parity": places.value(list(study.parity))}
    return head | body | {"missing": missing, "runs": runs}


def _by_table(written: Sequence[Path]) -> dict[str, list[tuple[str, str]]]:
    """Files of tables by table, with their kind."""
    kinds = {".md": "Markdown", ".csv": "CSV", ".tex": "LaTeX"}
    found: dict[str, list[tuple[str, str]]] = {}
    for path in written:
        if path.suffix in kinds:
            found.setdefault(path.stem, []).append((kinds[path.suffix], path.name))
    return found


def check_replaceable(out: Path, record: str = "report.json", kind: str = MARKER) -> None:
    """Make sure that a folder may be written: absent, empty, or an earlier report.

    Args:
        out: the folder.
        record: file in it that says what it is.
        kind: what that says in `kind`.

    Raises:
        UserError: it is something else.
    """
    if not out.exists() and not out.is_symlink():
        return
    advice = "name a new folder with --out"
    if not out.is_dir():
        raise UserError(f"{out} is not a folder; {advice}")
    if not any(out.iterdir()):
        return
    try:
        found = json.loads((out / record).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != kind:
        raise UserError(f"{out} holds files but is no report of mr1-bench (it has no {record} of ours), and is not replaced; {advice}")


@contextmanager
def replacing(out: Path, check: Callable[[Path], None] = check_replaceable) -> Iterator[Path]:
    """Give a new folder to write into, which takes the place of `out` once the block ends well and is gone otherwise.

    What a killed writer left beside `out` is removed. `check` refuses a folder that may not be replaced.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(out, check)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.part-", dir=out.parent))
    descriptor = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield part
        check(out)
        part.chmod(0o755)
        before = part.with_name(part.name.replace(".part-", ".old-"))
        if out.exists():
            out.rename(before)
        try:
            part.rename(out)
        except OSError:
            if before.exists():
                before.rename(out)
            raise
        shutil.rmtree(before, ignore_errors=True)
    finally:
        os.close(descriptor)
        shutil.rmtree(part, ignore_errors=True)


def _remove_stale(out: Path, check: Callable[[Path], None]) -> None:
    """Remove folders of writers that were killed: their lock is free.

    An earlier report is put back first where its writer was killed in the middle of the exchange, when neither report is in its place: the
    new one still lies beside it then. Any other that lies there had been replaced.
    """
    for part in out.parent.glob(f".{out.name}.part-*"):
        with suppress(OSError), _locked(part):
            before = part.with_name(part.name.replace(".part-", ".old-"))
            if before.is_dir() and not out.exists():
                before.rename(out)
            shutil.rmtree(part, ignore_errors=True)
    for before in out.parent.glob(f".{out.name}.old-*"):
        if not before.with_name(before.name.replace(".old-", ".part-")).exists():
            with suppress(UserError):
                check(before)
                shutil.rmtree(before, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        OSError: another process holds it, or the folder is gone.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
