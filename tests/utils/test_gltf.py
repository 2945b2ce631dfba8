"""glTF files, read by a small reader of the specification that shares nothing with the writer."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.gaussian_renderer.scenes import shell
from tests.tiny import ellipsoid
from utils.errors import InputError, NumericalFault
from utils.io import gltf
from utils.io.gltf import write_mesh_glb, write_splats_glb
from utils.io.obj import UvLayout, cylindrical_layout
from utils.maths.sh import eval_sh

PREFIX = "KHR_gaussian_splatting:"
VERTICES, FACES = ellipsoid()
VERTICES = VERTICES.astype(np.float32)
LAYOUT = cylindrical_layout(VERTICES, FACES)


class Reader:
    """A .glb file: checks the container and every accessor on the way."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        magic, version, length = struct.unpack_from("<4sII", data)
        assert (magic, version, length) == (b"glTF", 2, len(data))
        json_length, json_kind = struct.unpack_from("<I4s", data, 12)
        assert json_kind == b"JSON" and json_length % 4 == 0
        self.json: dict[str, Any] = json.loads(data[20 : 20 + json_length])
        start = 20 + json_length
        binary_length, binary_kind = struct.unpack_from("<I4s", data, start)
        assert binary_kind == b"BIN\0" and binary_length % 4 == 0 and start + 8 + binary_length == len(data)
        self.binary = data[start + 8 :]
        assert self.json["asset"]["version"] == "2.0" and self.json["scenes"][self.json["scene"]]["nodes"] == [0]
        assert [buffer["byteLength"] for buffer in self.json["buffers"]] == [binary_length]
        self.primitive = self.json["meshes"][self.json["nodes"][0]["mesh"]]["primitives"][0]

    def get(self, number: int, kind: str, target: int | None = 34962) -> np.ndarray:
        accessor = self.json["accessors"][number]
        view = self.json["bufferViews"][accessor["bufferView"]]
        assert accessor["type"] == kind and view["buffer"] == 0 and view.get("target") == target
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[kind]
        size = accessor["count"] * width * 4
        assert view["byteOffset"] % 4 == 0 and view["byteLength"] == size
        dtype = {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]
        piece = self.binary[view["byteOffset"] : view["byteOffset"] + size]
        values = np.frombuffer(piece, dtype).reshape(accessor["count"], width)
        for name, bound in (("min", values.min(axis=0)), ("max", values.max(axis=0))):
            if name in accessor:
                assert np.array_equal(np.array(accessor[name], dtype), bound)
        return values

    def attribute(self, name: str, kind: str) -> np.ndarray:
        return self.get(self.primitive["attributes"][name], kind)


def splat_reader(path: Path) -> Reader:
    reader = Reader(path)
    assert reader.json["extensionsUsed"] == ["KHR_gaussian_splatting"] and "extensionsRequired" not in reader.json
    assert reader.primitive["mode"] == 0 and "indices" not in reader.primitive
    extension = reader.primitive["extensions"]["KHR_gaussian_splatting"]
    assert extension["kernel"] == "ellipse" and extension["colorSpace"] == "srgb_rec709_display"
    assert extension["projection"] == "perspective" and extension["sortingMethod"] == "cameraDistance"
    assert {"min", "max"} <= reader.json["accessors"][reader.primitive["attributes"]["POSITION"]].keys()
    return reader


