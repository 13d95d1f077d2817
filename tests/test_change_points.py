"""Change points of a history: found where there is one, at its place, and seldom where there is none."""

from __future__ import annotations

import math
import random

import pytest

from mr1_bench.change_points import change_points


def rows(truth: list[float], seed: int, *, n: int = 400, wobble: float = 0.0) -> list[list[float]]:
    """Versions with these true accuracies on the same items, some of which are harder."""
    draw = random.Random(seed)
    hard = [draw.gauss(0, 0.2) for _ in range(n)]
    levels = [true + draw.gauss(0, wobble) for true in truth]
    return [[float(draw.random() < min(1.0, max(0.0, level + one))) for one in hard] for level in levels]


def test_a_shift_is_found_at_its_place() -> None:
    found = [change_points(rows([0.7] * 6 + [0.55] * 6, seed, wobble=0.01)) for seed in range(10)]
    assert all(len(changes) == 1 and abs(changes[0].index - 6) <= 1 for changes in found)
    assert sum(changes[0].index == 6 for changes in found) >= 9
    assert all(changes[0].after < changes[0].before and changes[0].wobble_known for changes in found)


@pytest.mark.parametrize("wobble", [0.0, 0.01])
def test_a_drop_that_was_mended_later_is_two_shifts(wobble: float) -> None:
    found = change_points(rows([0.7] * 6 + [0.5] * 6 + [0.68] * 6, 1, wobble=wobble))
    assert [change.index for change in found] == [6, 12]


@pytest.mark.parametrize("wobble", [0.0, 0.02])
def test_a_history_without_a_shift_is_seldom_marked(wobble: float) -> None:
    """At most 5 % at level 0.05; 3 standard errors of 80 histories are allowed beside."""
    runs = 80
    marked = sum(bool(change_points(rows([0.6] * 8, seed, n=200, wobble=wobble))) for seed in range(runs))
    assert marked / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_two_versions_show_a_difference_of_checkpoints_only() -> None:
    (change,) = change_points([[1.0] * 300 + [0.0] * 100, [1.0] * 240 + [0.0] * 160])
    assert change.index == 1 and not change.wobble_known


def test_a_shift_below_the_smallest_effect_is_not_marked() -> None:
    history = [[1.0] * 300 + [0.0] * 100] * 4 + [[1.0] * 290 + [0.0] * 110] * 4
    assert change_points(history, min_effect=0.03) == []
    assert [change.index for change in change_points(history, min_effect=0.01)] == [4]


def test_bad_input() -> None:
    assert change_points([]) == [] and change_points([[1.0, 0.0]]) == []
    with pytest.raises(ValueError, match="same items"):
        change_points([[1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="alpha"):
        change_points([[1.0]], alpha=1.5)
