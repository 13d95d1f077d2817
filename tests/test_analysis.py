"""From a study to statements: hand-made runs of few items, worked by hand; and a realistic study for what belongs together."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mr1_bench import stats
from mr1_bench.records import RecordError
from mr1_bench.reports import analysis, curves
from mr1_bench.reports.study import Answer, Result, Run, Study
from mr1_bench.specs import get_spec
from tests.studies import make_study

QWEN = "Qwen/Qwen2-VL-2B-Instruct"
VC, GR = "mr1_vc", "mr1_gr"
CONFIG = {"model": QWEN, "steps": 10, "kl_schedule": "constant", "beta_min": 0.0, "beta_max": 0.04, "format_weight": 0.5}


def result(task, right, metrics=("acc", "acc_r1v")):
    """Items of which the first `right[0]` of `right[1]` are right, or exactly those marked in a string of 1 and 0."""
    marks = [mark == "1" for mark in right] if isinstance(right, str) else [index < right[0] for index in range(right[1])]
    answers = tuple(Answer(index, "", "1", "", {metric: float(mark) for metric in metrics}) for index, mark in enumerate(marks))
    means = {metric: sum(marks) / len(marks) for metric in metrics}
    return Result(task, Path("r") / task, answers, means, {})


def run(method, task="", seed=None, results=None, **changes):
    name = f"{method}-{task}-{seed}" if task else "base"
    config = {} if method == "base" else CONFIG | {"method": method, "task": task, "seed": seed} | changes.pop("config", {})
    found = {name: result(name, right) for name, right in (results or {}).items()}
    made = Run(name, Path("cells") / name, QWEN, f"w-{name}", method, task, seed, "main", config, results=found)
    return replace(made, **changes)


def study(*runs):
    return Study(tuple(runs))


@pytest.fixture(scope="module")
def full():
    return make_study(n=60)


# Table 1


def test_a_cell_keeps_its_seeds_apart():
    shares = [(60, 200), (70, 200), (80, 200)]
    cell = analysis.table1(study(*(run("sft", VC, seed, {VC: right}) for seed, right in enumerate(shares)))).cell("sft", VC)
    assert cell.acc.mean == pytest.approx(0.35)
    assert [(seed.k, seed.n) for seed in cell.acc.seeds] == shares, "seeds are never pooled into n"
    assert (cell.acc.seeds[0].low, cell.acc.seeds[0].high) == stats.wilson(60, 200)
    # s = 0.05, t(2) = 4.302653
    half = 4.302652729911275 * 0.05 / 3**0.5
    assert (cell.acc.interval, cell.acc.low, cell.acc.high) == ("seeds", pytest.approx(0.35 - half), pytest.approx(0.35 + half))
    assert cell.acc.deviation == pytest.approx(0.05)


def test_one_checkpoint_has_wilson_and_equal_seeds_have_no_interval():
    table = analysis.table1(study(run("base", results={VC: (85, 200)}), *(run("sft", VC, seed, {VC: (70, 200)}) for seed in (0, 1))))
    base, sft = table.cell("base", VC).acc, table.cell("sft", VC).acc
    assert (base.interval, base.low, base.high, base.deviation) == ("items", *stats.wilson(85, 200), None)
    assert (sft.mean, sft.interval, sft.low, sft.deviation) == (0.35, "none", None, 0.0)
    wide = analysis.table1(study(run("sft", VC, 0, {VC: (10, 200)}), run("sft", VC, 1, {VC: (190, 200)}))).cell("sft", VC).acc
    assert (wide.low, wide.high) == (0.0, 1.0)


def test_a_mean_without_samples_has_no_interval():
    bare = replace(run("sft", VC, 0), results={VC: Result(VC, Path("r"), (), {"acc": 0.5, "acc_r1v": 0.4}, {}, foreign=True)})
    cell = analysis.table1(study(bare)).cell("sft", VC)
    assert (cell.acc.mean, cell.acc.interval, cell.acc.seeds[0].n) == (0.5, "none", None)
    assert cell.published.difference is None


def test_the_published_number_stands_beside_acc_r1v_with_newcombes_interval():
    holder = run("grpo-d", GR, 0)
    holder = replace(holder, results={GR: replace(result(GR, (300, 754)), answers=tuple(
        replace(answer, scores={"acc": 0.0, "acc_r1v": answer.scores["acc"]}) for answer in result(GR, (300, 754)).answers
    ))})  # fmt: skip
    cell = analysis.table1(study(holder)).cell("grpo-d", GR)
    versus = cell.published
    assert cell.acc.mean == 0.0
    assert (versus.k, versus.n, versus.low, versus.high) == (259, 754, *stats.wilson(259, 754))
    assert versus.difference.value == pytest.approx((300 - 259) / 754)
    assert (versus.difference.low, versus.difference.high) == stats.newcombe(300, 754, 259, 754)
    assert versus.per_seed == ((holder.name, versus.difference),)


def test_several_seeds_against_one_published_checkpoint():
    runs = [run("sft", VC, seed, {VC: (k, 200)}) for seed, k in enumerate((130, 140, 150))]
    versus = analysis.table1(study(*runs)).cell("sft", VC).published
    ours = stats.mean_over_seeds_and_items([0.65, 0.7, 0.75], 200)
    expected = stats.square_and_add(ours, stats.Estimate(137 / 200, *stats.wilson(137, 200), 200))
    assert (versus.difference.low, versus.difference.high) == expected
    assert versus.per_seed[0][1].value == pytest.approx((130 - 137) / 200)


def test_fewer_items_than_published_are_said():
    cell = analysis.table1(study(run("sft", VC, 0, {VC: (20, 40)}))).cell("sft", VC)
    assert cell.published.note == "measured on 40 items, published on 200"


def test_nothing_published_stands_beside_other_models_or_tasks():
    tiny = study(run("base", results={VC: (85, 200)}, model="tiny"), run("sft", VC, 0, {VC: (100, 200)}, config={"model": "tiny"}))
    table = analysis.table1(tiny)
    assert table.why.startswith("The starting model is not known")
    assert all(cell.published is None for cell in table.cells)
    base = run("base", results={VC: (85, 200)}, model="/weights/mine", weights="a" * 64)
    assert analysis.table1(study(base, run("sft", VC, 0, {VC: (100, 200)}))).model == "", "not certain"
    same = analysis.table1(study(base, run("sft", VC, 0, {VC: (100, 200)}, start="a" * 64)))
    assert same.model == "Qwen2-VL-2B-Instruct" and same.cell("base", VC).published.k == 85
    synth = analysis.table1(study(run("sft", "mr1_vc_synth", 0, {"mr1_vc_synth": (100, 200)})))
    assert synth.cells[0].published is None and synth.why == ""


def test_direct_answers_are_cells_of_their_own():
    base = run("base", results={VC: (85, 200), "mr1_vc_direct": (160, 200)})
    table = analysis.table1(study(base, run("sft", VC, 0, {VC: (100, 200), "mr1_vc_direct": (120, 200)})))
    assert table.tasks == (VC,)
    assert [(cell.method, cell.task, cell.acc.mean, cell.published) for cell in table.direct] == [
        ("base", "mr1_vc_direct", 0.8, None),
        ("sft", "mr1_vc_direct", 0.6, None),
    ]


def test_the_base_alone_has_a_table_and_gaps_are_explained():
    assert analysis.table1(study(run("base", results={VC: (85, 200), GR: (117, 754)}))).tasks == (VC, GR)
    table = analysis.table1(study(run("sft", VC, 0, {VC: (1, 2)}), run("grpo", GR, 0, {GR: (1, 2)})))
    assert table.cell("sft", GR).why == "no finished run of this method on this task"


# What may not be averaged


@pytest.mark.parametrize(
    "one, two, words",
    [
        ({}, {"config": {"steps": 20}}, ["steps 10 and 20", "leave one kind out"]),
        ({"start": "a" * 64}, {"start": "b" * 64}, ["model"]),
        ({"seed": 0, "name": "x"}, {"seed": 0, "name": "y"}, ["have seed 0", "counted twice"]),
        ({"seed": None, "name": "x"}, {"seed": 1}, ["has no seed"]),
        ({}, {"results": {VC: result(VC, (3, 5))}}, ["different items", "4 in common"]),
    ],
)
def test_runs_that_are_not_alike_are_named_not_averaged(one, two, words):
    def made(seed, changes):
        changes = dict(changes)
        return replace(run("sft", VC, seed, {VC: (1, 4)}, config=changes.pop("config", {})), **changes)

    with pytest.raises(RecordError) as raised:
        analysis.table1(study(made(0, one), made(1, two)))
    for word in words:
        assert word in str(raised.value)


def test_another_base_is_refused():
    base = run("base", results={VC: (1, 4)}, weights="a" * 64)
    with pytest.raises(RecordError, match="not the model that training in"):
        analysis.matrix(study(base, run("sft", VC, 0, {VC: (1, 4)}, start="b" * 64)))


# The matrix


def test_gains_of_one_seed_are_paired_and_of_several_over_seeds():
    base = run("base", results={VC: "1100110000", GR: "1000"})
    one = run("grpo", VC, 0, {VC: "1111100000", GR: "1000"})
    cells = {(cell.method, cell.eval_task): cell for cell in analysis.matrix(study(base, one))}
    gain = cells["grpo", VC].gain
    # better on items 2 and 3, worse on 5
    assert gain.value == pytest.approx(0.1)
    assert (gain.low, gain.high) == stats.paired_difference(2, 1, 10)
    assert (cells["grpo", VC].relation, cells["grpo", GR].relation, cells["base", GR].relation) == ("same-task", "cross-task", "base")
    assert cells["base", VC].gain is None

    more = [one, run("grpo", VC, 1, {VC: "1111111000", GR: "1000"})]
    gain = next(cell for cell in analysis.matrix(study(base, *more)) if cell.method == "grpo" and cell.eval_task == VC).gain
    expected = stats.mean_over_seeds([0.1, 0.3])
    assert (gain.value, gain.low, gain.high) == (pytest.approx(0.2), max(-1.0, expected.low), pytest.approx(min(1.0, expected.high)))


def test_a_gain_over_other_items_is_refused():
    with pytest.raises(RecordError, match="same --limit"):
        analysis.matrix(study(run("base", results={VC: (1, 4)}), run("sft", VC, 0, {VC: (1, 5)})))


# Methods and checkpoints


def _method(method, counts, n=200):
    return [run(method, VC, seed, {VC: (k, n)}) for seed, k in enumerate(counts)]


def test_under_three_seeds_there_is_a_reason_and_no_number():
    (found,) = analysis.comparisons(study(*_method("sft", [100, 110, 120]), *_method("grpo-d", [150, 160])))
    assert (found.a, found.b, found.seeds_a, found.seeds_b) == ("grpo-d", "sft", 2, 3)
    assert [found.mean_a, found.mean_b, found.difference, found.t, found.p, found.p_holm, found.differs] == [None] * 7
    assert found.why == "it needs at least 3 training seeds of each, and there are 2 and 3"
    assert "no statement" in found.statement and "%" not in found.statement and "points" not in found.statement


def test_methods_are_compared_by_welch_over_seeds():
    counts = {"sft": [100, 102, 104], "grpo": [101, 111, 106], "grpo-d": [150, 154, 158]}
    found = analysis.comparisons(study(*(one for method, ks in counts.items() for one in _method(method, ks))))
    assert [(one.a, one.b) for one in found] == [("grpo-d", "sft"), ("grpo-d", "grpo"), ("grpo", "sft")]
    expected = [stats.welch([k / 200 for k in counts[one.a]], [k / 200 for k in counts[one.b]]) for one in found]
    assert [one.p for one in found] == [test.p for test in expected]
    assert [one.p_holm for one in found] == pytest.approx(stats.holm([test.p for test in expected]))
    assert [one.differs for one in found] == [True, True, False]
    assert found[0].statement.startswith(f"GRPO-D is more accurate than SFT on {VC}, trained on {VC}: +26.0 points [+21.")
    assert "after Holm's correction for 3 tests" in found[0].statement
    assert found[2].statement.startswith("No difference shown between GRPO and SFT") and "not evidence" in found[2].statement


def test_methods_whose_seeds_never_differ_are_not_tested():
    (found,) = analysis.comparisons(study(*_method("sft", [100] * 3), *_method("grpo", [120] * 3)))
    assert found.p is None and "without any spread" in found.why


def test_checkpoints_are_compared_by_mcnemar_and_labelled():
    base = run("base", results={VC: "0000000000"})
    a, b = run("grpo-d", VC, 0, {VC: "1111111100"}), run("sft", VC, 0, {VC: "1000000010"})
    pairs = {(pair.run_a, pair.run_b): pair for pair in analysis.pairs(study(base, a, b))}
    pair = pairs[a.name, b.name]
    assert (pair.n, pair.both, pair.only_a, pair.only_b, pair.neither) == (10, 1, 7, 1, 1)
    assert pair.p == pytest.approx(2 * (1 + 8) / 2**8), "of 8 differing items 7 or more to one side"
    assert pair.p_holm == pytest.approx(2 * pair.p)
    assert pair.statement.startswith("These two checkpoints") and "nothing about other seeds" in pair.statement
    assert set(pairs) == {(a.name, b.name), (a.name, "base"), (b.name, "base")}


def test_checkpoints_meet_by_seed_and_on_the_same_items_only():
    runs = [run("grpo-d", VC, 0, {VC: (1, 4)}), run("sft", VC, 1, {VC: (1, 4)})]
    assert analysis.pairs(study(*runs)) == []
    (pair,) = analysis.pairs(study(run("grpo-d", VC, 0, {VC: (1, 4)}), run("sft", VC, 0, {VC: (1, 5)})))
    assert pair.p is None and pair.why == "they were asked different items (4 and 5, 4 in common)"


# Headline gains


def _paper(seeds=1):
    same = {"sft": (137, 245), "grpo": (129, 228), "grpo-d": (153, 259)}
    cross = {"sft": (50, 100), "grpo": (70, 150), "grpo-d": (80, 170)}
    runs = []
    for method, (vc, gr) in same.items():
        for seed in range(seeds):
            runs.append(run(method, VC, seed, {VC: (vc - seed, 200), GR: (cross[method][1] + seed, 754)}))
            runs.append(run(method, GR, seed, {GR: (gr + seed, 754), VC: (cross[method][0], 200)}))
    return study(*runs)


def test_headline_gains_as_the_paper_computes_them():
    found = {(gain.name, gain.tasks, gain.metric): gain for gain in analysis.gains(_paper()).gains}
    over_sft = found["same-task, GRPO-D over SFT", (GR,), "acc_r1v"]
    assert over_sft.measured == pytest.approx(259 / 245 - 1)
    assert over_sft.published == 0.0572
    assert over_sft.recomputed == pytest.approx((34.35 - 32.49) / 32.49)
    over_grpo = found["same-task, GRPO-D over GRPO", (GR,), "acc_r1v"]
    assert (over_grpo.published, over_grpo.recomputed) == (0.1359, pytest.approx((34.35 - 30.24) / 30.24))
    cross = found["cross-task, GRPO-D over SFT", (VC, GR), "acc_r1v"]
    # trained on VC, tested on GR: 170/100 - 1; trained on GR, tested on VC: 80/50 - 1
    assert cross.measured == pytest.approx((0.7 + 0.6) / 2)
    assert (cross.published, cross.recomputed) == (pytest.approx(0.6163), None)
    assert found["same-task, GRPO-D over SFT", (VC,), "acc_r1v"].published is None, "the claim is the geometry cell"
    assert all(gain.published is None and gain.recomputed is None for key, gain in found.items() if key[2] == "acc")
    assert all(gain.low is None and "checkpoints, not about the methods" in gain.why for gain in found.values())


def test_gains_of_three_seeds_have_intervals():
    found = {(gain.name, gain.tasks, gain.metric): gain for gain in analysis.gains(_paper(3)).gains}
    gain = found["same-task, GRPO-D over SFT", (VC,), "acc"]
    expected = stats.relative_gain([153 / 200, 152 / 200, 151 / 200], [137 / 200, 136 / 200, 135 / 200])
    assert (gain.measured, gain.low, gain.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert found["cross-task, GRPO-D over SFT", (VC, GR), "acc"].low is None, "one direction has no spread, which is said"
    assert "without any spread" in found["cross-task, GRPO-D over SFT", (VC, GR), "acc"].why


def test_no_gain_over_nothing_and_none_published_beside_the_tiny_model():
    zero = study(run("sft", GR, 0, {GR: (0, 10)}), run("grpo-d", GR, 0, {GR: (5, 10)}))
    gain = analysis.gains(zero).gains[0]
    assert gain.measured is None and "nothing right" in gain.why
    for one in analysis.gains(make_study(n=20, sweeps=False)).gains:
        assert one.published is None and one.recomputed is None


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


# All of it


def test_everything_becomes_json_and_carries_its_runs(full):
    named = {run.name for run in full.runs}
    found = [analysis.table1(full), *analysis.matrix(full), *analysis.comparisons(full), *analysis.pairs(full), analysis.gains(full)]
    found += [*analysis.curves(full), *analysis.confusions(full), *analysis.by_difficulty(full)]
    found += [point for what in ("beta", "format", "schedule") for point in analysis.sweep(full, what)]
    for one in found:
        json.dumps(asdict(one), allow_nan=False)
    for cell in analysis.matrix(full):
        assert {seed.run for seed in cell.acc.seeds} <= named


def test_the_two_graders_are_explained_in_two_sentences():
    assert analysis.WHY_TWO_GRADERS.count(". ") == 1 and analysis.WHY_TWO_GRADERS.endswith(".")
    assert len(analysis.unpublished()) >= 5
