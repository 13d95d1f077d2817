"""The paper's numbers: every one a count of the R1-V protocol, its claims recomputed, and nothing that it did not publish."""

import pytest

from mr1_bench import published
from mr1_bench.published import CLAIMS, ROWS, find, model_name
from mr1_bench.specs import SPECS, get_spec


def test_every_value_is_its_count_to_the_printed_digits():
    assert len(ROWS) == 16
    for row in ROWS:
        assert 0 < row.k < row.n
        assert f"{100 * row.k / row.n:.2f}" == f"{row.value:.2f}", row


def test_counts_by_hand():
    # 34.35 % of 754 = 258.999, 76.5 % of 200 = 153
    assert (find("Qwen2-VL-2B-Instruct", "grpo-d", "mr1_gr", "mr1_gr").k, find("Qwen2-VL-2B-Instruct", "grpo-d", "mr1_vc", "mr1_vc").k) == (
        259,
        153,
    )
    assert find("Qwen2-VL-7B-Instruct", "base", "", "mr1_gr").k == 250


def test_sizes_are_those_of_the_tasks():
    for row in ROWS:
        assert get_spec(row.eval_task).size == row.n
        assert not get_spec(row.eval_task).synthetic


def test_same_task_claims_follow_from_the_table():
    for claim in CLAIMS:
        gains = {}
        for task in ("mr1_vc", "mr1_gr"):
            better, worse = (find(claim.model, method, task, task).value for method in (claim.better, claim.worse))
            gains[task] = 100 * (better - worse) / worse
        if not claim.cross_task:
            assert int(100 * gains["mr1_gr"]) / 100 == claim.value
            assert min(gains, key=gains.get) == "mr1_gr"


def test_nothing_else_is_published():
    assert all(row.train_task in ("", row.eval_task) for row in ROWS), "figure 7 has no numbers"
    for spec in SPECS:
        if spec.name not in ("mr1_vc", "mr1_gr"):
            assert all(find(row.model, row.method, row.train_task, spec.name) is None for row in ROWS)
    assert find("tiny", "base", "", "mr1_vc") is None
    text = " ".join(published.UNPUBLISHED)
    for figure in (1, 4, 5, 6, 7):
        assert f"figure {figure}" in text


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen2-VL-2B-Instruct",
        "/weights/qwen2-vl-2b-instruct/",
        "/cache/hub/models--Qwen--Qwen2-VL-2B-Instruct/snapshots/895c3a49bc3fa70a340399125c650a463535e71c",
    ],
)
def test_the_papers_models_are_known(name):
    assert model_name(name) == "Qwen2-VL-2B-Instruct"


@pytest.mark.parametrize(
    "name",
    ["tiny", "", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2-VL-2B", "Qwen2-VL-2B-Instruct/checkpoint-100", "my-qwen2-vl-2b-instruct-sft"],
)
def test_other_models_are_not(name):
    assert model_name(name) == ""
