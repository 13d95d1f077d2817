"""The memory estimate: exact in what lasts, near in what passes, and a refusal that says what helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from mr1_bench.errors import UserError
from mr1_bench.trainers import memory, prefix
from mr1_bench.trainers.config import GRPOConfig, SFTConfig
from mr1_bench.trainers.memory import Workload, available_memory, estimate, human_bytes, require, workload
from mr1_bench.trainers.optimizer import Optimizer

GIB = 2**30

# Qwen2-VL-2B-Instruct: sizes from its config.json; parameters with tied embeddings.
QWEN_2B = Workload(
    hidden=1536,
    layers=28,
    intermediate=8960,
    vocabulary=151936,
    key_width=256,
    query_groups=6,
    vision_hidden=1280,
    vision_layers=32,
    vision_intermediate=5120,
    total=2_208_985_600,
    trainable=2_208_985_600,
    vision_total=665_272_832,
    lora_rank=0,
    prompts=8,
    micro_prompts=8,
    group=8,
    prompt_tokens=300,
    image_tokens=200,
    completion_tokens=200,
    dtype="bfloat16",
    checkpointing=False,
    reference=True,
    rollout=True,
    train_vision=True,
    cuda=True,
)


def remedy(advice: str) -> Workload:
    return dict(memory._remedies(QWEN_2B))[advice](QWEN_2B)


def make_config(**changes: Any) -> GRPOConfig:
    return GRPOConfig(method="grpo", task="vc-synth", model="tiny", out=Path("unused"), **changes)


def make_model(dtype: torch.dtype = torch.float32, heads: int = 8, key_heads: int = 2) -> Any:
    sizes = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3, "vocab_size": 100}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": key_heads, "rope_parameters": rope, "pad_token_id": 0}
    tower = {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 4, "mlp_ratio": 4}
    marks = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
    config = Qwen2VLConfig(text_config=sizes | heads_of, vision_config=tower, tie_word_embeddings=True, **marks)
    return Qwen2VLForConditionalGeneration(config).eval().to(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_lasts_is_exact(dtype: Any) -> None:
    model = make_model(getattr(torch, dtype))
    config = make_config(dtype=dtype)
    optimizer = Optimizer(model, config)
    for param in model.parameters():
        (param.float().sum() * 0.1).backward()
    optimizer.step(1e-3)
    found = estimate(workload(model, config))
    size = {name: tensor.numel() * tensor.element_size() for name, tensor in optimizer.tensors().items()}
    own = sum(param.numel() * param.element_size() for param in model.parameters())
    masters = sum(count for name, count in size.items() if name.startswith("param/"))
    assert found.weights == found.reference == own
    assert found.master == (masters if dtype == "bfloat16" else 0)
    assert found.moments == sum(count for name, count in size.items() if name.startswith("exp_avg"))
    assert found.gradients == masters
    assert found.overhead == 0


def test_frozen_weights_and_adapters_need_no_state() -> None:
    model = make_model()
    model.requires_grad_(False)
    model.model.language_model.norm.weight.requires_grad_(True)
    load = workload(model, make_config(lora_rank=4))
    found = estimate(load)
    assert (load.trainable, load.train_vision, load.reference) == (128, False, False)
    assert (found.moments, found.gradients, found.reference) == (8 * 128, 4 * 128, 0)


def test_supervised_training_has_neither_rollout_nor_reference() -> None:
    load = workload(make_model(), SFTConfig(method="sft", task="vc", model="m", out=Path("x")))
    assert (load.group, load.rollout, load.reference) == (1, False, False)
    assert "rollout" not in estimate(load).table()
    assert not workload(make_model(), make_config(beta_max=0.0)).reference


def kept_bytes(model: Any, load: Workload) -> int:
    """Bytes that the passes really keep for their backward pass, parameters aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}  # holding the storages keeps their addresses from being used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    side = int((4 * load.image_tokens) ** 0.5)
    ids = torch.full((load.micro_prompts, load.prompt_tokens), 7)
    ids[:, 1 : 1 + load.image_tokens] = 5
    positions = torch.arange(load.prompt_tokens).expand(3, load.micro_prompts, -1)
    pixels = torch.zeros(load.micro_prompts * side * side, 3 * 2 * 14 * 14)
    batch = prefix.PromptBatch(ids, ids > 0, positions, pixels, torch.tensor([[1, side, side]] * load.micro_prompts))
    completions = torch.full((load.micro_prompts * load.group, load.completion_tokens), 7)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        images = prefix.encode_images(model, batch)
        shared = prefix.encode_prompt(model, batch, images, recompute=load.checkpointing)
        drawn = prefix.Completions(completions, completions > 0)
        results = prefix.completion_logprobs(model, shared, drawn, recompute=load.checkpointing)
    for tensor in (*shared.keys, *shared.values):
        pack(tensor)
    del results
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("heads", "key_heads"), [(8, 2), (8, 8)])
@pytest.mark.parametrize(("prompt", "image", "completion"), [(60, 16, 40), (150, 100, 30)])
def test_what_passes_is_near(heads: int, key_heads: int, checkpointing: bool, prompt: int, image: int, completion: int) -> None:
    model = make_model(heads=heads, key_heads=key_heads)
    config = make_config(prompts_per_step=2, num_generations=4, max_new_tokens=completion, gradient_checkpointing=checkpointing)
    load = workload(model, config, prompt_tokens=prompt, image_tokens=image)
    found = estimate(load)
    kept = kept_bytes(model, load)
    one_layer = 0
    if checkpointing:  # the layer that is computed again is not among the kept
        full = estimate(replace(load, checkpointing=False))
        one_layer = (full.activations - found.activations) // load.layers
    assert 0.85 * kept <= found.activations + found.logits <= 1.5 * kept + 2 * one_layer


