"""Every picture of a dataset is decoded; what they are, what lies behind the person, which repeat each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import cv2
import numpy as np

from scene.cameras import MAX_AUTOMATIC_WIDTH
from scene.datasets import DataOptions
from scene.datasets.capture import FrameRecord, make_picture
from scene.image_store import (
    BACKGROUND_TOLERANCE,
    Layers,
    Picture,
    exported_background,
    parallel_map,
    prepare,
    read_layers,
    read_videos,
)
from utils.engine.inspection_faults import Faults
from utils.engine.inspection_report import Section, counted, listed, percent
from utils.errors import InputError
from utils.io.json_files import JsonObject
from utils.io.progress import progress

THUMB = 32  # pixels: what a picture is reduced to before it is compared with others
REPEATED = 0.25  # levels of 255, mean absolute difference of two thumbs; noise of a real camera makes more
MANY_REPEATED = 0.1  # share of neighbours
UNIFORM = 0.9  # share of the border that one level must have
LEVELS = {255: "white", 0: "black"}


@dataclass(frozen=True)
class Look:
    """What one decoded picture shows."""

    background: str  # white, black, transparent, or `the room`
    thumb: np.ndarray  # int16 [THUMB, THUMB, 3]


def unique_pictures(records: Iterable[FrameRecord], options: DataOptions) -> list[Picture]:
    return list(dict.fromkeys(make_picture(record, options) for record in records))


def look_at_all(pictures: Sequence[Picture], faults: Faults, quiet: bool) -> dict[Picture, Look]:
    """Decode every picture in threads; faults are noted, the others looked at."""
    found: dict[Picture, Look] = {}
    results = progress(attempts(pictures), len(pictures), "decoding", quiet)
    for picture, result in results:
        if isinstance(result, InputError):
            faults.add("pictures", result)
        else:
            found[picture] = result
    return found


def attempts(pictures: Sequence[Picture]) -> Iterator[tuple[Picture, Look | InputError]]:
    """Each picture with what it shows or why it can't be decoded: stills in threads, then videos from the front."""
    yield from parallel_map(attempt, [picture for picture in pictures if not picture.videos])
    moving = sorted((picture for picture in pictures if picture.videos), key=lambda p: (p.videos, p.frames))
    for _, group in groupby(moving, key=lambda picture: picture.videos):
        members, seen = list(group), 0
        try:
            for index, layers in read_videos(members, range(len(members))):
                yield members[index], look(members[index], layers)
                seen += 1
        except InputError as error:  # what follows in a broken video can't be reached
            yield from ((picture, error) for picture in members[seen:])


def attempt(picture: Picture) -> tuple[Picture, Look | InputError]:
    try:
        return picture, look(picture, read_layers(picture, {}))
    except InputError as error:
        return picture, error


def look(picture: Picture, layers: Layers) -> Look:
    """Judge a decoded picture as training would, and describe it."""
    planes = prepare(picture, layers)
    image = np.ascontiguousarray(planes[:3].transpose(1, 2, 0))
    thumb = cv2.resize(image, (THUMB, THUMB), interpolation=cv2.INTER_AREA).astype(np.int16)
    return Look(background_of(*layers), thumb)


def background_of(image: np.ndarray, matte: np.ndarray | None) -> str:
    """What lies behind the person in uint8 [H, W, 3 or 4]; without a matte the border of the picture must tell."""
    if image.shape[2] == 4:
        return "transparent"
    level = exported_background(image, matte) if matte is not None else border_level(image)
    return "the room" if level is None else LEVELS[level]


