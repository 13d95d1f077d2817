"""The trend over versions: stretches, intervals and change points of a history, and the figure with its words."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path

from PIL import Image

from mr1_bench import stats
from mr1_bench.reports import trend
from mr1_bench.reports.verdicts import HistoryEntry
from tests.regressions import GR, VC, make_history


def scores(history: list[HistoryEntry], task: str = GR) -> list[list[float]]:
    return [[float(one or 0) for one in entry.tasks[task].scores["acc"]] for entry in history]


# --- from a history to a trend


def test_points_carry_wilson_intervals_and_names() -> None:
    history = make_history([0.6, 0.6])
    (found,) = trend.trends(history)
    right = sum(scores(history)[0])
    point = found.points[0]
    assert (point.value, (point.low, point.high)) == (right / 600, stats.wilson(int(right), 600))
    assert point.name == history[0].commit[:7] and point.n == 600
    unnamed = dataclasses.replace(history[0], commit="", label="v1")
    assert trend.version_name(unnamed) == "v1" and trend.version_name(dataclasses.replace(unnamed, label="")) == "2026-01-01"


def test_no_change_is_looked_for_across_a_break() -> None:
    history = make_history([0.9] * 5 + [0.4] * 5, asked=["old"] * 5 + ["new"] * 5)
    (found,) = trend.trends(history)
    assert found.breaks == (5,) and found.changes == () and found.stretches == [(0, 5), (5, 10)]
    assert [(start, end) for start, end, _ in found.levels] == [(0, 5), (5, 10)]


def test_a_change_after_a_break_counts_from_the_beginning() -> None:
    history = make_history([0.9] * 3 + [0.8] * 5 + [0.4] * 5, asked=["old"] * 3 + ["new"] * 10)
    (found,) = trend.trends(history)
    assert [change.index for change in found.changes] == [8]


def test_items_without_a_verdict_and_means_over_repeats() -> None:
    history = make_history([0.6] * 2, n=10)

    def with_scores(entry: HistoryEntry, row: tuple[float | None, ...]) -> HistoryEntry:
        return dataclasses.replace(entry, tasks={GR: dataclasses.replace(entry.tasks[GR], scores={"acc": row})})

    rows: list[tuple[float | None, ...]] = [(None, 1.0, 0.0, 1.0), (0.5, 0.25, 0.75, 0.5)]
    (found,) = trend.trends([with_scores(entry, row) for entry, row in zip(history, rows, strict=True)])
    assert [point.n for point in found.points] == [3, 4] and found.points[1].value == 0.5
    assert 0 <= found.points[1].low < 0.5 < found.points[1].high <= 1
    assert trend.trends([with_scores(entry, (None,) * 4) for entry in history]) == []


# --- as a figure


def test_the_figure_is_drawn_with_words_that_hold_its_numbers(tmp_path: Path) -> None:
    one, two = make_history([0.65] * 6 + [0.5] * 6), make_history([0.6] * 12, task=VC, asked=["a"] * 4 + ["b"] * 8)
    history = [dataclasses.replace(a, tasks={**a.tasks, **b.tasks}) for a, b in zip(one, two, strict=True)]
    (figure,) = trend.draw_trends(history, tmp_path / "figures")
    files = {path.suffix for path in (tmp_path / "figures").iterdir()}
    assert {".png", ".svg"} <= files and len(figure.files) >= 2
    assert f"at {history[6].commit[:7]} (p < 0.0001)" in figure.caption and "at least 1 point large" in figure.caption
    assert f"Something else was asked from {history[4].commit[:7]} on" in figure.caption
    (first, _) = trend.trends(history)[:2]
    assert all(f"{point.name} {100 * point.value:.1f} %" in figure.alt for point in first.points)
    for path in (tmp_path / "figures").iterdir():
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert len(image.convert("L").getcolors(256) or []) > 10
        if path.suffix == ".svg":
            ET.parse(path)


def test_hundred_versions_are_drawn(tmp_path: Path) -> None:
    (figure,) = trend.draw_trends(make_history([0.6] * 100, n=50), tmp_path)
    assert "100 versions" in figure.caption


def test_one_version_makes_no_trend(tmp_path: Path) -> None:
    assert trend.draw_trends(make_history([0.6]), tmp_path / "none") == [] and not (tmp_path / "none").exists()
