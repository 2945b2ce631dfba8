"""Strict readers of JSON and NumPy archives: what is valid is read exactly, anything else is one InputError."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import InputError
from utils.io.json_files import JsonObject, parse_json, read_json
from utils.io.npz import Array, parse_npz, read_npz

SCHEMA = {"a": Array(("T", 3)), "b": Array(("T", "E")), "c": Array(("S",), required=False, leading=True)}
LIMITS = {"T": 100, "E": 10, "S": 10}

numbers = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
@settings(max_examples=100, deadline=None)
def test_json_round_trip(value: object) -> None:
    assert parse_json(json.dumps(value).encode(), "file") == value


@given(json_values, st.data())
@settings(max_examples=100, deadline=None)
def test_cut_json_is_refused_or_still_json(value: object, data: st.DataObject) -> None:
    text = json.dumps([value]).encode()
    length = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(InputError, match="^file: "):
        parse_json(text[:length], "file")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_are_refused_with_their_field(constant: str) -> None:
    text = '{"frames": [{}, {"m": [[1, 2], [3, X]]}], "x": 1}'.replace("X", constant)
    with pytest.raises(InputError) as caught:
        parse_json(text.encode(), "file")
    assert str(caught.value) == f"file: frames[1].m[1][1]: found {constant}, expected a finite number"


@pytest.mark.parametrize("text", [b'{"a": 1, "a": 1}', b'[{"b": {"a": 1, "c": 2, "a": 3}}]'])
def test_duplicate_keys_are_refused(text: bytes) -> None:
    with pytest.raises(InputError, match="file: a: found this key twice"):
        parse_json(text, "file")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_refused_with_advice(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_text("{}", encoding=encoding)
    with pytest.raises(InputError, match="byte order mark. Save it as UTF-8 without BOM."):
        read_json(tmp_path / "a.json")


def test_deep_nan_is_found_without_recursion() -> None:
    depth = 900
    with pytest.raises(InputError, match=r"file: (\[0\]){900}: found NaN"):
        parse_json(b"[" * depth + b"NaN" + b"]" * depth, "file")


def test_fields() -> None:
    place = JsonObject(Path("f"), "frames[3]", {"n": 2, "x": 1e999, "t": "\ud800", "m": [[1, 2]], "null": None})
    assert place.number("n") == 2.0 and place.integer("n", 0, 2) == 2
    np.testing.assert_array_equal(place.matrix("m", 1, 2), [[1.0, 2.0]])
    assert place.has("n") and not place.has("null") and not place.has("nothing")
    for call in (
        lambda: place.number("x"),
        lambda: place.text("t"),
        lambda: place.integer("n", 3, 4),
        lambda: place.matrix("m", 2, 2),
        lambda: place.matrix("m", 1, 3),
        lambda: place.objects("m"),
        lambda: place.number("null"),
        lambda: place.text("n"),
    ):
        with pytest.raises(InputError, match=r"^f: frames\[3\][.\[]"):
            call()


def archive(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


GOOD = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones((2, 4), np.int8)}


def test_npz_is_read_as_float32(tmp_path: Path) -> None:
    c = np.arange(5, dtype=">f4")[None]
    (tmp_path / "x.npz").write_bytes(archive(**GOOD, c=c, other=np.array("text")))
    arrays = read_npz(tmp_path / "x.npz", SCHEMA, LIMITS)
    assert set(arrays) == {"a", "b", "c"}
    for key, expected in (*GOOD.items(), ("c", c[0])):
        assert arrays[key].dtype == np.float32 and arrays[key].flags.c_contiguous and arrays[key].flags.writeable
        np.testing.assert_array_equal(arrays[key], expected)


def test_fortran_order_is_understood() -> None:
    arrays = parse_npz(archive(a=np.asfortranarray(GOOD["a"]), b=GOOD["b"]), "x", SCHEMA, LIMITS)
    np.testing.assert_array_equal(arrays["a"], GOOD["a"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"a": np.zeros((2, 4))}, r"x: a: found shape \[2, 4\], expected \[T, 3\]"),
        ({"a": np.zeros((3, 3))}, r"x: b: found shape \[2, 4\], expected \[3, E\]"),
        ({"a": np.zeros((101, 3))}, r"x: a: found shape \[101, 3\]"),
        ({"a": np.zeros((0, 3))}, r"x: a: found shape \[0, 3\]"),
        ({"c": np.zeros((2, 5))}, r"x: c: found shape \[2, 5\]"),
        ({"b": np.zeros((2, 4), "M8[s]")}, "x: b: found type"),
        ({"b": np.zeros((2, 4), [("x", "f4")])}, "x: b: found type"),
        ({"b": np.zeros((2, 4), np.longdouble)}, "x: b: found type"),
        ({"b": np.array([[None] * 4] * 2)}, "x: b: found Python objects"),
        ({"b": np.full((2, 4), -np.inf)}, r"x: b: found -inf at \[0, 0\]"),
    ],
)
def test_wrong_arrays_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_npz(archive(**{**GOOD, **change}), "x", SCHEMA, LIMITS)


def zipped(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names that occur twice, which is the point
        for name, content in members:
            target.writestr(name, content)
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


A, B = npy(GOOD["a"]), npy(GOOD["b"])


@pytest.mark.parametrize(
    "data, message",
    [
        (zipped([("a.npy", A), ("b.npy", B), ("a.npy", A)]), "a: found this array twice"),
        (zipped([("a.npy", A), ("b.npy", B), ("read.me", b"")]), "read.me: found a member that is not"),
        (zipped([("a.npy", A), ("b.npy", B[:-1])]), "b: found 7 bytes, expected 8"),
        (zipped([("a.npy", A), ("b.npy", B + b"x")]), "b: found more bytes"),
        (zipped([("a.npy", A), ("b.npy", b"")]), "b: is not an intact .npy"),
        (zipped([("a.npy", A), ("b.npy", B.replace(b"(2, 4)", b"(2,-4)"))]), "b: "),
        (zipped([("a.npy", A), ("b.npy", B.replace(b"(2, 4)", b"(2, x)"))]), "b: is not an intact .npy"),
        (zipped([("a.npy", A), ("b.npy", B.replace(b"\x01\x00", b"\x03\x00", 1))]), "b: found .npy version"),
        (zipped([("a.npy", A), ("b.npy", B)], zipfile.ZIP_LZMA), "a: found an encrypted or exotically"),
        (zipped([(f"{i}.npy", B) for i in range(300)]), "found 300 arrays"),
        (zipped([("a.npy", A), ("z.npy", bytes(20_000_000))], zipfile.ZIP_DEFLATED), "bomb"),
        (zipped([]), "a: is missing"),
        (b"PK\x05\x06" + bytes(17), "is not an intact .npz"),
    ],
)
def test_forged_archives_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_npz(data, "x", SCHEMA, LIMITS)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_archives_raise_nothing_else(data: st.DataObject) -> None:
    content = bytearray(archive(**GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        arrays = parse_npz(bytes(content), "x", SCHEMA, LIMITS)
    except InputError:
        return
    assert arrays["a"].shape == (2, 3) and arrays["b"].shape[0] == 2
