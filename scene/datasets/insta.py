"""INSTA's export of the metrical tracker: matted pictures, cameras that move about a still head, and a mesh per frame.

It carries no FLAME parameters that pose the head (expressions lie in text files, the jaw nowhere), so its motion is its
meshes. Conventions: https://github.com/Zielon/INSTA (its README) and docs/formats.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from scene.cameras import Intrinsics
from scene.datasets.capture import SPLITS, Capture, FrameRecord
from scene.datasets.frame_records import read_camera_to_world, read_intrinsics
from scene.datasets.options import DataOptions
from scene.datasets.paths import Paths, find_paths, is_there
from scene.datasets.picture_size import fit, read_picture_header, resizing_notes
from utils.contracts import Motion
from utils.errors import InputError
from utils.io.json_files import JsonObject, read_bytes, read_json
from utils.io.obj import MAX_BYTES, ObjMesh, read_obj

VHAP_FIELDS = ("timestep_index", "camera_index", "flame_param_path")  # its mesh export has OpenGL cameras
Frame = tuple[JsonObject, Path, Path]  # place, picture, mesh


def recognise(folder: Path) -> str | None:
    """Why `folder` is not such an export, or None if it is one: frames with `mesh_path` that are not VHAP's."""
    path = folder / "transforms_train.json"
    if not path.is_file():
        return "no transforms_train.json"
    try:
        frames = JsonObject.of(path, "", read_json(path)).objects("frames")
    except InputError as error:
        return str(error)
    if not frames or not frames[0].has("mesh_path"):
        return "transforms_train.json has no frames with mesh_path"
    foreign = [field for field in VHAP_FIELDS if frames[0].has(field)]
    return f"transforms_train.json has frames with {foreign[0]}, as VHAP's" if foreign else None


def read(folder: Path, options: DataOptions) -> Capture:
    """Read the export in `folder`.

    Timesteps are the meshes in the order of their numbers. Splits are those of the files; `val` repeats frames of
    `test`, as INSTA writes it.
    """
    paths = find_paths(folder, options)
    files = {split: path for split in SPLITS if is_there(path := folder / f"transforms_{split}.json", split)}
    contents = {split: JsonObject.of(path, "", read_json(path)) for split, path in files.items()}
    frames = {split: read_frames(contents[split], paths) if split in contents else [] for split in SPLITS}
    if not frames["train"]:
        raise InputError(files["train"], "frames", "is empty, expected at least one frame")
    refuse_leaks(frames)
    meshes = sorted({mesh for split in SPLITS for _, _, mesh in frames[split]}, key=natural)
    timesteps = {mesh: timestep for timestep, mesh in enumerate(meshes)}
    header, fitted = read_picture_header(frames["train"][0][1]), []
    records: dict[str, list[FrameRecord]] = {split: [] for split in SPLITS}
    matted = header.channels == 4  # a picture that differs is refused when it is decoded
    for split, content in contents.items():
        declared = read_pinhole(content)
        intrinsics = fit(declared, header, frames["train"][0][1], content, "w")
        fitted += [(declared, intrinsics)] * len(frames[split])
        records[split] = [make_record(frame, timesteps[frame[2]], intrinsics, matted) for frame in frames[split]]
    return Capture(
        format="insta",
        records=records,
        files=(*files.values(), *meshes),
        motion=read_meshes(meshes),
        notes=(*notes(frames, matted), *resizing_notes(fitted)),
    )


def read_frames(content: JsonObject, paths: Paths) -> list[Frame]:
    """The frames of one transforms file and the files that they name, in its order."""
    return [
        (place, paths.file(place, "file_path", paths.image), paths.file(place, "mesh_path"))
        for place in content.objects("frames")
    ]


def refuse_leaks(frames: Mapping[str, Sequence[Frame]]) -> None:
    """Refuse a dataset that trains on what it is measured by."""
    held_out = {picture: split for split in ("val", "test") for _, picture, _ in frames[split]}
    for place, picture, _ in frames["train"]:
        if picture in held_out:
            problem = f"found {picture}, which is a frame of transforms_{held_out[picture]}.json too"
            raise place.error("file_path", problem, "Write the splits again: they must not share frames with train.")


