"""Counter-based randomness: every draw is a function of (seed, purpose, counter), so there is no state to lose.

Resuming at step k, changing the thread count or the device draws the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, counter: int = 0) -> np.random.Generator:
    """A Philox generator keyed by (seed, purpose, counter)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{counter}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
