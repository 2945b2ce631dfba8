"""C4: the PLY of an avatar with headers that lie, damaged properties and rows, read by render.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from scripts.torture_cases.case import Box, Case, Command, Either, Expected, Refused, Works, cut, flip, spread
from tests.tiny import RINGS, SECTORS

NAME = r"point_cloud\.ply"
FACES = 2 * RINGS * SECTORS
CUTS, HEADER_FLIPS = 14, 15
LITTLE, END = b"binary_little_endian", b"end_header\n"
Spoil = Callable[[Path], object]


def case(name: str, spoil: Spoil, *words: str, expected: Expected | None = None) -> Case:
    def prepare(box: Box) -> Command:
        spoil(box.avatar / "point_cloud.ply")
        return box.render()

    return Case("C4", name, prepare, expected or Refused((NAME, *words)), trained=True)


def split(path: Path) -> tuple[bytes, bytes]:
    data = path.read_bytes()
    at = data.index(END) + len(END)
    return data[:at], data[at:]


def edit(pattern: bytes, new: bytes) -> Spoil:
    """Replace the first match in the header."""

    def spoil(path: Path) -> None:
        header, rows = split(path)
        path.write_bytes(re.sub(pattern, new, header, count=1) + rows)

    return spoil


def table(path: Path) -> tuple[list[str], np.ndarray]:
    """Property names and the rows as float32 [N, P]."""
    header, rows = split(path)
    names = re.findall(r"property float (\w+)", header.decode())
    return names, np.frombuffer(rows, "<f4").reshape(-1, len(names)).copy()


def set_value(name: str, row: int, value: float) -> Spoil:
    def spoil(path: Path) -> None:
        names, values = table(path)
        values[row, names.index(name)] = value
        path.write_bytes(split(path)[0] + values.tobytes())

    return spoil


def rewrite(kind: str, word: str, order: str = "<") -> Spoil:
    """The same numbers in another type or byte order."""

    def spoil(path: Path) -> None:
        header, _ = split(path)
        _, values = table(path)
        header = header.replace(b"property float", f"property {word}".encode())
        header = header if order == "<" else header.replace(LITTLE, b"binary_big_endian")
        path.write_bytes(header + values.astype(order + kind).tobytes())

    return spoil


def cases(seed: int) -> Iterator[Case]:
    """All cases of the row."""
    yield from counts()
    yield from properties()
    yield from rows(np.random.default_rng([seed, 4]))
    yield from damage(np.random.default_rng([seed, 5]))


def counts() -> Iterator[Case]:
    """Counts and headers that lie."""
    for name, count in (
        ("2^32", 2**32),
        ("2^31", 2**31),
        ("2^63", 2**63),
        ("2^64", 2**64),
        ("10^30", 10**30),
        ("-1", -1),
        ("-2^31", -(2**31)),
        ("1", 1),
        ("0", 0),
    ):
        yield case(f"a count of {name}", edit(rb"vertex \d+", f"vertex {count}".encode()))
    for name, change in (("one more", 1), ("one less", -1)):

        def spoil(path: Path, change: int = change) -> None:
            edit(rb"vertex \d+", f"vertex {len(table(path)[1]) + change}".encode())(path)

        yield case(f"a count of {name}", spoil)
    for name, new in (
        ("text", b"vertex many"),
        ("a fraction", b"vertex 1.5"),
        ("nothing", b"vertex"),
        ("two", b"vertex 1 2"),
    ):
        yield case(f"a count of {name}", edit(rb"vertex \d+", new))
    yield case("another magic", edit(rb"^ply", b"plx"), "header")
    yield case("no end of the header", edit(rb"end_header", b"end_footer"), "header")
    yield case("no format", edit(rb"format [^\n]*\n", b""))
    yield case("ASCII", edit(LITTLE, b"ascii"), "ascii")
    yield case("unknown byte order", edit(LITTLE, b"binary_middle_endian"))
    yield case("unknown version", edit(rb" 1\.0", b" 7.0"))
    yield case("another element", edit(rb"element vertex", b"element point"), "vertex")
    no_data = Works(why="an element of no properties takes no bytes")
    yield case(
        "an element without properties", edit(rb"element vertex", b"element face 1\nelement vertex"), expected=no_data
    )
    yield case("the element twice", edit(rb"element vertex (\d+)\n", rb"element vertex 0\nelement vertex \1\n"))
    yield case("a header of 1 MB", edit(rb"end_header", b"comment " + b"x" * 1_000_000 + b"\nend_header"), "header")
    yield case("Windows line ends", edit(rb"\n", b"\r\n"))
    yield case("only the magic", lambda path: path.write_bytes(b"ply\n"), "header")
    yield case("empty", lambda path: path.write_bytes(b""), "header")
    yield case("a picture", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "header")
    yield case("bytes after the end", lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes")
    yield case("no rows at all", lambda path: path.write_bytes(split(path)[0]))

    def missing(path: Path) -> None:
        path.unlink()

    yield Case(
        "C4",
        "no file",
        lambda box: (missing(box.avatar / "point_cloud.ply"), box.render("--iteration=3"))[1],
        Refused(("point_cloud", "iteration_3")),
        trained=True,
    )
    yield Case("C4", "a folder of that name", folder, Refused((NAME,), (2, 3)), trained=True)


def folder(box: Box) -> Command:
    (box.avatar / "point_cloud.ply").unlink()
    (box.avatar / "point_cloud.ply").mkdir()
    return box.render()


def properties() -> Iterator[Case]:
    """Properties that are missing, doubled, renamed, of another type, or lists."""
    for name in ("x", "f_dc_1", "f_rest_0", "f_rest_44", "opacity", "scale_2", "rot_3", "binding_0"):
        renamed = edit(rf"property float {name}\n".encode(), b"property float other\n")
        yield case(
            f"{name} missing", renamed, "binding_0" if name == "binding_0" else "f_rest" if "rest" in name else name
        )
    for name, other in (("y", "x"), ("rot_1", "rot_0"), ("binding_0", "opacity")):
        yield case(f"{other} twice", edit(rf"float {name}\n".encode(), f"float {other}\n".encode()))
    yield case("a second binding", edit(rb"float nx\n", b"float binding_1\n"), "binding_1")
    yield case("a list", edit(rb"property float x\n", b"property list uchar float x\n"), "list")
    for kind in ("double", "uchar", "float128", "string"):
        yield case(f"x of type {kind}", edit(rb"property float x\n", f"property {kind} x\n".encode()))
    yield case("46 coefficients", edit(rb"float nx\n", b"float f_rest_45\n"), "46 f_rest")
    reads = "any numeric type, byte order and order of properties is read"
    yield case("big-endian", rewrite("f4", "float", ">"), expected=Works(why=reads))
    yield case("doubles", rewrite("f8", "double"), expected=Works(why=reads))
    yield case("big-endian doubles", rewrite("f8", "double", ">"), expected=Works(why=reads))


def rows(rng: np.random.Generator) -> Iterator[Case]:
    """Numbers that can't be used: the row and the property are named."""
    names = [
        "x",
        "y",
        "z",
        "f_dc_0",
        "f_rest_0",
        "f_rest_44",
        "opacity",
        "scale_0",
        "scale_2",
        "rot_0",
        "rot_3",
        "binding_0",
    ]
    for name in names:
        for value in (np.nan, np.inf, -np.inf):
            row = int(rng.integers(0, FACES))
            yield case(f"{name} of row {row} is {value}", set_value(name, row, value), f"vertex {row}", f"{name} is")
    for value in (-1.0, FACES, 2.5, 1e9, 1e30, -0.5):
        row = int(rng.integers(0, FACES))
        yield case(
            f"binding of row {row} is {value:g}", set_value("binding_0", row, value), f"vertex {row}", "binding_0"
        )

    def no_rotation(path: Path) -> None:
        for k in range(4):
            set_value(f"rot_{k}", 7, 0.0)(path)

    yield case("a rotation of zero", no_rotation, "vertex 7", "rot")

    def beyond(path: Path) -> None:
        rewrite("f8", "double")(path)
        header, data = split(path)
        values = np.frombuffer(data, "<f8").copy()
        values[63 + 1] = 1e300
        path.write_bytes(header + values.tobytes())

    yield case("a double beyond float32", beyond, "vertex 1", "y is inf")


def damage(rng: np.random.Generator) -> Iterator[Case]:
    """Files that end early, and flipped bits of the header."""
    for share in spread(1000, CUTS):
        yield case(f"cut to {share / 10:g} %", lambda path, s=share: cut(path, path.stat().st_size * s // 1000))
    either = Either(Refused((NAME,)), Works(why="comments and unused names do not matter"))
    for bit in sorted(rng.choice(8 * 1600, HEADER_FLIPS, replace=False).tolist()):
        yield case(f"bit {bit} of the header flipped", lambda path, b=bit: flip(path, b), expected=either)
