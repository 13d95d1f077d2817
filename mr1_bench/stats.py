"""Uncertainty: every interval and every test that the project prints comes from here.

Plain functions on counts and lists; no task, run or table is known here. An empty input raises: there is no share of nothing. The
normal quantile is the standard library's; scipy is imported inside the functions that need it, so that importing this module is free.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import NoReturn

LEVEL = 0.95
"""Confidence level of every interval unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval.

    Attributes:
        value: the point estimate.
        low: lower limit of the interval.
        high: upper limit of the interval.
        n: number of independent units it rests on: items or seeds, not repeats of an item.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Welch:
    """The difference of two means, a minus b, as Welch's t test sees it.

    Attributes:
        difference: mean of a minus mean of b.
        low: lower limit of its interval.
        high: upper limit of its interval.
        t: the test statistic.
        df: degrees of freedom after Welch and Satterthwaite.
        p: two-sided p-value.
    """

    difference: float
    low: float
    high: float
    t: float
    df: float
    p: float


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the Wilson score interval of a share, as two numbers between 0 and 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22:209-212:
    (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        successes: number right, 0 to n.
        n: number of trials.
        level: confidence level between 0 and 1.

    Raises:
        ValueError: n is not positive, successes is not between 0 and n, or the level is not between 0 and 1.
    """
    _check_counts(successes, n)
    return _wilson(successes / n, n, level)


def newcombe(successes_a: int, n_a: int, successes_b: int, n_b: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of the difference of two independent shares, a minus b, as two numbers between -1 and 1.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", Statistics in Medicine
    17:873-890, method 10: with Wilson limits (l, u), d - √((a-l_a)² + (u_b-b)²) to d + √((u_a-a)² + (b-l_b)²).

    Raises:
        ValueError: as `wilson`, for either share.
    """
    limits_a, limits_b = wilson(successes_a, n_a, level), wilson(successes_b, n_b, level)
    return square_and_add(Estimate(successes_a / n_a, *limits_a, n_a), Estimate(successes_b / n_b, *limits_b, n_b))


def square_and_add(a: Estimate, b: Estimate) -> tuple[float, float]:
    """Return the interval of the difference a minus b of two independent estimates from their own intervals of the same level.

    Source: Newcombe 1998 (see `newcombe`, which is this on two Wilson intervals); for intervals of any kind Zou and Donner 2008,
    "Construction of confidence limits about effect measures: a general approach", Statistics in Medicine 27:1693-1702.
    """
    gap = a.value - b.value
    return gap - math.hypot(a.value - a.low, b.high - b.value), gap + math.hypot(a.high - a.value, b.value - b.low)


def paired_difference(only_a: int, only_b: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of the difference, a minus b, of two shares measured on the same items, as two numbers between -1 and 1.

    Source: Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data",
    Journal of Educational and Behavioral Statistics 37:479-488: with a' = (only_a+1)/(n+2) and b' = (only_b+1)/(n+2),
    a' - b' ± z·√((a' + b' - (a' - b')²)/(n+2)). The estimate itself is (only_a - only_b)/n.

    Args:
        only_a: number of items that only the first has right.
        only_b: number of items that only the second has right.
        n: number of items.
        level: confidence level between 0 and 1.

    Raises:
        ValueError: n is not positive, the two counts are negative or more than n together, or the level is not between 0 and 1.
    """
    _check_counts(only_a, n)
    _check_counts(only_b, n)
    _check_counts(only_a + only_b, n)
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    gap = share_a - share_b
    half = _quantile(level) * math.sqrt((share_a + share_b - gap * gap) / (n + 2))
    return max(-1.0, gap - half), min(1.0, gap + half)


def mean_over_seeds(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the mean of one number a training seed, with Student's t interval: mean ± t(n-1)·s/√n.

    Args:
        values: one result a seed, at least two.
        level: confidence level between 0 and 1.

    Raises:
        ValueError: there are fewer than two values (one seed says nothing about the spread), or the level is not between 0 and 1.
    """
    if len(values) < 2:
        _too_few(values)
    if not 0 < level < 1:
        raise ValueError(f"the confidence level must be between 0 and 1, not {level}")
    from scipy.special import stdtrit

    mean = fmean(values)
    half = float(stdtrit(len(values) - 1, 0.5 + level / 2)) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


def mean_over_seeds_and_items(values: Sequence[float], n: int, level: float = LEVEL) -> Estimate:
    """Return the mean of one share a training seed, with an interval for other seeds and other items too.

    Half widths are squared and added (Zou and Donner 2008, see `square_and_add`): those of Student's t over the seeds and those of Wilson
    at the mean for the n items, which all seeds answered and which therefore count once.

    Args:
        values: one share a seed, at least two.
        n: number of items of each, the same ones.
        level: confidence level between 0 and 1.

    Raises:
        ValueError: there are fewer than two values, one is no share, or n is not positive.
    """
    for value in values:
        if not 0 <= value <= 1:
            raise ValueError(f"{value} is not a share")
    seeds = mean_over_seeds(values, level)
    _check_counts(0, n)
    low, high = _wilson(seeds.value, n, level)
    half = seeds.high - seeds.value
    limits = seeds.value - math.hypot(half, seeds.value - low), seeds.value + math.hypot(half, high - seeds.value)
    return Estimate(seeds.value, max(0.0, limits[0]), min(1.0, limits[1]), len(values))


def band_over_seeds(values: Sequence[Sequence[float]], level: float = LEVEL) -> list[Estimate]:
    """Return `mean_over_seeds` at every point of a course.

    Args:
        values: one row of equal length a seed, at least two.
        level: confidence level between 0 and 1.

    Raises:
        ValueError: there are fewer than two rows, or their lengths differ.
    """
    if len(values) < 2:
        _too_few(values)
    if len({len(row) for row in values}) > 1:
        raise ValueError(f"the seeds have {', '.join(str(len(row)) for row in values)} points: they must be the same ones")
    return [mean_over_seeds(column, level) for column in zip(*values, strict=True)]


def welch(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Welch:
    """Compare two methods by one number a training seed each, whose spreads may differ: Welch's t test (scipy's `ttest_ind`).

    Source: Welch 1947, "The generalization of Student's problem when several different population variances are involved",
    Biometrika 34:28-35.

    Args:
        a: one result a seed of the first, at least two.
        b: of the second, at least two.
        level: confidence level of the interval, between 0 and 1.

    Raises:
        ValueError: there are fewer than two values of either, or neither has any spread, so that there is nothing to measure by.
    """
    for values in (a, b):
        if len(values) < 2:
            _too_few(values)
    if len(set(a)) == len(set(b)) == 1:
        raise ValueError("all seeds of a method give the same result, for both methods: without any spread there is no t test")
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        # scipy warns of lost precision where the seeds of one method agree, as counts may; its variance then is 0, which is right.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        test = ttest_ind(a, b, equal_var=False)
    limits = test.confidence_interval(level)
    return Welch(fmean(a) - fmean(b), float(limits.low), float(limits.high), float(test.statistic), float(test.df), float(test.pvalue))


def relative_gain(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return how much greater the mean of a is than that of b, relative to b, with an interval over seeds: 0.05 is 5 %.

    The interval is Welch's t on the log of the ratio: the standard error of log(mean) is s/(mean·√n) (delta method), the degrees of
    freedom are Welch's and Satterthwaite's.

    Args:
        a: one result a seed of the first, at least two.
        b: of the second, at least two.
        level: confidence level between 0 and 1.

    Raises:
        ValueError: there are fewer than two values of either, neither has any spread, or a mean is not positive.
    """
    parts = []
    for values in (a, b):
        if len(values) < 2:
            _too_few(values)
        if fmean(values) <= 0:
            raise ValueError(f"a relative gain needs positive means, not {fmean(values)}")
        parts.append(((stdev(values) / fmean(values)) ** 2 / len(values), len(values)))
    total = sum(variance for variance, _ in parts)
    if total == 0:
        raise ValueError("all seeds of a method give the same result, for both methods: without any spread there is no interval")
    from scipy.special import stdtrit

    df = total**2 / sum(variance**2 / (n - 1) for variance, n in parts)
    half = float(stdtrit(df, 0.5 + level / 2)) * math.sqrt(total)
    ratio = fmean(a) / fmean(b)
    return Estimate(ratio - 1, ratio * math.exp(-half) - 1, ratio * math.exp(half) - 1, min(len(a), len(b)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the same order: below 0.05 for any true null in at most 5 % of such families.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6:65-70
    (statsmodels' `multipletests`).

    Raises:
        ValueError: a value is not between 0 and 1.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"{p} is not a p-value")
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def avg_at_n(correct: Sequence[Sequence[bool]], level: float = LEVEL) -> Estimate:
    """Return avg@N: the mean over items of the share of an item's N samples that are right.

    The samples of one item hang together, so the standard error is that of the item means (clustered by item: Miller 2024, "Adding error
    bars to evals", arXiv 2411.00640, section 2.2), and the interval is Wilson's at the sample size that has this standard error
    (Korn and Graubard 1998, Survey Methodology 24:193-201): inside 0 to 1, and never of no width. With N = 1 it is `wilson`.

    Args:
        correct: for every item, whether each of its samples is right.
        level: confidence level between 0 and 1.

    Raises:
        ValueError: there is no item, or an item without samples.
    """
    _check_items(correct, 1)
    return _clustered([sum(item) / len(item) for item in correct], sum(map(len, correct)), level)


def pass_at_k(correct: Sequence[Sequence[bool]], k: int, level: float = LEVEL) -> Estimate:
    """Return pass@k: the chance that at least one of k samples of an item is right, averaged over items.

    Source: Chen et al. 2021, "Evaluating large language models trained on code", arXiv 2107.03374, equation 1: with c of an item's n
    samples right, the unbiased estimate is 1 - C(n-c, k)/C(n, k). The interval is that of `avg_at_n`.

    Args:
        correct: for every item, whether each of its samples is right; at least k samples an item.
        k: number of tries, at least 1.
        level: confidence level between 0 and 1.

    Raises:
        ValueError: there is no item, k is not positive, or an item has fewer than k samples.
    """
    if k < 1:
        raise ValueError(f"pass@k needs k of at least 1, not {k}")
    _check_items(correct, k)
    chances = [1 - math.comb(len(item) - sum(item), k) / math.comb(len(item), k) for item in correct]
    return _clustered(chances, sum(len(item) // k for item in correct), level)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of the exact McNemar test: do two graders, or two models, differ on the same items?

    Source: McNemar 1947, Psychometrika 12:153-157, in its exact form: of the items on which the two differ, the number in favour of one
    is binomial with chance 1/2. Where they never differ, p is 1.

    Args:
        only_a: number of items that only the first has right.
        only_b: number of items that only the second has right.

    Raises:
        ValueError: a count is negative.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts cannot be negative: {only_a}, {only_b}")
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def _too_few(values: Sequence[object]) -> NoReturn:
    raise ValueError(f"an interval over seeds needs at least 2 of them, not {len(values)}: train with more seeds, or show the bare value")


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"the confidence level must be between 0 and 1, not {level}")
    return NormalDist().inv_cdf(0.5 + level / 2)


def _check_counts(successes: int, n: int) -> None:
    if n <= 0:
        raise ValueError(f"a share of {n} trials does not exist: there must be at least one")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is impossible")


def _check_items(correct: Sequence[Sequence[bool]], needed: int) -> None:
    if not correct:
        raise ValueError("no items: there is no average of nothing")
    for index, item in enumerate(correct):
        if len(item) < needed:
            raise ValueError(f"item {index} has {len(item)} samples, but {needed} are needed: evaluate with more repeats")


def _wilson(share: float, n: float, level: float) -> tuple[float, float]:
    z = _quantile(level)
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The limits are exact at the ends; rounding alone would put them a hair outside.
    low = 0.0 if share == 0 else (centre - half) / scale
    high = 1.0 if share == 1 else (centre + half) / scale
    return low, high


def _clustered(item_values: Sequence[float], samples: int, level: float) -> Estimate:
    """Wilson's interval at the effective sample size, which lies between the number of items and the number of samples."""
    items = len(item_values)
    # Rounding of a mean of ones may give 1 + 1e-16.
    mean = min(1.0, max(0.0, fmean(item_values)))
    variance = stdev(item_values) ** 2 / items if items > 1 else 0.0
    if mean in (0.0, 1.0) or items == 1:
        effective = float(items)
    elif variance == 0:
        effective = float(samples)
    else:
        effective = min(float(samples), max(float(items), mean * (1 - mean) / variance))
    return Estimate(mean, *_wilson(mean, effective, level), items)
