"""Paints a counting scene: ray-cast sprites with CLEVR's colours, materials and lights on its gray ground, with soft shadows.

A sprite's shading is computed once with NumPy per (shape, material, turn, elevation) and only tinted, scaled and pasted
afterwards; that is what makes thousands of pictures a minute possible. It must not know questions or answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mr1_bench.synth.scene import CAMERA_COS, CAMERA_DISTANCE, CAMERA_SIN, GRID, SceneObject, View, project

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

RGB: dict[str, tuple[int, int, int]] = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
"""CLEVR's colours (its image_generation/data/properties.json)."""

# A sprite shows this many radii on each side of the object's centre; a cylinder seen steeply reaches 1.42, the rest is room for resampling.
_REACH = 1.7
_YAW_STEP, _ELEVATION_STEP = 10, 6
_BEVEL = 0.12


def _unit(*vector: float) -> Array:
    array = np.array(vector, dtype=np.float32)
    return array / np.float32(np.linalg.norm(array))


# World axes: x right, y away from the camera, z up. Directions towards the lamps, as in CLEVR: key, fill, back.
_KEY, _FILL, _BACK = _unit(-0.55, -0.35, 0.9), _unit(0.9, -0.5, 0.45), _unit(0.2, 0.8, 0.75)


def _rays(resolution: int, elevation: int) -> tuple[Array, Array, Array]:
    """Return ray origins [H, W, 3], the view direction [3] and the pixels' (x, y) plane for parallel rays at an elevation in degrees."""
    cos, sin = math.cos(math.radians(elevation)), math.sin(math.radians(elevation))
    forward, up = np.array([0, cos, -sin], np.float32), np.array([0, sin, cos], np.float32)
    line = ((np.arange(resolution, dtype=np.float32) + 0.5) / resolution * 2 - 1) * _REACH
    plane = np.stack(np.meshgrid(line, -line), axis=-1)
    origin = plane[..., :1] * np.array([1, 0, 0], np.float32) + plane[..., 1:] * up - 4 * forward
    return origin.astype(np.float32), forward, plane


def _hit_sphere(origin: Array, forward: Array) -> tuple[Array, Array, Any]:
    b = origin @ forward
    disc = b * b - ((origin * origin).sum(-1) - 1)
    hit = disc > 0
    point = origin + (-b - np.sqrt(np.maximum(disc, 0)))[..., None] * forward
    return point, point, hit


def _hit_box(origin: Array, forward: Array, half: Array) -> tuple[Array, Array, Any]:
    safe = np.where(np.abs(forward) < 1e-6, np.float32(1e-6), forward)
    t1, t2 = (-half - origin) / safe, (half - origin) / safe
    near, far = np.minimum(t1, t2), np.maximum(t1, t2)
    enter = near.max(-1)
    hit = enter < far.min(-1)
    point = origin + enter[..., None] * forward
    # The face hit dominates; towards an edge the neighbours' normals blend in, which rounds the edge and lets it catch the light.
    edge = np.clip((np.abs(point) / half - (1 - _BEVEL)) / _BEVEL, 0, 1)
    normal = np.where(near == enter[..., None], 1.0, 0.75 * edge**3) * np.sign(point)
    return point, normal.astype(np.float32), hit


