"""World-space splat files: exact columns, readable by others, and the same picture as the splats they came from."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData

from gaussian_renderer import build_renderer
from tests.gaussian_renderer.scenes import background, camera, shell
from utils.contracts import Camera, Splats
from utils.errors import NumericalFault
from utils.io.ply import read_gaussian_ply
from utils.io.splat_files import turned_for_viewers, write_dot_splat, write_splat_ply
from utils.maths.rotations import quaternion_to_matrix

NAMES = (
    "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2".split()
    + [f"f_rest_{i}" for i in range(45)]
    + "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
)


def picture(splats: Splats, view: Camera) -> torch.Tensor:
    with torch.no_grad():
        return build_renderer("reference")(splats, view, background(splats.means.dtype)).image


def read_back(path: Path) -> Splats:
    """A world-space PLY -> activated splats, float64."""
    columns, binding = read_gaussian_ply(path)
    assert binding is None
    c = {name: torch.from_numpy(values).double() for name, values in columns.items()}
    sh = torch.cat([c["sh0"], c["shN"]], dim=1)
    return Splats(c["means"], c["quats"], c["scales"].exp(), c["opacities"].sigmoid(), sh, 3)


def test_ply_has_the_62_columns_that_importers_expect(tmp_path: Path) -> None:
    splats = shell(7)
    write_splat_ply(tmp_path / "a.ply", splats)
    data = (tmp_path / "a.ply").read_bytes()
    end = data.index(b"end_header\n") + len(b"end_header\n")
    assert len(data) - end == 7 * 248
    header = ["ply", "format binary_little_endian 1.0", "element vertex 7", *(f"property float {n}" for n in NAMES)]
    assert data[:end].decode() == "\n".join([*header, "end_header", ""])
    for i in range(7):
        row = dict(zip(NAMES, struct.unpack("<62f", data[end + 248 * i : end + 248 * (i + 1)]), strict=True))
        assert [row[n] for n in "xyz"] == pytest.approx(splats.means[i].tolist(), rel=1e-6)
        assert [np.exp(row[f"scale_{k}"]) for k in range(3)] == pytest.approx(splats.scales[i].tolist(), rel=1e-5)
        assert 1 / (1 + np.exp(-row["opacity"])) == pytest.approx(float(splats.opacities[i]), rel=1e-5)
        assert [row[f"rot_{k}"] for k in range(4)] == pytest.approx(splats.quats[i].tolist(), abs=1e-6)
        assert [row[f"f_dc_{k}"] for k in range(3)] == pytest.approx(splats.sh[i, 0].tolist(), rel=1e-6)
        rest = [float(splats.sh[i, k, c]) for c in range(3) for k in range(1, 16)]  # channel by channel
        assert [row[f"f_rest_{k}"] for k in range(45)] == pytest.approx(rest, rel=1e-6)
        assert row["nx"] == row["ny"] == row["nz"] == 0


@pytest.mark.parametrize(("held", "used"), [(0, 0), (1, 1), (3, 1)])
def test_coefficients_above_the_degree_in_use_are_zero(tmp_path: Path, held: int, used: int) -> None:
    splats = shell(5)
    splats = replace(splats, sh=splats.sh[:, : (held + 1) ** 2], sh_degree=used)
    write_splat_ply(tmp_path / "a.ply", splats)
    rows = PlyData.read(str(tmp_path / "a.ply"))["vertex"].data
    assert rows.dtype.itemsize == 248
    rest = np.stack([rows[f"f_rest_{k}"] for k in range(45)], axis=1).reshape(5, 3, 15)
    kept = (used + 1) ** 2 - 1
    assert not rest[:, :, kept:].any() and rest[:, :, :kept].all()


def test_quaternions_are_written_with_unit_length(tmp_path: Path) -> None:
    splats = shell(5)
    write_splat_ply(tmp_path / "a.ply", replace(splats, quats=splats.quats * 3))
    assert torch.allclose(read_back(tmp_path / "a.ply").quats, splats.quats, atol=1e-6)


def test_opacity_and_scale_at_their_limits_stay_finite(tmp_path: Path) -> None:
    splats = shell(2)
    splats = replace(splats, opacities=torch.tensor([0.0, 1.0]), scales=torch.zeros(2, 3))
    write_splat_ply(tmp_path / "a.ply", splats)
    back = read_back(tmp_path / "a.ply")
    assert back.opacities.tolist() == pytest.approx([0, 1], abs=1e-6) and float(back.scales.max()) < 1e-11


@pytest.mark.parametrize("write", [write_splat_ply, write_dot_splat])
@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "sh"])
def test_what_is_not_finite_is_refused(tmp_path: Path, write, name: str) -> None:
    splats = shell(4)
    getattr(splats, name)[2] = float("nan")
    with pytest.raises(NumericalFault, match="a.file"):
        write(tmp_path / "a.file", splats)
    assert not list(tmp_path.iterdir())


def test_ply_shows_the_same_picture(tmp_path: Path) -> None:
    splats = shell(300)
    write_splat_ply(tmp_path / "a.ply", splats)
    error = (picture(read_back(tmp_path / "a.ply"), camera()) - picture(splats, camera())).abs()
    # Rounding to float32 moves a few pixels across the rule "alpha < 1/255 contributes nothing".
    assert float(error.max()) < 2 / 255 and float(error.mean()) < 1e-5 and float((error > 1e-5).double().mean()) < 0.01


def test_turned_splats_look_the_same_to_a_turned_camera() -> None:
    """Scene and camera turned by 180 degrees about z and grown ten times: nothing may change, colour included."""
    splats, view = shell(300), camera()
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    pose = view.world_to_camera @ turn
    pose[:3, 3] *= 10
    turned_view = Camera(pose, view.intrinsics, view.width, view.height, 10 * view.near, 10 * view.far)
    turned = turned_for_viewers(splats)
    expected = picture(splats, view)
    assert torch.allclose(picture(turned, turned_view), expected, atol=1e-9)
    for degree in (1, 2, 3):  # and each degree matters: left as it was, it shows
        kept = turned.sh.clone()
        kept[:, degree**2 : (degree + 1) ** 2] = splats.sh[:, degree**2 : (degree + 1) ** 2]
        assert float((picture(replace(turned, sh=kept), turned_view) - expected).abs().max()) > 0.02


def test_turning_moves_every_splat_and_its_axes() -> None:
    splats = shell(20)
    turned = turned_for_viewers(splats)
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    assert torch.allclose(turned.means, 10 * splats.means @ turn)
    assert torch.allclose(turned.scales, 10 * splats.scales) and torch.equal(turned.opacities, splats.opacities)
    expected = turn @ quaternion_to_matrix(splats.quats)
    assert torch.allclose(quaternion_to_matrix(turned.quats), expected, atol=1e-12)


def test_dot_splat_bytes(tmp_path: Path) -> None:
    splats = shell(9)
    write_dot_splat(tmp_path / "a.splat", splats)
    data = (tmp_path / "a.splat").read_bytes()
    assert len(data) == 9 * 32
    order = sorted(range(9), key=lambda i: -float(splats.opacities[i] * splats.scales[i].prod()))
    for place, i in enumerate(order):
        values = struct.unpack("<6f8B", data[32 * place : 32 * (place + 1)])
        assert values[:3] == pytest.approx(splats.means[i].tolist(), rel=1e-6)
        assert values[3:6] == pytest.approx(splats.scales[i].tolist(), rel=1e-6)
        colour = [min(max(0.5 + 0.28209479 * v, 0), 1) for v in splats.sh[i, 0].tolist()] + [float(splats.opacities[i])]
        assert [v / 255 for v in values[6:10]] == pytest.approx(colour, abs=0.5 / 255 + 1e-6)
        assert [(v - 128) / 128 for v in values[10:]] == pytest.approx(splats.quats[i].tolist(), abs=1.01 / 128)


def test_no_splats_make_an_empty_file(tmp_path: Path) -> None:
    write_dot_splat(tmp_path / "a.splat", shell(0))
    write_splat_ply(tmp_path / "a.ply", shell(0))
    assert (tmp_path / "a.splat").read_bytes() == b"" and not len(read_back(tmp_path / "a.ply").means)
