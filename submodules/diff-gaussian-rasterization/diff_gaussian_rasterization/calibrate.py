"""What this machine can do at most, measured: yardsticks for benchmarks."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

from ._library import check, library, thread_count


class Rates(NamedTuple):
    """All threads together."""

    instructions: float  # vector instructions of 16 lanes a second
    reads: tuple[float, ...]  # bytes a second, by size of the memory walked over
    updates: tuple[float, ...]  # bytes a second that are read and written back; each counts once


def calibrate(sizes: Sequence[int] = (), threads: int | None = None, seconds: float = 0.02) -> Rates:
    """Measure vector instructions, as many fused multiply-adds as additions, and memory, in and out of the caches.

    With the instruction set in use; where that has 8 lanes, an instruction counts half, and a quarter in the portable
    build, whose compilers have vectors of 4 lanes.

    Args:
        sizes: bytes of memory to walk over again and again, each at most 2^34.
        threads: None = one per usable CPU.
        seconds: about how long to try for each rate, at most 60; the best millisecond counts.

    Raises:
        ValueError: a wrong argument. MemoryError: the largest size is not to be had.
    """
    if not all(isinstance(size, int) and 0 <= size <= 2**34 for size in sizes):
        raise ValueError(f"sizes: found {list(sizes)!r}, expected integers from 0 to 2^34 bytes")
    doubles = ctypes.c_double * len(sizes)
    instructions, reads, updates = ctypes.c_double(), doubles(), doubles()
    check(
        library().mien_calibrate(
            thread_count(threads),
            ctypes.c_double(seconds),
            (ctypes.c_int64 * len(sizes))(*sizes),
            len(sizes),
            ctypes.byref(instructions),
            reads,
            updates,
        )
    )
    return Rates(instructions.value, tuple(reads), tuple(updates))
