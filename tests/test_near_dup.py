"""Near-duplicates: planted ones are found whatever was done to them, and templates are not taken for them."""

from __future__ import annotations

import io
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mr1_bench.data import Example
from mr1_bench.data_sources import SourceRow, open_folder
from mr1_bench.images import flatten, normalise
from mr1_bench.near_dup import find_near_duplicates, split_numbers


def png(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return buffer.getvalue()


def diagram(seed: int, size: int = 160) -> Image.Image:
    """A circle with chords: like the others, and yet another picture."""
    draw_random = random.Random(seed)
    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((10, 10, size - 10, size - 10), outline="black", width=2)
    for _ in range(5):
        draw.line([draw_random.randint(10, size - 10) for _ in range(4)], fill="black", width=2)
    return picture


def example(name: str, question: str, picture: Image.Image | bytes, gold: str = "1") -> Example:
    return Example(name, question, gold, "", picture if isinstance(picture, bytes) else png(picture), {})


QUESTION = "As shown in the figure, AB is the diameter of circle O, angle A = 50.0, then angle B is equal to ()"


def disguises() -> dict[str, tuple[str, bytes]]:
    picture = diagram(1)
    padded = Image.new("RGB", (220, 200), "white")
    padded.paste(picture, (40, 15))
    clear = picture.convert("RGBA")
    clear.putalpha(picture.convert("L").point(lambda value: 255 - value))
    return {
        "the same": (QUESTION, png(picture)),
        "re-encoded": (QUESTION, png(picture, "JPEG", quality=70)),
        "enlarged": (QUESTION, png(picture.resize((240, 240)))),
        "reduced": (QUESTION, png(picture.resize((100, 100), Image.Resampling.LANCZOS))),
        "padded": (QUESTION, png(padded)),
        "transparent": (QUESTION, png(flatten(clear)[0])),
        "other spacing and case": (
            "  as shown in the FIGURE, AB is the diameter  of circle O; angle A = 50 , then angle B is equal to",
            png(picture),
        ),
        "retold": ("AB is the diameter of circle O. If angle A = 50, then the degree of angle B is ()", png(picture)),
    }


@pytest.mark.parametrize("how", disguises())
def test_disguised_copy_is_a_duplicate(how: str) -> None:
    question, picture = disguises()[how]
    train = [example(f"train-{seed}", f"Find x if angle {seed} is right", diagram(seed)) for seed in range(10, 40)]
    train.append(example("copy", question, picture))
    found = find_near_duplicates(train, [example("test-0", QUESTION, diagram(1)), example("test-1", "Another question, of 3.", diagram(2))])
    assert [(item.kind, item.test_id, item.train_id) for item in found] == [("duplicate", "test-0", "copy")], how


def test_other_numbers_are_a_template_and_counted_once() -> None:
    train = [example(f"train-{k}", QUESTION.replace("50.0", str(k)), diagram(k)) for k in range(60, 70)]
    (found,) = find_near_duplicates(train, [example("test", QUESTION, diagram(1))])
    assert (found.kind, found.matches, found.text_similarity, found.same_numbers) == ("template", 10, 1.0, False)


def test_same_picture_with_other_numbers_is_image_and_same_text_with_other_picture_is_text() -> None:
    train = [example("figure", QUESTION.replace("50.0", "65"), diagram(1)), example("words", QUESTION, diagram(3))]
    found = find_near_duplicates(train, [example("test", QUESTION, diagram(1))])
    assert [(item.kind, item.train_id, item.same_numbers) for item in found] == [("image", "figure", False), ("text", "words", True)]


def test_one_word_is_another_question_where_there_are_no_numbers() -> None:
    train = [example("train", "How many red things are there?", diagram(1))]
    (found,) = find_near_duplicates(train, [example("test", "How many blue things are there?", diagram(1))])
    assert found.kind == "image"


def test_blank_pictures_are_near_nothing() -> None:
    blank = Image.new("RGB", (50, 50), "white")
    assert find_near_duplicates([example("a", "One thing entirely.", blank)], [example("b", "Some other matter.", blank)]) == []


def test_empty_set_and_bad_threshold_are_refused() -> None:
    one = [example("a", QUESTION, diagram(1))]
    with pytest.raises(ValueError, match="0 training with 1 test"):
        find_near_duplicates([], one)
    with pytest.raises(ValueError, match="text_threshold is 0"):
        find_near_duplicates(one, one, text_threshold=0)


@given(st.integers(0, 10**6), st.integers(0, 3))
def test_trailing_zeros_do_not_change_a_number(number: int, zeros: int) -> None:
    text = f"angle A = {number}" + (f".{'0' * zeros}" if zeros else "")
    assert split_numbers(text) == (("angle", "a", "=", "#"), (str(number),))


def test_large_sets_take_seconds() -> None:
    """5,000 x 750 distinct texts over shared pictures: the comparison must not be a loop over pairs."""
    pictures = [png(diagram(seed, 64)) for seed in range(20)]
    words = random.Random(0)
    vocabulary = ["angle", "side", "line", "circle", "point", "figure", "degree", "equal", "chord", "arc"]
    text = [" ".join(words.choice(vocabulary) for _ in range(25)) for _ in range(5750)]
    train = [example(f"train-{k}", text[k], pictures[k % 10]) for k in range(5000)]
    test = [example(f"test-{k}", text[5000 + k], pictures[10 + k % 10]) for k in range(750)]
    start = time.process_time()
    assert find_near_duplicates(train, test) == []
    assert time.process_time() - start < 60


def test_real_geometry(real_data: Path) -> None:
    """Pairs that were looked at: identical figures in both sets, and planted copies among 1,000 x 610 real items."""

    def read(name: str) -> list[Example]:
        rows = [row for row in open_folder(real_data / name, "test").rows if isinstance(row, SourceRow)]
        return [Example(f"{name}/{row.key}", row.question, row.gold, "", normalise(row.image).png, {}) for row in rows]

    train, test = read("geoqa_train1000"), read("geoqa_test610")
    planted = test[::60]
    copies = []
    for k, item in enumerate(planted):
        picture = item.image
        picture = picture.resize((picture.width * 3 // 2, picture.height * 3 // 2), Image.Resampling.BICUBIC)
        copies.append(example(f"planted-{k}", "  " + item.question.replace(" ", "  "), png(picture, "JPEG", quality=80)))
    found = find_near_duplicates([*train, *copies], test)
    duplicates = {(item.test_id, item.train_id) for item in found if item.kind == "duplicate"}
    assert {(item.id, copy.id) for item, copy in zip(planted, copies, strict=True)} <= duplicates
    # Both ask for the other acute angle of the same figure with angle A = 40; both ask for angle OBC with angle A = 50.
    assert ("geoqa_test610/738", "geoqa_train1000/327") in duplicates
    assert ("geoqa_test610/100", "geoqa_train1000/427") in duplicates
    figures = {(item.test_id, item.train_id) for item in found if item.kind == "image"}
    assert ("geoqa_test610/549", "geoqa_train1000/821") in figures  # 70 degrees and 65 degrees at one figure
    assert ("geoqa_test610/228", "geoqa_train1000/442") not in figures | duplicates  # another line is drawn
