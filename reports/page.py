"""The page of a report: one folder with an `index.html` that opens from a file, without a server and without a network.

`write_page` renders what others computed: numbers from `analysis`, figures from `figures`, the gallery from `gallery`. Every number links
to the run that it comes from. Nothing of the machine is shown: folders are named as they lie below the folders that the report was made
of. Whatever comes from runs is escaped. This module must not compute statistics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

import mr1_bench
from mr1_bench import published
from mr1_bench.reports import page_text
from mr1_bench.reports.analysis import WHY_TWO_GRADERS, Findings
from mr1_bench.reports.figures import Figure
from mr1_bench.reports.page_frame import POLICY, environment, write_assets
from mr1_bench.reports.page_views import comparison_groups, gain_rows, glance, matrix_groups, parity_view, run_view
from mr1_bench.reports.provenance import Places, provenance
from mr1_bench.reports.study import Study
from mr1_bench.specs import GROUPS

_PLACES = {  # section of the page -> beginnings of the names of its figures
    "transfer": ("train-by-test", "figure-7"),
    "training": ("figure-1", "figure-5", "beta-and-kl"),
    "beta": ("figure-6",),
    "format": ("figure-4",),
    "schedule": ("kl-schedules",),
    "errors": ("confusion", "accuracy-by"),
}


def anchors(study: Study) -> dict[str, str]:
    """The id of every run in the page, by its name."""
    found: dict[str, str] = {}
    for run in study.runs:
        plain = "run-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", run.name) or "x")
        number = sum(one == plain or one.startswith(f"{plain}.") for one in found.values())
        found[run.name] = f"{plain}.{number}" if number else plain
    return found


def _figures(figures: Sequence[Figure]) -> dict[str, Any]:
    by_place: dict[str, list[Figure]] = {place: [] for place in (*_PLACES, "more")}
    for figure in figures:
        place = next((place for place, heads in _PLACES.items() if figure.name.startswith(heads)), "more")
        by_place[place].append(figure)
    for place, heads in _PLACES.items():
        by_place[place].sort(key=lambda figure, heads=heads: [figure.name.startswith(head) for head in heads].index(True))  # type: ignore[misc]
    sweeps = {place: by_place[place] for place in ("beta", "format", "schedule")}
    return by_place | {"sweeps": sweeps, "swept": any(sweeps.values())}


def _contents(study: Study, findings: Findings, figures: Mapping[str, Any], gallery: bool) -> list[tuple[str, str]]:
    listed = [
        ("summary", "Summary", True),
        ("table-1", "Table 1", True),
        ("gains", "Headline gains", bool(findings.gains)),
        ("transfer", "Train by test", True),
        ("comparisons", "Comparisons", True),
        ("training", "Over training", bool(figures["training"])),
        ("sweeps", "Sweeps", figures["swept"] or bool(findings.sweeps)),
        ("errors", "Where answers go wrong", bool(figures["errors"] or findings.slices or findings.confusions)),
        ("figures", "Further figures", bool(figures["more"])),
        ("gallery", "Gallery", gallery),
        ("parity", "Parity of engines", bool(study.parity)),
        ("unpublished", "Not published", True),
        ("missing", "Missing runs", bool(study.missing)),
        ("statistics", "How to read it", True),
        ("runs", "Runs", True),
    ]
    return [(key, name) for key, name, there in listed if there]


def title_of(study: Study) -> str:
    """Return what the page calls itself: only what was measured on the paper's own tasks reproduces it."""
    trained = [run for run in study.runs if run.method != "base"]
    if not trained:
        return "mr1-bench evaluation"
    asked = {task for run in trained for task in run.results}
    return "OThink-MR1, reproduced" if asked.intersection(GROUPS["mr1"]) else "OThink-MR1's grid in miniature"


def write_page(
    out: Path,
    study: Study,
    findings: Findings,
    figures: Sequence[Figure],
    gallery: Markup | None,
    places: Places,
    sentences: Sequence[str],
    *,
    tables: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    code: str = "",
) -> Path:
    """Write `index.html` and its assets.

    Args:
        out: folder of the report; `figures/`, `tables/` and the gallery's data are written by others beside the page.
        study: the runs.
        findings: what was computed of them.
        figures: what `draw_all` drew into `out`/figures.
        gallery: block of `gallery_html`; None for none.
        places: names of folders.
        sentences: the summary.
        tables: files in `out`/tables by table: kind and file name each.
        code: hash of the code that wrote the report.

    Returns:
        path of the page.
    """
    ids = anchors(study)
    placed = _figures(figures)

    page = (
        environment()
        .get_template("page.html")
        .render(
            title=title_of(study),
            policy=POLICY,
            version=mr1_bench.__version__,
            code=code,
            study=study,
            findings=findings,
            summary=sentences,
            gain_rows=gain_rows(findings.gains),
            comparison_groups=comparison_groups(findings.comparisons, findings.matrix),
            matrix_groups=matrix_groups(findings.matrix),
            paired=not any(cell.published for cell in findings.table1.cells),
            glance=glance(findings.table1),
            why_two_graders=WHY_TWO_GRADERS,
            published=published.ROWS,
            statistics=page_text.STATISTICS,
            figures_of=placed,
            gallery=gallery,
            contents=_contents(study, findings, placed, gallery is not None),
            parity=[parity_view(places.value(record)) for record in study.parity],
            missing=[{"name": one.name, "folder": places.name(one.folder), "why": places.clean(one.why)} for one in study.missing],
            runs=[run_view(provenance(run, places), ids[run.name]) for run in study.runs],
            anchor=lambda name: ids.get(name, "runs"),
            table_files=tables or {},
        )
    )
    write_assets(out)
    path = out / "index.html"
    path.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    return path
