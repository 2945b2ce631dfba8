"""scripts/export.py around a tiny trained avatar: what other programs get is what our renderer draws."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData

import train
from gaussian_renderer import build_renderer
from scene.gaussian_model import GaussianModel
from scene.rigs.still import StillRig
from scripts import export
from tests.gaussian_renderer.scenes import background, camera
from tests.tiny import write_tiny
from tests.utils.test_gltf import Reader, pose
from utils.contracts import Splats
from utils.engine.build import LoadedAvatar, load_avatar
from utils.errors import run_main
from utils.io.obj import cylindrical_layout, read_obj, write_obj
from utils.io.ply import read_gaussian_ply, write_gaussian_ply

STEPS = 3
QUIET = ["--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run with strong colours in every degree, whose pictures are no longer there."""
    torch.set_num_threads(1)
    data = tmp_path_factory.mktemp("tiny")
    run = data / "run"
    flags = write_tiny(data / "data")
    assert run_main(train.main, [*flags, "-m", str(run), "--iterations", str(STEPS), "--rasterizer", "reference"]) == 0
    ply = run / "point_cloud" / f"iteration_{STEPS}" / "point_cloud.ply"
    columns, binding = read_gaussian_ply(ply)
    r = np.random.default_rng(0)
    for name in ("sh0", "shN", "quats", "opacities"):
        columns[name] = (columns[name] + 0.4 * r.normal(size=columns[name].shape)).astype(np.float32)
    columns["opacities"] += 3
    write_gaussian_ply(ply, columns, binding)
    shutil.rmtree(data / "data" / "capture")
    (data / "data" / "masks.pkl").unlink()  # posing doesn't need them either
    return run


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedAvatar:
    return load_avatar(folder, -1, {"rasterizer": "reference", "flame_masks": ""})


def run(folder: Path, *flags: str) -> int:
    return run_main(export.main, ["-m", str(folder), *QUIET, *flags])


def placed(loaded: LoadedAvatar, timestep: int) -> Splats:
    with torch.no_grad():
        return loaded.avatar.place_on(loaded.avatar.rig(timestep))


def posed(loaded: LoadedAvatar, timestep: int) -> np.ndarray:
    with torch.no_grad():
        return loaded.avatar.rig(timestep).vertices.numpy()


def from_ply(path: Path) -> Splats:
    """Activated splats of a PLY, read by plyfile as other programs read it."""
    rows = PlyData.read(str(path))["vertex"].data

    def table(*names: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([rows[name] for name in names], axis=1).astype(np.float32))

    rest = table(*[f"f_rest_{i}" for i in range(45)]).reshape(-1, 3, 15).transpose(1, 2)
    sh = torch.cat([table("f_dc_0", "f_dc_1", "f_dc_2")[:, None], rest], dim=1)
    scales = table("scale_0", "scale_1", "scale_2").exp()
    quats = table("rot_0", "rot_1", "rot_2", "rot_3")
    return Splats(table("x", "y", "z"), quats, scales, table("opacity")[:, 0].sigmoid(), sh, 3)


@torch.no_grad()
def difference(a: Splats, b: Splats, turned: bool = False) -> float:
    """Mean absolute difference of two pictures from the front; for `turned`, the camera of `b` is turned and moved."""
    draw, view = build_renderer("reference"), camera(dtype=torch.float32)
    own = draw(a, view, background(torch.float32)).image
    if turned:
        view.world_to_camera[:, :2] *= -1
        view.world_to_camera[:3, 3] *= 10
    assert float(own.std()) > 0.05
    return float((draw(b, view, background(torch.float32)).image - own).abs().mean())


def test_without_flags_the_first_timestep_as_a_ply(folder: Path, loaded: LoadedAvatar, capsys) -> None:
    assert run(folder) == 0
    made = folder / "export" / f"ours_{STEPS}"
    assert [path.relative_to(made).as_posix() for path in made.rglob("*.*")] == ["splats/frame_00000.ply"]
    splats = placed(loaded, 0)
    line = capsys.readouterr().out.strip()
    assert f"{made / 'splats'}: frame_00000.ply, {len(splats.means)} splats, world frame: metres, y up" in line
    assert difference(splats, from_ply(made / "splats" / "frame_00000.ply")) < 1e-5


