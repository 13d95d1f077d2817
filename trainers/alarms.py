"""Alarms: what goes wrong in silence, said aloud, with the step and the usual cause.

`check` is a pure function of the rows of metrics.jsonl, so a resumed run raises the alarms that the uninterrupted one would. An alarm is
raised once an episode: at the first row where its condition holds, after it has not held for a while. It must not know what is done about
an alarm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance
from typing import Any, Literal

from mr1_bench.trainers.config import GRPOConfig, TrainConfig

Kind = Literal["non_finite", "kl_spike", "reward_hacking", "no_reward", "no_spread", "cut_off"]
Row = dict[str, Any]

QUIET = 10
"""Rows without its condition after which an alarm may be raised again: one that flickers is one episode."""

KL_WINDOW, KL_LEAST = 20, 5
"""The KL of a step is compared with the median of so many steps before it; of at least so many, so that the first steps set no standard."""
KL_FACTOR = 10.0
"""So many times the median is a spike: KL moves by a factor of two or three from batch to batch."""
KL_FLOOR = 0.1
"""Nats a token. Below it the policy is close to its start, and factors mean nothing."""
KL_LIMIT = 5.0
"""Nats a token at which the policy has left its start altogether, however slowly it went there."""

HACKING_WINDOWS = (20, 100)
"""Rows that are compared with as many before them: one length sees a fall, the other a slide."""
HACKING_CHANGE = 0.05
"""Format must have risen, and accuracy fallen, by at least this share of the completions: less would not matter, however certain."""
HACKING_ERRORS = 3.0
"""... and by so many standard errors of the difference: batches of different prompts differ by themselves."""

NO_REWARD_ROWS = 20
"""Steps without one correct completion. At 64 completions a step even a skill of 0.3 % shows one in that time, with 98 % probability."""
NO_SPREAD_ROWS = 10
"""Steps in which every group's rewards were equal. With four groups, each equal in 70 % of cases, chance does that once in a million."""
CUT_OFF_ROWS, CUT_OFF_SHARE = 5, 0.99
"""Steps in which (nearly) every completion was cut off; one such step may be bad luck of a small batch."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """What is wrong.

    Attributes:
        kind: which of the six.
        step: the row's step.
        message: what is seen, at which step, and what usually causes it; one line.
    """

    kind: Kind
    step: int
    message: str


def check(rows: Sequence[Row], config: TrainConfig) -> list[Alarm]:
    """The alarms that the last row raises.

    Args:
        rows: all rows of the run so far, in the order of their steps (or at least the last 210 of them).
        config: the settings, which the messages quote.
    """
    if not rows:
        return []
    raised = []
    for kind, (condition, describe) in _ALARMS.items():
        if condition(rows) and not any(condition(rows[:-back]) for back in range(1, min(QUIET, len(rows) - 1) + 1)):
            step = int(rows[-1]["step"])
            raised.append(Alarm(kind, step, f"step {step}: {describe(rows, config)}"))
    return raised


def _values(rows: Sequence[Row], key: str) -> list[float]:
    """A column, without rows where it was not measured or is not finite."""
    return [float(row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]


def _throughout(rows: Sequence[Row], key: str, length: int, holds: Callable[[float], bool]) -> bool:
    values = _values(rows[-length:], key)
    return len(values) == length and all(map(holds, values))


def _bad_numbers(row: Row) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)}


def _is_non_finite(rows: Sequence[Row]) -> bool:
    return bool(_bad_numbers(rows[-1]))


def _describe_non_finite(rows: Sequence[Row], config: TrainConfig) -> str:
    seen = ", ".join(f"{key} is {value}" for key, value in _bad_numbers(rows[-1]).items())
    return f"{seen}. {not_finite(config)}"


def not_finite(config: TrainConfig) -> str:
    """What usually makes a loss or a gradient infinite or not a number."""
    return (
        f"Usual causes: a learning rate that is too high (--lr {config.lr:g}); the policy far from its start, so that a ratio or the KL "
        "overflows; a checkpoint or an image with broken numbers"
    )


def _is_kl_spike(rows: Sequence[Row]) -> bool:
    now, before = _values(rows[-1:], "kl"), _values(rows[-KL_WINDOW - 1 : -1], "kl")
    if not now:
        return False
    sudden = len(before) >= KL_LEAST and now[0] > KL_FACTOR * median(before) and now[0] > KL_FLOOR
    return sudden or now[0] > KL_LIMIT


def _describe_kl_spike(rows: Sequence[Row], config: TrainConfig) -> str:
    before = _values(rows[-KL_WINDOW - 1 : -1], "kl")
    usual = f", after a median of {median(before):.3g} in the {len(before)} steps before" if before else ""
    return (
        f"KL to the start is {rows[-1]['kl']:.3g} nats a token{usual}. Usual causes: a learning rate that is too high (--lr "
        f"{config.lr:g}), a few tokens that the start held nearly impossible, or a KL weight that was near 0 for too long (--beta-max, "
        "--kl-schedule)"
    )


def _difference(rows: Sequence[Row], key: str, length: int) -> tuple[float, float]:
    """Mean of the last `length` rows less that of as many before, and its standard error; (0, inf) where a value is absent."""
    late, early = _values(rows[-length:], key), _values(rows[-2 * length : -length], key)
    if len(late) < length or len(early) < length:
        return 0.0, math.inf
    return fmean(late) - fmean(early), math.sqrt((variance(late) + variance(early)) / length)


def _hacking_window(rows: Sequence[Row]) -> int | None:
    for length in HACKING_WINDOWS:
        (rise, rise_error), (change, change_error) = (_difference(rows, key, length) for key in ("format", "accuracy"))
        if rise > max(HACKING_CHANGE, HACKING_ERRORS * rise_error) and -change > max(HACKING_CHANGE, HACKING_ERRORS * change_error):
            return length
    return None


def _is_reward_hacking(rows: Sequence[Row]) -> bool:
    return _hacking_window(rows) is not None


def _describe_reward_hacking(rows: Sequence[Row], config: TrainConfig) -> str:
    length = _hacking_window(rows)
    assert length is not None
    (rise, _), (change, _) = (_difference(rows, key, length) for key in ("format", "accuracy"))
    late = {key: fmean(_values(rows[-length:], key)) for key in ("format", "accuracy")}
    weight = f" (--format-weight {config.format_weight:g})" if isinstance(config, GRPOConfig) else ""
    return (
        f"format rises while accuracy falls: over the last {length} steps format is {late['format']:.1%} ({100 * rise:+.1f} points against "
        f"the {length} before) and accuracy {late['accuracy']:.1%} ({100 * change:+.1f}). The policy earns the reward of the form without "
        f"solving the task. Usual causes: a format weight that is too high{weight}, or a learning rate that is too high (--lr "
        f"{config.lr:g})"
    )


def _is_no_reward(rows: Sequence[Row]) -> bool:
    return _throughout(rows, "accuracy", NO_REWARD_ROWS, lambda value: value == 0)


def _describe_no_reward(rows: Sequence[Row], config: TrainConfig) -> str:
    written = _values(rows[-NO_REWARD_ROWS:], "format")
    form = f" ({fmean(written):.0%} of them are in the asked form)" if written else ""
    return (
        f"not one completion was correct in the last {NO_REWARD_ROWS} steps{form}, so there is nothing to learn the task from. Usual "
        "causes: a model that cannot do the task at all yet (begin with sft, or with an easier task or --level), golds in another form "
        "than the answers, images that do not belong to the questions, or completions that end too early (--max-new-tokens "
        f"{config.max_new_tokens})"
    )


def _is_no_spread(rows: Sequence[Row]) -> bool:
    return _throughout(rows, "zero_spread_share", NO_SPREAD_ROWS, lambda value: value >= 1)


def _describe_no_spread(rows: Sequence[Row], config: TrainConfig) -> str:
    earned = fmean(_values(rows[-NO_SPREAD_ROWS:], "reward") or [math.nan])
    group = f", more completions a prompt (--num-generations {config.num_generations})" if isinstance(config, GRPOConfig) else ""
    return (
        f"in the last {NO_SPREAD_ROWS} steps all completions of each prompt earned the same (mean reward {earned:.3g}), so every "
        "advantage, and the gradient but for the KL term, is 0. Usual causes: a task too hard or too easy for the model, or a policy that "
        f"has collapsed to one answer. What helps: items of other difficulty{group}, a higher --temperature"
    )


def _is_cut_off(rows: Sequence[Row]) -> bool:
    return _throughout(rows, "cut_off_share", CUT_OFF_ROWS, lambda value: value >= CUT_OFF_SHARE)


def _describe_cut_off(rows: Sequence[Row], config: TrainConfig) -> str:
    del rows
    what = "target texts" if config.method == "sft" else "completions"
    return (
        f"practically all {what} of the last {CUT_OFF_ROWS} steps were cut off at {config.max_new_tokens} tokens, before their answer. "
        "Usual causes: --max-new-tokens too small for the task, a model that never writes its end token, or a policy that has learned to "
        "ramble"
    )


_ALARMS: dict[Kind, tuple[Callable[[Sequence[Row]], bool], Callable[[Sequence[Row], TrainConfig], str]]] = {
    "non_finite": (_is_non_finite, _describe_non_finite),
    "kl_spike": (_is_kl_spike, _describe_kl_spike),
    "reward_hacking": (_is_reward_hacking, _describe_reward_hacking),
    "no_reward": (_is_no_reward, _describe_no_reward),
    "no_spread": (_is_no_spread, _describe_no_spread),
    "cut_off": (_is_cut_off, _describe_cut_off),
}
