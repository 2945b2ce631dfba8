"""Hostile arguments at the C door of the CUDA engine, emulated: null pointers, empty structures, absurd numbers.

Every exported function gets up to some hundred combinations, in another process: it may refuse, it may have nothing to
do, it must not touch what is not there.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOORS = tuple(ROOT.glob("submodules/*/csrc/cuda/*.cu"))
CODES = {0, 1, 2, 4, 5}  # csrc/api.h; 3 is a fault of the library itself
COMBINATIONS = 200
FUNCTION = re.compile(r"^(?:MIEN|KNN)_API ([\w* ]+?)\b((?:mien|knn)_cuda_\w+)\(([^)]*)\)", re.MULTILINE)
BLOCK = bytes(1 << 14)  # an empty structure, or the start of an array


def exported() -> dict[str, tuple[str, list[str]]]:
    """Name -> what it returns, and the types of its parameters."""
    found = {}
    for source in DOORS:
        for result, name, parameters in FUNCTION.findall(source.read_text()):
            types = [" ".join(p.split()).rsplit(" ", 1)[0] for p in parameters.split(",") if p.strip()]
            found[name] = (result.strip(), types)
    return found


def choices(kind: str) -> list[object]:
    """Values for a parameter of a type. Handles are null: the library can't know a forged one."""
    if kind.endswith("Queue*"):
        return [None, Queue(0, None), Queue(99, None)]
    if kind in ("void*", "const void*"):
        return [None]
    if kind.endswith("*"):
        return [None, ctypes.create_string_buffer(BLOCK, len(BLOCK))]
    if kind in ("float", "double"):
        convert = ctypes.c_float if kind == "float" else ctypes.c_double
        return [convert(value) for value in (0.0, -1.0, float("nan"), 1e300)]
    width = ctypes.c_int64 if "64" in kind else ctypes.c_int32
    return [width(value) for value in (0, -1, 1 << 62 if "64" in kind else (1 << 31) - 1, -(1 << 31))]


class Queue(ctypes.Structure):
    _fields_ = [("device", ctypes.c_int32), ("stream", ctypes.c_void_p)]


def call(library: ctypes.CDLL, name: str) -> set[int]:
    """The codes of every combination, or of evenly spread ones of many."""
    result, kinds = exported()[name]
    every = list(itertools.product(*map(choices, kinds)))
    function = getattr(library, name)
    function.restype = ctypes.c_int if result == "int" else ctypes.c_void_p
    codes = set()
    for arguments in every[:: max(1, len(every) // COMBINATIONS)]:
        code = function(*(ctypes.byref(a) if isinstance(a, Queue) else a for a in arguments))
        codes |= {code} if result == "int" else set()
    return codes


def test_hostile_arguments_do_no_harm(emulated_library: Path) -> None:
    done = subprocess.run([sys.executable, __file__, str(emulated_library)], capture_output=True, text=True,
                          timeout=120, cwd=ROOT)  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"in {lines[-1:]}: {done.stderr}"
    assert [line.split()[0] for line in lines] == sorted(exported())
    refused = {line.split()[0] for line in lines if " 1" in line}
    with_arguments = {name for name, (result, kinds) in exported().items() if result == "int" and kinds}
    assert refused == with_arguments
    assert {code for line in lines for code in map(int, line.split()[1:])} <= CODES


def test_no_door_is_forgotten() -> None:
    text = "".join(source.read_text() for source in DOORS)
    assert len(exported()) == len(re.findall(r"^(?:MIEN|KNN)_API\b", text, re.MULTILINE)) > 30


if __name__ == "__main__":
    native = ctypes.CDLL(sys.argv[1])
    for door in sorted(exported()):
        print(door, end="", flush=True)
        print("", *sorted(call(native, door)), flush=True)
