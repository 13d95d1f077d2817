"""From items to batches: P items become token ids, image patches and rotary positions, in the form the model takes.

Each item is processed alone and kept, so that an item met again costs next to nothing. The work for the next step is done in a thread while
this one runs. This file must not know where items come from (`items`), losses, weights or run folders.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from mr1_bench import images
from mr1_bench.errors import UserError
from mr1_bench.trainers.items import Item
from mr1_bench.trainers.prefix import FAMILY, PromptBatch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn

    from mr1_bench.trainers.config import TrainConfig

CACHE_BYTES = 512 * 2**20
"""Processed items that are kept, in bytes."""


@dataclass(frozen=True, slots=True)
class Part:
    """Prompts that are computed together.

    Attributes:
        items: the items.
        texts: chat-templated prompts, the image as one placeholder.
        prompts: the model's inputs; None for a model outside `prefix.FAMILY`, which takes texts and pictures through its own processor.
    """

    items: tuple[Item, ...]
    texts: tuple[str, ...]
    prompts: PromptBatch | None


@dataclass(frozen=True, slots=True)
class Batch:
    """P prompts on the CPU, in parts of at most `micro_prompts`, each left-padded by itself."""

    items: tuple[Item, ...]
    parts: tuple[Part, ...]

    def pin(self) -> Batch:
        """The same batch in page-locked memory, from which a copy to a CUDA device does not wait."""
        return replace(self, parts=tuple(replace(part, prompts=part.prompts and _pin(part.prompts)) for part in self.parts))


def _pin(prompts: PromptBatch) -> PromptBatch:
    return PromptBatch(*(getattr(prompts, name).pin_memory() for name in PromptBatch.__slots__))


@dataclass(frozen=True, slots=True)
class _Processed:
    """One prompt without padding; its patches as `_Levels` packs them."""

    text: str
    ids: Int[Tensor, " L"]
    positions: Int[Tensor, "3 L"]
    pixels: Tensor
    grid: Int[Tensor, "1 3"]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.ids, self.positions, self.pixels, self.grid))


class _Levels:
    """Keeps patches in an eighth of their room: a picture has 256 levels a channel, and the model's patches hold each frame of it twice."""

    def __init__(self, image_processor: Any) -> None:
        from PIL import Image

        side = image_processor.patch_size * image_processor.merge_size
        plain = [Image.new("RGB", (side, side), (level, level, level)) for level in range(256)]
        size = {"shortest_edge": 1, "longest_edge": side * side}
        pixels = image_processor(plain, return_tensors="pt", size=size)["pixel_values"]
        self._frames = image_processor.temporal_patch_size
        one_a_level = pixels.view(256, -1, 3, self._frames, image_processor.patch_size**2)[:, 0, :, 0, 0]
        self._values: Float[Tensor, "3 256"] = one_a_level.T.contiguous()
        self._starts = torch.arange(3, dtype=torch.int32)[:, None] * 256

    def pack(self, pixels: Float[Tensor, "patches features"]) -> Tensor:
        """The patches as levels, or as they are if any bit of them would be lost."""
        frame = pixels.view(len(pixels), 3, self._frames, -1)[:, :, 0]
        lowest, highest = self._values[:, :1], self._values[:, -1:]
        levels = ((frame - lowest) * (255 / (highest - lowest))).round().clamp(0, 255).to(torch.uint8)
        return levels if torch.equal(self.unpack([levels]), pixels) else pixels

    def unpack(self, packed: Sequence[Tensor]) -> Float[Tensor, "patches features"]:
        """The patches of several pictures, one after another."""
        if any(one.dtype != torch.uint8 for one in packed):
            return torch.cat([self.unpack([one]) if one.dtype == torch.uint8 else one for one in packed])
        levels = torch.cat(list(packed))
        frame = self._values.view(-1).index_select(0, (levels.int() + self._starts).flatten()).view(len(levels), 3, 1, -1)
        return frame.expand(-1, -1, self._frames, -1).reshape(len(levels), -1)


