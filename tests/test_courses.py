"""Sweeps, curves and breakdowns of a study: hand-made runs of few items, and a realistic study for what belongs together."""

from dataclasses import replace
from pathlib import Path

import pytest

from mr1_bench.records import RecordError
from mr1_bench.reports import analysis, curves
from mr1_bench.reports.study import Answer, Result
from mr1_bench.specs import get_spec
from tests.studies import make_study
from tests.test_analysis import GR, VC, run, study


@pytest.fixture(scope="module")
def full():
    return make_study(n=60)


# Sweeps and curves


def test_the_main_arm_is_a_point_of_every_sweep(full):
    beta = analysis.sweep(full, "beta")
    assert [point.x for point in beta] == [0.0, 0.01, 0.04, 0.16, 0.64]
    assert beta[2].runs == ("grpo-gr-synth-s0",), "of the sweep's seeds only"
    assert all(point.acc.interval == "items" and point.format is not None for point in beta)
    assert [point.x for point in analysis.sweep(full, "format")] == [0.0, 0.25, 0.5, 0.75, 1.0]
    labels = [point.label for point in analysis.sweep(full, "schedule")]
    assert labels == [
        "clipping only (β = 0)",
        "constant, β = 0.04",
        "linear, β 0 to 0.04",
        "exponential, β 0 to 0.04",
        "cosine, β 0 to 0.04",
        "adaptive, β 0.01 to 0.04",
    ]


def test_a_run_with_other_settings_is_no_point_of_a_sweep():
    main = run("grpo", GR, 0, {GR: (1, 4)}, config={"steps": 99})
    swept = [run("grpo", GR, 0, {GR: (1, 4)}, name=f"b{beta}", arm="beta", config={"beta_max": beta}) for beta in (0.0, 0.1)]
    assert [point.x for point in analysis.sweep(study(main, *swept), "beta")] == [0.0, 0.1]
    assert analysis.sweep(study(main), "beta") == []
    odd = run("grpo", GR, 0, {GR: (1, 4)}, name="odd", arm="beta", config={"beta_max": 0.2, "steps": 11})
    with pytest.raises(RecordError, match="steps 10 and 11"):
        analysis.sweep(study(*swept, odd), "beta")
    twice = replace(swept[1], name="again")
    with pytest.raises(RecordError, match="have seed 0"):
        analysis.sweep(study(*swept, twice), "beta")


@pytest.mark.parametrize("key", ["code_sha256", "prompts_sha256"])
def test_other_code_or_prompts_are_no_point_of_a_sweep_and_are_not_averaged(key):
    def made(beta, seed, code, arm="beta"):
        record = {"identity": {"code_sha256": "a", "prompts_sha256": "a"} | {key: code}}
        return run("grpo", GR, seed, {GR: (1, 4)}, name=f"{arm}{beta}-{seed}", arm=arm, config={"beta_max": beta}, record=record)

    swept = [made(0.0, 0, "a"), made(0.1, 0, "a")]
    assert [point.x for point in analysis.sweep(study(*swept, made(0.04, 0, "a", "main")), "beta")] == [0.0, 0.04, 0.1]
    assert [point.x for point in analysis.sweep(study(*swept, made(0.04, 0, "b", "main")), "beta")] == [0.0, 0.1]
    with pytest.raises(RecordError, match=f"{key} 'a' and 'b'"):
        analysis.sweep(study(*swept, made(0.0, 1, "b")), "beta")
    with pytest.raises(RecordError, match=f"{key} 'a' and 'b'"):
        analysis.table1(study(made(0.04, 0, "a", "main"), made(0.04, 1, "b", "main")))


def test_curves_use_steps_that_all_seeds_have():
    first = run("grpo", VC, 0, metrics=({"step": 1, "kl": 0.1}, {"step": 2, "kl": 0.9}, {"step": 2, "kl": 0.3}, {"step": 3, "kl": 0.5}))
    second = run("grpo", VC, 1, metrics=({"step": 1, "kl": None}, {"step": 2, "kl": 0.5}, {"step": 3, "kl": float("nan")}))
    (curve,) = curves.curves(study(first, second))
    assert (curve.quantity, curve.steps, curve.mean, curve.items) == ("kl", (2,), (pytest.approx(0.4),), None)
    assert (curve.least, curve.most, curve.seeds) == ((0.3,), (0.5,), ((0.3,), (0.5,)))
    (alone,) = curves.curves(study(first))
    assert (alone.steps, alone.mean, alone.low) == ((1, 2, 3), (0.1, 0.3, 0.5), ())


