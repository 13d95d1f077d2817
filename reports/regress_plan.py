"""What a comparison of n items can see, before it is made: `mr1-bench regress --plan`. It must not know how verdicts come about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mr1_bench import paired
from mr1_bench.errors import UserError
from mr1_bench.reports.verdicts import Settings, Snapshot
from mr1_bench.reports.wording import amount
from mr1_bench.tables import format_table

SIZES = (200, 754, 2000)
"""The two real test sets, and more."""
DISCORDANT = (0.1, 0.2, 0.3)
"""Shares of items on which two checkpoints differ; retrained models mostly lie in this range."""
_DROPS = (0.02, 0.03, 0.05, 0.1)


def planned_tasks(sides: Sequence[Snapshot], names: Sequence[str]) -> tuple[dict[str, int], int]:
    """Return the items of each task that a comparison would hold, and how many headline metrics Holm would correct together.

    Args:
        sides: none, one or both.
        names: the tasks that `--tasks` chose; empty for all.

    Raises:
        UserError: the sides have none of them.
    """
    if not sides:
        return {}, max(1, len(names))
    shared = {task: len(seeds[0].items) for task, seeds in sides[-1].tasks.items() if all(task in side.tasks for side in sides)}
    sizes = {task: n for task, n in shared.items() if not names or task in names}
    if not sizes:
        wanted = f"none of {', '.join(names)}" if names else "no task in common"
        raise UserError(f"--plan: {' and '.join(side.source for side in sides)} have {wanted}; name others with --tasks")
    return sizes, len(sizes)


def plan_text(sizes: Mapping[str, int], settings: Settings, discordant: Sequence[float] = DISCORDANT, tests: int = 1) -> str:
    """Return the tables: smallest visible drop at the user's sizes and at `SIZES`, the chance of finding a drop, and the items needed.

    Args:
        sizes: name -> number of items that the user has; may be empty.
        settings: alpha, power and the tolerance of `acc`.
        discordant: shares of items on which old and new differ.
        tests: headline metrics that Holm corrects together.
    """
    alpha, effect = settings.alpha / tests, settings.tolerance("acc")
    rows = [(f"{n:,} ({name})" if name else f"{n:,}", n) for name, n in [*sizes.items(), *(("", n) for n in SIZES)]]
    shares = [f"{100 * share:g} %" for share in discordant]
    power = f"{100 * settings.power:g} % power"
    by_holm = f"Holm over {tests}: {alpha:.2g} at its first step" if tests > 1 else "one headline metric"
    exceed = amount(effect, "share", exact=True)
    head = f"Exact McNemar, two-sided alpha {settings.alpha:g} ({by_holm}); to fail, a drop must also exceed {exceed}.\n"
    head += "Discordant: share of items that old and new answer differently (right and wrong).\n"
    smallest = [
        [name, *(_points(paired.smallest_visible_drop(n, share, alpha, settings.power, effect)) for share in discordant)]
        for name, n in rows
    ]
    found = [
        [name, f"{100 * drop:g}", *(_chance(n, share, drop, alpha, effect) for share in discordant)]
        for name, n in dict(zip(sizes, rows, strict=False)).values() or rows
        for drop in _DROPS
        if drop > effect
    ]
    drops = sorted({*_DROPS, effect} - {0.0})
    needed = [["none: passes", *(_to_pass(effect, share, settings.power) for share in discordant)]]
    needed += [[f"{100 * drop:g}", *(_count(drop, share, alpha, settings.power, effect) for share in discordant)] for drop in drops]
    right = range(1, len(discordant) + 1)
    parts = [
        head,
        f"Smallest drop that shows, in points ({power}), by share discordant:",
        format_table(["items", *shares], smallest, right=[0, *right]),
        "\nChance of finding a drop, by share discordant:",
        format_table(["items", "drop, points", *shares], found, right=[0, *right, len(discordant) + 1]),
        f"\nItems needed to find a drop, or to pass an unchanged model ({power}):",
        format_table(["drop, points", *shares], needed, right=[0, *right]),
    ]
    return "\n".join(parts)


def _points(drop: float | None) -> str:
    return "none" if drop is None else f"{100 * drop:.1f}"


def _chance(n: int, share: float, drop: float, alpha: float, effect: float) -> str:
    if drop > share:
        return "–"
    return f"{100 * paired.mcnemar_power(n, share, drop, alpha, effect):.0f} %"


def _count(drop: float, share: float, alpha: float, power: float, effect: float) -> str:
    if drop <= effect:
        return "never"
    needed = paired.items_needed(drop, share, alpha, power, effect)
    return _most() if needed is None else f"{needed:,}"


def _to_pass(effect: float, share: float, power: float) -> str:
    needed = paired.items_to_pass(effect, share, power) if effect > 0 else None
    return "never" if effect == 0 else _most() if needed is None else f"{needed:,}"


def _most() -> str:
    return f"more than {paired.MOST_ITEMS:,}"
