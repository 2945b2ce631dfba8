"""Writes the subject: its model in FLAME's file format, a capture in the VHAP export layout and the truth."""

from __future__ import annotations

import math
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from flame_model import FlameModel, load_flame
from scripts.demo_subject import motion, rig, template
from scripts.demo_subject.picture import Artist
from utils.errors import EnvironmentFault, InputError
from utils.io.atomic import atomic_file, write_json
from utils.io.progress import progress
from utils.maths.random import generator

Array = np.ndarray

DISTANCE = 1.0  # metres from the cameras to the head
FIELD = 0.37  # metres that the picture shows at that distance
TARGET = np.array([0.0, -0.023, -0.005])  # what the cameras look at
LAST_FILE = "transforms_test.json"  # written last: where it exists, the capture is complete
FRONTAL = 8  # index of the validation camera, if there are so many


@dataclass(frozen=True)
class View:
    """A camera: OpenCV world-to-camera [4, 4] and pixels; `cy` counts from the top."""

    world_to_camera: Array
    focal: float
    cx: float
    cy: float
    size: int


def cameras(count: int, size: int, seed: int) -> list[View]:
    """A fan of cameras about the face; number 8, or the last of fewer, is frontal; principal points are off-centre."""
    rng = generator(seed, "demo subject cameras")
    frontal = min(FRONTAL, count - 1)
    fan = np.linspace(-64, 64, count - 1) if count > 1 else np.zeros(0)
    azimuth = np.insert(fan, frontal, 3.0)
    elevation = np.insert(np.resize([-8.0, 6.0, 17.0], count - 1), frontal, 3.0)
    views = []
    for a, e in zip(np.radians(azimuth), np.radians(elevation), strict=True):
        backward = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
        right = np.cross([0.0, 1.0, 0.0], backward)
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(right, backward), -backward])  # rows: right, down, forward
        matrix = np.eye(4)
        matrix[:3, :3] = rotation
        matrix[:3, 3] = -rotation @ (TARGET + DISTANCE * backward)
        shift = rng.uniform(0.008, 0.022, 2) * rng.choice([-1, 1], 2) * size
        focal = size * DISTANCE / FIELD * rng.uniform(0.99, 1.01)
        views.append(View(matrix, float(focal), size / 2 + float(shift[0]), size / 2 + float(shift[1]), size))
    return views


def frame_fields(view: View, camera: int, timestep: int) -> dict[str, Any]:
    """One entry of `frames`: OpenGL camera-to-world, and `cy` counted from the bottom as VHAP does."""
    pose = np.linalg.inv(view.world_to_camera)
    pose[:3, 1:3] *= -1
    angle = 2 * math.atan(view.size / (2 * view.focal))
    name = f"{timestep:05d}_{camera:02d}.png"
    return {
        "timestep_index": timestep,
        "timestep_index_original": timestep,
        "timestep_id": f"frame_{timestep:05d}",
        "camera_index": camera,
        "camera_id": f"{900100 + 37 * camera}",
        "cx": view.cx,
        "cy": view.size - view.cy,
        "fl_x": view.focal,
        "fl_y": view.focal,
        "w": view.size,
        "h": view.size,
        "camera_angle_x": angle,
        "camera_angle_y": angle,
        "transform_matrix": pose.tolist(),
        "file_path": f"images/{name}",
        "fg_mask_path": f"fg_masks/{name}",
        "flame_param_path": f"flame_param/{timestep:05d}.npz",
    }


def write_transforms(folder: Path, views: list[View], timesteps: int) -> None:
    """`transforms.json` and its three splits (first 70 % of the timesteps: train and val)."""
    frames = [frame_fields(view, c, t) for t in range(timesteps) for c, view in enumerate(views)]
    seen = math.ceil(0.7 * timesteps)
    held_out = FRONTAL if len(views) > FRONTAL else len(views) - 1
    single = len(views) == 1
    splits = {
        "": frames,
        "_train": [f for f in frames if f["timestep_index"] < seen and (single or f["camera_index"] != held_out)],
        "_val": [f for f in frames if f["timestep_index"] < seen and not single and f["camera_index"] == held_out],
        "_test": [f for f in frames if f["timestep_index"] >= seen],
    }
    shared = ("cx", "cy", "fl_x", "fl_y", "h", "w", "camera_angle_x", "camera_angle_y")
    for suffix, chosen in splits.items():
        content: dict[str, Any] = {"frames": chosen}
        content |= {key: chosen[-1][key] for key in shared} if chosen else {}
        content["timestep_indices"] = sorted({f["timestep_index"] for f in chosen})
        content["camera_indices"] = sorted({f["camera_index"] for f in chosen})
        content["flame_edition"] = rig.EDITION
        write_json(folder / f"transforms{suffix}.json", content)