def test_posed_sequence_shows_each_timestep(folder: Path, loaded: LoadedAvatar, tmp_path: Path) -> None:
    assert run(folder, "--frames", "2", "1", "-o", str(tmp_path)) == 0
    names = ["frame_00001.ply", "frame_00002.ply"]
    assert sorted(path.name for path in (tmp_path / "splats").iterdir()) == names
    first, second = (from_ply(tmp_path / "splats" / name) for name in names)
    assert difference(placed(loaded, 1), first) < 1e-5 and difference(placed(loaded, 2), second) < 1e-5
    assert difference(placed(loaded, 1), second) > 1e-3


def test_share_turns_ply_and_splat_and_leaves_gltf(folder: Path, loaded: LoadedAvatar, tmp_path: Path, capsys) -> None:
    assert run(folder, "--share", "--format", "glb", "ply", "splat", "-o", str(tmp_path)) == 0
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert found == {"share/frame_00000.ply", "share/frame_00000.splat", "splats/frame_00000.glb"}
    splats, shared = placed(loaded, 0), from_ply(tmp_path / "share" / "frame_00000.ply")
    assert difference(splats, shared, turned=True) < 1e-5
    means = 10 * splats.means.numpy() * [-1, -1, 1]
    dots = np.fromfile(tmp_path / "share" / "frame_00000.splat", "<f4").reshape(-1, 8)[:, :3]
    assert np.sort(dots, axis=0) == pytest.approx(np.sort(means, axis=0), abs=1e-6)
    positions = Reader(tmp_path / "splats" / "frame_00000.glb").attribute("POSITION", "VEC3")
    assert positions == pytest.approx(splats.means.numpy(), abs=1e-6)
    out = capsys.readouterr().out
    assert out.count("turned 180 degrees about z, 10 times larger") == 2 and out.count("world frame") == 1


def test_mesh_as_obj_files_and_as_one_animation(folder: Path, loaded: LoadedAvatar, tmp_path: Path, capsys) -> None:
    flags = ["--what", "mesh", "--format", "glb", "obj", "--frames", "all", "--fps", "10", "-o", str(tmp_path)]
    assert run(folder, *flags) == 0
    timesteps = loaded.avatar.rig.timesteps
    faces = loaded.avatar.rig.faces.numpy()
    reader = Reader(tmp_path / "mesh" / "head.glb")
    assert timesteps > 2 and len(list((tmp_path / "mesh").glob("*.obj"))) == timesteps
    layouts = []
    for timestep in range(timesteps):
        mesh, expected = read_obj(tmp_path / "mesh" / f"frame_{timestep:05d}.obj"), posed(loaded, timestep)
        assert np.array_equal(mesh.vertices, expected) and np.array_equal(mesh.faces, faces)
        assert pose(reader, timestep / 10)[0] == pytest.approx(expected[faces], abs=1e-6)
        assert mesh.layout is not None
        layouts.append(mesh.layout)
    assert all(np.array_equal(layout.uvs, layouts[0].uvs) for layout in layouts)  # constant over time
    out = capsys.readouterr().out
    assert "a cylinder around the head" in out and f"{timesteps} keys over {(timesteps - 1) / 10:g} s" in out


def test_times_are_those_of_the_timesteps_chosen(folder: Path, loaded: LoadedAvatar, tmp_path: Path) -> None:
    assert run(folder, "--what", "mesh", "--frames", "2", "0", "2", "--fps", "4", "-o", str(tmp_path)) == 0
    reader, faces = Reader(tmp_path / "mesh" / "head.glb"), loaded.avatar.rig.faces.numpy()
    assert len(reader.primitive["targets"]) == 1
    for timestep in (0, 2):
        assert pose(reader, timestep / 4)[0] == pytest.approx(posed(loaded, timestep)[faces], abs=1e-6)


