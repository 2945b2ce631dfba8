"""C3: FLAME parameter files (`.npz`) with objects, pickles, lies, damage, bombs and wrong shapes."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scripts.torture_cases.case import (
    Box,
    Case,
    Command,
    Either,
    Expected,
    Refused,
    Works,
    cut,
    flip,
    spread,
    state_digest,
)

NAME = "00001.npz"
KEYS = ("rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation", "expr", "shape")
CUTS, FLIPS = 10, 15
Arrays = dict[str, Any]


class Marker:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def case(name: str, spoil: Callable[[Path], object], *words: str, expected: Expected | None = None) -> Case:
    """Spoil the parameters of timestep 1."""

    def prepare(box: Box) -> Command:
        spoil(box.capture / "flame_param" / NAME)
        return box.train()

    return Case("C3", name, prepare, expected or Refused((NAME, *words)))


def change(**values: Any) -> Callable[[Path], object]:
    """Replace arrays; None removes one."""

    def spoil(path: Path) -> None:
        with np.load(path) as file:
            arrays = {**file, **values}
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})

    return spoil


def each(convert: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    """Convert every array."""

    def spoil(path: Path) -> None:
        with np.load(path) as file:
            arrays: Arrays = {key: convert(value) for key, value in file.items()}
        np.savez(path, **arrays)

    return spoil


def cases(seed: int) -> Iterator[Case]:
    """All cases of the row."""
    yield from objects()
    yield from values()
    yield from headers()
    yield from archives(np.random.default_rng([seed, 3]))
    yield from avatars()


def objects() -> Iterator[Case]:
    """Anything that numpy would unpickle."""

    def bare(path: Path) -> None:
        path.write_bytes(pickle.dumps(Marker(path.with_name("marker")), 2))

    def inside(key: str) -> Callable[[Path], object]:
        return lambda path: change(**{key: np.array([Marker(path.with_name("marker"))], object)})(path)

    yield case("a bare pickle", bare, "npz")
    yield case("an object array", inside("expr"), "expr", "objects")
    yield case("an object array that nobody reads", inside("extra"), "extra", "objects")
    yield case("an object array in 0 dimensions", change(shape=np.array({"a": 1}, object)), "shape", "objects")
    yield case("a structure with objects", change(expr=np.zeros(1, [("a", "O")])), "expr", "objects")
    yield case("a bare .npy", lambda path: np.save(open(path, "wb"), np.zeros(3)), "npz")


def values() -> Iterator[Case]:
    """Types, shapes and numbers."""
    for key in KEYS:
        yield case(f"{key} missing", change(**{key: None}), key, "missing")
        yield case(f"{key} of another length", change(**{key: np.zeros((1, 2))}), key, r"shape \[(1, )?2\]")
        yield case(f"{key} of 0 dimensions", change(**{key: np.float32(1)}), key, r"shape \[\]")
        width = {"eyes_pose": 6, "expr": 5, "shape": 7}.get(key, 3)
        for number in (np.nan, np.inf, 1e300):
            bad = np.zeros((1, width))
            bad[0, -1] = number
            yield case(f"{key} holds {number}", change(**{key: bad}), key, "nan|inf", r"\[.*\d\]")
    for kind, array in (
        ("text", np.array([["a"] * 3])),
        ("bytes", np.array([[b"a"] * 3])),
        ("complex", np.zeros((1, 3), complex)),
        ("dates", np.zeros((1, 3), "M8[s]")),
        ("a structure", np.zeros((1, 3), "f4,f4")),
    ):
        yield case(f"rotation of {kind}", change(rotation=array), "rotation", "type")
    both = {key: np.zeros((2, {"eyes_pose": 6, "expr": 5}.get(key, 3))) for key in KEYS if key != "shape"}
    yield case("two timesteps in one file", change(**both), "rotation", "2 timesteps")
    yield case("one array of two timesteps", change(jaw_pose=np.zeros((2, 3))), "jaw_pose", r"shape \[2, 3\]")
    yield case("no timesteps", change(**{key: value[:0] for key, value in both.items()}), r"\w+: found shape \[0, \d\]")
    yield case("other expressions", change(expr=np.zeros((1, 6))), "expr", r"\[1, 6\]")
    yield case("a static offset that no other file has", change(static_offset=np.zeros((1, 72, 3))), "static_offset")
    yield case("a dynamic offset that no other file has", change(dynamic_offset=np.zeros((1, 72, 3))), "dynamic_offset")
    same = Works(unchanged, "real numbers of any type are read as float32")
    yield case("float64", each(lambda a: a.astype(np.float64)), expected=same)
    yield case("big-endian", each(lambda a: a.astype(a.dtype.newbyteorder(">"))), expected=same)
    yield case("Fortran order", each(np.asfortranarray), expected=same)
    yield case("float16", each(lambda a: a.astype(np.float16)), expected=Works(why="real numbers of any type"))
    yield case("long double", each(lambda a: a.astype(np.longdouble)), "type")
    yield case("one array more", change(notes=np.array(["x"])), expected=same)


def unchanged(box: Box, errors: str) -> str:
    """Whether training ended in the bits of the intact capture."""
    intact = box.root.parent / "intact" / "run"
    return "" if state_digest(box.out) == state_digest(intact) else "the result is another than that of intact inputs"


def npy(header: str | bytes, content: bytes = b"", version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    raw = (header if isinstance(header, bytes) else header.encode()).ljust(117) + b"\n"
    size = len(raw) if length is None else length
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", size) + raw + content


def replace_member(key: str, content: bytes, twice: bool = False, **entry: Any) -> Callable[[Path], object]:
    """Write the archive anew with the raw bytes of one member; `twice`: in addition to the good one."""

    def spoil(path: Path) -> None:
        with zipfile.ZipFile(path) as old:
            members = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile's, about duplicate names
            for name, data in members.items():
                if name != f"{key}.npy" or twice:
                    archive.writestr(name, data)
            info = zipfile.ZipInfo(entry.get("name", f"{key}.npy"))
            info.compress_type = entry.get("compression", zipfile.ZIP_STORED)
            archive.writestr(info, content)

    return spoil


def headers() -> Iterator[Case]:
    """.npy headers that lie or are no headers."""

    def head(shape: Any = (1, 5), descr: str = "<f4", fortran: Any = False) -> str:
        return repr({"descr": descr, "fortran_order": fortran, "shape": shape})

    good = bytes(20)
    wrong = {
        "promises 2^40 values": npy(head((1, 2**40))),
        "promises 4 EiB": npy(head((2**31, 2**31))),
        "negative shape": npy(head((-1, 5)), good),
        "shape of text": npy(head("15"), good),
        "shape of floats": npy(head((1.0, 5.0)), good),
        "one value too few": npy(head(), good[:-4]),
        "one value too many": npy(head(), good + bytes(4)),
        "no values": npy(head()),
        "no dictionary": npy("[1, 2]", good),
        "no literal": npy("__import__('os').getpid()", good),
        "a call in the header": npy("{'descr': exec('1'), 'fortran_order': False, 'shape': (1, 5)}", good),
        "order a number": npy(head(fortran=3), good),
        "no such type": npy(head(descr="<f3"), good),
        "type of objects": npy(head(descr="|O"), good),
        "empty type": npy(head(descr=""), good),
        "type void": npy(head(descr="|V4"), good),
        "version 3": npy(head(), good, b"\x03\x00"),
        "version 9": npy(head(), good, b"\x09\x00"),
        "length beyond the file": npy(head(), good, length=60_000),
        "length 0": npy(head(), good, length=0),
        "no magic": b"NUMPY" + bytes(200),
        "empty": b"",
        "only the magic": b"\x93NUMPY",
        "binary header": npy(b"\xff\xfe\x00" * 30, good),
        "deep header": npy("(" * 5000 + ")" * 5000, good),
        "33 dimensions": npy(head((1,) * 33), good),
    }
    for name, content in wrong.items():
        yield case(f"header: {name}", replace_member("expr", content), "expr")


def archives(rng: np.random.Generator) -> Iterator[Case]:
    """Zip files that are cut, flipped, odd or expand beyond reason."""
    for share in spread(1000, CUTS):
        yield case(f"cut to {share / 10:g} %", lambda path, s=share: cut(path, path.stat().st_size * s // 1000), "npz")
    same = Either(Refused((NAME,)), Works(unchanged, "dates and attributes in a zip do not matter"))
    for share in sorted(rng.random(FLIPS).tolist()):
        yield case(
            f"bit flipped at {100 * share:.3f} %",
            lambda path, s=share: flip(path, int(8 * path.stat().st_size * s)),
            expected=same,
        )

    def wrong_sum(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[data.index(b"\n", data.index(b"\x93NUMPY")) + 1] ^= 1
        path.write_bytes(bytes(data))

    yield case("a value that fails its CRC", wrong_sum, "CRC")
    text = io.BytesIO()
    np.save(text, np.zeros((1, 5), np.float32))
    array = text.getvalue()
    yield case("a member twice", replace_member("expr", array, twice=True), "expr", "twice")
    yield case("a member that is no array", replace_member("expr", b"hello", name="notes.txt"), "notes.txt")
    yield case("a member above the folder", replace_member("expr", array, twice=True, name="../../evil"), "evil")
    for name, kind in (("LZMA", zipfile.ZIP_LZMA), ("bzip2", zipfile.ZIP_BZIP2)):
        yield case(f"compressed with {name}", replace_member("expr", array, compression=kind), "expr")
    yield case("300 members", change(**{f"a{i}": np.zeros(1) for i in range(300)}), "arrays")
    zeros = io.BytesIO()
    np.save(zeros, np.zeros(8_000_000))
    bomb = {"name": "more.npy", "compression": zipfile.ZIP_DEFLATED}
    yield case("64 MB in 64 kB that nobody reads", replace_member("x", zeros.getvalue(), **bomb), "bomb")
    bomb["name"] = "expr.npy"
    yield case("64 MB in 64 kB as expr", replace_member("expr", zeros.getvalue(), **bomb), "bomb")
    yield case("encrypted", encrypted, "|".join(KEYS), "encrypted")
    yield case("an empty archive", lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)), "missing")


def encrypted(path: Path) -> None:
    """Set the encryption flag of every member, in both places."""
    data = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        found = data.find(magic)
        while found >= 0:
            data[found + at] |= 1
            found = data.find(magic, found + 1)
    path.write_bytes(bytes(data))


def avatars() -> Iterator[Case]:
    """The motion saved with an avatar, read by render.py."""

    def avatar(name: str, spoil: Callable[[Path], object], *words: str) -> Case:
        def prepare(box: Box) -> Command:
            spoil(box.avatar / "flame_param.npz")
            return box.render()

        return Case("C3", f"avatar: {name}", prepare, Refused(words), trained=True)

    def rows(count: int) -> Callable[[Path], object]:
        def convert(path: Path) -> None:
            with np.load(path) as file:
                arrays: Arrays = {
                    k: v if k in ("shape", "static_offset") else np.resize(v, (count, *v.shape[1:]))
                    for k, v in file.items()
                }
            np.savez(path, **arrays)

        return convert

    path_words = (r"flame_param\.npz|iteration_3",)
    yield avatar("no motion", lambda path: path.unlink(), *path_words)
    yield avatar("cut", lambda path: cut(path, 300), *path_words)
    yield avatar("a timestep too few", rows(3), *path_words, "3")
    yield avatar("one timestep", rows(1), *path_words, "1")
    yield avatar("NaN", change(translation=np.full((4, 3), np.nan)), *path_words, "translation")
    yield avatar("expressions that the model lacks", change(expr=np.zeros((4, 90))), *path_words, "expr", "90")
    yield avatar("identity that the model lacks", change(shape=np.zeros(400)), *path_words, "shape", "400")
    yield avatar(
        "an offset of other vertices", change(static_offset=np.zeros((1, 50, 3))), *path_words, "static_offset"
    )
    yield avatar(
        "a moving offset of other vertices", change(dynamic_offset=np.ones((4, 50, 3))), *path_words, "dynamic_offset"
    )
