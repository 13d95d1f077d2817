"""Change points of a history: at which versions of a model did its score on the same items shift, and stay shifted?

Circular binary segmentation (Olshen, Venkatraman, Lucito and Wigler 2004, "Circular binary segmentation for the analysis of array-based DNA
copy number data", Biostatistics 5:557-572): of all ways to set one run of versions against the others of its stretch, which covers a shift
and a drop that was mended later, the clearest is tested, and after a cut the parts are searched again. A shift must show against both
kinds of noise that a history has: other items (a paired t test on the items' means) and the wobble from version to version that retraining
brings (a t test on the versions' means). Plain functions on numbers, beside `stats`; no run, task or file is known here, and scipy and
numpy are imported inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Change:
    """A shift of the score between two neighbouring versions.

    Attributes:
        index: position of the first version after the shift, counted from 0.
        before: mean score of the versions of the stretch before it, 0 to 1.
        after: mean score of the versions of the stretch after it.
        p: p-value, corrected by Bonferroni for the ways in which the stretch could have been cut.
        wobble_known: whether the stretch had enough versions (4) to hold the shift against their wobble; where not, it is known only that
            these checkpoints differ by more than other items explain.
    """

    index: int
    before: float
    after: float
    p: float
    wobble_known: bool


MIN_VERSIONS = 4
"""Versions of a stretch below which the wobble between them cannot be measured."""


def change_points(scores: Sequence[Sequence[float]], *, alpha: float = 0.05, min_effect: float = 0.01) -> list[Change]:
    """Find the shifts of a history.

    Args:
        scores: one row a version, in order; one score an item, the same items in every row.
        alpha: chance of marking anything in a history without any shift, at most.
        min_effect: shifts smaller than this are not marked, as a share: 0.01 is one point.

    Returns:
        the shifts in order; empty for fewer than two versions.

    Raises:
        ValueError: a row is empty, rows differ in length, or alpha is not between 0 and 1.
    """
    import numpy as np

    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha}")
    if not scores:
        return []
    lengths = {len(row) for row in scores}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"versions must have the same items, at least one; these have {', '.join(map(str, sorted(lengths)))}")
    table = np.asarray(scores, dtype=np.float64)
    cuts = _segment(table, 0, alpha, min_effect)
    ends = [0, *cuts, len(table)]
    means = [float(table[start:end].mean()) for start, end in pairwise(ends)]
    return [Change(cut, *sides, *cuts[cut]) for cut, sides in zip(cuts, pairwise(means), strict=True)]


def _segment(table: Numbers, first: int, alpha: float, min_effect: float) -> dict[int, tuple[float, bool]]:
    """Cut a stretch where it shifts most, if at all, and then its parts: position -> p and whether the wobble was known, in order."""
    import numpy as np

    versions = len(table)
    if versions < 2:
        return {}
    # A run from `start` to before `end` against all others; one that reaches the last version is the same as the others from the first.
    runs = [(start, end) for start in range(versions - 1) for end in range(start + 1, versions)]
    ps, left = _p_values(table, runs)
    # Half of alpha for the cuts into two parts, half for the many more into three.
    three = [start > 0 for start, _ in runs]
    ways = [2 * three.count(kind) if versions > 2 else 1 for kind in three]
    corrected = np.minimum(1.0, ps * ways)
    best = min(range(len(runs)), key=lambda one: (corrected[one], left[one]))  # of equal p (0 where all is clear) the least spread left
    p = float(corrected[best])
    if p > alpha:
        return {}
    ends = [0, *(place for place in runs[best] if place), versions]
    cuts = {}
    for start, cut, end in zip(ends, ends[1:], ends[2:], strict=False):  # each end of the run must be a shift by itself
        edge, _ = _p_values(table[start:end], [(0, cut - start)])
        gap = abs(float(table[cut:end].mean() - table[start:cut].mean()))
        if edge[0] <= alpha and gap >= min_effect and not np.isclose(gap, 0):
            cuts[first + cut] = p, versions >= MIN_VERSIONS
    found: dict[int, tuple[float, bool]] = dict(cuts)
    if cuts:
        for start, end in pairwise([first, *cuts, first + versions]):
            found |= _segment(table[start - first : end - first], start, alpha, min_effect)
    return dict(sorted(found.items()))


def _p_values(table: Numbers, runs: Sequence[tuple[int, int]]) -> tuple[Numbers, Numbers]:
    """For each run of versions against the others: the larger p-value of the two tests, and the spread of means left over.

    The wobble is read from neighbouring versions (Rice 1984, "Bandwidth choice for nonparametric regression", Annals of Statistics
    12:1215-1230), so that other shifts hide little. Of k steps, which overlap, about 2k²/(3k - 1) count as degrees of freedom.
    """
    import numpy as np
    from scipy.stats import t

    versions, items = table.shape
    means = table.mean(axis=1)
    total, steps = table.sum(axis=0), np.diff(means) ** 2
    rows = []
    for start, end in runs:
        inside, outside = end - start, versions - (end - start)
        within = table[start:end].sum(axis=0)
        differences = within / inside - (total - within) / outside
        gap = abs(float(differences.mean()))
        error = float(differences.std(ddof=1)) / items**0.5 if items > 1 else np.inf
        crossed = [place - 1 for place in (start, end) if 0 < place < versions]
        kept = np.delete(steps, crossed)
        wobble = float(kept.mean() / 2 * (1 / inside + 1 / outside)) ** 0.5 if len(kept) else 0.0
        rest = float(
            ((means - np.where((np.arange(versions) >= start) & (np.arange(versions) < end), *_two(means, start, end))) ** 2).sum()
        )
        rows.append((gap, error, wobble, max(len(kept), 1), rest))
    gaps, errors, wobbles, k, left = np.asarray(rows).T
    with np.errstate(divide="ignore", invalid="ignore"):
        by_items = 2 * t.sf(np.where(gaps > 1e-12, gaps / np.maximum(errors, 1e-300), 0), max(items - 1, 1))
        by_wobble = 2 * t.sf(np.where(gaps > 1e-12, gaps / np.maximum(wobbles, 1e-300), 0), 2 * k**2 / (3 * k - 1))
    return np.maximum(by_items, by_wobble if versions >= MIN_VERSIONS else 0.0), left


def _two(means: Numbers, start: int, end: int) -> tuple[float, float]:
    """Mean of the versions inside a run, and of the others."""
    import numpy as np

    return float(means[start:end].mean()), float(np.delete(means, slice(start, end)).mean())
