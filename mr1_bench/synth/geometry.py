"""Synthetic geometry: chooses family, answer and givens of an item, and turns them into question, solution and picture.

Answers are balanced by choosing the answer before the givens. The splits are disjoint by construction: a problem's fingerprint
(the arithmetic and its numbers, without letters, pose, wording or level) belongs to one split. This file must not know how a
family is constructed or how a figure is drawn.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache

from mr1_bench.synth.diagram import AngleMark, Figure, LengthMark, draw_figure
from mr1_bench.synth.geometry_angles import ANGLE_FAMILIES
from mr1_bench.synth.geometry_circles import CIRCLE_FAMILIES
from mr1_bench.synth.geometry_clutter import add_clutter
from mr1_bench.synth.geometry_lengths import LENGTH_FAMILIES
from mr1_bench.synth.geometry_problem import Family, Given, Givens, Measure, Problem, pose, relabel
from mr1_bench.synth.item import Split, SynthItem, item_id
from mr1_bench.synth.rng import Rng, balanced_choice, item_rng

GEOMETRY_FAMILIES: tuple[Family, ...] = (*ANGLE_FAMILIES, *CIRCLE_FAMILIES, *LENGTH_FAMILIES)

_ROLES = "ABCDE"
_LETTERS = ("ABCDE", "ABCDE", "ABCDE", "DEFGH", "EFGHK", "MNPQR", "PQRST", "XYZUV")
_CLUTTER_LETTERS = "FGHKMN"
_OPENERS = ("As shown in the figure, ", "As shown in the figure, it is known that ", "In the figure, ")
_ASKS = {
    "angle": ("then the size of {} is ()", "then {} is equal to ()", "then the degree of {} is ()", "then {} = ()"),
    "length": ("then the length of {} is ()", "then {} is equal to ()", "then {} = ()"),
    "area": ("then the area of {} is ()", "the area of {} is equal to ()"),
    "sector": ("then the area of {} is ()", "the area of {} is equal to ()"),
    "arc": ("then the length of {} is ()", "the length of {} is equal to ()"),
    "ratio": ("then the value of {} is ()", "then {} = ()"),
    "area_ratio": ("then {} is ()", "then {} is equal to ()"),
}


def split_of_givens(fingerprint: str) -> Split:
    """Say which split a fingerprint belongs to: 25 % test, 10 % validation, 65 % train.

    The space of level 1 is only some hundred pairs of angles, so the test split takes a larger share than in counting, to hold
    enough different ones.
    """
    bucket = int.from_bytes(hashlib.sha256(f"gr\x1f{fingerprint}".encode()).digest()[:8], "big") % 20
    return "test" if bucket < 5 else "validation" if bucket < 7 else "train"


@lru_cache(maxsize=8)
def level_families(level: int) -> tuple[Family, ...]:
    """Return the families of a level."""
    return tuple(family for family in GEOMETRY_FAMILIES if level in family.levels)


@lru_cache(maxsize=512)
def _pools(family: Family, level: int) -> dict[Split, dict[str, tuple[Givens, ...]]]:
    """Givens by split and answer. Every angle that validation or test answers occurs in train too, with other givens."""
    pools: dict[Split, dict[str, list[Givens]]] = {"train": {}, "validation": {}, "test": {}}
    for givens in family.space(level):
        pools[split_of_givens(family.fingerprint(givens))].setdefault(family.answer(givens), []).append(givens)
    known = pools["train"]
    # Angles are a closed set of answers that a model may learn as such; lengths and areas have no end and need no such care.
    return {
        split: {answer: tuple(sorted(group)) for answer, group in sorted(groups.items()) if answer in known or answer[-1] != "°"}
        for split, groups in pools.items()
    }


def _choose(split: Split, level: int, index: int, seed: int) -> tuple[Family, Givens]:
    """Choose family, then answer, then givens, each in shuffled rounds, so that all of them come up equally often."""
    families = level_families(level)
    family = balanced_choice(families, "gr", split, level, seed, index, salt="family")
    pool = _pools(family, level)[split]
    answers = tuple(pool)
    turn = index // len(families)
    answer = balanced_choice(answers, f"gr {family.name}", split, level, seed, turn)
    return family, balanced_choice(pool[answer], f"gr {family.name} {answer}", split, level, seed, turn // len(answers), salt="givens")


def _letters(figure: Figure, rng: Rng) -> dict[str, str]:
    """Choose letters for the roles; the centre `O` and the outer point `P` keep theirs."""
    fixed = {name for name in figure.points if name.isupper() and name not in _ROLES}
    sets = [letters for letters in _LETTERS if not fixed & set(letters)]
    return dict(zip(_ROLES, rng.choice(sets), strict=True))


def _visible(level: int, givens: tuple[Given, ...], rng: Rng) -> tuple[tuple[Given, ...], tuple[Given, ...]]:
    """Split the givens into those stated in the question and those labelled in the figure (both, at levels 1 and 2)."""
    if level <= 2:
        return givens, givens
    if level == 3:
        hidden = rng.choice(givens)
        return tuple(given for given in givens if given is not hidden), (hidden,)
    return (), givens


def _labelled(figure: Figure, stated: tuple[Given, ...], drawn: tuple[Given, ...]) -> Figure:
    """Add the labels of the drawn givens; an angle that is only stated keeps a bare arc."""
    angles = [g.mark for g in drawn if isinstance(g.mark, AngleMark)]
    bare = [replace(g.mark, label="") for g in stated if g not in drawn and isinstance(g.mark, AngleMark)]
    lengths = [g.mark for g in drawn if isinstance(g.mark, LengthMark)]
    return replace(figure, angles=(*figure.angles, *angles, *bare), lengths=(*figure.lengths, *lengths))


def _question(problem: Problem, stated: tuple[Given, ...], rng: Rng) -> str:
    ask = rng.choice(_ASKS[problem.measure.kind]).format(problem.target)
    return rng.choice(_OPENERS) + ", ".join([problem.premise, *(given.text for given in stated), ask])


def _solution(problem: Problem, stated: tuple[Given, ...]) -> str:
    read = [given.text for given in problem.givens if given not in stated]
    found = [f"From the figure, {', '.join(read)}."] if read else []
    return " ".join([*found, *problem.steps])


def _given_fact(given: Given) -> Measure:
    kind = "angle" if isinstance(given.mark, AngleMark) else "length"
    return Measure("angle" if kind == "angle" else "length", (given.mark.points,), float(given.mark.label.rstrip("°")))


def make_geometry_item(split: Split, level: int, index: int, seed: int = 0) -> SynthItem:
    """Generate one geometry item; `mr1_bench.synth.make_item` checks the arguments and documents them.

    `meta` holds the posed construction: `points` (coordinates in the construction's units, y up), `asked` (what the gold must
    measure), `facts` (what premise and givens claim, with values), and `family`, `rule`, `givens`, `fingerprint`.
    """
    family, givens = _choose(split, level, index, seed)
    rng = item_rng("gr", split, level, seed, index)
    unit = "cm" if level == 2 and rng.chance(0.4) else ""
    built = family.build(givens, rng, unit)
    problem = relabel(built, _letters(built.figure, rng))
    stated, drawn = _visible(level, problem.givens, rng)
    question = _question(problem, stated, rng)
    figure = pose(_labelled(problem.figure, stated, drawn), rng.uniform(-14, 14), mirror=rng.chance(0.5))
    if level == 5:
        figure = add_clutter(figure, [c for c in _CLUTTER_LETTERS if c not in figure.points], rng)
    facts = (*problem.facts, *(_given_fact(given) for given in problem.givens))
    return SynthItem(
        id=item_id("gr", split, level, index, seed),
        question=question,
        gold=problem.gold,
        solution=_solution(problem, stated),
        family=family.name,
        level=level,
        meta={
            "family": family.name,
            "rule": family.rule,
            "givens": list(givens),
            "fingerprint": family.fingerprint(givens),
            "points": {name: list(point) for name, point in figure.points.items()},
            "asked": problem.measure.as_meta(),
            "facts": [fact.as_meta() for fact in facts],
        },
        draw=lambda size: draw_figure(figure, size),
    )
