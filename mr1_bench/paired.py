"""Paired comparisons of an old and a new model on the same items, and what such a comparison can see: tests, power, sample size.

Beside `stats`, which has McNemar's test and the intervals of shares, this is the home of everything that a regression gate computes. Plain
functions on numbers; no task, run or verdict is known here. numpy and scipy are imported inside the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean, variance

from mr1_bench.stats import LEVEL, paired_difference

_CHUNK = 2_000_000
"""Draws held at a time."""
_TAIL = 9.0
"""Standard deviations of a binomial beyond which nothing is summed: a share of less than 1e-18."""
MOST_ITEMS = 10_000_000
"""Sample sizes are searched up to here."""


@dataclass(frozen=True, slots=True)
class Change:
    """A difference new - old on the same items.

    Attributes:
        difference: the mean difference.
        low: lower limit of its interval.
        high: upper limit of its interval.
        p: two-sided p-value of no difference.
        se: standard error of the difference.
    """

    difference: float
    low: float
    high: float
    p: float
    se: float


def unseen_spread(n: int, scale: float = 1.0) -> float:
    """Return the standard error that n items cannot rule out, whatever they show: that of one more item up and one more down.

    It is what Bonett and Price's interval of two shares (`stats.paired_difference`) has left where no item differs, √2/(n + 2). Added to a
    measured error it keeps a handful of differing items, or none, from looking like certainty.

    Args:
        n: number of items.
        scale: the change of an item that must be reckoned with: 1 for shares.
    """
    return math.sqrt(2) * scale / (n + 2)


def paired_bootstrap(differences: Sequence[float], seed: int, resamples: int = 10_000, level: float = LEVEL, scale: float = 1.0) -> Change:
    """Compare two means on the same items by resampling the items.

    The equal-tailed bootstrap-t with t* = (mean* - mean)/se*, where se² = s²/n + `unseen_spread`²; each limit is no nearer than that of
    Student's t, and p no smaller. So the limits are finite and hold the difference even if one item differs, or none. Both additions matter
    where few items differ and rare large changes may have been missed. Sources: Efron and Tibshirani 1993, "An Introduction to the
    Bootstrap", sections 12.5 and 16.4; Hall 1988, "Theoretical comparison of bootstrap confidence intervals", Annals of Statistics
    16:927-953; for the added spread Bonett and Price 2012 (see `stats.paired_difference`).

    Args:
        differences: new - old, one number an item; of several answers an item the difference of their means, so that repeats hang
            together.
        seed: of the draws; record it.
        resamples: number of resamples.
        level: confidence level between 0 and 1.
        scale: the change of an item that must be reckoned with, in the unit of the differences: 1 for shares.

    Raises:
        ValueError: there are fewer than two items, a number is not finite, or resamples or level make no sense.
    """
    import numpy as np

    values = np.asarray(differences, dtype=float)
    n = len(values)
    if n < 2:
        raise ValueError(f"a paired bootstrap needs at least 2 items, not {n}")
    if not np.isfinite(values).all():
        raise ValueError("a paired bootstrap needs finite differences")
    if resamples < 100 or not 0 < level < 1:
        raise ValueError(f"{resamples} resamples at level {level}: at least 100, and a level between 0 and 1, are needed")
    mean, unseen = float(values.mean()), unseen_spread(n, scale)
    se = math.hypot(float(values.std(ddof=1)) / math.sqrt(n), unseen)
    student = _student(mean, se, n - 1, level)
    if se == 0:
        return student
    draw = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, max(1, _CHUNK // n)):
        count = min(max(1, _CHUNK // n), resamples - start)
        sample = values[draw.integers(0, n, (count, n))]
        spread = np.hypot(sample.std(axis=1, ddof=1) / math.sqrt(n), unseen)
        gaps = sample.mean(axis=1) - mean
        parts.append(np.divide(gaps, spread, out=np.zeros(count), where=spread > 0))
    drawn = np.sort(np.concatenate(parts))
    reached = min(int((drawn >= mean / se).sum()), int((drawn <= mean / se).sum()))
    beyond = max(0, math.floor((1 - level) / 2 * (resamples + 1)) - 1)
    low, high = mean - float(drawn[resamples - 1 - beyond]) * se, mean - float(drawn[beyond]) * se
    p = min(1.0, 2 * (1 + reached) / (1 + resamples))
    return Change(mean, min(low, student.low), max(high, student.high), max(p, student.p), se)


def _student(difference: float, se: float, df: float, level: float) -> Change:
    """A difference with Student's t interval and p; without any spread it is certain."""
    from scipy.special import stdtr, stdtrit

    if se == 0:
        return Change(difference, difference, difference, 1.0 if difference == 0 else math.ulp(0.0), 0.0)
    half = float(stdtrit(df, 0.5 + level / 2)) * se
    p = max(2 * float(stdtr(df, -abs(difference) / se)), math.ulp(0.0))
    return Change(difference, difference - half, difference + half, p, se)


