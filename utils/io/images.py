"""PNG and JPEG pictures: the header is judged before anything is decoded, and a damaged file is an error."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.io.atomic import atomic_file
from utils.io.json_files import read_bytes
from utils.io.pyav import load_pyav

MAX_PIXELS = 100_000_000
MAX_BYTES = 512 << 20
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 6: 4}  # colour type -> channels; palette (3) and grey with alpha (4) are refused
PNG_TYPES = {3: "a palette", 4: "grey with alpha"}
JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn markers
RESAVE = "Re-save it as 8-bit RGB PNG."


@dataclass(frozen=True)
class Header:
    """What a picture file says about itself."""

    width: int
    height: int
    channels: int  # 1 grey, 3 RGB, 4 RGBA


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an 8-bit PNG or JPEG.

    Args:
        path: the file; its type is told by its first bytes, not by its name.
        size: (width, height) that it must have, if known.
    Returns:
        uint8 [H, W, C] with C = 1 grey, 3 RGB or 4 RGBA (alpha not premultiplied).
    Raises:
        InputError: missing, truncated, damaged, over 100 megapixels, another size, 16-bit, palette, grey with alpha,
            animated, CMYK, rotated by EXIF, or another format.
        EnvironmentFault: a JPEG, and PyAV is missing.
    """
    import cv2

    data = read_bytes(path, MAX_BYTES)
    header = read_header(data, path)
    if size is not None and (header.width, header.height) != size:
        found, expected = f"{header.width}x{header.height} pixels", f"{size[0]}x{size[1]}"
        raise InputError(path, "size", f"found {found}, expected {expected} (w x h of the dataset)")
    if not data.startswith(PNG_MAGIC):
        refuse_damaged_scan(data, path)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(path, "", f"can't be decoded: {error.err or 'damaged data'}") from error
    if pixels is None or pixels.dtype != np.uint8:
        raise InputError(path, "", "can't be decoded: damaged data", "Copy or export the file again.")
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if pixels.shape != (header.height, header.width, header.channels):
        raise InputError(path, "", f"decoded to shape {pixels.shape}, which contradicts its header", RESAVE)
    if header.channels == 1:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if header.channels == 3 else cv2.COLOR_BGRA2RGBA)


def refuse_damaged_scan(data: bytes, path: Path) -> None:
    """Refuse a JPEG with a hole in its pixels, which OpenCV (like every decoder on libjpeg) fills with grey.

    FFmpeg's decoder can be told to stop there; its pixels are not used.
    """
    av = load_pyav()
    try:
        with av.open(io.BytesIO(data), format="jpeg_pipe") as container:
            container.streams.video[0].codec_context.options = {"err_detect": "explode"}
            next(container.decode(video=0))
    except (av.FFmpegError, StopIteration, IndexError) as error:
        raise InputError(path, "", "can't be decoded: damaged data", "Copy or export the file again.") from error


def read_header(data: bytes, source: str | Path) -> Header:
    """Check the structure of a PNG or JPEG file without decoding it; raises InputError as `read_image` does."""
    if data.startswith(PNG_MAGIC):
        header = _png_header(data, source)
    elif data.startswith(b"\xff\xd8\xff"):
        header = _jpeg_header(data, source)
    elif not data:
        raise InputError(source, "byte 0", "the file is empty, expected a PNG or JPEG")
    else:
        raise InputError(source, "byte 0", "found another format, expected PNG or JPEG", RESAVE)
    if header.width < 1 or header.height < 1 or header.width * header.height > MAX_PIXELS:
        size = f"{header.width}x{header.height} pixels"
        raise InputError(source, "size", f"found {size}, expected at least 1x1 and at most {MAX_PIXELS} pixels")
    return header