def khr_colour(reader: Reader, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The formulas of the extension's section on lighting, constants as printed there, without the bias."""
    basis = [
        [0.2820947917738781 + 0 * x],
        [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x],
        [
            1.092548430592079 * x * y,
            -1.092548430592079 * y * z,
            0.3153915652525200 * (2 * z**2 - x**2 - y**2),
            -1.092548430592079 * x * z,
            0.5462742152960395 * (x**2 - y**2),
        ],
        [
            -0.5900435899266435 * y * (3 * x**2 - y**2),
            2.890611442640554 * x * y * z,
            -0.4570457994644657 * y * (4 * z**2 - x**2 - y**2),
            0.3731763325901154 * z * (2 * z**2 - 3 * x**2 - 3 * y**2),
            -0.4570457994644657 * x * (4 * z**2 - x**2 - y**2),
            1.445305721320277 * z * (x**2 - y**2),
            -0.5900435899266435 * x * (x**2 - 3 * y**2),
        ],
    ]
    total = np.zeros((len(x), 3))
    for degree, functions in enumerate(basis):
        for i, function in enumerate(functions):
            total += function[:, None] * reader.attribute(f"{PREFIX}SH_DEGREE_{degree}_COEF_{i}", "VEC3")
    return total


def test_splats_are_activated_values(tmp_path: Path) -> None:
    splats = shell(40)
    write_splats_glb(tmp_path / "a.glb", splats)
    reader = splat_reader(tmp_path / "a.glb")
    assert reader.attribute("POSITION", "VEC3") == pytest.approx(splats.means.numpy(), rel=1e-6)
    assert reader.attribute(PREFIX + "SCALE", "VEC3") == pytest.approx(splats.scales.numpy(), rel=1e-6)
    assert reader.attribute(PREFIX + "OPACITY", "SCALAR")[:, 0] == pytest.approx(splats.opacities.numpy(), rel=1e-6)
    w, x, y, z = splats.quats.numpy().T
    rotation = reader.attribute(PREFIX + "ROTATION", "VEC4")
    assert rotation == pytest.approx(np.stack([x, y, z, w], 1), abs=1e-6)
    assert np.linalg.norm(rotation, axis=1) == pytest.approx(1, abs=1e-6)


def test_harmonics_give_the_same_colour_in_every_direction(tmp_path: Path) -> None:
    splats = shell(40)
    write_splats_glb(tmp_path / "a.glb", splats)
    reader = splat_reader(tmp_path / "a.glb")
    seeded = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(40, 3, generator=seeded, dtype=torch.float64), dim=-1)
    expected = eval_sh(splats.sh, directions, 3).numpy()
    assert khr_colour(reader, *directions.numpy().T) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_only_whole_degrees_in_use_are_written(tmp_path: Path, degree: int) -> None:
    write_splats_glb(tmp_path / "a.glb", replace(shell(3), sh_degree=degree))
    names = [name for name in splat_reader(tmp_path / "a.glb").primitive["attributes"] if "SH_DEGREE" in name]
    assert names == [f"{PREFIX}SH_DEGREE_{d}_COEF_{i}" for d in range(degree + 1) for i in range(2 * d + 1)]


def test_fallback_colour_is_linear_light(tmp_path: Path) -> None:
    srgb = torch.tensor([[0.0, 0.02, 0.5], [0.735357, 1.0, 2.0]], dtype=torch.float64)
    splats = replace(shell(2), sh=((srgb - 0.5) / 0.28209479177387814)[:, None], sh_degree=0)
    write_splats_glb(tmp_path / "a.glb", splats)
    colour = splat_reader(tmp_path / "a.glb").attribute("COLOR_0", "VEC4")
    assert colour[:, :3] == pytest.approx(np.array([[0, 0.02 / 12.92, 0.214041], [0.5, 1, 1]]), abs=2e-6)
    assert colour[:, 3] == pytest.approx(splats.opacities.numpy(), rel=1e-6)


@pytest.mark.parametrize("name", ["means", "scales", "sh"])
def test_splats_that_are_not_finite_are_refused(tmp_path: Path, name: str) -> None:
    splats = shell(4)
    getattr(splats, name)[1] = float("inf")
    with pytest.raises(NumericalFault, match=f"{name}: row 1"):
        write_splats_glb(tmp_path / "a.glb", splats)
    with pytest.raises(InputError, match="no splats"):
        write_splats_glb(tmp_path / "a.glb", shell(0))
    assert not list(tmp_path.iterdir())


def clip(count: int) -> list[np.ndarray]:
    """The ellipsoid growing, drifting and shearing."""
    r = np.random.default_rng(3)
    return [
        (VERTICES * (1 + 0.2 * i) + 0.01 * i * r.normal(size=VERTICES.shape)).astype(np.float32) for i in range(count)
    ]