def write_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """An npz whose bytes depend on the arrays alone."""
    with atomic_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_parameters(folder: Path, stored: dict[str, Array], offset: Array) -> None:
    """`flame_param/*.npz` and `canonical_flame_param.npz`."""
    shape, static = stored["shape"].astype(np.float32), offset[None].astype(np.float32)
    per_frame = {name: value for name, value in stored.items() if name != "shape"}
    for t in range(len(per_frame["expr"])):
        row = {name: value[t : t + 1].astype(np.float32) for name, value in per_frame.items()}
        write_arrays(folder / "flame_param" / f"{t:05d}.npz", {**row, "shape": shape, "static_offset": static})
    zeros = {name: np.zeros((1, value.shape[1])) for name, value in per_frame.items()}
    zeros["jaw_pose"] = np.array([[0.3, 0.0, 0.0]])
    write_arrays(folder / "canonical_flame_param.npz", {**zeros, "shape": shape, "static_offset": static})


def write_model(folder: Path, head: template.Template) -> Path:
    """`demo_head.pkl` and `demo_masks.pkl`; returns the path of the first."""
    path = folder / "demo_head.pkl"
    for target, content in ((path, rig.flame_file(head)), (folder / "demo_masks.pkl", rig.regions(head))):
        with atomic_file(target) as file:
            pickle.dump(content, file, protocol=2)
    return path


def static_offset(head: template.Template) -> Array:
    """[V, 3] metres: a little asymmetry that no identity direction has."""
    p = head.vertices
    offset = rig.bump(p, (12, -12, 92), (18, 20, 30))[:, None] * [0.9, 0.2, 0.0]
    offset = offset + rig.bump(p, (-40, -20, 55), (26, 30, 30))[:, None] * [-1.1, 0.3, 0.6]
    offset[head.of("left eyeball", "right eyeball", "upper teeth", "lower teeth", "tongue")] = 0.0
    return offset / 1000.0


def pose_all(model: FlameModel, exact: dict[str, Array], offset: Array) -> np.ndarray:
    """[T, V, 3] metres: the exact motion."""

    def tensor(value: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(value, np.float32))

    with torch.no_grad():
        identity = model.fold_identity(tensor(exact["shape"]), tensor(offset))
        groups = {name: tensor(value) for name, value in exact.items() if name != "shape"}
        posed = [model.posed(identity, **{n: v[t] for n, v in groups.items()}) for t in range(len(groups["expr"]))]
    return torch.stack(posed).numpy()


_artist: Artist | None = None  # set in the parent before it forks, so that workers share its textures


def _draw(job: tuple[np.ndarray, View, Path, str]) -> None:
    vertices, view, folder, name = job
    if _artist is None:
        raise RuntimeError("the worker was not forked from the program that made the artist")
    colour, matte = _artist.draw(vertices, view.world_to_camera, view.focal, (view.cx, view.cy), view.size)
    for kind, image in (("images", colour[..., ::-1]), ("fg_masks", matte)):
        done, data = cv2.imencode(".png", image)
        if not done:
            raise RuntimeError(f"{name}: the PNG encoder failed")
        (folder / kind / name).write_bytes(data.tobytes())


def make(output: Path, size: int, camera_count: int, timesteps: int, seed: int, threads: int) -> None:
    """Write the whole subject below `output`: `model/`, `capture/` and `truth.npz`. Same arguments, same bytes.

    Raises:
        InputError: the folder holds a finished subject.
        EnvironmentFault: it can't be written.
    """
    global _artist
    capture = output / "capture"
    if (capture / LAST_FILE).exists():
        raise InputError(output, "capture", "holds a finished subject already", "Delete it or choose another folder.")
    try:
        for folder in (output / "model", capture / "images", capture / "fg_masks", capture / "flame_param"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{output}: can't be written: {error.strerror or error}") from error
    cv2.setNumThreads(1)  # forked workers don't inherit OpenCV's thread pool
    torch.set_num_threads(1)  # the last bits of a sum depend on the number of threads
    head = template.build()
    model = FlameModel(load_flame(write_model(output / "model", head)))
    exact = motion.truth(timesteps, seed)
    offset = static_offset(head)
    views = cameras(camera_count, size, seed)
    write_parameters(capture, motion.tracked(exact, seed), offset)
    write_arrays(output / "truth.npz", {**exact, "static_offset": offset})
    posed = pose_all(model, exact, offset)
    _artist = Artist(head, seed, detail=1.0 if size > 128 else 0.375)
    jobs = [(posed[t], view, capture, f"{t:05d}_{c:02d}.png") for t in range(timesteps) for c, view in enumerate(views)]
    with ProcessPoolExecutor(threads, mp_context=get_context("fork")) as pool:
        for _ in progress(pool.map(_draw, jobs, chunksize=4), len(jobs), "pictures"):
            pass
    write_transforms(capture, views, timesteps)


def describe(output: Path) -> str:
    """One line that says how to train on what was written."""
    model = output / "model"
    flags = f"--flame_model {model / 'demo_head.pkl'} --flame_masks {model / 'demo_masks.pkl'}"
    return f"python train.py -s {output / 'capture'} -m output/demo --bind_to_mesh --eval --white_background {flags}"
