import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mr1_bench import data, data_build, data_sources, prompts
from mr1_bench.errors import UserError
from mr1_bench.trainers import batches
from mr1_bench.trainers import items as items_module
from mr1_bench.trainers.batches import Batch, Prefetch, Processing
from mr1_bench.trainers.config import GRPOConfig, SFTConfig
from mr1_bench.trainers.items import Item, batch_indices, open_items, stored_data, task_specs


def make_config(**changes: object) -> GRPOConfig:
    given = {"method": "grpo", "task": "vc-synth", "model": "tiny", "out": Path("run"), "prompts_per_step": 4} | changes
    return GRPOConfig(**given)  # type: ignore[arg-type]


# Order


@given(size=st.integers(1, 40), per_step=st.integers(1, 17), seed=st.integers(0, 9), epochs=st.integers(1, 4))
def test_every_epoch_takes_every_item_once_whatever_the_batch(size: int, per_step: int, seed: int, epochs: int) -> None:
    steps = -(-size * epochs // per_step)
    order = [index for step in range(steps) for index in batch_indices(size, per_step, seed, step)]
    assert len(order) == steps * per_step
    for epoch in range(epochs):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_the_order_is_the_same_on_every_platform_and_differs_by_epoch_and_seed() -> None:
    # `printf 0/0/I | sha256sum` for I from 0 to 5, sorted: fixed for good, so that a run can be resumed on another machine.
    assert batch_indices(6, 6, 0, 0) == [4, 2, 0, 5, 1, 3]
    orders = {tuple(batch_indices(50, 50, seed, step)) for seed in (0, 1) for step in (0, 1)}
    assert len(orders) == 4
    assert batch_indices(50, 20, 0, 2) == [*batch_indices(50, 50, 0, 0)[40:], *batch_indices(50, 50, 0, 1)[:10]]


# Items


def test_synthetic_items_are_prompted_as_in_evaluation_and_drawn_once() -> None:
    train = open_items(make_config(), "train")
    assert len(train) == 4000
    first = train[0]
    example = data.load("vc_synth", "train", n=1)[0]
    assert (first.gold, first.solution, first.image_bytes) == (example.gold, example.solution, example.image_bytes)
    assert first.prompt == prompts.render("vc_think", example.question)
    assert first.image.size == example.image.size and first.image.mode == "RGB"
    assert train[0] is first
    assert train[-1].id.endswith("003999")
    with pytest.raises(IndexError):
        train[4000]


def test_a_task_named_twice_has_two_turns_and_no_item_twice() -> None:
    mixed = open_items(make_config(task="vc-synth,vc-synth,gr-synth", train_items=12), "train")
    assert [item.spec.family for item in mixed] == ["vc", "vc", "gr"] * 4
    assert len({item.id for item in mixed}) == 12
    assert sorted({item.spec.family for item in open_items(make_config(task="vc-synth,vc-synth", eval_items=4), "test")}) == ["vc"]


def test_tasks_are_mixed_evenly_and_splits_are_disjoint() -> None:
    config = make_config(task="vc-synth,gr-synth", train_items=10, eval_items=5, level=2)
    train = open_items(config, "train")
    assert [item.spec.name for item in train] == ["mr1_vc_synth_l2", "mr1_gr_synth_l2"] * 5
    validation, test = open_items(config, "validation"), open_items(config, "test")
    assert [item.spec.family for item in test] == ["vc", "gr", "vc", "gr", "vc"]
    assert len({item.id for split in (train, validation, test) for item in split}) == 20
    assert open_items(replace(config, eval_every=0), "test") == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "vx"}, "no task 'vx'"),
        ({"task": ","}, "names no task"),
        ({"level": 6}, "--level 6"),
        ({"task": "vc_synth_l3", "level": 2}, "is of level 3, and --level says 2"),
        ({"task": "vc-synth,gr-synth", "data": Path("x.jsonl")}, "graded by one task"),
        ({"data": Path("absent.jsonl")}, "is not a file"),
    ],
)
def test_a_wrong_choice_of_items_is_one_clear_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_items(make_config(**changes), "train")


def test_a_level_in_the_name_is_enough() -> None:
    assert [spec.name for spec in task_specs(make_config(task="vc_synth_l3, gr"))] == ["mr1_vc_synth_l3", "mr1_gr"]


