"""Distractors for the hardest geometry level: extra lines that add points to a figure and change nothing that is asked or given.

This file must not know what the figure's problem is; it only keeps away from marked angles and labelled lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from mr1_bench.synth.diagram import Figure, Point
from mr1_bench.synth.geometry_problem import between, polar
from mr1_bench.synth.rng import Rng


def _distance_to_segment(p: Point, a: Point, b: Point) -> float:
    dx, dy = b[0] - a[0], b[1] - a[1]
    t = max(0.0, min(1.0, ((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / (dx * dx + dy * dy)))
    return math.dist(p, between(a, b, t))


def _clear(figure: Figure, point: Point, skip: str, gap: float) -> bool:
    """Whether a new point keeps its distance from all points and from all segments but `skip`."""
    if any(math.dist(point, other) < gap for other in figure.points.values()):
        return False
    others = [s for s in (*figure.segments, *figure.dashed) if s != skip]
    return all(_distance_to_segment(point, figure.points[s[0]], figure.points[s[1]]) >= gap * 0.6 for s in others)


def _extent(figure: Figure) -> float:
    points = list(figure.points.values())
    return max(math.dist(p, q) for p in points for q in points)


def _cross_line(figure: Figure, name: str, rng: Rng) -> Figure | None:
    """Join a new point on an unlabelled segment to a corner that carries no mark."""
    vertices = {angle.points[1] for angle in figure.angles} | {right[1] for right in figure.rights}
    measured = [(figure.points[m.points[0]], figure.points[m.points[1]]) for m in figure.lengths]
    corners = [p for p in figure.points if p.isupper() and p not in vertices]
    gap = _extent(figure) * 0.11
    for segment in rng.shuffled(figure.segments):
        a, b = figure.points[segment[0]], figure.points[segment[1]]
        point = between(a, b, rng.uniform(0.35, 0.65))
        # A point within a labelled length would make it unclear which part the label measures.
        if not _clear(figure, point, segment, gap) or any(_distance_to_segment(point, p, q) < gap * 0.5 for p, q in measured):
            continue
        for corner in rng.shuffled(corners):
            if _distance_to_segment(figure.points[corner], a, b) > gap * 1.5:
                return replace(figure, points={**figure.points, name: point}, segments=(*figure.segments, corner + name))
    return None


def _continues_a_side(figure: Figure, corner: str, point: Point) -> bool:
    """Whether a new line from the corner would look like the extension of a side, whose length label it would blur."""
    x, y = figure.points[corner]
    for segment in (s for s in figure.segments if corner in s):
        end = figure.points[segment.replace(corner, "", 1)]
        sine = (end[0] - x) * (point[1] - y) - (end[1] - y) * (point[0] - x)
        if abs(sine) < 0.3 * math.dist((x, y), end) * math.dist((x, y), point):
            return True
    return False


def _stray_line(figure: Figure, name: str, rng: Rng) -> Figure | None:
    """Draw a line from a corner away from the figure to a new point."""
    points = list(figure.points.values())
    center = (sum(p[0] for p in points) / len(points), sum(p[1] for p in points) / len(points))
    length = _extent(figure) * 0.22
    for corner in rng.shuffled([p for p in figure.points if p.isupper() and p not in figure.dots]):
        x, y = figure.points[corner]
        outward = math.degrees(math.atan2(y - center[1], x - center[0]))
        point = polar((x, y), outward + rng.uniform(-50, 50), length)
        if _continues_a_side(figure, corner, point):
            continue
        inside_circle = any(math.dist(point, figure.points[o]) < radius * 1.1 for o, radius in figure.circles)
        if not inside_circle and _clear(figure, point, "", length * 0.5):
            return replace(figure, points={**figure.points, name: point}, segments=(*figure.segments, corner + name))
    return None


def add_clutter(figure: Figure, names: Sequence[str], rng: Rng) -> Figure:
    """Add up to two distractor lines whose new points take the given unused letters; a full figure may take fewer."""
    crossed = _cross_line(figure, names[0], rng) or figure
    return _stray_line(crossed, names[1], rng) or crossed
