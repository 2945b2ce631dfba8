"""The built-in subject: readable model, layout of an export, pictures that lie where the numbers say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diff_gaussian_rasterization.mesh import rasterize_mesh

from flame_model import MASK_NAMES, FlameModel, load_flame, load_masks
from scripts.demo_subject import capture, motion, rig, template
from utils.errors import InputError

SIZE, CAMERAS, TIMESTEPS = 64, 9, 4
GROUPS = {"rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "translation": 3, "expr": 100}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subject")
    capture.make(folder, SIZE, CAMERAS, TIMESTEPS, seed=3, threads=2)
    return folder


@pytest.fixture(scope="module")
def model(subject: Path) -> FlameModel:
    return FlameModel(load_flame(subject / "model/demo_head.pkl"))


@pytest.fixture(scope="module")
def head() -> template.Template:
    return template.build()


def posed(model: FlameModel, folder: Path, timestep: int, static: bool = True, **changes: np.ndarray) -> np.ndarray:
    """Vertices [V, 3] of a stored timestep."""
    with np.load(folder / f"capture/flame_param/{timestep:05d}.npz") as file:
        stored = {name: torch.from_numpy(changes.get(name, file[name])) for name in file.files}
    offset = stored.pop("static_offset")[0]
    identity = model.fold_identity(stored.pop("shape"), offset if static else None)
    with torch.no_grad():
        return model.posed(identity, **{name: value[0] for name, value in stored.items()}).numpy()


def project(vertices: np.ndarray, frame: dict, cy: float) -> np.ndarray:
    """Screen x, y and depth [V, 3] with the fields of a json frame and an image cy."""
    pose = np.array(frame["transform_matrix"])
    pose[:3, 1:3] *= -1
    view = np.linalg.inv(pose)
    seen = vertices @ view[:3, :3].T + view[:3, 3]
    x = frame["fl_x"] * seen[:, 0] / seen[:, 2] + frame["cx"]
    y = frame["fl_y"] * seen[:, 1] / seen[:, 2] + cy
    return np.stack([x, y, seen[:, 2]], 1).astype(np.float32)


def overlap(model: FlameModel, folder: Path, frame: dict, cy: float) -> tuple[float, float]:
    """Intersection over union of the projected mesh and the matte, and the share of the mesh outside the matte."""
    vertices = posed(model, folder, frame["timestep_index"])
    mesh, _, _ = rasterize_mesh(project(vertices, frame, cy), model.faces.numpy(), frame["w"], frame["h"])
    matte = read(folder / "capture" / frame["fg_mask_path"]) > 127
    mesh = mesh >= 0
    return float((mesh & matte).sum() / (mesh | matte).sum()), float((mesh & ~matte).sum() / mesh.sum())


def read(path: Path) -> np.ndarray:
    """Pixels as stored (BGR, or one channel)."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def frames(folder: Path, split: str = "") -> list[dict]:
    return json.loads((folder / f"capture/transforms{split}.json").read_text())["frames"]


def test_model_is_in_flames_format(subject: Path, model: FlameModel) -> None:
    assets = load_flame(subject / "model/demo_head.pkl")
    assert assets.edition == rig.EDITION
    assert not assets.has_flame_topology and assets.with_teeth() is assets
    assert 3000 <= assets.n_vertices <= 6000
    assert int(assets.expr_dirs.any((0, 1)).sum()) == len(rig.EXPRESSIONS) >= 12
    assert int(assets.shape_dirs.any((0, 1)).sum()) == len(rig.IDENTITIES) >= 4
    for joint in range(4):
        assert assets.pose_dirs[..., 9 * joint : 9 * joint + 9].any()
    joints = assets.joint_regressor @ assets.template
    np.testing.assert_allclose(joints, rig.JOINTS / 1000, atol=1e-5)
    np.testing.assert_allclose(assets.weights.sum(1), 1, atol=1e-6)
    masks = load_masks(subject / "model/demo_masks.pkl", assets.n_vertices)
    assert set(masks) == set(MASK_NAMES)
    assert all(len(ids) for ids in masks.values())
    assert not set(masks["left_eyeball"]) & set(masks["right_eyeball"])
    assert assets.template[masks["left_ear"], 0].min() > 0 > assets.template[masks["right_ear"], 0].max()


