"""Draw many splats on one tile, in a process of its own: what they take is not the memory of the other cases."""

from __future__ import annotations

import sys

from scripts.torture_cases.numbers import crowd
from utils.errors import run_main

if __name__ == "__main__":
    sys.exit(run_main(crowd))
