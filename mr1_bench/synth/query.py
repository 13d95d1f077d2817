"""What can be asked about a counting scene: wording, answer and worked solution of each kind of question.

A query is data; its answer is computed from the objects alone. The words are few and plain ASCII, so that a very small tokenizer
and model can learn them. This file must not know where objects stand or how scenes are drawn up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from mr1_bench.synth.rng import Rng
from mr1_bench.synth.scene import VALUES, Look


@dataclass(frozen=True, slots=True)
class Query:
    """A question about counts.

    Attributes:
        kind: `all`: every object; `where`: those that fit the description; `either`: those that fit one of two; `more`: how many
            more fit the first than the second; `same`: how many others share an attribute with the one object described.
        groups: the descriptions, as many as the kind needs.
        attribute: the shared attribute of `same`, empty otherwise.
    """

    kind: Literal["all", "where", "either", "more", "same"]
    groups: tuple[Look, ...] = ()
    attribute: str = ""


def matches(look: Look, description: Look) -> bool:
    """Say whether an object fits a description: it has every attribute value the description names."""
    return all(look[name] == value for name, value in description.items())


def _reference(query: Query, looks: Sequence[Look]) -> Look:
    fitting = [look for look in looks if matches(look, query.groups[0])]
    if len(fitting) != 1:
        raise ValueError(f"{query.groups[0]} must describe exactly one object of the scene, and describes {len(fitting)}")
    return fitting[0]


def answer(query: Query, looks: Sequence[Look]) -> int:
    """Count.

    Raises:
        ValueError: a `same` query whose description does not fit exactly one object.
    """
    if query.kind == "all":
        return len(looks)
    if query.kind == "same":
        value = _reference(query, looks)[query.attribute]
        return sum(look[query.attribute] == value for look in looks) - 1
    counts = [sum(matches(look, group) for look in looks) for group in query.groups]
    if query.kind == "more":
        return counts[0] - counts[1]
    return sum(any(matches(look, group) for group in query.groups) for look in looks)


def phrase(description: Look, *, plural: bool, thing: str = "object") -> str:
    """Say a description in English: `small red metal spheres`; without a shape, the noun is `thing`."""
    words = [description[name] for name in VALUES if name in description and name != "shape"]
    noun = description.get("shape", thing)
    return " ".join([*words, noun + "s" if plural else noun])


def question_text(query: Query, looks: Sequence[Look], level: int, rng: Rng) -> str:
    """Word the query in CLEVR's and R1-V's manner; harder levels use more wordings."""
    thing = rng.choice(("object", "item") if level == 1 else ("object", "item", "thing"))
    if query.kind == "all":
        forms = [f"How many {thing}s are there in the image?"]
        # SuperCLEVR's wording; with two objects alike, "different" could be read as asking for kinds.
        if len({tuple(look.items()) for look in looks}) == len(looks):
            forms.append("How many different items are there in the image?")
        if level > 1:
            forms.append(f"What number of {thing}s are there?")
        return rng.choice(forms)
    if query.kind == "where":
        noun = phrase(query.groups[0], plural=True, thing=thing)
        forms = [f"How many {noun} are there in the image?"]
        if level > 1:
            forms += [f"How many {noun} are there?", f"What number of {noun} are there?"]
        return rng.choice(forms)
    if query.kind == "either":
        first, second = (phrase(group, plural=True, thing=thing) for group in query.groups)
        return f"How many {thing}s are {first} or {second}?"
    if query.kind == "more":
        first, second = (phrase(group, plural=True, thing=thing) for group in query.groups)
        return f"How many more {first} than {second} are there?"
    same = {"shape": "have the same shape as", "size": "are the same size as", "color": "are the same color as"}
    relation = same.get(query.attribute, "are made of the same material as")
    return f"How many other {thing}s {relation} the {phrase(query.groups[0], plural=False)}?"


def _listing(looks: Sequence[Look], shown: Collection[str], tallied: Sequence[bool]) -> str:
    """List objects by some of their attributes, with a running number after each that counts: `red 1, blue, red 2`."""
    parts, count = [], 0
    for look, counts in zip(looks, tallied, strict=True):
        count += counts
        name = " ".join(look[key] for key in VALUES if key in shown)
        parts.append(f"{name} {count}" if counts else name)
    return ", ".join(parts) or "none"


def solution_text(query: Query, looks: Sequence[Look]) -> str:
    """Work the answer out in one line.

    Args:
        query: the question.
        looks: the scene's objects in the order in which the text names them, each by the attributes that are asked for.
    """
    shown = {name for group in query.groups for name in group} or {"color"}
    result = answer(query, looks)
    end = f"The answer is {result}."
    if query.kind == "more":
        totals, lists = [], []
        for group in query.groups:
            fitting = [look for look in looks if matches(look, group)]
            totals.append(len(fitting))
            lists.append(f"{phrase(group, plural=True).capitalize()}: {_listing(fitting, shown, [True] * len(fitting))}.")
        return f"{' '.join(lists)} {totals[0]} - {totals[1]} = {result}. {end}"
    if query.kind == "same":
        reference = _reference(query, looks)
        value = {query.attribute: reference[query.attribute]}
        others = [look for look in looks if look is not reference and matches(look, value)]
        fact = f"is a {phrase(value, plural=False)}" if query.attribute == "shape" else f"is {reference[query.attribute]}"
        subject = phrase({**query.groups[0]}, plural=False)
        listing = _listing(others, {"color", "shape"}, [True] * len(others))
        return f"The {subject} {fact}. Other {phrase(value, plural=True)}: {listing}. {end}"
    tallied = [query.kind == "all" or any(matches(look, group) for group in query.groups) for look in looks]
    none = "" if result else "None of them fit. "
    return f"I see {_listing(looks, shown, tallied)}. {none}{end}"
