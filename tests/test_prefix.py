"""The shared prefix against the plain full forward of transformers: log-probabilities, gradients, greedy tokens; in every variant."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from mr1_bench.trainers import prefix
from mr1_bench.trainers.decode import sample
from mr1_bench.trainers.prefix import Completions, PromptBatch, completion_logprobs, encode_images, encode_prompt
from mr1_bench.trainers.tiny import VOCABULARY_SIZE

GROUP, LENGTH = 3, 9
QUESTIONS = ["How many?", "What is the size of the angle ABC in this figure, in degrees?", "1 2 3", "x"]
SIZES = [(112, 112), (168, 84), (56, 56), (84, 140)]  # four prompts of different lengths with images of different sizes


def qwen2(config):
    from transformers import Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration(config)


def qwen2_5(config):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        name: getattr(config.text_config, name)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 128, "window_size": 56}
    ids = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": dict(config.text_config.rope_parameters), "tie_word_embeddings": False},
            vision_config=vision | {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "fullatt_block_indexes": [1]},
            **{name: getattr(config, name) for name in ids},
        )
    )


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def config(tiny_checkpoint):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(tiny_checkpoint)


@pytest.fixture(params=[qwen2, qwen2_5])
def model(request, config):
    """Random weights, large enough that attention and pixels matter."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        built = request.param(config).eval()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.normal_(std=0.06) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.05)
    return built


def process(processor, repeats):
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}], add_generation_prompt=True
        )
        for question in QUESTIONS
        for _ in range(repeats)
    ]
    pictures = [Image.effect_noise(size, 60).convert("RGB") for size in SIZES]
    return processor(text=texts, images=[one for one in pictures for _ in range(repeats)], padding=True, return_tensors="pt")


