"""Image normalisation: any picture a data set brings becomes one plain RGB PNG that Qwen2-VL's resize accepts.

Transparency is composited on white (diagrams are drawn for white paper; a plain conversion turns some of them black), small and
extreme shapes are mended, and broken or absurdly large files are refused with a reason. This file must not know data sets, rows or
parquet: it takes bytes and gives bytes.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_SIDE = 28
"""Shortest side in pixels after normalisation: the factor (patch 14 x merge 2) of Qwen2-VL's `smart_resize`."""
MAX_ASPECT = 199
"""Largest long-to-short ratio after normalisation; `smart_resize` raises above 200, and scaling rounds sides to whole pixels."""
MAX_PIXELS = 64_000_000
"""Largest picture that is decoded, in pixels; more is taken for a decompression bomb."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are opened at all; others (PostScript for one) would start foreign programs."""


class ImageError(ValueError):
    """A file that cannot be used as a picture; the message is the reason, without the file's name."""


@dataclass(frozen=True, slots=True)
class NormalImage:
    """A normalised picture.

    Attributes:
        png: the encoded RGB picture.
        pixel_hash: SHA-256 (hex) over the size and the RGB pixels, whatever the encoder does.
        width: width in pixels.
        height: height in pixels.
        original_size: width and height in pixels before normalisation.
        original_mode: Pillow's mode of the file, such as `RGBA` or `P`.
        changes: what was done, in order: `rotated`, `composited`, `converted`, `padded`, `upscaled`.
    """

    png: bytes
    pixel_hash: str
    width: int
    height: int
    original_size: tuple[int, int]
    original_mode: str
    changes: tuple[str, ...]


def normalise(data: bytes) -> NormalImage:
    """Decode a file's bytes and bring the picture into the one form the sets hold.

    Raises:
        ImageError: not a picture, truncated, of an unsupported kind, or larger than `MAX_PIXELS`.
    """
    source = decode(data)
    size, mode = source.size, source.mode
    picture, changes = flatten(source)
    picture, shaped = fit(picture)
    return NormalImage(encode_png(picture), pixel_hash(picture), picture.width, picture.height, size, mode, changes + shaped)


def decode(data: bytes) -> Image:
    """Decode a file's bytes wholly, refusing oversized pictures before their pixels are unpacked.

    Raises:
        ImageError: as `normalise`.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageError("the file is empty")
    try:
        with strict(), warnings.catch_warnings():
            # Pillow warns where we refuse; the refusal below is the message.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            _refuse_bomb(picture.size)
            picture.load()
    except Image.DecompressionBombError as error:
        raise ImageError(f"larger than {MAX_PIXELS:,} pixels (a decompression bomb?): scale it down ({error})") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"not a picture in a known format ({', '.join(FORMATS)})") from error
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error, zlib.error) as error:
        # The set of exceptions that Pillow's decoders raise on damaged data.
        raise ImageError(f"broken or truncated picture ({error})") from error
    return picture


@contextmanager
def strict() -> Iterator[None]:
    """Let Pillow refuse pictures that break off, whatever another library has set: lmms-eval makes it lenient for the whole process."""
    from PIL import ImageFile

    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _refuse_bomb(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"{size[0]} x {size[1]} pixels is more than {MAX_PIXELS:,} (a decompression bomb?): scale it down")


def flatten(picture: Image) -> tuple[Image, tuple[str, ...]]:
    """Turn upright, composite on white and convert to RGB.

    Returns:
        The RGB picture and the names of the changes made.

    Raises:
        ImageError: a mode that has no defined way to eight-bit colour.
    """
    from PIL import Image, ImageOps

    changes: list[str] = []
    mode, transparent = picture.mode, picture.has_transparency_data
    if picture.getexif().get(0x0112, 1) != 1:
        # The tag is lost in the new file, so what it says is done now.
        picture = ImageOps.exif_transpose(picture)
        changes.append("rotated")
    if transparent:
        layer = picture.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            changes.append("composited")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB"), tuple(changes)
    if mode.startswith("I;16"):
        # A plain conversion clips 16-bit grey at 255, which makes the picture white.
        return picture.point(lambda value: value * (1 / 256)).convert("L").convert("RGB"), (*changes, "converted")
    if mode in {"I", "F"}:
        raise ImageError(f"mode {mode} (32-bit samples) has no defined brightness: save it as an 8-bit picture")
    if mode != "RGB":
        changes.append("converted")
    return picture.convert("RGB"), tuple(changes)


def fit(picture: Image) -> tuple[Image, tuple[str, ...]]:
    """Bring an RGB picture into what Qwen2-VL's resize accepts: aspect at most `MAX_ASPECT`, sides at least `MIN_SIDE`.

    A strip that is too long is padded with white, centred; a picture that is too small is scaled up, keeping its aspect, because
    padding would change what the model sees less faithfully than its own resize does.

    Returns:
        The picture and the names of the changes made.
    """
    from PIL import Image

    changes: list[str] = []
    long, short = max(picture.size), min(picture.size)
    if long > MAX_ASPECT * short:
        side = math.ceil(long / MAX_ASPECT)
        size = (picture.width, side) if picture.width == long else (side, picture.height)
        canvas = Image.new("RGB", size, (255, 255, 255))
        canvas.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
        picture, short = canvas, side
        changes.append("padded")
    if short < MIN_SIDE:
        scale = MIN_SIDE / short
        size = (max(MIN_SIDE, round(picture.width * scale)), max(MIN_SIDE, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        changes.append("upscaled")
    return picture, tuple(changes)


def encode_png(picture: Image) -> bytes:
    """Encode as PNG without any metadata, so that equal pixels give equal bytes under one Pillow."""
    buffer = io.BytesIO()
    plain = picture.copy()
    plain.info = {}
    # Level 3 is a third of the time of level 6 on rendered scenes, for files a tenth larger.
    plain.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def pixel_hash(picture: Image) -> str:
    """SHA-256 (hex) over the size and the RGB pixels."""
    digest = hashlib.sha256(f"{picture.width}x{picture.height}:".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()