def _hit_cylinder(origin: Array, forward: Array) -> tuple[Array, Array, Any]:
    a = float(forward[0] ** 2 + forward[1] ** 2)
    b = origin[..., :2] @ forward[:2]
    disc = b * b - a * ((origin[..., :2] ** 2).sum(-1) - 1)
    side_t = (-b - np.sqrt(np.maximum(disc, 0))) / a
    side = origin + side_t[..., None] * forward
    on_side = (disc > 0) & (np.abs(side[..., 2]) <= 1)
    top_t = (1 - origin[..., 2]) / forward[2]
    top = origin + top_t[..., None] * forward
    on_top = (top[..., :2] ** 2).sum(-1) <= 1
    point = np.where(on_top[..., None], top, side)
    flat = np.sqrt((point[..., :2] ** 2).sum(-1, keepdims=True))
    radial = np.concatenate([point[..., :2], np.zeros_like(point[..., :1])], -1)
    up = np.array([0, 0, 1], np.float32)
    rim_top = np.clip((flat - (1 - _BEVEL)) / _BEVEL, 0, 1) ** 3
    rim_side = np.clip((point[..., 2:] - (1 - _BEVEL)) / _BEVEL, 0, 1) ** 3
    normal = np.where(on_top[..., None], up + 0.75 * rim_top * radial, radial + 0.75 * rim_side * up)
    return point, normal, on_top | on_side


def _surface(shape: str, yaw: int, elevation: int, resolution: int) -> tuple[Array, Array, Array, Any]:
    """Cast parallel rays at a unit object; return points, unit normals, the view direction (world axes) and the hit mask."""
    origin, forward, _ = _rays(resolution, elevation)
    if shape == "sphere":
        point, normal, hit = _hit_sphere(origin, forward)
    elif shape == "cylinder":
        point, normal, hit = _hit_cylinder(origin, forward)
    else:
        cos, sin = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float32)
        point, normal, hit = _hit_box(origin @ turn, forward @ turn, np.full(3, math.sqrt(0.5), np.float32))
        point, normal = point @ turn.T, normal @ turn.T
    length = np.sqrt((normal * normal).sum(-1, keepdims=True))
    return point, normal / np.maximum(length, 1e-6), forward, hit


def _lamp(direction: Array, lamp: Array, sharpness: float) -> Array:
    facing: Array = np.clip((direction * lamp).sum(-1), 0, 1)
    return np.power(facing, sharpness)


def _rubber(normal: Array, forward: Array, ground: Array) -> tuple[Array, Array]:
    """Matte shading: factor for the colour and white to add."""
    light = 0.38 + 0.6 * _lamp(normal, _KEY, 1) + 0.26 * _lamp(normal, _FILL, 1) + 0.2 * _lamp(normal, _BACK, 1)
    half = _KEY - forward
    gloss = 0.06 * _lamp(normal, half / np.linalg.norm(half), 12)
    return light * ground, gloss


def _metal(point: Array, normal: Array, forward: Array, ground: Array) -> tuple[Array, Array]:
    """Mirror-like shading: the reflected room (bright floor, dark walls, lamps) tinted by the colour, and white glints."""
    mirror = forward - 2 * (normal @ forward)[..., None] * normal
    # The room is not infinitely far: where on a flat face a ray leaves shifts what it meets, which gives faces their gradients.
    mirror = mirror + 0.4 * point
    mirror = mirror / np.maximum(np.sqrt((mirror * mirror).sum(-1, keepdims=True)), 1e-6)
    floor = np.clip(0.15 - mirror[..., 2] * 2.2, 0, 1)
    room = 0.36 + 0.5 * np.clip(mirror[..., 2], 0, 1)
    lamps = 1.5 * _lamp(mirror, _KEY, 14) + 1.0 * _lamp(mirror, _FILL, 20) + 0.9 * _lamp(mirror, _BACK, 10)
    # Tall soft windows all the way down to the floor: upright walls, a cylinder's above all, show them as streaks.
    around = mirror * np.array([1, 1, 0], np.float32)
    around = around / np.maximum(np.sqrt((around * around).sum(-1, keepdims=True)), 1e-6)
    level = 1 - np.abs(normal[..., 2])
    windows = level * (0.75 * _lamp(around, _unit(-0.75, -0.65, 0), 40) + 0.6 * _lamp(around, _unit(0.9, -0.4, 0), 60))
    tint = floor * (0.5 + 0.4 * ground) + (1 - floor) * room + lamps + windows
    rim = (1 - np.clip(-(normal @ forward), 0, 1)) ** 4 + 0.9 * windows**2
    glint = 0.95 * _lamp(mirror, _KEY, 60) + 0.7 * _lamp(mirror, _FILL, 90) + 0.45 * _lamp(mirror, _BACK, 50)
    return tint * (0.5 + 0.5 * ground), 0.12 * rim + glint


