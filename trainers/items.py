"""Which items a run trains and is measured on, and in which order.

Items come from a task's split or from the user's own file, and are read when they are asked for. This file must not know models, batches of
tensors or run folders.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from mr1_bench import data, data_sources, images, prompts
from mr1_bench.errors import UserError
from mr1_bench.records import file_sha256, sha256_json
from mr1_bench.specs import LEVELS, TaskSpec, UnknownTaskError, get_spec

if TYPE_CHECKING:
    from PIL.Image import Image

    from mr1_bench.trainers.config import TrainConfig

Split = Literal["train", "validation", "test"]

SYNTHETIC_ITEMS = 4000
"""Training items of a synthetic task where the configuration does not say."""

_PLACEHOLDER = re.compile(
    r"<\|(?:image_pad|video_pad|vision_start|vision_end|vision_pad|im_start|im_end|endoftext|image|video)\|>|<(?:image|video)>"
)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """One training or evaluation item.

    Attributes:
        id: unique name in its split.
        spec: the task that grades it.
        prompt: the text after the image.
        gold: the gold string.
        solution: worked solution without tags; empty where the source has none.
        image_bytes: the picture as an encoded file.
        meta: all else the source said.
    """

    id: str
    spec: TaskSpec
    prompt: str
    gold: str
    solution: str
    image_bytes: bytes
    meta: dict[str, Any]

    @property
    def image(self) -> Image:
        """The picture, decoded anew on each access, in RGB."""
        from PIL import Image

        return Image.open(io.BytesIO(self.image_bytes)).convert("RGB")


class Items(Sequence[Item]):
    """Items read when they are asked for."""

    def __init__(self, size: int, read: Callable[[int], Item]) -> None:
        """Hold `size` items that `read` gives by position."""
        self._size, self._read = size, read

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Items: ...

    def __getitem__(self, index: int | slice) -> Item | Items:
        if isinstance(index, slice):
            chosen = range(self._size)[index]
            return Items(len(chosen), lambda position: self._read(chosen[position]))
        position = index + self._size if index < 0 else index
        if not 0 <= position < self._size:
            raise IndexError(f"item {index} of {self._size}")
        return self._read(position)


def task_specs(config: TrainConfig) -> tuple[TaskSpec, ...]:
    """The tasks of a configuration; a synthetic task without a level in its name takes `config.level`.

    Raises:
        UserError: there is no such task or level, or the name's level is not the configured one.
    """
    if config.level not in LEVELS:
        raise UserError(f"--level {config.level}: the synthetic tasks have levels {LEVELS[0]} (easiest) to {LEVELS[-1]}")
    names = [name.strip() for name in config.task.split(",") if name.strip()]
    if not names:
        raise UserError("--task names no task; use vc, gr, vc-synth or gr-synth")
    return tuple(_task_spec(name, config.level) for name in names)


def _task_spec(name: str, level: int) -> TaskSpec:
    try:
        spec = get_spec(name)
        if spec.level is None or level in (1, spec.level):
            return spec
        if spec.level == 1:
            return get_spec(f"{spec.name}_l{level}")
    except UnknownTaskError as error:
        raise UserError(f"--task: {error}") from None
    raise UserError(f"--task {name} is of level {spec.level}, and --level says {level}; leave one of them out")


def open_items(config: TrainConfig, split: Split) -> Sequence[Item]:
    """Open the items of a split, of several tasks in turn; nothing is drawn or decoded before it is asked for.

    Training items come from `config.data` where it is given. Where a task has no validation split, the last training items are held
    out for it, and are then not trained on. Where nothing is ever evaluated there are no held-out items.

    Raises:
        DataAbsentError: a split that has not been built; the message says how to get it.
        UserError: the user's own data cannot be used; the message names the line.
    """
    specs = task_specs(config)
    if config.data is not None and len(specs) > 1:
        raise UserError(f"--data {config.data} is graded by one task, and --task names {len(specs)}: {config.task}; name one")
    if split == "train":
        # A task that is named m times takes m places in the turn, each with every m-th of its items.
        turns = [_train_items(spec, config)[specs[:place].count(spec) :: specs.count(spec)] for place, spec in enumerate(specs)]
        whole = _in_turn(turns, repeat=True)
        return whole[: config.train_items] if config.train_items else whole
    count = config.eval_items if config.eval_every else 0
    if not count:
        return ()
    specs = tuple(dict.fromkeys(specs))
    shares = [max(1, count // len(specs) + (index < count % len(specs))) for index in range(len(specs))]
    return _in_turn([_held_out(spec, config, split, share) for spec, share in zip(specs, shares, strict=True)], repeat=False)


def stored_data(config: TrainConfig) -> dict[str, str]:
    """Hashes (SHA-256, hex) of the stored data that a run reads, by set and split or by file; embedded sets are not stored.

    Of the user's own images only names and sizes are hashed, so that a large set does not have to be read to begin.
    """
    specs = task_specs(config)
    names = sorted({spec.data for spec in specs if not spec.synthetic})
    splits: tuple[Split, ...] = ("train", "validation", "test") if config.eval_every else ("train",)
    found = {f"{name}/{split}": info.content_hash for name in names for split, info in data.read_manifest(name).items() if split in splits}
    if config.data is None:
        return found
    rows = _own_rows(config.data, _own_folder(config.data, config.images), specs[0])
    pictures = [[Path(row.image_name).name, Path(row.image_name).stat().st_size] for row in rows]
    own = sha256_json([file_sha256(config.data), pictures])
    return {name: value for name, value in found.items() if not name.endswith("/train")} | {config.data.name: own}


def _in_turn(parts: list[Items], *, repeat: bool) -> Items:
    """One item of each part in turn; a part that is used up begins again if `repeat`, else the others go on."""
    if len(parts) == 1:
        return parts[0]
    longest = max(map(len, parts))
    order = [(part, row if row < len(part) else row % len(part)) for row in range(longest) for part in parts if repeat or row < len(part)]
    return Items(len(order), lambda position: order[position][0][order[position][1]])


def _train_items(spec: TaskSpec, config: TrainConfig) -> Items:
    whole = _all_train_items(spec, config)
    if config.eval_every and _validates_on_train(spec, config):
        return whole[: len(whole) - _held_out_size(len(whole), config.eval_items)]
    return whole


def _all_train_items(spec: TaskSpec, config: TrainConfig) -> Items:
    """What there is to train on, before any of it is held out."""
    template = "gr_think_train" if spec.name == "mr1_gr" else spec.prompt
    if config.data is not None:
        return _own_items(spec, config.data, config.images, template)
    return _task_items(spec, "train", config.train_items or SYNTHETIC_ITEMS, template)


def _held_out(spec: TaskSpec, config: TrainConfig, split: Literal["validation", "test"], count: int) -> Items:
    if split == "test" and config.data is not None and not _has_split(spec, split):
        _say_once(f"the test split of {spec.name} is not built, so this run reports validation alone")
        return Items(0, _no_item)
    if split == "test" or not _validates_on_train(spec, config):
        return _task_items(spec, split, count, spec.prompt)[:count]
    whole = _all_train_items(spec, config)
    size = _held_out_size(len(whole), config.eval_items)
    _say_once(f"validation: the last {size} of {len(whole)} training items are held out for it, not trained on")
    tail = whole[len(whole) - size :]
    if spec.name != "mr1_gr":
        return tail[:count]
    return Items(min(size, count), lambda position: _as_evaluated(tail[position]))


def _validates_on_train(spec: TaskSpec, config: TrainConfig) -> bool:
    """Whether validation items are taken from the training items: of the user's own data, and where the task has no such split."""
    return config.data is not None or not _has_split(spec, "validation")


