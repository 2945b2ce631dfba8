"""A FlashAvatar dataset: `imgs/*.jpg`, `alpha/*.jpg` and the `.frame` files of metrical-tracker.

Frame k belongs to the picture with number k + 1. The `.frame` files lie in `checkpoint/` inside the folder, or where
FlashAvatar looks for them: `dataset/NAME` is tracked in `metrical-tracker/output/NAME/checkpoint` beside `dataset`.
"""

from __future__ import annotations

from pathlib import Path

from scene.datasets.capture import Capture
from scene.datasets.options import DataOptions
from scene.datasets.paths import IMAGE_SUFFIXES
from scene.datasets.tracked_frames import CHECKPOINT, FRAME, capture_of, numbered
from utils.errors import InputError

TEST_FRAMES = 500
SHIFT = 1  # of picture numbers against frame numbers
PICTURE_FOLDER, MATTE_FOLDER = "imgs", "alpha"
PARSING = "parsing/ is not used: neck and clothes stay where alpha/ shows them"


def checkpoints_of(folder: Path) -> list[Path]:
    """The folders of `.frame` files that belong to `folder`."""
    folder = folder.resolve()
    places = [folder / CHECKPOINT, folder.parent.parent / "metrical-tracker/output" / folder.name / CHECKPOINT]
    return [place for place in places if any(place.glob(f"*{FRAME}"))]


def recognise(folder: Path) -> str | None:
    """Why `folder` is none of FlashAvatar's, or None if it is one."""
    missing = [f"{name}/" for name in (PICTURE_FOLDER, MATTE_FOLDER) if not (folder / name).is_dir()]
    if missing:
        return f"no {' and no '.join(missing)}"
    if not (places := checkpoints_of(folder)):
        return f"no {CHECKPOINT}/*{FRAME}, neither inside nor in metrical-tracker/output/{folder.resolve().name}"
    if len(places) > 1:
        return f"two folders of {FRAME} files: {places[0]} and {places[1]}"
    return "images/ is metrical-tracker's picture folder, not imgs/" if (folder / "images").is_dir() else None


def read(folder: Path, options: DataOptions) -> Capture:
    """Read every `.frame` file and pair it with its picture and matte.

    The last 500 frames are test; of a capture with fewer than 1000, the last 30 %. Pictures without a frame are not
    used, nor is `parsing/`.
    """
    files = numbered(checkpoints_of(folder)[0], (FRAME,))
    pictures = {name: numbered(folder / name, IMAGE_SUFFIXES) for name in (PICTURE_FOLDER, MATTE_FOLDER)}
    for number, path in files.items():
        for name, found in pictures.items():
            if number + SHIFT not in found:
                problem = f"belongs to picture {number + SHIFT}, which is not in {folder / name}"
                raise InputError(path, "", problem, "The dataset is incomplete.")
    images, mattes = ([found[number + SHIFT] for number in files] for found in pictures.values())
    return capture_of("flash_avatar", list(files.values()), images, mattes, TEST_FRAMES, PARSING)
