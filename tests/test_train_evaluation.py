"""Evaluation during training: scores belong to their items, however the batch is cut up."""

import dataclasses
from pathlib import Path

import pytest
import torch

from mr1_bench.grading import grade
from mr1_bench.trainers import models
from mr1_bench.trainers.batches import Processing
from mr1_bench.trainers.config import GRPOConfig
from mr1_bench.trainers.engine import make_engine
from mr1_bench.trainers.evaluation import evaluate
from mr1_bench.trainers.items import open_items


@pytest.fixture(scope="module")
def config():
    return GRPOConfig(method="grpo", task="vc-synth,gr-synth", model="tiny", out=Path("unused"), eval_items=10, device="cpu")


@pytest.fixture(scope="module")
def loaded(config):
    return models.load(config)


def test_parts_of_any_size_give_the_same_answers(config, loaded):
    items = open_items(config, "validation")
    answers = []
    for parts in (0, 1, 3):
        processing = Processing(loaded.processor, loaded.model, dataclasses.replace(config, micro_prompts=parts))
        held_out = evaluate(loaded, make_engine(loaded, loaded.model), processing, items, 64)
        assert len(held_out.items) == 10
        assert held_out.scores == tuple(
            grade(item.spec, item.gold, text) for item, text in zip(held_out.items, held_out.texts, strict=True)
        )
        answers.append({item.id: text for item, text in zip(held_out.items, held_out.texts, strict=True)})
    assert answers[0] == answers[1] == answers[2]
    assert len(set(answers[0].values())) > 3


def test_answers_equal_those_of_generate(config, loaded):
    items = open_items(config, "validation")[:4]
    held_out = evaluate(loaded, make_engine(loaded, loaded.model), Processing(loaded.processor, loaded.model, config), items, 64)
    for item, text in zip(held_out.items, held_out.texts, strict=True):
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.prompt}]}]
        prompt = loaded.processor.apply_chat_template(message, add_generation_prompt=True)
        inputs = loaded.processor(text=[prompt], images=[item.image], return_tensors="pt")
        with torch.no_grad():
            ids = loaded.model.generate(**inputs, max_new_tokens=64, do_sample=False)[:, inputs.input_ids.shape[1] :]
        assert loaded.processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip() == text
