"""Make the built-in subject: a head model in FLAME's file format and a multi-view capture of it, without any download.

python scripts/make_demo_subject.py --output output/demo_subject
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import InputError, run_main  # noqa: E402


def main(arguments: list[str]) -> None:
    """Parse the flags, make the subject, say how to use it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder that receives model/, capture/ and truth.npz"
    )
    parser.add_argument("--size", type=int, default=256, help="width and height of the pictures in pixels")
    parser.add_argument(
        "--cameras", type=int, default=9, help="number of cameras; number 8 (or the last) looks at the face"
    )
    parser.add_argument("--timesteps", type=int, default=48, help="length of the sequence")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same bytes")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="worker processes")
    options = parser.parse_args(arguments)
    for name, least in (("size", 32), ("cameras", 1), ("timesteps", 1), ("threads", 1)):
        if getattr(options, name) < least:
            raise InputError(f"--{name}", "", f"found {getattr(options, name)}, expected at least {least}")
    from scripts.demo_subject import capture

    capture.make(options.output, options.size, options.cameras, options.timesteps, options.seed, options.threads)
    print(f"done: {options.output}\ntrain on it: {capture.describe(options.output)}")


if __name__ == "__main__":
    sys.exit(run_main(main))