def _png_header(data: bytes, source: str | Path) -> Header:
    """IHDR of a PNG whose chunks are complete, in order and pass their CRC (PNG specification, section 5)."""
    header, position, has_pixels = None, len(PNG_MAGIC), False
    while True:
        if position + 12 > len(data):
            raise _truncated(source, position)
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise _truncated(source, position)
        (crc,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != crc:
            raise InputError(source, f"byte {position}", f"chunk {name!r} fails its CRC", "Copy or export it again.")
        if header is None:
            header = _ihdr(data[position + 8 : end - 4], name, source)
        elif name in (b"tRNS", b"acTL"):
            found = "a transparent colour" if name == b"tRNS" else "an animation"
            raise InputError(source, f"byte {position}", f"found {found} (chunk {name!r}), expected neither", RESAVE)
        elif name == b"eXIf":
            _check_orientation(data[position + 8 : end - 4], source)
        elif name == b"IEND":
            if not has_pixels:
                raise InputError(source, f"byte {position}", "ends without pixels (no IDAT chunk)")
            return header
        has_pixels |= name == b"IDAT"
        position = end


def _ihdr(content: bytes, name: bytes, source: str | Path) -> Header:
    if name != b"IHDR" or len(content) != 13:
        raise InputError(source, "byte 8", f"found chunk {name!r}, expected IHDR of 13 bytes")
    width, height, depth, colour, _, _, _ = struct.unpack(">IIBBBBB", content)
    if colour not in PNG_CHANNELS:
        found = PNG_TYPES.get(colour, f"colour type {colour}")
        raise InputError(source, "colour type", f"found {found}, expected grey, RGB or RGBA", RESAVE)
    if depth != 8:
        raise InputError(source, "bit depth", f"found {depth} bits per channel, expected 8", RESAVE)
    return Header(width, height, PNG_CHANNELS[colour])


def _jpeg_header(data: bytes, source: str | Path) -> Header:
    """Frame header of a JPEG whose segments are complete and which ends in EOI (ITU-T T.81, annex B)."""
    header, position = None, 2
    while True:
        if position + 4 > len(data):
            raise _truncated(source, position)
        if data[position] != 0xFF:
            raise InputError(source, f"byte {position}", "found no JPEG marker", "Copy or export the file again.")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        content = data[position + 4 : position + 2 + length]
        if length < 2 or len(content) != length - 2:
            raise _truncated(source, position)
        if marker == 0xE1 and content.startswith(b"Exif\0\0"):
            _check_orientation(content[6:], source)
        elif marker in JPEG_FRAMES:
            header = _sof(content, source)
        elif marker == 0xDA:
            break
        position += 2 + length
    if header is None:
        raise InputError(source, f"byte {position}", "found pixels before the frame header")
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise _truncated(source, len(data))
    return header


def _sof(content: bytes, source: str | Path) -> Header:
    if len(content) < 6:
        raise InputError(source, "frame header", f"found {len(content)} bytes, expected at least 6")
    depth, height, width, channels = struct.unpack_from(">BHHB", content)
    if depth != 8 or channels not in (1, 3):
        found = f"{channels} channels of {depth} bits"
        raise InputError(source, "frame header", f"found {found}, expected grey or RGB of 8 bits (not CMYK)", RESAVE)
    return Header(width, height, channels)


def _check_orientation(tiff: bytes, source: str | Path) -> None:
    """Refuse EXIF that asks viewers to turn the picture: the cameras were calibrated on one of the two readings."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == 0x0112 and value > 1:
            advice = "Apply the rotation to the pixels and remove the EXIF tag."
            raise InputError(source, "EXIF orientation", f"found {value}, expected 1 (not rotated)", advice)


def _truncated(source: str | Path, position: int) -> InputError:
    return InputError(source, f"byte {position}", "the file ends too early (truncated)", "Copy or export it again.")


def composite(image: np.ndarray, background: int) -> np.ndarray:
    """Lay uint8 RGBA [H, W, 4] over a grey level: round(alpha colour + (1 - alpha) background), uint8 [H, W, 3]."""
    return blend(image[..., :3], image[..., 3:], background)


def blend(image: np.ndarray, matte: np.ndarray, background: int) -> np.ndarray:
    """round(m image + (1 - m) background) of uint8 [H, W, 3] with matte [H, W, 1], in exact integer arithmetic."""
    m = matte.astype(np.int32)
    return ((image * m + background * (255 - m) + 127) // 255).astype(np.uint8)


def replace_background(image: np.ndarray, matte: np.ndarray, old: int, new: int) -> np.ndarray:
    """Swap the grey level behind a composited uint8 picture [H, W, 3], given its matte [H, W, 1].

    An exported picture is C = m F + (1 - m) old, so m F + (1 - m) new = C + (new - old) (1 - m); rounded and clamped.
    """
    shift = (new - old) * (255 - matte.astype(np.int32))
    return ((np.clip(image.astype(np.int32) * 255 + shift, 0, 255 * 255) + 127) // 255).astype(np.uint8)


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize uint8 [H, W, C] or [H, W] by averaging areas."""
    import cv2

    if image.shape[:2] == (height, width):
        return image
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return resized.reshape(height, width, *image.shape[2:])


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of uint8 [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA)."""
    import cv2

    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"found {image.dtype} {image.shape}, expected uint8 [H, W] or [H, W, 1 | 3 | 4]")
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels > 1:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA)
    done, data = cv2.imencode(".png", image)
    if not done:
        raise ValueError(f"OpenCV could not encode a picture of shape {image.shape}")
    return data.tobytes()


def write_png(path: Path, image: np.ndarray) -> None:
    """Write a PNG atomically; see `encode_png`. Raises EnvironmentFault if the disk refuses."""
    with atomic_file(path) as file:
        file.write(encode_png(image))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Float picture in [0, 1] (clamped) to uint8, rounded to nearest."""
    return np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
