"""A folder of metrical-tracker: `checkpoint/*.frame` and the pictures that were tracked, in `images/`.

`--images` names another picture folder (the tracker's input also has `source/`). The tracker numbers its frames anew
and may skip the first pictures (Zielon/metrical-tracker issue 22), so a frame is paired with a picture only if that
leaves no choice: both have the same numbers, or there are as many of both without gaps. Mattes are no part of this
format; RGBA pictures bring their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scene.datasets.capture import Capture
from scene.datasets.options import DataOptions
from scene.datasets.paths import IMAGE_SUFFIXES, picture_folder
from scene.datasets.tracked_frames import CHECKPOINT, FRAME, capture_of, numbered
from utils.errors import InputError

TEST_FRAMES = 350  # as INSTA, which is made from such folders
MATTES = "mattes: none in this format; what is behind the head stays, unless the pictures are RGBA"
OTHERS = ("transforms.json", "transforms_train.json", "flame_params.json")  # formats that may keep a checkpoint/


def recognise(folder: Path) -> str | None:
    """Why `folder` is none of metrical-tracker's, or None if it is one."""
    if not any((folder / CHECKPOINT).glob(f"*{FRAME}")):
        return f"no {CHECKPOINT}/*{FRAME}"
    if (folder / "imgs").is_dir():
        return "imgs/ is FlashAvatar's picture folder, not images/"
    other = next((name for name in OTHERS if (folder / name).exists()), None)
    return f"{other} belongs to another format" if other else None


def read(folder: Path, options: DataOptions) -> Capture:
    """Read every `.frame` file and pair it with its picture.

    The last 350 frames are test; of a capture with fewer than 700, the last 30 %.
    """
    files = numbered(folder / CHECKPOINT, (FRAME,))
    pictures = pictures_of(folder, picture_folder(options), files)
    return capture_of("metrical_tracker", list(files.values()), pictures, [None] * len(files), TEST_FRAMES, MATTES)


def pictures_of(folder: Path, name: str, files: dict[int, Path]) -> Sequence[Path]:
    """The picture of every `.frame` file, in their order.

    Raises:
        InputError: no such folder, or the numbers leave a choice.
    """
    if not (folder / name).is_dir():
        advice = "Put the pictures that were tracked there, or name their folder with --images."
        raise InputError(folder / name, "", "is not a folder", advice)
    pictures = numbered(folder / name, IMAGE_SUFFIXES)
    gaps = {picture - frame for picture, frame in zip(pictures, files, strict=False)}
    if len(pictures) != len(files) or len(gaps) != 1:
        spans = [f"{len(found)} numbered {min(found)} to {max(found)}" for found in (files, pictures)]
        problem = f"found {spans[0]} in {CHECKPOINT}/, but {spans[1]} in {name}/: it is unclear which belong together"
        advice = "Keep exactly the pictures that were tracked, one per .frame file (the tracker may skip the first)."
        raise InputError(folder, "", problem, advice)
    return list(pictures.values())
