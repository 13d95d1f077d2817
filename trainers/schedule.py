"""The D of GRPO-D: the weight β of the KL term as a pure function of the schedule, the step and, if adaptive, the observed KL.

As in an ε-greedy strategy of Q-learning, ε(s) falls from 1 to 0 during training, and β(s) = β_max − (β_max − β_min)·ε(s): a loose leash
early, a tight one late. The paper (arXiv 2503.16081) describes this in words and publishes no formula or bounds: the three forms of ε are
our declared assumption. `constant` is plain GRPO. It must not know models or tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mr1_bench.errors import UserError

Schedule = Literal["constant", "linear", "exponential", "cosine", "adaptive"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

_DECAY = 5.0  # exponential: ε has fallen to about e^-5 of its start before it is shifted to end at exactly 0
_GAIN, _ERROR_LIMIT = 0.1, 0.2  # adaptive: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2


@dataclass(frozen=True, slots=True)
class KLWeight:
    """A schedule of β.

    Attributes:
        schedule: its form.
        beta_min, beta_max: the bounds of β; `constant` uses `beta_max`, and `beta_min` must equal it or be 0.
        steps: optimisation steps over which ε falls from 1 to 0; later β stays at `beta_max`.
        target: KL (nats a token) that `adaptive` steers to.
    """

    schedule: Schedule
    beta_min: float
    beta_max: float
    steps: int
    target: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning.

        Raises:
            UserError: bounds that are negative, not finite or in the wrong order; or that the schedule cannot use.
        """
        if self.schedule not in SCHEDULES:
            raise UserError(f"kl_schedule {self.schedule!r} is none of {', '.join(SCHEDULES)}")
        low, high = self.beta_min, self.beta_max
        if not (math.isfinite(low) and math.isfinite(high) and 0 <= low <= high):
            raise UserError(f"beta_min {low} and beta_max {high}: expected 0 <= beta_min <= beta_max; set --beta-min and --beta-max")
        if self.schedule == "constant" and low not in (0, high):
            raise UserError(f"a constant KL weight is beta_max = {high}; leave out --beta-min {low}, or choose another --kl-schedule")
        if self.schedule == "adaptive" and not (low > 0 and self.target > 0):
            raise UserError(
                f"an adaptive KL weight is multiplied, so it needs beta_min > 0 (got {low}) and a target KL > 0 (got {self.target}); "
                "set --beta-min and --kl-target"
            )
        if self.steps < 1:
            raise UserError(f"a schedule over {self.steps} steps: expected at least 1")


def explore(weight: KLWeight, step: int) -> float:
    """ε at an optimisation step (from 0): 1 at the first, 0 at step `weight.steps - 1` and after; 0 throughout for `constant`."""
    if weight.schedule == "constant":
        return 0.0
    done = min(step / (weight.steps - 1), 1.0) if weight.steps > 1 else 1.0
    if weight.schedule == "linear":
        return 1 - done
    if weight.schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if weight.schedule == "exponential":
        return (math.exp(-_DECAY * done) - math.exp(-_DECAY)) / (1 - math.exp(-_DECAY))
    raise ValueError("an adaptive schedule has no ε: it follows the observed KL")


def beta_at(weight: KLWeight, step: int, adapted: float | None = None) -> float:
    """β at an optimisation step.

    Args:
        weight: the schedule.
        step: from 0.
        adapted: what `adapt` gave after the step before; `adaptive` starts at `beta_min` without it, the other schedules ignore it.
    """
    if weight.schedule == "adaptive":
        return weight.beta_min if adapted is None else adapted
    return weight.beta_max - (weight.beta_max - weight.beta_min) * explore(weight, step)


def adapt(weight: KLWeight, beta: float, observed: float) -> float:
    """The next β of an adaptive schedule: a proportional controller on log β, within the bounds (Ziegler et al. 2019, section 2.2).

    Args:
        weight: the schedule.
        beta: β of this step.
        observed: mean KL to the reference seen at this step, in nats a token.
    """
    error = max(-_ERROR_LIMIT, min(_ERROR_LIMIT, observed / weight.target - 1))
    return max(weight.beta_min, min(weight.beta_max, beta * (1 + _GAIN * error)))
