"""`mr1-bench parity`: the comparison of two engines by hand-worked numbers, and, where vLLM is installed, both engines for real."""

import argparse
import json
import math

import pytest

from mr1_bench.errors import UserError
from mr1_bench.tasks import parity, parity_engines

WORDS = {1: "<answer>", 2: "3", 3: "4", 4: "</answer>", 5: "", 6: "three"}


def decode(tokens):
    return "".join(WORDS[token] for token in tokens)


def vllm_answer(tokens, logprobs, alternatives=None):
    return {"prompt": [7], "tokens": tokens, "logprobs": logprobs, "alternatives": alternatives or [{} for _ in tokens]}


def hf_answer(tokens, of_vllm, fork=None):
    return {"prompt": [7], "tokens": tokens, "logprobs_of_vllm": of_vllm, "logprob_at_fork": fork}


@pytest.fixture
def items():
    forked = vllm_answer([1, 2, 4, 5], [0.0, -0.5, 0.0, 0.0], [{}, {"2": -0.5, "3": -0.75}, {}, {}])
    return parity.compare(
        "mr1_vc_synth",
        ["same", "forked", "both wrong"],
        ["3", "4", "4"],
        {"answers": [vllm_answer([1, 2, 4, 5], [-0.1, -0.2, 0.0, 0.0]), forked, vllm_answer([1, 2, 4], [0.0, 0.0, 0.0])]},
        {
            "answers": [
                hf_answer([1, 2, 4, 5], [-0.1, -0.3, 0.0, 0.0]),
                hf_answer([1, 3, 4, 5], [0.0, -0.9, 0.0, 0.0], -0.7),
                hf_answer([1, 2, 4, 5], [0.0, 0.0, 0.0]),
            ]
        },
        decode,
    )


def test_summary_counts_texts_answers_and_accuracy(items):
    summary = parity.summarise(items)
    assert summary["prompts"] == {"identical": 3, "of": 3}
    assert summary["texts"] == {"identical": 1, "of": 3}
    assert summary["answers"] == {"identical": 2, "of": 3, "differing share": 1 / 3}
    accuracy = summary["accuracy"]
    assert (accuracy["vllm"], accuracy["hf"]) == (1 / 3, 2 / 3)
    assert (accuracy["only vllm right"], accuracy["only hf right"]) == (0, 1)
    assert accuracy["difference"] == -1 / 3
    assert accuracy["low"] < -1 / 3 < accuracy["high"]
    assert accuracy["McNemar p"] == 1.0


def test_log_probability_differences_are_over_all_tokens_that_vllm_chose(items):
    gaps = parity.summarise(items)["log-probability difference"]
    assert gaps["tokens"] == 11
    assert math.isclose(gaps["mean"], (0.1 + 0.4) / 11)
    assert math.isclose(gaps["mean size"], 0.5 / 11)
    assert gaps["median size"] == 0.0
    assert math.isclose(gaps["largest"], 0.4)


def test_the_worst_item_is_the_one_whose_answer_differs_and_says_where(items):
    summary = parity.summarise(items)
    assert list(summary["worst items"]) == ["forked", "both wrong", "same"]
    line = summary["worst items"]["forked"]
    assert line == (
        "token 1: vllm '3', hf '4' (own above the other's by 0.25 in vllm, 0.2 in hf); answers 3 and 4; "
        "largest log-probability difference 0.4"
    )
    assert summary["worst items"]["both wrong"].startswith("token 3: vllm '', hf ''")  # one of them had ended


def test_no_items_is_no_parity():
    with pytest.raises(UserError, match="no items"):
        parity.summarise([])


@pytest.mark.parametrize(
    ("a", "b", "place"), [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([], [], None), ([2], [1, 2], 0)]
)
def test_first_difference(a, b, place):
    assert parity_engines.first_difference(a, b) == place


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--n", "0"], "1 to 600 items"),
        (["--n", "601"], "1 to 600 items"),
        (["--max-answer-diff", "1.5"], "share between 0 and 1"),
        (["--max-answer-diff", "nan"], "share between 0 and 1"),
        (["--time-limit", "0"], "positive"),
        (["--vllm-args", "seed=3"], "decided by mr1-bench"),
        (["--vllm-args", "8192"], "KEY=VALUE"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_loaded(more, message, tmp_path):
    with pytest.raises(UserError, match=message):
        parity.run(arguments(tmp_path, *more))
    assert not list(tmp_path.iterdir())


def arguments(out, *more, model="tiny"):
    parser = argparse.ArgumentParser()
    parity.add_arguments(parser)
    return parser.parse_args(["--model", str(model), "--task", "mr1_gr_synth", "--out", str(out), *more])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Both engines on the embedded model."""
    pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
    out = tmp_path_factory.mktemp("parity")
    code = parity.run(arguments(out, "--n", "16", "--device", "cpu", "--max-answer-diff", "0.07"))
    (path,) = out.glob("parity/*/parity.json")
    return code, json.loads(path.read_text()), path.parent


@pytest.mark.vllm
def test_engines_agree_on_the_embedded_model(measured):
    code, record, folder = measured
    assert code == 0
    assert record["gate"] == {"verdict": "passed", "allowed share of differing answers": 0.07}
    assert record["prompts"] == {"identical": 16, "of": 16}
    assert record["answers"]["identical"] >= 15
    assert record["vllm"]["dtype"] == record["hf"]["dtype"] == "float32"
    gaps = record["log-probability difference"]
    assert gaps["tokens"] > 100
    assert 0 < gaps["mean size"] < 1e-3  # two implementations in float32: not equal, and not another model
    assert len((folder / "parity_items.jsonl").read_text().splitlines()) == 16
    assert not list(folder.glob(".working-*"))
    flat = [inner for value in record.values() if isinstance(value, dict) for inner in value.values()]
    assert not [inner for inner in flat if isinstance(inner, dict | list)]  # the report page shows one level of facts


@pytest.mark.vllm
def test_another_type_is_seen_and_fails_the_gate(measured, tmp_path):
    more = ["--n", "16", "--device", "cpu", "--max-answer-diff", "0", "--vllm-args", "dtype=bfloat16"]
    code = parity.run(arguments(tmp_path, *more))
    (path,) = tmp_path.glob("parity/*/parity.json")
    record = json.loads(path.read_text())
    assert record["vllm"]["dtype"] == "bfloat16"
    assert record["log-probability difference"]["mean size"] > 10 * measured[1]["log-probability difference"]["mean size"]
    assert code == (1 if record["answers"]["identical"] < 16 else 0)


@pytest.mark.vllm
def test_an_engine_that_takes_too_long_is_stopped(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
    with pytest.raises(UserError, match="longer than 1 s"):
        parity.run(arguments(tmp_path, "--n", "1", "--time-limit", "1"))
    assert not list(tmp_path.glob("parity/*/parity.json"))
