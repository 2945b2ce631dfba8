"""The added teeth against the published table, regions by hand, landmarks from a file that also holds torch tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flame_model import (
    FlameAssets,
    face_regions,
    landmarks,
    load_flame,
    load_landmarks,
    load_masks,
    teeth,
    with_unions,
)
from tests.flame_model import synthetic
from utils.errors import InputError

# Each strip: the two triangles of column i for i = 0..6, then for i = 7..13, as published (teeth-local ids at i = 0).
TABLE = [
    ([(0, 31, 30), (0, 1, 31)], [(0, 1, 30), (1, 31, 30)]),
    ([(60, 75, 76), (60, 76, 61)], [(60, 75, 61), (61, 75, 76)]),
    ([(75, 30, 76), (76, 30, 31)], [(75, 30, 31), (75, 31, 76)]),
    ([(45, 46, 15), (46, 16, 15)], [(45, 16, 15), (45, 46, 16)]),
    ([(90, 106, 105), (90, 91, 106)], [(90, 91, 105), (91, 106, 105)]),
    ([(105, 106, 45), (106, 46, 45)], [(105, 46, 45), (105, 106, 46)]),
]


@pytest.fixture(scope="module")
def flame(shared: Path) -> FlameAssets:
    return load_flame(shared / "data" / "flame_stand_in" / "flame2023.pkl")


def flame_sized(seed: int = 0) -> FlameAssets:
    """Random content with FLAME's counts, so that the teeth are tested where no FLAME file is."""
    random = np.random.default_rng(seed)
    v = 5023

    def floats(*shape: int) -> np.ndarray:
        return random.normal(0, 0.1, shape).astype(np.float32)

    faces = random.integers(0, v, (9976, 3))
    weights = np.tile(np.eye(5, dtype=np.float32)[1], (v, 1))
    arrays = (floats(v, 3), floats(v, 3, 300), floats(v, 3, 2), floats(v, 3, 36), floats(5, v))
    return FlameAssets(*arrays, np.array(synthetic.PARENTS), weights, faces, "random", "", Path("random.pkl"))


def test_every_face_of_the_table() -> None:
    expected = []
    for left, right in TABLE:
        for i in range(14):
            expected += [[corner + i for corner in triangle] for triangle in (left if i < 7 else right)]
    faces = teeth.faces()
    assert faces.shape == (168, 3)
    np.testing.assert_array_equal(faces, expected)
    # Column 10 of the lower back, whose second triangle (face 10109 of the whole mesh) older avatars have with a slip.
    np.testing.assert_array_equal(faces[10109 - 9976], [101, 116, 115])


def test_each_half_is_one_open_surface() -> None:
    """Independent of the table: three strips of 28 make a sheet whose inner edges have two faces, one per direction."""
    for half in (teeth.faces()[:84], teeth.faces()[84:]):
        directed = np.concatenate([half[:, [0, 1]], half[:, [1, 2]], half[:, [2, 0]]])
        assert len(np.unique(directed, axis=0)) == len(directed)
        _, count = np.unique(np.sort(directed, 1), axis=0, return_counts=True)
        assert count.max() == 2
        # A sheet of 3 x 14 quads: 2 rows of 14 outer edges, 2 x 3 ends; the rest is shared.
        assert (count == 1).sum() == 2 * 14 + 2 * 3
        assert len(np.unique(half)) == 60


def test_counts_positions_and_attributes() -> None:
    assets = flame_sized()
    full = assets.with_teeth()
    assert (full.n_vertices, len(full.faces), full.added_teeth) == (5143, 10144, 120)
    assert full.with_teeth() is full
    t = assets.template.astype(float)
    a, b = t[list(teeth.UPPER_LIP)], t[list(teeth.LOWER_LIP)]
    d = np.mean([np.linalg.norm(a[i] - b[i]) for i in range(15)])
    mean_y = np.mean((a[:, 1] + b[:, 1]) / 2)
    for i in range(15):
        x, z = (a[i, 0] + b[i, 0]) / 2, (a[i, 2] + b[i, 2]) / 2 - 1.5 * d
        upper, lower = mean_y + 0.1 * d, mean_y - 0.1 * d
        rows = [
            (x, upper + 2 * d, z), (x, lower - 2 * d, z - 0.4 * d), (x, upper, z), (x, lower, z - 0.4 * d),
            (x, upper + 2 * d, z - d), (x, upper, z - d), (x, lower - 2 * d, z - 1.4 * d), (x, lower, z - 1.4 * d),
        ]  # fmt: skip
        np.testing.assert_allclose(full.template[5023 + i :: 15], rows, atol=1e-6)
        lips = (assets.shape_dirs[teeth.UPPER_LIP[i]] + assets.shape_dirs[teeth.LOWER_LIP[i]]) / 2
        for row in range(8):
            np.testing.assert_array_equal(full.shape_dirs[5023 + 15 * row + i], lips)
    for name in ("expr_dirs", "pose_dirs"):
        assert not getattr(full, name)[5023:].any()
    assert not full.joint_regressor[:, 5023:].any()
    joint = [1, 2, 1, 2, 1, 1, 2, 2]  # upper rows on the neck, lower rows on the jaw
    np.testing.assert_array_equal(full.weights[5023:], np.eye(5)[np.repeat(joint, 15)])
    np.testing.assert_array_equal(full.faces[9976:], teeth.faces() + 5023)
    for name in ("template", "shape_dirs", "expr_dirs", "pose_dirs", "weights", "faces"):
        kept, array = getattr(assets, name), getattr(full, name)
        np.testing.assert_array_equal(array[: len(kept)], kept)
        assert array.dtype == kept.dtype and array.flags.c_contiguous, name
    np.testing.assert_array_equal(full.joint_regressor[:, :5023], assets.joint_regressor)


