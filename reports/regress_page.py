"""The page of a comparison: the verdicts with their intervals, what kinds of items flipped, and each of them with picture and both answers.

A folder that opens from a file, made of the same frame, style sheet and gallery as the report. Whatever comes from records and models is
escaped. This module must not compute statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mr1_bench
from mr1_bench.reports.figures import Figure
from mr1_bench.reports.flip_kinds import flip_name, most_frequent
from mr1_bench.reports.gallery import Gallery, Pair, gallery_html, gallery_of_pairs, items_of, spread, write_gallery
from mr1_bench.reports.page_frame import FILES, POLICY, environment, write_assets
from mr1_bench.reports.page_text import count
from mr1_bench.reports.provenance import model_label
from mr1_bench.reports.regress_reports import (
    MARKS,
    change_text,
    flips_with_kinds,
    item_name,
    kinds_sentence,
    outcome,
    p_text,
    side_name,
    value_text,
    visible,
)
from mr1_bench.reports.regression import exit_code
from mr1_bench.reports.study import Answer
from mr1_bench.reports.trend import draw_trends
from mr1_bench.reports.verdicts import Direction, Flip, HistoryEntry, ItemScore, Regression, Snapshot, Verdict
from mr1_bench.reports.wording import amount

GALLERY_ITEMS = 200
"""Most flipped items of a task and direction that the page shows."""
NOT_KEPT = "[This answer was not kept: the baseline was saved without texts.]"
"""Stands in the gallery for an answer of which only the verdict is known."""


@dataclass(frozen=True, slots=True)
class Row:
    """A verdict as the page shows it; places on the plot run from 0 to 100, None where there is nothing to plot."""

    verdict: Verdict
    mark: str
    task: str
    why: str
    old: str
    new: str
    change: str
    p: str
    x: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None


def write_page(out: Path, regression: Regression, history: Sequence[HistoryEntry] = ()) -> Path:
    """Write `index.html`, its assets, the gallery of flipped items and the trend.

    Args:
        out: folder of the report.
        regression: what was found.
        history: earlier snapshots, the oldest first, and the current one last; drawn from two on.

    Returns:
        path of the page.
    """
    gallery, notes = flip_gallery(regression)
    if gallery:
        write_gallery(gallery, out)
    settings = regression.settings
    figures = draw_trends(history, out / "figures", alpha=settings.alpha, min_effect=settings.min_effect)
    reach = _reach(regression.verdicts)
    rows = [_row(one, reach) for one in regression.verdicts]
    closed = exit_code(regression) != 0
    first = [row for row in rows if row.verdict.gates or row.verdict.headline]
    kinds = most_frequent((flip.direction, kind) for flip, kind in flips_with_kinds(regression))
    page = (
        environment()
        .get_template("regress.html")
        .render(
            title=f"Regression gate: {'closed' if closed else 'open'}",
            policy=POLICY,
            version=mr1_bench.__version__,
            outcome=outcome(regression),
            closed=closed,
            sides=[side_name(regression.baseline), side_name(regression.current)],
            sentences=[visible(sentence) for sentence in kinds_sentence(regression)],
            first=first,
            rest=[row for row in rows if row not in first],
            reach=100 * reach,
            kinds=kinds,
            most=max((one.count for ones in kinds.values() for one in ones), default=1),
            totals={way: sum(flip.direction == way for flip in regression.flips) for way in ("lost", "won")},
            gallery=gallery_html(gallery) if gallery else None,
            gallery_notes=notes,
            figures=figures,
            flaky=[(visible(item_name(one)), visible(one.task), visible(one.gold), one) for one in regression.flaky],
            facts=[_facts(regression.baseline), _facts(regression.current)],
            settings=settings,
            min_effect=amount(settings.min_effect, "share", exact=True),
            notes=[visible(note) for note in regression.notes],
            contents=_contents(regression, figures),
        )
    )
    write_assets(out)
    (out / "assets" / "regress.js").write_bytes((FILES / "regress.js").read_bytes())
    path = out / "index.html"
    path.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    return path


def _contents(regression: Regression, figures: Sequence[Figure]) -> list[tuple[str, str]]:
    listed = [
        ("summary", "Verdicts", True),
        ("flips", "Flipped items", bool(regression.flips)),
        ("trend", "Trend", bool(figures)),
        ("flaky", "Flaky items", bool(regression.flaky)),
        ("compared", "What was compared", True),
        ("statistics", "How to read it", True),
    ]
    return [(key, name) for key, name, there in listed if there]


# --- verdicts


def _reach(verdicts: Sequence[Verdict]) -> float:
    """Half the width of the plots: the farthest end of any interval of a share, in whole points, from 2 to 100."""
    ends = [abs(end) for one in verdicts if one.unit == "share" for end in (one.low, one.high, one.difference) if end is not None]
    return max(0.02, math.ceil(100 * min(1.0, max(ends, default=0.0))) / 100)


def _row(verdict: Verdict, reach: float) -> Row:
    old, new = (value_text(value, verdict.unit) for value in (verdict.old, verdict.new))
    p = p_text(verdict).removesuffix(" (Holm)")  # said once below the table
    row = Row(verdict, MARKS[verdict.state], visible(verdict.task), visible(verdict.why), old, new, change_text(verdict), p)
    if verdict.unit != "share" or verdict.difference is None or verdict.state in ("not-comparable", "no-baseline"):
        return row

    def place(difference: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, difference / reach)), 2)

    low, high = (None if end is None else place(end) for end in (verdict.low, verdict.high))
    limit = -verdict.tolerance if verdict.better == "higher" else verdict.tolerance
    return replace(row, x=place(verdict.difference), low=low, high=high, limit=place(limit) if abs(limit) <= reach else None)


# --- flipped items


def flip_gallery(regression: Regression) -> tuple[Gallery | None, dict[str, str]]:
    """Collect the items that flipped, with pictures where the data is at hand, lost ones first.

    Returns:
        the gallery, None where nothing flipped; and notes by task, which the gallery shows too.
    """
    if not regression.flips:
        return None, {}
    found = flips_with_kinds(regression)
    pairs: list[Pair] = []
    notes: dict[str, str] = {}
    for task in dict.fromkeys(flip.task for flip, _ in found):
        chosen = []
        directions: tuple[Direction, ...] = ("lost", "won")
        for way in directions:
            here = [(flip, kind) for flip, kind in found if (flip.task, flip.direction) == (task, way)]
            chosen += [here[position] for position in spread(len(here), GALLERY_ITEMS)]
        hashes = {str(one.identity.get("dataset_sha256") or "") for one in regression.current.tasks.get(task, ())}
        items, note = items_of(task, [_answer(flip.new, flip.direction == "won") for flip, _ in chosen], hashes)
        total = sum(flip.task == task for flip, _ in found)
        fewer = f"{count(len(chosen), 'item')} of {total:,} that flipped are shown." if len(chosen) < total else ""
        notes[task] = " ".join(filter(None, (note, fewer)))
        pairs += [
            _pair(flip, replace(item, kind=flip_name(kind, flip.direction))) for (flip, kind), item in zip(chosen, items, strict=True)
        ]
    sides = (side_name(regression.baseline), side_name(regression.current))
    gallery = gallery_of_pairs(pairs, (f"Baseline, {sides[0]}", "baseline"), (f"Current, {sides[1]}", "current"), r1v_read=False)
    shown = {task: note for task, note in notes.items() if note}
    return replace(gallery, notes=shown), shown


def _pair(flip: Flip, item: Any) -> Pair:
    return Pair(flip.task, item, _answer(flip.old, flip.direction == "lost"), _answer(flip.new, flip.direction == "won"))


def _answer(item: ItemScore, right: bool) -> Answer:
    """An item's score as the gallery takes it; of several repeats, whose means are no verdicts, only the direction of the flip is told."""
    scores = {metric: value for metric, value in item.scores.items() if value in (0.0, 1.0)} | {"acc": float(right)}
    text = NOT_KEPT if item.text is None else item.text
    tokens = None if item.tokens is None else round(item.tokens)
    return Answer(item.doc_id, item.item, item.gold, text, scores, item.value, None, tokens)


