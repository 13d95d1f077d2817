"""The one line that says why: verdicts in words, with their numbers. This module must not know how a verdict was reached or is shown."""

from __future__ import annotations

from mr1_bench.reports.verdicts import Settings, Verdict
from mr1_bench.tables import p_text, p_value

_SCALES = {"share": (100.0, "point"), "tokens": (1.0, "token"), "tokens/s": (1.0, "tokens/s"), "bytes": (2.0**-20, "MiB")}


def amount(value: float, unit: str, *, sign: bool = False, bare: bool = False, exact: bool = False) -> str:
    """Return a difference as a person reads it: `+2.5 points`, `−3.1 tokens`, `+12 MiB`.

    Args:
        value: in the metric's unit; shares between -1 and 1.
        unit: of the metric.
        sign: mark positive numbers too; zero never has a sign.
        bare: leave out the unit's name.
        exact: of a number that was set and not measured: as many digits as it needs, `1 point`, `0.25 points`.
    """
    scale, name = _SCALES[unit]
    shown = abs(value) * scale
    text = f"{float(f'{shown:.3g}'):,g}" if exact else f"{shown:,.{0 if unit == 'bytes' or shown >= 1000 else 1}f}"
    mark = "" if not float(text.replace(",", "")) else "−" if value < 0 else "+" if sign else ""
    plural = "s" if unit in ("share", "tokens") and text != "1" else ""
    return f"{mark}{text}{'' if bare else f' {name}{plural}'}"


def explain_verdict(verdict: Verdict, family: int, settings: Settings, had_enough: bool = False) -> str:
    """Say why a tested metric has its state.

    Args:
        verdict: with everything but `why`.
        family: number of metrics that Holm corrected together.
        settings: what decided.
        had_enough: inconclusive although an unchanged model would have passed with that many items.
    """
    if verdict.difference is None or verdict.p is None or verdict.p_holm is None or verdict.low is None or verdict.high is None:
        raise ValueError(f"{verdict.task} {verdict.metric} was not tested")
    unit, tolerance = verdict.unit, amount(verdict.tolerance, verdict.unit, exact=True)
    found = p_text(verdict.p) + (f", {p_value(verdict.p_holm)} after Holm over {family}" if family > 1 else "")
    found = f"{verdict.test}: {found}"
    items = f" ({verdict.lost} lost, {verdict.won} won)" if verdict.lost or verdict.won else ""
    size = amount(abs(verdict.difference), unit)
    worse = (verdict.difference < 0) == (verdict.better == "higher")
    moved = ("down" if verdict.difference < 0 else "up") + f" {size}" if verdict.difference else "unchanged"
    moved += items
    if verdict.state in ("regressed", "improved"):
        return f"{moved}, more than {tolerance}; {found}"
    if verdict.state == "pass":
        if verdict.difference == 0 and not items:
            return f"no item differs; a change for the worse of {tolerance} is ruled out"
        limit = verdict.low if verdict.better == "higher" else verdict.high
        return f"{moved}; the interval's worse end, {amount(limit, unit, sign=True)}, is within the tolerance of {tolerance}"
    if worse and abs(verdict.difference) > verdict.tolerance and verdict.p < settings.alpha:
        return f"{moved}, but not significant among {family} metrics ({found}); evaluate more items"
    low, high = (amount(end, unit, sign=True, bare=True) for end in (verdict.low, verdict.high))
    interval = f"[{low}, {high}] {amount(0, unit).partition(' ')[2]}"
    few = "seeds or items" if verdict.seeds != (1, 1) else "items"
    return f"too few {few}: {interval} does not rule out {tolerance} for the worse; {_could(verdict, settings, had_enough)}"


def _could(verdict: Verdict, settings: Settings, had_enough: bool) -> str:
    """What this many items could have shown, and how many would settle it."""
    change = "drop" if verdict.better == "higher" else "rise"
    if verdict.detectable is None:
        shown = f"{verdict.n:,} items show no {change} of any size"
    else:
        shown = f"{verdict.n:,} items show a {change} of {amount(verdict.detectable, verdict.unit)} ({100 * settings.power:.0f} % power)"
    tolerance = amount(verdict.tolerance, verdict.unit, exact=True)
    if verdict.seeds != (1, 1):
        return f"{shown}; for {tolerance} train more seeds"
    if not verdict.needed:
        return f"{shown}; no number of items rules out {tolerance}" + (" if it stays so" if had_enough else "")
    if had_enough:
        return f"{shown}; if it stays so, about {verdict.needed:,} settle it"
    return f"{shown}; an unchanged model passes with about {verdict.needed:,}"


def explain_measure(verdict: Verdict) -> str:
    """Say why a single number, which has no spread and is not tested, has its state."""
    if verdict.difference is None or not verdict.old:
        return "a single number, not tested"
    share = f"{100 * abs(verdict.difference) / verdict.old:.0f} %"
    change = "unchanged" if share == "0 %" else f"{'up' if verdict.difference > 0 else 'down'} {share}"
    beyond = "within" if verdict.state == "pass" else "beyond"
    return f"{change}, {beyond} the tolerance of {100 * verdict.tolerance / verdict.old:.0f} %; a single number, not tested"
