"""The VHAP export that GaussianAvatars trains on: photographs, cameras, mattes and FLAME parameters.

Single sequences and unions are the same to this reader: a union's paths climb out of its folder (`../SEQUENCE/images`),
which is allowed inside the data root.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scene.datasets.capture import SPLITS, Capture, FrameRecord, Place
from scene.datasets.flame_params import read_motion
from scene.datasets.frame_records import read_frame
from scene.datasets.options import DataOptions
from scene.datasets.paths import Paths, find_paths, is_there
from utils.errors import InputError
from utils.io.json_files import JsonObject, read_json

MARKER = "canonical_flame_param.npz"


def recognise(folder: Path) -> str | None:
    """Why `folder` is not such an export, or None if it is one."""
    missing = [name for name in (MARKER, "transforms_train.json") if not (folder / name).is_file()]
    return f"no {' and no '.join(missing)}" if missing else None


def read(folder: Path, options: DataOptions) -> Capture:
    """Read the export in `folder`: its transforms files and the FLAME parameters of every timestep."""
    paths = find_paths(folder, options)
    records = {split: read_split(folder / f"transforms_{split}.json", split, paths) for split in SPLITS}
    if not records["train"]:
        raise InputError(folder / "transforms_train.json", "frames", "is empty, expected at least one frame")
    flame_files = flame_file_per_timestep([record for split in SPLITS for record in records[split]])
    transforms = [folder / f"transforms_{split}.json" for split in SPLITS]
    return Capture(
        format="flame_nerf",
        records=records,
        files=(*(path for path in transforms if path.exists()), *flame_files),
        motion=read_motion(flame_files),
        edition=read_edition(transforms[0]),
        sequence_starts=sequence_starts(flame_files),
        notes=matte_notes([record for split in SPLITS for record in records[split]]),
    )


def matte_notes(records: Sequence[FrameRecord]) -> tuple[str, ...]:
    """What to tell users whose frames name mattes in a folder that is not there."""
    lost = [
        record
        for record in records
        if record.mask is None and isinstance(record.place, JsonObject) and record.place.has("fg_mask_path")
    ]
    if not lost:
        return ()
    return (f"mattes: {len(lost)} of {len(records)} frames name one in a folder that is not there; they go without",)


def read_edition(transforms: Path) -> str:
    """The face model that the motion is for: `flame_edition` at the top of the JSON; VHAP does not write it."""
    content = JsonObject.of(transforms, "", read_json(transforms))
    return content.text("flame_edition") if content.has("flame_edition") else ""


def read_split(path: Path, split: str, paths: Paths) -> list[FrameRecord]:
    """The frames of one transforms file, checked."""
    if not is_there(path, split):
        return []
    content: Any = read_json(path)
    return [read_frame(frame, paths) for frame in JsonObject.of(path, "", content).objects("frames")]


def flame_file_per_timestep(records: Sequence[FrameRecord]) -> list[Path]:
    """One parameter file per timestep, 0 to T - 1.

    Raises:
        InputError: two frames name different files for one timestep, or a timestep between 0 and the last is missing.
    """
    files: dict[int, Path] = {}
    places: dict[int, Place] = {}
    for record in records:
        if record.flame_param is None:
            raise record.place.error("flame_param_path", "is missing")
        claim(files, record.timestep, record.flame_param, record.place)
        places.setdefault(record.timestep, record.place)
    for fault in gap_faults(places):
        raise fault
    return [files[t] for t in range(len(files))]


def claim(files: dict[int, Path], timestep: int, path: Path, place: Place) -> None:
    """Note the parameter file of a timestep; InputError if another frame named another one."""
    known = files.setdefault(timestep, path)
    if known != path:
        problem = f"found {path} for timestep {timestep}, but another frame says {known}"
        raise place.error("flame_param_path", problem)


def gap_faults(places: Mapping[int, Place]) -> Iterator[InputError]:
    """A fault for each run of timesteps that no frame has, about the frame after it. `places`: of each timestep."""
    known = sorted(places)
    for before, after in zip([-1, *known], known, strict=False):
        if after != before + 1:
            problem = f"found timestep {after}, but no frame of any split has timestep {before + 1}"
            problem += f"; expected 0 to {known[-1]} without gaps"
            advice = "The FLAME parameters of the gap would be unknown."
            yield places[after].error("timestep_index", problem, advice)


def sequence_starts(flame_files: Sequence[Path]) -> tuple[int, ...]:
    """First timesteps of the recorded sequences: a union's parameter files change folder there."""
    folders = [file.parent for file in flame_files]
    return tuple(t for t in range(len(folders)) if t == 0 or folders[t] != folders[t - 1])
