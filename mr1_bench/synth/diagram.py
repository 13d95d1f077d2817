"""Line drawings of geometry figures: black on white, true to scale, with labels that look for free paper.

A `Figure` is plain data in the construction's own units; `draw_figure` maps it to pixels by a similarity transform (so every angle
and every ratio in the picture is the true one), strokes it enlarged for smooth edges and sets the text at the final size.
This file must not know what is asked about a figure, nor how it was constructed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]

_FONTS = Path(__file__).resolve().parent.parent / "fonts"
_FACES = {"value": "DejaVuSans-subset.ttf", "name": "DejaVuSerif-Italic-subset.ttf"}
_SUPERSAMPLE = 4
_DIRECTIONS = tuple((math.cos(math.pi * k / 8), math.sin(math.pi * k / 8)) for k in range(16))


@dataclass(frozen=True, slots=True)
class AngleMark:
    """An arc in the angle named by three points, vertex in the middle (`ABC`), with an optional label such as `65°`."""

    points: str
    label: str = ""
    arcs: int = 1


@dataclass(frozen=True, slots=True)
class LengthMark:
    """A label beside the middle of the segment between two points (`AB`)."""

    points: str
    label: str


@dataclass(frozen=True, slots=True)
class Figure:
    """What to draw. Points are named by one letter each, so `AB` is a segment and `ABC` an angle.

    Attributes:
        points: coordinates with the y axis pointing up. Capital letters are written into the picture, small ones are helpers.
        segments: solid segments.
        dashed: dashed segments.
        circles: centre and radius.
        angles: marked angles.
        lengths: labelled lengths.
        rights: angles marked with a right-angle square.
        ticks: segments with that many tick marks; equal counts mean equal lengths.
        arrows: segments with a parallel arrow.
        dots: points drawn as a dot (circle centres).
    """

    points: Mapping[str, Point]
    segments: tuple[str, ...] = ()
    dashed: tuple[str, ...] = ()
    circles: tuple[tuple[str, float], ...] = ()
    angles: tuple[AngleMark, ...] = ()
    lengths: tuple[LengthMark, ...] = ()
    rights: tuple[str, ...] = ()
    ticks: tuple[tuple[str, int], ...] = ()
    arrows: tuple[str, ...] = ()
    dots: str = ""


@lru_cache(maxsize=64)
def font(size: int, face: Literal["value", "name"] = "value") -> ImageFont.FreeTypeFont:
    """Load the bundled font: `value` for numbers, `name` (italic) for points; `size` in pixels."""
    # The basic layout engine is in every Pillow; the other one depends on system libraries and would change pixels.
    return ImageFont.truetype(str(_FONTS / _FACES[face]), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def _text_box(text: str, size: int, face: Literal["value", "name"]) -> tuple[float, float, float, float]:
    """Ink box of a text drawn at the origin."""
    return font(size, face).getbbox(text)


def _text_sizes(size: int) -> dict[str, int]:
    """Text heights for a picture side, all in pixels: relatively larger in small pictures, so that they stay legible."""
    return {"name": max(9, round(6.6 + size * 0.038)), "value": max(8, round(5.0 + size * 0.036))}


def _fit(figure: Figure, size: int, margin: float) -> dict[str, Point]:
    """Map the figure's points into the picture by a similarity transform that leaves `margin` pixels for labels."""
    xs = [p[0] for p in figure.points.values()]
    ys = [p[1] for p in figure.points.values()]
    for name, radius in figure.circles:
        x, y = figure.points[name]
        xs += [x - radius, x + radius]
        ys += [y - radius, y + radius]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    scale = (size - 2 * margin) / max(x1 - x0, y1 - y0)
    cx, cy, half = (x0 + x1) / 2, (y0 + y1) / 2, size / 2
    return {name: (half + (x - cx) * scale, half - (y - cy) * scale) for name, (x, y) in figure.points.items()}


def _scale(figure: Figure, pixels: Mapping[str, Point]) -> float:
    """Pixels per unit of the construction."""
    names = list(figure.points)
    origin = names[0]
    other = max(names, key=lambda n: math.dist(figure.points[origin], figure.points[n]))
    return math.dist(pixels[origin], pixels[other]) / math.dist(figure.points[origin], figure.points[other])


