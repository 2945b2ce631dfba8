"""The VHAP export that GaussianAvatars trains on: photographs, cameras, mattes and FLAME parameters.

Single sequences and unions are the same to this reader: a union's paths climb out of its folder (`../SEQUENCE/images`),
which is allowed inside the data root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scene.cameras import make_camera, target_size
from scene.datasets.flame_params import read_motion
from scene.datasets.frame_records import FrameRecord, Paths, read_frame
from scene.datasets.options import DataOptions
from scene.frames import Dataset, Split, View, background_colour
from scene.image_store import Picture, open_store
from utils.errors import InputError
from utils.io.json_files import JsonObject, read_json

MARKER = "canonical_flame_param.npz"
SPLITS = ("train", "val", "test")
OPTIONAL_SPLITS = ("val",)  # monocular exports may lack it


def recognise(folder: Path) -> str | None:
    """Why `folder` is not such an export, or None if it is one."""
    missing = [name for name in (MARKER, "transforms_train.json") if not (folder / name).is_file()]
    return f"no {' and no '.join(missing)}" if missing else None


def read(folder: Path, options: DataOptions, cache: Path) -> Dataset:
    """Read the export in `folder`; see `scene.datasets.open_dataset`.

    Without `options.eval`, train holds train, val and test. With `options.select_camera_id`, only frames of that camera
    are decoded; the FLAME parameters of all timesteps stay.
    """
    paths = find_paths(folder, options)
    records = {split: read_split(folder / f"transforms_{split}.json", split, paths) for split in SPLITS}
    if not records["train"]:
        raise InputError(folder / "transforms_train.json", "frames", "is empty, expected at least one frame")
    everything = [record for split in SPLITS for record in records[split]]
    flame_files = flame_file_per_timestep(everything)
    motion = read_motion(flame_files)
    fingerprint = fingerprint_of(folder, everything, flame_files)
    kept = {split: select_camera(records[split], options) for split in SPLITS}
    if not any(kept.values()):
        cameras = sorted({record.camera_id for record in everything})
        problem = f"found no camera {options.select_camera_id!r} in {folder}"
        raise InputError("command line", "--select_camera_id", problem, f"Its cameras: {', '.join(cameras)}.")
    splits = make_splits(kept, options, cache)
    return Dataset(
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        motion=motion,
        source=folder,
        format="flame_nerf",
        fingerprint=fingerprint,
        sequence_starts=sequence_starts(flame_files),
    )


def find_paths(folder: Path, options: DataOptions) -> Paths:
    """Where the dataset is and what it may reach."""
    source = folder.resolve()
    root = Path(options.data_root).expanduser().resolve() if options.data_root else source.parent
    if not root.is_dir() or not source.is_relative_to(root):
        problem = f"found {options.data_root!r}, expected a folder that contains {source}"
        raise InputError("command line", "--data_root", problem)
    if not options.images or Path(options.images).name != options.images:
        raise InputError("command line", "--images", f"found {options.images!r}, expected the name of a folder")
    return Paths(source, root, options.images)


def read_split(path: Path, split: str, paths: Paths) -> list[FrameRecord]:
    """The frames of one transforms file, checked."""
    if split in OPTIONAL_SPLITS and not path.exists():
        return []
    if not path.is_file():
        advice = 'Export it; for no frames write {"frames": []}.'
        raise InputError(path, "", "does not exist", advice)
    content: Any = read_json(path)
    return [read_frame(frame, paths) for frame in JsonObject.of(path, "", content).objects("frames")]


def flame_file_per_timestep(records: Sequence[FrameRecord]) -> list[Path]:
    """One parameter file per timestep, 0 to T - 1.

    Raises:
        InputError: two frames name different files for one timestep, or a timestep between 0 and the last is missing.
    """
    files: dict[int, Path] = {}
    for record in records:
        known = files.setdefault(record.timestep, record.flame_param)
        if known != record.flame_param:
            problem = f"found {record.flame_param} for timestep {record.timestep}, but another frame says {known}"
            raise record.place.error("flame_param_path", problem)
    last = max(records, key=lambda record: record.timestep)
    if last.timestep + 1 != len(files):
        gap = next(t for t in range(last.timestep) if t not in files)
        after = min((record for record in records if record.timestep > gap), key=lambda record: record.timestep)
        problem = f"found timestep {after.timestep}, but no frame of any split has timestep {gap}"
        problem += f"; expected 0 to {last.timestep} without gaps"
        raise after.place.error("timestep_index", problem, "The FLAME parameters of the gap would be unknown.")
    return [files[t] for t in range(len(files))]


def sequence_starts(flame_files: Sequence[Path]) -> tuple[int, ...]:
    """First timesteps of the recorded sequences: a union's parameter files change folder there."""
    folders = [file.parent for file in flame_files]
    return tuple(t for t in range(len(folders)) if t == 0 or folders[t] != folders[t - 1])