def write_rows(folder: Path, rows: list[dict[str, object] | str], image: str = "a.png") -> Path:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (60, 40), "red").save(folder / "a.png")
    Image.new("RGBA", (90, 33), (0, 0, 0, 0)).save(folder / "clear.png")
    (folder / "broken.png").write_bytes(b"no picture")
    path = folder / "own.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps({"image": image} | row) for row in rows) + "\n")
    return path


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A geometry set with a train split of 20 and nothing else."""
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path / "data"))
    items_module._say_once.cache_clear()
    path = write_rows(tmp_path / "source", [{"question": f"Angle {i}?", "gold": f"{i}°", "solution": f"It is {i}"} for i in range(20)])
    data_build.build("gr", "train", data_sources.open_prompts(path, path.parent), directory=tmp_path / "data")
    return tmp_path


def test_without_a_validation_split_the_end_of_train_is_held_out_and_not_trained_on(stored: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(task="gr", eval_items=3)
    with caplog.at_level(logging.WARNING):
        train, validation = open_items(config, "train"), open_items(config, "validation")
        open_items(config, "validation")
    assert [item.gold for item in train] == [f"{i}°" for i in range(17)]
    assert [item.gold for item in validation] == ["17°", "18°", "19°"]
    assert [record.getMessage() for record in caplog.records] == [
        "validation: the last 3 of 20 training items are held out for it, not trained on"
    ]
    assert train[1].prompt.startswith("Angle 1?  Output") and train[1].solution == "It is 1"
    assert validation[0].prompt.startswith("Angle 17? Output")
    with pytest.raises(data.DataAbsentError, match="The test split of the data set 'gr' is not built"):
        open_items(config, "test")


def test_at_most_a_fifth_is_held_out_and_nothing_where_nothing_is_evaluated(stored: Path) -> None:
    assert len(open_items(make_config(task="gr"), "train")) == 16
    assert len(open_items(make_config(task="gr", eval_every=0), "train")) == 20
    assert len(open_items(make_config(task="gr", train_items=5), "train")) == 5


def test_a_smaller_task_repeats_beside_a_larger_one(stored: Path) -> None:
    train = open_items(make_config(task="gr,vc-synth", train_items=100, eval_every=0), "train")
    assert len(train) == 100
    assert [item.gold for item in train if item.spec.name == "mr1_gr"] == [f"{i % 20}°" for i in range(50)]


def test_own_data_is_read_like_a_built_set(tmp_path: Path) -> None:
    solution = "<think>1 + 1</think><answer>2</answer>"
    rows = [{"question": "How many?", "gold": 3}, "", {"problem": "And now?", "solution": solution, "image": "x/clear.png", "extra": 7}]
    path = write_rows(tmp_path, rows)
    config = make_config(task="vc", data=path, eval_every=0)
    train = open_items(config, "train")
    assert [(item.id, item.gold, item.solution) for item in train] == [("own-000000", "3", ""), ("own-000001", "2", "1 + 1")]
    assert train[1].prompt == prompts.render("vc_think", "And now?") and train[1].meta["extra"] == 7
    assert train[1].image.getpixel((5, 5)) == (255, 255, 255)
    hashes = stored_data(config)
    assert set(hashes) == {"own.jsonl"}
    Image.new("RGB", (61, 41), "blue").save(tmp_path / "a.png")
    assert stored_data(config) != hashes


GOOD: dict[str, object] = {"question": "How many?", "gold": "1"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "How many?"}, "line 2: no gold column: has image, question"),
        ({"question": "How many?", "gold": " "}, "line 2: gold is ' '"),
        ({"question": "", "gold": "1"}, "line 2: question is ''"),
        ({"gold": "1"}, "line 2: no question column"),
        (GOOD | {"image": "b.png"}, "line 2: image b.png is missing under"),
        (GOOD | {"image": "broken.png"}, "line 2: image broken.png is not a picture"),
        (GOOD | {"image": 5}, "line 2: the image column is 5"),
        (GOOD | {"question": "<image>How many?"}, "line 2: the question holds '<image>'"),
        (GOOD | {"question": "How <|image_pad|> many?"}, r"line 2: the question holds '<\|image_pad\|>'"),
        (GOOD | {"gold": "three"}, "line 2: gold 'three' is not a whole number, as mr1_vc needs"),
        (GOOD | {"id": 0}, "line 2: id 0 is also that of line 1"),
        ("{", "line 2: not a JSON object"),
        ("[1]", "line 2: a JSON list where an object was expected"),
    ],
)
def test_a_line_that_cannot_be_trained_on_is_named_before_training(tmp_path: Path, row: dict[str, object] | str, message: str) -> None:
    path = write_rows(tmp_path / "images", [GOOD, row])
    with pytest.raises(UserError, match=message):
        open_items(make_config(task="vc", data=path), "train")


def test_an_empty_file_or_an_absent_folder_is_one_clear_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [""])
    with pytest.raises(UserError, match="is empty"):
        open_items(make_config(task="vc", data=path), "train")
    with pytest.raises(UserError, match=r"--images .* is not a folder"):
        open_items(make_config(task="vc", data=path, images=tmp_path / "none"), "train")


# Batches


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> tuple[object, torch.nn.Module]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoProcessor.from_pretrained(tiny_checkpoint), AutoModelForImageTextToText.from_pretrained(tiny_checkpoint)


def resized(items: list[Item], sizes: list[tuple[int, int]]) -> list[Item]:
    from mr1_bench.images import encode_png

    return [replace(item, image_bytes=encode_png(item.image.resize(size))) for item, size in zip(items, sizes, strict=True)]


@pytest.mark.parametrize("cap", [2**62, 28 * 28 * 9])
def test_a_batch_is_what_the_whole_processor_and_model_give(tiny: tuple, cap: int) -> None:
    processor, model = tiny
    mixed = open_items(make_config(task="vc-synth,gr-synth"), "train")
    items = resized([mixed[i] for i in range(6)], [(112, 112), (56, 56), (200, 70), (61, 300), (28, 28), (448, 224)])
    processing = Processing(processor, model, make_config(), max_pixels=cap)
    size = {"shortest_edge": 56 * 56, "longest_edge": min(cap, 12845056)}
    for count in (1, 4, 6, 4):
        part = processing(items[:count]).parts[0]
        pictures = [item.image for item in items[:count]]
        whole = processor(
            text=list(part.texts),
            images=pictures,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            images_kwargs={"size": size},
        )
        positions, _ = model.model.get_rope_index(
            whole["input_ids"],
            mm_token_type_ids=whole["mm_token_type_ids"],
            image_grid_thw=whole["image_grid_thw"],
            attention_mask=whole["attention_mask"],
        )
        assert part.prompts is not None
        assert torch.equal(part.prompts.ids, whole["input_ids"])
        assert torch.equal(part.prompts.mask, whole["attention_mask"].bool())
        assert torch.equal(part.prompts.pixels, whole["pixel_values"])
        assert torch.equal(part.prompts.grids, whole["image_grid_thw"])
        assert torch.equal(part.prompts.positions, positions)


def test_the_prompt_is_the_image_then_the_text_in_the_chat_form(tiny: tuple) -> None:
    item = open_items(make_config(), "train")[0]
    assert Processing(*tiny, make_config()).text(item) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        f"{item.prompt}<|im_end|>\n<|im_start|>assistant\n"
    )


class Counting:
    """An image processor that counts its calls."""

    def __init__(self, inner: object) -> None:
        self._inner, self.calls = inner, 0

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        return self._inner(*args, **kwargs)  # type: ignore[operator]

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def test_an_item_met_again_is_not_processed_again_while_there_is_room(tiny: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    processor, model = tiny
    counting = Counting(processor.image_processor)
    monkeypatch.setattr(processor, "image_processor", counting)
    items = [*open_items(make_config(train_items=3), "train")]
    roomy = Processing(processor, model, make_config())
    counting.calls = 0
    first, second = roomy(items), roomy(items)
    assert counting.calls == 3
    assert torch.equal(first.parts[0].prompts.pixels, second.parts[0].prompts.pixels)
    roomy([replace(items[0], prompt="Another question?")])
    assert counting.calls == 4
    # 64 patches of 588 bytes and some tokens are 41 kB: room for two of three, so that going round and round always misses.
    tight = Processing(processor, model, make_config(), cache_bytes=100_000)
    counting.calls = 4
    tight(items), tight(items)
    assert counting.calls == 10
    tight(items[1:])
    assert counting.calls == 10


@pytest.mark.parametrize("size", [(112, 112), (61, 300), (28, 28)])
def test_patches_are_kept_small_without_losing_a_bit(tiny: tuple, size: tuple[int, int]) -> None:
    from transformers import Qwen2VLImageProcessorPil

    picture = Image.effect_noise(size, 90).convert("RGB")
    torchvision = tiny[0].image_processor
    for image_processor in (torchvision, Qwen2VLImageProcessorPil(**torchvision.to_dict())):
        levels = batches._Levels(image_processor)
        pixels = image_processor([picture], return_tensors="pt")["pixel_values"]
        packed = levels.pack(pixels)
        assert packed.nbytes * 8 == pixels.nbytes
        assert torch.equal(levels.unpack([packed, packed]), pixels.repeat(2, 1))
        # What lies between two levels, or differs between the two frames, is kept as it is.
        odd = pixels.clone()
        odd[0, 0] += 0.004
        assert levels.pack(odd) is odd
        assert torch.equal(levels.unpack([packed, odd]), torch.cat((pixels, odd)))


def test_parts_are_padded_by_themselves(tiny: tuple) -> None:
    items = [*open_items(make_config(task="vc-synth,gr-synth", train_items=5), "train")]
    batch = Processing(*tiny, make_config(micro_prompts=2))(items)
    assert [len(part.items) for part in batch.parts] == [2, 2, 1]
    assert tuple(item for part in batch.parts for item in part.items) == batch.items
    assert sorted(item.id for item in batch.items) == sorted(item.id for item in items)
    lengths = [int(count) for part in batch.parts if part.prompts for count in part.prompts.mask.sum(1)]
    assert lengths == sorted(lengths), "parts hold prompts of like lengths"
    for part in batch.parts:
        assert part.prompts is not None and bool(part.prompts.mask.any(0).all())


def test_bad_prompts_name_the_item(tiny: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    processor, model = tiny
    item = open_items(make_config(), "train")[0]
    processing = Processing(processor, model, make_config())
    with pytest.raises(UserError, match=r"vc_synth-l1-train-000000: the prompt holds 2 image placeholders"):
        processing([replace(item, prompt="What is <|image_pad|>?")])
    with pytest.raises(UserError, match=r"000000: the prompt has \d+ tokens .* of 112x112 pixels; the limit is 30"):
        Processing(processor, model, make_config(max_prompt_tokens=30))([item])
    with pytest.raises(UserError, match="--max-pixels 784 is below the 3136 pixels"):
        Processing(processor, model, make_config(max_pixels=784))
    monkeypatch.setattr(processor, "chat_template", "{{ messages[0].content[1].text }}")
    with pytest.raises(UserError, match=r"holds 0 image placeholders .*: the chat template makes none"):
        processing([replace(item, prompt="Never seen")])


def test_sft_settings_are_processed_too(tiny: tuple) -> None:
    config = SFTConfig(method="sft", task="vc-synth", model="tiny", out=Path("run"))
    batch = Processing(*tiny, config)([open_items(config, "train")[0]])
    assert batch.parts[0].prompts is not None


# Prefetch


def numbered(step: int) -> Batch:
    return Batch((step,), ())  # type: ignore[arg-type]


def steps_of(prefetch: Prefetch) -> list[object]:
    return [batch.items[0] for batch in prefetch]


def batch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_the_next_batch_is_made_while_this_one_is_used() -> None:
    made = {step: threading.Event() for step in range(3)}

    def make(step: int) -> Batch:
        made[step].set()
        return numbered(step)

    with Prefetch(make, range(3)) as prefetch:
        assert next(prefetch).items == (0,)
        assert made[1].wait(10) and not made[2].wait(0.05)
        assert steps_of(prefetch) == [1, 2]
    assert not batch_threads()


@settings(max_examples=20)
@given(first=st.integers(0, 5), count=st.integers(0, 8))
def test_batches_come_in_order(first: int, count: int) -> None:
    with Prefetch(numbered, range(first, first + count)) as prefetch:
        assert steps_of(prefetch) == list(range(first, first + count))


def failing_at(bad: int) -> Callable[[int], Batch]:
    def make(step: int) -> Batch:
        if step == bad:
            raise UserError("no such picture")
        return numbered(step)

    return make


def test_an_error_is_raised_where_its_batch_is_asked_for_and_no_thread_is_left() -> None:
    with pytest.raises(UserError, match="no such picture"), Prefetch(failing_at(1), range(5)) as prefetch:
        assert next(prefetch).items == (0,)
        next(prefetch)
    assert not batch_threads()


def test_leaving_early_waits_for_the_batch_under_way_only() -> None:
    made = []

    def make(step: int) -> Batch:
        time.sleep(0.05)
        made.append(step)
        return numbered(step)

    with Prefetch(make, range(1000)) as prefetch:
        next(prefetch)
    assert made in ([0], [0, 1]) and not batch_threads()