def test_mesh_is_sound(head: template.Template) -> None:
    assert head.faces.min() == 0 and head.faces.max() == len(head.vertices) - 1
    assert len(np.unique(head.faces)) == len(head.vertices)
    corners = head.vertices[head.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    assert area.min() > 1e-4  # mm^2: no face collapses
    edges = np.sort(head.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1)
    assert np.unique(edges, axis=0, return_counts=True)[1].max() == 2
    height = head.vertices[:, 1].max() - head.vertices[head.row == head.rows["jaw"], 1].min()
    assert 190 < height < 260  # mm from chin to crown


@pytest.mark.parametrize("name", ["blink left", "blink right"])
def test_blink_closes_one_eye(head: template.Template, name: str) -> None:
    moved = head.vertices + rig.expressions(head)[..., rig.EXPRESSIONS.index(name)]

    def opening(points: np.ndarray, side: int) -> float:
        edge = (head.part == 0) & (np.sign(np.nan_to_num(head.column)) == side)
        return float(points[edge & (head.lid > 0), 1].max() - points[edge & (head.lid < 0), 1].min())

    side = 1 if name.endswith("left") else -1
    assert opening(moved, side) < 0.45 * opening(head.vertices, side)
    assert opening(moved, -side) == opening(head.vertices, -side)


def test_jaw_opens_the_mouth(head: template.Template, model: FlameModel, subject: Path) -> None:
    middle = (head.part == 0) & (head.column == 0)
    upper, lower = (int(np.flatnonzero(middle & (head.lip == sign))[0]) for sign in (1, -1))
    rest = {name: np.zeros((1, size), np.float32) for name, size in GROUPS.items()}
    closed = posed(model, subject, 0, static=False, **rest)
    opened = posed(model, subject, 0, static=False, **{**rest, "jaw_pose": np.array([[0.25, 0, 0]], np.float32)})
    assert np.linalg.norm(closed[upper] - closed[lower]) < 0.001
    assert np.linalg.norm(opened[upper] - opened[lower]) > 0.012


def test_every_parameter_group_moves(subject: Path) -> None:
    stored = [np.load(path) for path in sorted((subject / "capture/flame_param").glob("*.npz"))]
    assert len(stored) == TIMESTEPS
    exact = np.load(subject / "truth.npz")
    for name, size in GROUPS.items():
        values = np.concatenate([file[name] for file in stored])
        assert values.shape == (TIMESTEPS, size) and values.dtype == np.float32
        assert np.ptp(values, axis=0).max() > 0.002, name
        error = np.abs(values - exact[name])
        assert 0 < error.max() < 6 * motion.NOISE[name], name
    assert all(np.array_equal(file["shape"], stored[0]["shape"]) for file in stored)
    assert stored[0]["shape"].any() and stored[0]["shape"].shape == (300,)
    assert stored[0]["static_offset"].shape[0] == 1
    canonical = np.load(subject / "capture/canonical_flame_param.npz")
    assert set(canonical.files) == set(stored[0].files)


def test_test_motion_is_inside_training_motion() -> None:
    exact = motion.truth(48, 0)
    seen, held_out = slice(0, 34), slice(34, 48)
    for name in ("rotation", "neck_pose", "jaw_pose", "translation", "expr"):
        low, high = exact[name][seen].min(0), exact[name][seen].max(0)
        margin = 0.15 * (high - low) + 1e-9
        inside = (exact[name][held_out] >= low - margin) & (exact[name][held_out] <= high + margin)
        assert inside.mean() > 0.95, name


def test_splits_and_fields(subject: Path) -> None:
    every, train, val, test = (frames(subject, split) for split in ("", "_train", "_val", "_test"))
    assert len(every) == CAMERAS * TIMESTEPS == len(train) + len(val) + len(test)
    assert {f["camera_index"] for f in val} == {8} and {f["timestep_index"] for f in val} == {0, 1, 2}
    assert {f["timestep_index"] for f in test} == {3} and len({f["camera_index"] for f in test}) == CAMERAS
    fields = (
        "timestep_index timestep_index_original timestep_id camera_index camera_id cx cy fl_x fl_y w h camera_angle_x"
    )
    fields += " camera_angle_y transform_matrix file_path fg_mask_path flame_param_path"
    for frame in every:
        assert set(frame) == set(fields.split())
        assert abs(frame["cx"] - SIZE / 2) > 0.4 and abs(frame["cy"] - SIZE / 2) > 0.4  # pixels off the centre
        image = read(subject / "capture" / frame["file_path"])
        assert image.shape == (SIZE, SIZE, 3)
        matte = read(subject / "capture" / frame["fg_mask_path"])
        assert matte.shape == (SIZE, SIZE) and (image[matte == 0] == 255).all()
        assert 0.2 < (matte > 127).mean() < 0.8 and image[matte == 255].std() > 25


def test_mesh_lies_on_the_matte(subject: Path, model: FlameModel) -> None:
    """The stored parameters and cameras put the mesh onto the pictures, and only with cy counted from the bottom."""
    right = np.array([overlap(model, subject, f, f["h"] - f["cy"]) for f in frames(subject)])
    wrong = np.array([overlap(model, subject, f, f["cy"]) for f in frames(subject)])
    assert right[:, 0].min() > 0.90
    assert right[:, 1].max() < 0.02
    assert wrong[:, 1].mean() > 2 * right[:, 1].mean()


def test_same_seed_same_bytes(subject: Path, tmp_path: Path) -> None:
    def digests(folder: Path) -> dict[str, str]:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    capture.make(tmp_path, SIZE, CAMERAS, TIMESTEPS, seed=3, threads=1)
    assert digests(tmp_path) == digests(subject)


def test_seed_changes_the_motion() -> None:
    assert not np.array_equal(motion.truth(8, 0)["expr"], motion.truth(8, 1)["expr"])


def test_finished_subject_is_kept(subject: Path) -> None:
    with pytest.raises(InputError, match="finished subject"):
        capture.make(subject, SIZE, CAMERAS, TIMESTEPS, seed=4, threads=1)


def test_flags_are_checked(tmp_path: Path) -> None:
    from scripts.make_demo_subject import main

    with pytest.raises(InputError, match="--size"):
        main(["--output", str(tmp_path / "x"), "--size", "8"])
    assert not (tmp_path / "x").exists()