def share_change(lost: int, won: int, n: int, p: float) -> Change:
    """Wrap the counts of a 0/1 metric: Bonett and Price's interval (`stats.paired_difference`) and a test's p-value.

    Args:
        lost: number of items only the old has right.
        won: number of items only the new has right.
        n: number of items.
        p: of the exact McNemar test.
    """
    low, high = paired_difference(won, lost, n)
    return Change((won - lost) / n, low, high, p, math.sqrt(max(0.0, (won + lost) / n - ((won - lost) / n) ** 2) / n))


def change_over_seeds(old: Sequence[Sequence[float]], new: Sequence[Sequence[float]], level: float = LEVEL, scale: float = 1.0) -> Change:
    """Compare two methods by several training seeds each on the same items, with seeds and items as random factors of their own.

    The variance of the difference is the sum of that over seeds (s²/S of either side's seed means) and that over items (variance of the
    items' mean differences over n, and `unseen_spread`²); t has the degrees of freedom of Welch and Satterthwaite over all parts. Each part
    holds the interaction of seeds and items, so the sum is on the safe side. A side of a single seed borrows the spread of the other.
    Sources: Welch 1947 (see
    `stats.welch`); Satterthwaite 1946, "An approximate distribution of estimates of variance components", Biometrics Bulletin 2:110-114;
    for items and seeds as crossed factors Clark 1973, "The language-as-fixed-effect fallacy", J. Verbal Learning 12:335-359.

    Args:
        old: for every seed the score of each item.
        new: the same for the new side; the items are the same ones in the same order.
        level: confidence level between 0 and 1.
        scale: the change of an item that must be reckoned with, in the unit of the scores: 1 for shares.

    Raises:
        ValueError: neither side has two seeds, the numbers of items differ, or there are fewer than two.
    """
    if max(len(old), len(new)) < 2 or min(len(old), len(new)) < 1:
        raise ValueError(f"{len(old)} and {len(new)} seeds: at least one side needs two, or nothing is known of their spread")
    sizes = {len(row) for row in (*old, *new)}
    if len(sizes) > 1 or min(sizes) < 2:
        raise ValueError(f"the seeds have {sorted(sizes)} items: they must be the same ones, at least 2")
    n = sizes.pop()
    means = [fmean(row) for row in old], [fmean(row) for row in new]
    difference = fmean(means[1]) - fmean(means[0])
    parts = []
    if min(map(len, means)) > 1:
        parts += [(variance(side) / len(side), len(side) - 1) for side in means]
    else:
        known = max(means, key=len)
        parts.append((variance(known) * (1 / len(old) + 1 / len(new)), len(known) - 1))
    items = [fmean(b) - fmean(a) for a, b in zip(zip(*old, strict=True), zip(*new, strict=True), strict=True)]
    parts.append((variance(items) / n + unseen_spread(n, scale) ** 2, n - 1))
    total = sum(part for part, _ in parts)
    df = total**2 / sum(part**2 / free for part, free in parts) if total > 0 else 1.0
    return _student(difference, math.sqrt(total), df, level)


@lru_cache(maxsize=4096)
def mcnemar_power(n: int, discordant: float, drop: float, alpha: float = 0.05, more_than: float = 0.0) -> float:
    """Return the chance that the exact McNemar test finds a true drop: p below alpha, and more lost than won.

    Nothing is approximated: the number of discordant items is binomial(n, discordant), that of the lost among them
    binomial(·, (1 + drop/discordant)/2), and both are summed over. Source: Lachenbruch 1992, "On the sample size for studies based upon
    McNemar's test", Statistics in Medicine 11:1521-1525, in its exact, unconditional form.

    Args:
        n: number of items.
        discordant: true share of items on which the two differ.
        drop: true drop of the share of right answers, 0 to discordant.
        alpha: two-sided level; divide it by the number of tests to plan for Holm's first step.
        more_than: the observed drop must also exceed this.

    Raises:
        ValueError: n is not positive, or the shares make no sense.
    """
    if n < 1 or not 0 <= drop <= discordant <= 1 or not 0 < alpha < 1:
        raise ValueError(
            f"no power for n = {n}, discordant {discordant}, drop {drop}, alpha {alpha}: 0 <= drop <= discordant <= 1 is needed"
        )
    if discordant == 0:
        return 0.0
    import numpy as np
    from scipy.stats import binom

    spread = _TAIL * math.sqrt(n * discordant * (1 - discordant)) + 10
    found = np.arange(max(0, math.floor(n * discordant - spread)), min(n, math.ceil(n * discordant + spread)) + 1)
    significant = binom.isf(alpha / 2, found, 0.5) + 1  # smallest k with 2·P(K >= k) <= alpha
    exceeding = np.floor((found + more_than * n) / 2 + 1e-9) + 1  # smallest k with k - (found - k) > more_than·n
    least = np.maximum(significant, exceeding)
    return float(np.sum(binom.pmf(found, n, discordant) * binom.sf(least - 1, found, (1 + drop / discordant) / 2)))


