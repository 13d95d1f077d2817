"""Writes the reports of a comparison into one folder, whole or not at all: Markdown, JUnit XML, JSON and the page.

A folder that holds anything else is never replaced. This module must not know what the reports say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mr1_bench.errors import UserError
from mr1_bench.records import write_atomic
from mr1_bench.reports.regress_reports import MARKER, junit_xml, markdown, regression_json
from mr1_bench.reports.report import check_replaceable, replacing
from mr1_bench.reports.verdicts import HistoryEntry, Regression

RECORD = "regression.json"
"""The file that says that a folder is a report of a comparison."""
_WRITTEN = ("summary.md", "junit.xml", RECORD, "index.html", "assets", "gallery", "figures")


def write_reports(regression: Regression, out: Path, history: Sequence[HistoryEntry] = ()) -> Path:
    """Write every report of a comparison into one folder: `summary.md`, `junit.xml`, `regression.json` and the page; all or nothing.

    Args:
        regression: what was found.
        out: the folder; made if need be. An earlier report there is replaced.
        history: earlier snapshots of the baseline, the oldest first, and the current one last; drawn as a trend from two on.

    Returns:
        path of the page.

    Raises:
        UserError: the folder holds something else.
    """
    from mr1_bench.reports.regress_page import write_page  # the page needs the templates; the gate alone does not

    check_out(out)
    with replacing(out, check_out) as part:
        write_atomic(part / "summary.md", markdown(regression))
        write_atomic(part / "junit.xml", junit_xml(regression))
        page = write_page(part, regression, history)
        content = json.dumps(_finite(regression_json(regression)), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomic(part / RECORD, content + "\n")
    return out / page.name


def check_out(out: Path) -> None:
    """Make sure that a folder may take a report: absent, empty, or an earlier report and nothing besides.

    Raises:
        UserError: it holds something else.
    """
    check_replaceable(out, RECORD, MARKER)
    others = sorted(path.name for path in out.iterdir() if path.name not in _WRITTEN) if out.exists() else []
    if others:
        raise UserError(f"{out} holds files that are no part of a report ({', '.join(others[:3])}): name a new folder with --out")


def _finite(value: Any) -> Any:
    """A JSON value with null for the ends of intervals that have none, for JSON has no infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
