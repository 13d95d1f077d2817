"""The embedded tiny checkpoint: small, deterministic, and readable by the Auto classes."""

import pytest
import torch
from PIL import Image

from mr1_bench.errors import UserError
from mr1_bench.trainers import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("models") / "tiny")


def test_loads_through_auto_classes_and_generates(checkpoint):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    assert model.config.model_type == "qwen2_vl"
    assert sum(p.numel() for p in model.parameters()) <= 1_000_000
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text.startswith(f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{image}How many?<|im_end|>")
    assert text.endswith("<|im_start|>assistant\n")
    inputs = processor(text=[text], images=[Image.new("RGB", (112, 112), "red")], return_tensors="pt")
    image_tokens = (inputs.input_ids == model.config.image_token_id).sum().item()
    assert image_tokens == (112 // 28) ** 2
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=5)
    assert out.shape[1] > inputs.input_ids.shape[1]


def test_pixels_change_the_logits(checkpoint):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}], add_generation_prompt=True
    )
    logits = [
        model(**processor(text=[text], images=[Image.new("RGB", (112, 112), colour)], return_tensors="pt")).logits[0, -1]
        for colour in ("red", "blue")
    ]
    assert not torch.allclose(*logits)


def test_same_seed_same_files(checkpoint, tmp_path):
    again = tiny.build(tmp_path / "again")
    names = sorted(path.name for path in checkpoint.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (checkpoint / name).read_bytes() == (again / name).read_bytes(), name


def test_digits_are_single_tokens_and_text_survives(checkpoint):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    text = "<think> 180 - 65 = 115 ∠ABC √3 </think>\n<answer>115°</answer>"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in tokenizer("115").input_ids] == ["1", "1", "5"]


def test_the_embedded_model_is_small_safe_and_at_mid_skill():
    """In the package at most 6 MB, safetensors alone; 50 to 70 % on both tasks (here on 150 validation items, so within wider bounds)."""
    from pathlib import Path

    from mr1_bench.model_files import embedded_model
    from mr1_bench.trainers import models
    from mr1_bench.trainers.batches import Processing
    from mr1_bench.trainers.config import GRPOConfig
    from mr1_bench.trainers.engine import make_engine
    from mr1_bench.trainers.evaluation import evaluate
    from mr1_bench.trainers.items import open_items

    files = list(embedded_model().iterdir())
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert {path.suffix for path in files} == {".json", ".jinja", ".safetensors"}
    for task in ("vc-synth", "gr-synth"):
        config = GRPOConfig(method="grpo", task=task, model="tiny", out=Path("unused"), eval_items=150, device="cpu")
        loaded = models.load(config)
        processing = Processing(loaded.processor, loaded.model, config)
        held_out = evaluate(loaded, make_engine(loaded, loaded.model), processing, open_items(config, "validation"), 128)
        assert 0.42 < held_out.accuracy < 0.78, task
        assert held_out.format > 0.97, task


def test_existing_folder_is_refused(checkpoint):
    with pytest.raises(UserError, match="exists"):
        tiny.build(checkpoint)
