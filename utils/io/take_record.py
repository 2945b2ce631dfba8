"""frames.json of a rendered take: which camera and timestep each picture is of, and what region maps mean."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.errors import InputError
from utils.io.atomic import write_json
from utils.io.json_files import JsonObject, is_number, kind, read_json

FRAMES = "frames.json"
MOST = 10**9  # timesteps and sequences
MOST_REGIONS = 255  # labels of an 8-bit picture
RENDER_AGAIN = "Render again: python render.py -m RUN."


@dataclass(frozen=True)
class FrameRecord:
    """Which picture of the capture a rendered frame is."""

    file: str
    name: str  # of the photograph
    camera_id: str
    timestep: int
    sequence: int  # which recording of a union the timestep is of


@dataclass(frozen=True)
class TakeRecord:
    """What frames.json says."""

    frames: tuple[FrameRecord, ...]
    regions: tuple[str, ...]  # names of the labels 1, 2, ... of region maps; empty: there are none
    background: tuple[float, ...]  # RGB in [0, 1]


def write_take_record(folder: Path, record: TakeRecord) -> None:
    """Write frames.json into a folder `ours_N`."""
    write_json(folder / FRAMES, asdict(record))


def read_take_record(folder: Path, files: Collection[str]) -> TakeRecord | None:
    """What frames.json in a folder `ours_N` says about the pictures `files`; None if there is no such file.

    Raises:
        InputError: not what `write_take_record` writes, a picture twice, or one that it doesn't know.
    """
    path = folder / FRAMES
    if not path.is_file():
        return None
    content = JsonObject.of(path, "", read_json(path))
    frames = [
        FrameRecord(
            file=one.text("file"),
            name=one.text("name"),
            camera_id=one.text("camera_id"),
            timestep=one.integer("timestep", 0, MOST),
            sequence=one.integer("sequence", 0, MOST),
        )
        for one in content.objects("frames")
    ]
    listed = [frame.file for frame in frames]
    if unknown := set(files) - set(listed):
        raise content.error("frames", f"lacks {min(unknown)}, which was rendered", RENDER_AGAIN)
    if len(set(listed)) != len(listed):
        raise content.error("frames", "names a file twice", RENDER_AGAIN)
    here = tuple(frame for frame in frames if frame.file in files)
    return TakeRecord(here, _names(content), _background(content))


def _names(content: JsonObject) -> tuple[str, ...]:
    found = content.value.get("regions")
    if not isinstance(found, list) or len(found) > MOST_REGIONS or not all(isinstance(name, str) for name in found):
        raise _unexpected(content, "regions", f"a list of up to {MOST_REGIONS} names")
    return tuple(found)


def _background(content: JsonObject) -> tuple[float, ...]:
    found = content.value.get("background")
    if not isinstance(found, list) or len(found) != 3 or not all(is_number(level) for level in found):
        raise _unexpected(content, "background", "three numbers")
    return tuple(map(float, found))


def _unexpected(content: JsonObject, field: str, expected: str) -> InputError:
    return content.error(field, f"found {kind(content.value.get(field))}, expected {expected}", RENDER_AGAIN)