def pose(reader: Reader, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [F, 3, 3] and normals [F, 3, 3] as a player shows them at a time."""
    weights = np.zeros(0)
    if "animations" in reader.json:
        animation = reader.json["animations"][0]
        (channel,) = animation["channels"]
        assert channel["target"] == {"node": 0, "path": "weights"}
        sampler = animation["samplers"][channel["sampler"]]
        assert sampler["interpolation"] == "LINEAR"
        times = reader.get(sampler["input"], "SCALAR", None)[:, 0]
        assert "min" in reader.json["accessors"][sampler["input"]]
        output = reader.get(sampler["output"], "SCALAR", None).reshape(len(times), -1)
        weights = np.array([np.interp(time, times, column) for column in output.T])
    positions = reader.attribute("POSITION", "VEC3").astype(np.float64)
    normals = reader.attribute("NORMAL", "VEC3").astype(np.float64)
    targets = reader.primitive.get("targets", [])
    assert len(targets) == len(weights)
    for weight, target in zip(weights, targets, strict=True):
        assert "min" in reader.json["accessors"][target["POSITION"]]
        positions = positions + weight * reader.get(target["POSITION"], "VEC3")
        normals = normals + weight * reader.get(target["NORMAL"], "VEC3")
    indices = reader.get(reader.primitive["indices"], "SCALAR", 34963)[:, 0]
    assert indices.max() == len(positions) - 1 and reader.primitive.get("mode", 4) == 4
    return positions[indices].reshape(-1, 3, 3), normals[indices].reshape(-1, 3, 3)


@pytest.mark.parametrize("times", [(0.0,), (0.0, 0.2), (0.0, 0.04, 0.2, 1.5)])
def test_players_see_every_frame_at_its_time(tmp_path: Path, times: Sequence[float]) -> None:
    frames = clip(len(times))
    write_mesh_glb(tmp_path / "a.glb", frames, times, FACES, LAYOUT)
    reader = Reader(tmp_path / "a.glb")
    assert len(reader.json["nodes"]) == len(reader.json["meshes"]) == 1
    for time, vertices in zip(times, frames, strict=True):
        assert pose(reader, time)[0] == pytest.approx(vertices[FACES], abs=1e-7)
    for i in range(len(times) - 1):
        middle = (frames[i] + frames[i + 1]) / 2
        assert pose(reader, (times[i] + times[i + 1]) / 2)[0] == pytest.approx(middle[FACES], abs=1e-6)
    if len(times) > 1:
        mesh = reader.json["meshes"][0]
        assert mesh["weights"] == [0] * (len(times) - 1) and len(mesh["extras"]["targetNames"]) == len(times) - 1
    else:
        assert "animations" not in reader.json and "targets" not in reader.primitive


def test_normals_point_outwards_in_every_frame(tmp_path: Path) -> None:
    turn = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], np.float32)
    write_mesh_glb(tmp_path / "a.glb", [VERTICES, VERTICES @ turn.T], (0, 1), FACES, LAYOUT)
    reader = Reader(tmp_path / "a.glb")
    for time, rotation in ((0, np.eye(3)), (1, turn)):
        _, normals = pose(reader, time)
        assert np.linalg.norm(normals, axis=2) == pytest.approx(1, abs=1e-6)
        gradient = (VERTICES / np.array([0.08, 0.12, 0.1]) ** 2)[FACES]  # of the ellipsoid's equation
        gradient = gradient / np.linalg.norm(gradient, axis=2, keepdims=True) @ rotation.T
        assert (normals * gradient).sum(axis=2).min() > 0.9  # a coarse mesh


def test_vertices_are_doubled_only_at_the_seam_and_v_counts_from_the_top(tmp_path: Path) -> None:
    write_mesh_glb(tmp_path / "a.glb", clip(1), (0,), FACES, LAYOUT)
    reader = Reader(tmp_path / "a.glb")
    pairs = {(v, t) for v, t in zip(FACES.ravel().tolist(), LAYOUT.faces.ravel().tolist(), strict=True)}
    uvs = reader.attribute("TEXCOORD_0", "VEC2")
    assert len(uvs) == len(pairs) > len(VERTICES)
    indices = reader.get(reader.primitive["indices"], "SCALAR", 34963)[:, 0]
    expected = LAYOUT.uvs[LAYOUT.faces.ravel()]
    assert uvs[indices] == pytest.approx(np.stack([expected[:, 0], 1 - expected[:, 1]], 1), abs=1e-6)
    material = reader.json["materials"][reader.primitive["material"]]
    assert material["doubleSided"] and material["pbrMetallicRoughness"]["metallicFactor"] == 0


def test_a_face_without_area_has_a_unit_normal(tmp_path: Path) -> None:
    layout = UvLayout(np.zeros((3, 2), np.float32), np.array([[0, 1, 2]]))
    write_mesh_glb(tmp_path / "a.glb", [np.zeros((3, 3), np.float32)], (0,), np.array([[0, 1, 2]]), layout)
    assert Reader(tmp_path / "a.glb").attribute("NORMAL", "VEC3").tolist() == [[0, 0, 1]] * 3


def test_broken_and_too_long_clips_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = clip(3)
    monkeypatch.setattr(gltf, "LARGEST", 10_000)
    with pytest.raises(InputError, match="glTF allows 10000.*fewer --frames"):
        write_mesh_glb(tmp_path / "a.glb", frames, (0, 1, 2), FACES, LAYOUT)
    frames[1][7, 2] = np.nan
    with pytest.raises(NumericalFault, match="frame 1"):
        write_mesh_glb(tmp_path / "a.glb", frames, (0, 1, 2), FACES, LAYOUT)
    assert not list(tmp_path.iterdir())
