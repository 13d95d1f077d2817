"""Draws the contact sheets of both embedded tasks: `python docs/contact_sheet.py [vc] [gr]` writes docs/images/contact_*_synth.png.

Five rows, one a level; beneath each picture its question and gold. Run it again after a change to a generator, and look at it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mr1_bench.synth import FAMILIES, LEVELS, Family, SynthItem, make_item
from mr1_bench.synth.diagram import font

_PICTURE, _MARGIN, _TEXT, _COLUMNS, _HEAD = 224, 14, 108, 6, 26
_IMAGES = Path(__file__).resolve().parent / "images"


def pick(task: Family, level: int) -> list[SynthItem]:
    """Take the first test items of a level that show as many question families as there are columns, in index order."""
    chosen: list[SynthItem] = []
    rest: list[SynthItem] = []
    for index in range(60):
        item = make_item(task, "test", level, index)
        new = item.family not in {other.family for other in chosen}
        (chosen if new and len(chosen) < _COLUMNS else rest).append(item)
    chosen += rest[: _COLUMNS - len(chosen)]
    return sorted(chosen, key=lambda item: item.id)


def wrap(text: str, face: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break text into lines no wider than `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def sheet(task: Family) -> Image.Image:
    """Draw one task's contact sheet."""
    width = _MARGIN + _COLUMNS * (_PICTURE + _MARGIN)
    row = _HEAD + _PICTURE + _TEXT
    image = Image.new("RGB", (width, _MARGIN + len(LEVELS) * row), "white")
    pen = ImageDraw.Draw(image)
    small, large = font(12), font(14)
    for level in LEVELS:
        top = _MARGIN + (level - 1) * row
        pen.text((_MARGIN, top), f"mr1_{task}_synth, level {level}", fill="black", font=large)
        for column, item in enumerate(pick(task, level)):
            left = _MARGIN + column * (_PICTURE + _MARGIN)
            image.paste(item.draw(_PICTURE), (left, top + _HEAD))
            pen.rectangle((left - 1, top + _HEAD - 1, left + _PICTURE, top + _HEAD + _PICTURE), outline=(190, 190, 190))
            lines = wrap(item.question, small, _PICTURE)
            if len(lines) > 5:
                lines = [*lines[:4], lines[4] + " ..."]
            y = top + _HEAD + _PICTURE + 4
            for line in lines:
                pen.text((left, y), line, fill=(40, 40, 40), font=small)
                y += 15
            pen.text((left, y), item.gold, fill=(0, 90, 170), font=large)
    return image


def main(tasks: list[str]) -> None:
    """Write the sheets of the tasks named, or of both."""
    _IMAGES.mkdir(exist_ok=True)
    for task in (family for family in FAMILIES if family in tasks or not tasks):
        path = _IMAGES / f"contact_{task}_synth.png"
        # Without the lowest bit the file is much smaller and looks the same; a palette would spoil the shading.
        sheet(task).point([value | 1 for value in range(256)] * 3).save(path, optimize=True)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
