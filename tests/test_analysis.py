"""From a study to statements: hand-made runs of few items, worked by hand; and a realistic study for what belongs together."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mr1_bench import stats
from mr1_bench.records import RecordError
from mr1_bench.reports import analysis
from mr1_bench.reports.study import Answer, Result, Run, Study
from tests.studies import make_study

QWEN = "Qwen/Qwen2-VL-2B-Instruct"
VC, GR, GR_SYNTH = "mr1_vc", "mr1_gr", "mr1_gr_synth"
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

    def gain_of(*runs):
        return next(cell for cell in analysis.matrix(study(base, *runs)) if cell.method == "grpo" and cell.eval_task == VC).gain

    two = [one, run("grpo", VC, 1, {VC: "1111111000", GR: "1000"})]
    assert gain_of(*two) is None, "two seeds say nothing of their method"
    gain = gain_of(*two, run("grpo", VC, 2, {VC: "1111110000", GR: "1000"}))
    expected = stats.mean_over_seeds([0.1, 0.3, 0.2])
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.2, expected.low, expected.high))


def test_two_seeds_are_set_beside_the_published_number_one_by_one():
    versus = analysis.table1(study(*(run("sft", VC, seed, {VC: (k, 200)}) for seed, k in enumerate((130, 140))))).cell("sft", VC).published
    assert versus.difference is None and len(versus.per_seed) == 2
    assert versus.note == "of 2 seeds: compared with the published number one by one only"


def test_an_item_without_a_verdict_of_the_published_grader_is_said_and_stops_nothing():
    made = make_study(n=30, seeds=3, sweeps=False)
    whole = analysis.table1(made).cell("sft", GR_SYNTH)
    gap = next(one for one in made.runs if (one.method, one.task, one.seed) == ("sft", GR_SYNTH, 1))

    def without(items):
        answers = tuple(
            replace(one, scores={key: value for key, value in one.scores.items() if key != "acc_r1v" or one.doc_id not in items})
            for one in gap.results[GR_SYNTH].answers
        )
        changed = replace(gap, results=dict(gap.results) | {GR_SYNTH: replace(gap.results[GR_SYNTH], answers=answers)})
        return analysis.analyse(Study(tuple(changed if one is gap else one for one in made.runs))).table1

    cell = without({4}).cell("sft", GR_SYNTH)
    assert cell.acc == whole.acc
    assert (cell.acc_r1v.left_out, {seed.n for seed in cell.acc_r1v.seeds}) == (1, {29})
    assert cell.why == "acc_r1v leaves out 1 item that R1-V's grader gave no verdict on"
    cell = without(set(range(30))).cell("sft", GR_SYNTH)
    assert (len(cell.acc.seeds), len(cell.acc_r1v.seeds)) == (3, 2)
    assert cell.why == f"acc_r1v is missing in {gap.name}"
    assert whole.why == ""


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