class _Pen:
    """Strokes on the enlarged canvas in the picture's coordinates."""

    def __init__(self, size: int) -> None:
        self.canvas = Image.new("L", (size * _SUPERSAMPLE, size * _SUPERSAMPLE), 255)
        self._draw = ImageDraw.Draw(self.canvas)
        self._width = round(_SUPERSAMPLE * (0.85 + size * 0.0032))
        self._thin = round(self._width * 0.8)

    def line(self, a: Point, b: Point, *, thin: bool = False) -> None:
        k = _SUPERSAMPLE
        self._draw.line((a[0] * k, a[1] * k, b[0] * k, b[1] * k), fill=0, width=self._thin if thin else self._width)

    def dashes(self, a: Point, b: Point, dash: float) -> None:
        count = max(3, round(math.dist(a, b) / dash) | 1)
        for i in range(0, count, 2):
            s, t = i / count, (i + 1) / count
            self.line((a[0] + (b[0] - a[0]) * s, a[1] + (b[1] - a[1]) * s), (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t))

    def circle(self, center: Point, radius: float) -> None:
        k = _SUPERSAMPLE
        x, y, r = center[0] * k, center[1] * k, radius * k + self._width / 2
        self._draw.ellipse((x - r, y - r, x + r, y + r), outline=0, width=self._width)

    def dot(self, center: Point, radius: float) -> None:
        k = _SUPERSAMPLE
        x, y, r = center[0] * k, center[1] * k, radius * k
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=0)

    def arc(self, center: Point, radius: float, start: float, end: float) -> None:
        k = _SUPERSAMPLE
        x, y, r = center[0] * k, center[1] * k, radius * k
        self._draw.arc((x - r, y - r, x + r, y + r), start, end, fill=0, width=self._thin)


def _unit(a: Point, b: Point) -> Point:
    length = math.dist(a, b)
    return ((b[0] - a[0]) / length, (b[1] - a[1]) / length)


def _span(vertex: Point, a: Point, b: Point) -> tuple[float, float]:
    """Start direction and sweep (both degrees, sweep 0 to 180) of the angle between two arms, clockwise on the screen."""
    first = math.degrees(math.atan2(a[1] - vertex[1], a[0] - vertex[0]))
    second = math.degrees(math.atan2(b[1] - vertex[1], b[0] - vertex[0]))
    sweep = (second - first) % 360
    return (first, sweep) if sweep <= 180 else (second, 360 - sweep)


def _stroke(pen: _Pen, figure: Figure, at: Mapping[str, Point], scale: float, em: float) -> None:
    for segment in figure.segments:
        pen.line(at[segment[0]], at[segment[1]])
    for segment in figure.dashed:
        pen.dashes(at[segment[0]], at[segment[1]], em * 0.45)
    for name, radius in figure.circles:
        pen.circle(at[name], radius * scale)
    for name in figure.dots:
        pen.dot(at[name], em * 0.17)
    for mark in figure.angles:
        _stroke_angle(pen, mark, at, em)
    for right in figure.rights:
        _stroke_right(pen, right, at, em)
    for segment, count in figure.ticks:
        _stroke_ticks(pen, at[segment[0]], at[segment[1]], count, em)
    for segment in figure.arrows:
        _stroke_arrow(pen, at[segment[0]], at[segment[1]], em)


def _arc_radius(vertex: Point, a: Point, b: Point, em: float) -> float:
    _, sweep = _span(vertex, a, b)
    wanted = em * (0.85 if sweep > 50 else 1.15)
    return min(wanted, 0.6 * math.dist(vertex, a), 0.6 * math.dist(vertex, b))


def _stroke_angle(pen: _Pen, mark: AngleMark, at: Mapping[str, Point], em: float) -> None:
    a, vertex, b = (at[name] for name in mark.points)
    start, sweep = _span(vertex, a, b)
    radius = _arc_radius(vertex, a, b, em)
    for i in range(mark.arcs):
        pen.arc(vertex, radius - i * em * 0.25, start, start + sweep)


def _stroke_right(pen: _Pen, points: str, at: Mapping[str, Point], em: float) -> None:
    a, vertex, b = (at[name] for name in points)
    u, v, side = _unit(vertex, a), _unit(vertex, b), em * 0.55
    p = (vertex[0] + u[0] * side, vertex[1] + u[1] * side)
    q = (vertex[0] + v[0] * side, vertex[1] + v[1] * side)
    corner = (p[0] + v[0] * side, p[1] + v[1] * side)
    pen.line(p, corner, thin=True)
    pen.line(corner, q, thin=True)


