"""The shapes that geometry families are written in, and the small plane geometry they construct with.

A family is a finite space of givens, an exact answer for each, and a builder that turns givens into a `Problem`: words, steps,
coordinates and marks. Builders name points by role (`A`, `B`, ...); `relabel` gives them other letters. This file must not know
which families there are, nor how items are chosen or split.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mr1_bench.synth.diagram import AngleMark, Figure, LengthMark, Point
from mr1_bench.synth.rng import Rng

Givens = tuple[int, ...]
MeasureKind = Literal["angle", "length", "area", "ratio", "area_ratio", "sector", "arc", "parallel"]

_WORD_OF_LETTERS = re.compile(r"(?<![A-Za-z])(sin|cos|tan)?([A-Z]+)(?![a-z])")


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that can be measured in the drawn coordinates.

    Attributes:
        kind: `angle` in degrees (`ABC`, vertex in the middle), `length` (`AB`), `area` of a polygon (`ABC`), `ratio` of two lengths,
            `area_ratio` of two polygons, area of a `sector` or length of an `arc` (`AOB`, centre in the middle), or the angle in
            degrees between two lines (`parallel`, 0 when they are).
        points: one or two point strings.
        value: what it must measure; None where the item's gold says it.
    """

    kind: MeasureKind
    points: tuple[str, ...]
    value: float | None = None

    def as_meta(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return {"kind": self.kind, "points": list(self.points), "value": self.value}


@dataclass(frozen=True, slots=True)
class Given:
    """A number the solver needs: in words (`angle A = 80°`) and as a mark in the figure."""

    text: str
    mark: AngleMark | LengthMark


@dataclass(frozen=True, slots=True)
class Problem:
    """One geometry problem in role letters or, after `relabel`, in its final ones.

    Attributes:
        premise: what the figure is, without numbers (`in triangle ABC, AB = AC`).
        givens: the numbers.
        target: what is asked, in words (`angle C`).
        measure: the same, measurable.
        steps: worked solution; the last step ends with the answer.
        gold: the exact answer with its unit.
        figure: the drawing without the marks of `givens`.
        facts: further measurable facts that the premise and the givens claim.
    """

    premise: str
    givens: tuple[Given, ...]
    target: str
    measure: Measure
    steps: tuple[str, ...]
    gold: str
    figure: Figure
    facts: tuple[Measure, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """A question family.

    Attributes:
        name: such as `angle_sum`.
        rule: the arithmetic from givens to answer. Families of one rule share fingerprints, so that a sum trained in one family is
            not tested in another.
        levels: difficulty levels that use the family.
        space: all givens of a level.
        answer: givens to gold without a unit.
        build: (givens, generator of free choices, length unit or "") to problem.
        symmetric: whether swapping the givens is a mere relabelling.
    """

    name: str
    rule: str
    levels: tuple[int, ...]
    space: Callable[[int], Sequence[Givens]]
    answer: Callable[[Givens], str]
    build: Callable[[Givens, Rng, str], Problem]
    symmetric: bool = False

    def fingerprint(self, givens: Givens) -> str:
        """Name what a problem is about, whatever its letters, pose, wording and level."""
        numbers = sorted(givens) if self.symmetric else givens
        return f"{self.rule}|{','.join(map(str, numbers))}"


# Exact answers as text, in the spelling of the GeoQA golds.


def root_text(square: int) -> str:
    """Write the square root of a positive integer exactly: 49 is `7`, 52 is `2√{13}`."""
    outside, inside = _square_free(square)
    if inside == 1:
        return str(outside)
    return f"{outside if outside > 1 else ''}√{{{inside}}}"


def _square_free(square: int) -> tuple[int, int]:
    outside = max(k for k in range(1, math.isqrt(square) + 1) if square % (k * k) == 0)
    return outside, square // (outside * outside)


def fraction_text(numerator: int, denominator: int, factor: str = "") -> str:
    r"""Write a positive fraction in lowest terms, times a factor such as `π` or `√{3}`: `\frac{3}{4}`, `6π`, `\frac{8π}{3}`."""
    common = math.gcd(numerator, denominator)
    top, bottom = numerator // common, denominator // common
    head = (str(top) if top > 1 else "") + factor if factor else str(top)
    return head if bottom == 1 else rf"\frac{{{head}}}{{{bottom}}}"


# Givens in words and in the figure.


def angle_given(points: str, degrees: int, name: str = "") -> Given:
    """State an angle; `name` is how the text calls it where that is not its three points."""
    return Given(f"angle {name or points} = {degrees}°", AngleMark(points, f"{degrees}°"))


def length_given(points: str, length: int, unit: str) -> Given:
    """State a length in a unit (or none)."""
    return Given(f"{points} = {length}{unit}", LengthMark(points, str(length)))


def square_unit(unit: str) -> str:
    """Write the unit of areas for a unit of lengths."""
    return f"{unit}^{{2}}" if unit else ""


# Plane geometry; angles in degrees, counted anticlockwise from the x axis.


def polar(origin: Point, degrees: float, length: float) -> Point:
    """Go from a point in a direction."""
    angle = math.radians(degrees)
    return (origin[0] + length * math.cos(angle), origin[1] + length * math.sin(angle))


def apex(base: float, left: float, right: float) -> Point:
    """Third corner of the triangle over (0, 0) and (base, 0) with these base angles."""
    return polar((0.0, 0.0), left, base * math.sin(math.radians(right)) / math.sin(math.radians(left + right)))


def between(p: Point, q: Point, t: float) -> Point:
    """Point of the line PQ at parameter t (0 is P, 1 is Q; beyond 1 the extension)."""
    return (p[0] + (q[0] - p[0]) * t, p[1] + (q[1] - p[1]) * t)


def meet(p: Point, q: Point, r: Point, s: Point) -> Point:
    """Intersection of the lines PQ and RS."""
    dx, dy, ex, ey = q[0] - p[0], q[1] - p[1], s[0] - r[0], s[1] - r[1]
    return between(p, q, ((r[0] - p[0]) * ey - (r[1] - p[1]) * ex) / (dx * ey - dy * ex))


def pose(figure: Figure, degrees: float, *, mirror: bool) -> Figure:
    """Rotate a figure about the origin, after mirroring it left to right if asked."""
    c, s, m = math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), -1.0 if mirror else 1.0
    return replace(figure, points={name: (m * x * c - y * s, m * x * s + y * c) for name, (x, y) in figure.points.items()})


# Letters.


def relabel(problem: Problem, letters: Mapping[str, str]) -> Problem:
    """Rename the points everywhere: words, steps, measures, figure."""
    table = str.maketrans(dict(letters))

    def words(text: str) -> str:
        return _WORD_OF_LETTERS.sub(lambda m: (m[1] or "") + m[2].translate(table), text)

    def names(points: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(p.translate(table) for p in points)

    def mark(old: AngleMark | LengthMark) -> AngleMark | LengthMark:
        return replace(old, points=old.points.translate(table))

    def measure(old: Measure) -> Measure:
        return replace(old, points=names(old.points))

    figure = problem.figure
    return replace(
        problem,
        premise=words(problem.premise),
        givens=tuple(Given(words(given.text), mark(given.mark)) for given in problem.givens),
        target=words(problem.target),
        measure=measure(problem.measure),
        steps=tuple(words(step) for step in problem.steps),
        facts=tuple(measure(fact) for fact in problem.facts),
        figure=replace(
            figure,
            points={name.translate(table): point for name, point in figure.points.items()},
            segments=names(figure.segments),
            dashed=names(figure.dashed),
            circles=tuple((name.translate(table), radius) for name, radius in figure.circles),
            angles=tuple(replace(angle, points=angle.points.translate(table)) for angle in figure.angles),
            lengths=tuple(replace(length, points=length.points.translate(table)) for length in figure.lengths),
            rights=names(figure.rights),
            ticks=tuple((points.translate(table), count) for points, count in figure.ticks),
            arrows=names(figure.arrows),
            dots=figure.dots.translate(table),
        ),
    )
