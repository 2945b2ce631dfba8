"""Will a dataset train? `python scripts/inspect_dataset.py -s DATA --flame_model MODEL`.

Reads and decodes everything, lists every fault at once, warns of what would train badly, tests whether the posed mesh
lies on the pictures and which mistake in the cameras would explain it if not. Writes a picture of it, nothing else.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arguments.flags import OneLineParser, add_flags
from scene.datasets import DataOptions
from scene.rigs import RigOptions
from utils.engine.inspection import InspectionOptions, inspect
from utils.errors import InputError, run_main
from utils.io.atomic import write_json
from utils.io.images import write_png


def parse_arguments(argv: list[str]) -> tuple[InspectionOptions, argparse.Namespace]:
    parser = OneLineParser(prog="scripts/inspect_dataset.py", allow_abbrev=False)
    parser.add_argument("-m", "--model_path", default="", metavar="RUN", help="a run to compare the files with")
    parser.add_argument("-o", "--output", default="", metavar="PNG", help="the picture [./inspect_NAME.png]")
    parser.add_argument("--json", default="", metavar="FILE", help="write the report as JSON too")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    add_flags(parser, "dataset", DataOptions)
    add_flags(parser, "model", RigOptions)
    typed = parser.parse_args(argv)
    data, rig = chosen(typed, DataOptions), chosen(typed, RigOptions)
    return InspectionOptions(data, rig, typed.model_path, typed.quiet), typed


def chosen(typed: argparse.Namespace, group: type) -> Any:
    """One component's options: what was typed, else the defaults."""
    return group(**{f.name: getattr(typed, f.name) for f in fields(group) if hasattr(typed, f.name)})


def output_files(typed: argparse.Namespace, source: Path) -> tuple[Path, Path | None]:
    """Picture and JSON file; neither may lie inside the dataset."""
    picture = Path(typed.output or f"inspect_{source.resolve().name}.png")
    for flag, path in (("--output", picture), ("--json", Path(typed.json or "."))):
        if path.name and path.resolve().is_relative_to(source.resolve()):
            raise InputError("command line", flag, f"{path} lies inside the dataset", "Choose another folder.")
    return picture, Path(typed.json) if typed.json else None


def main(argv: list[str]) -> int:
    options, typed = parse_arguments(argv)
    picture, json_file = output_files(typed, Path(os.path.expanduser(options.data.source_path or "--source_path")))
    found = inspect(options)
    text = found.report.text()
    body, _, verdict = text.rpartition("\n")
    print(body)
    if json_file:
        write_json(json_file, found.report.values())
        print(f"report      {json_file}")
    if found.picture is not None:
        write_png(picture, found.picture)
        print(f"picture     {picture}")
    print(verdict)
    return 2 if len(found.report.faults) else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