def test_curves_of_a_whole_study(full):
    found = curves.curves(full)
    test = next(curve for curve in found if curve.quantity == "test_accuracy" and curve.method == "sft")
    assert (len(test.runs), test.items, test.arm, test.label) == (3, 100, "main", "SFT")
    assert all(0 <= low <= mean <= high <= 1 for low, mean, high in zip(test.low, test.mean, test.high, strict=True))
    beta = {curve.label: curve for curve in found if curve.quantity == "beta" and curve.arm == "schedule"}
    assert len(beta) == 6
    assert beta["linear, β 0 to 0.04"].mean[-1] == pytest.approx(0.04)
    assert not any(curve.quantity == "accuracy_reward" and curve.method == "sft" for curve in found)


# Breakdowns


def test_confusion_by_hand():
    given = [("1", "1"), ("1", "2"), ("2", "02"), ("2", None), ("3", "17"), ("3", "3.5")]
    answers = tuple(Answer(index, "", gold, "", {"acc": 0.0}, value=value) for index, (gold, value) in enumerate(given))
    one = replace(run("sft", VC, 0), results={VC: Result(VC, Path("r"), answers, {}, {})})
    found = analysis.confusion(study(one), one)
    assert (found.golds, found.answers) == ((1, 2, 3), ("1", "2", "3", "other", "none"))
    assert found.counts == ((1, 1, 0, 0, 0), (0, 1, 0, 0, 1), (0, 0, 0, 2, 0))
    assert found.never == (3,)
    assert analysis.confusion(study(one), one, GR) is None


def test_confusions_count_every_item(full):
    found = analysis.confusions(full)
    assert {one.run for one in found} == {"base"} | {run.name for run in full.runs if run.task == "mr1_vc_synth"}
    for one in found:
        assert sum(map(sum, one.counts)) == 60


def test_difficulty_splits_the_items(full):
    slices = [one for one in analysis.by_difficulty(full) if one.method == "sft" and one.train_task == "mr1_vc_synth"]
    families = [one for one in slices if one.eval_task == "mr1_vc_synth" and one.by == "family"]
    assert {one.value for one in families} >= {"count_all", "count_color"}
    assert sum(one.measured.seeds[0].n for one in families) == 60
    (level,) = [one for one in slices if one.eval_task == "mr1_vc_synth" and one.by == "level"]
    whole = analysis.table1(full).cell("sft", "mr1_vc_synth").acc
    assert (level.value, level.measured) == ("1", whole)
    weighted = sum(one.measured.mean * one.measured.seeds[0].n for one in families) / 60
    assert weighted == pytest.approx(whole.mean)


@pytest.mark.parametrize(
    "gold, form",
    [
        ("65°", "degrees"),
        ("2√{13}", "root"),
        ("\\frac{98π}{5}", "π"),
        ("\\frac{3}{4}", "fraction"),
        ("8", "number"),
        ("120cm^{2}", "number with a unit"),
    ],
)
def test_real_geometry_is_split_by_the_form_of_the_gold(gold, form):
    answers = (Answer(0, "gr-test-000000", gold, "", {"acc": 1.0}),)
    one = replace(run("sft", GR, 0), results={GR: Result(GR, Path("r"), answers, {}, {})})
    assert [(part.by, part.value) for part in analysis.by_difficulty(study(one))] == [("gold", form)]


def test_levels_of_several_tasks(full):
    levels = make_study(n=20, seeds=1, sweeps=False, more_tasks=("mr1_gr_synth_l3",))
    found = {(one.eval_task, one.value) for one in analysis.by_difficulty(levels) if one.by == "level"}
    assert found == {("mr1_vc_synth", "1"), ("mr1_gr_synth", "1"), ("mr1_gr_synth_l3", "3")}
    assert get_spec("mr1_gr_synth_l3").name not in analysis.table1(levels).tasks
