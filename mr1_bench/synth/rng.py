"""Randomness that is the same everywhere, answer balancing, and the rule that keeps the splits apart.

Python documents only `random.Random.random()` (for an integer seed) as stable between versions, so every draw here is built on
it alone; NumPy's generators and `random.shuffle` carry no such promise. This file must not know what is generated.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

from mr1_bench.synth.item import Split

T = TypeVar("T")

BUCKETS = 10
"""Fingerprints fall into this many buckets: 0 is test, 1 is validation, the rest is train."""


class Rng:
    """Seeded draws built on `random.Random.random()` only."""

    __slots__ = ("random",)

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random
        """`random()` gives a float in [0, 1)."""

    def randint(self, low: int, high: int) -> int:
        """Draw an integer from `low` to `high`, both included."""
        if high < low:
            raise ValueError(f"randint({low}, {high}): the range is empty; give low <= high")
        return low + int(self.random() * (high - low + 1))

    def uniform(self, low: float, high: float) -> float:
        """Draw a float from `low` to `high`."""
        return low + (high - low) * self.random()

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.random() < probability

    def choice(self, options: Sequence[T]) -> T:
        """Draw one of `options`; an empty sequence raises ValueError."""
        return options[self.randint(0, len(options) - 1)]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """Return the options in a random order (Fisher-Yates); the argument is left as it is."""
        out = list(options)
        for i in range(len(out) - 1, 0, -1):
            j = self.randint(0, i)
            out[i], out[j] = out[j], out[i]
        return out

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """Draw `count` different options, in random order."""
        if not 0 <= count <= len(options):
            raise ValueError(f"sample of {count} from {len(options)} options: ask for 0 to {len(options)}")
        return self.shuffled(options)[:count]


def _key(*parts: str | int) -> int:
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest(), "big")


def item_rng(task: str, split: str, level: int, seed: int, index: int) -> Rng:
    """Return the generator of one item, seeded with the SHA-256 of what names the item."""
    return Rng(_key("item", task, split, level, seed, index))


def balanced_choice(options: Sequence[T], task: str, split: str, level: int, seed: int, index: int, *, salt: str = "answer") -> T:
    """Choose item `index`'s option so that every run of `len(options)` items, from a multiple of that, has each option once.

    The order within a run is shuffled, so an answer cannot be guessed from the index. Use another `salt` for a second,
    independent choice (an answer, then a family).

    Raises:
        ValueError: there are no options.
    """
    if not options:
        raise ValueError(f"nothing to choose from for {task} item {index} ({split}, level {level}, {salt}): give at least one option")
    block, place = divmod(index, len(options))
    return Rng(_key("block", salt, task, split, level, seed, block)).shuffled(options)[place]


def split_of(fingerprint: str) -> Split:
    """Say which split a semantic fingerprint belongs to.

    The fingerprint decides, not the seed: generators discard a candidate whose fingerprint belongs to another split, so no
    two splits, of any seeds, can share one. About 80 % is train, 10 % validation, 10 % test.
    """
    bucket = _key("split", fingerprint) % BUCKETS
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"
