"""The verdicts of two snapshots: every state, worked by hand where a hand can; what may be compared; flips and flaky items."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mr1_bench.errors import UserError
from mr1_bench.reports.regress_plan import plan_text, planned_tasks
from mr1_bench.reports.regression import EVERY_TASK, compare, exit_code, history_of
from mr1_bench.reports.verdicts import Regression, Settings, TaskSnapshot, Verdict
from tests.snapshots import IDENTITY, OTHER, TASK, counts, side, task_of

pytestmark = pytest.mark.usefixtures("without_collection")


def one(both: int, lost: int, won: int, neither: int, gate: Settings | None = None) -> Verdict:
    """The verdict of `acc` for so many items."""
    old, new = counts(both, lost, won, neither)
    return compare(side({TASK: task_of({"acc": old})}), side({TASK: task_of({"acc": new})}), gate).verdicts[0]


def verdict_of(found: Regression, metric: str, task: str = TASK) -> Verdict:
    (chosen,) = [verdict for verdict in found.verdicts if (verdict.task, verdict.metric) == (task, metric)]
    return chosen


def test_regressed_by_hand() -> None:
    """8 lost and none won of 400: p = 2/2^8 = 0.0078, 2 points."""
    found = one(300, 8, 0, 92)
    assert (found.state, found.lost, found.won, found.n) == ("regressed", 8, 0, 400)
    assert found.p == pytest.approx(2 / 2**8)
    assert found.difference == pytest.approx(-0.02)
    assert all(part in found.why for part in ("down 2.0 points", "8 lost, 0 won", "exact McNemar", "p = 0.0078"))


def test_improved_is_the_mirror_of_regressed() -> None:
    down, up = one(200, 30, 5, 165), one(200, 5, 30, 165)
    assert (down.state, up.state) == ("regressed", "improved")
    assert down.p == up.p and down.difference is not None and up.difference == -down.difference
    assert up.low is not None and down.high is not None and up.low == pytest.approx(-down.high)


def test_a_drop_that_is_significant_but_below_the_smallest_effect_does_not_fail() -> None:
    assert one(10_000, 30, 2, 0).state == "pass"  # 0.28 points, p < 0.0001
    assert one(10_000, 30, 2, 0, Settings(min_effect=0.002)).state == "regressed"


def test_a_drop_that_is_large_but_not_significant_is_inconclusive_and_says_what_would_do() -> None:
    found = one(20, 4, 1, 15)  # 7.5 points of 40 items, p = 0.375
    assert found.state == "inconclusive"
    assert found.needed is not None and found.needed > 40 and f"{found.needed:,}" in found.why
    assert found.detectable is not None and found.detectable > 0.075


def test_the_same_answers_pass_where_there_are_enough_items() -> None:
    assert one(300, 0, 0, 100).state == "pass"
    few = one(30, 0, 0, 10)
    assert few.state == "inconclusive"
    assert few.needed is not None and one(few.needed, 0, 0, 0).state == "pass"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 300), st.integers(0, 60), st.integers(0, 60), st.integers(0, 300), st.sampled_from([0.0, 0.005, 0.01, 0.05]))
def test_each_state_means_what_it_says(both: int, lost: int, won: int, neither: int, effect: float) -> None:
    if both + lost + won + neither < 2:
        return
    found = one(both, lost, won, neither, Settings(min_effect=effect))
    assert found.difference is not None and found.low is not None and found.p_holm is not None
    significant = found.p_holm < 0.05
    if found.state == "regressed":
        assert significant and found.difference < -effect
    elif found.state == "improved":
        assert significant and found.difference > effect
    elif found.state == "pass":
        assert found.low > -effect
    else:
        assert found.state == "inconclusive" and found.low <= -effect and not (significant and found.difference < -effect)
        assert found.needed is None or found.needed > found.n


def test_holm_covers_the_headline_metrics_together() -> None:
    """p = 0.031 (6 lost, none won) fails alone and not beside three tasks in which nothing happened."""
    old, new = counts(100, 6, 0, 94)
    alone = compare(side({TASK: task_of({"acc": old})}), side({TASK: task_of({"acc": new})}))
    names = (TASK, OTHER, "mr1_vc_synth_l2", "mr1_gr_synth_l2")
    sides = [side({name: task_of({"acc": column if name == TASK else old}) for name in names}) for column in (old, new)]
    together = compare(*sides)
    assert (alone.verdicts[0].state, exit_code(alone)) == ("regressed", 1)
    assert (verdict_of(together, "acc").state, exit_code(together)) == ("inconclusive", 0)
    assert verdict_of(together, "acc").p_holm == pytest.approx(4 * 2 / 2**6)
    assert "not significant among 4 metrics" in verdict_of(together, "acc").why


def test_other_shares_gate_with_their_own_tolerance() -> None:
    old, new = counts(360, 12, 0, 28)  # 3 points down
    right = [1.0] * 400
    sides = [side({TASK: task_of({"acc": right, "format": column, "answered": right})}) for column in (old, new)]
    found = compare(*sides)
    assert verdict_of(found, "acc").state == "pass"
    assert (verdict_of(found, "format").state, exit_code(found)) == ("regressed", 1)
    assert exit_code(compare(*sides, Settings(tolerances={"format": 0.04}))) == 0
    assert exit_code(compare(*sides, Settings(gate=("acc",)))) == 0


def test_agreement_of_the_two_graders() -> None:
    right = [1.0] * 100
    misread = [0.0] * 10 + [1.0] * 90
    sides = [side({TASK: task_of({"acc": right, "acc_r1v": column})}) for column in (right, misread)]
    found = verdict_of(compare(*sides), "agreement")
    assert (found.state, found.old, found.new, found.lost, found.gates) == ("regressed", 1.0, 0.9, 10, False)


def test_longer_answers_are_worse_and_shorter_ones_better() -> None:
    right = [1.0] * 60
    short, long = ([length + index % 5 for index in range(60)] for length in (20.0, 30.0))
    sides = {name: side({TASK: task_of({"acc": right}, tokens=tokens)}) for name, tokens in (("short", short), ("long", long))}
    worse = verdict_of(compare(sides["short"], sides["long"]), "tokens")
    better = verdict_of(compare(sides["long"], sides["short"]), "tokens")
    assert (worse.state, worse.difference, better.state) == ("regressed", 10.0, "improved")
    assert worse.test == "paired bootstrap, 10,000 resamples, seed 0"
    assert worse.tolerance == pytest.approx(2.2)  # a tenth of the old mean, 22


def measured(speed: float | None = None, memory: float | None = None, engine: str = "cpu") -> TaskSnapshot:
    values = {"tokens_per_s": speed, "peak_memory_bytes": memory}
    kept = {name: value for name, value in values.items() if value is not None}
    return task_of({"acc": [1.0] * 400}, measures=kept, engine=engine)


def test_speed_and_memory_by_tolerance_and_direction() -> None:
    found = compare(side({TASK: measured(1000, 2**30)}), side({TASK: measured(790, 1.05 * 2**30)}))
    assert (verdict_of(found, "tokens_per_s").state, verdict_of(found, "peak_memory_bytes").state) == ("regressed", "pass")
    assert exit_code(found) == 0  # they gate on demand only
    gated = compare(found.baseline, found.current, Settings(gate=("acc", "tokens_per_s")))
    assert exit_code(gated) == 1
    assert exit_code(compare(found.baseline, found.current, Settings(gate=("acc", "tokens_per_s"), tolerances={"tokens_per_s": 0.3}))) == 0
    more = compare(side({TASK: measured(1000, 2**30)}), side({TASK: measured(1300, 1.2 * 2**30)}))
    assert (verdict_of(more, "tokens_per_s").state, verdict_of(more, "peak_memory_bytes").state) == ("improved", "regressed")


def test_speed_of_another_engine_does_not_compare() -> None:
    found = compare(side({TASK: measured(1000)}), side({TASK: measured(10, engine="vllm")}), Settings(gate=("acc", "tokens_per_s")))
    assert (verdict_of(found, "tokens_per_s").state, exit_code(found)) == ("not-comparable", 2)
    assert any("different engines" in note for note in found.notes)


def test_a_measure_of_the_whole_evaluation_is_one_verdict() -> None:
    found = compare(side({TASK: measured(1000), OTHER: measured(1000)}), side({TASK: measured(900), OTHER: measured(900)}))
    assert [one.task for one in found.verdicts if one.metric == "tokens_per_s"] == [EVERY_TASK]


@pytest.mark.parametrize("metric", ["tokens_per_s", "peak_memory_bytes", "tokens"])
def test_what_shall_gate_but_is_not_recorded_is_no_pass(metric: str) -> None:
    found = compare(side({TASK: measured()}), side({TASK: measured()}), Settings(gate=("acc", metric)))
    assert (verdict_of(found, metric).state, exit_code(found)) == ("not-comparable", 2)
    assert "on neither side" in verdict_of(found, metric).why


@pytest.mark.parametrize("metric", ["format", "acc_r1v", "agreement"])
def test_a_share_that_was_asked_to_gate_and_is_recorded_nowhere_is_no_pass(metric: str) -> None:
    bare = side({TASK: measured()})
    asked = compare(bare, bare, Settings(gate=("acc", metric)))
    assert (verdict_of(asked, metric).state, exit_code(asked)) == ("not-comparable", 2)
    assert exit_code(compare(bare, bare)) == 0, "a task without tags has no format by construction"


def some(items: int, without: int) -> TaskSnapshot:
    """Items of which the last ones have no verdict of the second grader."""
    whole = task_of({"acc": [1.0] * items, "acc_r1v": [1.0] * items})
    kept = tuple(
        one if index < items - without else replace(one, scores={"acc": one.scores["acc"]}) for index, one in enumerate(whole.items)
    )
    return replace(whole, items=kept)


def test_items_without_a_share_are_counted_and_refused_where_they_are_many() -> None:
    gate = Settings(gate=("acc", "acc_r1v"))
    few = compare(side({TASK: some(400, 0)}), side({TASK: some(400, 3)}), gate)
    assert (verdict_of(few, "acc_r1v").state, verdict_of(few, "acc_r1v").n, exit_code(few)) == ("pass", 397, 0)
    assert "left out: 3 absent from the current run of 400 items" in verdict_of(few, "acc_r1v").why
    many = compare(side({TASK: some(400, 0)}), side({TASK: some(400, 5)}), gate)
    assert (verdict_of(many, "acc_r1v").state, exit_code(many)) == ("not-comparable", 2)
    assert "5 absent from the current run" in verdict_of(many, "acc_r1v").why
    both = verdict_of(compare(side({TASK: some(400, 90)}), side({TASK: some(400, 90)}), gate), "acc_r1v")
    assert both.n == 310 and "90 from both sides" in both.why


def test_equal_lengths_of_a_few_items_are_no_proof() -> None:
    few = side({TASK: task_of({"acc": [1.0] * 4}, tokens=[20.0] * 4)})
    found = verdict_of(compare(few, few), "tokens")
    assert found.state == "inconclusive" and found.detectable is not None and found.detectable > 2


def test_a_metric_of_one_side_only() -> None:
    right = [1.0] * 400
    plain, tagged = task_of({"acc": right}), task_of({"acc": right, "format": right})
    assert verdict_of(compare(side({TASK: plain}), side({TASK: tagged})), "format").state == "no-baseline"
    lost = compare(side({TASK: tagged}), side({TASK: plain}))
    assert (verdict_of(lost, "format").state, exit_code(lost)) == ("not-comparable", 2)


OTHERS: dict[str, dict[str, Any]] = {
    "data": {"identity": IDENTITY | {"dataset_sha256": "e" * 64}},
    "prompt": {"identity": IDENTITY | {"prompt_sha256": "q" * 64}},
    "decoding": {"identity": IDENTITY | {"decoding": {"max_new_tokens": 32, "temperature": 0.0, "top_p": 1.0}}},
}


@pytest.mark.parametrize("what", [*OTHERS, "item set", "gold"])
def test_what_was_asked_otherwise_does_not_compare(what: str) -> None:
    old = task_of({"acc": [1.0] * 400})
    new = task_of({"acc": [1.0] * (399 if what == "item set" else 400)}, **OTHERS.get(what, {}))
    if what == "gold":
        new = replace(new, items=(replace(new.items[0], gold="x"), *new.items[1:]))
    found = compare(side({TASK: old}), side({TASK: new}))
    verdict = verdict_of(found, "acc")
    assert (verdict.state, exit_code(found)) == ("not-comparable", 2)
    ((named, a, b),) = verdict.differs
    assert named == ("item set" if what == "gold" else what)
    assert a != b and a[:12] in verdict.why and b[:12] in verdict.why


def test_inputs_as_sent_tell_the_prompt_where_it_is_not_recorded() -> None:
    right = {"acc": [1.0] * 400}
    sides = [side({TASK: task_of(right, identity={"asked_sha256": letter * 64})}) for letter in "ab"]
    assert verdict_of(compare(*sides), "acc").differs[0][0] == "prompt"


def test_what_is_recorded_nowhere_is_said_and_not_refused() -> None:
    bare = side({TASK: task_of({"acc": [1.0] * 400}, identity={})})
    found = compare(bare, bare)
    assert found.verdicts[0].state == "pass"
    said = " ".join(found.notes)
    assert "Prompt: hash or settings recorded on neither side" in said and "Decoding: " in said and "golds agree" in said
    half = compare(side({TASK: task_of({"acc": [1.0] * 400})}), bare)
    assert "Prompt: hash or settings recorded in the baseline only" in " ".join(half.notes)


def test_a_task_of_one_side_only() -> None:
    both, old = side({TASK: measured(), OTHER: measured()}), side({TASK: measured()})
    fresh = compare(old, both)
    assert (verdict_of(fresh, "acc", OTHER).state, exit_code(fresh)) == ("no-baseline", 2)
    assert exit_code(compare(old, both, Settings(fail_on=("regressed", "not-comparable")))) == 0
    gone = compare(both, old)
    assert (verdict_of(gone, "acc", OTHER).state, exit_code(gone)) == ("not-comparable", 2)


def test_nothing_in_common_is_never_a_success() -> None:
    assert exit_code(compare(side({}), side({}))) == 2
    assert exit_code(compare(side({}), side({}), Settings(fail_on=("regressed",)))) == 2
    assert exit_code(compare(side({}), side({}), Settings(fail_on=()))) == 0
    one, other = side({TASK: measured()}), side({OTHER: measured()})
    assert exit_code(compare(one, other, Settings(fail_on=("regressed",)))) == 2, "all that differs is allowed, and nothing was compared"


def test_repeats_cluster_by_item() -> None:
    """Means of four answers an item go through the bootstrap over items; four times the answers are not four times the items."""
    old = [0.25 * (index % 5) for index in range(100)]
    new = [max(0.0, score - 0.25 * (index % 3 == 0)) for index, score in enumerate(old)]
    found = compare(side({TASK: task_of({"acc": old}, repeats=4)}), side({TASK: task_of({"acc": new}, repeats=4)})).verdicts[0]
    assert found.n == 100 and found.test.startswith("paired bootstrap") and found.state == "regressed"
    again = compare(side({TASK: task_of({"acc": old})}), side({TASK: task_of({"acc": new})})).verdicts[0]
    assert (again.p, again.low) == (found.p, found.low)  # the seed is fixed
    other = compare(side({TASK: task_of({"acc": old})}), side({TASK: task_of({"acc": new})}), Settings(bootstrap_seed=5)).verdicts[0]
    assert "seed 5" in other.test


def test_training_seeds_are_a_random_factor() -> None:
    """A drop that all items show is no regression of the method where its seeds scatter as much."""
    n = 600

    def seeds(shares: list[float]) -> tuple[TaskSnapshot, ...]:
        return tuple(task_of({"acc": [float(index < share * n) for index in range(n)]}, seed=seed) for seed, share in enumerate(shares))

    scattered = compare(side({TASK: seeds([0.60, 0.66, 0.72])}), side({TASK: seeds([0.55, 0.61, 0.67])})).verdicts[0]
    steady = compare(side({TASK: seeds([0.655, 0.66, 0.665])}), side({TASK: seeds([0.555, 0.56, 0.565])})).verdicts[0]
    assert (scattered.state, scattered.seeds) == ("inconclusive", (3, 3))
    assert steady.state == "regressed" and "3 and 3 training seeds" in steady.test


def test_flips_and_flaky_items() -> None:
    rows = ([1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0])
    shots = [side({TASK: task_of({"acc": row})}, weights=str(index)) for index, row in enumerate(rows)]
    found = compare(shots[2], shots[3], history=[history_of(shot) for shot in shots[:2]])
    assert [(flip.direction, flip.old.doc_id) for flip in found.flips] == [("lost", 1), ("won", 2)]
    assert [(one.doc_id, one.seen, one.right, one.turns) for one in found.flaky] == [(1, 4, 2, 3)]
    assert compare(shots[2], shots[3]).flaky == ()  # two snapshots say nothing of it


def test_history_that_was_asked_otherwise_is_left_out_of_the_flaky_items() -> None:
    shots = [side({TASK: task_of({"acc": row})}) for row in ([1, 0], [0, 1], [1, 0], [0, 1])]
    other = side({TASK: task_of({"acc": [0, 1]}, **OTHERS["prompt"])})
    first, second = map(history_of, shots[:2])
    assert len(compare(shots[2], shots[3], history=[first, second]).flaky) == 2
    assert compare(shots[2], shots[3], history=[history_of(other), second]).flaky == ()
    assert compare(shots[1], shots[2], history=[first]).flaky == (), "two turns are no habit"


def test_a_verdict_of_checkpoints_says_so() -> None:
    trained = side({TASK: task_of({"acc": [1.0] * 400}, seed=1)})
    assert any("not of the training" in note for note in compare(trained, trained).notes)


def test_everything_is_json_able() -> None:
    found = compare(side({TASK: measured(1000)}), side({TASK: measured(900), OTHER: measured()}))
    json.dumps(dataclasses.asdict(found))


def test_the_plan_takes_the_tasks_and_the_tolerance_of_the_comparison() -> None:
    both, one = side({TASK: measured(), OTHER: measured()}), side({TASK: measured()})
    assert planned_tasks([both], ()) == ({TASK: 400, OTHER: 400}, 2)
    assert planned_tasks([both], [OTHER]) == ({OTHER: 400}, 1)
    assert planned_tasks([both, one], ()) == ({TASK: 400}, 1)
    assert planned_tasks([], [TASK, OTHER]) == ({}, 2)
    with pytest.raises(UserError, match="--tasks"):
        planned_tasks([one], [OTHER])
    text = plan_text({"yours": 50}, Settings(tolerances={"acc": 0.03}), [0.2])
    assert "must also exceed 3 points" in text
    rows = {line.split("  ")[0].strip() or line.split()[0]: line.split()[-1] for line in text.partition("Items needed")[2].splitlines()[3:]}
    assert rows["2"] == rows["3"] == "never" and int(rows["5"].replace(",", "")) >= 658
    assert int(rows["none: passes"].replace(",", "")) < 15_700
