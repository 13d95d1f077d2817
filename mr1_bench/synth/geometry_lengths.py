"""Geometry families about lengths, areas and ratios: Pythagoras, similar triangles, areas, special right triangles.

Each family is a space of integer givens, the exact answer (an integer, a surd or a fraction as text), and a builder in role
letters. This file must not know how items are chosen, split, worded or drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mr1_bench.synth.diagram import Figure
from mr1_bench.synth.geometry_problem import (
    Family,
    Givens,
    Measure,
    Problem,
    angle_given,
    between,
    fraction_text,
    length_given,
    polar,
    root_text,
    square_unit,
)
from mr1_bench.synth.rng import Rng

_ORIGIN = (0.0, 0.0)


def _triples(longest: int) -> list[Givens]:
    """Right triangles (leg, leg, hypotenuse) in whole numbers, not too thin to draw."""
    return [
        (p, q, math.isqrt(p * p + q * q))
        for p in range(3, longest)
        for q in range(3, longest)
        if 0.28 <= p / q <= 3.6 and math.isqrt(p * p + q * q) ** 2 == p * p + q * q <= longest * longest
    ]


def _right_figure(p: float, q: float) -> Figure:
    """Right angle at C, AC = p upright, BC = q."""
    points = {"C": _ORIGIN, "A": (0.0, p), "B": (q, 0.0)}
    return Figure(points, segments=("AB", "BC", "CA"), rights=("ACB",))


_RIGHT_FACT = (Measure("angle", ("ACB",), 90.0),)
_RIGHT_PREMISE = "in triangle ABC, angle C = 90°"


# Pythagoras in whole numbers.


def _hypotenuse_space(_level: int) -> Sequence[Givens]:
    return [(p, q) for p, q, _ in _triples(100)]


def _hypotenuse_answer(g: Givens) -> str:
    return root_text(g[0] ** 2 + g[1] ** 2)


def _build_hypotenuse(g: Givens, _rng: Rng, unit: str) -> Problem:
    p, q = g
    gold = f"{_hypotenuse_answer(g)}{unit}"
    return Problem(
        premise=_RIGHT_PREMISE,
        givens=(length_given("AC", p, unit), length_given("BC", q, unit)),
        target="AB",
        measure=Measure("length", ("AB",)),
        steps=(f"AB × AB = {p} × {p} + {q} × {q} = {p * p + q * q}, so AB = {gold}.",),
        gold=gold,
        figure=_right_figure(p, q),
        facts=_RIGHT_FACT,
    )


def _leg_space(_level: int) -> Sequence[Givens]:
    return [(h, p) for p, _, h in _triples(100)]


def _leg_answer(g: Givens) -> str:
    return root_text(g[0] ** 2 - g[1] ** 2)


def _build_leg(g: Givens, _rng: Rng, unit: str) -> Problem:
    h, p = g
    gold = f"{_leg_answer(g)}{unit}"
    return Problem(
        premise=_RIGHT_PREMISE,
        givens=(length_given("AB", h, unit), length_given("AC", p, unit)),
        target="BC",
        measure=Measure("length", ("BC",)),
        steps=(f"BC × BC = {h} × {h} - {p} × {p} = {h * h - p * p}, so BC = {gold}.",),
        gold=gold,
        figure=_right_figure(p, math.sqrt(h * h - p * p)),
        facts=_RIGHT_FACT,
    )


# Pythagoras with surds.


def _surd_space(_level: int) -> Sequence[Givens]:
    pairs = [(p, q) for p in range(2, 19) for q in range(2, 19) if 0.3 <= p / q <= 3.3]
    return [(p, q) for p, q in pairs if math.isqrt(p * p + q * q) ** 2 != p * p + q * q]


def _thirty_space(_level: int) -> Sequence[Givens]:
    return [(2 * x, y) for x in range(2, 13) for y in range(1, 21) if 0.4 <= y / x <= 1.5]


def _thirty_answer(g: Givens) -> str:
    return root_text((g[0] // 2) ** 2 + g[1] ** 2)


def _build_thirty(g: Givens, _rng: Rng, unit: str) -> Problem:
    h, y = g
    x, gold = h // 2, _thirty_answer(g)
    figure = _right_figure(h * math.cos(math.radians(30)), x)
    points = dict(figure.points) | {"D": (0.0, float(y))}
    return Problem(
        premise="in triangle ABC, angle C = 90°, angle A = 30°, D is on AC",
        givens=(length_given("AB", h, unit), length_given("CD", y, unit)),
        target="BD",
        measure=Measure("length", ("BD",)),
        steps=(
            f"Angle A = 30°, so BC is half of AB, BC = {x}.",
            f"BD × BD = {x} × {x} + {y} × {y} = {x * x + y * y}, so BD = {gold}.",
        ),
        gold=gold,
        figure=Figure(points, segments=("AB", "BC", "CA", "BD"), rights=("ACB",)),
        facts=(*_RIGHT_FACT, Measure("angle", ("BAC",), 30.0)),
    )


# Ratios in a right triangle.


def _ratio_space(_level: int) -> Sequence[Givens]:
    return [(h, p) for p, _, h in _triples(60)]


def _sine_answer(g: Givens) -> str:
    return fraction_text(math.isqrt(g[0] ** 2 - g[1] ** 2), g[0])


def _tangent_answer(g: Givens) -> str:
    return fraction_text(math.isqrt(g[0] ** 2 - g[1] ** 2), g[1])


def _build_ratio(g: Givens, *, sine: bool) -> Problem:
    h, p = g
    q = math.isqrt(h * h - p * p)
    name, bottom, gold = ("sinA", "AB", _sine_answer(g)) if sine else ("tanA", "AC", _tangent_answer(g))
    return Problem(
        premise=_RIGHT_PREMISE,
        givens=(length_given("AB", h, ""), length_given("AC", p, "")),
        target=name,
        measure=Measure("ratio", ("BC", bottom)),
        steps=(
            f"BC × BC = {h} × {h} - {p} × {p} = {q * q}, so BC = {q}.",
            f"{name} is BC divided by {bottom}, so {name} = {gold}.",
        ),
        gold=gold,
        figure=_right_figure(p, q),
        facts=_RIGHT_FACT,
    )


def _build_sine(g: Givens, _rng: Rng, _unit: str) -> Problem:
    return _build_ratio(g, sine=True)


def _build_tangent(g: Givens, _rng: Rng, _unit: str) -> Problem:
    return _build_ratio(g, sine=False)


# Similar triangles.


def _similar_figure(m: int, n: int, base: float, angle: float) -> Figure:
    """AB = m + n in a triangle over BC = base, D divides AB as m : n and DE is parallel to BC."""
    top = polar(_ORIGIN, angle, m + n)
    t = m / (m + n)
    points = {"A": top, "B": _ORIGIN, "C": (base, 0.0), "D": between(top, _ORIGIN, t), "E": between(top, (base, 0.0), t)}
    return Figure(points, segments=("AB", "BC", "CA", "DE"), arrows=("DE", "BC"))


def _similar_space(_level: int) -> Sequence[Givens]:
    options = [(m, n, k) for m in range(2, 13) for n in range(1, 13) for k in range(2, 21) if 0.4 <= m / (m + n) <= 0.75]
    return [(m, n, k) for m, n, k in options if k * (m + n) % m == 0 and n % m and 0.55 <= k / m <= 1.5]


def _similar_answer(g: Givens) -> str:
    return str(g[2] * (g[0] + g[1]) // g[0])


def _build_similar(g: Givens, rng: Rng, unit: str) -> Problem:
    m, n, k = g
    gold = f"{_similar_answer(g)}{unit}"
    return Problem(
        premise="in triangle ABC, D is on AB, E is on AC, DE parallel BC",
        givens=(length_given("AD", m, unit), length_given("DB", n, unit), length_given("DE", k, unit)),
        target="BC",
        measure=Measure("length", ("BC",)),
        steps=(
            f"DE parallel BC, so triangle ADE is similar to triangle ABC. AB = {m} + {n} = {m + n}.",
            f"{k} × {m + n} / {m} = {_similar_answer(g)}, so BC = {gold}.",
        ),
        gold=gold,
        figure=_similar_figure(m, n, k * (m + n) / m, rng.uniform(52, 72)),
        facts=(Measure("parallel", ("DE", "BC"), 0.0),),
    )


def _area_ratio_space(_level: int) -> Sequence[Givens]:
    return [(m, n) for m in range(2, 16) for n in range(2, 16) if 0.38 <= m / (m + n) <= 0.75]


def _area_ratio_answer(g: Givens) -> str:
    return fraction_text(g[0] ** 2, (g[0] + g[1]) ** 2)


def _build_area_ratio(g: Givens, rng: Rng, _unit: str) -> Problem:
    m, n = g
    gold = _area_ratio_answer(g)
    return Problem(
        premise="in triangle ABC, D is on AB, E is on AC, DE parallel BC",
        givens=(length_given("AD", m, ""), length_given("DB", n, "")),
        target="the ratio of the area of triangle ADE to the area of triangle ABC",
        measure=Measure("area_ratio", ("ADE", "ABC")),
        steps=(
            f"DE parallel BC, so triangle ADE is similar to triangle ABC with AD to AB as {m} to {m + n}.",
            f"The areas are as {m * m} to {(m + n) * (m + n)}, so the ratio is {gold}.",
        ),
        gold=gold,
        figure=_similar_figure(m, n, (m + n) * rng.uniform(0.9, 1.3), rng.uniform(52, 72)),
        facts=(Measure("parallel", ("DE", "BC"), 0.0),),
    )


# Areas.


def _area(points: str) -> Measure:
    return Measure("area", (points,))


def _half_space(_level: int) -> Sequence[Givens]:
    return [(b, h) for b in range(3, 25) for h in range(3, 25) if b * h % 2 == 0 and 0.4 <= h / b <= 1.2]


def _half_answer(g: Givens) -> str:
    return str(g[0] * g[1] // 2)


def _build_area_triangle(g: Givens, rng: Rng, unit: str) -> Problem:
    b, h = g
    gold = f"{_half_answer(g)}{square_unit(unit)}"
    foot = b * rng.uniform(0.3, 0.7)
    points = {"A": (foot, float(h)), "B": _ORIGIN, "C": (float(b), 0.0), "D": (foot, 0.0)}
    return Problem(
        premise="in triangle ABC, AD perpendicular BC at D",
        givens=(length_given("BC", b, unit), length_given("AD", h, unit)),
        target="triangle ABC",
        measure=_area("ABC"),
        steps=(f"{b} × {h} / 2 = {_half_answer(g)}, so the area of triangle ABC is {gold}.",),
        gold=gold,
        figure=Figure(points, segments=("AB", "BC", "CA"), dashed=("AD",), rights=("ADC",)),
        facts=(Measure("angle", ("ADC",), 90.0),),
    )


def _product_space(_level: int) -> Sequence[Givens]:
    return [(a, b) for a in range(2, 25) for b in range(2, 25) if 0.4 <= b / a <= 2.5]


def _product_answer(g: Givens) -> str:
    return str(g[0] * g[1])


def _build_area_rectangle(g: Givens, _rng: Rng, unit: str) -> Problem:
    a, b = g
    gold = f"{a * b}{square_unit(unit)}"
    points = {"A": (0.0, float(b)), "B": _ORIGIN, "C": (float(a), 0.0), "D": (float(a), float(b))}
    return Problem(
        premise="ABCD is a rectangle",
        givens=(length_given("BC", a, unit), length_given("AB", b, unit)),
        target="rectangle ABCD",
        measure=_area("ABCD"),
        steps=(f"{a} × {b} = {a * b}, so the area of rectangle ABCD is {gold}.",),
        gold=gold,
        figure=Figure(points, segments=("AB", "BC", "CD", "DA"), rights=("ABC",)),
        facts=(Measure("angle", ("ABC",), 90.0), Measure("angle", ("BCD",), 90.0), Measure("angle", ("CDA",), 90.0)),
    )


def _build_area_parallelogram(g: Givens, rng: Rng, unit: str) -> Problem:
    b, h = g
    gold = f"{b * h}{square_unit(unit)}"
    lean = min(b * 0.5, h * 0.6) * rng.uniform(0.7, 1.0)
    points = {"A": (lean, float(h)), "B": _ORIGIN, "C": (float(b), 0.0), "D": (b + lean, float(h)), "E": (lean, 0.0)}
    return Problem(
        premise="in parallelogram ABCD, AE perpendicular BC at E",
        givens=(length_given("BC", b, unit), length_given("AE", h, unit)),
        target="parallelogram ABCD",
        measure=_area("ABCD"),
        steps=(f"{b} × {h} = {b * h}, so the area of parallelogram ABCD is {gold}.",),
        gold=gold,
        figure=Figure(points, segments=("AB", "BC", "CD", "DA"), dashed=("AE",), rights=("AEC",)),
        facts=(Measure("parallel", ("AB", "DC"), 0.0), Measure("angle", ("AEC",), 90.0), Measure("ratio", ("AD", "BC"), 1.0)),
    )


def _trapezoid_space(_level: int) -> Sequence[Givens]:
    sides = [(a, b) for a in range(2, 15) for b in range(a + 2, 25) if 0.3 <= a / b <= 0.7]
    return [(a, b, h) for a, b in sides for h in range(3, 13) if (a + b) * h % 2 == 0 and 0.4 <= h / b <= 0.9]


def _trapezoid_answer(g: Givens) -> str:
    return str((g[0] + g[1]) * g[2] // 2)


def _build_area_trapezoid(g: Givens, rng: Rng, unit: str) -> Problem:
    a, b, h = g
    gold = f"{_trapezoid_answer(g)}{square_unit(unit)}"
    start = (b - a) * rng.uniform(0.45, 0.7)
    points = {"A": (start, float(h)), "B": _ORIGIN, "C": (float(b), 0.0), "D": (start + a, float(h)), "E": (start, 0.0)}
    return Problem(
        premise="in trapezoid ABCD, AD parallel BC, AE perpendicular BC at E",
        givens=(length_given("AD", a, unit), length_given("BC", b, unit), length_given("AE", h, unit)),
        target="trapezoid ABCD",
        measure=_area("ABCD"),
        steps=(
            f"The sides add to {a} + {b} = {a + b}.",
            f"{a + b} × {h} / 2 = {_trapezoid_answer(g)}, so the area of trapezoid ABCD is {gold}.",
        ),
        gold=gold,
        figure=Figure(points, segments=("AB", "BC", "CD", "DA"), dashed=("AE",), rights=("AEC",)),
        facts=(Measure("parallel", ("AD", "BC"), 0.0), Measure("angle", ("AEC",), 90.0)),
    )


def _diagonal_space(_level: int) -> Sequence[Givens]:
    return [(h, p) for p, q, h in _triples(70) if 0.4 <= p / q <= 2.5]


def _diagonal_answer(g: Givens) -> str:
    return str(g[1] * math.isqrt(g[0] ** 2 - g[1] ** 2))


def _build_diagonal(g: Givens, _rng: Rng, unit: str) -> Problem:
    d, a = g
    b = math.isqrt(d * d - a * a)
    gold = f"{a * b}{square_unit(unit)}"
    points = {"A": (0.0, float(a)), "B": _ORIGIN, "C": (float(b), 0.0), "D": (float(b), float(a))}
    return Problem(
        premise="ABCD is a rectangle",
        givens=(length_given("AC", d, unit), length_given("AB", a, unit)),
        target="rectangle ABCD",
        measure=_area("ABCD"),
        steps=(
            f"BC × BC = {d} × {d} - {a} × {a} = {b * b}, so BC = {b}.",
            f"{a} × {b} = {a * b}, so the area of rectangle ABCD is {gold}.",
        ),
        gold=gold,
        figure=Figure(points, segments=("AB", "BC", "CD", "DA", "AC"), rights=("ABC",)),
        facts=(Measure("angle", ("ABC",), 90.0), Measure("angle", ("BCD",), 90.0), Measure("angle", ("CDA",), 90.0)),
    )


_SINES = {30: (1, ""), 45: (2, "√{2}"), 60: (3, "√{3}")}


def _sine_area_space(_level: int) -> Sequence[Givens]:
    return [(p, q, a) for p in range(2, 15) for q in range(2, 15) for a in _SINES if 0.5 <= p / q <= 2.0]


def _sine_area_answer(g: Givens) -> str:
    return fraction_text(g[0] * g[1], 4, _SINES[g[2]][1])


def _build_sine_area(g: Givens, _rng: Rng, _unit: str) -> Problem:
    p, q, a = g
    gold = _sine_area_answer(g)
    height = fraction_text(p, 2, _SINES[a][1])
    corner_b = polar(_ORIGIN, a, p)
    points = {"A": _ORIGIN, "B": corner_b, "C": (float(q), 0.0)}
    return Problem(
        premise="in triangle ABC",
        givens=(length_given("AB", p, ""), length_given("AC", q, ""), angle_given("BAC", a, "A")),
        target="triangle ABC",
        measure=_area("ABC"),
        steps=(f"The height from B to AC is {height}.", f"{q} × {height} / 2 = {gold}, so the area of triangle ABC is {gold}."),
        gold=gold,
        figure=Figure(points, segments=("AB", "BC", "CA")),
        facts=(),
    )


LENGTH_FAMILIES: tuple[Family, ...] = (
    Family("pythagoras_hypotenuse", "√(aa+bb)", (2, 3), _hypotenuse_space, _hypotenuse_answer, _build_hypotenuse, symmetric=True),
    Family("pythagoras_leg", "√(aa-bb)", (2, 3), _leg_space, _leg_answer, _build_leg),
    Family("similar", "c(a+b)/a", (2, 3, 4), _similar_space, _similar_answer, _build_similar),
    Family("area_triangle", "ab/2", (2, 3), _half_space, _half_answer, _build_area_triangle, symmetric=True),
    Family("area_rectangle", "ab", (2,), _product_space, _product_answer, _build_area_rectangle, symmetric=True),
    Family("area_parallelogram", "ab", (2, 3), _product_space, _product_answer, _build_area_parallelogram, symmetric=True),
    Family("area_trapezoid", "(a+b)c/2", (2, 3, 4), _trapezoid_space, _trapezoid_answer, _build_area_trapezoid),
    Family("area_diagonal", "b√(aa-bb)", (3, 4), _diagonal_space, _diagonal_answer, _build_diagonal),
    Family("pythagoras_surd", "√(aa+bb)", (5,), _surd_space, _hypotenuse_answer, _build_hypotenuse, symmetric=True),
    Family("thirty_sixty", "√(aa/4+bb)", (5,), _thirty_space, _thirty_answer, _build_thirty),
    Family("sine", "sin", (5,), _ratio_space, _sine_answer, _build_sine),
    Family("tangent_ratio", "tan", (5,), _ratio_space, _tangent_answer, _build_tangent),
    Family("area_ratio", "aa/(a+b)(a+b)", (5,), _area_ratio_space, _area_ratio_answer, _build_area_ratio),
    Family("area_sine", "ab sin c/2", (5,), _sine_area_space, _sine_area_answer, _build_sine_area),
)
