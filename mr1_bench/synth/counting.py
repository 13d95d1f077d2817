"""Counting items: draws up a scene that has a wanted answer, places its objects so that each can be counted, and words it.

The answer is chosen first (balanced over the index), then a question and attributes that give it, then positions. The level
table below says what makes a level hard. It must not know how scenes are painted beyond `render.draw_scene`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mr1_bench.synth.item import Split, SynthItem, item_id
from mr1_bench.synth.query import Query, answer, matches, question_text, solution_text
from mr1_bench.synth.rng import Rng, balanced_choice, item_rng, split_of
from mr1_bench.synth.scene import (
    LIGHTS,
    VALUES,
    Look,
    SceneObject,
    View,
    boxes_apart,
    fingerprint,
    footprints_apart,
    in_frame,
    project,
    visible_share,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_OBJECT_TRIES, _SCENE_TRIES, _DRAFT_TRIES = 40, 30, 200
_ROWS = 4  # bands of the picture that are read one after another


@dataclass(frozen=True, slots=True)
class Level:
    """What a difficulty level holds.

    Attributes:
        most: largest number of objects.
        fewest: smallest number of objects, where the question leaves a choice.
        visible: least share of every object's silhouette that must be seen, as estimated when placing.
        gap: distance between silhouettes as a share of the picture's side; None lets them overlap.
        answers: the answers of each question family; every (family, answer) pair is equally frequent.
    """

    most: int
    fewest: int
    visible: float
    gap: float | None
    answers: dict[str, range]

    @property
    def cells(self) -> list[tuple[str, int]]:
        """All (family, answer) pairs."""
        return [(family, value) for family, values in self.answers.items() for value in values]


_ONE = ("count_color", "count_shape", "count_size", "count_material")

LEVEL_PLANS: dict[int, Level] = {
    1: Level(5, 2, 1.0, 0.015, {"count_all": range(1, 6), "count_color": range(5)}),
    2: Level(8, 3, 0.85, None, {"count_all": range(1, 9), **dict.fromkeys(_ONE, range(6))}),
    3: Level(9, 4, 0.8, None, {"count_all": range(3, 10), **dict.fromkeys(_ONE, range(1, 6)), "count_two": range(5)}),
    4: Level(10, 6, 0.7, None, {"count_all": range(5, 11), "count_two": range(6), "count_more": range(1, 6), "count_same": range(5)}),
    5: Level(
        12,
        8,
        0.6,
        None,
        {
            "count_all": range(7, 13),
            "count_two": range(6),
            "count_three": range(5),
            "count_more": range(1, 6),
            "count_same": range(6),
            "count_either": range(2, 8),
        },
    ),
}
"""The five levels."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """A query and the attributes of the objects that give it the wanted answer."""

    query: Query
    looks: list[Look]


def _look(rng: Rng, large: float, fixed: Look | None = None) -> Look:
    """Draw an object's attributes, with some given; `large` is the probability of a large one."""
    drawn = {name: rng.choice(values) for name, values in VALUES.items()}
    drawn["size"] = "large" if rng.chance(large) else "small"
    return {**drawn, **(fixed or {})}


def _until(rng: Rng, large: float, fixed: Look, wanted: Callable[[Look], bool]) -> Look:
    """Draw attributes until they are as wanted; what is wanted must leave a fair share of all looks."""
    while True:
        look = _look(rng, large, fixed)
        if wanted(look):
            return look


def _describe(rng: Rng, count: int) -> Look:
    """Draw a description with `count` attributes."""
    return {name: rng.choice(VALUES[name]) for name in rng.sample(list(VALUES), count)}


def _near_miss(rng: Rng, description: Look) -> Look:
    """Drop one attribute from a description, and give it another value: a distractor that is only just wrong."""
    name = rng.choice(list(description))
    return {**description, name: rng.choice([value for value in VALUES[name] if value != description[name]])}


def _total(rng: Rng, plan: Level, needed: int) -> int:
    return rng.randint(max(needed, plan.fewest), plan.most)


def _large_share(total: int) -> float:
    return 0.6 if total <= 6 else 0.45 if total <= 9 else 0.3


def _draft_where(rng: Rng, plan: Level, wanted: int, description: Look) -> _Draft:
    total = _total(rng, plan, wanted)
    large = _large_share(total)
    looks = [_look(rng, large, description) for _ in range(wanted)]
    for _ in range(total - wanted):
        close = _near_miss(rng, description) if len(description) > 1 and rng.chance(0.6) else {}
        looks.append(_until(rng, large, close, lambda look: not matches(look, description)))
    return _Draft(Query("where", (description,)), looks)