@pytest.fixture(scope="module")
def inputs(processor):
    """The prompts once, and each repeated for its group (the pictures are the same: noise is drawn once)."""
    one = process(processor, 1)
    patches = one.image_grid_thw.prod(1).tolist()
    many = {name: one[name].repeat_interleave(GROUP, 0) for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")}
    many["pixel_values"] = torch.cat([part for part in one.pixel_values.split(patches) for _ in range(GROUP)])
    assert (one.attention_mask == 0).any(), "the prompts must differ in length"
    return one, many


@pytest.fixture(scope="module")
def completions():
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([9, 1, 4, 9, 2, 3, 9, 9, 5, 6, 7, 8])
    ids = torch.randint(8, 400, (len(SIZES) * GROUP, LENGTH), generator=generator)
    return Completions(ids, torch.arange(LENGTH) < lengths[:, None])


def batch_of(model, one):
    positions, _ = model.model.get_rope_index(
        one.input_ids, mm_token_type_ids=one.mm_token_type_ids, image_grid_thw=one.image_grid_thw, attention_mask=one.attention_mask
    )
    return PromptBatch(one.input_ids, one.attention_mask.bool(), positions, one.pixel_values, one.image_grid_thw)


def plain(model, many, completions, temperature=1.0):
    """What transformers computes for every sample by itself."""
    added = {
        "input_ids": completions.ids,
        "attention_mask": completions.mask.long(),
        "mm_token_type_ids": torch.zeros_like(completions.ids),
    }
    whole = many | {name: torch.cat((many[name], tail), 1) for name, tail in added.items()}
    logits = model(**whole).logits[:, many["input_ids"].shape[1] - 1 : -1].float() / temperature
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    taken = logprobs.gather(-1, completions.ids[..., None]).squeeze(-1)
    return taken.masked_fill(~completions.mask, 0), entropy.masked_fill(~completions.mask, 0)


def shared(model, one, completions, temperature=1.0, recompute=False):
    batch = batch_of(model, one)
    state = encode_prompt(model, batch, encode_images(model, batch), recompute=recompute)
    return completion_logprobs(model, state, completions, temperature=temperature, recompute=recompute)


def gradients(model, logprobs, completions):
    """Gradients of a loss that weighs every token differently."""
    weights = torch.randn(completions.ids.shape, generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    (logprobs * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def distance(ours, theirs):
    """Relative distance of two sets of gradients."""
    assert ours.keys() == theirs.keys()
    off = sum((ours[name] - theirs[name]).square().sum() for name in theirs)
    return float((off / sum(gradient.square().sum() for gradient in theirs.values())).sqrt())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropies_equal_the_plain_forward(model, inputs, completions, temperature):
    one, many = inputs
    with torch.no_grad():
        ours, theirs = shared(model, one, completions, temperature), plain(model, many, completions, temperature)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-5, rtol=0)
    assert ours[0].std() > 0.1


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_equal_the_plain_forward(model, inputs, completions, recompute):
    one, many = inputs
    if recompute:
        model.gradient_checkpointing_enable()
        model.train()
    ours = gradients(model, shared(model, one, completions, recompute=recompute)[0], completions)
    theirs = gradients(model, plain(model, many, completions)[0], completions)
    assert distance(ours, theirs) < 1e-5
    assert any("visual" in name and gradient.abs().sum() > 0 for name, gradient in ours.items())


def test_gradients_through_lora_adapters(model, inputs, completions):
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    one, many = inputs
    base = wrapped.get_base_model()
    ours = gradients(base, shared(base, one, completions)[0], completions)
    theirs = gradients(base, plain(base, many, completions)[0], completions)
    assert set(ours) and all("lora_" in name for name in ours)
    assert distance(ours, theirs) < 1e-5


def test_pieces_of_a_large_vocabulary_change_nothing(model, inputs, completions, monkeypatch):
    one, _ = inputs
    whole = gradients(model, shared(model, one, completions)[0], completions)
    monkeypatch.setattr(prefix, "_CHUNK", VOCABULARY_SIZE * 7)
    pieces = gradients(model, shared(model, one, completions)[0], completions)
    assert distance(pieces, whole) < 1e-6


def test_bf16_stays_as_near_to_fp32_as_the_plain_forward_does(model, inputs, completions):
    one, many = inputs
    with torch.no_grad():
        exact, _ = plain(model, many, completions)
        model.bfloat16()
        theirs, _ = plain(model, many, completions)
        ours, _ = shared(model, one, completions)
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean()


def test_one_token_completions(model, inputs):
    one, many = inputs
    short = Completions(torch.arange(10, 22)[:, None], torch.ones(12, 1, dtype=torch.bool))
    with torch.no_grad():
        assert torch.allclose(shared(model, one, short)[0], plain(model, many, short)[0], atol=1e-5)


def test_padding_never_reaches_the_loss(model, inputs, completions):
    one, _ = inputs
    other = replace(completions, ids=torch.where(completions.mask, completions.ids, 9))
    with torch.no_grad():
        first, second = shared(model, one, completions), shared(model, one, other)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert (first[0][~completions.mask] == 0).all()


def drawn(model, one, group, **changes):
    batch = batch_of(model, one)
    with torch.no_grad():
        state = encode_prompt(model, batch, encode_images(model, batch))
    settings = {"max_new_tokens": 12, "temperature": 0.0, "generator": None, "stop": (2,), "pad": 0} | changes
    return sample(model, state, group, **settings)


def test_greedy_tokens_equal_generate(model, inputs):
    one, _ = inputs
    theirs = model.generate(**one, max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0)[:, one.input_ids.shape[1] :]
    ours = drawn(model, one, 1)
    assert torch.equal(ours.ids, theirs[:, : ours.ids.shape[1]])
    assert len(set(map(tuple, ours.ids.tolist()))) > 1


def test_rows_that_end_early_are_dropped_without_changing_the_rest(model, inputs):
    one, _ = inputs
    free = drawn(model, one, 1, stop=())
    stop = tuple({int(free.ids[0, 1]), int(free.ids[1, 3]), int(free.ids[2, 5])})
    ours = drawn(model, one, 1, stop=stop)
    for row, length in enumerate(ours.lengths.tolist()):
        ends = [t for t, token in enumerate(free.ids[row].tolist()) if token in stop]
        expected = ends[0] + 1 if ends else 12
        assert length == expected
        assert ours.ids[row, :length].tolist() == free.ids[row, :length].tolist()
        assert (ours.ids[row, length:] == 0).all()
    assert len(set(ours.lengths.tolist())) > 1


def test_sampling_follows_the_distribution(model, inputs):
    one, _ = inputs
    group = 4000
    ours = drawn(model, one, group, max_new_tokens=1, temperature=1.3, generator=torch.Generator().manual_seed(0))
    token = Completions(torch.arange(VOCABULARY_SIZE).repeat(4)[:, None], torch.ones(4 * VOCABULARY_SIZE, 1, dtype=torch.bool))
    with torch.no_grad():
        logprobs, _ = shared(model, one, token, 1.3)
    expected = logprobs.view(4, VOCABULARY_SIZE).exp()
    observed = torch.stack([row.bincount(minlength=VOCABULARY_SIZE) / group for row in ours.ids.view(4, group)])
    assert expected.sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-4)
    error = (observed - expected).abs() / (expected * (1 - expected) / group + 1e-9).sqrt()
    assert error.max() < 5.5


def test_sampling_is_a_function_of_the_seed(model, inputs):
    one, _ = inputs
    first, again, other = (drawn(model, one, 4, temperature=1.0, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.ids, again.ids)
    assert first.ids.shape != other.ids.shape or not torch.equal(first.ids, other.ids)


def test_cut_off_counts_completions_without_an_end():
    ids = torch.tensor([[5, 6, 2], [5, 6, 7], [5, 2, 0]])
    mask = torch.tensor([[True, True, True], [True, True, True], [True, True, False]])
    assert Completions(ids, mask).cut_off(3, (2,)) == 1
    assert Completions(ids, mask).cut_off(4, (2,)) == 0
