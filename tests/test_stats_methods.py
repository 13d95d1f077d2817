"""Statistics over training seeds: hand-worked numbers, second libraries, and simulations of what the report claims of them.

The simulated world: a checkpoint's chance on an item is the item's own plus its training seed's shift. Items are drawn once and shared.
docs/statistics.md quotes the rates found here.
"""

import math
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, ttest_ind

from mr1_bench.stats import (
    Estimate,
    band_over_seeds,
    holm,
    mcnemar,
    mean_over_seeds,
    mean_over_seeds_and_items,
    newcombe,
    relative_gain,
    square_and_add,
    welch,
    wilson,
)

SPREAD = 0.02
"""Standard deviation of accuracy over training seeds: 2 points."""


@pytest.fixture(scope="module", autouse=True)
def _no_collection():
    # multipletests collects garbage at each call, which takes most of a second in a large process and nothing here depends on.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda: 0)
        yield


def test_welch_by_hand():
    # means 2.5 and 5, variances 5/3 and 20/3, 4 values each: t = -2.5/√(25/12), df = (25/12)² / ((5/12)² + (20/12)²) · 3
    test = welch([1, 2, 3, 4], [2, 4, 6, 8])
    assert test.difference == -2.5
    assert test.t == pytest.approx(-math.sqrt(3))
    assert test.df == pytest.approx((25 / 12) ** 2 * 3 / ((5 / 12) ** 2 + (20 / 12) ** 2))


@settings(deadline=None, max_examples=50)
@given(*[st.lists(st.integers(0, 600).map(lambda k: k / 600), min_size=3, max_size=6, unique=True)] * 2)
def test_welch_agrees_with_statsmodels(a, b):
    from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

    reference = CompareMeans(DescrStatsW(a), DescrStatsW(b))
    t, p, df = reference.ttest_ind(usevar="unequal")
    test = welch(a, b)
    assert (test.t, test.p, test.df) == pytest.approx((t, p, df), rel=1e-6)
    assert (test.low, test.high) == pytest.approx(reference.tconfint_diff(usevar="unequal"), rel=1e-6)
    assert (test.p < 0.05) == (not test.low <= 0 <= test.high)


@pytest.mark.filterwarnings("error")
def test_welch_takes_one_method_without_spread():
    # t = 0.1/√(0.01/3), 2 degrees of freedom: all from the second
    test = welch([0.6, 0.6, 0.6], [0.4, 0.5, 0.6])
    assert (test.t, test.df) == pytest.approx((0.1 / math.sqrt(0.01 / 3), 2))


@pytest.mark.parametrize("a, b", [([0.5], [0.4, 0.6]), ([0.5, 0.6], []), ([0.5, 0.5], [0.4, 0.4])])
def test_welch_refuses_what_has_no_spread(a, b):
    with pytest.raises(ValueError, match="seeds"):
        welch(a, b)


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04: times 3, 2, 1, never falling
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    for wrong in (math.nan, -0.1, 1.5):
        with pytest.raises(ValueError, match="p-value"):
            holm([0.1, wrong])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_holm_is_the_step_down_rule(p_values):
    # Rejecting "corrected below 0.05" must be the rule of the paper: walk up from the smallest until p > 0.05/(m - i).
    rejected = set()
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for step, index in enumerate(order):
        if p_values[index] * (len(p_values) - step) > 0.05:
            break
        rejected.add(index)
    corrected = holm(p_values)
    assert {index for index, p in enumerate(corrected) if p <= 0.05} == rejected
    assert all(after >= before for after, before in zip(corrected, p_values, strict=True))


def test_newcombe_is_square_and_add_of_two_wilson_intervals():
    a, b = Estimate(0.8, *wilson(56, 70), 70), Estimate(0.6, *wilson(48, 80), 80)
    assert square_and_add(a, b) == pytest.approx(newcombe(56, 70, 48, 80))
    # by hand: 3-4-5 triangles on both sides
    assert square_and_add(Estimate(9.0, 6.0, 13.0, 1), Estimate(5.0, 2.0, 9.0, 1)) == pytest.approx((4 - 5, 4 + 5))


def test_seeds_and_items_by_hand():
    # 0.4, 0.5, 0.6: half width of t is 4.302653·0.1/√3; that of Wilson at 50/100 is known
    low, high = wilson(50, 100)
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    estimate = mean_over_seeds_and_items([0.4, 0.5, 0.6], 100)
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - math.hypot(half, 0.5 - low), 0.5 + math.hypot(half, high - 0.5)))
    without_spread = mean_over_seeds_and_items([0.5, 0.5, 0.5], 100)
    assert (without_spread.low, without_spread.high) == pytest.approx((low, high))
    with pytest.raises(ValueError, match="share"):
        mean_over_seeds_and_items([1.2, 0.5], 100)