class _Cache:
    """Processed items by content, the longest unused given up first."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._kept: OrderedDict[bytes, _Processed] = OrderedDict()

    def get(self, key: bytes, make: Callable[[], _Processed]) -> _Processed:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        made = make()
        self._kept[key] = made
        self._used += made.bytes
        while self._used > self._limit:
            self._used -= self._kept.popitem(last=False)[1].bytes
        return made


class Processing:
    """Turns items into a batch. Called from one thread at a time."""

    def __init__(
        self, processor: Any, model: nn.Module, config: TrainConfig, *, max_pixels: int | None = None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        """Prepare to process.

        Args:
            processor: the model's processor.
            model: gives the rotary positions and says which token stands for the image; its weights are not used.
            config: `micro_prompts`, `max_prompt_tokens` and `max_pixels`.
            max_pixels: another limit than the configuration's.
            cache_bytes: processed items that are kept.
        """
        self._family = model.config.model_type in FAMILY
        # Another model's processor is also called by the `plain` path, in another thread, and a tokenizer that pads bears no company.
        self._processor = processor if self._family else copy.deepcopy(processor)
        self._model, self._config = model, config
        self._placeholders = placeholders(processor)
        self._max_pixels = config.max_pixels if max_pixels is None else max_pixels
        if self._family:
            self._size = limit_size(processor.image_processor, self._max_pixels)
            self._pad = _pad_token(processor.tokenizer)
            self._levels = _Levels(processor.image_processor)
        self._cache = _Cache(cache_bytes)

    def __call__(self, items: Iterable[Item]) -> Batch:
        """Process items.

        Raises:
            UserError: a prompt without exactly one place for its image, or one that is too long; the message names the item.
        """
        chosen = tuple(items)
        limit = self._config.micro_prompts or len(chosen)
        if self._family and limit < len(chosen):  # parts of like lengths have little padding
            chosen = tuple(sorted(chosen, key=lambda item: len(self._processed(item).ids)))
        return Batch(chosen, tuple(self._part(chosen[start : start + limit]) for start in range(0, len(chosen), limit)))

    def text(self, item: Item) -> str:
        """The chat-templated prompt of an item, with one image placeholder.

        Raises:
            UserError: there is not exactly one placeholder.
        """
        content = [{"type": "image"}, {"type": "text", "text": item.prompt}]
        rendered = self._processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        text = cast("str", rendered)
        places = sum(map(text.count, self._placeholders))
        if places != 1:
            why = "the chat template makes none" if places == 0 else "take it out of the question"
            raise UserError(f"{item.id}: the prompt holds {places} image placeholders {self._placeholders[0]!r} for its 1 image: {why}")
        return text

    def _part(self, items: tuple[Item, ...]) -> Part:
        if not self._family:
            items = tuple(_scaled_down(item, self._max_pixels) for item in items)
            return Part(items, tuple(map(self._checked_text, items)), None)
        processed = [self._processed(item) for item in items]
        return Part(items, tuple(one.text for one in processed), _join(processed, self._pad, self._levels))

    def _checked_text(self, item: Item) -> str:
        text = self.text(item)
        length = len(self._processor(text=[text], images=[[item.image]])["input_ids"][0])
        self._check_length(item, length)
        return text

    def _check_length(self, item: Item, length: int) -> None:
        limit = self._config.max_prompt_tokens
        if length > limit:
            size = "x".join(map(str, item.image.size))
            raise UserError(
                f"{item.id}: the prompt has {length} tokens with those of its image of {size} pixels; the limit is {limit}. "
                "Raise --max-prompt-tokens or lower --max-pixels"
            )

    def _processed(self, item: Item) -> _Processed:
        key = hashlib.sha256(item.image_bytes)
        key.update(item.prompt.encode())
        return self._cache.get(key.digest(), lambda: self._process(item))

    def _process(self, item: Item) -> _Processed:
        """What the whole processor gives for one prompt, without the cost of its generality."""
        text = self.text(item)
        pictures = self._processor.image_processor([item.image], return_tensors="pt", size=self._size)
        grid = pictures["image_grid_thw"]
        token = self._model.config.image_token_id
        ids = self._processor.tokenizer(text)["input_ids"]
        if ids.count(token) != 1:
            places = f"{ids.count(token)} image tokens where there is 1 image"
            raise UserError(f"{item.id}: the tokenizer reads {places}; is the processor the model's own?")
        place = ids.index(token)
        count = int(grid.prod()) // self._processor.image_processor.merge_size**2
        self._check_length(item, len(ids) - 1 + count)
        tokens = torch.tensor([[*ids[:place], *[token] * count, *ids[place + 1 :]]])
        kinds = (tokens == token).int()
        positions, _ = self._model.model.get_rope_index(tokens, mm_token_type_ids=kinds, image_grid_thw=grid)
        return _Processed(text, tokens[0], positions[:, 0], self._levels.pack(pictures["pixel_values"]), grid)


def _join(processed: Sequence[_Processed], pad: int, levels: _Levels) -> PromptBatch:
    """Several prompts as one batch, padded on the left."""
    longest = max(len(one.ids) for one in processed)
    ids = torch.full((len(processed), longest), pad)
    mask = torch.zeros(len(processed), longest, dtype=torch.bool)
    positions = torch.zeros(3, len(processed), longest, dtype=torch.long)
    for row, one in enumerate(processed):
        start = longest - len(one.ids)
        ids[row, start:], mask[row, start:], positions[:, row, start:] = one.ids, True, one.positions
    pixels = levels.unpack([one.pixels for one in processed])
    return PromptBatch(ids, mask, positions, pixels, torch.cat([one.grid for one in processed]))


def placeholders(processor: Any) -> tuple[str, ...]:
    """The texts that stand for an image in a templated prompt: usually one; Gemma's template writes another than its processor."""
    found = [getattr(processor, name, None) for name in ("image_token", "boi_token")]
    if found == [None, None]:
        raise UserError(f"{type(processor).__name__} names no image token, so prompts cannot be checked: this model cannot be trained here")
    return tuple(str(token) for token in found if token is not None)


