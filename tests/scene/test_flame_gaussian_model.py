"""The avatar: frames, equivariance, files in the original's layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from arguments import read_preset
from scene.datasets.flame_params import read_motion_file
from scene.flame_gaussian_model import FlameGaussianModel
from scene.gaussian_model import PLY, GaussianModel, ModelOptions
from scene.rigs import MOTION_FILE, FlameRig, StillRig
from tests.scene.avatars import TIMESTEPS, avatar, motion, rig
from utils.contracts import Camera, Mesh, Motion, Points
from utils.engine.build import HEAD_EXTENTS, scene_extent
from utils.engine.optimiser import Optimiser
from utils.engine.options import options_from_flags
from utils.errors import InputError
from utils.maths.rotations import axis_angle_to_matrix, quaternion_to_matrix
from utils.maths.sh import SH_0


def test_start_is_one_grey_gaussian_per_face(tmp_path: Path) -> None:
    model = FlameGaussianModel.on_rig(rig(tmp_path), ModelOptions(), 0, "cpu")
    assert torch.equal(model.binding, torch.arange(model.rig.flame.faces.shape[0]))
    assert not model.columns["means"].any() and bool((model.local_scales == 1).all())
    torch.testing.assert_close(model.opacity, torch.full_like(model.opacity, 0.1))
    assert float(model.columns["sh0"].detach().abs().max()) < 1 / 255 and model.sh_degree == 0
    mesh = model.rig(1)
    corners = mesh.vertices[mesh.faces].detach()
    torch.testing.assert_close(model.place_on(mesh).means.detach(), corners.mean(1))


def test_splats_move_turn_and_grow_with_the_mesh(tmp_path: Path) -> None:
    """The axioms of the rig: a rigid motion of the mesh moves the splats, a scale scales them."""
    model = avatar(tmp_path)
    mesh = model.rig(2)
    turn = axis_angle_to_matrix(torch.tensor([0.3, -1.1, 0.7]))
    shift, factor = torch.tensor([0.1, -0.2, 0.4]), 1.7
    here = model.place_on(mesh)
    there = model.place_on(Mesh(factor * mesh.vertices @ turn.T + shift, mesh.faces))
    torch.testing.assert_close(there.means, factor * here.means @ turn.T + shift, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(there.scales, factor * here.scales, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        quaternion_to_matrix(there.quats), turn @ quaternion_to_matrix(here.quats), rtol=1e-4, atol=1e-5
    )


def test_more_timesteps_than_its_file_could_give_back_are_refused_at_once(tmp_path: Path) -> None:
    flame, short = rig(tmp_path).flame, motion()
    count = 1 + (1 << 30) // (12 * flame.n_vertices)  # the zeros of dynamic_offset alone fill the file
    long = {name: values[:1].expand(count, *values.shape[1:]) for name, values in short.per_frame.items()}
    with pytest.raises(InputError, match="test: timesteps: takes [0-9]{10} bytes in the files of an avatar"):
        FlameRig(flame, Motion(long, short.static), "test", "cpu")


def test_folder_round_trip_in_the_originals_layout(tmp_path: Path) -> None:
    model = avatar(tmp_path)
    model.save(tmp_path / "saved")
    header, _, body = (tmp_path / "saved" / PLY).read_bytes().partition(b"end_header\n")
    assert header.rstrip().endswith(b"property float binding_0") and len(body) == 252 * len(model)
    with np.load(tmp_path / "saved" / MOTION_FILE) as arrays:
        vertices = model.rig.flame.n_vertices
        shapes = {name: arrays[name].shape for name in arrays}
        assert {arrays[name].dtype for name in arrays} == {np.dtype(np.float32)}
    assert shapes == {"rotation": (4, 3), "neck_pose": (4, 3), "jaw_pose": (4, 3), "eyes_pose": (4, 6), "expr": (4, 5),
                      "translation": (4, 3), "shape": (7,), "static_offset": (1, vertices, 3),
                      "dynamic_offset": (TIMESTEPS, vertices, 3)}  # fmt: skip
    again = FlameGaussianModel.load(
        tmp_path / "saved", rig(tmp_path, read_motion_file(tmp_path / "saved" / MOTION_FILE)), "cpu"
    )
    for timestep in range(TIMESTEPS):
        ours, theirs = model.place_on(model.rig(timestep)), again.place_on(again.rig(timestep))
        for name in ("means", "quats", "scales", "opacities", "sh"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_binding_outside_the_mesh_is_refused(tmp_path: Path) -> None:
    model = avatar(tmp_path)
    model.binding[3] = 10_000
    model.save(tmp_path / "saved")
    with pytest.raises(InputError, match="binding_0"):
        FlameGaussianModel.load(tmp_path / "saved", model.rig, "cpu")


@pytest.mark.parametrize("name, width", [("jaw_pose", 6), ("eyes_pose", 3), ("expr", 6)])
def test_motion_that_does_not_fit_is_refused(tmp_path: Path, name: str, width: int) -> None:
    moved = motion()
    bad = Motion({**moved.per_frame, name: torch.zeros(TIMESTEPS, width)}, moved.static)
    with pytest.raises(InputError, match=name):
        rig(tmp_path, bad)


def test_offsets(tmp_path: Path) -> None:
    """A static offset moves the rest mesh; a dynamic one only its timestep; one of another topology is refused."""
    plain = rig(tmp_path)
    vertices = plain.flame.n_vertices
    offset = torch.full((vertices, 3), 0.01)
    moved = motion()
    static = FlameRig(plain.flame, Motion(moved.per_frame, {**moved.static, "static_offset": offset}), "t", "cpu")
    torch.testing.assert_close(static.rest_mesh().vertices, plain.rest_mesh().vertices + 0.01)
    dynamic = torch.zeros(TIMESTEPS, vertices, 3)
    dynamic[2] = 0.01
    lively = FlameRig(plain.flame, Motion({**moved.per_frame, "dynamic_offset": dynamic}, moved.static), "t", "cpu")
    assert torch.equal(lively(1).vertices, plain(1).vertices) and not torch.equal(lively(2).vertices, plain(2).vertices)
    wrong = Motion(moved.per_frame, {**moved.static, "static_offset": torch.zeros(vertices + 1, 3)})
    with pytest.raises(InputError, match="static_offset"):
        FlameRig(plain.flame, wrong, "t", "cpu")


def test_extent_comes_from_the_head(tmp_path: Path) -> None:
    head = rig(tmp_path)
    vertices = head.rest_mesh().vertices
    radius = float((vertices - vertices.mean(0)).norm(dim=1).max())
    camera = Camera(torch.eye(4), torch.eye(3), 8, 8)
    moved = torch.eye(4)
    moved[0, 3] = 2.0
    other = replace(camera, world_to_camera=moved)
    assert scene_extent("head", head, [camera]) == pytest.approx(HEAD_EXTENTS * radius)
    assert scene_extent("cameras", head, [camera]) == 0.0
    assert scene_extent("cameras", head, [camera, other]) == pytest.approx(1.1)
    assert scene_extent("head", StillRig("cpu"), [camera, other]) == pytest.approx(1.1)


def test_the_still_rig_is_the_world() -> None:
    """Gaussians on its face are where they say they are, to the bit."""
    random = torch.Generator().manual_seed(0)
    positions, colours = torch.randn(50, 3, generator=random), torch.rand(50, 3, generator=random)
    scene = GaussianModel.on_rig(StillRig("cpu"), ModelOptions(), 0, "cpu", Points(positions, colours))
    splats = scene.place_on(scene.rig(7))
    assert torch.equal(splats.means, positions)
    torch.testing.assert_close(splats.scales, scene.local_scales, rtol=1e-6, atol=0)  # two ways to compute exp
    distances = (positions[:, None] - positions).norm(dim=-1).sort(dim=1).values[:, 1:4]
    torch.testing.assert_close(scene.local_scales[:, 0], distances.square().mean(1).sqrt())
    torch.testing.assert_close(splats.quats, torch.tensor([1.0, 0, 0, 0]).expand(50, 4))
    torch.testing.assert_close(SH_0 * splats.sh[:, 0] + 0.5, colours)
    assert scene_extent("head", scene.rig, [Camera(torch.eye(4), torch.eye(3), 8, 8)]) == 0.0


def test_rates_of_the_original(tmp_path: Path) -> None:
    """GaussianAvatars, section 4: position rate log-linear from 5e-3 to 5e-5 times the extent; SH degree every 1000."""
    model = avatar(tmp_path)
    options = options_from_flags(read_preset("gaussian_avatars"), "preset").optimiser
    adam = Optimiser(options, model, 1.2, True)
    for step, rate, degree in ((0, 5e-3, 0), (300_000, 5e-4, 3), (600_000, 5e-5, 3), (1999, None, 1)):
        adam.schedule(step)
        assert rate is None or adam.rates["means"] == pytest.approx(1.2 * rate)
        assert model.sh_degree == degree
    assert adam.rates["shN"] == pytest.approx(0.0025 / 20) and adam.rates["opacities"] == 0.05
