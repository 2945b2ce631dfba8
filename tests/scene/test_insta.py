"""The INSTA reader: OpenCV cameras, cy from the top, meshes as motion; expected pixels are computed here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scene.datasets import DATASETS, DataOptions, insta, open_dataset
from scene.frames import Dataset
from scene.rigs.meshes import MeshesRig
from tests.scene.make_capture import make_capture, png
from utils.errors import InputError
from utils.maths.projection import project, to_camera

WIDTH, HEIGHT, FRAMES = 40, 32, 12
FX, FY, CX, CY = 60.0, 62.5, 18.25, 13.75
FACES = [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1]]
SPLITS = {"train": range(0, 8), "val": range(9, 12), "test": range(8, 12)}  # val repeats test's end


def vertices(frame: int) -> np.ndarray:
    """[5, 3] float32 metres: another mesh in every frame."""
    return np.random.default_rng(frame).normal(0, 0.05, (5, 3)).astype(np.float32)


def camera_to_world(frame: int) -> np.ndarray:
    """[4, 4] with OpenCV axes: about half a metre before the head, looking at it (towards -z of the world)."""
    matrix = np.eye(4)
    Rotation = pytest.importorskip("scipy.spatial.transform").Rotation  # noqa: N806
    matrix[:3, :3] = Rotation.from_euler("xyz", [np.pi + 0.05 * frame, 0.03 * frame, 0.1]).as_matrix()
    matrix[:3, 3] = [0.01, 0.02, 0.5 + 0.01 * frame]
    return matrix


def rgba(frame: int) -> np.ndarray:
    rng = np.random.default_rng(100 + frame)
    return rng.integers(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint8)


def name_of(frame: int) -> str:
    return f"{frame + 95}"  # 95 to 106: as text they would be in another order


def entry(frame: int) -> dict[str, Any]:
    name = name_of(frame)
    return {
        "file_path": f"images/{name}.png",
        "mesh_path": f"meshes/{name}.obj",
        "exp_path": f"flame/exp/{name}.txt",
        "depth_path": f"depth/{name}.png",
        "seg_mask_path": f"seg_mask/{name}.png",
        "transform_matrix": camera_to_world(frame).tolist(),
    }


def obj(points: np.ndarray, faces: list[list[int]]) -> str:
    lines = ["# made by a tracker", "", *(f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in points)]
    return "\n".join([*lines, *(f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces), ""])


def transforms(frames: list[dict[str, Any]]) -> dict[str, Any]:
    top = {"w": WIDTH, "h": HEIGHT, "fl_x": FX, "fl_y": FY, "cx": CX, "cy": CY, "integer_depth_scale": 1.0}
    return {**top, "camera_angle_x": 0.6, "frames": frames}


def write(folder: Path) -> Path:
    for name in ("images", "meshes"):
        (folder / name).mkdir(parents=True)
    for frame in range(FRAMES):
        (folder / f"images/{name_of(frame)}.png").write_bytes(png(rgba(frame)))
        (folder / f"meshes/{name_of(frame)}.obj").write_text(obj(vertices(frame), FACES))
    for split, members in SPLITS.items():
        (folder / f"transforms_{split}.json").write_text(json.dumps(transforms([entry(k) for k in members])))
    return folder


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "bala")


def opened(folder: Path, **options: Any) -> Dataset:
    chosen = DataOptions(source_path=str(folder), white_background=True, eval=True)
    for name, value in options.items():
        setattr(chosen, name, value)
    return open_dataset(chosen, folder.parent.parent / "cache")


@pytest.mark.parametrize("scale", [1, 2])
def test_vertices_land_where_opencv_puts_them(intact: Path, scale: int) -> None:
    data = opened(intact, eval=False, resolution=scale)
    assert data.motion is not None
    rig = MeshesRig(data.motion, "here", "cpu")
    assert rig.timesteps == FRAMES and rig.faces.tolist() == FACES
    for view in data.train.views:
        local = (np.c_[vertices(view.timestep), np.ones(5)] @ np.linalg.inv(camera_to_world(view.timestep)).T)[:, :3]
        assert (local[:, 2] > 0.3).all()
        expected = local[:, :2] / local[:, 2:] * [FX, FY] + [CX, CY]
        camera = view.camera
        points = to_camera(rig(view.timestep).vertices.double(), camera.world_to_camera.double())
        np.testing.assert_allclose(project(points, camera.intrinsics.double()), expected / scale, atol=1e-3)


def test_splits_are_those_of_the_files(intact: Path) -> None:
    data = opened(intact)
    assert data.format == "insta" and data.edition == "" and data.sequence_starts == (0,)
    for split, frames in data.splits().items():
        assert [view.timestep for view in frames.views] == list(SPLITS[split])
        assert [view.name for view in frames.views] == [name_of(k) for k in SPLITS[split]]
    assert any("3 frames of val are frames of test" in note for note in data.notes)
    assert len(opened(intact, eval=False).train) == sum(len(members) for members in SPLITS.values())


def test_alpha_is_the_matte(intact: Path) -> None:
    for frame, view in zip(data := opened(intact).train, data.views, strict=True):
        pixels = rgba(view.timestep) / 255.0
        alpha = pixels[..., 3:]
        expected = pixels[..., :3] * alpha + 1 - alpha
        np.testing.assert_allclose(frame.image.numpy(), expected.transpose(2, 0, 1), atol=0.51 / 255)
        assert frame.mask is not None
        np.testing.assert_allclose(frame.mask.numpy(), alpha.transpose(2, 0, 1), atol=1e-6)


def test_pictures_without_alpha_have_no_matte(intact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(intact, tmp_path / "data" / "bala")
    for frame in range(FRAMES):
        (folder / f"images/{name_of(frame)}.png").write_bytes(png(rgba(frame)[..., :3]))
    data = opened(folder)
    assert all(frame.mask is None for frame in data.train)
    assert any("no alpha channel" in note for note in data.notes)


def test_the_quick_and_the_careful_way_read_the_same(intact: Path, tmp_path: Path) -> None:
    """A mesh with other white space, comments and colours after its vertices is one all the same."""
    folder = shutil.copytree(intact, tmp_path / "data" / "bala")
    lines = (folder / "meshes/97.obj").read_text().splitlines()
    changed = [f"{line} 0.5 0.5 0.5  # grey" if line.startswith("v ") else line.replace(" ", "  ") for line in lines]
    (folder / "meshes/97.obj").write_text("\n".join(changed))
    motion = opened(folder).motion
    assert motion is not None
    np.testing.assert_array_equal(motion.per_frame["vertices"].numpy(), np.stack([vertices(k) for k in range(FRAMES)]))
    assert motion.per_frame["vertices"].dtype == torch.float32 and motion.static["faces"].dtype == torch.int64


def test_other_transforms_are_not_recognised(intact: Path, tmp_path: Path) -> None:
    assert insta.recognise(intact) is None
    assert insta.recognise(tmp_path) == "no transforms_train.json"
    vhap = make_capture(tmp_path / "vhap")
    assert insta.recognise(vhap) == "transforms_train.json has no frames with mesh_path"
    path = vhap / "transforms_train.json"
    content = json.loads(path.read_text())
    content["frames"][0]["mesh_path"] = "meshes/00000.obj"  # VHAP can export meshes, with OpenGL cameras
    path.write_text(json.dumps(content))
    assert insta.recognise(vhap) == "transforms_train.json has frames with timestep_index, as VHAP's"
    path.write_text("{")
    assert "is not JSON" in str(insta.recognise(vhap))
    names = list(DATASETS)
    assert names.index("insta") < names.index("blender") and DATASETS["insta"].rig == "meshes"


Break = Callable[[Path], object]


def set_field(field: str, value: object, frame: int | None = 3, split: str = "train") -> Break:
    """Set a field of a frame or (None) of the top; a value of `...` removes it."""

    def damage(folder: Path) -> None:
        path = folder / f"transforms_{split}.json"
        content = json.loads(path.read_text())
        place = content if frame is None else content["frames"][frame]
        place[field] = value
        if value is ...:
            del place[field]
        path.write_text(json.dumps(content))

    return damage


def replace(name: str, content: str | bytes) -> Break:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def uneven(name: str) -> Break:
    """Move a number from one vertex to the next: as many numbers as before, all wrong from there on."""

    def damage(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith("v "))
        kept, _, moved = lines[first].rpartition(" ")
        lines[first : first + 2] = [kept, lines[first + 1].replace("v ", f"v {moved} ", 1)]
        (folder / name).write_text("\n".join(lines))

    return damage


MIRROR = np.diag([1.0, 1, -1, 1]).tolist()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_field("transform_matrix", MIRROR), r"train.json: frames\[3\].transform_matrix: found .* mirrors"),
        (set_field("transform_matrix", [[1, 0]]), r"frames\[3\].transform_matrix: found a list of 1"),
        (set_field("mesh_path", ...), r"frames\[3\].mesh_path: is missing"),
        (set_field("mesh_path", "meshes/none.obj"), r"frames\[3\].mesh_path: .*none.obj does not exist"),
        (set_field("mesh_path", "/etc/passwd"), r"frames\[3\].mesh_path: found '/etc/passwd', expected a path"),
        (set_field("file_path", "images/none"), r"frames\[3\].file_path: .*none.png does not exist"),
        (set_field("file_path", "images/104.png"), r"train.json: frames\[3\].file_path: .* transforms_test.json too"),
        (set_field("fl_x", ..., None), "train.json: fl_x: is missing"),
        (set_field("fl_y", -3, None), "train.json: fl_y: found -3 px, expected a positive"),
        (set_field("cy", 1e9, None), "train.json: cy: found a principal point at 1e"),
        (set_field("w", 48, None, "test"), "test.json: w: found 48x32 pixels, but .*95.png has 40x32"),
        (lambda folder: (folder / "transforms_test.json").unlink(), "transforms_test.json: does not exist"),
        (replace("meshes/98.obj", obj(vertices(3), FACES[::-1])), "98.obj: faces: found 5 vertices and 4 faces of"),
        (replace("meshes/98.obj", obj(vertices(3)[:4], FACES[:2])), "98.obj: faces: found 4 vertices and 2 faces of"),
        (replace("meshes/98.obj", obj(vertices(3), FACES).replace("v 0", "v x", 1)), "98.obj: line"),
        (uneven("meshes/98.obj"), "98.obj: line 3: found .*, expected 3 finite numbers"),
        (replace("meshes/98.obj", obj(vertices(3) * np.float32(np.nan), FACES)), "98.obj: line 3: found 'nan"),
        (replace("images/98.png", png(rgba(3)[..., :3])), "98.png: found 3 channels, expected 4"),
        (replace("images/98.png", png(rgba(3)[1:])), "98.png: size: found 40x31"),
    ],
)  # fmt: skip
def test_faults(intact: Path, tmp_path: Path, damage: Break, message: str) -> None:
    folder = tmp_path / "data" / "bala"
    shutil.copytree(intact, folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        opened(folder)
    assert "\n" not in str(caught.value) and not (tmp_path / "cache").exists()
