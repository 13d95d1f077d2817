"""Geometry families on circles: central and inscribed angles, diameters, chords, tangents, cyclic quadrilaterals, sectors, arcs.

Each family is a space of integer givens, the exact answer, and a builder in role letters; `O` is the centre. This file must not
know how items are chosen, split, worded or drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

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
    meet,
    polar,
    root_text,
)
from mr1_bench.synth.rng import Rng

_RADIUS = 5.0
_CENTER = (0.0, 0.0)


def _on(degrees: float, radius: float = _RADIUS) -> tuple[float, float]:
    return polar(_CENTER, degrees, radius)


def _radii(names: str, radius: float = _RADIUS) -> tuple[Measure, ...]:
    """Facts: these points lie on the circle."""
    return tuple(Measure("length", (f"O{name}",), radius) for name in names)


def _angle(points: str) -> Measure:
    return Measure("angle", (points,))


# Central angle from two radii's angles.


def _central_space(_level: int) -> Sequence[Givens]:
    return [(a, b) for a, b in product(range(15, 61), repeat=2) if 30 <= a + b <= 80]


def _central_answer(g: Givens) -> str:
    return f"{2 * (g[0] + g[1])}°"


def _build_central(g: Givens, _rng: Rng, _unit: str) -> Problem:
    a, b = g
    gold = _central_answer(g)
    points = {"O": _CENTER, "A": _on(90), "B": _on(90 + 180 - 2 * a), "C": _on(90 - 180 + 2 * b)}
    return Problem(
        premise="points A, B and C are on circle O",
        givens=(angle_given("ABO", a), angle_given("ACO", b)),
        target="angle BOC",
        measure=_angle("BOC"),
        steps=(
            f"OA = OB = OC, so angle BAC = {a} + {b} = {a + b}°.",
            f"The central angle is twice that, so angle BOC = {gold}.",
        ),
        gold=gold,
        figure=Figure(points, segments=("AB", "AC", "OB", "OC"), circles=(("O", _RADIUS),), dots="O"),
        facts=(*_radii("ABC"), Measure("angle", ("BAC",), float(a + b))),
    )


# Diameter.


def _diameter_space(_level: int) -> Sequence[Givens]:
    return [(a, b) for a, b in product(range(20, 56), repeat=2) if 90 - a - b >= 15]


def _diameter_answer(g: Givens) -> str:
    return f"{90 - g[0] - g[1]}°"


def _build_diameter(g: Givens, _rng: Rng, _unit: str) -> Problem:
    b_angle, part = g
    gold = _diameter_answer(g)
    a, b, c = _on(180), _on(0), _on(180 - 2 * b_angle)
    d = meet(a, polar(a, 90 - b_angle - part, 1.0), b, c)
    points = {"O": _CENTER, "A": a, "B": b, "C": c, "D": d}
    return Problem(
        premise="AB is the diameter of circle O, C is on circle O, D is on BC",
        givens=(angle_given("ABC", b_angle), angle_given("CAD", part)),
        target="angle DAB",
        measure=_angle("DAB"),
        steps=(
            f"AB is the diameter, so angle C = 90° and angle CAB = 90 - {b_angle} = {90 - b_angle}°.",
            f"{90 - b_angle} - {part} = {gold[:-1]}, so angle DAB = {gold}.",
        ),
        gold=gold,
        figure=Figure(points, segments=("AB", "AC", "BC", "AD"), circles=(("O", _RADIUS),), dots="O"),
        facts=(*_radii("ABC"), Measure("angle", ("ACB",), 90.0)),
    )


# Two chords.


def _chords_space(_level: int) -> Sequence[Givens]:
    return [(a, b) for a, b in product(range(25, 76), repeat=2) if 55 <= a + b <= 140]


def _rest_answer(g: Givens) -> str:
    return f"{180 - g[0] - g[1]}°"


def _build_chords(g: Givens, rng: Rng, _unit: str) -> Problem:
    a, b = g
    gold = _rest_answer(g)
    arc_ac = (360 - 2 * a - 2 * b) * rng.uniform(0.42, 0.58)
    at_a = 180.0
    at_c = at_a - arc_ac
    points = {"O": _CENTER, "A": _on(at_a), "C": _on(at_c), "B": _on(at_c - 2 * a), "D": _on(at_a + 2 * b)}
    points["E"] = meet(points["A"], points["B"], points["C"], points["D"])
    # The centre is not drawn: it would often hide under the chords and is not part of the argument.
    points["o"] = points.pop("O")
    return Problem(
        premise="points A, B, C and D are on the circle, AB and CD meet at E",
        givens=(angle_given("BAC", a), angle_given("ABD", b)),
        target="angle AEC",
        measure=_angle("AEC"),
        steps=(
            f"Angle ACD and angle ABD stand on the same arc, so angle ACD = {b}°.",
            f"In triangle ACE, 180 - {a} - {b} = {gold[:-1]}, so angle AEC = {gold}.",
        ),
        gold=gold,
        figure=Figure(points, segments=("AB", "CD", "AC", "BD"), circles=(("o", _RADIUS),)),
        facts=tuple(Measure("length", (f"o{name}",), _RADIUS) for name in "ABCD"),
    )


# Two tangents.


def _tangents_space(_level: int) -> Sequence[Givens]:
    return [(p, x) for p in range(60, 111, 2) for x in range(15, (180 - p) // 2 - 14)]


def _tangents_answer(g: Givens) -> str:
    return f"{(180 - g[0]) // 2 - g[1]}°"


def _build_tangents(g: Givens, _rng: Rng, _unit: str) -> Problem:
    p, x = g
    central, gold = 180 - p, _tangents_answer(g)
    half = central / 2
    points = {
        "O": _CENTER,
        "A": _on(half),
        "B": _on(-half),
        "P": _on(0, _RADIUS / math.cos(math.radians(half))),
        "C": _on(-half - (180 - 2 * x)),
    }
    return Problem(
        premise="PA and PB are tangents of circle O at A and B, C is on circle O",
        givens=(angle_given("APB", p, "P"), angle_given("OBC", x)),
        target="angle OAC",
        measure=_angle("OAC"),
        steps=(
            f"OA perpendicular PA and OB perpendicular PB, so angle AOB = 180 - {p} = {central}°.",
            f"The inscribed angle ACB is half of it, {central // 2}°, and equals angle OAC + angle OBC.",
            f"{central // 2} - {x} = {gold[:-1]}, so angle OAC = {gold}.",
        ),
        gold=gold,
        figure=Figure(points, segments=("PA", "PB", "OA", "OB", "CA", "CB"), circles=(("O", _RADIUS),), dots="O"),
        facts=(*_radii("ABC"), Measure("angle", ("OAP",), 90.0), Measure("angle", ("OBP",), 90.0)),
    )


# Cyclic quadrilateral.


def _cyclic_space(_level: int) -> Sequence[Givens]:
    return [(x, y) for x, y in product(range(60, 111), range(25, 76)) if 25 <= 180 - x - y <= 75]


def _build_cyclic(g: Givens, rng: Rng, _unit: str) -> Problem:
    x, y = g
    gold = _rest_answer(g)
    # Arcs: AD = 2y, AB = 2(180 - x - y); C divides the remaining arc DB, which is 2x.
    b, a = 0.0, float(2 * (180 - x - y))
    d = a + 2 * y
    c = d + 2 * x * rng.uniform(0.42, 0.58)
    turn = 225 - (b + c - 360) / 2
    points = {"O": _CENTER, "A": _on(a + turn), "B": _on(b + turn), "C": _on(c + turn), "D": _on(d + turn)}
    points["E"] = between(points["B"], points["C"], 1 + 3.6 / math.dist(points["B"], points["C"]))
    points["o"] = points.pop("O")
    return Problem(
        premise="quadrilateral ABCD is inscribed in the circle, E is on the extension of BC",
        givens=(angle_given("DCE", x), angle_given("ABD", y)),
        target="angle ADB",
        measure=_angle("ADB"),
        steps=(
            f"ABCD is inscribed in the circle, so angle BAD = angle DCE = {x}°.",
            f"In triangle ABD, 180 - {x} - {y} = {gold[:-1]}, so angle ADB = {gold}.",
        ),
        gold=gold,
        figure=Figure(points, segments=("AB", "BE", "CD", "DA", "BD"), circles=(("o", _RADIUS),)),
        facts=(*(Measure("length", (f"o{name}",), _RADIUS) for name in "ABCD"), Measure("angle", ("BAD",), float(x))),
    )


# Chord and its distance from the centre.


def _chord_space(level: int) -> Sequence[Givens]:
    pairs = [(r, d) for r in range(3, 61 if level < 5 else 21) for d in range(1, r) if 0.3 <= d / r <= 0.9]
    whole = [(r, d) for r, d in pairs if math.isqrt(r * r - d * d) ** 2 == r * r - d * d]
    return whole if level < 5 else [pair for pair in pairs if pair not in whole]


def _chord_answer(g: Givens) -> str:
    return root_text(4 * (g[0] ** 2 - g[1] ** 2))


def _build_chord(g: Givens, _rng: Rng, unit: str) -> Problem:
    r, d = g
    half, gold = root_text(r * r - d * d), _chord_answer(g)
    reach = math.sqrt(r * r - d * d)
    points = {"O": _CENTER, "A": (-reach, -float(d)), "B": (reach, -float(d)), "C": (0.0, -float(d))}
    return Problem(
        premise="AB is a chord of circle O, OC perpendicular AB at C",
        givens=(length_given("OA", r, unit), length_given("OC", d, unit)),
        target="AB",
        measure=Measure("length", ("AB",)),
        steps=(
            f"In the right triangle OAC, AC × AC = {r} × {r} - {d} × {d} = {r * r - d * d}, so AC = {half}.",
            f"AB = 2 × AC, so AB = {gold}{unit}.",
        ),
        gold=f"{gold}{unit}",
        figure=Figure(points, segments=("AB", "OA", "OC"), circles=(("O", float(r)),), dots="O", rights=("OCB",)),
        facts=(*_radii("AB", float(r)), Measure("angle", ("OCA",), 90.0)),
    )


# Tangent length.


def _tangent_space(level: int) -> Sequence[Givens]:
    pairs = [(p, r) for p in range(4, 71 if level < 5 else 21) for r in range(2, p) if 1.25 <= p / r <= 2.6]
    whole = [(p, r) for p, r in pairs if math.isqrt(p * p - r * r) ** 2 == p * p - r * r]
    return whole if level < 5 else [pair for pair in pairs if pair not in whole]


def _tangent_answer(g: Givens) -> str:
    return root_text(g[0] ** 2 - g[1] ** 2)


def _build_tangent(g: Givens, _rng: Rng, unit: str) -> Problem:
    p, r = g
    gold = _tangent_answer(g)
    points = {"O": _CENTER, "P": (float(p), 0.0), "A": _on(math.degrees(math.acos(r / p)), float(r))}
    return Problem(
        premise="PA is tangent to circle O at A",
        givens=(length_given("PO", p, unit), length_given("OA", r, unit)),
        target="PA",
        measure=Measure("length", ("PA",)),
        steps=(
            "PA is a tangent, so OA perpendicular PA.",
            f"PA × PA = {p} × {p} - {r} × {r} = {p * p - r * r}, so PA = {gold}{unit}.",
        ),
        gold=f"{gold}{unit}",
        figure=Figure(points, segments=("PA", "PO", "OA"), circles=(("O", float(r)),), dots="O"),
        facts=(*_radii("A", float(r)), Measure("angle", ("OAP",), 90.0)),
    )


# Sector and arc over an inscribed angle.


def _sector_space(_level: int) -> Sequence[Givens]:
    return [(a, r) for a in (20, 30, 35, 36, 40, 45, 50, 54, 55, 60, 65, 70, 72, 75, 80) for r in range(2, 13)]


def _sector_answer(g: Givens) -> str:
    return fraction_text(2 * g[0] * g[1] * g[1], 360, "π")


def _arc_answer(g: Givens) -> str:
    return fraction_text(2 * g[0] * g[1], 180, "π")


def _sector_figure(a: int, r: int, rng: Rng) -> Figure:
    size = float(r)
    points = {"O": _CENTER, "A": _on(270 - a, size), "B": _on(270 + a, size), "C": _on(90 + rng.uniform(-25, 25), size)}
    return Figure(points, segments=("OA", "OB", "CA", "CB"), circles=(("O", size),), dots="O")


def _build_sector(g: Givens, rng: Rng, unit: str) -> Problem:
    a, r = g
    gold = _sector_answer(g)
    return Problem(
        premise="points A, B and C are on circle O",
        givens=(angle_given("ACB", a), length_given("OA", r, unit)),
        target="sector AOB",
        measure=Measure("sector", ("AOB",)),
        steps=(
            f"The central angle AOB is twice angle ACB, so angle AOB = {2 * a}°.",
            f"The area is {2 * a} × π × {r} × {r} / 360, so the area of sector AOB is {gold}.",
        ),
        gold=gold,
        figure=_sector_figure(a, r, rng),
        facts=(*_radii("ABC", float(r)), Measure("angle", ("AOB",), 2.0 * a)),
    )


def _build_arc(g: Givens, rng: Rng, unit: str) -> Problem:
    a, r = g
    gold = _arc_answer(g)
    return Problem(
        premise="points A, B and C are on circle O",
        givens=(angle_given("ACB", a), length_given("OA", r, unit)),
        target="arc AB",
        measure=Measure("arc", ("AOB",)),
        steps=(
            f"The central angle AOB is twice angle ACB, so angle AOB = {2 * a}°.",
            f"The length is {2 * a} × π × {r} / 180, so the length of arc AB is {gold}.",
        ),
        gold=gold,
        figure=_sector_figure(a, r, rng),
        facts=(*_radii("ABC", float(r)), Measure("angle", ("AOB",), 2.0 * a)),
    )


CIRCLE_FAMILIES: tuple[Family, ...] = (
    Family("circle_central", "2(a+b)", (2, 3), _central_space, _central_answer, _build_central, symmetric=True),
    Family("circle_diameter", "90-a-b", (2, 3), _diameter_space, _diameter_answer, _build_diameter, symmetric=True),
    Family("circle_chords", "180-a-b", (3, 4), _chords_space, _rest_answer, _build_chords, symmetric=True),
    Family("circle_tangents", "(180-a)/2-b", (4,), _tangents_space, _tangents_answer, _build_tangents),
    Family("circle_cyclic", "180-a-b", (3, 4), _cyclic_space, _rest_answer, _build_cyclic, symmetric=True),
    Family("chord_length", "2√(aa-bb)", (4, 5), _chord_space, _chord_answer, _build_chord),
    Family("tangent_length", "√(aa-bb)", (4, 5), _tangent_space, _tangent_answer, _build_tangent),
    Family("sector_area", "aπbb/180", (5,), _sector_space, _sector_answer, _build_sector),
    Family("arc_length", "aπb/90", (5,), _sector_space, _arc_answer, _build_arc),
)
