"""Copy a capture with its principal points spoilt, to prove that training uses them and uses them right.

`centre` moves every principal point to the image centre; `unflipped` writes cy so that the reader's bottom-up rule has
the effect of leaving the flip out. Train on the copy and compare.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import InputError, run_main

CHANGES = {
    "centre": lambda frame: {"cx": frame["w"] / 2, "cy": frame["h"] / 2},
    "unflipped": lambda frame: {"cy": frame["h"] - frame["cy"]},
}


def spoil(frame: dict[str, Any], change: str) -> dict[str, Any]:
    return {**frame, **CHANGES[change](frame)}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("-s", "--source", type=Path, required=True, help="capture in the VHAP layout")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the copy; must not exist")
    parser.add_argument("--change", choices=sorted(CHANGES), required=True)
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    options = parser.parse_args(argv)
    if options.output.exists():
        raise InputError(options.output, "", "exists, expected a new folder")
    if not (options.source / "transforms_train.json").is_file():
        raise InputError(options.source / "transforms_train.json", "", "is missing, expected a capture")
    shutil.copytree(options.source, options.output, copy_function=shutil.copyfile)
    for path in sorted(options.output.glob("transforms*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["frames"] = [spoil(frame, options.change) for frame in content["frames"]]
        path.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main))