def _no_item(position: int) -> Item:
    raise IndexError(f"item {position} of none")


def _as_evaluated(item: Item) -> Item:
    """R1-V trains on geometry with one more space after the question than it evaluates with."""
    return replace(item, prompt=prompts.render(item.spec.prompt, cast("str", item.meta["question"])))


def _held_out_size(size: int, wanted: int) -> int:
    """At most a fifth: a small set is for training first."""
    if size < 2:
        raise UserError(f"{size} training items leave none to validate on; bring more, or train with --eval-every 0")
    return min(wanted, max(1, size // 5))


def _has_split(spec: TaskSpec, split: Split) -> bool:
    return spec.synthetic or split in data.read_manifest(spec.data)


def _task_items(spec: TaskSpec, split: Split, count: int, template: str) -> Items:
    """Items of a task's split: all of a stored one, the first `count` of a synthetic one."""
    try:
        examples = data.load(spec.data, split, level=spec.level or 1, n=count)
    except ModuleNotFoundError as error:
        raise UserError(f"reading the stored data set '{spec.data}' needs {error.name}: install it (`pip install {error.name}`)") from error

    def read(position: int) -> Item:
        example = examples[position]
        meta = {**example.meta, "question": example.question}
        prompt = prompts.render(template, example.question)
        return Item(example.id, spec, prompt, example.gold, example.solution, example.image_bytes, meta)

    # A synthetic item takes milliseconds to draw and few bytes to keep.
    return Items(len(examples), functools.cache(read) if spec.synthetic else read)


@functools.cache
def _say_once(message: str) -> None:
    _LOG.warning(message)


# The user's own data


def _own_items(spec: TaskSpec, path: Path, folder: Path | None, template: str) -> Items:
    """Items of a JSON-lines file; every line and every image's kind is checked now, images are decoded when they are asked for."""
    rows = _own_rows(path, _own_folder(path, folder), spec)

    def read(position: int) -> Item:
        row = rows[position]
        try:
            picture = images.normalise(Path(row.image_name).read_bytes())
        except (images.ImageError, OSError) as error:
            raise UserError(f"{path}, line {row.row}: image {row.image_name}: {error}") from error
        meta = {**row.meta, "question": row.question}
        return Item(_own_id(path, row.key), spec, prompts.render(template, row.question), row.gold, row.solution, picture.png, meta)

    return Items(len(rows), read)


def _own_folder(path: Path, folder: Path | None) -> Path:
    """Where the images of a JSON-lines file are looked for: beside it unless another folder is named."""
    if not path.is_file():
        raise UserError(f"--data {path} is not a file: name a JSON-lines file with question, gold and image on each line")
    folder = path.parent if folder is None else folder
    if not folder.is_dir():
        raise UserError(f"--images {folder} is not a folder: name the one that holds the images of {path.name}")
    return folder.resolve()


def _own_id(path: Path, key: int | str) -> str:
    return f"{path.stem}-{key:06d}" if isinstance(key, int) else key


@functools.lru_cache(maxsize=4)
def _own_rows(path: Path, folder: Path, spec: TaskSpec) -> list[data_sources.SourceRow]:
    find = data_sources.image_finder(folder)
    rows: list[data_sources.SourceRow] = []
    seen: dict[int | str, int] = {}
    for position, (number, record) in enumerate(_read_records(path)):
        row = data_sources.make_row(record, number, position, lambda value: _find_image(value, find))
        fault = row.reason if isinstance(row, data_sources.Fault) else _own_fault(row, spec, seen)
        if fault or isinstance(row, data_sources.Fault):
            raise UserError(f"{path}, line {number}: {fault}")
        seen[row.key] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{path} is empty: expected one JSON object a line")
    return rows


def _read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1 and objects; blank lines are passed over."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _read_record(path, number, line)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error}): convert it") from error


def _read_record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: not a JSON object ({error})") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}, line {number}: a JSON {type(record).__name__} where an object was expected")
    return record


