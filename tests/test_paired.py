"""Paired tests, power and sample sizes: worked by hand, against scipy, and as properties."""

from __future__ import annotations

import math
import random
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mr1_bench import paired
from mr1_bench.stats import mcnemar, paired_difference


def power_by_counting(n: int, discordant: float, drop: float, alpha: float, more_than: float) -> float:
    """The power summed over every pair of counts, lost and won."""
    lose, win = (discordant + drop) / 2, (discordant - drop) / 2
    total = 0.0
    for lost, won in product(range(n + 1), repeat=2):
        if lost + won <= n and mcnemar(won, lost) <= alpha and lost - won > more_than * n + 1e-9:
            ways = math.factorial(n) / (math.factorial(lost) * math.factorial(won) * math.factorial(n - lost - won))
            total += ways * lose**lost * win**won * (1 - discordant) ** (n - lost - won)
    return total


@pytest.mark.parametrize(
    ("n", "discordant", "drop", "alpha", "more_than"),
    [
        (30, 0.3, 0.2, 0.05, 0.0),
        (30, 0.3, 0.2, 0.05, 0.25),
        (25, 0.5, 0.5, 0.01, 0.0),
        (40, 0.2, 0.0, 0.05, 0.01),
        (12, 1.0, 0.9, 0.05, 0.0),
    ],
)
def test_power_equals_counting_every_outcome(n: int, discordant: float, drop: float, alpha: float, more_than: float) -> None:
    assert paired.mcnemar_power(n, discordant, drop, alpha, more_than) == pytest.approx(
        power_by_counting(n, discordant, drop, alpha, more_than), abs=1e-9
    )


def test_power_by_hand() -> None:
    """6 items, all lost: 2/2^6 = 0.031 is found at 5 % and not at 3 %; 5 items, 0.0625, never."""
    assert paired.mcnemar_power(6, 1.0, 1.0, 0.05) == pytest.approx(1.0)
    assert paired.mcnemar_power(6, 1.0, 1.0, 0.03) == 0.0
    assert paired.mcnemar_power(5, 1.0, 1.0, 0.05) == 0.0


def test_power_of_no_drop_is_at_most_half_of_alpha() -> None:
    for n, discordant in product((50, 200, 754), (0.05, 0.2, 0.5)):
        assert 0 < paired.mcnemar_power(n, discordant, 0.0, 0.05) <= 0.025 + 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(30, 3000), st.sampled_from([0.05, 0.1, 0.2, 0.4]), st.sampled_from([0.0, 0.01]))
def test_the_smallest_visible_drop_is_visible_and_a_smaller_one_is_not(n: int, discordant: float, more_than: float) -> None:
    drop = paired.smallest_visible_drop(n, discordant, 0.05, 0.8, more_than)
    assert drop is not None and drop > more_than
    for factor, seen in ((1.0, True), (0.97, False)):
        share = drop * factor
        assert (paired.mcnemar_power(n, max(discordant, share), share, 0.05, more_than) >= 0.8) is seen


def test_no_drop_is_visible_with_five_items() -> None:
    assert paired.smallest_visible_drop(5, 0.2) is None


@pytest.mark.parametrize("discordant", [0.1, 0.3])
def test_items_needed_are_about_those_of_the_normal_approximation(discordant: float) -> None:
    """Connor 1987, Biometrics 43:207-211: (1.96 √d + 0.842 √(d - δ²))² / δ²; the exact test takes a few more."""
    drop = 0.03
    normal = (1.96 * math.sqrt(discordant) + 0.8416 * math.sqrt(discordant - drop**2)) ** 2 / drop**2
    needed = paired.items_needed(drop, discordant)
    assert needed is not None and normal < needed < 1.1 * normal
    assert paired.mcnemar_power(needed, discordant, drop) >= 0.8


def test_a_drop_that_is_no_more_than_the_smallest_effect_is_never_found() -> None:
    assert paired.items_needed(0.01, 0.2, more_than=0.01) is None
    needed = paired.items_needed(0.02, 0.1, more_than=0.015)
    assert needed is not None and needed > (paired.items_needed(0.02, 0.1) or 0)
    assert paired.mcnemar_power(needed, 0.1, 0.02, more_than=0.015) >= 0.8


@pytest.mark.parametrize(("n", "discordant", "tolerance"), [(40, 0.2, 0.1), (30, 0.5, 0.3), (25, 0.0, 0.2), (12, 1.0, 0.02)])
def test_the_chance_to_pass_equals_counting_every_outcome(n: int, discordant: float, tolerance: float) -> None:
    total = 0.0
    for lost, won in product(range(n + 1), repeat=2):
        if lost + won <= n and paired_difference(won, lost, n)[0] > -tolerance:
            ways = math.factorial(n) / (math.factorial(lost) * math.factorial(won) * math.factorial(n - lost - won))
            total += ways * (discordant / 2) ** (lost + won) * (1 - discordant) ** (n - lost - won)
    assert paired.pass_power(n, discordant, tolerance) == pytest.approx(total, abs=1e-9)


def test_items_needed_has_an_end() -> None:
    assert paired.items_needed(1e-5, 0.5) is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        paired.items_needed(0.0, 0.1)


def test_the_bootstrap_repeats_itself_and_depends_on_its_seed() -> None:
    draw = random.Random(1)
    values = [draw.gauss(0.1, 1) for _ in range(80)]
    first, again, other = (paired.paired_bootstrap(values, seed, 1000) for seed in (3, 3, 4))
    assert first == again and other.low != first.low


