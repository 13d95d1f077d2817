"""Solutions that stop a step early."""

import pytest

from mr1_bench.synth import hasty, make_item


@pytest.mark.parametrize(
    ("solution", "shorter", "answer"),
    [
        ("I see gray 1, green, red. The answer is 1.", "I see gray 1. The answer is 1.", "1"),
        ("I see red 1, red 2. The answer is 2.", "I see red 1. The answer is 1.", "1"),
        ("I see gray, green 1, green 2. The answer is 2.", "I see gray, green 1. The answer is 1.", "1"),
        ("112 + 32 = 144, 180 - 144 = 36°.", "112 + 32 = 144°.", "144°"),
        ("90 - 32 = 58, 58 + 54 = 112°.", "90 - 32 = 58°.", "58°"),
    ],
)
def test_the_last_step_is_left_out(solution, shorter, answer):
    assert hasty.stop_early(solution) == (shorter, answer)


@pytest.mark.parametrize(
    "solution",
    [
        "I see yellow 1. The answer is 1.",
        "I see gray, green 1. The answer is 1.",
        "I see gray. None of them fit. The answer is 0.",
        "64 + 62 = 126°.",
        "AB = 5, so the area is 10.",
        "",
    ],
)
def test_what_has_one_step_stays(solution):
    assert hasty.stop_early(solution) is None


def test_the_families_are_those_of_level_1_with_more_than_one_step():
    shortened = {
        item.family
        for task in ("vc", "gr")
        for item in (make_item(task, "train", 1, n) for n in range(60))
        if hasty.stop_early(item.solution)
    }
    assert shortened == set(hasty.FAMILIES)


def test_the_share_is_of_items_and_the_same_every_time():
    names = [f"vc_synth-l1-train-{n:06d}" for n in range(4000)]
    chosen = [hasty.is_hasty(name, "count_color", {"count_color": 0.65}) for name in names]
    assert sum(chosen) / len(names) == pytest.approx(0.65, abs=0.03)
    assert chosen == [hasty.is_hasty(name, "count_color", {"count_color": 0.65}) for name in names]
    assert not any(hasty.is_hasty(name, "count_all", {"count_color": 0.65}) for name in names)
    assert all(hasty.is_hasty(name, "count_color", {"count_color": 1.0}) for name in names)


@pytest.mark.parametrize("text", ["count_color", "count_color=", "count_color=x", "count_color=1.5", "=0.5,b=-1", "a=nan"])
def test_shares_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match="expected family=share"):
        hasty.parse_shares(text)