@lru_cache(maxsize=512)
def _shading(shape: str, material: str, yaw: int, elevation: int, resolution: int) -> tuple[Array, Array, Array]:
    """Return the colour's factor, the white to add and the coverage, each [resolution, resolution], from 2x2 rays a pixel."""
    point, normal, forward, hit = _surface(shape, yaw, elevation, 2 * resolution)
    bottom = math.sqrt(0.5) if shape == "cube" else 1.0
    # Near the ground less light arrives: the contact looks grounded instead of floating.
    ground = 0.62 + 0.38 * np.clip((point[..., 2] + bottom) / 0.9, 0, 1)
    factor, white = _metal(point, normal, forward, ground) if material == "metal" else _rubber(normal, forward, ground)
    cover = hit.astype(np.float32)

    def shrink(plane: Array) -> Array:
        mean: Array = plane.reshape(resolution, 2, resolution, 2).mean((1, 3), dtype=np.float32)
        return mean

    share = shrink(cover)
    weight = np.maximum(share, 1e-6)
    return shrink(factor * cover) / weight, shrink(white * cover) / weight, share


@lru_cache(maxsize=768)
def _sprite(shape: str, color: str, material: str, yaw: int, elevation: int, resolution: int) -> Image.Image:
    factor, white, cover = _shading(shape, material, yaw, elevation, resolution)
    tint = np.array(RGB[color], np.float32) / 255
    # Blender renders in linear light and gamma-corrects; lifting the tint a little gives the same pastel mid-tones.
    rgb = (0.08 + 0.92 * tint) * factor[..., None] + white[..., None]
    rgba = np.concatenate([rgb, cover[..., None]], -1)
    return Image.fromarray((np.clip(rgba, 0, 1) * 255 + 0.5).astype(np.uint8), "RGBA")


@lru_cache(maxsize=16)
def _background(size: int, light: int) -> Image.Image:
    """The empty room: gray ground, brightest where the lamp falls, fading into a darker back wall."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(line, line)
    side = 0.22 if light % 2 == 0 else 0.78
    bright = 1.0 if light < 2 else 0.9
    pool = np.exp(-(((x - side) / 0.5) ** 2 + ((y - 0.42) / 0.32) ** 2))
    wall = 1 / (1 + np.exp((y - 0.16) / 0.07))
    value = bright * (0.575 + 0.13 * pool - 0.11 * wall - 0.05 * (x - side) ** 2 + 0.03 * (y - 0.5))
    tone = np.array([1.0, 0.995, 0.985], np.float32)
    return Image.fromarray((np.clip(value[..., None] * tone, 0, 1) * 255 + 0.5).astype(np.uint8), "RGB")


@lru_cache(maxsize=8)
def _shadow(resolution: int, strength: float) -> Image.Image:
    line = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution * 2 - 1
    x, y = np.meshgrid(line, line)
    soft = np.clip(1.12 - np.sqrt(x * x + y * y) * 1.12, 0, 1) ** 1.4
    return Image.fromarray((soft * 255 * strength).astype(np.uint8), "L")


def _turned(thing: SceneObject) -> tuple[int, int]:
    """Yaw and elevation, in degrees and rounded to the sprites' steps, under which the camera sees the object."""
    away = thing.v * GRID + CAMERA_DISTANCE * CAMERA_COS
    elevation = math.degrees(math.atan2(CAMERA_DISTANCE * CAMERA_SIN - thing.radius, away))
    bearing = math.degrees(math.atan2(thing.u * GRID, away))
    yaw = round((thing.yaw + bearing) / _YAW_STEP) * _YAW_STEP % 90 if thing.shape == "cube" else 0
    return yaw, 45 if thing.shape == "sphere" else round(elevation / _ELEVATION_STEP) * _ELEVATION_STEP