def test_the_bootstrap_agrees_with_the_t_test_where_that_is_right() -> None:
    from scipy.stats import ttest_1samp

    draw = random.Random(2)
    values = [draw.gauss(0.2, 1) for _ in range(150)]
    test = ttest_1samp(values, 0)
    limits = test.confidence_interval(0.95)
    found = paired.paired_bootstrap(values, 0)
    assert found.p == pytest.approx(float(test.pvalue), abs=0.01)
    assert (found.low, found.high) == pytest.approx((float(limits.low), float(limits.high)), abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=60), st.integers(0, 99))
def test_interval_and_p_of_the_bootstrap_agree_and_mirror(values: list[float], seed: int) -> None:
    found = paired.paired_bootstrap(values, seed, 400)
    mirror = paired.paired_bootstrap([-value for value in values], seed, 400)
    assert 0 < found.p <= 1 and mirror.p == found.p and mirror.difference == -found.difference
    if found.se > 0:
        assert (found.p <= 0.05) == (not found.low <= 0 <= found.high) or abs(found.p - 0.05) < 0.01


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(-1, 1), st.floats(-2000, 2000)), min_size=2, max_size=50),
    st.integers(0, 99),
    st.sampled_from([0.0, 1.0, 30.0]),
)
def test_limits_are_finite_and_hold_the_difference(values: list[float], seed: int, scale: float) -> None:
    found = paired.paired_bootstrap(values, seed, 200, scale=scale)
    assert all(map(math.isfinite, (found.low, found.high, found.se))) and 0 < found.p <= 1
    assert found.low <= found.difference <= found.high
    if scale:
        assert found.high - found.low > 2 * 1.9 * paired.unseen_spread(len(values), scale)


@pytest.mark.parametrize("differing", [0, 1, 2, 3])
def test_a_few_differing_items_are_no_certainty(differing: int) -> None:
    """The interval is never narrower than the one of a 0/1 metric of which no item differs."""
    found = paired.paired_bootstrap([0.25] * differing + [0.0] * (400 - differing), 0, 400)
    low, high = paired_difference(0, 0, 400)
    assert found.high - found.low >= high - low
    assert found.low <= found.difference <= found.high < 0.02


def test_equal_differences() -> None:
    """Without spread: t = d(n + 2)/√2 with n - 1 degrees of freedom."""
    from scipy.stats import t

    assert paired.paired_bootstrap([0.0] * 9, 0).p == 1.0
    assert paired.paired_bootstrap([0.5] * 9, 0).p == pytest.approx(2 * t.sf(0.5 * 11 / math.sqrt(2), 8))
    assert paired.paired_bootstrap([1.0, 1.0], 0).p > 0.2
    assert paired.paired_bootstrap([0.5] * 5000, 0).p > 0


def test_seeds_without_any_spread_are_no_certainty_either() -> None:
    found = paired.change_over_seeds([[1.0] * 3] * 2, [[0.0] * 3] * 2)
    assert found.p > 0 and found.low < -1 < found.high
    assert paired.change_over_seeds([[1.0] * 9] * 2, [[1.0] * 9] * 2).p == 1.0


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan]])
def test_the_bootstrap_refuses_what_it_cannot_say(values: list[float]) -> None:
    with pytest.raises(ValueError, match="paired bootstrap needs"):
        paired.paired_bootstrap(values, 0)


def test_seeds_without_item_noise_are_welchs_test() -> None:
    """Where every item says the same, only the seeds are left: Welch's t on the seed means."""
    from mr1_bench.stats import welch

    old, new = [0.50, 0.54, 0.58], [0.40, 0.45, 0.47]
    found = paired.change_over_seeds(*([[value] * 1000 for value in side] for side in (old, new)), scale=0.0)
    expected = welch(new, old)
    assert (found.difference, found.p) == pytest.approx((expected.difference, expected.p))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_seeds_are_refused_where_nothing_is_known_of_their_spread() -> None:
    with pytest.raises(ValueError, match="at least one side needs two"):
        paired.change_over_seeds([[1.0, 0.0]], [[1.0, 0.0]])
    with pytest.raises(ValueError, match="same ones"):
        paired.change_over_seeds([[1.0, 0.0], [1.0]], [[1.0, 0.0]])


def test_the_table_in_the_docs() -> None:
    text = (Path(__file__).parents[1] / "docs" / "regression.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.partition("| items |")[2].splitlines()[2:5]]
    assert [row[0] for row in rows] == ["200", "754", "2,000"]
    for row in rows:
        n = int(row[0].replace(",", ""))
        drops = [paired.smallest_visible_drop(n, share, 0.05, 0.8, 0.01) for share in (0.1, 0.2, 0.3)]
        assert [f"{100 * (drop or 0):.1f}" for drop in drops] == row[1:]


def test_the_items_needed_in_the_docs() -> None:
    text = (Path(__file__).parents[1] / "docs" / "regression.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.partition("| true drop, points |")[2].splitlines()[2:8]]
    assert [row[0] for row in rows] == ["none: passes", "1", "2", "3", "5", "10"]
    for name, *told in rows:
        shares = (0.1, 0.2, 0.3)
        counts = [
            paired.items_to_pass(0.01, share) if name == "none: passes" else paired.items_needed(int(name) / 100, share, more_than=0.01)
            for share in shares
        ]
        assert [f"{count:,}" if count else "never" for count in counts] == told
