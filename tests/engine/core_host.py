"""The maths core by its host instance: core_on_host.cpp, compiled once a session, and central differences."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "submodules" / "diff-gaussian-rasterization" / "csrc"
HEADERS = [*sorted((SOURCES / "core").glob("*.h")), SOURCES / "view.h", SOURCES / "cuda" / "reach.h"]
FLAGS = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]

Rows = NDArray[Any]  # float64, [N, columns]


class _Entry(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("signature", ctypes.c_char_p),
        ("inputs", ctypes.c_int),
        ("outputs", ctypes.c_int),
        ("in_double", ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)),
        ("in_float", ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)),
    ]


class Core:
    """The functions of core_cases.h on rows [N, inputs] -> [N, outputs]."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        first = ctypes.POINTER(_Entry)()
        count = self._library.core_entries(ctypes.byref(first))
        self.entries = {first[i].name.decode(): first[i] for i in range(count)}
        self.signatures = {first[i].signature.decode() for i in range(count)}

    def __call__(self, name: str, *columns: Rows, dtype: type = np.float64) -> Rows:
        """The double instance, or with dtype float32 the float instance, its result widened."""
        entry = self.entries[name]
        rows = np.ascontiguousarray(np.concatenate([c.reshape(len(c), -1) for c in columns], 1), dtype)
        assert rows.shape[1] == entry.inputs, f"{name} takes {entry.inputs} numbers, not {rows.shape[1]}"
        out = np.full((len(rows), entry.outputs), np.nan, dtype)
        run = entry.in_float if dtype == np.float32 else entry.in_double
        run(len(rows), rows.ctypes.data, out.ctypes.data)
        return out.astype(np.float64)


def build(folder: Path) -> Path | None:
    """The library; None if there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    target = folder / "core_on_host.so"
    command = [
        compiler,
        *FLAGS,
        "-DMIEN_ISA=host",
        "-DMIEN_EMULATED",
        "-I",
        str(SOURCES),
        str(HERE / "core_on_host.cpp"),
    ]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return target


def _type(parameter: str) -> str:
    """`const Vec3<T>& a` -> `Vec3`, `T* out` -> `T*`; float and double count as T."""
    bare = re.sub(r"\bconst\b|&|<[^<>]*>", " ", parameter)
    name = re.sub(r"^(float|double)$", "T", bare.replace("*", " ").split()[0])
    return name + "*" * bare.count("*")


def signatures(text: str) -> Iterator[str]:
    """Of all MIEN_HD functions of a header: `name(type, type)`."""
    for match in re.finditer(r"\bMIEN_HD\s+(?![\w\s]*\n#)([^;{}()#]*?)(operator\S+|\w+)\(([^()]*)\)", text):
        yield f"{match[2]}({', '.join(_type(p) for p in match[3].split(',') if p.strip())})"


def gradient(function: Callable[[Rows], Rows], at: Rows, g: Rows, step: float = 1e-4) -> Rows:
    """d <g, function> / d at, by central differences of fourth order in double; one call. [N, inputs]"""
    rows, inputs = at.shape
    shifts = step * np.array([-2.0, -1.0, 1.0, 2.0])
    moved = at[:, None, None] + shifts[:, None, None] * np.eye(inputs)
    values = function(moved.reshape(-1, inputs)).reshape(rows, 4, inputs, -1)
    along = np.einsum("rsio,ro->rsi", values, g)
    return (along[:, 0] - 8 * along[:, 1] + 8 * along[:, 2] - along[:, 3]) / (12 * step)


def relative(found: Rows, expected: Rows) -> float:
    """The largest difference of a row, relative to the largest number of the row."""
    assert found.shape == expected.shape and len(found)
    assert np.isfinite(found).all() and np.isfinite(expected).all()
    size = np.abs(expected).max(1) + np.finfo(float).tiny
    return float((np.abs(found - expected).max(1) / size).max())