def _stroke_ticks(pen: _Pen, a: Point, b: Point, count: int, em: float) -> None:
    ux, uy = _unit(a, b)
    half, gap = em * 0.32, em * 0.24
    for i in range(count):
        shift = (i - (count - 1) / 2) * gap
        x, y = (a[0] + b[0]) / 2 + ux * shift, (a[1] + b[1]) / 2 + uy * shift
        pen.line((x - uy * half, y + ux * half), (x + uy * half, y - ux * half), thin=True)


def _stroke_arrow(pen: _Pen, a: Point, b: Point, em: float) -> None:
    # Off the middle, where labels and ticks go. Both arrows of a pair point the same way on the page.
    ux, uy = _unit(a, b)
    if (ux, uy) < (0, 0):
        a, b, ux, uy = b, a, -ux, -uy
    tip = (a[0] * 0.3 + b[0] * 0.7, a[1] * 0.3 + b[1] * 0.7)
    size = em * 0.36
    for side in (1, -1):
        pen.line(tip, (tip[0] - (ux + side * uy * 0.8) * size, tip[1] - (uy - side * ux * 0.8) * size), thin=True)


class _Labels:
    """Places texts where little is drawn, and remembers what it placed."""

    def __init__(self, picture: Image.Image, sizes: Mapping[str, int]) -> None:
        self._draw = ImageDraw.Draw(picture)
        self._ink = picture.copy()
        self._ink_draw = ImageDraw.Draw(self._ink)
        self._size = picture.size[0]
        self._sizes = sizes

    def place(self, text: str, candidates: Iterable[tuple[float, float, float]], face: Literal["value", "name"]) -> None:
        """Write `text` centred at the cheapest of the candidates (x, y, cost); ink already there costs up to 20."""
        left, top, right, bottom = _text_box(text, self._sizes[face], face)
        half_w, half_h = (right - left) / 2, (bottom - top) / 2
        best, best_cost = (0.0, 0.0), math.inf
        for x, y, cost in candidates:
            cx = min(max(x, half_w + 1), self._size - half_w - 1)
            cy = min(max(y, half_h + 1), self._size - half_h - 1)
            cost += (abs(cx - x) + abs(cy - y)) * 0.15
            if cost >= best_cost:
                continue
            box = (cx - half_w - 0.9, cy - half_h - 0.9, cx + half_w + 0.9, cy + half_h + 0.9)
            cost += 20 * (1 - self._brightness(box) / 255)
            if cost < best_cost:
                best, best_cost = (cx, cy), cost
        x, y = round(best[0] - half_w - left), round(best[1] - half_h - top)
        # The white rim keeps a number legible where a narrow angle leaves it no free paper.
        rim = 1 if face == "value" else 0
        self._draw.text((x, y), text, fill=0, font=font(self._sizes[face], face), stroke_width=rim, stroke_fill=255)
        self._ink_draw.rectangle((x + left - 1, y + top - 1, x + right, y + bottom), fill=0)

    def _brightness(self, box: tuple[float, float, float, float]) -> float:
        inside = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], self._size), min(box[3], self._size))
        value = self._ink.resize((1, 1), Image.Resampling.BOX, inside).getpixel((0, 0))
        return float(value) if isinstance(value, int | float) else 255.0


def _astray(spot: Point, mark: AngleMark, figure: Figure, at: Mapping[str, Point]) -> float:
    """Cost of a label that lies nearer to another corner than to its own, most where that corner is marked too."""
    a, vertex, b = (at[name] for name in mark.points)
    own = math.dist(spot, vertex)
    marked = {other.points[1] for other in figure.angles}
    near = [name for name, point in at.items() if name.isupper() and math.dist(spot, point) < own]
    return sum(4.0 if name in marked else 1.0 for name in near) + (2.0 if _opposite(spot, vertex, a, b) else 0.0)


def _opposite(p: Point, q: Point, a: Point, b: Point) -> bool:
    """Whether two points lie on different sides of the line AB."""

    def side(r: Point) -> float:
        return (b[0] - a[0]) * (r[1] - a[1]) - (b[1] - a[1]) * (r[0] - a[0])

    return side(p) * side(q) < 0


