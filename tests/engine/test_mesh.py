"""The mesh rasteriser against a brute-force one, and against what must hold for any mesh."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay

mesh = pytest.importorskip("diff_gaussian_rasterization.mesh", reason="the native package is not installed")
rasterize_mesh = mesh.rasterize_mesh

SUBPIXELS = 1024


def project(points: np.ndarray, focal: float, cx: float, cy: float) -> np.ndarray:
    x, y, z = points.T
    return np.stack([focal * x / z + cx, focal * y / z + cy, z], axis=1).astype(np.float32)


def random_mesh(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Camera-space triangles of either winding that overlap and stick out of a 48x40 picture with focal length 40."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform([-1.0, -1.0, 1.5], [1.0, 1.0, 4.0], (count, 1, 3))
    return (centres + rng.normal(0.0, 0.4, (count, 3, 3))).reshape(-1, 3), np.arange(3 * count).reshape(-1, 3)


def brute_force(vertices: np.ndarray, faces: np.ndarray, width: int, height: int, near: float):
    """Every pixel against every face: exact coverage in integers, float64 interpolation."""
    fixed = np.rint(vertices[:, :2].astype(np.float64) * SUBPIXELS).astype(np.int64)
    x, y = np.meshgrid(np.arange(width) * SUBPIXELS + SUBPIXELS // 2, np.arange(height) * SUBPIXELS + SUBPIXELS // 2)
    best = np.full((height, width), np.inf)
    face_id, weights = np.full((height, width), -1), np.zeros((height, width, 3))
    for index, face in enumerate(faces):
        z = vertices[face, 2].astype(np.float64)
        (ax, ay), (bx, by), (cx, cy) = fixed[face]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0 or (z <= near).any():
            continue
        sign, inside, edges = np.sign(area), np.ones((height, width), bool), []
        for (ux, uy), (vx, vy) in (((bx, by), (cx, cy)), ((cx, cy), (ax, ay)), ((ax, ay), (bx, by))):
            dx, dy = sign * (vx - ux), sign * (vy - uy)
            value = dx * (y - uy) - dy * (x - ux)
            inside &= (value > 0) | ((value == 0) & (dy < 0 or (dy == 0 and dx > 0)))
            edges.append(value / abs(area))
        flat = np.stack(edges, -1) / z
        depth = 1.0 / np.where(inside, flat.sum(-1), 1.0)
        nearer = inside & (depth < best)
        best[nearer], face_id[nearer] = depth[nearer], index
        weights[nearer] = (flat * depth[..., None])[nearer]
    return face_id, weights, best


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_brute_force(seed: int) -> None:
    points, faces = random_mesh(seed, 60)
    vertices = project(points, 40.0, 24.3, 19.6)
    face_id, weights, depth = rasterize_mesh(vertices, faces, 48, 40, near=1.6)
    expected_id, expected_weights, expected_depth = brute_force(vertices, faces, 48, 40, near=1.6)
    assert (vertices[faces, 2] <= 1.6).any(), "the scene must exercise the near plane"
    assert (expected_id < 0).any() and (expected_id >= 0).mean() > 0.3
    np.testing.assert_array_equal(face_id, expected_id)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-6)
    np.testing.assert_allclose(depth, expected_depth, rtol=1e-6)


def test_barycentrics_give_the_point_seen_at_the_pixel_centre() -> None:
    points, faces = random_mesh(7, 40)
    face_id, weights, depth = rasterize_mesh(project(points, 40.0, 24.0, 20.0), faces, 48, 40, near=0.5)
    rows, columns = np.nonzero(face_id >= 0)
    seen = np.einsum("nk,nkc->nc", weights[rows, columns], points[faces[face_id[rows, columns]]])
    np.testing.assert_allclose(seen[:, 2], depth[rows, columns], rtol=2e-3)
    # Within the rounding of the vertices (1/1024 pixel), magnified where a sliver is seen edge-on.
    errors = np.abs(project(seen, 40.0, 24.0, 20.0)[:, :2] - np.stack([columns, rows], 1) - 0.5)
    assert errors.max() < 2e-3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), grid=st.booleans())
def test_shared_edges_are_hit_exactly_once(seed: int, grid: bool) -> None:
    """A triangulated plate covers each pixel centre once, also with vertices and edges that lie on pixel centres."""
    rng = np.random.default_rng(seed)
    flat = rng.uniform(-4.0, 28.0, (30, 2))
    if grid:
        flat = np.floor(flat) + 0.5
    flat = np.unique(np.concatenate([flat, [[-5.5, -5.5], [29.5, -5.5], [-5.5, 29.5], [29.5, 29.5]]]), axis=0)
    faces = Delaunay(flat).simplices.astype(np.int64)
    flip = rng.random(len(faces)) < 0.5
    faces[flip] = faces[flip][:, ::-1]
    vertices = np.concatenate([flat, np.ones((len(flat), 1))], axis=1).astype(np.float32)
    hits = sum((rasterize_mesh(vertices, face[None], 24, 24)[0] >= 0).astype(int) for face in faces)
    np.testing.assert_array_equal(hits, 1)


def test_top_left_rule() -> None:
    """A square whose sides run through pixel centres owns those on its top and left side only."""
    corners = np.array([[1.5, 1.5, 1.0], [4.5, 1.5, 1.0], [4.5, 3.5, 1.0], [1.5, 3.5, 1.0]], np.float32)
    face_id, _, _ = rasterize_mesh(corners, np.array([[0, 1, 2], [2, 3, 0]]), 6, 5)
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(face_id >= 0, expected)


def test_winding_and_corner_order_change_nothing_but_the_order_of_the_barycentrics() -> None:
    points, faces = random_mesh(3, 30)
    vertices = project(points, 40.0, 24.0, 20.0)
    face_id, weights, depth = rasterize_mesh(vertices, faces, 48, 40, near=0.5)
    for order in ([2, 1, 0], [1, 2, 0]):
        other_id, other_weights, other_depth = rasterize_mesh(vertices, faces[:, order], 48, 40, near=0.5)
        np.testing.assert_array_equal(other_id, face_id)
        np.testing.assert_allclose(other_weights, weights[..., order], atol=1e-6)
        np.testing.assert_allclose(other_depth, depth, rtol=1e-6)


def test_equal_depth_goes_to_the_lower_face() -> None:
    vertices = np.array([[0, 0, 2], [9, 0, 2], [0, 9, 2]], np.float32)
    face_id, _, _ = rasterize_mesh(vertices, np.array([[0, 1, 2], [0, 1, 2]]), 8, 8)
    assert set(np.unique(face_id)) == {-1, 0}


def test_same_bits_for_any_thread_count() -> None:
    points, faces = random_mesh(11, 400)
    vertices = project(points, 120.0, 80.0, 75.0)
    one = rasterize_mesh(vertices, faces, 160, 150, near=0.5, threads=1)
    for threads in (2, 5):
        for a, b in zip(one, rasterize_mesh(vertices, faces, 160, 150, near=0.5, threads=threads), strict=True):
            np.testing.assert_array_equal(a, b)


def test_far_away_and_huge_coordinates_are_exact() -> None:
    """A face whose corners lie at the coordinate limit still splits the picture along its exact edge."""
    far = 2.0**20 - 1
    vertices = np.array([[-far, -far, 1], [far, far, 1], [-far, far, 1]], np.float32)
    face_id, weights, _ = rasterize_mesh(vertices, np.array([[0, 1, 2]]), 33, 33)
    # The face lies below the diagonal, which is its right edge: the pixel centres on it are not its own.
    np.testing.assert_array_equal(face_id >= 0, np.tri(33, k=-1, dtype=bool))
    np.testing.assert_allclose(weights[face_id >= 0].sum(-1), 1.0, atol=1e-6)


def test_vertices_behind_the_near_plane_may_be_anything() -> None:
    vertices = np.array([[1, 1, 1], [7, 1, 1], [1, 7, 1], [np.inf, np.nan, 0], [-1e30, 5, -2]], np.float32)
    face_id, _, _ = rasterize_mesh(vertices, np.array([[0, 1, 3], [4, 1, 2], [0, 1, 2]]), 8, 8)
    assert set(np.unique(face_id)) == {-1, 2}


def test_empty_pictures() -> None:
    for vertices, faces in (
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)),
        (np.ones((3, 3), np.float32), [[0, 1, 2]]),
    ):
        face_id, weights, depth = rasterize_mesh(vertices, np.asarray(faces, np.int32).reshape(-1, 3), 5, 4)
        assert face_id.shape == (4, 5) and weights.shape == (4, 5, 3)
        assert (face_id == -1).all() and (weights == 0).all() and np.isposinf(depth).all()


def test_torch_in_torch_out() -> None:
    points, faces = random_mesh(2, 20)
    vertices = project(points, 40.0, 24.0, 20.0)
    arrays = rasterize_mesh(vertices, faces, 48, 40, near=0.5)
    tensors = rasterize_mesh(
        torch.from_numpy(vertices).requires_grad_(), torch.from_numpy(faces).int(), 48, 40, near=0.5
    )
    for tensor, array in zip(tensors, arrays, strict=True):
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), array)


TRIANGLE = np.array([[0, 0, 1], [4, 0, 1], [0, 4, 1]], np.float32)
FACE = np.array([[0, 1, 2]], np.int32)


def _changed(row: int, column: int, value: float) -> np.ndarray:
    vertices = TRIANGLE.copy()
    vertices[row, column] = value
    return vertices


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vertices": _changed(1, 0, np.nan)}, "vertices: row 1"),
        ({"vertices": _changed(2, 2, np.nan)}, "vertices: row 2"),
        ({"vertices": _changed(2, 1, 2.0**20)}, "vertices: row 2"),
        ({"vertices": TRIANGLE.astype(np.float64)}, "vertices: found float64"),
        ({"vertices": TRIANGLE[:, :2]}, "vertices: found shape"),
        ({"faces": np.array([[0, 1, 2], [0, 1, 3]])}, "faces: row 1"),
        ({"faces": np.array([[0, -1, 2]])}, "faces: row 0"),
        ({"faces": np.array([[0, 1, 2**32]])}, "faces: row 0"),
        ({"faces": FACE.astype(np.float32)}, "faces: found float32"),
        ({"width": 0}, "width: found 0"),
        ({"height": 16385}, "height: found 16385"),
        ({"near": 0.0}, "near: found 0"),
        ({"threads": 0}, "threads"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict, named: str) -> None:
    arguments = {"vertices": TRIANGLE, "faces": FACE, "width": 4, "height": 4, **change}
    with pytest.raises(ValueError, match=named):
        rasterize_mesh(**arguments)
