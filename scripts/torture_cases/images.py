"""C1: photographs and mattes that are cut, flipped, of another kind, of another size, or built to harm a decoder."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from scripts.torture_cases.case import Box, Case, Command, Either, Expected, Refused, Works, cut, flip, spread
from tests.scene.make_capture import HEIGHT, WIDTH, chunk, foreground_of, matte_of, over, png

NAME = "00001_01.png"
IMAGE, MATTE = f"images/{NAME}", f"fg_masks/{NAME}"
RGB, GREY = foreground_of(1, 1), matte_of(1, 1)
STORED = over(RGB, GREY, 255)  # the pixels of the capture's own file
CUTS, MATTE_CUTS, FLIPS, JPEG_FLIPS = 20, 8, 50, 10
Spoil = Callable[[Box], object]


def case(name: str, spoil: Spoil, *words: str, expected: Expected | None = None) -> Case:
    def prepare(box: Box) -> Command:
        spoil(box)
        return box.train()

    return Case("C1", name, prepare, expected or Refused((NAME, *words)))


def put(content: bytes, where: str = IMAGE) -> Spoil:
    return lambda box: (box.capture / where).write_bytes(content)


def cases(seed: int) -> Iterator[Case]:
    """All cases of the row."""
    rng = np.random.default_rng([seed, 1])
    size, matte = len(png(STORED)), len(png(GREY))
    for length in spread(size, CUTS):
        yield case(f"photograph cut to {length} bytes", lambda box, n=length: cut(box.capture / IMAGE, n), "byte|empty")
    for length in spread(matte, MATTE_CUTS):
        yield case(
            f"matte cut to {length} bytes", lambda box, n=length: cut(box.capture / MATTE, n), "fg_masks", "byte"
        )
    for bit in sorted(rng.choice(8 * size, FLIPS, replace=False).tolist()):
        yield case(f"bit {bit} flipped", lambda box, b=bit: flip(box.capture / IMAGE, b), "byte|size|depth|colour type")
    yield from other_types()
    yield from other_pixels()
    yield from sizes()
    yield from chunks()
    yield from jpegs(rng)
    yield from not_files()


def other_types() -> Iterator[Case]:
    """Another format behind `.png`."""
    pixels = Image.fromarray(RGB)
    for kind in ("GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "PCX", "TGA"):
        file = io.BytesIO()
        pixels.save(file, kind)
        yield case(f"{kind} behind .png", put(file.getvalue()), "another format")
    npz = io.BytesIO()
    np.savez(npz, image=RGB)
    contents = {
        "empty": b"",
        "text": b"hello\n",
        "HTML": b"<html>not found</html>",
        "JSON": b"{}",
        "npz": npz.getvalue(),
        "PDF": b"%PDF-1.7\n",
        "ELF": b"\x7fELF" + bytes(60),
        "zeros": bytes(5000),
    }
    for kind, content in contents.items():
        yield case(f"{kind} behind .png", put(content), "byte 0")


def other_pixels() -> Iterator[Case]:
    """PNG of a kind that is not accepted."""
    plane, palette = RGB[..., :1], chunk(b"PLTE", bytes(768))
    yield case("16 bits", put(png(RGB.astype(np.uint16) * 257, depth=16)), "bit depth: found 16")
    yield case("16-bit matte", put(png(GREY.astype(np.uint16) * 257, depth=16), MATTE), "fg_masks", "bit depth")
    yield case("1 bit", put(with_header(png(plane), depth=1)), "bit depth: found 1 ")
    yield case("depth 0", put(with_header(png(plane), depth=0)), "bit depth: found 0 ")
    yield case("palette", put(png(plane, colour=3, extra=palette)), "palette")
    yield case("palette without colours", put(png(plane, colour=3)), "palette")
    yield case("grey and alpha", put(png(plane, colour=4)), "grey with alpha")
    for colour in (1, 5, 7, 255):
        yield case(f"colour type {colour}", put(png(plane, colour=colour)), "colour type")
    yield case("grey photograph", put(png(plane)), "1 channel")
    yield case("matte in colour", put(png(RGB), MATTE), "fg_masks", "3 channels")
    yield case("matte with alpha", put(png(np.concatenate([RGB, GREY], 2)), MATTE), "fg_masks", "4 channels")
    yield case("transparent colour", put(png(RGB, extra=chunk(b"tRNS", bytes(6)))), "tRNS|transparent")
    yield case("animation", put(png(RGB, extra=chunk(b"acTL", bytes(8)))), "animation")


def with_header(data: bytes, **changes: int) -> bytes:
    """A PNG whose IHDR says something else, CRC included."""
    names = ("width", "height", "depth", "colour", "compression", "filter", "interlace")
    header = dict(zip(names, struct.unpack(">IIBBBBB", data[16:29]), strict=True)) | changes
    return data[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", *header.values())) + data[33:]


def sizes() -> Iterator[Case]:
    """Sides that differ from the JSON, are nothing, or are larger than memory."""
    claims = [
        (0, 0),
        (0, HEIGHT),
        (WIDTH, 0),
        (1, 1),
        (WIDTH + 1, HEIGHT),
        (WIDTH, HEIGHT - 1),
        (HEIGHT, WIDTH),
        (30_000, 30_000),
        (65_535, 65_535),
        (2**31, 1),
        (1, 2**32 - 1),
        (2**16, 2**16),
    ]
    for width, height in claims:
        yield case(
            f"header of {width}x{height}",
            put(with_header(png(RGB), width=width, height=height)),
            f"size: found {width}x{height}",
        )
    honest = {
        "1x1": RGB[:1, :1],
        "a column less": RGB[:, 1:],
        "a row more": np.concatenate([RGB, RGB[:1]]),
        "turned": RGB.transpose(1, 0, 2),
        "twice as large": RGB.repeat(2, 0).repeat(2, 1),
    }
    for name, pixels in honest.items():
        yield case(f"picture {name}", put(png(pixels)), f"found {pixels.shape[1]}x{pixels.shape[0]} pixels")
    yield case("matte a row less", put(png(GREY[1:]), MATTE), "fg_masks", f"found {WIDTH}x{HEIGHT - 1}")


def chunks() -> Iterator[Case]:
    """PNG files with a broken or hostile structure."""
    data = png(RGB)
    few, bomb = png(RGB[:5])[33:], zlib.compress(bytes(64 << 20))
    yield case("too few rows", put(data[:33] + few), "damaged")
    yield case("no pixels", put(data[:33] + chunk(b"IEND", b"")), "without pixels")
    yield case("only the magic", put(data[:8]), "byte 8")
    yield case("chunk of 4 GiB", put(data[:33] + b"\xff\xff\xff\xffIDAT" + data[41:]), "byte 33")
    yield case("header not first", put(data[:8] + chunk(b"tEXt", b"a\0b") + data[8:]), "IHDR")
    yield case("short header", put(data[:8] + chunk(b"IHDR", bytes(12)) + data[33:]), "IHDR")
    yield case("pixels of another kind", put(data[:33] + chunk(b"IDAT", b"not zlib") + chunk(b"IEND", b"")), "damaged")
    yield case("bad adler sum", put(data[:33] + chunk(b"IDAT", broken_sum()) + chunk(b"IEND", b"")), "damaged")
    yield case(
        "unknown filter",
        put(data[:33] + chunk(b"IDAT", zlib.compress(b"\x09" * ((3 * WIDTH + 1) * HEIGHT))) + chunk(b"IEND", b"")),
        "damaged",
    )
    same = Either(Refused((NAME,)), Works(why="what a PNG holds beside its pixels is not looked at"))
    yield case(
        "pixels that expand to 64 MiB", put(data[:33] + chunk(b"IDAT", bomb) + chunk(b"IEND", b"")), expected=same
    )
    yield case("text that expands to 64 MiB", put(png(RGB, extra=chunk(b"zTXt", b"a\0\0" + bomb))), expected=same)
    yield case("profile that expands to 64 MiB", put(png(RGB, extra=chunk(b"iCCP", b"a\0\0" + bomb))), expected=same)
    yield case("two headers", put(data[:33] + data[8:]), expected=same)
    yield case("bytes after the end", put(data + b"junk" * 100), expected=same)
    for order, word in (("<", b"II"), (">", b"MM")):
        for orientation in (3, 6, 8):
            exif = chunk(b"eXIf", tiff(order, word, orientation))
            yield case(f"EXIF turns it ({orientation}, {word.decode()})", put(png(RGB, extra=exif)), "EXIF orientation")


def broken_sum() -> bytes:
    rows = b"".join(b"\0" + row.tobytes() for row in RGB)
    return zlib.compress(rows)[:-4] + b"\0\0\0\0"


def tiff(order: str, word: bytes, orientation: int) -> bytes:
    """A TIFF directory with one entry: the orientation."""
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return word + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 1) + entry + bytes(4)


def jpegs(rng: np.random.Generator) -> Iterator[Case]:
    """JPEG: accepted whatever the name says, unless cut, of four channels, 12 bits, or to be turned."""
    data = jpeg(Image.fromarray(RGB))
    yield case("JPEG behind .png", put(data), expected=Works(why="the type is told by the first bytes"))
    for length in spread(len(data), 8)[1:]:
        yield case(f"JPEG cut to {length} bytes", put(data[:length]), "byte")
    yield case("CMYK", put(jpeg(Image.fromarray(RGB).convert("CMYK"))), "CMYK")
    yield case("grey JPEG", put(jpeg(Image.fromarray(GREY[..., 0]))), "1 channel")
    scan, at = data.index(b"\xff\xda"), data.index(b"\xff\xc0")
    yield case("JPEG with a hole in its scan", put(data[: scan + 60] + data[scan + 100 :]), "decoded|damaged")
    yield case("JPEG of 12 bits", put(data[: at + 4] + b"\x0c" + data[at + 5 :]), "frame header")
    yield case("JPEG of 0 rows", put(data[: at + 5] + b"\0\0" + data[at + 7 :]), "size")
    yield case("JPEG of 65535 rows", put(data[: at + 5] + b"\xff\xff\xff\xff" + data[at + 9 :]), "size")
    exif = b"Exif\0\0" + tiff("<", b"II", 6)
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    yield case("JPEG that EXIF turns", put(turned), "EXIF orientation")
    either = Either(Refused((NAME,)), Works(why="JPEG has no checksum", decoder_may_complain=True))
    for bit in sorted(rng.choice(8 * len(data), JPEG_FLIPS, replace=False).tolist()):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield case(f"JPEG bit {bit} flipped", put(bytes(flipped)), expected=either)


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def not_files() -> Iterator[Case]:
    """No file, or something else that has its name."""

    def gone(where: str, make: Callable[[str], object] | None = None) -> Spoil:
        def spoil(box: Box) -> None:
            (box.capture / where).unlink()
            if make:
                make(str(box.capture / where))

        return spoil

    for where, field in ((IMAGE, "file_path"), (MATTE, "fg_mask_path")):
        place = rf"transforms_train\.json: frames\[3\]\.{field}"
        yield case(f"{field} missing", gone(where), place)
        yield case(f"{field} is a folder", gone(where, os.mkdir), place)
        yield case(f"{field} is a pipe", gone(where, os.mkfifo), place)
        yield case(f"{field} links to itself", gone(where, lambda p: os.symlink(p, p)), place)
        yield case(f"{field} links to nothing", gone(where, lambda p: os.symlink(p + "x", p)), place)
        device = gone(where, lambda p: os.symlink("/dev/zero", p))
        yield case(f"{field} is a device", device, expected=Refused((place,)))
