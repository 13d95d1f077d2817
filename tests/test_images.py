"""Images: every mode and shape that real sets bring becomes a plain RGB picture that Qwen2-VL's resize accepts."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mr1_bench import images
from mr1_bench.images import ImageError, normalise


def encode(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return buffer.getvalue()


def decode(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png))
    picture.load()
    return picture


def corner(png: bytes) -> tuple[int, ...]:
    return decode(png).getpixel((0, 0))


def transparent_palette() -> bytes:
    picture = Image.new("P", (40, 40), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    return encode(picture, transparency=0)


SEE_THROUGH = {
    "RGBA": encode(Image.new("RGBA", (40, 40), (0, 0, 0, 0))),
    "LA": encode(Image.new("LA", (40, 40), (0, 0))),
    "P": transparent_palette(),
    "RGB with a key colour": encode(Image.new("RGB", (40, 40), (0, 0, 0)), transparency=(0, 0, 0)),
    "L with a key colour": encode(Image.new("L", (40, 40), 0), transparency=0),
}


@pytest.mark.parametrize("mode", SEE_THROUGH)
def test_transparency_becomes_white(mode: str) -> None:
    result = normalise(SEE_THROUGH[mode])
    assert corner(result.png) == (255, 255, 255)
    assert "composited" in result.changes


def test_half_transparent_black_is_middle_grey() -> None:
    assert corner(normalise(encode(Image.new("RGBA", (40, 40), (0, 0, 0, 128)))).png) == (127, 127, 127)


@pytest.mark.parametrize(
    ("picture", "form", "colour"),
    [
        (Image.new("RGB", (40, 40), (10, 20, 30)), "PNG", (10, 20, 30)),
        (Image.new("RGBA", (40, 40), (10, 20, 30, 255)), "PNG", (10, 20, 30)),
        (Image.new("L", (40, 40), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (40, 40), 1), "PNG", (255, 255, 255)),
        (Image.fromarray(np.full((40, 40), 0x8000, dtype=np.uint16)), "PNG", (128, 128, 128)),
        (Image.new("CMYK", (40, 40), (0, 0, 0, 255)), "TIFF", (0, 0, 0)),
    ],
)
def test_opaque_modes_keep_their_colour(picture: Image.Image, form: str, colour: tuple[int, int, int]) -> None:
    result = normalise(encode(picture, form))
    assert corner(result.png) == colour
    assert decode(result.png).mode == "RGB"
    assert "composited" not in result.changes


def test_float_samples_are_refused() -> None:
    with pytest.raises(ImageError, match="mode F"):
        normalise(encode(Image.new("F", (40, 40), 0.5), "TIFF"))


def test_rotation_tag_is_done() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    result = normalise(encode(Image.new("RGB", (60, 30)), "JPEG", exif=exif))
    assert (result.width, result.height) == (30, 60)
    assert result.original_size == (60, 30)
    assert "rotated" in result.changes


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 700), st.integers(1, 700))
def test_every_shape_is_accepted_by_qwen2_vl(width: int, height: int) -> None:
    # The conditions of transformers' smart_resize, factor 28: it raises where they do not hold.
    result = normalise(encode(Image.new("RGB", (width, height), "red")))
    assert max(result.width, result.height) / min(result.width, result.height) < 200
    assert min(result.width, result.height) >= 28
    if min(width, height) >= 28:
        assert (result.width, result.height, result.changes) == (width, height, ())


@pytest.mark.parametrize(("size", "expected"), [((10, 20), (28, 56)), ((27, 300), (28, 311)), ((1, 1), (28, 28)), ((1, 5000), (28, 5385))])
def test_small_pictures_are_scaled_up(size: tuple[int, int], expected: tuple[int, int]) -> None:
    result = normalise(encode(Image.new("RGB", size, "red")))
    assert (result.width, result.height) == expected


def test_a_long_strip_is_padded_with_white() -> None:
    result = normalise(encode(Image.new("RGB", (20_000, 30), "red")))
    assert result.changes == ("padded",)
    assert (result.width, result.height) == (20_000, 101)
    assert corner(result.png) == (255, 255, 255)
    assert decode(result.png).getpixel((10_000, 50)) == (255, 0, 0)


def test_equal_pixels_give_equal_bytes_whatever_the_file_carries() -> None:
    picture = Image.effect_noise((64, 48), 80).convert("RGB")
    plain, laden = encode(picture), encode(picture, compress_level=9, dpi=(300, 300), icc_profile=b"not a profile")
    assert plain != laden
    assert normalise(plain).png == normalise(laden).png
    assert normalise(plain).pixel_hash == normalise(laden).pixel_hash
    assert decode(normalise(laden).png).info == {}
    # Normal pictures are left alone, so that building from a built set gives the same set.
    assert normalise(normalise(plain).png).png == normalise(plain).png


def test_pixel_hash_tells_the_shape() -> None:
    assert images.pixel_hash(Image.new("RGB", (30, 60))) != images.pixel_hash(Image.new("RGB", (60, 30)))


GOOD = encode(Image.effect_noise((64, 64), 80).convert("RGB"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"<svg/>", "not a picture"),
        (GOOD[:-40], "broken or truncated"),
        (GOOD[: len(GOOD) // 2], "broken or truncated"),
        (encode(Image.new("RGB", (90, 90)), "JPEG")[:-200], "broken or truncated"),
    ],
)
def test_broken_files_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        normalise(data)


@settings(deadline=None, max_examples=150)
@given(st.integers(8, len(GOOD) - 1), st.integers(0, 255))
def test_damage_never_raises_anything_else(place: int, value: int) -> None:
    try:
        normalise(GOOD[:place] + bytes([value]) + GOOD[place + 1 :])
    except ImageError as error:
        assert str(error)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_bomb_is_refused_before_its_pixels_are_unpacked(side: int) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="decompression bomb"):
        normalise(data)


def test_real_geometry_images(real_data: Path) -> None:
    """All 610: fit for Qwen2-VL, light (three turn mostly black under a plain conversion), 14 scaled up."""
    results = [normalise(path.read_bytes()) for path in sorted((real_data / "geoqa_test610" / "images").iterdir())]
    assert len(results) == 610
    assert all(min(result.width, result.height) >= 28 for result in results)
    assert sum("upscaled" in result.changes for result in results) == 14
    assert sum("composited" in result.changes for result in results) == 22
    assert min(np.asarray(decode(result.png).convert("L")).mean() for result in results) > 100


def test_a_library_that_makes_pillow_lenient_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval does so for the whole process when it is imported."""
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="broken or truncated"):
        normalise(GOOD[: len(GOOD) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES, "another library's choice is left as it was"