def test_texture_coordinates_of_a_template(folder: Path, loaded: LoadedAvatar, tmp_path: Path, capsys) -> None:
    faces, vertices = loaded.avatar.rig.faces.numpy(), posed(loaded, 0)
    layout = cylindrical_layout(vertices[:, [1, 2, 0]], faces)
    write_obj(tmp_path / "template.obj", vertices + 1, faces, layout)
    flags = ["--what", "mesh", "--format", "obj", "--uv_template", str(tmp_path / "template.obj"), "-o", str(tmp_path)]
    assert run(folder, *flags) == 0
    found = read_obj(tmp_path / "mesh" / "frame_00000.obj").layout
    assert found is not None and np.array_equal(found.uvs, layout.uvs) and np.array_equal(found.faces, layout.faces)
    assert "cylinder" not in capsys.readouterr().out
    write_obj(tmp_path / "template.obj", vertices, faces[:, [1, 2, 0]], layout)
    assert run(folder, *flags[:-1], str(tmp_path / "refused")) == 2 and not (tmp_path / "refused").exists()
    assert "template.obj: face 0: has vertices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frames", "99"], "--frames: found '99', the avatar has timesteps 0 to"),
        (["--frames", "-1"], "--frames"),
        (["--frames", "9" * 5000], "--frames: found '999"),
        (["--frames", "0", "all"], "--frames: found 'all'"),
        (["--frames", "1.5"], "--frames: found '1.5'"),
        (["--format", "obj"], "--format: obj can't hold splats"),
        (["--what", "mesh", "--format", "ply"], "--format: ply can't hold mesh"),
        (["--what", "mesh", "splats", "--format", "obj"], "--format: none of obj can hold splats"),
        (["--share", "--format", "glb"], "--share: turns ply and splat files"),
        (["--share", "--what", "mesh"], "--share: turns ply and splat files"),
        (["--uv_template", "x.obj"], "--uv_template: is for the mesh"),
        (["--what", "mesh", "--uv_template", "none.obj"], "none.obj: "),
        (["--fps", "0"], "--fps: found 0.0"),
        (["--fps", "nan"], "--fps: found nan"),
        (["--fps", "1e-320"], "--fps: found 1e-320"),
        (["--iteration", "7"], "iteration_7: not found"),
    ],
)
def test_refusals_come_before_any_file(folder: Path, tmp_path: Path, capsys, flags: list[str], message: str) -> None:
    assert run(folder, *flags, "-o", str(tmp_path / "out")) in (2, 3)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "out").exists()


def test_an_unbound_scene_has_splats_but_no_mesh(
    folder: Path, loaded: LoadedAvatar, tmp_path, capsys, monkeypatch
) -> None:
    columns = {name: column.detach() for name, column in loaded.avatar.columns.items()}
    scene = GaussianModel(columns, torch.zeros(len(loaded.avatar), dtype=torch.long), 3, StillRig("cpu"))
    monkeypatch.setattr(export, "load_avatar", lambda *_: replace(loaded, avatar=scene))
    assert run(folder, "-o", str(tmp_path)) == 0
    assert "the scene's own frame" in capsys.readouterr().out
    found = from_ply(tmp_path / "splats" / "frame_00000.ply")
    assert torch.allclose(found.means, columns["means"], atol=1e-6)
    for flags, message in ((["--what", "mesh"], "needs an avatar on a mesh"), (["--share"], "is for heads")):
        assert run(folder, *flags, "-o", str(tmp_path / "none")) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_the_same_export_twice_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    flags = ["--what", "splats", "mesh", "--format", "ply", "splat", "glb", "obj", "--frames", "0", "1"]
    for name in ("a", "b"):
        assert run(folder, *flags, "-o", str(tmp_path / name)) == 0
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 9
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