def _angle_candidates(
    mark: AngleMark, figure: Figure, at: Mapping[str, Point], em: float, half_w: float
) -> Iterable[tuple[float, float, float]]:
    """Spots for an angle's label: along the bisector, far enough out for the text to fit between the arms."""
    a, vertex, b = (at[name] for name in mark.points)
    start, sweep = _span(vertex, a, b)
    radius = _arc_radius(vertex, a, b, em * 1.15)
    middle = math.radians(start + sweep / 2)
    ux, uy = abs(math.cos(middle)), abs(math.sin(middle))
    half_h = em * 0.4
    across, along = uy * half_w + ux * half_h, ux * half_w + uy * half_h
    room = across / math.tan(math.radians(min(sweep, 150) / 2)) + along
    longest = max(math.dist(vertex, a), math.dist(vertex, b))
    near = max(radius + along + 1, min(room, 0.8 * longest))
    for turn in (0.0, 0.12, -0.12, 0.25, -0.25, 0.36, -0.36):
        angle = math.radians(start + sweep * (0.5 + turn))
        for step in (0.85, 1.0, 1.2, 1.45, 1.8):
            spot = (vertex[0] + math.cos(angle) * near * step, vertex[1] + math.sin(angle) * near * step)
            yield (*spot, abs(step - 1) * 3.0 + abs(turn) * 4 + _astray(spot, mark, figure, at))


def _length_candidates(a: Point, b: Point, center: Point, em: float, half_w: float) -> Iterable[tuple[float, float, float]]:
    """Spots beside a segment, from its middle outwards, the side away from the figure's centre first."""
    ux, uy = _unit(a, b)
    nx, ny = -uy, ux
    for along in (0.5, 0.42, 0.58, 0.34, 0.66):
        x, y = a[0] + (b[0] - a[0]) * along, a[1] + (b[1] - a[1]) * along
        outward = 1 if (x - center[0]) * nx + (y - center[1]) * ny >= 0 else -1
        for side in (outward, -outward):
            for extra in (0.3, 0.6):
                reach = abs(nx) * half_w + abs(ny) * em * 0.42 + em * extra
                cost = abs(along - 0.5) * 4 + (extra - 0.3) * 2 + (0.6 if side != outward else 0.0)
                yield (x + nx * side * reach, y + ny * side * reach, cost)


def _name_candidates(point: Point, center: Point, em: float) -> Iterable[tuple[float, float, float]]:
    """Spots around a point, away from the figure's centre first."""
    dx, dy = point[0] - center[0], point[1] - center[1]
    length = math.hypot(dx, dy) or 1.0
    for reach in (0.72, 0.95):
        for ux, uy in _DIRECTIONS:
            away = (ux * dx + uy * dy) / length
            yield (point[0] + ux * em * reach, point[1] + uy * em * reach, 0.9 * (1 - away) + (reach - 0.72) * 5)


def draw_figure(figure: Figure, size: int) -> Image.Image:
    """Draw a figure.

    Args:
        figure: what to draw, in the construction's units.
        size: side of the picture in pixels, at least 56.

    Returns:
        A new RGB picture of `size` by `size` pixels, black on white.

    Raises:
        ValueError: the size is too small for text.
    """
    if size < 56:
        raise ValueError(f"a diagram of {size} px has no room for its labels: ask for 56 px or more")
    sizes = _text_sizes(size)
    em = sizes["name"]
    at = _fit(figure, size, margin=em * 1.05 + 1)
    pen = _Pen(size)
    _stroke(pen, figure, at, _scale(figure, at), em)
    picture = pen.canvas.reduce(_SUPERSAMPLE)
    labels = _Labels(picture, sizes)
    center = (sum(p[0] for p in at.values()) / len(at), sum(p[1] for p in at.values()) / len(at))
    for angle in figure.angles:
        if angle.label:
            half_w = _text_box(angle.label, sizes["value"], "value")[2] / 2
            labels.place(angle.label, _angle_candidates(angle, figure, at, sizes["value"], half_w), "value")
    for length in figure.lengths:
        half_w = _text_box(length.label, sizes["value"], "value")[2] / 2
        a, b = at[length.points[0]], at[length.points[1]]
        labels.place(length.label, _length_candidates(a, b, center, sizes["value"], half_w), "value")
    for name, point in at.items():
        if name.isupper():
            labels.place(name, _name_candidates(point, center, em), "name")
    return picture.convert("RGB")
