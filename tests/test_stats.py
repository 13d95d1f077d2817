"""The statistics: hand-worked numbers, published examples, and an independent implementation."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mr1_bench.stats import avg_at_n, mcnemar, mean_over_seeds, newcombe, paired_difference, pass_at_k, wilson


def test_wilson_by_hand():
    # p = 1/2, n = 4, z = 1.959964: centre 1/2, half width z·√(1/16 + z²/64) / (1 + z²/4)
    z = 1.959963984540054
    half = z * math.sqrt(1 / 16 + z * z / 64) / (1 + z * z / 4)
    assert wilson(2, 4) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)


def test_wilson_published_examples():
    # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy_and_is_symmetric(counts, level):
    from scipy.stats import binomtest

    k, n = counts
    low, high = wilson(k, n, level)
    reference = binomtest(k, n).proportion_ci(level, method="wilson")
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert 0 <= low <= k / n <= high <= 1
    assert wilson(n - k, n, level) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_newcombe_published_example():
    # Newcombe 1998, Statistics in Medicine 17:873-890, table II, method 10: 56/70 against 48/80, and 9/10 against 3/10
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert newcombe(10, 10, 0, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


def test_newcombe_is_antisymmetric():
    low, high = newcombe(231, 754, 260, 754)
    assert newcombe(260, 754, 231, 754) == pytest.approx((-high, -low))


def test_mean_over_seeds_by_hand():
    # 1, 2, 3: mean 2, s = 1, t(2) = 4.302653
    estimate = mean_over_seeds([1.0, 2.0, 3.0])
    assert (estimate.value, estimate.n) == (2.0, 3)
    low, high = estimate.low, estimate.high
    assert high - 2 == pytest.approx(4.302652729911275 / math.sqrt(3), rel=1e-9)
    assert 2 - low == pytest.approx(high - 2)


def test_avg_at_one_is_wilson():
    estimate = avg_at_n([[True]] * 3 + [[False]] * 7)
    assert (estimate.low, estimate.high) == pytest.approx(wilson(3, 10))
    assert estimate.n == 10


def test_avg_at_n_counts_repeats_of_an_item_once_when_they_always_agree():
    together = avg_at_n([[True] * 8] * 3 + [[False] * 8] * 7)
    assert (together.low, together.high) == pytest.approx(wilson(3, 10), abs=0.01)
    apart = avg_at_n([[True, False]] * 10)
    assert (apart.low, apart.high) == pytest.approx(wilson(10, 20))
    assert avg_at_n([[False, False]] * 5).high == pytest.approx(wilson(0, 5)[1])


def test_avg_at_n_covers_the_truth_about_as_often_as_it_says():
    draw = random.Random(5)
    hits = 0
    for _ in range(400):
        # Items of very different difficulty, 4 samples each; the mean of a Beta(1/2, 1/2) is 1/2.
        sample = [[draw.random() < chance for _ in range(4)] for chance in (draw.betavariate(0.5, 0.5) for _ in range(60))]
        estimate = avg_at_n(sample)
        hits += estimate.low <= 0.5 <= estimate.high
    assert 0.92 <= hits / 400 <= 0.98


def test_pass_at_k_by_hand():
    # one item, 2 of 4 right: pass@1 = 1/2, pass@2 = 1 - C(2,2)/C(4,2) = 5/6, pass@3 = 1
    item = [[True, True, False, False]]
    assert pass_at_k(item, 1).value == pytest.approx(1 / 2)
    assert pass_at_k(item, 2).value == pytest.approx(5 / 6)
    assert pass_at_k(item, 3).value == 1.0
    assert pass_at_k([*item, [False] * 4], 2).value == pytest.approx(5 / 12)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=12))
def test_pass_at_k_grows_with_k_and_keeps_its_interval_in_range(correct):
    estimates = [pass_at_k(correct, k) for k in (1, 2, 3, 4)]
    assert [e.value for e in estimates] == sorted(e.value for e in estimates)
    assert estimates[0].value == pytest.approx(avg_at_n(correct).value)
    assert estimates[3].value == pytest.approx(sum(map(any, correct)) / len(correct))
    for e in estimates:
        low, high = e.low, e.high
        assert 0 <= low <= e.value + 1e-12 and e.value - 1e-12 <= high <= 1
        assert low < high


def test_paired_difference_by_hand():
    # only a 8, only b 2, of 30: a' = 9/32, b' = 3/32, difference 6/32, variance (12/32 - 36/1024)/32
    half = 1.959963984540054 * math.sqrt((12 / 32 - 36 / 1024) / 32)
    assert paired_difference(8, 2, 30) == pytest.approx((6 / 32 - half, 6 / 32 + half))
    low, high = paired_difference(0, 0, 50)
    assert low == -high and high > 0
    assert paired_difference(100, 0, 100)[1] == 1.0


def test_paired_difference_covers_the_truth_about_as_often_as_it_says():
    draw = random.Random(6)
    hits = 0
    for _ in range(600):
        kinds = [draw.random() for _ in range(80)]
        low, high = paired_difference(sum(kind < 0.15 for kind in kinds), sum(kind > 0.95 for kind in kinds), 80)
        hits += low <= 0.10 <= high
    assert 0.93 <= hits / 600 <= 0.99


def test_mcnemar_by_hand():
    # 1 against 5 of 6: 2·(1 + 6)/64; the even split and no difference at all say nothing
    assert mcnemar(1, 5) == pytest.approx(14 / 64)
    assert mcnemar(5, 1) == pytest.approx(14 / 64)
    assert mcnemar(0, 10) == pytest.approx(2 / 1024)
    assert mcnemar(4, 4) == 1.0
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(0, 0),
        lambda: wilson(5, 4),
        lambda: wilson(-1, 4),
        lambda: wilson(1, 4, 1.0),
        lambda: newcombe(1, 2, 0, 0),
        lambda: mean_over_seeds([]),
        lambda: mean_over_seeds([0.5]),
        lambda: avg_at_n([]),
        lambda: avg_at_n([[True], []]),
        lambda: pass_at_k([], 1),
        lambda: pass_at_k([[True]], 0),
        lambda: pass_at_k([[True, False], [True]], 2),
        lambda: mcnemar(-1, 2),
        lambda: paired_difference(3, 3, 5),
        lambda: paired_difference(0, 0, 0),
    ],
)
def test_nothing_and_nonsense_raise(call):
    with pytest.raises(ValueError, match=r"\d|items"):
        call()
