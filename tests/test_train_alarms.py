"""Alarms: each condition by rows made by hand, silence on ordinary noise, one alarm an episode, the same after a resume."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mr1_bench.trainers.alarms import Alarm, check
from mr1_bench.trainers.config import GRPOConfig, SFTConfig

CONFIG = GRPOConfig(
    method="grpo-d", task="vc", model="m", out=Path("out"), max_new_tokens=77, format_weight=0.5, num_generations=6, lr=3e-6
)


def rows_of(length: int, **columns: Any) -> list[dict[str, Any]]:
    """Ordinary rows, with some columns given as lists or constants."""
    usual = {"reward": 0.9, "accuracy": 0.4, "format": 0.5, "kl": 0.01, "loss": 0.1, "grad_norm": 1.0, "entropy": 0.5}
    usual |= {"zero_spread_share": 0.25, "cut_off_share": 0.1}
    return [
        {"step": index + 1} | {key: value[index] if isinstance(value, list) else value for key, value in (usual | columns).items()}
        for index in range(length)
    ]


def fired(rows: list[dict[str, Any]], config: Any = CONFIG) -> list[Alarm]:
    """All alarms of a run, as its loop would see them."""
    return [alarm for count in range(1, len(rows) + 1) for alarm in check(rows[:count], config)]


def at(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(alarm.kind, alarm.step) for alarm in fired(rows)]


def test_nothing_to_say() -> None:
    assert check([], CONFIG) == []
    assert fired(rows_of(60)) == []


@pytest.mark.parametrize(("key", "value"), [("loss", math.nan), ("grad_norm", math.inf), ("kl", -math.inf)])
def test_a_number_that_is_none(key: str, value: float) -> None:
    rows = rows_of(5, **{key: [0.1, 0.1, value, value, 0.1]})
    assert at(rows) == [("non_finite", 3)]
    [alarm] = check(rows[:3], CONFIG)
    assert alarm.message.startswith(f"step 3: {key} is {value}.") and "--lr 3e-06" in alarm.message


def test_a_spike_of_kl() -> None:
    rows = rows_of(10, kl=[0.01, 0.03, 0.02, 0.02, 0.02, 0.02, 0.25, 0.3, 0.02, 0.02])
    assert at(rows) == [("kl_spike", 7)]
    [alarm] = check(rows[:7], CONFIG)
    assert alarm.message.startswith("step 7: KL to the start is 0.25 nats a token, after a median of 0.02 in the 6 steps before.")


def test_no_spike() -> None:
    assert at(rows_of(10, kl=[0.001] * 9 + [0.09])) == []  # 90 times, but tiny
    assert at(rows_of(10, kl=[0.2] * 9 + [1.9])) == []  # large, but not ten times
    assert at(rows_of(10, kl=[None] * 6 + [0.01] * 4)) == []  # the reference pass was skipped while the weight was 0
    assert at(rows_of(5, kl=[0.01, 0.01, 0.01, 0.01, 0.5])) == []  # four rows set no standard


def test_kl_that_explodes_slowly() -> None:
    rows = rows_of(50, kl=[0.1 * 1.1**index for index in range(50)])
    assert at(rows) == [("kl_spike", 43)]  # 0.1 * 1.1^42 = 5.5; never ten times its median
    assert at(rows_of(1, kl=6.0)) == [("kl_spike", 1)]


def noisy(values: list[float], spread: float, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [min(max(value + draw.gauss(0, spread), 0), 1) for value in values]


def test_reward_hacking() -> None:
    form = noisy([0.3] * 30 + [0.9] * 30, 0.05, 1)
    right = noisy([0.5] * 30 + [0.1] * 30, 0.05, 2)
    kinds = at(rows_of(60, format=form, accuracy=right))
    assert [kind for kind, _ in kinds] == ["reward_hacking"] and 40 <= kinds[0][1] <= 50
    [alarm] = fired(rows_of(60, format=form, accuracy=right))
    assert "format rises while accuracy falls: over the last 20 steps" in alarm.message and "--format-weight 0.5" in alarm.message


def test_reward_hacking_in_numbers() -> None:
    rows = rows_of(40, format=[0.2] * 20 + [0.8] * 20, accuracy=[0.5] * 20 + [0.25] * 20)
    [alarm] = check(rows, CONFIG)
    assert "format is 80.0% (+60.0 points against the 20 before) and accuracy 25.0% (-25.0)" in alarm.message


def test_a_slide_is_seen_over_a_longer_time() -> None:
    form = noisy([0.4 + 0.001 * index for index in range(300)], 0.06, 3)
    right = noisy([0.6 - 0.001 * index for index in range(300)], 0.12, 4)
    kinds = at(rows_of(300, format=form, accuracy=right))
    assert kinds and kinds[0][0] == "reward_hacking"


@pytest.mark.parametrize(
    ("form", "right"),
    [
        ([0.3] * 30 + [0.9] * 30, [0.3] * 30 + [0.6] * 30),  # both rise: learning
        ([0.9] * 30 + [0.3] * 30, [0.5] * 30 + [0.1] * 30),  # both fall
        ([0.9] * 60, [0.5] * 30 + [0.1] * 30),  # only accuracy falls
        ([0.3] * 30 + [0.9] * 30, [0.5] * 30 + [0.46] * 30),  # too small a fall to matter
    ],
)
def test_what_is_no_hacking(form: list[float], right: list[float]) -> None:
    assert at(rows_of(60, format=noisy(form, 0.01, 5), accuracy=noisy(right, 0.01, 6))) == []


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_noise_raises_no_alarm(seed: int) -> None:
    rows = rows_of(
        300,
        format=noisy([0.6] * 300, 0.15, seed),
        accuracy=noisy([0.4] * 300, 0.17, seed + 1),
        kl=[0.02 * math.exp(random.Random(seed + index).gauss(0, 0.4)) for index in range(300)],
    )
    assert at(rows) == []


def test_no_correct_answer() -> None:
    rows = rows_of(30, accuracy=[0.0] * 30, format=0.9)
    assert at(rows) == [("no_reward", 20)]
    assert "not one completion was correct in the last 20 steps (90% of them are in the asked form)" in fired(rows)[0].message
    assert at(rows_of(30, accuracy=([0.0] * 19 + [0.01]) + [0.0] * 10)) == []


def test_groups_without_spread() -> None:
    rows = rows_of(25, zero_spread_share=[1.0] * 9 + [0.9] + [1.0] * 15, reward=1.5)
    assert at(rows) == [("no_spread", 20)]
    [alarm] = fired(rows)
    assert "mean reward 1.5" in alarm.message and "--num-generations 6" in alarm.message


def test_completions_cut_off() -> None:
    rows = rows_of(9, cut_off_share=[1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 0.995, 1.0, 1.0])
    assert at(rows) == [("cut_off", 8)]
    assert "practically all completions of the last 5 steps were cut off at 77 tokens" in fired(rows)[0].message


def test_once_an_episode() -> None:
    flicker = rows_of(30, cut_off_share=[1.0] * 6 + [0.0] + [1.0] * 23)
    assert at(flicker) == [("cut_off", 5)]
    twice = rows_of(40, cut_off_share=[1.0] * 6 + [0.0] * 20 + [1.0] * 14)
    assert at(twice) == [("cut_off", 5), ("cut_off", 31)]


def test_supervised_rows() -> None:
    config = SFTConfig(method="sft", task="vc", model="m", out=Path("out"))
    columns = dict.fromkeys(("reward", "accuracy", "format", "kl", "zero_spread_share"))
    rows = rows_of(30, **columns, cut_off_share=1.0)
    assert [(alarm.kind, alarm.step) for alarm in fired(rows, config)] == [("cut_off", 5)]
    assert "practically all target texts" in fired(rows, config)[0].message


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_last_210_rows_decide(seed: int) -> None:
    # So a resumed run, and one whose early rows are gone, raise the same alarms.
    draw = random.Random(seed)
    rows = rows_of(
        260,
        accuracy=[0.0 if index // 40 % 2 else draw.random() for index in range(260)],
        cut_off_share=[float(draw.random() < 0.8) for _ in range(260)],
        kl=[math.exp(draw.gauss(-3, 1.5)) for _ in range(260)],
        format=noisy([0.2 + 0.6 * (index // 60 % 2) for index in range(260)], 0.05, seed),
    )
    assert all(check(rows[:count], CONFIG) == check(rows[:count][-210:], CONFIG) for count in range(230, 261))