def natural(path: Path) -> tuple[list[str | int], ...]:
    """Sort key: numbers inside of names count as numbers. Text and numbers alternate, so they are never compared."""
    return tuple(
        [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
        for name in (path.stem, path.suffix, str(path.parent))
    )


def read_pinhole(place: JsonObject) -> Intrinsics:
    """The pinhole at the top of a transforms file, in pixels; cy counts from the top, as in OpenCV's K."""
    for field in ("fl_x", "fl_y", "cx", "cy"):  # INSTA writes them all, so that a missing one is no default
        place.number(field)
    return read_intrinsics(place, cy_from_top=True)


def make_record(frame: Frame, timestep: int, intrinsics: Intrinsics, matted: bool) -> FrameRecord:
    """The record of a frame; `transform_matrix` is camera-to-world with OpenCV axes, so it is only inverted."""
    place, picture, _ = frame
    return FrameRecord(
        place=place,
        timestep=timestep,
        camera_index=0,
        camera_id="0",
        intrinsics=intrinsics,
        world_to_camera=np.linalg.inv(read_camera_to_world(place)),
        image=picture,
        mask=picture if matted else None,
    )


def read_meshes(paths: Sequence[Path]) -> Motion:
    """Gather the meshes of all timesteps, in order.

    Raises:
        InputError: a file is no OBJ of triangles, or its topology is not that of the first.
    """
    first = read_obj(paths[0])
    vertices = np.empty((len(paths), *first.vertices.shape), np.float32)
    face_lines, _ = split_obj(read_bytes(paths[0], MAX_BYTES))
    for timestep, path in enumerate(paths):
        quick = quick_vertices(path, face_lines, len(first.vertices))
        vertices[timestep] = strict_vertices(path, paths[0], first) if quick is None else quick
    faces = torch.from_numpy(first.faces.astype(np.int64))
    return Motion({"vertices": torch.from_numpy(vertices)}, {"faces": faces})


def split_obj(data: bytes) -> tuple[list[bytes], list[bytes]]:
    """The face lines of an OBJ file, and what stands on its vertex lines."""
    lines = data.replace(b"\r", b"").split(b"\n")
    return [line for line in lines if line.startswith(b"f ")], [line[2:] for line in lines if line.startswith(b"v ")]


def quick_vertices(path: Path, face_lines: list[bytes], count: int) -> np.ndarray | None:
    """Vertices [V, 3] of a plain file with the very faces of the first; None: read it with care.

    A capture has thousands of these files; this takes a tenth of the time of the strict reader.
    """
    faces, lines = split_obj(read_bytes(path, MAX_BYTES))
    rows = [line.split() for line in lines]
    plain = len(rows) == count and all(len(row) == 3 for row in rows) and b"_" not in b"".join(lines)
    if faces != face_lines or not plain:
        return None
    try:
        values = np.array(rows, np.float64)
    except ValueError:
        return None
    return values.astype(np.float32) if (np.abs(values) < 1e30).all() else None


def strict_vertices(path: Path, reference: Path, expected: ObjMesh) -> np.ndarray:
    """Vertices [V, 3] of a file, whose topology must be that of the reference."""
    mesh = read_obj(path)
    if mesh.vertices.shape != expected.vertices.shape or not np.array_equal(mesh.faces, expected.faces):
        problem = (
            f"found {len(mesh.vertices)} vertices and {len(mesh.faces)} faces of another topology than {reference}"
        )
        raise InputError(path, "faces", problem, "All meshes need the same faces in the same order.")
    return mesh.vertices


def notes(frames: Mapping[str, Sequence[Frame]], matted: bool) -> tuple[str, ...]:
    """What a user should know about how this was read."""
    val, test = ({picture for _, picture, _ in frames[split]} for split in ("val", "test"))
    said = ["motion: meshes instead of FLAME poses; they drive the avatar as they are and are not fine-tuned"]
    if val & test:
        said.append(f"splits: {len(val & test)} frames of val are frames of test too, as INSTA writes them")
    if not matted:
        said.append("mattes: none; the pictures have no alpha channel, and seg_mask holds parts of the face")
    return tuple(said)
