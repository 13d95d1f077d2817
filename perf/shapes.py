"""The model shapes that the trainer is measured at, with random weights, and the prompts that go with them.

Small, medium and large are the three shapes of the first measurement of prefix sharing; `qwen2-vl-2b` has the sizes of the real model.
Prompts are the counting task's own, over synthetic images of the shape's size. This file must not know trainers or clocks.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mr1_bench import prompts
from mr1_bench.specs import get_spec
from mr1_bench.synth import make_item
from mr1_bench.trainers import tiny

if TYPE_CHECKING:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    from mr1_bench.trainers.items import Item

TASK = "mr1_vc_synth"


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model and of the work it is given.

    Attributes:
        hidden, layers, mlp, heads, key_heads: of the language model.
        vision_hidden, vision_layers, vision_heads: of the vision tower, whose MLP is 4 times as wide as its states.
        vocabulary: rows of the embedding.
        pixels: side of the square images.
        new_tokens: length of every completion.
        prompts, group: P prompts a step, G samples a prompt.
        tokenizer: tokens of the tokenizer where it is smaller than the vocabulary.
    """

    hidden: int
    layers: int
    mlp: int
    heads: int
    key_heads: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vocabulary: int
    pixels: int
    new_tokens: int
    prompts: int = 4
    group: int = 8
    tokenizer: int | None = None

    @property
    def head(self) -> int:
        """Width of one attention head of the language model."""
        return self.hidden // self.heads


SHAPES = {
    "small": Shape(64, 2, 192, 4, 2, 64, 1, 4, 341, 56, 13),
    "medium": Shape(128, 4, 384, 4, 2, 96, 2, 4, 341, 56, 32),
    "large": Shape(128, 4, 384, 4, 2, 96, 2, 4, 341, 112, 64),
    "wide": Shape(512, 8, 1536, 8, 2, 256, 4, 4, 341, 112, 32),  # where the products outweigh what surrounds them
    # Prompts of about 300 and 1300 tokens: 225 and 1225 of them are the image's, 28 x 28 pixels each.
    "qwen2-vl-2b": Shape(1536, 28, 8960, 12, 2, 1280, 32, 16, 151936, 420, 200, 8, 8, 480),
    "qwen2-vl-2b-long": Shape(1536, 28, 8960, 12, 2, 1280, 32, 16, 151936, 980, 200, 8, 8, 480),
}


def build_processor(shape: Shape) -> Qwen2VLProcessor:
    """The tiny model's processor with a vocabulary of the shape's size."""
    return tiny.build_processor(shape.tokenizer or shape.vocabulary)


def build_config(shape: Shape, processor: Qwen2VLProcessor) -> Qwen2VLConfig:
    """The configuration of a model of this shape, with the token ids of the tiny model's tokenizer."""
    from transformers import Qwen2VLConfig

    base = tiny.build_config(processor.tokenizer).to_dict()
    half = shape.head // 2  # split into time, height and width as in the real model: 16, 24 and 24 of 64
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    text = base["text_config"] | {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
    }
    text.pop("layer_types", None)  # one entry a layer of the tiny model
    vision = base["vision_config"] | {
        "depth": shape.vision_layers,
        "embed_dim": shape.vision_hidden,
        "hidden_size": shape.hidden,
        "num_heads": shape.vision_heads,
        "mlp_ratio": 4,
    }
    ids = {name: base[name] for name in ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")}
    return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


def build_model(
    shape: Shape, processor: Qwen2VLProcessor, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Qwen2VLForConditionalGeneration:
    """A model with random weights, made on the device. No draw ends its completions: its end token lies past the vocabulary."""
    from transformers import GenerationConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = Qwen2VLForConditionalGeneration(build_config(shape, processor))
    finally:
        torch.set_default_dtype(before)
    model.generation_config = GenerationConfig(eos_token_id=[shape.vocabulary], pad_token_id=processor.tokenizer.pad_token_id)
    return model.eval()


def build_items(shape: Shape, count: int, template: str = "vc_think") -> list[Item]:
    """Items of the embedded counting task, drawn at the shape's image size and asked with a template of `mr1_bench.prompts`."""
    from mr1_bench.trainers.items import Item

    spec = get_spec(TASK)
    items = []
    for index in range(count):
        one = make_item("vc", "train", 1, index)
        png = io.BytesIO()
        one.draw(shape.pixels).save(png, format="PNG")
        text = prompts.render(template, one.question)
        fields: dict[str, Any] = {"gold": one.gold, "solution": one.solution, "image_bytes": png.getvalue(), "meta": {}}
        items.append(Item(id=one.id, spec=spec, prompt=text, **fields))
    return items