def _cut(source: Image.Image, left: float, top: float, width: float, height: float) -> tuple[Image.Image, tuple[int, int]]:
    """Resample a sprite onto the pixel grid so that it lies at a fractional position; return it and its pixel corner."""
    x0, y0 = math.ceil(left), math.ceil(top)
    x1, y1 = max(x0 + 1, math.floor(left + width)), max(y0 + 1, math.floor(top + height))
    fx, fy = source.width / width, source.height / height
    box = ((x0 - left) * fx, (y0 - top) * fy, min((x1 - left) * fx, source.width), min((y1 - top) * fy, source.height))
    return source.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box), (x0, y0)


def _resolution(size: int) -> int:
    """Sprite resolution for a picture: the power of two that is at least the largest sprite's side, 64 to 512."""
    return min(512, max(64, 1 << math.ceil(math.log2(0.45 * size))))


def _placed(thing: SceneObject, view: View, size: int) -> tuple[Image.Image, tuple[int, int]]:
    yaw, elevation = _turned(thing)
    sprite = _sprite(thing.shape, thing.color, thing.material, yaw, elevation, _resolution(size))
    reach = _REACH * view.radius * size
    return _cut(sprite, view.x * size - reach, view.y * size - reach, 2 * reach, 2 * reach)


def _paint_shadow(image: Image.Image, thing: SceneObject, view: View, size: int, light: int) -> None:
    radius = view.radius * size
    lean = 1 if light % 2 == 0 else -1
    foot = view.y * size + radius * (0.78 if thing.shape != "cube" else 0.62)
    # A wide faint shadow leaning away from the lamp and a narrow dark one where the object touches the ground.
    for width, height, shift, drop, tone, strength in ((1.75, 0.95, 0.55, 0.02, 60, 0.42), (1.25, 0.62, 0.1, 0.06, 40, 0.62)):
        patch, corner = _cut(
            _shadow(32 if size <= 160 else 128, strength),
            view.x * size + (lean * shift - width) * radius,
            foot + (drop - height) * radius,
            2 * width * radius,
            2 * height * radius,
        )
        image.paste((tone, tone, tone), corner, patch)


def draw_scene(objects: Sequence[SceneObject], light: int, size: int) -> Image.Image:
    """Paint the scene.

    Args:
        objects: in any order; the farther are painted first.
        light: which lighting, 0 to `scene.LIGHTS` - 1.
        size: side of the square picture in pixels, at least 28.

    Raises:
        ValueError: the picture would be too small to show anything.
    """
    if size < 28:
        raise ValueError(f"a scene of {size} pixels shows nothing: ask for at least 28")
    image = _background(size, light).copy()
    views = sorted(((project(thing), thing) for thing in objects), key=lambda pair: -pair[0].depth)
    for view, thing in views:
        _paint_shadow(image, thing, view, size, light)
    for view, thing in views:
        sprite, corner = _placed(thing, view, size)
        image.paste(sprite, corner, sprite)
    return image


def visible_shares(objects: Sequence[SceneObject], size: int) -> list[float]:
    """Measure with an id buffer which share of each object's pixels is seen in the painted picture, in the objects' order."""
    order = sorted(range(len(objects)), key=lambda i: -project(objects[i]).depth)
    buffer = Image.new("L", (size, size), 0)
    full = [0] * len(objects)
    for index in order:
        sprite, corner = _placed(objects[index], project(objects[index]), size)
        mask = sprite.getchannel("A").point([0] * 128 + [255] * 128)
        full[index] = mask.histogram()[255]
        buffer.paste(index + 1, corner, mask)
    seen = buffer.histogram()
    return [seen[i + 1] / full[i] for i in range(len(objects))]
