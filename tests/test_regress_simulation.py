"""The truth of the gate, by simulation: how often it fails without any change, and how often it finds a drop, against theory."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from mr1_bench import paired
from mr1_bench.reports.regression import compare, exit_code
from mr1_bench.reports.verdicts import ItemScore, Settings, TaskSnapshot, means_of
from mr1_bench.stats import mcnemar, paired_difference
from tests.snapshots import IDENTITY, side

pytestmark = pytest.mark.usefixtures("without_collection")
TASKS = tuple(f"mr1_{kind}_synth{level}" for kind in ("vc", "gr") for level in ("", "_l2", "_l3"))
STRICT = Settings(min_effect=0.0, tolerances={"format": 0.0, "answered": 0.0})
"""No tolerance hides an error: every significant drop fails."""


def snapshot(columns: dict[str, list[bool]]) -> TaskSnapshot:
    n = len(columns["acc"])
    items = tuple(ItemScore(index, "", "4", None, {name: float(column[index]) for name, column in columns.items()}) for index in range(n))
    return TaskSnapshot(IDENTITY, items, means_of(items))


def pair(draw: random.Random, n: int, lose: float, win: float) -> tuple[list[bool], list[bool]]:
    """Old and new scores of n items, of which shares `lose` and `win` turn."""
    old, new = [], []
    for _ in range(n):
        way = draw.random()
        before = True if way < lose else False if way < lose + win else draw.random() < 0.6
        old.append(before)
        new.append(before ^ (way < lose + win))
    return old, new


def error(rate: float, runs: int) -> float:
    """Three standard errors of a simulated rate."""
    return 3 * math.sqrt(rate * (1 - rate) / runs)


def test_no_true_change_fails_in_at_most_five_per_cent_over_all_tasks() -> None:
    """Six tasks with three gating metrics each; a fifth of the items turns, as often up as down."""
    draw, runs = random.Random(7), 250
    failed = uncorrected = 0
    for _ in range(runs):
        tasks: tuple[dict[str, TaskSnapshot], dict[str, TaskSnapshot]] = ({}, {})
        for task in TASKS:
            columns = {metric: pair(draw, 80, 0.1, 0.1) for metric in ("acc", "format", "answered")}
            for place, one in enumerate(tasks):
                one[task] = snapshot({metric: both[place] for metric, both in columns.items()})
        found = compare(side(tasks[0]), side(tasks[1]), STRICT)
        failed += exit_code(found) == 1
        uncorrected += any(
            one.p < 0.05 and one.difference < 0 for one in found.verdicts if one.p is not None and one.difference is not None
        )
    assert failed / runs <= 0.05
    assert uncorrected / runs > 0.15  # so the correction is what holds it


@pytest.mark.parametrize("discordant", [0.1, 0.2, 0.3])
def test_a_drop_of_five_points_is_found_as_often_as_theory_says(discordant: float) -> None:
    """Through the whole gate, 754 items, with the default settings."""
    draw, runs = random.Random(f"{discordant}"), 120
    theory = paired.mcnemar_power(754, discordant, 0.05, 0.05, 0.01)
    found = 0
    for _ in range(runs):
        old, new = pair(draw, 754, (discordant + 0.05) / 2, (discordant - 0.05) / 2)
        found += exit_code(compare(side({TASKS[0]: snapshot({"acc": old})}), side({TASKS[0]: snapshot({"acc": new})}))) == 1
    assert abs(found / runs - theory) <= error(theory, runs)


@pytest.mark.parametrize("discordant", [0.1, 0.2, 0.3])
def test_the_same_from_the_counts_with_many_more_draws(discordant: float) -> None:
    runs, n = 20_000, 754
    draw = np.random.default_rng(11)
    theory = paired.mcnemar_power(n, discordant, 0.05, 0.05, 0.01)
    chances = [(discordant + 0.05) / 2, (discordant - 0.05) / 2, 1 - discordant]
    known: dict[tuple[int, int], bool] = {}
    found = 0
    for lost, won, _ in draw.multinomial(n, chances, runs).tolist():
        if (lost, won) not in known:
            known[lost, won] = mcnemar(won, lost) < 0.05 and lost - won > 0.01 * n
        found += known[lost, won]
    assert abs(found / runs - theory) <= error(theory, runs)


@pytest.mark.parametrize(("drop", "discordant", "effect"), [(0.05, 0.2, 0.01), (0.02, 0.1, 0.01), (0.02, 0.1, 0.015)])
def test_the_items_needed_find_the_drop_as_often_as_said(drop: float, discordant: float, effect: float) -> None:
    n, runs = paired.items_needed(drop, discordant, more_than=effect), 4000
    assert n is not None
    draws = np.random.default_rng(17).multinomial(n, [(discordant + drop) / 2, (discordant - drop) / 2, 1 - discordant], runs)
    counted = Counter((lost, won) for lost, won, _ in draws.tolist())
    found = sum(times for (lost, won), times in counted.items() if mcnemar(won, lost) < 0.05 and lost - won > effect * n)
    assert abs(found / runs - 0.8) <= error(0.8, runs)


@pytest.mark.parametrize(("discordant", "tolerance"), [(0.1, 0.01), (0.3, 0.01), (0.1, 0.02)])
def test_the_items_needed_pass_an_unchanged_model_as_often_as_said(discordant: float, tolerance: float) -> None:
    n, runs = paired.items_to_pass(tolerance, discordant), 4000
    assert n is not None
    draws = np.random.default_rng(19).multinomial(n, [discordant / 2, discordant / 2, 1 - discordant], runs)
    passed = sum(paired_difference(won, lost, n)[0] > -tolerance for lost, won, _ in draws.tolist())
    assert abs(passed / runs - 0.8) <= error(0.8, runs)


def test_the_bootstrap_errs_little_where_rare_large_gains_balance_small_losses() -> None:
    """8 % lose a quarter, 2 % gain all, of 100 items: where no gain was drawn, only the unseen spread holds the test back."""
    draw, runs = np.random.default_rng(23), 400
    drops = 0
    for seed in range(runs):
        found = paired.paired_bootstrap(draw.choice([0.0, -0.25, 1.0], 100, p=[0.9, 0.08, 0.02]).tolist(), seed, 200)
        drops += found.p < 0.05 and found.difference < 0
    assert drops / runs <= 0.025 + error(0.025, runs)


def test_the_bootstrap_errs_in_at_most_five_per_cent() -> None:
    """Skewed differences of means over four repeats, 100 items."""
    draw, runs = np.random.default_rng(3), 600
    wrong = covered = 0
    for seed in range(runs):
        difficulty = draw.beta(0.6, 0.3, 100)
        old, new = (draw.binomial(4, difficulty) / 4 for _ in range(2))
        found = paired.paired_bootstrap((new - old).tolist(), seed, 400)
        wrong += found.p < 0.05
        covered += found.low <= 0 <= found.high
    assert wrong / runs <= 0.05 + error(0.05, runs)
    assert covered / runs >= 0.95 - error(0.05, runs)


@pytest.mark.parametrize(("seeds", "spread"), [((3, 3), 0.0), ((3, 3), 0.03), ((5, 5), 0.03), ((1, 4), 0.03)])
def test_comparing_seeds_errs_in_at_most_five_per_cent(seeds: tuple[int, int], spread: float) -> None:
    """Two methods that differ in nothing but their training seeds, on the same 200 items."""
    draw, runs = np.random.default_rng(5), 400
    wrong = 0
    for _ in range(runs):
        hard = draw.normal(0, 0.2, 200)
        sides = [
            [(draw.random(200) < np.clip(0.6 + draw.normal(0, spread) + hard, 0, 1)).astype(float).tolist() for _ in range(count)]
            for count in seeds
        ]
        wrong += paired.change_over_seeds(*sides).p < 0.05
    assert wrong / runs <= 0.05 + error(0.05, runs)