def _find_image(value: Any, find: Callable[[str], Path | str]) -> tuple[bytes, str] | str:
    """The image's path in place of its bytes, or why there is none."""
    from PIL import Image, UnidentifiedImageError

    if not isinstance(value, str) or not value.strip():
        return f"the image column is {value!r}: expected the path of a file"
    path = find(value)
    if isinstance(path, str):
        return path
    try:
        with images.strict(), Image.open(path, formats=images.FORMATS) as picture:
            pixels = picture.width * picture.height
            if pixels <= images.MAX_PIXELS:
                picture.load()  # a picture that breaks off must not be met in the middle of a run
    except UnidentifiedImageError:
        return f"image {value} is not a picture in a known format ({', '.join(images.FORMATS)})"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"image {value} cannot be read ({error})"
    if pixels > images.MAX_PIXELS:
        return f"image {value} has {pixels:,} pixels; at most {images.MAX_PIXELS:,} are read: scale it down"
    return b"", str(path)


def _own_fault(row: data_sources.SourceRow, spec: TaskSpec, seen: dict[int | str, int]) -> str | None:
    """What makes a well-formed row unfit to train on."""
    placeholder = _PLACEHOLDER.search(row.question)
    if placeholder:
        return f"the question holds {placeholder.group()!r}: the image's place is added by the chat template; take it out of the text"
    if spec.answer == "count" and not row.gold.strip().isdecimal():
        return f"gold {row.gold!r} is not a whole number, as {spec.name} needs"
    if row.key in seen:
        return f"id {row.key!r} is also that of line {seen[row.key]}: ids must be unique"
    return None


# In which order


def batch_indices(size: int, per_step: int, seed: int, step: int) -> list[int]:
    """Positions of the items of a step, from 0; each pass over the items is a new permutation, and steps run on across its end.

    The order is fixed by the arguments alone, on every platform and version.
    """
    if size < 1 or per_step < 1:
        raise ValueError(f"no batch of {per_step} from {size} items")
    start = step * per_step
    return [_permutation(size, seed, place // size)[place % size] for place in range(start, start + per_step)]


@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> list[int]:
    return sorted(range(size), key=lambda index: hashlib.sha256(f"{seed}/{epoch}/{index}".encode()).digest())
