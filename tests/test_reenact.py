"""Reenactment: whose parameters an avatar gets, and whose it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flame_model import FlameModel, load_flame
from scene.rigs import StillRig
from tests.scene.avatars import TIMESTEPS, avatar, motion
from utils.contracts import Motion
from utils.engine.build import LoadedAvatar
from utils.engine.options import options_from_flags
from utils.engine.reenact import Driver, drive, driver_of_file, relative_motion, same_person, target_name
from utils.errors import InputError

SOURCE = Path("driver.npz")


def loaded(folder: Path, edition: str = "tiny", trained_on: str | None = None) -> LoadedAvatar:
    """An avatar whose model and dataset call themselves as given."""
    model = avatar(folder)
    model.rig.edition = edition
    run = folder / "run"
    run.mkdir()
    if trained_on is not None:
        (run / "run.json").write_text(json.dumps({"iteration": 1, "edition": trained_on}))
    flags = {"model_path": str(run), "source_path": "gone", "flame_model": str(folder / "head.pkl")}
    return LoadedAvatar(options_from_flags(flags, "test"), model, lambda *_: None, 1)  # type: ignore[arg-type]


def changed(base: Motion, static: dict[str, Tensor] | None = None, **per_frame: Tensor) -> Motion:
    return Motion({**base.per_frame, **per_frame}, {**base.static, **(static or {})})


def stranger(seed: int = 7) -> Motion:
    return changed(motion(seed), {"shape": torch.linspace(0.5, -0.5, 7)})


def driven_rig(own: LoadedAvatar, driver: Motion, transfer: str, edition: str | None = "tiny") -> Any:
    return drive(own, Driver(driver, SOURCE, edition), transfer, False)[0].rig


def test_absolute_poses_the_avatars_head_with_the_drivers_values(tmp_path: Path) -> None:
    own, driver = loaded(tmp_path), stranger()
    rig = driven_rig(own, driver, "absolute")
    flame = FlameModel(load_flame(tmp_path / "head.pkl").with_teeth())
    identity = flame.fold_identity(torch.linspace(-1, 1, 7))  # the avatar's, see tests/scene/avatars.py
    for timestep in range(TIMESTEPS):
        row = {name: values[timestep] for name, values in driver.per_frame.items()}
        torch.testing.assert_close(rig(timestep).vertices.detach(), flame.posed(identity, **row), rtol=0, atol=1e-7)


def test_relative_transfer_of_ones_own_motion_is_that_motion(tmp_path: Path) -> None:
    own = motion()
    moved = relative_motion(own, own, SOURCE)
    assert moved.keys() == own.per_frame.keys()
    for name, values in own.per_frame.items():
        torch.testing.assert_close(moved[name], values, rtol=0, atol=1e-6)


def test_relative_transfer_takes_constants_of_the_driver_out() -> None:
    """Another neutral expression, or another neutral pose of the jaw, changes nothing."""
    own, driver = motion(), stranger()
    expected = relative_motion(own, driver, SOURCE)
    shifted = changed(driver, expr=driver.per_frame["expr"] + torch.linspace(-2, 2, 5))
    for name, values in relative_motion(own, shifted, SOURCE).items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-6)


def test_relative_transfer_in_closed_form() -> None:
    """About one axis, rotations are angles: mean of the avatar + angle of the driver - mean of the driver."""
    axis = torch.tensor([0.6, 0.0, 0.8])
    own_angles, angles = torch.tensor([0.1, 0.5, 0.3]), torch.tensor([-0.4, 0.2, -0.1])

    def about(angles: Tensor) -> Motion:
        turns = angles[:, None] * axis
        widths = {"rotation": 3, "translation": 3}
        return Motion({**{name: torch.rand(3, width) for name, width in widths.items()}, "jaw_pose": turns,
                       "neck_pose": 2 * turns, "eyes_pose": torch.cat([turns, -turns], 1), "expr": angles[:, None]},
                      {"shape": torch.zeros(7)})  # fmt: skip

    own, driver = about(own_angles), about(angles)
    moved, wanted = relative_motion(own, driver, SOURCE), own_angles.mean() + angles - angles.mean()
    for name, values in about(wanted).per_frame.items():
        if name in ("rotation", "translation"):
            assert torch.equal(moved[name], driver.per_frame[name])  # his cameras look at his head
        else:
            torch.testing.assert_close(moved[name], values, rtol=0, atol=1e-6)


def test_rotations_are_composed_and_not_added() -> None:
    """A constant turn before all of the driver's jaw rotations cancels, whatever their axes."""
    turn = torch.linalg.matrix_exp(skew(torch.tensor([0.4, -0.7, 0.2], dtype=torch.float64)))
    own, driver = motion(), stranger()
    jaws = [torch.linalg.matrix_exp(skew(row.double())) for row in driver.per_frame["jaw_pose"]]
    turned = torch.stack([log(turn @ jaw) for jaw in jaws])
    moved = relative_motion(own, changed(driver, jaw_pose=turned.float()), SOURCE)["jaw_pose"]
    torch.testing.assert_close(moved, relative_motion(own, driver, SOURCE)["jaw_pose"], rtol=0, atol=1e-6)


def skew(v: Tensor) -> Tensor:
    zero = torch.zeros((), dtype=v.dtype)
    return torch.stack([zero, -v[2], v[1], v[2], zero, -v[0], -v[1], v[0], zero]).view(3, 3)


def log(matrix: Tensor) -> Tensor:
    angle = ((matrix.trace() - 1) / 2).arccos()
    anti = matrix - matrix.T
    return angle / (2 * angle.sin()) * torch.stack([anti[2, 1], anti[0, 2], anti[1, 0]])


