"""Captions and lines of the figures against hand-worked values: what is said is what was measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mr1_bench.reports import figures, figures_results, figures_training
from mr1_bench.reports.analysis import Curve, MatrixCell, SweepPoint
from mr1_bench.reports.figure_text import Point, bars, extremes, leader, winner
from mr1_bench.reports.measures import Difference, Measured, SeedValue
from mr1_bench.reports.study import METHOD_NAMES, Study
from mr1_bench.trainers.schedule import KLWeight, beta_at
from tests.studies import make_study
from tests.test_figures import paint

VC, GR = "mr1_vc_synth", "mr1_gr_synth"


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(n=40)


def curve(quantity: Any, method: str, seeds: list[list[float]], task: str = GR, steps: list[int] | None = None, half: float = 0.1) -> Curve:
    means = [sum(column) / len(column) for column in zip(*seeds, strict=True)]
    several = len(seeds) > 1
    return Curve(
        quantity=quantity,
        method=method,
        task=task,
        arm="main",
        label=METHOD_NAMES[method],
        runs=tuple(f"{method}-{seed}" for seed in range(len(seeds))),
        steps=tuple(steps or range(1, len(means) + 1)),
        mean=tuple(means),
        low=tuple(mean - half for mean in means) if several else (),
        high=tuple(mean + half for mean in means) if several else (),
        least=tuple(map(min, zip(*seeds, strict=True))) if several else (),
        most=tuple(map(max, zip(*seeds, strict=True))) if several else (),
        seeds=tuple(map(tuple, seeds)),
        items=100,
    )


def measured(*shares: float, half: float = 0.05, metric: str = "acc") -> Measured:
    seeds = tuple(
        SeedValue(f"run{seed}", seed, share, round(100 * share), 100, share - half, share + half) for seed, share in enumerate(shares)
    )
    mean = sum(shares) / len(shares)
    return Measured(metric, mean, mean - half, mean + half, "seeds" if len(shares) > 1 else "items", None, seeds)


def cell(method: str, train: str, test: str, acc: Measured | None, r1v: Measured | None = None, gain: float | None = None) -> MatrixCell:
    relation = "base" if not train else "same-task" if train == test else "cross-task"
    return MatrixCell(method, train, test, relation, acc, r1v, None if gain is None else Difference(gain, gain - 0.1, gain + 0.1, "test"))


def swept(sweep: Any, x: float, share: float, seeds: int = 1) -> SweepPoint:
    return SweepPoint(sweep, GR, "grpo", x, f"{x:g}", ("run0",), measured(*[share] * seeds), None, measured(0.9))


def test_figure_1_shows_and_says_the_measured_values() -> None:
    sft = curve("test_accuracy", "sft", [[0.40, 0.50], [0.40, 0.60], [0.40, 0.70]], steps=[0, 50], half=0.05)
    grpo_d = curve("test_accuracy", "grpo-d", [[0.40, 0.68], [0.40, 0.70], [0.40, 0.72]], steps=[0, 50], half=0.04)
    drawing = figures_training.accuracy([grpo_d, sft])
    assert drawing is not None
    assert drawing.caption == (
        "Geometry (synthetic), at the last step: GRPO-D is highest (70.0 %), 10.0 points above SFT (intervals do not overlap). "
        "Each value: greedy answers to 100 test items. Bands: 95 % t intervals over 3 training seeds."
    )
    assert "SFT from 40.0 % to 60.0 % and GRPO-D from 40.0 % to 70.0 %" in drawing.alt
    (axes,) = paint(drawing).axes
    lines = {line.get_label(): ([*line.get_xdata()], [*line.get_ydata()]) for line in axes.lines}
    assert lines["SFT"] == ([0, 50], pytest.approx([40, 60]))
    assert lines["GRPO-D"] == ([0, 50], pytest.approx([40, 70]))
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((35, 65))


def test_with_under_three_seeds_a_caption_names_no_winner() -> None:
    two = [curve("test_accuracy", "sft", [[0.4, 0.5], [0.4, 0.7]]), curve("test_accuracy", "grpo", [[0.4, 0.5]])]
    drawing = figures_training.accuracy(two)
    assert drawing is not None
    assert "at the last step: SFT 60.0 % and GRPO 50.0 %. " in drawing.caption
    assert "highest" not in drawing.caption
    assert drawing.caption.endswith("Bands: smallest to largest of 2 training seeds; none where there is one value or all seeds agree.")
    (axes,) = paint(drawing).axes
    (band,) = axes.collections
    assert (band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()) == pytest.approx((40, 70))


def test_leader_and_extremes() -> None:
    a, b = Point("A", 0.6, 0.55, 0.65, "t", 3), Point("B", 0.5, 0.45, 0.56, "t", 3)
    assert leader([b, a]) == "B 50.0 % and A 60.0 %", "intervals overlap"
    assert extremes([b, a], "β") == "between 50.0 % and 60.0 %"
    low = dataclasses.replace(b, high=0.54)
    assert leader([low, a]) == "A is highest (60.0 %), 10.0 points above B (intervals do not overlap)"
    assert extremes([low, a], "β") == "between 50.0 % and 60.0 %, highest at β = A, whose interval overlaps no other"
    for few in ({"bar": "items", "seeds": 1}, {"bar": "range", "seeds": 2}, {"bar": "none", "low": None, "high": None}):
        assert leader([low, dataclasses.replace(a, **few)]) == "B 50.0 % and A 60.0 %"
        assert leader([dataclasses.replace(low, **few), a]) == "B 50.0 % and A 60.0 %"
    wide = Point("C", 0.4, 0.2, 0.6, "t", 3)
    assert winner([wide, low, a]) is None, "the widest interval counts, not the second mean"
    assert leader([a]) == "A reaches 60.0 %"
    assert extremes([a, a], "β") == "every β gives 60.0 %"
    assert bars([Point("A", 0.5)]) == "One training seed and no interval."
    with pytest.raises(ValueError, match="nothing to name"):
        leader([])


def test_figure_6_has_beta_zero_and_tells_the_shape_where_seeds_do() -> None:
    cells = [cell("base", "", GR, measured(0.5))]
    shares = ((0.16, 0.45), (0.0, 0.55), (0.04, 0.7))
    drawing = figures_results.kl_weight([swept("beta", beta, share, seeds=3) for beta, share in shares], cells)
    assert drawing is not None
    assert "between 45.0 % and 70.0 %, highest at β = 0.04, whose interval overlaps no other." in drawing.caption
    assert "As in the paper's figure 6 the means rise, then fall. 2 of 3 are above the base (50.0 %)." in drawing.caption
    (axes,) = paint(drawing).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0\n(clip only)", "0.04", "0.16"]
    assert [*next(line for line in axes.lines if line.get_label() == "GRPO").get_ydata()] == pytest.approx([55, 70, 45])
    falling = ((0.0, 0.6), (0.04, 0.45), (0.16, 0.3))
    told = figures_results.kl_weight([swept("beta", beta, share, seeds=3) for beta, share in falling], [])
    assert told is not None and "these means do not." in told.caption and "base" not in told.caption
    single = figures_results.kl_weight([swept("beta", beta, share) for beta, share in shares], [])
    assert single is not None and "between 45.0 % and 70.0 %." in single.caption
    assert not any(word in single.caption for word in ("highest", "figure 6"))


def test_figure_4_shows_accuracy_and_format_apart() -> None:
    drawing = figures_results.format_weight([swept("format", 0.0, 0.3), swept("format", 1.0, 0.5)], [])
    assert drawing is not None and "accuracy: between 30.0 % and 50.0 %." in drawing.caption
    left, right = paint(drawing).axes
    assert [[*axes.lines[-1].get_ydata()] for axes in (left, right)] == [pytest.approx([30, 50]), pytest.approx([90, 90])]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_axis_of_a_weight_begins_at_zero_also_around_one_point(weight: float) -> None:
    drawing = figures_results.format_weight([swept("format", weight, 0.3)], [])
    assert drawing is not None
    for axes in paint(drawing).axes:
        low, high = axes.get_xlim()
        assert -0.06 * max(weight, 1.0) < low <= 0 <= weight < high
        assert min(tick for tick in axes.get_xticks() if low <= tick <= high) == 0


def test_beta_that_is_always_zero_has_no_negative_axis() -> None:
    drawing = figures_training.beta_and_kl([curve("beta", "grpo", [[0.0] * 5])])
    assert drawing is not None
    low, high = paint(drawing).axes[0].get_ylim()
    assert -0.05 < low <= 0 < high


def test_figure_7_shows_acc_alone() -> None:
    base = cell("base", "", GR, measured(0.5))
    ours, foreign = cell("sft", VC, GR, measured(0.4, 0.5, 0.6)), cell("grpo", VC, GR, None, measured(0.9, metric="acc_r1v"))
    drawing = figures_results.cross_task([base, ours, foreign])
    assert drawing is not None and "GRPO" not in drawing.caption and "SFT reaches 50.0 %; the base 50.0 %." in drawing.caption
    assert figures_results.cross_task([foreign]) is None
    (axes,) = paint(drawing).axes
    assert sorted(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "s") == [1, 3]


def test_the_heat_map_says_gains_and_losses() -> None:
    cells = [cell("base", "", test, measured(0.5)) for test in (VC, GR)]
    cells += [cell("sft", VC, VC, measured(0.7), gain=0.2), cell("sft", VC, GR, measured(0.4), gain=-0.1)]
    drawing = figures_results.heat_map(cells)
    assert drawing is not None
    assert drawing.caption.startswith("Differences to the base: −10.0 to +20.0 points. ")
    assert "1 of 1 cross-task cells lie below the base." in drawing.caption and "one checkpoint each" in drawing.caption
    (axes,) = paint(drawing).axes
    assert {"50.0", "70.0\n+20.0", "40.0\n−10.0"} <= {text.get_text() for text in axes.texts}
    assert sum(not patch.get_fill() for patch in axes.patches) == 1


def test_rewards_are_smoothed_in_the_open() -> None:
    noisy = [0.5 + (-1) ** step * 0.1 for step in range(100)]
    found = [curve("accuracy_reward", "grpo", [noisy]), curve("format_reward", "grpo", [[1.0] * 100])]
    drawing = figures_training.rewards(found)
    assert drawing is not None and "Lines: running mean over 5 steps, the raw mean faint behind." in drawing.caption
    raw, smooth = (line.get_ydata() for line in paint(drawing).axes[0].lines[:2])
    assert [*raw] == pytest.approx([100 * value for value in noisy])
    assert max(abs(value - 50) for value in smooth[2:-2]) == pytest.approx(2)
    short = figures_training.rewards([curve("accuracy_reward", "grpo", [[0.1, 0.2]])])
    assert short is not None and "running mean" not in short.caption


def test_running_mean() -> None:
    assert figures_training.running_mean([0, 3, 6, 9], 3) == [1.5, 3, 6, 7.5]
    assert figures_training.running_mean([4, 8], 1) == [4, 8]
    assert figures_training.running_mean([], 3) == []
    assert [figures_training.window_of(steps) for steps in (1, 39, 40, 100, 400)] == [1, 1, 3, 5, 21]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.integers(0, 6))
def test_running_mean_stays_between_the_values_and_is_centred(values: list[float], half: int) -> None:
    smooth = figures_training.running_mean(values, 2 * half + 1)
    assert len(smooth) == len(values)
    for index, value in enumerate(smooth):
        window = values[max(0, index - half) : index + half + 1]
        assert value == pytest.approx(sum(window) / len(window), abs=1e-9)


def test_kl_spikes_are_cut_off_and_named() -> None:
    spiky = [0.01] * 50 + [9.0] + [0.01] * 149
    kl, beta = curve("kl", "grpo", [spiky]), curve("beta", "grpo", [[0.04] * 200])
    drawing = figures_training.beta_and_kl([kl, beta])
    assert drawing is not None
    assert "Single steps reach 9 and are cut off." in drawing.caption and "GRPO 0.04 throughout" in drawing.caption
    assert "no reference" not in drawing.caption
    assert paint(drawing).axes[1].get_ylim()[1] < 2


def test_schedules_draw_beta_by_its_formula_and_adaptive_as_recorded(study: Study) -> None:
    canvas = paint(next(drawing for drawing in figures.drawings(study) if drawing.name == "kl-schedules"))
    rows = [canvas.axes[start : start + 3] for start in range(0, len(canvas.axes), 3)]
    by_label = {row[0].get_ylabel(): row for row in rows}
    assert list(by_label) == [
        "clipping only\n(β = 0)",
        *("constant\nβ = 0.04", "linear\nβ 0 to 0.04", "exponential\nβ 0 to 0.04", "cosine\nβ 0 to 0.04", "adaptive\nβ 0.01 to 0.04"),
    ]
    for kind in ("linear", "exponential", "cosine"):
        line = by_label[f"{kind}\nβ 0 to 0.04"][0].lines[0]
        weight = KLWeight(kind, 0.0, 0.04, 50)  # type: ignore[arg-type]
        assert [*line.get_ydata()] == pytest.approx([beta_at(weight, step) for step in range(50)])
        assert [*line.get_xdata()] == list(range(1, 51))
    (adaptive,) = [run for run in study.runs if run.config.get("kl_schedule") == "adaptive"]
    assert [*by_label["adaptive\nβ 0.01 to 0.04"][0].lines[0].get_ydata()] == pytest.approx([row["beta"] for row in adaptive.metrics])
    assert [text.get_text() for text in by_label["clipping only\n(β = 0)"][1].texts] == ["not computed"]


def test_confusion_counts_answers_and_names_the_commonest_mistake(study: Study) -> None:
    drawing = next(drawing for drawing in figures.drawings(study) if drawing.name == "confusion-counting")
    base = paint(drawing).axes[0]
    assert base.get_title(loc="left") == "Base" and study.base is not None
    answers = study.base.results[VC].answers
    assert sum(int(text.get_text()) for text in base.texts) == len(answers)
    wrong = sum(answer.value != answer.gold for answer in answers)
    assert f"Base is wrong on {wrong} of {len(answers)}, most often it" in drawing.caption
    assert "SFT seed 0, GRPO seed 0 and GRPO-D seed 0" in drawing.caption