def test_the_2b_model_by_hand() -> None:
    found = estimate(QWEN_2B)
    assert found.weights == found.reference == 2 * 2_208_985_600
    assert (found.master, found.moments, found.gradients) == (4 * 2_208_985_600, 8 * 2_208_985_600, 4 * 2_208_985_600)
    cache = 64 * 500 * 2 * 256 * 28 * 2  # samples, tokens, keys and values, layers, bytes
    assert found.rollout > cache
    assert found.logits == 2**26 // 151936 * 151936 * 24
    assert found.total == (
        found.weights + found.master + found.moments + found.reference + max(found.update, found.rollout) + found.overhead
    )
    assert 60 * GIB < found.total < 130 * GIB
    table = found.table()
    assert table.startswith("about ") and "weights 4.1 GiB + master 8.2 GiB + moments 16.5 GiB + reference 4.1 GiB" in table
    assert "\n" not in table


def test_a_run_that_fits_passes() -> None:
    found = estimate(QWEN_2B)
    require(found, found.total)
    require(found, None)


def test_a_run_that_cannot_fit_is_told_what_helps() -> None:
    found = estimate(QWEN_2B)
    with pytest.raises(UserError) as caught:
        require(found, 24 * GIB)
    message = str(caught.value)
    assert message.startswith(
        f"the run needs about {human_bytes(found.total)} of memory, and the GPU has 24.0 GiB for it. What would help: "
    )
    for name in ("gradient-checkpointing", "micro-prompts 1", "lora-rank 16", "freeze-vision", "max-pixels 78400", "num-generations 4"):
        assert f"--{name} saves " in message, name
    assert "--dtype" not in message  # it is bfloat16 already
    assert found.table() in message
    lora = estimate(remedy("--lora-rank 16"))
    assert f"--lora-rank 16 saves {human_bytes(found.total - lora.total)} (then {human_bytes(lora.total)})" in message
    assert "Even all of them together" not in message, message
    with pytest.raises(UserError, match=r"Even all of them together need .*: take a smaller model or a larger device"):
        require(found, 2 * GIB)


def test_a_remedy_that_is_enough_says_so() -> None:
    found = estimate(QWEN_2B)
    enough = estimate(replace(QWEN_2B, checkpointing=True)).total
    with pytest.raises(UserError, match=r"--gradient-checkpointing saves \S+ GiB \(then \S+ GiB, which fits\)"):
        require(found, enough)


def test_lora_counts_its_adapters_as_peft_does() -> None:
    # 28 layers of rank 16 over q, k, v, o, gate, up and down: as peft prints for Qwen2-VL-2B's language model.
    changed = remedy("--lora-rank 16")
    per_layer = 2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960)
    assert changed.trainable == 28 * 16 * per_layer == 18_464_768


def test_all_remedies_together_do_not_freeze_the_tower_twice() -> None:
    together = QWEN_2B
    for _, change in memory._remedies(QWEN_2B):
        together = change(together)
    assert together.trainable == 18_464_768
    assert (together.image_tokens, together.prompt_tokens, together.group, together.micro_prompts) == (100, 200, 4, 1)


@given(
    data=st.fixed_dictionaries(
        {
            "prompts": st.integers(2, 16),
            "group": st.integers(2, 16),
            "prompt_tokens": st.integers(64, 2000),
            "completion_tokens": st.integers(1, 1000),
            "dtype": st.sampled_from(["float32", "bfloat16"]),
        }
    )
)
def test_more_work_needs_more_and_every_remedy_less(data: dict[str, Any]) -> None:
    load = replace(QWEN_2B, **data, image_tokens=64, micro_prompts=data["prompts"])
    found = estimate(load).total
    for name in ("group", "completion_tokens", "prompt_tokens"):
        assert estimate(replace(load, **{name: getattr(load, name) + 8})).total > found
    assert all(estimate(change(load)).total <= found for _, change in memory._remedies(load))


def test_this_machine_has_memory() -> None:
    available = available_memory(torch.device("cpu"))
    assert available is None or 2**27 < available < 2**46


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (5e12, "4657 GiB")]
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert human_bytes(size) == text


def test_the_plain_path_needs_the_prompt_once_a_completion_and_all_logits() -> None:
    shared = estimate(QWEN_2B)
    plain = estimate(replace(QWEN_2B, shared=False))
    w = QWEN_2B
    assert plain.logits - shared.logits == 2 * w.micro_prompts * w.group * w.completion_tokens * w.vocabulary * 2  # bytes of bfloat16
    assert plain.activations > shared.activations
    assert (plain.weights, plain.moments) == (shared.weights, shared.moments)
