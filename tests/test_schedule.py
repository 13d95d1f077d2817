"""The KL weight: hand-worked values of every schedule, its bounds, and what is refused."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mr1_bench.errors import UserError
from mr1_bench.trainers.schedule import SCHEDULES, KLWeight, adapt, beta_at, explore

TIMED = ["linear", "exponential", "cosine"]


def test_linear_by_hand():
    weight = KLWeight("linear", 0.0, 0.04, 5)
    assert [beta_at(weight, step) for step in range(7)] == pytest.approx([0, 0.01, 0.02, 0.03, 0.04, 0.04, 0.04])


def test_cosine_by_hand():
    weight = KLWeight("cosine", 0.01, 0.05, 5)
    half = 1 / math.sqrt(2)
    assert [beta_at(weight, s) for s in range(5)] == pytest.approx([0.01, 0.03 - 0.02 * half, 0.03, 0.03 + 0.02 * half, 0.05])


def test_exponential_by_hand():
    weight = KLWeight("exponential", 0.0, 1.0, 3)
    middle = (math.exp(-2.5) - math.exp(-5)) / (1 - math.exp(-5))
    assert [beta_at(weight, s) for s in range(3)] == pytest.approx([0, 1 - middle, 1])


def test_constant_is_beta_max_at_every_step():
    weight = KLWeight("constant", 0.0, 0.04, 10)
    assert {beta_at(weight, step) for step in range(20)} == {0.04}


@pytest.mark.parametrize("schedule", TIMED)
@given(low=st.floats(0, 1), width=st.floats(0, 1), steps=st.integers(1, 50))
def test_beta_rises_from_min_to_max(schedule, low, width, steps):
    weight = KLWeight(schedule, low, low + width, steps)
    values = [beta_at(weight, step) for step in range(steps + 2)]
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(values))
    assert values[steps - 1] == pytest.approx(low + width)
    if steps > 1:
        assert values[0] == pytest.approx(low) and explore(weight, 0) == 1


def test_adaptive_follows_the_observed_kl_and_keeps_its_bounds():
    weight = KLWeight("adaptive", 0.01, 0.04, 100, target=0.1)
    assert beta_at(weight, 0) == 0.01
    assert beta_at(weight, 7, adapted=0.02) == 0.02
    assert adapt(weight, 0.02, 0.11) == pytest.approx(0.02 * 1.01)  # 10 % above the target: gain 0.1
    assert adapt(weight, 0.02, 5.0) == pytest.approx(0.02 * 1.02)  # the error is limited to 20 %
    assert adapt(weight, 0.02, 0.0) == pytest.approx(0.02 * 0.98)
    assert adapt(weight, 0.04, 5.0) == 0.04
    assert adapt(weight, 0.01, 0.0) == 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("linear", 0.1, 0.04, 5), "0 <= beta_min <= beta_max"),
        (("linear", -0.1, 0.04, 5), "0 <= beta_min"),
        (("linear", 0.0, math.nan, 5), "beta_max"),
        (("cosine", 0.0, math.inf, 5), "beta_max"),
        (("constant", 0.01, 0.04, 5), "constant"),
        (("adaptive", 0.0, 0.04, 5, 0.1), "beta_min > 0"),
        (("adaptive", 0.01, 0.04, 5, 0.0), "target"),
        (("linear", 0.0, 0.04, 0), "steps"),
        (("square", 0.0, 0.04, 5), "linear"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        KLWeight(*arguments)


def test_there_are_five_schedules():
    assert SCHEDULES == ("constant", "linear", "exponential", "cosine", "adaptive")