def select_camera(records: Sequence[FrameRecord], options: DataOptions) -> list[FrameRecord]:
    """Frames of the camera that `--select_camera_id` names by index or else by id; all of them for -1."""
    wanted = str(options.select_camera_id)
    if wanted == "-1":
        return list(records)
    by_index = [record for record in records if str(record.camera_index) == wanted]
    return by_index or [record for record in records if record.camera_id == wanted]


def make_splits(records: dict[str, list[FrameRecord]], options: DataOptions, cache: Path) -> dict[str, Split]:
    """Decode every picture once and deal the frames out."""
    everything = [(record, split) for split in SPLITS for record in records[split]]
    pictures: dict[Picture, int] = {}
    slots = [pictures.setdefault(make_picture(record, options), len(pictures)) for record, _ in everything]
    store = open_store(list(pictures), cache, int(options.image_memory_gb * 2**30))
    background = background_colour(options.white_background)
    views = [make_view(record, split, options) for record, split in everything]

    def deal(members: Sequence[str]) -> Split:
        chosen = [i for i, (_, split) in enumerate(everything) if split in members]
        return Split([views[i] for i in chosen], [slots[i] for i in chosen], store, background)

    if not options.eval:  # nothing is held out, so nothing may be reported as held out
        return {"train": deal(SPLITS), "val": deal([]), "test": deal([])}
    return {split: deal([split]) for split in SPLITS}


def make_picture(record: FrameRecord, options: DataOptions) -> Picture:
    """How the picture of a frame is to be stored."""
    size = (record.intrinsics.width, record.intrinsics.height)
    background = 255 if options.white_background else 0
    return Picture(record.image, record.mask, size, target_size(*size, options.resolution), background)


def make_view(record: FrameRecord, split: str, options: DataOptions) -> View:
    """The view of a frame, its camera scaled to the stored picture."""
    stored = record.intrinsics.resized(*make_picture(record, options).target)
    return View(
        camera=make_camera(record.world_to_camera, stored),
        timestep=record.timestep,
        camera_index=record.camera_index,
        camera_id=record.camera_id,
        name=record.image.stem,
        image=record.image,
        mask=record.mask,
        flame_param=record.flame_param,
        split=split,
    )


def fingerprint_of(folder: Path, records: Sequence[FrameRecord], flame_files: Sequence[Path]) -> str:
    """SHA-256 over the transforms files, the FLAME parameter files and the sizes of the pictures."""
    digest = hashlib.sha256()
    for split in SPLITS:
        path = folder / f"transforms_{split}.json"
        content = path.read_bytes() if path.exists() else b""
        digest.update(f"{split} {len(content)}\n".encode() + content)
    for file in flame_files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    sizes = [(r.image.stat().st_size, r.mask.stat().st_size if r.mask else -1) for r in records]
    digest.update(repr(sizes).encode())
    return digest.hexdigest()
