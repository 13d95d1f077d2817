"""Uncertainty: every interval and every test that the project prints comes from here.

Plain functions on counts and lists; no task, run or table is known here. An empty input raises: there is no share of nothing. The
normal quantile is the standard library's; scipy is imported inside the functions that need it, so that importing this module is free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

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
    low_a, high_a = wilson(successes_a, n_a, level)
    low_b, high_b = wilson(successes_b, n_b, level)
    a, b = successes_a / n_a, successes_b / n_b
    return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)


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
        raise ValueError(
            f"an interval over seeds needs at least 2 of them, not {len(values)}: train with more seeds, or show the bare value"
        )
    if not 0 < level < 1:
        raise ValueError(f"the confidence level must be between 0 and 1, not {level}")
    from scipy.special import stdtrit

    mean = fmean(values)
    half = float(stdtrit(len(values) - 1, 0.5 + level / 2)) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


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
