"""The cost model of docs/scaling.md: the document holds what the script prints, and one case is as reckoned by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

PERF = Path(__file__).parent.parent / "perf"


@pytest.fixture(scope="module")
def scaling():
    sys.path.insert(0, str(PERF))
    try:
        import scaling

        yield scaling
    finally:
        sys.path.remove(str(PERF))


def test_the_document_holds_what_the_script_prints(scaling):
    text = scaling.DOCUMENT.read_text(encoding="utf-8")
    assert scaling.embedded(text) == scaling.document(), "run perf/scaling.py --write"


def test_the_models_have_as_many_weights_as_published(scaling):
    # transformers counts 2,208,985,600 and 8,291,375,616 parameters of Qwen2-VL-2B- and 7B-Instruct
    assert scaling.MODELS["2B"].total == pytest.approx(2_208_985_600, rel=1e-3)
    assert scaling.MODELS["7B"].total == scaling.MODELS["7B-all"].total == pytest.approx(8_291_375_616, rel=1e-3)


def test_a_step_of_7b_with_adapters_on_64_gpus(scaling):
    model = scaling.MODELS["7B"]
    config = scaling.recipe(model, "grpo-d", "gr")
    assert (config.prompts_per_step, config.num_generations, config.max_new_tokens, config.lora_rank) == (16, 8, 512, 64)
    found = scaling.step(model, config, scaling.TASKS["gr"], 64)
    # A layer: 2 * 3584^2 + 2 * 3584 * 512 + 3 * 3584 * 18944 = 233,046,016 weights; 28 of them and the head, 152064 * 3584: 7,070,285,824.
    # Each of 512 steps reads them (2 bytes each) at 0.7 * 3.35 TB/s: 512 * 6.0300 ms = 3.0874 s. Two samples of 173 tokens, each token
    # reading on average 139 + 86.5 tokens of 57,344 bytes: 1.9 ms. 161,480,704 adapter weights at 28 bytes: 1.9 ms.
    assert model.decoded == 7_070_285_824
    assert model.trained == 28 * 64 * (4 * 3584 + 2 * (3584 + 512) + 3 * (3584 + 18944)) == 161_480_704
    assert found["memory"] == pytest.approx(3.0874 + 0.0019 + 0.0019, abs=2e-4)
    assert found["launches"] == pytest.approx(512 * 0.003)
    # All-reduce of 4 * 161,480,704 bytes, twice (7/8 at 450 GB/s + 1/8 * 7/8 at 50 GB/s) / 0.7: 2 * 3.81 ms.
    assert found["network"] == pytest.approx(0.00763, rel=2e-3)
    assert found["idle"] == 0
    assert found.bottleneck == "memory"
    # About 2 operations a weight and token: 2 samples of 22 + 117 + 173 tokens pass forward 4 times (reference, policy, again for the
    # backward pass, and its own like), one of the tokens less, and attention and the vision tower more.
    passes = 4 * 2 * 312 * 2 * 6.53e9 / (0.35 * 989e12)
    assert found["compute"] == pytest.approx(passes, rel=0.15)


def test_the_document_says_what_the_network_takes(scaling):
    shares = {}
    for key, model in scaling.MODELS.items():
        for method in scaling.RUNS:
            for family in scaling.TASKS:
                config = scaling.recipe(model, method, family)
                for gpus in (count for count in (1, 2, 4, 8, 16, 32, 64) if scaling.fits(model, count)):
                    found = scaling.step(model, config, scaling.TASKS[family], gpus)
                    shares[key, method, family, gpus] = found["network"] / found.total
                    if method == "sft" and not model.rank and gpus >= 8:
                        assert found.bottleneck == "network"
                        whole = scaling.training(model, config, gpus)
                        assert whole["files"] > found.total * config.steps
    most = max((case for case in shares if case[1] == "grpo-d"), key=shares.get)
    assert most == ("7B-all", "grpo-d", "vc", 64)
    text = " ".join(scaling.DOCUMENT.read_text(encoding="utf-8").split())
    assert f"The network takes {100 * shares[most]:.0f} % of a step at most (7B, all weights, counting, 64 GPUs)" in text
    assert "the largest part of the step from 8 GPUs on" in text


def test_beside_adapters_the_frozen_tower_is_passed_forward_only(scaling):
    model, task = scaling.MODELS["7B"], scaling.TASKS["vc"]
    config = scaling.recipe(model, "sft", "vc")
    assert config.gradient_checkpointing
    found = scaling.step(model, config, task, 1)["compute"]
    wide = scaling.step(model, config, replace(task, train_image=2 * task.train_image, text=task.text - task.train_image), 1)["compute"]
    # As many tokens for the decoder, twice the patches (4 a token) for the tower: 32 blocks of 12 * 1280^2 weights, and attention.
    patches = 4 * task.train_image
    tower = 2 * patches * 32 * 12 * 1280**2 + 4 * 32 * 1280 * ((2 * patches) ** 2 - patches**2)
    assert wide - found == pytest.approx(config.prompts_per_step * tower / (0.35 * 989e12), rel=0.05)


def test_where_nothing_is_left_to_divide_gpu_hours_grow(scaling):
    for model in scaling.MODELS.values():
        for method in scaling.RUNS:
            for family in scaling.TASKS:
                config = scaling.recipe(model, method, family)
                costs = [gpus * scaling.training(model, config, gpus).total for gpus in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
                assert costs == sorted(costs)
    sft = scaling.step(scaling.MODELS["2B"], scaling.recipe(scaling.MODELS["2B"], "sft", "gr"), scaling.TASKS["gr"], 64)
    assert sft["idle"] > 0  # 16 items on 64 GPUs
