"""Motion files told apart by their keys; VHAP's tracker file against its own formulas, computed here on their own."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flame_model import FlameAssets, FlameModel
from scene.datasets import tracker_motion
from scene.datasets.tracker_motion import MOTIONS, read_motion_file
from tests.flame_model.test_model import reference
from tests.scene import make_tracked as make
from utils.contracts import Motion
from utils.errors import InputError
from utils.maths.projection import project, to_camera

STEPS, SIDES = 3, (48, 64)  # timesteps; height, width as VHAP writes image_size
WIDTHS = {"rotation": 3, "translation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "expr": make.EXPRESSIONS}


def arrays(dtype: type = np.float32) -> dict[str, np.ndarray]:
    """The motion itself."""
    rng = np.random.default_rng(5)
    values = {name: 0.2 * rng.normal(size=(STEPS, width)) for name, width in WIDTHS.items()}
    values["shape"] = np.linspace(-1, 1, make.SHAPES)
    return {name: value.astype(dtype) for name, value in values.items()}


def vhap_file() -> dict[str, Any]:
    """tracked_flame_params_EPOCH.npz with all that comes with it."""
    rng = np.random.default_rng(6)
    return {
        **arrays(), "static_offset": 0.01 * rng.normal(size=(1, make.VERTICES, 3)).astype(np.float32),
        "timestep_id": np.array([f"{step:05d}" for step in range(STEPS)]), "n_processed_frames": STEPS,
        "image_size": np.array(SIDES), "focal_length": np.array([1.5], np.float32), "tex": np.zeros(100, np.float32),
        "lights": np.zeros((9, 3), np.float32), "tex_extra": np.ones((3, 256, 256), np.float32),
    }  # fmt: skip


def saved(folder: Path, content: dict[str, Any], name: str = "motion.npz") -> Path:
    np.savez(folder / name, **content)
    return folder / name


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> FlameAssets:
    return make.head(tmp_path_factory.mktemp("model"))


def test_vhap_motion_is_seen_where_its_tracker_puts_it(assets: FlameAssets, tmp_path: Path) -> None:
    """One camera on +z at 1 m that looks at the origin; focal length in units of the longer side; y up."""
    content = vhap_file()
    motion = read_motion_file(saved(tmp_path, content))
    model = FlameModel(assets)
    identity = model.fold_identity(motion.static["shape"], motion.static["static_offset"])
    height, width = SIDES
    focal = 1.5 * max(SIDES)
    look = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    look[2, 3] = 1.0
    matrix = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    for step in range(STEPS):
        row = {name: content[name][step].astype(float) for name in WIDTHS}
        offset = content["static_offset"][0].astype(float)
        x, y, z = reference(assets, content["shape"].astype(float), offset, np.zeros_like(offset), row).T
        expected = np.stack([width / 2 + focal * x / (1 - z), height / 2 - focal * y / (1 - z)], -1)
        vertices = model.posed(identity, **{name: values[step] for name, values in motion.per_frame.items()})
        np.testing.assert_allclose(project(to_camera(vertices, look), matrix).numpy(), expected, atol=1e-3)


def check_equal(motion: Motion, content: dict[str, Any]) -> None:
    assert set(motion.per_frame) == set(WIDTHS) | ({"dynamic_offset"} & set(content))
    for name, values in motion.per_frame.items():
        assert values.dtype == torch.float32
        np.testing.assert_array_equal(values.numpy(), content[name].astype(np.float32))
    np.testing.assert_array_equal(motion.static["shape"].numpy(), content["shape"].reshape(-1).astype(np.float32))
    assert set(motion.static) == {"shape"} | ({"static_offset"} & set(content))
    if "static_offset" in content:
        offset = content["static_offset"].reshape(-1, 3).astype(np.float32)
        np.testing.assert_array_equal(motion.static["static_offset"].numpy(), offset)


@pytest.mark.parametrize("change", ["none", "float64", "dynamic", "no static", "static [V, 3]", "shape [1, S]"])
def test_avatar_files(change: str, tmp_path: Path) -> None:
    """Mien's and GaussianAvatars' flame_param.npz in every form that occurs."""
    content: dict[str, Any] = arrays(np.float64 if change == "float64" else np.float32)
    offset = np.full((1, make.VERTICES, 3), 0.01, np.float32)
    content |= {} if change == "no static" else {"static_offset": offset[0] if "[V" in change else offset}
    if change == "dynamic":
        content["dynamic_offset"] = np.full((STEPS, make.VERTICES, 3), 0.02, np.float32)
    if change == "shape [1, S]":
        content["shape"] = content["shape"][None]
    check_equal(read_motion_file(saved(tmp_path, content, "flame_param.npz")), content)


@pytest.mark.parametrize("drop", [(), ("static_offset",), ("n_processed_frames", "focal_length", "tex")])
def test_vhap_files(drop: tuple[str, ...], tmp_path: Path) -> None:
    content = {name: value for name, value in vhap_file().items() if name not in drop}
    content["dynamic_offset"] = np.full((STEPS, make.VERTICES, 3), 0.02, np.float32)
    check_equal(read_motion_file(saved(tmp_path, content)), content)


def test_textures_are_never_decoded(tmp_path: Path) -> None:
    """The content of tex_extra is damaged: nobody looks."""
    path = saved(tmp_path, vhap_file())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("tex_extra.npy").header_offset + 1000
    content = bytearray(path.read_bytes())
    content[start : start + 100] = bytes(100)
    path.write_bytes(content)
    check_equal(read_motion_file(path), vhap_file())


def _faults() -> dict[str, tuple[dict[str, Any], str]]:
    """name -> changes of the VHAP file (None: remove), what the message must say."""
    objects = np.array([None, {}], dtype=object)
    return {
        "no jaw": ({"jaw_pose": None}, "vhap_tracker: no jaw_pose"),
        "expressions under another name": ({"expr": None, "expression": np.zeros((STEPS, 5))}, "no expr"),
        "rotation matrices": ({"rotation": np.zeros((STEPS, 3, 3))}, r"rotation: found shape \[3, 3, 3\]"),
        "another length": ({"neck_pose": np.zeros((STEPS + 1, 3))}, r"neck_pose: found shape \[4, 3\]"),
        "one eye": ({"eyes_pose": np.zeros((STEPS, 3))}, r"eyes_pose: found shape \[3, 3\], expected \[3, 6\]"),
        "two identities": ({"shape": np.zeros((2, 300))}, r"shape: found shape \[2, 300\]"),
        "not finite": ({"expr": np.full((STEPS, 5), np.nan)}, r"expr: found nan at \[0, 0\]"),
        "text": ({"jaw_pose": np.full((STEPS, 3), "a")}, "jaw_pose: found type"),
        "objects": ({"lights": objects}, "lights: found Python objects"),
        "stopped early": ({"n_processed_frames": 2}, "n_processed_frames: found 2 tracked .* 3 rows"),
    }  # fmt: skip


@pytest.mark.parametrize("name", _faults())
def test_faults_name_the_key_and_the_shape(name: str, tmp_path: Path) -> None:
    changes, problem = _faults()[name]
    content = {key: value for key, value in {**vhap_file(), **changes}.items() if value is not None}
    path = saved(tmp_path, content)
    with pytest.raises(InputError, match=problem) as caught:
        read_motion_file(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_unknown_and_ambiguous_files_say_what_each_format_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, {"poses": np.zeros((STEPS, 6))})
    with pytest.raises(
        InputError, match="motion of none or several known formats .*flame_param: no rotation.*vhap_tracker: no"
    ):
        read_motion_file(path)
    twin = tracker_motion.MotionFormat(lambda keys: None, MOTIONS["vhap_tracker"].read)
    monkeypatch.setitem(MOTIONS, "twin", twin)
    with pytest.raises(InputError, match="flame_param: .*belongs to VHAP's tracker; vhap_tracker: fits; .*twin: fits"):
        read_motion_file(saved(tmp_path, vhap_file()))


def test_every_format_declines_the_files_of_the_others(tmp_path: Path) -> None:
    benchmark = {"neck": (3,), "jaw": (3,), "eyes": (6,), "rotation": (3,), "translation": (3,), "expression": (100,),
                 "rotation_matrices": (3, 3), "frames": ()}  # fmt: skip
    benchmark = {key: np.zeros((STEPS, *shape)) for key, shape in benchmark.items()}
    benchmark |= {"shape": np.zeros((1, 300)), "scale": np.ones((1, 1))}
    files = {"flame_param": arrays(), "vhap_tracker": vhap_file(), "nersemble": benchmark}
    for name, content in files.items():
        keys = tracker_motion.keys_of(saved(tmp_path, content))
        assert [other for other, format_ in MOTIONS.items() if format_.recognise(keys) is None] == [name]


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **vhap_file())
    path = tmp_path / "motion.npz"
    for content in (b"", b"hello", buffer.getvalue()[:-200], buffer.getvalue()[:5000]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="motion.npz"):
            read_motion_file(path)
    with pytest.raises(InputError, match="does not exist"):
        read_motion_file(tmp_path / "none.npz")