def border_level(image: np.ndarray) -> int | None:
    """255 or 0 if the top and the upper half of the sides of uint8 [H, W, 3] have this level, else None."""
    half = max(1, image.shape[0] // 2)
    border = np.concatenate([image[0], image[:half, 0], image[:half, -1]]).astype(np.int16)
    for level in LEVELS:
        if (np.abs(border - level).max(axis=1) <= BACKGROUND_TOLERANCE).mean() >= UNIFORM:
            return level
    return None


def pictures_section(
    records: Sequence[FrameRecord],
    looks: Mapping[Picture, Look],
    pictures: Sequence[Picture],
    options: DataOptions,
    tracked: bool,
) -> Section:
    """Sizes, mattes, backgrounds, memory, and what is odd about them. `tracked`: they show a head that moves."""
    section = Section("Pictures")
    sizes = Counter(picture.size for picture in pictures)
    named = [f"{n} of {w}x{h}" for (w, h), n in sizes.most_common()]
    section.row("size", listed(named, 4))
    reduced = {picture.target for picture in pictures if picture.target != picture.size}
    if reduced:
        section.row("trained at", listed([f"{w}x{h}" for w, h in sorted(reduced)], 4))
    matted = sum(picture.mask is not None for picture in pictures)
    section.row("mattes", "all" if matted == len(pictures) else f"{matted} of {len(pictures)}" if matted else "none")
    behind = Counter(look.background for look in looks.values())
    section.row("background", listed([f"{name} ({n})" for name, n in behind.most_common()]) or "unknown")
    needed = sum(picture.stored_bytes for picture in pictures) / 2**30
    place = "in memory" if needed <= options.image_memory_gb else "in a memory-mapped file, by --image_memory_gb"
    section.row("decoded", f"{needed:.2f} GB, kept {place}")
    section.values.update(
        count=len(pictures), decoded=len(looks), mattes=matted, background=dict(behind),
        sizes=[[*size, n] for size, n in sizes.most_common()], memory_gb=round(needed, 4),
    )  # fmt: skip
    section.warnings += [*matte_warnings(records, matted, len(pictures)), *width_warnings(options, pictures)]
    if tracked:
        section.warnings += background_warnings(looks, options)
        section.warnings += repetition_warnings(records, looks, options, section)
    return section


def matte_warnings(records: Sequence[FrameRecord], matted: int, count: int) -> Iterator[str]:
    if 0 < matted < count:
        without = next(record for record in records if record.mask is None)
        yield f"{count - matted} of {count} pictures have no matte (the first is {without.image}), the others have one"
    elif not matted:
        named = [r for r in records if isinstance(r.place, JsonObject) and r.place.has("fg_mask_path")]
        if named:
            yield (f"{counted(len(named), 'frame')} name mattes (fg_mask_path), but their folder does not exist: "
                   "training goes without")  # fmt: skip


def background_warnings(looks: Mapping[Picture, Look], options: DataOptions) -> Iterator[str]:
    """Without a matte the background can't be exchanged, so the flag must agree with the pictures."""
    bare = Counter(look.background for picture, look in looks.items() if picture.mask is None)
    wrong, advice = ("black", "leave out") if options.white_background else ("white", "add")
    if bare[wrong]:
        yield (f"{bare[wrong]} pictures without matte lie over {wrong}, training would draw over the other: {advice} "
               "--white_background")  # fmt: skip
    if bare["the room"]:
        yield (f"{bare['the room']} pictures show the room and have no matte: the avatar would learn the room; export "
               "mattes")  # fmt: skip


def width_warnings(options: DataOptions, pictures: Sequence[Picture]) -> Iterator[str]:
    wide = sum(picture.size[0] > MAX_AUTOMATIC_WIDTH for picture in pictures)
    if wide and options.resolution == -1:
        yield (f"{wide} pictures are wider than {MAX_AUTOMATIC_WIDTH} px and would be reduced to that: pass -r 1 to "
               "keep them, or -r 2 to halve them")  # fmt: skip


def repetition_warnings(
    records: Sequence[FrameRecord], looks: Mapping[Picture, Look], options: DataOptions, section: Section
) -> Iterator[str]:
    """Pictures that nearly repeat the one before, of the same camera: a frozen or doubled video."""
    tracks: dict[str, dict[int, Picture]] = {}
    for record in records:
        tracks.setdefault(record.camera_id, {})[record.timestep] = make_picture(record, options)
    repeated, pairs, first = 0, 0, ""
    for track in tracks.values():
        timesteps = [t for t in sorted(track) if track[t] in looks]
        for before, after in zip(timesteps, timesteps[1:], strict=False):
            pairs += 1
            if np.abs(looks[track[before]].thumb - looks[track[after]].thumb).mean() < REPEATED:
                repeated += 1
                first = first or str(track[after].image)
    section.values["repeated"] = repeated
    if repeated > MANY_REPEATED * pairs:
        yield (f"{repeated} of {pairs} pictures ({percent(repeated / pairs)}) nearly repeat the one before of their "
               f"camera (the first is {first}): a frozen or doubled video?")  # fmt: skip
