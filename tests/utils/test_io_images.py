"""Pictures: our codec against the definition of the formats, and every damage refused."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import EnvironmentFault, InputError
from utils.io.images import (
    blend,
    composite,
    encode_png,
    read_header,
    read_image,
    replace_background,
    resize,
    to_uint8,
    write_png,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (13, 17, 3)).astype(np.uint8)


def jpeg(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_round_trip(tmp_path: Path, channels: int) -> None:
    pixels = RNG.integers(0, 256, (5, 9, channels)).astype(np.uint8)
    write_png(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", (9, 5)), pixels)


def test_two_axes_are_a_grey_picture(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", RGB[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB[..., :1])


def test_channels_are_in_the_order_of_the_file() -> None:
    """The first sample after the filter byte of the first row is red."""
    data = encode_png(np.full((1, 1, 3), (10, 20, 30), np.uint8))
    start = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, start - 4)
    assert zlib.decompress(data[start + 4 : start + 4 + length])[1:] == bytes([10, 20, 30])


def test_jpeg_is_told_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(jpeg(np.full((8, 8, 3), (30, 60, 200), np.uint8)))
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[4, 4], [200, 60, 30], atol=2)
    (tmp_path / "grey.jpg").write_bytes(jpeg(np.full((8, 8), 77, np.uint8)))
    assert read_image(tmp_path / "grey.jpg").shape == (8, 8, 1)


def test_a_jpeg_without_pyav_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.jpg").write_bytes(jpeg(RGB))
    with pytest.raises(EnvironmentFault, match="pip install av"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("data", [encode_png(RGB), jpeg(RGB)], ids=["png", "jpeg"])
def test_every_truncation_is_refused(data: bytes) -> None:
    header = read_header(data, "whole")
    assert (header.width, header.height, header.channels) == (17, 13, 3)
    for length in range(len(data)):
        with pytest.raises(InputError, match="^cut: "):
            read_header(data[:length], "cut")


@given(position=st.integers(8, len(encode_png(RGB)) - 1), bit=st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_every_flipped_bit_of_a_png_is_refused(position: int, bit: int) -> None:
    data = bytearray(encode_png(RGB))
    data[position] ^= 1 << bit
    with pytest.raises(InputError):
        read_header(bytes(data), "flipped")


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused(noise: bytes, start: bytes) -> None:
    with pytest.raises(InputError):
        read_header(start + noise, "noise")


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def exif(orientation: int, order: str) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return mark + struct.pack(order + "HIH", 42, 8, 1) + entry + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_rotation_is_refused(order: str) -> None:
    plain = jpeg(RGB)
    upright = plain[:2] + segment(0xE1, b"Exif\0\0" + exif(1, order)) + plain[2:]
    turned = plain[:2] + segment(0xE1, b"Exif\0\0" + exif(6, order)) + plain[2:]
    assert read_header(upright, "upright").width == 17
    with pytest.raises(InputError, match="EXIF orientation: found 6, expected 1"):
        read_header(turned, "turned")


def test_exif_rotation_in_a_png_is_refused() -> None:
    plain, tiff = encode_png(RGB), exif(8, ">")
    chunk = struct.pack(">I", len(tiff)) + b"eXIf" + tiff + struct.pack(">I", zlib.crc32(b"eXIf" + tiff))
    with pytest.raises(InputError, match="EXIF orientation: found 8"):
        read_header(plain[:33] + chunk + plain[33:], "turned")


def test_cmyk_is_refused() -> None:
    frame = struct.pack(">BHHB", 8, 4, 4, 4) + bytes(12)
    with pytest.raises(InputError, match="4 channels of 8 bits, expected grey or RGB"):
        read_header(b"\xff\xd8" + segment(0xC0, frame) + segment(0xDA, b"") + b"\xff\xd9", "cmyk")


@pytest.mark.parametrize("width, height", [(30_000, 30_000), (2**31, 1), (0, 5), (5, 0)])
def test_sizes_are_judged_from_the_header(width: int, height: int) -> None:
    content = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", content), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts)
    with pytest.raises(InputError, match=f"size: found {width}x{height} pixels, expected at least 1x1 and at most"):
        read_header(b"\x89PNG\r\n\x1a\n" + body, "huge")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.png: does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="not a regular file"):
        read_image(tmp_path)


def all_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Every colour against every matte level: [256, 256, 3] and [256, 256, 1]."""
    colour, matte = np.mgrid[:256, :256].astype(np.uint8)
    return np.repeat(colour[..., None], 3, axis=2), matte[..., None]


@pytest.mark.parametrize("level", [0, 100, 255])
def test_blending_rounds_to_nearest(level: int) -> None:
    colour, matte = all_pairs()
    m = matte / 255.0
    exact = colour * m + level * (1 - m)
    np.testing.assert_array_equal(blend(colour, matte, level), np.floor(exact + 0.5 + 1e-9))
    np.testing.assert_array_equal(composite(np.concatenate([colour, matte], 2), level), blend(colour, matte, level))


@pytest.mark.parametrize("old, new", [(255, 0), (0, 255), (255, 128)])
def test_replacing_the_background(old: int, new: int) -> None:
    """Exact up to the rounding of the exported picture, and clamped where no foreground explains a pixel."""
    colour, matte = all_pairs()
    replaced = replace_background(blend(colour, matte, old), matte, old, new)
    assert np.abs(replaced.astype(int) - blend(colour, matte, new)).max() <= 1
    assert replace_background(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1, 1), np.uint8), 255, 0).max() == 0


def test_resize_averages_areas() -> None:
    pixels = RNG.integers(0, 256, (12, 18, 4)).astype(np.uint8)
    means = pixels.reshape(4, 3, 6, 3, 4).mean((1, 3))
    assert np.abs(resize(pixels, 6, 4) - means).max() <= 0.5 + 1e-9
    assert resize(pixels[..., :1], 6, 4).shape == (4, 6, 1) and resize(pixels[..., 0], 6, 4).shape == (4, 6)
    assert resize(pixels, 18, 12) is pixels


def test_to_uint8_rounds_and_clamps() -> None:
    values = np.array([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("bad", [RGB.astype(np.float32), RGB[..., :2], RGB[None]])
def test_encoding_refuses_what_is_no_picture(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        encode_png(bad)