def smallest_visible_drop(n: int, discordant: float, alpha: float = 0.05, power: float = 0.8, more_than: float = 0.0) -> float | None:
    """Return the smallest true drop that n items show with a given power; None where not even losing everything shows.

    Args:
        n: number of items.
        discordant: share of items on which the two differ; a drop larger than that is taken to consist of lost items only.
        alpha: two-sided level of the exact McNemar test.
        power: chance of finding it.
        more_than: the observed drop must also exceed this.
    """

    def seen(drop: float) -> bool:
        return mcnemar_power(n, max(discordant, drop), drop, alpha, more_than) >= power

    if not seen(1.0):
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


def items_needed(drop: float, discordant: float, alpha: float = 0.05, power: float = 0.8, more_than: float = 0.0) -> int | None:
    """Return how many items show a true drop with a given power by the exact McNemar test; None above `MOST_ITEMS` and where none do.

    Args:
        drop: the true drop, greater than 0.
        discordant: share of items on which the two differ; taken as the drop where it is less.
        alpha: two-sided level.
        power: chance of finding it.
        more_than: the observed drop must also exceed this; a true drop that does not is never found with a power above one half.
    """
    if not 0 < drop <= 1:
        raise ValueError(f"a drop of {drop} needs no items or infinitely many: give one between 0 and 1")
    if drop <= more_than and power > 0.5:
        return None
    return _fewest(lambda n: mcnemar_power(n, max(discordant, drop), drop, alpha, more_than) >= power)


@lru_cache(maxsize=4096)
def pass_power(n: int, discordant: float, tolerance: float, level: float = LEVEL) -> float:
    """Return the chance that an unchanged model passes: the interval of new - old (`stats.paired_difference`) lies above -tolerance.

    Summed over the number of discordant items, binomial(n, discordant), and of the won ones among them, binomial(·, 1/2).

    Args:
        n: number of items.
        discordant: true share of items on which the two differ, as many lost as won.
        tolerance: the drop to be ruled out, as a share.
        level: of the interval.

    Raises:
        ValueError: n is not positive, or the shares make no sense.
    """
    if n < 1 or not 0 <= discordant <= 1 or tolerance < 0:
        raise ValueError(f"no power for n = {n}, discordant {discordant}, tolerance {tolerance}")
    import numpy as np
    from scipy.stats import binom

    spread = _TAIL * math.sqrt(n * discordant * (1 - discordant)) + 10
    found = np.arange(max(0, math.floor(n * discordant - spread)), min(n, math.ceil(n * discordant + spread)) + 1)
    # The lower limit g - z·√((a - g²)/(n + 2)), a = (found + 2)/(n + 2), exceeds -tolerance where g exceeds the larger root.
    k = NormalDist().inv_cdf(0.5 + level / 2) ** 2 / (n + 2)
    under = np.maximum(0.0, k * ((1 + k) * (found + 2) / (n + 2) - tolerance**2))
    least_gap = np.maximum((np.sqrt(under) - tolerance) / (1 + k), -tolerance)
    won = np.floor((found + least_gap * (n + 2)) / 2 + 1e-9) + 1
    return float(np.sum(binom.pmf(found, n, discordant) * binom.sf(won - 1, found, 0.5)))


def items_to_pass(tolerance: float, discordant: float, power: float = 0.8, level: float = LEVEL) -> int | None:
    """Return with how many items an unchanged model passes with a given chance (`pass_power`); None above `MOST_ITEMS`.

    Args:
        tolerance: the drop to be ruled out, greater than 0, as a share.
        discordant: share of items on which the two differ.
        power: chance of passing.
        level: of the interval.
    """
    if tolerance <= 0:
        raise ValueError(f"a tolerance of {tolerance} is never ruled out: give one greater than 0")
    return _fewest(lambda n: pass_power(n, discordant, tolerance, level) >= power)


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """Bisect for the number of items; powers rise in small steps up and down, so it is exact to a few items."""
    high = 8
    while not enough(high):
        if high > MOST_ITEMS:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def visible_difference(se: float, alpha: float = 0.05, power: float = 0.8, more_than: float = 0.0) -> float:
    """Return the smallest true difference that a test with this standard error shows with a given power.

    The observed one must be significant and exceed `more_than`: max(z(1-α/2)·se, more_than) + z(power)·se. The same with the interval's
    alpha is the tolerance that an unchanged model passes with that power.
    """
    return max(NormalDist().inv_cdf(1 - alpha / 2) * se, more_than) + NormalDist().inv_cdf(power) * se
