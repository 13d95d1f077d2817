"""Whether two snapshots of a task answer the same questions, asked in the same way: data, prompt, decoding, item set.

What is recorded on both sides must agree; what is not is said, never guessed. This module must not know statistics or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mr1_bench.records import sha256_json
from mr1_bench.reports.verdicts import TaskSnapshot

_NOWHERE = "on neither side"


def items_hash(task: TaskSnapshot, *, names: bool = True) -> str:
    """Return one hash for which items were answered: positions, golds and, where wanted, the items' names."""
    return sha256_json([[item.doc_id, item.gold, *([item.item] if names else [])] for item in task.items])


def asked_hash(task: TaskSnapshot) -> str:
    """Return one hash for everything that was asked: data, prompt, decoding and items."""
    known = task.identity
    keys = ["dataset_sha256", "pixels_sha256", "prompt_sha256" if known.get("prompt_sha256") else "asked_sha256", "decoding"]
    return sha256_json([*(known.get(key) for key in keys), items_hash(task)])


def differences(old: TaskSnapshot, new: TaskSnapshot) -> tuple[tuple[str, str, str], ...]:
    """Return what forbids a comparison: `data`, `prompt`, `decoding` or `item set`, each with the hashes of both sides."""
    found: list[tuple[str, str, str]] = []
    names = all(item.item for item in (*old.items, *new.items))
    sets = items_hash(old, names=names), items_hash(new, names=names)
    for what, keys in (("data", ("dataset_sha256", "pixels_sha256")), ("prompt", ("prompt_sha256",))):
        for key in keys:
            a, b = old.identity.get(key), new.identity.get(key)
            if a and b and a != b:
                found.append((what, str(a), str(b)))
                break
    # Inputs hold the question and the prompt around it: they tell the prompt where it is not recorded, and only for the same items.
    sent = old.identity.get("asked_sha256"), new.identity.get("asked_sha256")
    if not found and sets[0] == sets[1] and all(sent) and sent[0] != sent[1]:
        found.append(("prompt", str(sent[0]), str(sent[1])))
    decoding = old.identity.get("decoding"), new.identity.get("decoding")
    if decoding[0] and decoding[1] and decoding[0] != decoding[1]:
        found.append(("decoding", sha256_json(decoding[0]), sha256_json(decoding[1])))
    if sets[0] != sets[1]:
        found.append(("item set", *sets))
    return tuple(found)


def explain(differs: Sequence[tuple[str, str, str]], old: TaskSnapshot, new: TaskSnapshot) -> str:
    """Say in one line what differs, with both hashes and, where a person can read them, both values."""
    parts = []
    for what, a, b in differs:
        values = ""
        if what == "decoding":
            values = f" ({_settings(old.identity['decoding'], new.identity['decoding'])})"
        elif what == "item set":
            values = f" ({_items(old, new)})"
        parts.append(f"{what} differs: old {a[:12]}, new {b[:12]}{values}")
    return "; ".join(parts)


def _settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changed = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key)} and {new.get(key)}" for key in changed)


def _items(old: TaskSnapshot, new: TaskSnapshot) -> str:
    if len(old.items) != len(new.items):
        return f"{len(old.items)} and {len(new.items)} items"
    for a, b in zip(old.items, new.items, strict=True):
        if a.doc_id != b.doc_id:
            return f"item {a.doc_id} and item {b.doc_id} stand at one place"
        if a.gold != b.gold:
            return f"item {a.doc_id} has gold {a.gold!r} and {b.gold!r}"
        if a.item and b.item and a.item != b.item:
            return f"item {a.doc_id} is {a.item} and {b.item}"
    return "other names"


def unchecked(old: TaskSnapshot, new: TaskSnapshot) -> list[tuple[str, str]]:
    """Return what could not be checked, and where it is recorded: (`prompt`, `on neither side`)."""
    sent = bool(old.identity.get("asked_sha256") and new.identity.get("asked_sha256"))
    found = []
    for what, key in (("data", "dataset_sha256"), ("prompt", "prompt_sha256"), ("decoding", "decoding")):
        known = bool(old.identity.get(key)), bool(new.identity.get(key))
        if all(known) or (what == "prompt" and sent):
            continue
        where = "in the baseline only" if known[0] else "in the current run only" if known[1] else _NOWHERE
        beside = " (golds and questions agree)" if what == "data" and sent else " (golds agree)" if what == "data" else ""
        found.append((f"{what}{beside}", where))
    return found


def unchecked_notes(found: Mapping[tuple[str, str], Sequence[str]]) -> list[str]:
    """One sentence for each thing that could not be checked, from (what, where) -> tasks."""
    return [
        f"{what[0].upper()}{what[1:]}: hash or settings recorded {where}, so not checked, for {', '.join(tasks)}."
        for (what, where), tasks in found.items()
    ]
