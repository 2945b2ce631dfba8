"""Truth, render and error of some views in one PNG: `python scripts/contact_sheet.py -m RUN`, after `render.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arguments.flags import OneLineParser
from utils.engine.metrics import image_tensor, psnr, psnr_foreground
from utils.errors import InputError, run_main
from utils.io.contact_sheet import Crop, SheetView, contact_sheet
from utils.io.images import write_png
from utils.io.rendered import Pair, choose_iteration, list_pairs


def parse_arguments(argv: list[str]):
    parser = OneLineParser(prog="scripts/contact_sheet.py", allow_abbrev=False)
    parser.add_argument("-m", "--model_path", required=True, metavar="RUN")
    parser.add_argument("--split", nargs="+", default=["val", "test"], help="splits to show, those that are rendered")
    parser.add_argument("--iteration", type=int, default=-1, help="-1: the newest")
    parser.add_argument("--views", type=int, nargs="+", help="numbers of the frames; default: --count evenly spread")
    parser.add_argument("--count", type=int, default=3, help="frames of each split")
    parser.add_argument("--crop", type=int, nargs=4, metavar=("X", "Y", "WIDTH", "HEIGHT"), help="pixels")
    parser.add_argument("--gain", type=float, default=5.0, help="errors are shown this many times larger")
    parser.add_argument("--tile", type=int, default=256, help="width of a picture in the sheet, pixels")
    parser.add_argument("--across", type=int, default=0, help="views side by side; 0: one, or two beyond three views")
    parser.add_argument("-o", "--output", default="", metavar="PNG", help="default: RUN/contact_sheet.png")
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    options = parser.parse_args(argv)
    for name in ("count", "gain", "tile"):
        if not getattr(options, name) > 0:
            raise InputError("command line", f"--{name}", f"found {getattr(options, name)}, expected more than 0")
    return options


def choose(pairs: list[Pair], wanted: list[int] | None, count: int, folder: Path) -> list[Pair]:
    """The frames asked for, or `count` of them spread evenly from the first to the last."""
    if wanted is None:
        return [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int))]
    for index in wanted:
        if not 0 <= index < len(pairs):
            raise InputError("--views", str(index), f"found {len(pairs)} frames in {folder}, counted from 0")
    return [pairs[index] for index in wanted]


def sheet_view(split: str, pair: Pair) -> SheetView:
    render, truth, mask = pair.read()
    a, b = image_tensor(render), image_tensor(truth)
    note = f"PSNR {psnr(a, b):.1f} dB"
    foreground = psnr_foreground(a, b, None if mask is None else image_tensor(mask))
    if foreground is not None:
        note += f", foreground {foreground:.1f} dB"
    return SheetView(truth, render, f"{split} {Path(pair.name).stem}", note)


def main(argv: list[str]) -> None:
    options = parse_arguments(argv)
    run = Path(options.model_path)
    _, folders = choose_iteration(run, options.iteration)
    chosen = [(split, folders[split]) for split in options.split if split in folders]
    if not chosen:
        raise InputError(run, "--split", f"found rendered splits {', '.join(folders)}, expected {options.split}")
    views = [
        sheet_view(split, pair)
        for split, folder in chosen
        for pair in choose(list_pairs(folder), options.views, options.count, folder)
    ]
    output = Path(options.output or run / "contact_sheet.png")
    crop = Crop(*options.crop) if options.crop else None
    write_png(output, contact_sheet(views, options.gain, crop, options.tile, options.across))
    print(output)


if __name__ == "__main__":
    sys.exit(run_main(main))
