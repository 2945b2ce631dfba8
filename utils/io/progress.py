"""Progress of a loop: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
PLAIN_EVERY = 15.0  # seconds


def progress(items: Iterable[T], total: int, label: str, quiet: bool = False) -> Iterator[T]:
    """Pass `items` on and tell on stderr how far they are."""
    from tqdm import tqdm  # not at the top: what shows no progress runs without it

    bar = tqdm(total=total, desc=label, disable=quiet or not sys.stderr.isatty(), dynamic_ncols=True)
    started = spoke = time.monotonic()
    with bar:
        for done, item in enumerate(items, start=1):
            yield item
            bar.update()
            now = time.monotonic()
            if bar.disable and not quiet and (now - spoke >= PLAIN_EVERY or done == total):
                spoke, rate = now, done / max(now - started, 1e-9)
                print(f"{label}: {done}/{total}, {rate:.1f} per second", file=sys.stderr)