def test_band_is_the_mean_at_every_point():
    rows = [[0.1, 0.5, 0.7], [0.2, 0.5, 0.9], [0.3, 0.5, 0.2]]
    assert band_over_seeds(rows) == [mean_over_seeds(column) for column in zip(*rows, strict=True)]
    with pytest.raises(ValueError, match="2, 3 points"):
        band_over_seeds([[0.1, 0.2], [0.1, 0.2, 0.3]])
    with pytest.raises(ValueError, match="at least 2"):
        band_over_seeds([[0.1, 0.2]])


def test_relative_gain_by_hand():
    # 0.6 ± 0.06 (s) over 0.5 without spread: log ratio's standard error is 0.1/√3, 2 degrees of freedom
    estimate = relative_gain([0.54, 0.6, 0.66], [0.5, 0.5, 0.5])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert estimate.value == pytest.approx(0.2)
    assert (estimate.low, estimate.high) == pytest.approx((1.2 * math.exp(-half) - 1, 1.2 * math.exp(half) - 1))
    # swapping the two inverts the ratio
    other = relative_gain([0.5, 0.5, 0.5], [0.54, 0.6, 0.66])
    assert 1 / (1 + other.high) == pytest.approx(1 + estimate.low)
    for a, b, match in [([0.5], [0.5, 0.6], "at least 2"), ([0.5, 0.6], [0.0, 0.0], "positive"), ([0.5, 0.5], [0.4, 0.4], "spread")]:
        with pytest.raises(ValueError, match=match):
            relative_gain(a, b)


def _items(draw, n, mean=0.6):
    """Chances of items of very different difficulty, as two checkpoints of one method see them."""
    strength = 8.0
    return draw.beta(strength * mean / 8, strength * (1 - mean) / 8, n)


def _answers(draw, chances, shifts):
    """Verdicts of checkpoints (rows) on shared items; a shift moves the whole checkpoint's expected accuracy by about itself."""
    # Moving the chance of every item towards 1 (or 0) by the same share of what is left keeps it a chance.
    up = shifts[:, None] / (1 - chances.mean())
    down = -shifts[:, None] / chances.mean()
    moved = np.where(shifts[:, None] > 0, chances + (1 - chances) * np.clip(up, 0, 1), chances * (1 - np.clip(down, 0, 1)))
    return draw.random(moved.shape) < moved


def _accuracies(draw, chances, seeds, repeats, mean=0.0):
    """Accuracies of checkpoints of one method, a row of seeds a repeat."""
    shifts = draw.normal(mean, SPREAD, repeats * seeds)
    return np.concatenate([_answers(draw, chances, part).mean(axis=1) for part in np.array_split(shifts, 10)]).reshape(repeats, seeds)


