import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mr1_bench.errors import UserError
from mr1_bench.images import encode_png
from mr1_bench.trainers import plain
from mr1_bench.trainers.batches import Part, Processing
from mr1_bench.trainers.config import GRPOConfig
from mr1_bench.trainers.engine import SharedEngine, make_engine, stop_tokens
from mr1_bench.trainers.items import Item, open_items
from mr1_bench.trainers.models import Loaded, export, load, make_reference
from mr1_bench.trainers.plain import PlainEngine
from mr1_bench.trainers.prefix import Completions


def make_config(model: Path, **changes: object) -> GRPOConfig:
    given = {"method": "grpo", "task": "vc-synth,gr-synth", "model": str(model), "out": Path("run"), "device": "cpu"} | changes
    return GRPOConfig(**given)  # type: ignore[arg-type]


def some_items(config: GRPOConfig, sizes: tuple[tuple[int, int], ...] = ((112, 112), (56, 84), (140, 56))) -> list[Item]:
    """Items with prompts of different lengths and pictures of different sizes."""
    train = open_items(config, "train")
    return [replace(train[i], image_bytes=encode_png(train[i].image.resize(size))) for i, size in enumerate(sizes)]


def part_of(loaded: Loaded, config: GRPOConfig) -> Part:
    return Processing(loaded.processor, loaded.model, config)(some_items(config)).parts[0]


def make_completions(rows: int, vocabulary: int, pad: int) -> Completions:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 8, (rows, 1), generator=generator)
    ids = torch.randint(3, vocabulary, (rows, int(lengths.max())), generator=generator)
    mask = torch.arange(ids.shape[1]) < lengths
    return Completions(torch.where(mask, ids, pad), mask)


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


# Against the shared path