# --- what was compared


def _facts(snapshot: Snapshot) -> list[tuple[str, Any]]:
    """What is known of a side, without folders of the machine."""
    known: list[tuple[str, Any]] = [
        ("Name", side_name(snapshot)),
        ("Read from", visible(Path(snapshot.source).name)),
        ("Model", visible(model_label(snapshot.model))),
        ("Weights", visible(snapshot.weights)),
        ("Evaluated", snapshot.created[:16].replace("T", " ")),
        ("Commit", visible(snapshot.commit)),
    ]
    for task, ones in snapshot.tasks.items():
        seeds = [one.seed for one in ones if one.seed is not None]
        entry = ones[0]
        facts: dict[str, Any] = {"items": len(entry.items)}
        facts |= {"repeats": entry.repeats} if entry.repeats > 1 else {}
        facts |= {"seeds": ", ".join(map(str, seeds))} if seeds else {}
        facts |= {"engine": visible(entry.engine)} if entry.engine else {}
        facts |= {key: _short(value) for key, value in entry.identity.items() if value is not None}
        known.append((visible(task), facts))
    return [(key, value) for key, value in known if value]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return visible(", ".join(f"{key} {one}" for key, one in value.items()))
    text = visible(str(value))
    return text[:12] if len(text) == 64 else text