def _welch_p(a, b):
    """p of Welch's test row by row, all at once; of the first rows it is ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        p = ttest_ind(a, b, axis=-1, equal_var=False).pvalue
    first = next(np.ndindex(p.shape))
    assert welch(a[first].tolist(), b[first].tolist()).p == pytest.approx(p[first])
    return p


def _false_positives(n, spread, seeds=1, repeats=1000, seed=7):
    """Share of comparisons of checkpoints of the same method that exact McNemar calls different at 5 %; answers of several are pooled."""
    draw = np.random.default_rng(seed)
    chances = _items(draw, n)
    test = cache(mcnemar)
    only_a, only_b = np.zeros(repeats, int), np.zeros(repeats, int)
    for _ in range(seeds):
        a, b = (_answers(draw, chances, draw.normal(0, spread, repeats)) for _ in range(2))
        only_a, only_b = only_a + (a & ~b).sum(axis=1), only_b + (b & ~a).sum(axis=1)
    return float(np.mean([test(int(x), int(y)) < 0.05 for x, y in zip(only_a, only_b, strict=True)]))


@pytest.mark.parametrize(
    "n, spread, seeds, quoted",
    [
        *((600, 0.0, 1, 0.04), (600, 0.02, 1, 0.23), (754, 0.02, 1, 0.27), (600, 0.03, 1, 0.36), (754, 0.03, 1, 0.41)),
        *((600, 0.02, 3, 0.25), (754, 0.02, 3, 0.26)),
    ],
)
def test_mcnemar_is_right_about_checkpoints_and_wrong_about_methods(n, spread, seeds, quoted):
    # Without any spread over seeds checkpoints are exchangeable. With it, two checkpoints of the same method do differ: as a statement
    # about the method that is a false positive, and pooling the answers of several seeds does not mend it.
    assert _false_positives(n, spread, seeds) == pytest.approx(quoted, abs=0.04)


@pytest.mark.parametrize(
    "seeds, quoted", [(3, {0.0: 0.03, 0.03: 0.16, 0.05: 0.38, 0.08: 0.73}), (5, {0.0: 0.04, 0.03: 0.37, 0.05: 0.78, 0.08: 0.99})]
)
def test_welch_over_seeds_keeps_its_five_per_cent_and_finds_what_is_quoted(seeds, quoted):
    draw = np.random.default_rng(11)
    chances = _items(draw, 600)
    for gap, share in quoted.items():
        a, b = (_accuracies(draw, chances, seeds, 1500, mean) for mean in (gap, 0.0))
        assert np.mean(_welch_p(a, b) < 0.05) == pytest.approx(share, abs=0.04 if gap else 0.015), gap


def test_holm_over_a_table_of_comparisons_errs_once_in_twenty_tables():
    draw = np.random.default_rng(5)
    # Three methods without a difference, on four (training task, test task) places: 12 tests, those of a place hang together.
    accuracies = draw.normal(0.6, SPREAD, (2000, 4, 3, 3))
    pairs = [_welch_p(accuracies[:, :, i], accuracies[:, :, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    p_values = np.concatenate(pairs, axis=1)
    assert p_values.shape == (2000, 12)
    assert np.mean(p_values.min(axis=1) < 0.05) == pytest.approx(0.32, abs=0.03)
    assert np.mean([min(holm(row)) < 0.05 for row in p_values.tolist()]) == pytest.approx(0.015, abs=0.01)


@pytest.mark.parametrize("seeds, covers, width", [(2, 0.943, 0.35), (3, 0.958, 0.11), (5, 0.950, 0.06)])
def test_seed_intervals_cover_the_mean_over_seeds_on_these_items(seeds, covers, width):
    draw = np.random.default_rng(3)
    chances = _items(draw, 600)
    estimates = [mean_over_seeds(row) for row in _accuracies(draw, chances, seeds, 3000).tolist()]
    covered = np.mean([estimate.low <= chances.mean() <= estimate.high for estimate in estimates])
    assert covered == pytest.approx(covers, abs=0.012)
    assert np.mean([estimate.high - estimate.low for estimate in estimates]) == pytest.approx(width, rel=0.15)


def test_wilson_covers():
    shares = np.array([0.1, 0.1552, 0.35, 0.5, 0.765, 0.95])
    worst, means = {}, []
    for n in (40, 200, 600, 754):
        limits = np.array([wilson(k, n) for k in range(n + 1)])
        inside = (limits[:, :1] <= shares) & (shares <= limits[:, 1:])
        rates = (binom.pmf(np.arange(n + 1)[:, None], n, shares) * inside).sum(axis=0)  # exact, nothing is drawn
        worst[n] = rates.min()
        means.append(rates.mean())
    assert (min(means), max(means)) == pytest.approx((0.947, 0.953), abs=0.0006)
    assert (worst[40], worst[200]) == pytest.approx((0.933, 0.944), abs=0.0006)


@pytest.mark.parametrize("n, truth, covers", [(40, (0.2, 0.9), 0.939), (200, (0.685, 0.765), 0.946), (754, (0.3249, 0.3435), 0.956)])
def test_newcombe_covers(n, truth, covers):
    draw = np.random.default_rng(n)
    pairs = zip(*(draw.binomial(n, share, 4000).tolist() for share in truth), strict=True)
    limits = np.array([newcombe(a, n, b, n) for a, b in pairs])
    gap = truth[0] - truth[1]
    assert np.mean((limits[:, 0] <= gap) & (gap <= limits[:, 1])) == pytest.approx(covers, abs=0.01)


def test_difference_of_a_mean_over_seeds_to_a_published_number_covers():
    # Ours: 3 seeds on one draw of items. Published: one checkpoint of one seed, on another draw of items. The published seed's own
    # spread is in no interval, for nobody knows it; at 2 points it costs little, because the intervals are wide with 3 seeds.
    draw = np.random.default_rng(9)
    repeats, n, truth = 1000, 754, 0.34
    for published_spread, covers in ((0.0, 0.985), (SPREAD, 0.952)):
        covered = 0
        for _ in range(repeats):
            values = _answers(draw, _items(draw, n, truth), draw.normal(0, SPREAD, 3)).mean(axis=1)
            ours = mean_over_seeds_and_items(values.tolist(), n)
            k = int(draw.binomial(n, min(1.0, max(0.0, truth + draw.normal(0, published_spread)))))
            low, high = square_and_add(ours, Estimate(k / n, *wilson(k, n), n))
            covered += low <= 0 <= high
        assert covered / repeats == pytest.approx(covers, abs=0.015)


def test_relative_gain_covers():
    draw = np.random.default_rng(13)
    repeats = 1500
    a, b = (draw.normal(mean, SPREAD, (repeats, 3)).tolist() for mean in (0.65, 0.60))
    truth = 0.65 / 0.60 - 1
    covered = np.mean([(found := relative_gain(x, y)).low <= truth <= found.high for x, y in zip(a, b, strict=True)])
    assert covered == pytest.approx(0.958, abs=0.015)
