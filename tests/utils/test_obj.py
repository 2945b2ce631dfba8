"""OBJ files and texture coordinates: round trips, dialects, damaged files, the seam, the teeth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flame_model import teeth
from tests.tiny import SECTORS, ellipsoid
from utils.errors import InputError, NumericalFault
from utils.io.obj import ObjMesh, UvLayout, cylindrical_layout, read_obj, template_layout, write_obj

VERTICES, FACES = ellipsoid()
VERTICES = VERTICES.astype(np.float32)
TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
LINES = ["v 0 0 0", "v 1 2", "v 1 2 x", "vt 0 1", "vt", "f 1 2 3", "f 1/1 1/1 1/1", "f", "f 1/ 1 1", "f / / /",
         "f 1/1/1 2 3", "#", "f ² 1 1", "v 1e999 0 0"]  # fmt: skip


def parse(folder: Path, text: str) -> ObjMesh:
    (folder / "a.obj").write_text(text)
    return read_obj(folder / "a.obj")


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    r = np.random.default_rng(0)
    vertices = (r.normal(size=(50, 3)) * 10.0 ** r.integers(-8, 4, (50, 1))).astype(np.float32)
    faces, uvs = r.integers(0, 50, (80, 3)), r.random((60, 2)).astype(np.float32)
    layout = UvLayout(uvs, r.integers(0, 60, (80, 3)))
    write_obj(tmp_path / "a.obj", vertices, faces, layout)
    back = read_obj(tmp_path / "a.obj")
    assert back.layout is not None
    for found, expected in ((back.vertices, vertices), (back.faces, faces), (back.layout.uvs, uvs)):
        assert np.array_equal(found, expected)
    assert np.array_equal(back.layout.faces, layout.faces)
    write_obj(tmp_path / "b.obj", vertices, faces)
    back = read_obj(tmp_path / "b.obj")
    assert back.layout is None and np.array_equal(back.faces, faces)


def test_written_lines_are_plain_obj(tmp_path: Path) -> None:
    layout = UvLayout(np.array([[0, 0], [0.5, 0.25], [1, 1], [0.125, 0]], np.float32), np.array([[1, 2, 3]]))
    write_obj(
        tmp_path / "a.obj", np.array([[0, 0, 0], [1.5, 0, 0], [0, -2, 0]], np.float32), np.array([[0, 1, 2]]), layout
    )
    lines = (tmp_path / "a.obj").read_text().splitlines()
    assert lines[1:] == ["v 0 0 0", "v 1.5 0 0", "v 0 -2 0", "vt 0 0", "vt 0.5 0.25", "vt 1 1", "vt 0.125 0",
                         "f 1/2 2/3 3/4"]  # fmt: skip


@pytest.mark.parametrize("face", ["f 3 1 2", "f 3//9 1//9 2//9", "f 3/1/1 1/3/1 2/2/1", "f 3/1 1/3 2/2  # last"])
def test_dialects_of_a_face(tmp_path: Path, face: str) -> None:
    mesh = parse(tmp_path, f"# c\nmtllib x\no head\n{TRIANGLE}vt 0 0\nvt 1 0 0\nvt 0 1\nvn 0 0 1\ns 1\n{face}\n")
    assert mesh.faces.tolist() == [[2, 0, 1]]
    assert (mesh.layout is None) == ("/1" not in face)
    if mesh.layout is not None:
        assert mesh.layout.faces.tolist() == [[0, 2, 1]] and mesh.layout.uvs.tolist() == [[0, 0], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds 0 vertices"),
        (TRIANGLE, "and 0 faces"),
        (TRIANGLE + "f 1 2 3 1\n", "line 4: has a face of 4 corners"),
        (TRIANGLE + "f 1 2 4\n", "line 4: found '4', expected one of 3 vertices"),
        (TRIANGLE + "f 1 2 0\n", "line 4: found '0'"),
        (TRIANGLE + "f -1 -2 -3\n", "line 4: found '-1'"),
        (TRIANGLE + "f 1 2 99999999999999999999\n", "line 4: found '9999"),
        (TRIANGLE + "f 1/1 2/1 3/1\n", "line 4: found '1', expected one of 0 texture coordinates"),
        (TRIANGLE + "vt 0 0\nf 1 2 3\nf 1/1 2/1 3/1\n", "line 5: has a corner without texture coordinates"),
        (TRIANGLE + "vt 0\nvt 1\nf 1/1 2/1 3/1\n", "line 4: found '0', expected 2 finite numbers"),
        ("v 0 0 nan\n" + TRIANGLE + "f 1 2 3\n", "line 1: found '0 0 nan'"),
        (TRIANGLE + "v 0 0 1e300\nf 1 2 3\n", "line 4: found '0 0 1e300'"),
        (TRIANGLE + "v 0 0\nf 1 2 3\n", "line 4: found '0 0', expected 3 finite"),
        (TRIANGLE + "v a b c\nf 1 2 3\n", "line 4: found 'a b c'"),
        (TRIANGLE + "v 0 1_0 0\nf 1 2 3\n", "line 4: found '0 1_0 0'"),
    ],
)
def test_damaged_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(tmp_path, text)
    assert message in str(error.value)


def test_what_is_no_text_and_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_bytes(b"v 0 0 0\n\xff\xfe")
    with pytest.raises(InputError, match="byte 8: is not text"):
        read_obj(tmp_path / "a.obj")
    with pytest.raises(InputError, match="none.obj: does not exist"):
        read_obj(tmp_path / "none.obj")
    with pytest.raises(InputError, match="is not a regular file"):
        read_obj(tmp_path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=9))
def test_any_lines_are_read_or_refused(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "a.obj").write_text("\n".join(lines), "utf-8")
    try:
        mesh = read_obj(tmp_path / "a.obj")
    except InputError:
        return
    assert mesh.faces.max() < len(mesh.vertices) and mesh.faces.min() >= 0


def test_a_vertex_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    vertices = VERTICES.copy()
    vertices[5, 1] = np.inf
    with pytest.raises(NumericalFault, match="vertex 5"):
        write_obj(tmp_path / "a.obj", vertices, FACES)
    assert not list(tmp_path.iterdir())


def test_the_cylinder_doubles_coordinates_at_the_back_only() -> None:
    layout = cylindrical_layout(VERTICES, FACES)
    assert layout.faces.shape == FACES.shape and layout.faces.max() == len(layout.uvs) - 1
    assert layout.uvs.min() >= 0 and layout.uvs.max() == 1
    corners = np.unique(np.stack([FACES.ravel(), layout.faces.ravel()], 1), axis=0)
    doubled = np.flatnonzero(np.bincount(corners[:, 0]) > 1)
    poles = {0, len(VERTICES) - 1}
    back = {i for i, v in enumerate(VERTICES) if abs(v[0]) < 1e-6 and v[2] < 0}
    assert len(back) == 7 and set(doubled) == poles | back  # one vertex of each ring lies on the cut
    triangles = layout.uvs[layout.faces]
    widest = np.arctan2(0.08 * np.sin(np.pi / 2 - np.pi / SECTORS), 0.1 * np.cos(np.pi / 2 - np.pi / SECTORS))
    expected = (np.pi - 2 * widest) / (2 * np.pi)  # of the sector at the ear
    assert np.ptp(triangles[:, :, 0], axis=1).max() == pytest.approx(expected, rel=1e-4)


def test_a_pole_stands_between_the_other_corners_of_each_face() -> None:
    layout = cylindrical_layout(VERTICES, FACES)
    for pole in (0, len(VERTICES) - 1):
        u = layout.uvs[layout.faces][(FACES == pole).any(axis=1)][:, :, 0]
        at = np.argwhere(FACES[(FACES == pole).any(axis=1)] == pole)[:, 1]
        rows = np.arange(len(u))
        others = (u.sum(axis=1) - u[rows, at]) / 2
        assert len(u) == SECTORS and u[rows, at] == pytest.approx(others, abs=1e-6)


def test_the_cylinder_is_seen_from_outside_with_the_face_in_the_middle() -> None:
    layout = cylindrical_layout(VERTICES, FACES)
    a, b, c = (layout.uvs[layout.faces[:, i]] for i in range(3))
    assert (
        np.cross(np.pad(b - a, ((0, 0), (0, 1))), np.pad(c - a, ((0, 0), (0, 1))))[:, 2] > 0
    ).all()  # none is flipped
    where = dict(zip(FACES.ravel().tolist(), layout.uvs[layout.faces.ravel()].tolist(), strict=True))
    front = [where[i] for i, v in enumerate(VERTICES) if abs(v[0]) < 1e-6 and v[2] > 0]
    assert (
        np.ptp([u for u, _ in front]) < 1e-6 and 0.4 < front[0][0] <= 0.5
    )  # 0.5 before the strip at the cut was added
    left = [where[i][0] for i, v in enumerate(VERTICES) if v[0] > 0.07]
    assert left and min(left) > 0.5
    heights = np.array([where[i][1] for i in range(len(VERTICES))])
    assert heights == pytest.approx((VERTICES[:, 1] + 0.12) / 0.24, abs=1e-6)


def test_a_flat_or_lopsided_mesh_still_unwraps() -> None:
    flat = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    for vertices in (flat, flat * 0, flat[:, [2, 1, 0]]):
        layout = cylindrical_layout(vertices, np.array([[0, 1, 2]]))
        assert np.isfinite(layout.uvs).all() and layout.uvs.min() >= 0 and layout.uvs.max() <= 1


def write_template(path: Path, faces: np.ndarray = FACES) -> UvLayout:
    layout = cylindrical_layout(VERTICES, faces)
    write_obj(path, VERTICES * 3 + 1, faces, layout)  # FLAME's file has other vertex positions than the model
    return layout


def test_template_of_the_same_topology(tmp_path: Path) -> None:
    layout = write_template(tmp_path / "a.obj")
    found = template_layout(tmp_path / "a.obj", FACES)
    assert np.array_equal(found.uvs, layout.uvs) and np.array_equal(found.faces, layout.faces)


def test_teeth_get_the_place_that_existing_textures_have(tmp_path: Path) -> None:
    layout = write_template(tmp_path / "a.obj")
    n, m = len(VERTICES), len(layout.uvs)
    found = template_layout(tmp_path / "a.obj", np.concatenate([FACES, teeth.faces() + n]))
    assert len(found.uvs) == m + 120 and len(found.faces) == len(FACES) + 168
    assert np.array_equal(found.faces[-168:] - m, teeth.faces())
    rows = found.uvs[m:].reshape(8, 15, 2)
    assert rows[:, 0, 0] == pytest.approx(0.62) and rows[:, -1, 0] == pytest.approx(0.38)
    assert rows[:, 7, 0] == pytest.approx(0.5)
    step = (0.9917 - 0.9575) / 6
    expected = [0.9917 - i * step for i in (3, 2, 0, 1, 3, 4, 6, 5)]
    assert rows[:, 4, 1] == pytest.approx(expected, abs=1e-6)


def test_templates_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_template(tmp_path / "a.obj")
    n, path = len(VERTICES), tmp_path / "a.obj"
    changed = FACES.copy()
    changed[3] = changed[3, [1, 2, 0]]
    cases = [
        (FACES[:-1], "has 140 faces, the run's mesh has 139"),
        (np.concatenate([FACES, FACES[:5]]), "has 140 faces, the run's mesh has 145"),
        (changed, "face 3: has vertices"),
        (
            np.concatenate([FACES, teeth.faces() + n + 1]),
            f"has {n} vertices, the teeth of the run's mesh start at {n + 1}",
        ),
    ]
    for faces, message in cases:
        with pytest.raises(InputError) as error:
            template_layout(path, faces)
        assert message in str(error.value)
    write_obj(path, VERTICES, FACES)
    with pytest.raises(InputError, match="no texture coordinates"):
        template_layout(path, FACES)
