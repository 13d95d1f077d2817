"""The published logs replayed through lmms-eval itself, at its default threading: the published numbers come out, to the item."""

import json

import pytest
from PIL import Image

from mr1_bench.cli import main

LOGS = [
    ("vc", "counting_results_superclevr_200_qwen2vl_2b_instruct_legacy.json", "superclevr_test200_counting_problems.jsonl", 96, 99),
    (
        "vc",
        "counting_results_superclevr_200_qwen2vl_2b_instruct_grpo100_legacy.json",
        "superclevr_test200_counting_problems.jsonl",
        165,
        165,
    ),
    ("gr", "geoqa_test_qwen2vl_7b_instruct_legacy.json", "geoqa_test_prompts.jsonl", 231, 199),
]


def replayer(outputs):
    """A model of lmms-eval that answers with recorded outputs."""
    from lmms_eval.api.model import lmms

    class Replay(lmms):
        is_simple = True

        def generate_until(self, requests):
            return [outputs[request.doc_id] for request in requests]

        def generate_until_multi_round(self, requests):
            raise AssertionError("not used")

        def loglikelihood(self, requests):
            raise AssertionError("not used")

    return Replay()


@pytest.mark.parametrize(("name", "log", "prompts", "correct_r1v", "correct"), LOGS)
def test_published_log(real_data, tmp_path, monkeypatch, name, log, prompts, correct_r1v, correct):
    import lmms_eval.models
    from lmms_eval.evaluator import simple_evaluate

    assert lmms_eval.models.list_available_models()
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    # The graders look at no picture; the logs' pictures are not all at hand, so every item gets a blank one.
    (tmp_path / "blank").mkdir()
    rows = [json.loads(line) for line in (real_data / "r1v_prompts" / prompts).read_text(encoding="utf-8").splitlines()]
    for row in rows:
        Image.new("RGB", (28, 28), "white").save(tmp_path / "blank" / row["image_path"].rpartition("/")[2])
    assert main(["data", "build", name, "--prompts", str(real_data / "r1v_prompts" / prompts), "--images", str(tmp_path / "blank")]) == 0

    recorded = json.loads((real_data / "r1v_logs" / log).read_text(encoding="utf-8"))["results"]
    results = simple_evaluate(model=replayer([row["model_output"] for row in recorded]), tasks=[f"mr1_{name}"], bootstrap_iters=0)
    assert results["config"]["process_docs_parallel"] == 4
    metrics = results["results"][f"mr1_{name}"]
    assert metrics["acc_r1v,none"] == correct_r1v / len(recorded)
    assert metrics["acc,none"] == correct / len(recorded)
    for sample, row in zip(results["samples"][f"mr1_{name}"], recorded, strict=True):
        verdict = row["is_correct"] if "is_correct" in row else row["extracted_answer"] == row["ground_truth"]
        assert sample["acc_r1v"] == verdict, sample["doc_id"]
        read, extracted = sample["mr1"]["extracted_r1v"], row["extracted_answer"]
        assert str(read).lower() == str(extracted).lower(), sample["doc_id"]
