"""What a counting scene is: objects on a ground plane, a camera, and how much of each object can be seen.

Everything here decides questions and answers, so it uses only `+ - * /`, which give the same floats on every machine; no sine, no root.
It must not know how a scene is painted (`render`) or what is asked about it (`counting`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SHAPES = ("sphere", "cube", "cylinder")
SIZES = ("small", "large")
MATERIALS = ("rubber", "metal")
COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
"""CLEVR's eight colour names."""
VALUES: dict[str, tuple[str, ...]] = {"size": SIZES, "color": COLORS, "material": MATERIALS, "shape": SHAPES}
"""The attributes in the order in which English puts them, with their values."""

Look = dict[str, str]
"""An object's attributes, `size`, `color`, `material` and `shape`; with some of them missing, a description of several objects."""

GRID = 0.05
"""Positions are whole multiples of this many scene units."""
CELL = 10
"""Side in grid steps of the cells by which scenes are told apart: objects in the same cell count as in the same place."""

RADIUS: dict[str, float] = {"small": 0.35, "large": 0.7}
"""CLEVR's object radii in scene units."""

LIGHTS = 4
"""Number of lightings: lamp to the left or right, bright or dim."""

# The camera looks down by the angle whose cosine and sine are 4/5 and 3/5: steeper than CLEVR's 28 degrees, because a square
# picture has more room above.
CAMERA_COS, CAMERA_SIN, CAMERA_DISTANCE, FOCAL = 0.8, 0.6, 12.0, 1.72

# Half extents of the silhouette on the screen, in radii, at the camera's mean elevation; a little generous. A cube's half edge
# is 1/sqrt(2) radii.
_EXTENT: dict[str, tuple[float, float]] = {"sphere": (1.0, 1.0), "cube": (0.98, 1.04), "cylinder": (1.0, 1.38)}
_CENTRE_HEIGHT: dict[str, float] = {"sphere": 1.0, "cube": 0.7071, "cylinder": 1.0}
_SAMPLES = (-0.9, -0.54, -0.18, 0.18, 0.54, 0.9)


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object on the ground.

    Attributes:
        shape: `sphere`, `cube` or `cylinder`.
        color: one of `COLORS`.
        size: `small` or `large`.
        material: `rubber` (matte) or `metal` (mirror-like).
        u: position to the right of the scene's centre, in grid steps.
        v: position away from the camera, in grid steps.
        yaw: rotation about the vertical in degrees; visible on cubes only.
    """

    shape: str
    color: str
    size: str
    material: str
    u: int
    v: int
    yaw: int

    @property
    def radius(self) -> float:
        """Radius in scene units."""
        return RADIUS[self.size]

    @property
    def look(self) -> Look:
        """The object's attributes."""
        return {"size": self.size, "color": self.color, "material": self.material, "shape": self.shape}

    def facts(self) -> dict[str, Any]:
        """Return the object as JSON-able facts, with its centre on the screen as shares of the side."""
        view = project(self)
        return {
            **self.look,
            "u": self.u,
            "v": self.v,
            "yaw": self.yaw,
            "x": round(view.x, 4),
            "y": round(view.y, 4),
        }


@dataclass(frozen=True, slots=True)
class View:
    """An object as the camera sees it; lengths are shares of the picture's side, y points down.

    Attributes:
        x: horizontal position of the object's centre.
        y: vertical position of the object's centre.
        radius: length of the object's radius on the screen.
        half_width: half the silhouette's width.
        half_height: half the silhouette's height.
        depth: distance along the view axis in scene units; the nearer hides the farther.
        round: whether the silhouette is a disc rather than a box.
    """

    x: float
    y: float
    radius: float
    half_width: float
    half_height: float
    depth: float
    round: bool


def project(thing: SceneObject) -> View:
    """See an object through the camera (weak perspective: one scale for the whole object)."""
    right, away, up = thing.u * GRID, thing.v * GRID, _CENTRE_HEIGHT[thing.shape] * thing.radius
    depth = CAMERA_DISTANCE + away * CAMERA_COS - up * CAMERA_SIN
    scale = FOCAL / depth
    half_width, half_height = _EXTENT[thing.shape]
    return View(
        x=0.5 + scale * right,
        y=0.5 - scale * (away * CAMERA_SIN + up * CAMERA_COS),
        radius=scale * thing.radius,
        half_width=scale * thing.radius * half_width,
        half_height=scale * thing.radius * half_height,
        depth=depth,
        round=thing.shape == "sphere",
    )


def in_frame(view: View, margin: float = 0.02) -> bool:
    """Say whether the whole silhouette lies inside the picture, `margin` of a side away from its border."""
    return (
        margin <= view.x - view.half_width
        and view.x + view.half_width <= 1 - margin
        and margin <= view.y - view.half_height
        and view.y + view.half_height <= 1 - margin
    )


def boxes_apart(a: View, b: View, gap: float) -> bool:
    """Say whether two silhouettes' boxes are at least `gap` (share of the side) apart in x or in y."""
    return abs(a.x - b.x) >= a.half_width + b.half_width + gap or abs(a.y - b.y) >= a.half_height + b.half_height + gap


def footprints_apart(a: SceneObject, b: SceneObject, gap: float = 0.2) -> bool:
    """Say whether two objects stand at least `gap` scene units apart on the ground."""
    du, dv, reach = (a.u - b.u) * GRID, (a.v - b.v) * GRID, a.radius + b.radius + gap
    return du * du + dv * dv >= reach * reach


def _covers(view: View, x: float, y: float) -> bool:
    dx, dy = (x - view.x) / view.half_width, (y - view.y) / view.half_height
    return dx * dx + dy * dy <= 1 if view.round else -1 <= dx <= 1 and -1 <= dy <= 1


def visible_share(view: View, others: Sequence[View]) -> float:
    """Estimate the share of a silhouette that no nearer one hides, on a 6x6 grid of points."""
    front = [o for o in others if o.depth < view.depth and not boxes_apart(view, o, 0.0)]
    if not front:
        return 1.0
    seen = total = 0
    for sy in _SAMPLES:
        for sx in _SAMPLES:
            if view.round and sx * sx + sy * sy > 1:
                continue
            total += 1
            x, y = view.x + sx * view.half_width, view.y + sy * view.half_height
            seen += not any(_covers(o, x, y) for o in front)
    return seen / total


def fingerprint(objects: Sequence[SceneObject]) -> str:
    """Name what a scene holds: the multiset of its objects with the ground cell each stands in; turning an object changes nothing."""
    return ";".join(sorted(f"{o.size} {o.color} {o.material} {o.shape} {o.u // CELL} {o.v // CELL}" for o in objects))