def limit_size(image_processor: Any, max_pixels: int) -> dict[str, int]:
    """The image processor's own size limits, the upper one lowered to `max_pixels`."""
    low, high = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
    if max_pixels < low:
        raise UserError(f"--max-pixels {max_pixels} is below the {low} pixels that the model's processor makes of every image at least")
    return {"shortest_edge": low, "longest_edge": min(high, max_pixels)}


def _scaled_down(item: Item, max_pixels: int) -> Item:
    """The item with its picture made smaller if it has more pixels; its shape is kept."""
    picture = item.image
    pixels = picture.width * picture.height
    if pixels <= max_pixels:
        return item
    scale = (max_pixels / pixels) ** 0.5
    smaller = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
    return replace(item, image_bytes=images.encode_png(smaller))


def _pad_token(tokenizer: Any) -> int:
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


class Prefetch(Iterator[Batch]):
    """Batches of consecutive steps, each made in a thread while the one before it is used.

    An error while making a batch is raised when that batch is asked for. Use it in a `with` block, or call `close`.
    """

    def __init__(self, make: Callable[[int], Batch], steps: Iterable[int], *, pin: bool = False) -> None:
        """Begin with the first batch.

        Args:
            make: makes the batch of a step.
            steps: the steps, in order.
            pin: keep batches in page-locked memory, for a CUDA device.
        """
        self._make, self._steps, self._pin = make, iter(steps), pin
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._next: Future[Batch] | None = None
        self._begin()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Batch:
        if self._next is None:
            self.close()
            raise StopIteration
        batch = self._next.result()
        self._begin()
        return batch.pin() if self._pin else batch  # here, since a CUDA graph may be recorded while the thread works

    def close(self) -> None:
        """Wait for the batch under way, if any, and end the thread."""
        self._next = None
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> None:
        step = next(self._steps, None)
        self._next = None if step is None else self._worker.submit(self._make, step)