def test_who_is_the_same_person(tmp_path: Path) -> None:
    own = avatar(tmp_path).rig.motion()
    same = motion(3)
    assert same_person(own, same)
    assert same_person(own, changed(same, {"shape": torch.cat([same.static["shape"], torch.zeros(9)])}))
    assert not same_person(own, changed(same, {"shape": torch.cat([same.static["shape"], torch.ones(1)])}))
    offset = torch.zeros(own.static["static_offset"].shape)
    assert same_person(own, changed(same, {"static_offset": offset}))
    offset[3, 1] = 0.001
    assert not same_person(own, changed(same, {"static_offset": offset}))


def test_auto_is_absolute_for_the_same_person_and_relative_for_another(tmp_path: Path) -> None:
    own = loaded(tmp_path)
    for driver, who, kind in ((motion(3), "the same", "absolute"), (stranger(), "another", "relative")):
        driven, line = drive(own, Driver(driver, SOURCE, "tiny"), "auto", False)
        assert line == f"driver driver.npz: 4 timesteps, tiny; {who} person; {kind} transfer"
        expected = driven_rig(own, driver, kind).parameters["expr"]
        assert torch.equal(driven.rig.parameters["expr"], expected)


def test_offsets_stay_with_their_person(tmp_path: Path) -> None:
    own, vertices = loaded(tmp_path), avatar(tmp_path).rig.flame.n_vertices
    offsets = torch.full((TIMESTEPS, vertices, 3), 0.01)
    for driver, kept in ((motion(3), True), (stranger(), False)):
        rig = driven_rig(own, changed(driver, dynamic_offset=offsets), "auto")
        assert (rig.offsets is not None) is kept


@pytest.mark.parametrize("transfer", ["relative", "absolute"])
def test_fewer_expressions_are_zeros_and_too_many_are_refused(tmp_path: Path, transfer: str) -> None:
    own = loaded(tmp_path)
    few, many = torch.ones(TIMESTEPS, 3) * torch.arange(4.0)[:, None], torch.zeros(TIMESTEPS, 6)
    padded = torch.cat([few, torch.zeros(TIMESTEPS, 2)], 1)
    found = driven_rig(own, changed(stranger(), expr=few), transfer)
    expected = driven_rig(own, changed(stranger(), expr=padded), transfer)
    for timestep in range(TIMESTEPS):
        assert torch.equal(found(timestep).vertices, expected(timestep).vertices)
    with pytest.raises(InputError, match=r"driver.npz: expr: found 6 values, the model has 5"):
        driven_rig(own, changed(stranger(), expr=many), transfer)


@pytest.mark.parametrize(
    ("model", "trained_on", "driver", "fine"),
    [
        ("tiny", None, "tiny", True),
        ("tiny", "", "FLAME", False),
        ("FLAME", "", "FLAME", True),
        ("FLAME", "FLAME 2020", "FLAME 2020", True),
        ("FLAME", "FLAME 2020", "FLAME 2023", False),
        ("FLAME", "FLAME 2023", "FLAME", False),
        ("FLAME", "", "FLAME 2020", False),
        ("FLAME", None, "mien-demo-1", False),
        ("mien-demo-1", "mien-demo-1", "FLAME", False),
        ("mien-demo-1", "", "mien-demo-1", True),
        ("tiny", None, None, True),  # a motion file can't say
    ],
)
def test_editions(tmp_path: Path, model: str, trained_on: str | None, driver: str | None, fine: bool) -> None:
    own = loaded(tmp_path, model, trained_on)
    if fine:
        assert driven_rig(own, stranger(), "auto", driver).timesteps == TIMESTEPS
        return
    with pytest.raises(InputError) as caught:
        driven_rig(own, stranger(), "auto", driver)
    avatars = trained_on if trained_on and model == "FLAME" else model
    for named in ("driver.npz", repr(driver), repr(avatars), "run", "head.pkl", "--assume_same_edition"):
        assert named in str(caught.value)
    assert drive(own, Driver(stranger(), SOURCE, driver), "auto", True)[0].rig.timesteps == TIMESTEPS


def test_one_timestep_has_no_mean(tmp_path: Path) -> None:
    own = loaded(tmp_path)
    one = Motion({name: values[:1] for name, values in stranger().per_frame.items()}, stranger().static)
    with pytest.raises(InputError, match="found 1 timestep.*--transfer absolute"):
        driven_rig(own, one, "relative")
    assert driven_rig(own, one, "absolute").timesteps == 1


def test_only_flame_avatars_are_driven(tmp_path: Path) -> None:
    own = loaded(tmp_path)
    still = type(own.avatar).__mro__[1](own.avatar.columns, own.avatar.binding, 0, StillRig("cpu"))
    other = LoadedAvatar(own.options, still, own.render, 1)
    with pytest.raises(InputError, match="is not an avatar on FLAME"):
        drive(other, Driver(stranger(), SOURCE, "tiny"), "auto", False)


def test_names_of_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    assert [target_name(path) for path in (".", "../link/", "../real")] == ["real", "link", "real"]


@pytest.mark.parametrize("written, expected", [("other", "other"), ("", None), (None, None)])
def test_a_motion_file_inside_a_run_is_of_its_edition(
    tmp_path: Path, written: str | None, expected: str | None
) -> None:
    model = avatar(tmp_path)
    saved = tmp_path / "run/point_cloud/iteration_3"
    model.save(saved)
    if written is not None:
        (tmp_path / "run/run.json").write_text(json.dumps({"iteration": 3, "edition": written}))
    assert driver_of_file(saved / "flame_param.npz").edition == expected