@pytest.fixture(scope="session")
def newer(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Qwen2.5-VL, whose vision tower attends in windows."""
    from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    tiny = AutoConfig.from_pretrained(tiny_checkpoint)
    width = tiny.text_config.hidden_size
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": width, "num_heads": 2, "intermediate_size": 48, "window_size": 56}
    config = Qwen2_5_VLConfig(
        text_config=tiny.text_config.to_dict(),
        vision_config=vision | {"patch_size": 14, "spatial_merge_size": 2, "fullatt_block_indexes": [1]},
        image_token_id=tiny.image_token_id,
        video_token_id=tiny.video_token_id,
        vision_start_token_id=tiny.vision_start_token_id,
        vision_end_token_id=tiny.vision_end_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tiny.text_config.eos_token_id
    old = AutoProcessor.from_pretrained(tiny_checkpoint)
    folder = tmp_path_factory.mktemp("models") / "qwen2_5"
    model.save_pretrained(folder)
    Qwen2_5_VLProcessor(old.image_processor, old.tokenizer, old.video_processor, chat_template=old.chat_template).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model", "changes"),
    [("tiny_checkpoint", {}), ("tiny_checkpoint", {"lora_rank": 2}), ("tiny_checkpoint", {"gradient_checkpointing": True}), ("newer", {})],
)
def test_it_equals_the_shared_path_in_log_probabilities_and_gradients(
    request: pytest.FixtureRequest, model: str, changes: dict[str, object]
) -> None:
    config = make_config(request.getfixturevalue(model), **changes)
    loaded = load(config)
    part = part_of(loaded, config)
    stop, pad = stop_tokens(loaded)
    completions = make_completions(6, 300, pad)
    weights = torch.randn(completions.ids.shape, generator=torch.Generator().manual_seed(0)) * completions.mask
    results = []
    engines = (
        SharedEngine(loaded.model, stop, pad),
        PlainEngine(loaded.model, loaded.processor, stop, pad, recompute=config.gradient_checkpointing),
    )
    for engine in engines:
        logprobs, entropies = engine.logprobs(engine.encode(part), completions, temperature=0.7)
        assert not entropies.requires_grad
        results.append((logprobs.detach(), entropies, gradients(loaded.model, (logprobs * weights).sum())))
    (shared, shared_entropies, shared_grads), (full, full_entropies, full_grads) = results
    mask = completions.mask
    assert torch.allclose(full[mask], shared[mask], rtol=0, atol=1e-5)
    assert torch.allclose(full_entropies[mask], shared_entropies[mask], rtol=0, atol=1e-5)
    assert not full[~mask].any() and not full_entropies[~mask].any()
    assert full_grads.keys() == shared_grads.keys()
    for name, value in full_grads.items():
        assert (value - shared_grads[name]).norm() <= 1e-5 * shared_grads[name].norm() + 1e-8, name


def test_it_draws_what_the_shared_path_draws_at_temperature_0(tiny_checkpoint: Path) -> None:
    config = make_config(tiny_checkpoint, rollout="plain", max_pixels=28 * 28 * 6)
    loaded = load(config)
    part = part_of(loaded, config)
    assert part.prompts is not None and int(part.prompts.grids.prod(-1).max()) <= 6 * 4
    engine = make_engine(loaded, loaded.model, rollout="plain")
    assert isinstance(engine, PlainEngine)
    settings: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0.0, "generator": None}
    shared = SharedEngine(loaded.model, *stop_tokens(loaded))
    expected, drawn = shared.sample(shared.encode(part), 2, **settings), engine.sample(engine.encode(part), 2, **settings)
    assert torch.equal(drawn.ids, expected.ids) and torch.equal(drawn.mask, expected.mask)


# Another family


CHAT = """\
{%- for message in messages -%}
{{ message.role }}: {% for part in message.content -%}
{%- if part.type == 'image' -%}<image>
{% else -%}{{ part.text }}{%- endif -%}
{%- endfor %}
{% endfor -%}
{%- if add_generation_prompt -%}assistant:{% endif -%}
"""


@pytest.fixture(scope="session")
def llava(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained LLaVA: another vision tower, projector, position scheme and processor."""
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        GenerationConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    )
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "attention_dropout": 0.5,  # must be off in training
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = LlavaConfig(
        text_config=text,
        vision_config={"model_type": "clip_vision_model", **vision},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    folder = tmp_path_factory.mktemp("models") / "llava"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def alone(loaded: Loaded, item: Item, text: str, tokens: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of one completion after one prompt: no padding, nothing repeated."""
    inputs = loaded.processor(text=[text], images=[item.image], return_tensors="pt")
    ids = torch.cat((inputs["input_ids"], tokens[None]), 1)
    with torch.no_grad():
        logits = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"]).logits
    logprobs = (logits[0, -len(tokens) - 1 : -1] / temperature).log_softmax(-1)
    return logprobs[torch.arange(len(tokens)), tokens], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}, {"gradient_checkpointing": True}])
def test_another_model_is_computed_in_full(llava: Path, changes: dict[str, object]) -> None:
    config = make_config(llava, **changes)
    loaded = load(config)
    assert not loaded.shares
    engine = make_engine(loaded, loaded.model, recompute=config.gradient_checkpointing)
    part = part_of(loaded, config)
    assert part.prompts is None
    completions = make_completions(6, 300, stop_tokens(loaded)[1])
    logprobs, entropies = engine.logprobs(engine.encode(part), completions, temperature=1.3)
    assert logprobs.requires_grad and not entropies.requires_grad
    for row, (tokens, length) in enumerate(zip(completions.ids, completions.lengths.tolist(), strict=True)):
        expected = alone(loaded, part.items[row // 2], part.texts[row // 2], tokens[:length], 1.3)
        assert torch.allclose(logprobs[row, :length], expected[0], rtol=0, atol=1e-5)
        assert torch.allclose(entropies[row, :length], expected[1], rtol=0, atol=1e-5)


def test_another_model_learns_from_its_completions(llava: Path) -> None:
    config = make_config(llava, gradient_checkpointing=True, freeze_vision=True)
    loaded = load(config)
    reference = make_reference(loaded)
    engine = make_engine(loaded, loaded.model, recompute=True)
    part = part_of(loaded, config)
    drawn = engine.sample(engine.encode(part), 2, max_new_tokens=6, temperature=1.0, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([value for value in loaded.model.parameters() if value.requires_grad], lr=0.05)
    means = []
    for _ in range(2):
        logprobs, _ = engine.logprobs(engine.encode(part), drawn, temperature=1.0)
        means.append(logprobs.sum().item() / int(drawn.mask.sum()))
        (-logprobs.sum() / drawn.mask.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert means[1] > means[0]
    with reference() as model, torch.no_grad():
        start, _ = make_engine(loaded, model).logprobs(part, drawn, temperature=1.0)
    assert start.sum().item() / int(drawn.mask.sum()) == pytest.approx(means[0], abs=1e-5)


def test_samples_come_from_the_generator_and_leave_the_global_state_alone(llava: Path) -> None:
    config = make_config(llava)
    loaded = load(config)
    engine, part = make_engine(loaded, loaded.model), part_of(loaded, config)

    def draw(seed: int) -> Completions:
        generator = torch.Generator().manual_seed(seed)
        return engine.sample(engine.encode(part), 4, max_new_tokens=6, temperature=1.0, generator=generator)

    before = torch.random.get_rng_state()
    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.ids, again.ids) and torch.equal(first.mask, again.mask)
    assert first.ids.shape != other.ids.shape or not torch.equal(first.ids, other.ids)
    assert len(first.ids) == 12 and len({tuple(row.tolist()) for row in first.ids[:4]}) > 1


def test_sampling_follows_the_temperature_and_nothing_else(llava: Path) -> None:
    """The first token's frequencies are its probabilities, whatever the model's own generation config says."""
    config = make_config(llava)
    loaded = load(config)
    loaded.model.generation_config.top_k, loaded.model.generation_config.repetition_penalty = 2, 5.0
    engine = make_engine(loaded, loaded.model)
    part = Processing(loaded.processor, loaded.model, config)(some_items(config)[:1]).parts[0]
    rows = 3000
    drawn = engine.sample(part, rows, max_new_tokens=1, temperature=1.5, generator=torch.Generator().manual_seed(3))
    seen = torch.bincount(drawn.ids[:, 0], minlength=16).double() / rows
    likeliest = seen.argsort(descending=True)[:3]
    completions = Completions(likeliest[:, None], torch.ones(3, 1, dtype=torch.bool))
    with torch.no_grad():
        expected = engine.logprobs(part, completions, temperature=1.5)[0].exp().flatten().double()
    # Five standard errors of a share.
    assert bool(((seen[likeliest] - expected).abs() < 5 * (expected * (1 - expected) / rows).sqrt()).all())
    assert int((seen > 0).sum()) > 10


def test_completions_end_after_their_first_end_token() -> None:
    drawn = plain._completions(torch.tensor([[5, 2, 7, 7], [5, 6, 3, 2], [2, 2, 2, 2]]), stop=(2, 3), pad=0)
    assert drawn.ids.tolist() == [[5, 2, 0], [5, 6, 3], [2, 0, 0]]
    assert drawn.lengths.tolist() == [2, 3, 1]


def test_large_vocabularies_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0), requires_grad=True)
    completions = Completions(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[True] * 3, [True, True, False]]))
    whole, entropies = plain._logprobs(logits, completions, 0.5)
    (expected,) = torch.autograd.grad(whole.sum(), logits)
    monkeypatch.setattr(plain, "_CHUNK", 25)
    pieces, again = plain._logprobs(logits, completions, 0.5)
    assert torch.equal(whole, pieces) and torch.equal(entropies, again)
    assert torch.equal(torch.autograd.grad(pieces.sum(), logits)[0], expected)


def test_it_says_once_that_the_model_cannot_share(llava: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain._say_once.cache_clear()
    loaded = load(make_config(llava))
    with caplog.at_level(logging.WARNING):
        make_engine(loaded, loaded.model)
        make_engine(loaded, loaded.model)
    assert [record.getMessage() for record in caplog.records] == [
        "plain path: a model of type 'llava' cannot share its prompts (qwen2_vl, qwen2_5_vl can); "
        "image and prompt are computed once a sample"
    ]


def test_limits_hold_for_another_model(llava: Path) -> None:
    config = make_config(llava)
    loaded = load(config)
    items = some_items(config)
    with pytest.raises(UserError, match=r"the prompt has \d+ tokens .*; the limit is 20"):
        Processing(loaded.processor, loaded.model, replace(config, max_prompt_tokens=20))(items)
    with pytest.raises(UserError, match="holds 2 image placeholders '<image>'"):
        Processing(loaded.processor, loaded.model, config)([replace(items[0], prompt="<image>?")])
    part = Processing(loaded.processor, loaded.model, replace(config, max_pixels=6000))(items).parts[0]
    # 112 x 112 and 140 x 56 have more than 6000 pixels, 56 x 84 has not.
    assert [item.image.size for item in part.items] == [(77, 77), (56, 84), (122, 48)]


def test_another_model_is_exported_as_it_came(llava: Path, tmp_path: Path) -> None:
    config = make_config(llava, lora_rank=2, freeze_vision=True)
    loaded = load(config)
    engine, part = make_engine(loaded, loaded.model), part_of(loaded, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in loaded.model.named_parameters():
            assert not (value.requires_grad and "vision" in name)
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    completions = make_completions(3, 300, 0)
    moved, _ = engine.logprobs(part, completions, temperature=1.0)
    export(loaded, tmp_path)
    for name in ("tokenizer.json", "processor_config.json"):
        assert (tmp_path / name).read_bytes() == (llava / name).read_bytes(), name
    again = load(make_config(tmp_path))
    merged, _ = make_engine(again, again.model).logprobs(part, completions, temperature=1.0)
    assert torch.allclose(merged[completions.mask], moved[completions.mask], rtol=0, atol=1e-5)
