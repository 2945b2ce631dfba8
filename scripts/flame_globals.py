"""List the opcodes and globals of a FLAME pickle without loading it: `python scripts/flame_globals.py FILE...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flame_model.pickle_reader import list_globals  # noqa: E402
from utils.errors import InputError, run_main  # noqa: E402


def main(argv: list[str]) -> int:
    if not argv:
        raise InputError("flame_globals.py", "", "found no file, expected the path of a pickle")
    refused = False
    for path in map(Path, argv):
        listing = list_globals(path)
        print(path)
        print("  opcodes:", ", ".join(f"{name} {count}" for name, count in sorted(listing.opcodes.items())))
        for name, permitted in sorted({(name, permitted) for _, name, permitted in listing.globals}):
            offset = next(offset for offset, other, _ in listing.globals if other == name)
            print(f"  global {name!r}, first at byte {offset}: {'permitted' if permitted else 'REFUSED'}")
            refused |= not permitted
        if listing.stopped:
            print(f"  stopped: {listing.stopped}")
            refused = True
    return 2 if refused else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