def _draft_pair(rng: Rng, plan: Level, family: str, wanted: int, level: int) -> _Draft:
    """Draft a question on two values of one attribute: how many more, or how many of either."""
    name = rng.choice(("color", "shape", "material", "size") if family == "count_more" else ("color", "shape"))
    first, second = rng.sample(VALUES[name], 2)
    common: Look = {}
    if family == "count_more" and level == 5 and rng.chance(0.5):
        extra = rng.choice([other for other in VALUES if other != name])
        common = {extra: rng.choice(VALUES[extra])}
    groups = ({**common, name: first}, {**common, name: second})
    if family == "count_more":
        fewer = rng.randint(1, min(4, (plan.most - wanted) // 2))
        counts = (wanted + fewer, fewer)
    else:
        more = rng.randint(1, wanted - 1)
        counts = (more, wanted - more)
    total = _total(rng, plan, sum(counts))
    large = _large_share(total)
    looks = [_look(rng, large, group) for group, count in zip(groups, counts, strict=True) for _ in range(count)]
    if common or len(VALUES[name]) > 2:
        rest = range(total - sum(counts))
        looks += [_until(rng, large, {}, lambda look: not any(matches(look, group) for group in groups)) for _ in rest]
    return _Draft(Query("more" if family == "count_more" else "either", groups), looks)


def _draft_same(rng: Rng, plan: Level, wanted: int) -> _Draft:
    """Draft a question on what one uniquely described object shares with others."""
    name = rng.choice(("color", "color", "shape", "material", "size"))
    total = _total(rng, plan, wanted + 2)
    large = _large_share(total)
    reference = _look(rng, large)
    others = [other for other in VALUES if other != name]
    description = {other: reference[other] for other in rng.sample(others, rng.randint(1, 2))}
    value = {name: reference[name]}
    alike = [_until(rng, large, value, lambda look: not matches(look, description)) for _ in range(wanted)]
    apart = [
        _until(rng, large, {}, lambda look: not matches(look, description) and not matches(look, value)) for _ in range(total - wanted - 1)
    ]
    return _Draft(Query("same", (description,), name), [reference, *alike, *apart])


def _draft(rng: Rng, level: int, family: str, wanted: int) -> _Draft:
    plan = LEVEL_PLANS[level]
    if family == "count_all":
        return _Draft(Query("all"), [_look(rng, _large_share(wanted)) for _ in range(wanted)])
    if family in ("count_more", "count_either"):
        return _draft_pair(rng, plan, family, wanted, level)
    if family == "count_same":
        return _draft_same(rng, plan, wanted)
    if family in _ONE:
        name = family.removeprefix("count_")
        return _draft_where(rng, plan, wanted, {name: rng.choice(VALUES[name])})
    return _draft_where(rng, plan, wanted, _describe(rng, {"count_two": 2, "count_three": 3}[family]))


def _stand(rng: Rng, look: Look) -> SceneObject:
    """Put an object at a random place on the ground."""
    return SceneObject(
        shape=look["shape"],
        color=look["color"],
        size=look["size"],
        material=look["material"],
        u=rng.randint(-76, 76),
        v=rng.randint(-84, 92),
        yaw=10 * rng.randint(0, 8) if look["shape"] == "cube" else 0,
    )


def _fits(new: SceneObject, view: View, placed: list[tuple[SceneObject, View]], plan: Level) -> bool:
    """Say whether a new object may stand among the others: inside the picture, apart on the ground, all still visible enough."""
    if not in_frame(view) or not all(footprints_apart(new, other) for other, _ in placed):
        return False
    if plan.gap is not None:
        return all(boxes_apart(view, other, plan.gap) for _, other in placed)
    views = [other for _, other in placed]
    if visible_share(view, views) < plan.visible:
        return False
    hidden = [other for other in views if other.depth > view.depth and not boxes_apart(view, other, 0.0)]
    return all(visible_share(other, [view, *views]) >= plan.visible for other in hidden)


def _place(rng: Rng, looks: list[Look], plan: Level, split: Split) -> list[SceneObject] | None:
    """Place all objects, or give up; the last one is moved about until the scene belongs to the split."""
    placed: list[tuple[SceneObject, View]] = []
    # Large objects first: they are the hardest to fit.
    for number, look in enumerate(sorted(looks, key=lambda look: look["size"] == "small"), start=1):
        last = number == len(looks)
        for _ in range(_OBJECT_TRIES * (4 if last else 1)):
            new = _stand(rng, look)
            view = project(new)
            if not _fits(new, view, placed, plan):
                continue
            if last and split_of(fingerprint([*(thing for thing, _ in placed), new])) != split:
                continue
            placed.append((new, view))
            break
        else:
            return None
    return [thing for thing, _ in placed]


def _scene(rng: Rng, split: Split, level: int, family: str, wanted: int) -> tuple[Query, list[SceneObject]]:
    for _ in range(_DRAFT_TRIES):
        draft = _draft(rng, level, family, wanted)
        for _ in range(_SCENE_TRIES):
            objects = _place(rng, draft.looks, LEVEL_PLANS[level], split)
            if objects is not None:
                return draft.query, objects
    raise RuntimeError(f"no scene found for {family} = {wanted} at level {level}: the level's plan is too crowded")


def _reading_order(thing: SceneObject) -> tuple[int, float, float]:
    """Row by row from the top, and from left to right in a row: the order in which the text names the objects."""
    view = project(thing)
    return int(_ROWS * view.y), view.x, thing.v


def make_counting_item(split: Split, level: int, index: int, seed: int = 0) -> SynthItem:
    """Make one counting item; see `mr1_bench.synth.make_item`, which checks the arguments."""
    family, wanted = balanced_choice(LEVEL_PLANS[level].cells, "vc", split, level, seed, index)
    rng = item_rng("vc", split, level, seed, index)
    query, objects = _scene(rng, split, level, family, wanted)
    objects = sorted(objects, key=_reading_order)
    looks = [thing.look for thing in objects]
    count = answer(query, looks)
    if count != wanted:
        raise RuntimeError(f"the scene of item {split} {index} (level {level}, seed {seed}) has {count} for {family}, not {wanted}")
    light = rng.randint(0, LIGHTS - 1)

    def draw(size: int) -> Image:
        # NumPy and Pillow load with the first picture: questions and golds alone need neither.
        from mr1_bench.synth.render import draw_scene

        return draw_scene(objects, light, size)

    return SynthItem(
        id=item_id("vc", split, level, index, seed),
        question=question_text(query, looks, level, rng),
        gold=str(count),
        solution=solution_text(query, looks),
        family=family,
        level=level,
        meta={
            "query": {"kind": query.kind, "groups": list(query.groups), "attribute": query.attribute},
            "objects": [thing.facts() for thing in objects],
            "light": light,
            "fingerprint": fingerprint(objects),
        },
        draw=draw,
    )
