"""The adapter: metric values from both graders' verdicts, for tagged and direct tasks."""

import pytest

from mr1_bench.r1v import R1VScore
from mr1_bench.specs import SPECS, get_spec
from mr1_bench.tasks import adapter


@pytest.mark.parametrize(
    ("task", "gold", "text", "expected"),
    [
        ("mr1_gr", "65°", "<think>a</think><answer> 65 </answer>", {"acc": 1, "acc_r1v": 1, "format": 1, "answered": 1}),
        ("mr1_gr", "10√{2}", "<think>a</think><answer> 10 </answer>", {"acc": 0, "acc_r1v": 1, "format": 1, "answered": 1}),
        ("mr1_gr", "40°", "the answer is 40.", {"acc": 0, "acc_r1v": 1, "format": 0, "answered": 0}),
        ("mr1_vc", "8", "<answer>A. 8</answer>", {"acc": 1, "acc_r1v": 0, "format": 0, "answered": 1}),
        ("mr1_vc_direct", "8", "8", {"acc": 1, "answered": 1}),
        ("mr1_vc_direct", "8", "", {"acc": 0, "answered": 0}),
    ],
)
def test_metrics(task, gold, text, expected):
    row = adapter.score_row(get_spec(task), gold, text)
    detail = row.pop("mr1")
    assert row == expected
    assert ("status_r1v" in detail) == get_spec(task).tagged


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_reports_exactly_the_metrics_of_its_row(spec):
    row = adapter.score_row(spec, "3", "<think>x</think><answer>3</answer>")
    assert set(row) - {"mr1"} == set(spec.metrics)


@pytest.mark.parametrize("status", ["timeout", "crashed"])
def test_item_without_a_published_verdict_is_left_out_not_wrong(monkeypatch, status):
    monkeypatch.setattr(adapter, "grade_r1v", lambda *_: R1VScore(None, None, status))
    row = adapter.score_row(get_spec("mr1_gr"), "1", "<answer>1</answer>")
    assert "acc_r1v" not in row
    assert row["acc"] == 1.0
    assert row["mr1"]["status_r1v"] == status


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="nothing_here"):
        adapter.nothing_here  # noqa: B018
