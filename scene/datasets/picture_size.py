"""Cameras that were calibrated at one size, pictures that lie there in another."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scene.cameras import Intrinsics
from scene.datasets.capture import Place
from utils.io.images import MAX_BYTES, Header, read_header
from utils.io.json_files import read_bytes


def read_picture_header(path: Path) -> Header:
    """Size and channels of a PNG or JPEG; nothing is decoded. Raises InputError as `read_image` does."""
    return read_header(read_bytes(path, MAX_BYTES), path)


def fit(declared: Intrinsics, header: Header, path: Path, place: Place, field: str) -> Intrinsics:
    """The pinhole of the picture in `path` (with that header): maybe a uniformly resized copy (`--images images_4`).

    Raises:
        InputError: the picture has another aspect: it was cropped, stretched or turned; names `field` of `place`.
    """
    if not is_resized(declared, header.width, header.height):
        problem = f"found {declared.width}x{declared.height} pixels, but {path} has {header.width}x{header.height}"
        advice = "Use the pictures that the cameras were calibrated on, or copies resized without cropping."
        raise place.error(field, problem + ", which is no uniform scale", advice)
    return declared.resized(header.width, header.height)


def is_resized(declared: Intrinsics, width: int, height: int) -> bool:
    """Whether one scale takes the declared size to width x height, each side rounded up or down."""
    low = max((width - 1) / declared.width, (height - 1) / declared.height)
    high = min((width + 1) / declared.width, (height + 1) / declared.height)
    return low < high


def resizing_notes(sizes: Iterable[tuple[Intrinsics, Intrinsics]]) -> tuple[str, ...]:
    """What to tell users about (declared, fitted) pinholes that differ in size: at most one sentence."""
    changed = [pair for pair in sizes if (pair[0].width, pair[0].height) != (pair[1].width, pair[1].height)]
    if not changed:
        return ()
    old, new = changed[0]
    first = f"the first is {new.width}x{new.height}, its camera says {old.width}x{old.height}"
    return (f"the cameras of {len(changed)} resized pictures were scaled ({first})",)