def test_the_stand_in_teeth_lie_behind_the_lips(flame: FlameAssets) -> None:
    full = flame.with_teeth()
    plates = full.template[5023:]
    lips = flame.template[np.concatenate([teeth.UPPER_LIP, teeth.LOWER_LIP])]
    assert plates[:, 2].max() < lips[:, 2].max()
    assert abs(plates[:, 1].mean() - lips[:, 1].mean()) < 0.01
    assert np.abs(plates[:, 0]).max() <= np.abs(lips[:, 0]).max() + 1e-3
    edges = full.template[full.faces[9976:]]
    area = np.linalg.norm(np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0]), axis=1)
    assert area.min() > 0


def test_a_face_belongs_where_all_its_vertices_do() -> None:
    faces = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 4], [5, 6, 7]])
    masks = {
        **{name: np.array([0]) for name in synthetic.masks(60)},
        "face": np.array([0, 1, 2, 3]),
        "scalp": np.array([2, 3, 4, 5, 6, 7]),
        "neck": np.array([4]),
        "left_eyeball": np.array([1]),
        "right_eyeball": np.array([2, 3]),
        "teeth": np.array([99]),
    }
    regions = face_regions(masks, faces)
    assert regions["face"].tolist() == [True, True, False, False]
    assert regions["scalp"].tolist() == [False, False, True, True]
    assert regions["eyeballs"].tolist() == [False, True, False, False]
    assert regions["hair"].tolist() == [False, False, False, True]
    assert not regions["teeth"].any()
    assert with_unions(masks, faces)["hair"].tolist() == [5, 6, 7]
    assert all(member.dtype == bool and member.shape == (4,) for member in regions.values())


def test_regions_of_the_stand_in(flame: FlameAssets, shared: Path) -> None:
    full = flame.with_teeth()
    masks = load_masks(shared / "data" / "flame_stand_in" / "FLAME_masks.pkl", full.n_vertices)
    regions = face_regions(masks, full.faces)
    assert regions["teeth"].tolist() == [False] * 9976 + [True] * 168
    assert not (regions["skin"] & (regions["teeth"] | regions["eyeballs"] | regions["hair"] | regions["lips"])).any()
    assert not regions["hair"][regions["face"]].any()
    assert 500 < regions["left_eyeball"].sum() == regions["right_eyeball"].sum()
    without = face_regions(masks, flame.faces)
    assert "teeth" not in without
    np.testing.assert_array_equal(without["nose"], regions["nose"][:9976])


def _embedding() -> dict[str, Any]:
    random = np.random.default_rng(1)
    corners = random.random((1, 70, 3))
    return {
        "full_lmk_faces_idx": random.integers(0, 58, (1, 70)),
        "full_lmk_bary_coords": corners / corners.sum(2, keepdims=True),
        "dynamic_lmk_faces_idx": torch.arange(6).view(2, 3),
        "dynamic_lmk_bary_coords": torch.rand(2, 3, 3),
    }


def _save(path: Path, embedding: Any) -> Path:
    np.save(path, np.array(embedding, dtype=object), allow_pickle=True)
    return path


def test_landmarks_are_read_beside_torch_tensors(tmp_path: Path) -> None:
    path = _save(tmp_path / "landmarks.npy", _embedding())
    assert b"_load_from_bytes" in path.read_bytes() and b"_rebuild_tensor" in path.read_bytes()
    embedding = load_landmarks(path, 58)
    np.testing.assert_array_equal(embedding.faces, _embedding()["full_lmk_faces_idx"][0])
    vertices, faces = torch.rand(60, 3), torch.from_numpy(synthetic.fields()["f"].astype(np.int64))
    points = landmarks(vertices.requires_grad_(), faces, embedding)
    for i in (0, 33, 69):
        corners = vertices[faces[embedding.faces[i]]]
        expected = (torch.from_numpy(embedding.barycentric[i])[:, None] * corners).sum(0)
        torch.testing.assert_close(points[i], expected)
    points.sum().backward()
    assert vertices.grad is not None and vertices.grad.sum() == pytest.approx(210, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"full_lmk_faces_idx": np.full((1, 70), 58)}, "full_lmk_faces_idx: found face ids 58"),
        ({"full_lmk_bary_coords": np.ones((1, 70, 3))}, "do not sum to 1"),
        ({"full_lmk_bary_coords": np.ones((1, 69, 3)) / 3}, "full_lmk_bary_coords: found shape"),
        ({"full_lmk_faces_idx": torch.zeros(1, 70, dtype=torch.int64)}, "full_lmk_faces_idx: byte"),
    ],
)
def test_bad_landmarks_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_landmarks(_save(tmp_path / "landmarks.npy", _embedding() | change), 58)


def test_other_npy_files_are_no_landmarks(tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.zeros(3))
    (tmp_path / "text.npy").write_text("hello")
    _save(tmp_path / "list.npy", [1, 2, 3])
    for name in ("numbers.npy", "text.npy", "list.npy"):
        with pytest.raises(InputError, match=rf"{name}: byte \d+"):
            load_landmarks(tmp_path / name, 58)


def test_assets_of_other_counts_are_left_alone() -> None:
    assets = flame_sized()
    fewer = replace(assets, faces=assets.faces[:-1])
    assert fewer.with_teeth() is fewer
