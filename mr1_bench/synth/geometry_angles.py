"""Geometry families about angles between straight lines: triangles, isosceles and right triangles, parallels, bisectors.

Each family is a space of integer degrees, the exact answer, and a builder in role letters. This file must not know how items are
chosen, split, worded or drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from mr1_bench.synth.diagram import AngleMark, Figure
from mr1_bench.synth.geometry_problem import Family, Givens, Measure, Problem, angle_given, apex, between, meet, polar
from mr1_bench.synth.rng import Rng

_BASE = 10.0
_ORIGIN = (0.0, 0.0)


def _degrees(level: int, low: int, high: int) -> range:
    """The whole degrees of a level within bounds: even ones at level 1."""
    return range(low + low % 2, high + 1, 2) if level == 1 else range(low, high + 1)


def _angle(points: str) -> Measure:
    return Measure("angle", (points,))


def _two_angles(level: int, low: int, high: int, rest: int) -> list[Givens]:
    """Pairs of triangle angles within bounds that leave at least `rest` degrees for the third."""
    values = _degrees(level, low, high)
    return [(a, b) for a, b in product(values, values) if 180 - a - b >= rest]


def _answer_sum(g: Givens) -> str:
    return f"{g[0] + g[1]}°"


def _answer_rest(g: Givens) -> str:
    return f"{180 - g[0] - g[1]}°"


def _answer_difference(g: Givens) -> str:
    return f"{g[0] - g[1]}°"


# Angle sum.


def _sum_space(level: int) -> Sequence[Givens]:
    return [(a, b) for a, b in _two_angles(level, 25, 115, 25) if a + b >= 65]


def _build_sum(g: Givens, _rng: Rng, _unit: str) -> Problem:
    a, b = g
    c = 180 - a - b
    points = {"A": _ORIGIN, "B": (_BASE, 0.0), "C": apex(_BASE, a, b)}
    return Problem(
        premise="in triangle ABC",
        givens=(angle_given("BAC", a, "A"), angle_given("ABC", b, "B")),
        target="angle C",
        measure=_angle("ACB"),
        steps=(f"{a} + {b} = {a + b}, 180 - {a + b} = {c}°.",),
        gold=f"{c}°",
        figure=Figure(points, segments=("AB", "BC", "CA")),
    )


# Exterior angle.


def _exterior_figure(a: int, b: int) -> Figure:
    points = {"B": _ORIGIN, "C": (_BASE, 0.0), "A": apex(_BASE, b, 180 - a - b), "D": (_BASE * 1.35, 0.0)}
    return Figure(points, segments=("AB", "AC", "BD"))


def _exterior_space(level: int) -> Sequence[Givens]:
    return _two_angles(level, 25, 100, 40)


def _build_exterior(g: Givens, _rng: Rng, _unit: str) -> Problem:
    a, b = g
    return Problem(
        premise="D is on the extension of BC of triangle ABC",
        givens=(angle_given("BAC", a, "A"), angle_given("ABC", b, "B")),
        target="angle ACD",
        measure=_angle("ACD"),
        steps=(f"{a} + {b} = {a + b}°.",),
        gold=f"{a + b}°",
        figure=_exterior_figure(a, b),
    )


def _remote_space(level: int) -> Sequence[Givens]:
    return [(a + b, a) for a, b in _exterior_space(level)]


def _build_remote(g: Givens, _rng: Rng, _unit: str) -> Problem:
    exterior, a = g
    b = exterior - a
    return Problem(
        premise="D is on the extension of BC of triangle ABC",
        givens=(angle_given("ACD", exterior), angle_given("BAC", a, "A")),
        target="angle B",
        measure=_angle("ABC"),
        steps=(f"{exterior} - {a} = {b}°.",),
        gold=f"{b}°",
        figure=_exterior_figure(a, b),
    )


# Isosceles triangles.


def _foot_isosceles_space(level: int) -> Sequence[Givens]:
    return [(y, c) for c in _degrees(level, 40, 70) for y in _degrees(level, c + 15, 165 - c)]


def _build_foot_isosceles(g: Givens, _rng: Rng, _unit: str) -> Problem:
    y, c = g
    gold = _answer_rest(g)
    top = apex(_BASE, c, c)
    foot = meet(top, polar(top, -y, 1.0), _ORIGIN, (1.0, 0.0))
    points = {"A": top, "B": _ORIGIN, "C": (_BASE, 0.0), "D": (foot[0], 0.0)}
    return Problem(
        premise="in triangle ABC, AB = AC, D is on BC",
        givens=(angle_given("ADB", y), angle_given("ACB", c, "C")),
        target="angle BAD",
        measure=_angle("BAD"),
        steps=(f"Angle B = {c}°. {y} + {c} = {y + c}, 180 - {y + c} = {gold}.",),
        gold=gold,
        figure=Figure(points, segments=("AB", "BC", "CA", "AD"), ticks=(("AB", 1), ("AC", 1))),
        facts=(Measure("ratio", ("AB", "AC"), 1.0),),
    )


def _isosceles_figure(base: int, part: int) -> Figure:
    points = {"B": _ORIGIN, "C": (_BASE, 0.0), "A": apex(_BASE, base, base)}
    points["D"] = meet(_ORIGIN, polar(_ORIGIN, part, 1.0), points["A"], points["C"])
    return Figure(points, segments=("AB", "BC", "CA", "BD"), ticks=(("AB", 1), ("AC", 1)))


def _part_space(_level: int) -> Sequence[Givens]:
    return [(c, d) for c in range(40, 71) for d in range(22, c - 14)]


def _build_part(g: Givens, _rng: Rng, _unit: str) -> Problem:
    c, d = g
    return Problem(
        premise="in triangle ABC, AB = AC, D is on AC",
        givens=(angle_given("ACB", c, "C"), angle_given("DBC", d)),
        target="angle ABD",
        measure=_angle("ABD"),
        steps=(f"AB = AC, so angle ABC = {c}°. {c} - {d} = {c - d}, so angle ABD = {c - d}°.",),
        gold=f"{c - d}°",
        figure=_isosceles_figure(c, d),
        facts=(Measure("ratio", ("AB", "AC"), 1.0),),
    )


def _apex_space(_level: int) -> Sequence[Givens]:
    return [(a, d) for a in range(40, 101, 2) for d in range(20, (180 - a) // 2 - 14)]


def _apex_answer(g: Givens) -> str:
    return f"{180 - g[1] - (180 - g[0]) // 2}°"


def _build_apex(g: Givens, _rng: Rng, _unit: str) -> Problem:
    a, d = g
    base = (180 - a) // 2
    gold = _apex_answer(g)
    return Problem(
        premise="in triangle ABC, AB = AC, D is on AC",
        givens=(angle_given("BAC", a, "A"), angle_given("DBC", d)),
        target="angle BDC",
        measure=_angle("BDC"),
        steps=(
            f"AB = AC, so angle C = (180 - {a}) / 2 = {base}°.",
            f"In triangle BCD, 180 - {base} - {d} = {gold[:-1]}, so angle BDC = {gold}.",
        ),
        gold=gold,
        figure=_isosceles_figure(base, d),
        facts=(Measure("ratio", ("AB", "AC"), 1.0),),
    )


# Parallel lines.


def _zigzag_space(level: int) -> Sequence[Givens]:
    values = _degrees(level, 20, 70)
    return list(product(values, values))


def _build_zigzag(g: Givens, rng: Rng, _unit: str) -> Problem:
    a, c = g
    height = 7.0
    upper = rng.uniform(0.4, 0.6) * height
    e = polar((0.0, height), -a, 1.0)
    e = meet((0.0, height), e, (0.0, height - upper), (1.0, height - upper))
    foot = meet(e, polar(e, 180 + c, 1.0), _ORIGIN, (1.0, 0.0))
    right = max(e[0], 0.0, foot[0]) + 3.0
    points = {"A": (0.0, height), "B": (right, height), "C": foot, "D": (right, 0.0), "E": e}
    return Problem(
        premise="AB parallel CD",
        givens=(angle_given("BAE", a), angle_given("DCE", c)),
        target="angle AEC",
        measure=_angle("AEC"),
        steps=(f"{a} + {c} = {a + c}°.",),
        gold=f"{a + c}°",
        figure=Figure(points, segments=("AB", "CD", "AE", "EC"), arrows=("AB", "CD")),
        facts=(Measure("parallel", ("AB", "CD"), 0.0),),
    )


def _midline_figure(a: int, b: int, rng: Rng) -> Figure:
    top = apex(_BASE, b, 180 - a - b)
    t = rng.uniform(0.52, 0.66)
    points = {"A": top, "B": _ORIGIN, "C": (_BASE, 0.0), "D": between(top, _ORIGIN, t), "E": between(top, (_BASE, 0.0), t)}
    return Figure(points, segments=("AB", "BC", "CA", "DE"), arrows=("DE", "BC"))


def _midline_space(level: int) -> Sequence[Givens]:
    return _two_angles(level, 35, 95, 35)


def _build_corresponding(g: Givens, rng: Rng, _unit: str) -> Problem:
    a, b = g
    e = 180 - a - b
    return Problem(
        premise="in triangle ABC, D is on AB, E is on AC, DE parallel BC",
        givens=(angle_given("BAC", a, "A"), angle_given("ABC", b, "B")),
        target="angle AED",
        measure=_angle("AED"),
        steps=(f"DE parallel BC, so angle AED = angle C. 180 - {a} - {b} = {e}, so angle AED = {e}°.",),
        gold=f"{e}°",
        figure=_midline_figure(a, b, rng),
        facts=(Measure("parallel", ("DE", "BC"), 0.0),),
    )


def _build_cointerior(g: Givens, rng: Rng, _unit: str) -> Problem:
    a, b = g
    c = 180 - a - b
    return Problem(
        premise="in triangle ABC, D is on AB, E is on AC, DE parallel BC",
        givens=(angle_given("BAC", a, "A"), angle_given("ABC", b, "B")),
        target="angle CED",
        measure=_angle("CED"),
        steps=(
            f"In triangle ABC, angle C = 180 - {a} - {b} = {c}°.",
            f"DE parallel BC, so 180 - {c} = {a + b} and angle CED = {a + b}°.",
        ),
        gold=f"{a + b}°",
        figure=_midline_figure(a, b, rng),
        facts=(Measure("parallel", ("DE", "BC"), 0.0),),
    )


# Bisectors.


def _rays_space(level: int) -> Sequence[Givens]:
    return [(a, b) for a in _degrees(level, 20, 60) for b in _degrees(level, 20, 70) if 2 * a + b <= 170]


def _build_rays(g: Givens, _rng: Rng, _unit: str) -> Problem:
    a, b = g
    turns = {"A": 0, "C": a, "B": 2 * a, "D": 2 * a + b}
    points = {"O": _ORIGIN} | {name: polar(_ORIGIN, turn, _BASE) for name, turn in turns.items()}
    return Problem(
        premise="OC bisects angle AOB",
        givens=(angle_given("AOC", a), angle_given("BOD", b)),
        target="angle COD",
        measure=_angle("COD"),
        steps=(f"{a} + {b} = {a + b}°.",),
        gold=f"{a + b}°",
        figure=Figure(points, segments=("OA", "OB", "OC", "OD")),
        facts=(Measure("angle", ("COB",), float(a)),),
    )


def _foot_space(level: int) -> Sequence[Givens]:
    return [(b, c) for b, c in _two_angles(level, 30, 100, 40) if (b + c) % 2 == 0 and abs(b - c) >= 6]


def _foot_answer(g: Givens) -> str:
    return f"{180 - g[1] - (180 - g[0] - g[1]) // 2}°"


def _build_foot(g: Givens, _rng: Rng, _unit: str) -> Problem:
    b, c = g
    a, gold = 180 - b - c, _foot_answer(g)
    top = apex(_BASE, b, c)
    foot = meet(top, polar(top, 180 + b + a / 2, 1.0), _ORIGIN, (1.0, 0.0))
    points = {"A": top, "B": _ORIGIN, "C": (_BASE, 0.0), "D": foot}
    return Problem(
        premise="in triangle ABC, AD bisects angle BAC and meets BC at D",
        givens=(angle_given("ABC", b, "B"), angle_given("ACB", c, "C")),
        target="angle ADC",
        measure=_angle("ADC"),
        steps=(
            f"In triangle ABC, angle BAC = 180 - {b} - {c} = {a}°.",
            f"AD bisects it, so angle DAC = {a // 2}°.",
            f"In triangle ADC, 180 - {c} - {a // 2} = {gold[:-1]}, so angle ADC = {gold}.",
        ),
        gold=gold,
        figure=Figure(points, segments=("AB", "BC", "CA", "AD"), angles=(AngleMark("BAD"), AngleMark("DAC"))),
        facts=(Measure("angle", ("BAD",), a / 2), Measure("angle", ("DAC",), a / 2)),
    )


def _incenter_space(_level: int) -> Sequence[Givens]:
    return [(x, y) for x, y in product(range(28, 48), repeat=2) if 90 - x - y >= 15]


def _build_incenter(g: Givens, _rng: Rng, _unit: str) -> Problem:
    x, y = g
    gold = _answer_rest(g)
    points = {"A": apex(_BASE, 2 * x, 2 * y), "B": _ORIGIN, "C": (_BASE, 0.0), "O": apex(_BASE, x, y)}
    return Problem(
        premise="in triangle ABC, BO bisects angle ABC, CO bisects angle ACB",
        givens=(angle_given("ABO", x), angle_given("ACO", y)),
        target="angle BOC",
        measure=_angle("BOC"),
        steps=(
            f"BO and CO are bisectors, so angle OBC = {x}° and angle OCB = {y}°.",
            f"In triangle BOC, 180 - {x} - {y} = {gold[:-1]}, so angle BOC = {gold}.",
        ),
        gold=gold,
        figure=Figure(points, segments=("AB", "BC", "CA", "BO", "CO")),
        facts=(Measure("angle", ("OBC",), float(x)), Measure("angle", ("OCB",), float(y))),
    )


# Right triangle.


_RIGHT_ANGLE = (Measure("angle", ("ACB",), 90.0),)


def _right_space(level: int) -> Sequence[Givens]:
    return list(product(_degrees(level, 25, 65), repeat=2))


def _right_answer(g: Givens) -> str:
    return f"{90 - g[0] + g[1]}°"


def _build_right(g: Givens, _rng: Rng, _unit: str) -> Problem:
    b, x = g
    gold = _right_answer(g)
    corner = apex(_BASE, 90 - b, b)
    foot = meet(corner, polar(corner, 180 + 90 - b + x, 1.0), _ORIGIN, (1.0, 0.0))
    points = {"A": _ORIGIN, "B": (_BASE, 0.0), "C": corner, "D": (foot[0], 0.0)}
    return Problem(
        premise="in triangle ABC, angle ACB = 90°, D is on AB",
        givens=(angle_given("ABC", b, "B"), angle_given("ACD", x)),
        target="angle BDC",
        measure=_angle("BDC"),
        steps=(f"90 - {b} = {90 - b}, {90 - b} + {x} = {gold}.",),
        gold=gold,
        # No right-angle square: CD runs through it and the text says it.
        figure=Figure(points, segments=("AB", "BC", "CA", "CD")),
        facts=_RIGHT_ANGLE,
    )


def _acute_space(_level: int) -> Sequence[Givens]:
    return [(a, b) for a, b in product(range(22, 54), repeat=2) if 90 - a - b >= 15]


def _acute_answer(g: Givens) -> str:
    return f"{90 - g[0] - g[1]}°"


def _build_acute(g: Givens, _rng: Rng, _unit: str) -> Problem:
    a, b = g
    c = 90 - a - b
    corner_b = apex(_BASE, a, 90 - a)
    points = {"A": _ORIGIN, "B": corner_b, "C": (corner_b[0], 0.0)}
    points["D"] = meet(corner_b, polar(corner_b, 270 - b, 1.0), _ORIGIN, (1.0, 0.0))
    return Problem(
        premise="in triangle ABC, angle C = 90°, D is on AC",
        givens=(angle_given("BAC", a, "A"), angle_given("DBC", b)),
        target="angle ABD",
        measure=_angle("ABD"),
        steps=(f"90 - {a} - {b} = {c}, so angle ABD = {c}°.",),
        gold=f"{c}°",
        figure=Figure(points, segments=("AB", "BC", "CA", "BD"), rights=("ACB",)),
        facts=_RIGHT_ANGLE,
    )


ANGLE_FAMILIES: tuple[Family, ...] = (
    Family("angle_sum", "180-a-b", (1, 2), _sum_space, _answer_rest, _build_sum, symmetric=True),
    Family("exterior", "a+b", (2,), _exterior_space, _answer_sum, _build_exterior, symmetric=True),
    Family("isosceles", "180-a-b", (1, 2), _foot_isosceles_space, _answer_rest, _build_foot_isosceles, symmetric=True),
    Family("parallel_zigzag", "a+b", (1, 3), _zigzag_space, _answer_sum, _build_zigzag, symmetric=True),
    Family("bisector_rays", "a+b", (1, 2), _rays_space, _answer_sum, _build_rays, symmetric=True),
    Family("right_triangle", "90-a+b", (1, 2), _right_space, _right_answer, _build_right),
    Family("right_acute", "90-a-b", (2, 3), _acute_space, _acute_answer, _build_acute, symmetric=True),
    Family("isosceles_part", "a-b", (2,), _part_space, _answer_difference, _build_part),
    Family("exterior_remote", "a-b", (1, 3), _remote_space, _answer_difference, _build_remote),
    Family("parallel_triangle", "180-a-b", (2,), _midline_space, _answer_rest, _build_corresponding, symmetric=True),
    Family("parallel_cointerior", "a+b", (3, 4), _midline_space, _answer_sum, _build_cointerior, symmetric=True),
    Family("isosceles_apex", "180-b-(180-a)/2", (3, 4), _apex_space, _apex_answer, _build_apex),
    Family("bisector_foot", "180-b-(180-a-b)/2", (3, 4), _foot_space, _foot_answer, _build_foot),
    Family("bisector_incenter", "180-a-b", (4,), _incenter_space, _answer_rest, _build_incenter, symmetric=True),
)
