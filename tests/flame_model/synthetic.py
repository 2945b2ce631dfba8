"""A small random model in FLAME's file format, and writers for every way in which such files have been pickled."""

from __future__ import annotations

import pickle
import struct
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

PARENTS = (-1, 0, 1, 1, 1)


def fields(vertices: int = 60, expressions: int = 12, seed: int = 0) -> dict[str, Any]:
    """Arrays of a FLAME model, dense, in the dtypes of FLAME's files; every direction and corrective is non-zero."""
    random = np.random.default_rng(seed)
    regressor = random.random((5, vertices)) * (random.random((5, vertices)) < 0.2)
    regressor[:, :5] += np.eye(5)
    weights = random.multinomial(256, random.dirichlet(np.full(5, 0.5)), vertices) / 256  # rows sum to exactly one
    faces = np.stack([np.arange(vertices - 2), np.arange(1, vertices - 1), np.arange(2, vertices)], 1)
    return {
        "v_template": random.normal(0, 0.1, (vertices, 3)),
        "shapedirs": random.normal(0, 0.01, (vertices, 3, 300 + expressions)),
        "posedirs": random.normal(0, 0.01, (vertices, 3, 36)),
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "kintree_table": np.array([[2**32 - 1, *PARENTS[1:]], range(5)], np.int64),
        "weights": weights,
        "f": faces.astype(np.uint32),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }


def with_sparse(model: dict[str, Any], kind: str = "csc") -> dict[str, Any]:
    """`model` with its joint regressor as a scipy matrix."""
    import scipy.sparse

    matrix = {"csc": scipy.sparse.csc_matrix, "csr": scipy.sparse.csr_matrix}[kind]
    return {**model, "J_regressor": matrix(model["J_regressor"])}


def masks(vertices: int) -> dict[str, np.ndarray]:
    """Overlapping regions under FLAME's 14 names."""
    names = ("face neck scalp boundary right_eyeball left_eyeball right_ear left_ear forehead eye_region nose lips "
             "right_eye_region left_eye_region").split()  # fmt: skip
    step = vertices // (len(names) + 2)
    return {name: np.arange(i * step, (i + 2) * step + 1) for i, name in enumerate(names)}


def write(path: Path, value: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def chumpy_dumps(model: dict[str, Any], names: tuple[str, ...], protocol: int) -> bytes:
    """Pickle with some arrays wrapped as `chumpy.ch.Ch`, whose state is what chumpy's own objects have."""
    module = types.ModuleType("chumpy.ch")
    ch = type("Ch", (), {"__module__": "chumpy.ch"})
    vars(module)["Ch"] = ch

    def wrapped(array: np.ndarray) -> Any:
        value = ch()
        vars(value).update(x=array, _dirty_vars={"x"}, _itr=None, _make_dense=False, _make_sparse=False)
        vars(value).update(_depends_on_deps={})
        return value

    with mock.patch.dict(sys.modules, {"chumpy": types.ModuleType("chumpy"), "chumpy.ch": module}):
        return pickle.dumps({k: wrapped(v) if k in names else v for k, v in model.items()}, protocol)


class Python2:
    """Writes what Python 2's cPickle would: byte strings, old module names, no memo."""

    def __init__(self, protocol: int, chumpy: tuple[str, ...] = ()) -> None:
        self.protocol, self.chumpy = protocol, chumpy

    def dumps(self, model: dict[str, Any]) -> bytes:
        items = {}
        for name, value in model.items():
            item = self.value(value)
            items[name] = self.ch(item) if name in self.chumpy else item
        return (b"\x80\x02" if self.protocol == 2 else b"") + self.dict(items) + b"."

    def value(self, value: Any) -> bytes:
        if isinstance(value, str):
            return self.string(value.encode("latin-1"))
        return self.array(value) if isinstance(value, np.ndarray) else self.sparse(value)

    def string(self, raw: bytes) -> bytes:
        if self.protocol == 0:
            return b"S" + repr(raw)[1:].encode("ascii") + b"\n"
        return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<I", len(raw)) + raw

    def integer(self, value: int) -> bytes:
        if self.protocol == 0 or not 0 <= value < 2**31:
            return b"I%d\n" % value if abs(value) < 2**31 else b"L%dL\n" % value
        return b"K%c" % value if value < 256 else b"J" + struct.pack("<i", value)

    def tuple(self, *items: bytes) -> bytes:
        return b"(" + b"".join(items) + b"t"

    def dict(self, items: dict[str, bytes]) -> bytes:
        content = b"".join(self.string(key.encode()) + value + b"s" for key, value in items.items())
        return b"(d" + content if self.protocol == 0 else b"}" + content

    def instance(self, module: bytes, name: bytes) -> bytes:
        named = b"c" + module + b"\n" + name + b"\n"
        if self.protocol == 0:
            return b"ccopy_reg\n_reconstructor\n" + self.tuple(named, b"c__builtin__\nobject\n", b"N") + b"R"
        return named + b")\x81"

    def array(self, array: np.ndarray) -> bytes:
        order = "|" if array.dtype.itemsize == 1 else "<"
        dtype = b"cnumpy\ndtype\n" + self.tuple(self.string(array.dtype.str[1:].encode()), b"I0\n", b"I1\n") + b"R"
        ends = [self.integer(-1), self.integer(-1), self.integer(0)]
        dtype += self.tuple(self.integer(3), self.string(order.encode()), b"N", b"N", b"N", *ends) + b"b"
        empty = self.tuple(b"cnumpy\nndarray\n", self.tuple(self.integer(0)), self.string(b"b"))
        shape = self.tuple(*[self.integer(size) for size in array.shape])
        state = self.tuple(self.integer(1), shape, dtype, b"I00\n", self.string(array.tobytes()))
        return b"cnumpy.core.multiarray\n_reconstruct\n" + empty + b"R" + state + b"b"

    def sparse(self, matrix: Any) -> bytes:
        parts = {name: self.array(getattr(matrix, name)) for name in ("data", "indices", "indptr")}
        shape = self.tuple(*[self.integer(size) for size in matrix.shape])
        state = self.dict({"_shape": shape, "maxprint": self.integer(50), **parts})
        return (
            self.instance(b"scipy.sparse." + matrix.format.encode(), matrix.format.encode() + b"_matrix") + state + b"b"
        )

    def ch(self, array: bytes) -> bytes:
        dirty = b"c__builtin__\nset\n" + self.tuple(b"(" + self.string(b"x") + b"l") + b"R"
        state = self.dict({"x": array, "_dirty_vars": dirty, "_itr": b"N", "_depends_on_deps": self.dict({})})
        return self.instance(b"chumpy.ch", b"Ch") + state + b"b"
