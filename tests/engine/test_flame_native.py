"""FLAME posed natively: against the PyTorch model in float64, for values and for every gradient."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import train
from flame_model import FlameModel, load_flame
from flame_model.posing import NativePose, choose_posing, pose_in_torch
from tests.engine.flame_moments import (
    WIDTHS,
    assert_agrees,
    assets,
    dynamic,
    in_native,
    moment,
    poser,
    weights_of,
)
from tests.scene import avatars
from tests.tiny import write_tiny
from utils.engine.build import load_run
from utils.errors import NumericalFault, run_main

native = pytest.importorskip("diff_gaussian_rasterization.flame", reason="the native package is not installed")
library = pytest.importorskip("diff_gaussian_rasterization._library")

ISAS = ("scalar", "avx2", "avx512")
PI = float(np.pi)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flame")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = library.isa_name()
    try:
        library.select_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    library.select_isa(before)


@pytest.mark.parametrize("vertices", [5, 16, 40, 1100])
@pytest.mark.parametrize("offset", [False, True])
def test_agrees_with_pytorch_in_float64(isa: str, folder: Path, vertices: int, offset: bool) -> None:
    p = moment() | ({"dynamic_offset": dynamic(vertices)} if offset else {})
    assert_agrees(assets(folder, vertices), p, weights_of(vertices))


@pytest.mark.parametrize("offset", [False, True])
def test_agrees_on_flame_topology_with_teeth(shared: Path, offset: bool) -> None:
    """Correctives and expressions, zero in the stand-in, are made non-zero; those of the teeth stay zero."""
    stand_in = load_flame(shared / "data" / "flame_stand_in" / "flame2023.pkl")
    random = np.random.default_rng(0)
    pose_dirs, expr_dirs = (
        random.normal(0, 1e-3, array.shape).astype(np.float32) for array in (stand_in.pose_dirs, stand_in.expr_dirs)
    )
    facts = replace(stand_in, pose_dirs=pose_dirs, expr_dirs=expr_dirs).with_teeth()
    assert facts.n_vertices == 5143
    p = moment(3, 0.3, expr=100) | ({"dynamic_offset": dynamic(5143)} if offset else {})
    assert_agrees(facts, p, weights_of(5143), 4e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-20, 1e-7, 1e-4, 1e-2, PI - 1e-4, PI, PI + 1e-3, 2 * PI, 10.0])
def test_every_angle(isa: str, folder: Path, angle: float) -> None:
    p = moment(2)
    for name in ("rotation", "neck_pose", "jaw_pose", "eyes_pose"):
        p[name] = angle * torch.nn.functional.normalize(p[name].view(-1, 3), dim=1).flatten()
    assert_agrees(assets(folder), p, weights_of(40))


def test_agrees_with_finite_differences(folder: Path) -> None:
    """Along random directions of every parameter."""
    p, weights = moment(4) | {"dynamic_offset": dynamic(40)}, weights_of(40)
    ours = poser(FlameModel(assets(folder)))
    _, gradients = in_native(ours, p, weights)

    def loss(values: dict[str, Tensor]) -> float:
        return float((weights.double() * ours.pose(**values).double()).sum())

    for name, gradient in gradients.items():
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(5))
        step = 1e-3 if name == "dynamic_offset" else 1e-2
        one_up, one_down, two_up, two_down = (
            loss(p | {name: p[name] + sign * step * direction}) for sign in (1, -1, 2, -2)
        )
        slope = (8 * (one_up - one_down) - (two_up - two_down)) / (12 * step)  # error of fourth order
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=2e-3, abs=2e-3), name


def test_threads_do_not_change_a_bit(isa: str, folder: Path) -> None:
    model = FlameModel(assets(folder, 4000))
    p, weights = moment(6) | {"dynamic_offset": dynamic(4000)}, weights_of(4000)
    ours = poser(model)
    values, gradients = in_native(ours, p, weights, threads=1)
    for threads in (2, 3, 8):
        again, again_gradients = in_native(ours, p, weights, threads)
        assert torch.equal(values, again)
        assert all(torch.equal(gradients[name], again_gradients[name]) for name in p)


@pytest.mark.parametrize("used", [0, 5])
@pytest.mark.parametrize("correctives", [True, False])
def test_directions_that_do_nothing(folder: Path, used: int, correctives: bool) -> None:
    """Left out as a whole, or in the blocks of vertices where they are zero."""
    facts = assets(folder, 200)
    expr_dirs, pose_dirs = facts.expr_dirs.copy(), facts.pose_dirs * np.float32(correctives)
    expr_dirs[:, :, used:] = 0
    expr_dirs[50:, :, 1] = 0
    pose_dirs[:90, :, 20] = 0
    changed = replace(facts, expr_dirs=expr_dirs, pose_dirs=pose_dirs)
    assert_agrees(changed, moment(8), weights_of(200))
    _, gradients = in_native(poser(FlameModel(changed)), moment(8), weights_of(200))
    assert not gradients["expr"][used:].any()


def test_fewer_and_more_expressions_than_the_model_has(folder: Path) -> None:
    facts, weights = assets(folder), weights_of(40)
    ours, p = poser(FlameModel(facts)), moment(9)
    exact, exact_gradients = in_native(ours, p | {"expr": torch.cat([p["expr"][:4], torch.zeros(8)])}, weights)
    for expr in (p["expr"][:4], torch.cat([p["expr"][:4], torch.zeros(8), torch.ones(5)])):
        values, gradients = in_native(ours, p | {"expr": expr}, weights)
        assert torch.equal(values, exact) and torch.equal(gradients["expr"][:4], exact_gradients["expr"][:4])
        assert len(expr) == 4 or not gradients["expr"][12:].any()
    assert_agrees(facts, p | {"expr": torch.zeros(0)} | {"dynamic_offset": dynamic(40)}, weights)


def test_vertices_without_gradient(isa: str, folder: Path) -> None:
    """Whole blocks of them are left out, single ones not."""
    weights = weights_of(200)
    weights[32:112] = 0
    weights[150] = 0
    assert_agrees(assets(folder, 200), moment(10) | {"dynamic_offset": dynamic(200)}, weights)
    _, gradients = in_native(poser(FlameModel(assets(folder, 200))), moment(10), torch.zeros(200, 3))
    assert not any(bool(gradient.any()) for gradient in gradients.values())


def test_gradients_that_nobody_asked_for(folder: Path) -> None:
    p, weights, ours = moment(11) | {"dynamic_offset": dynamic(40)}, weights_of(40), poser(FlameModel(assets(folder)))
    _, everything = in_native(ours, p, weights)
    for name in p:
        leaf = p[name].clone().requires_grad_()
        (alone,) = torch.autograd.grad(ours.pose(**(p | {name: leaf})), leaf, weights)
        assert torch.equal(alone, everything[name])
    assert not ours.pose(**p).requires_grad


def test_rows_of_tables(folder: Path) -> None:
    """The same bits as of single vectors; sparse gradients of that row alone, which add up."""
    ours, weights = poser(FlameModel(assets(folder))), weights_of(40)
    moments = [moment(seed) | {"dynamic_offset": dynamic(40, seed)} for seed in range(5)]
    tables = {name: torch.stack([p[name] for p in moments]).requires_grad_() for name in moments[0]}
    for row in (0, 4, 4):
        posed = ours.pose(**tables, row=row)
        values, _ = in_native(ours, moments[row], weights)
        assert torch.equal(posed, values)
        posed.backward(weights)
    for name, table in tables.items():
        assert table.grad is not None and table.grad.is_sparse
        dense = table.grad.to_dense()
        for row, times in enumerate((1, 0, 0, 0, 2)):
            _, gradients = in_native(ours, moments[row], weights)
            assert torch.equal(dense[row], times * gradients[name])
    (tables["expr"].square().sum() + ours.pose(**tables, row=1).sum()).backward()  # a loss on the whole table as well
    assert tables["expr"].grad is not None and bool((tables["expr"].grad.to_dense() != 0).all())
    with pytest.raises(ValueError, match="row: found 5, expected 0 to 4"):
        ours.pose(**tables, row=5)


@pytest.mark.parametrize("name", [*WIDTHS, "dynamic_offset"])
def test_wrong_parameters_are_refused(folder: Path, name: str) -> None:
    ours, p = poser(FlameModel(assets(folder))), moment(12) | {"dynamic_offset": dynamic(40)}
    for wrong in (p[name][None], p[name].double(), p[name].to("meta"), [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match=name):
            ours.pose(**(p | {name: wrong}))
    if name != "expr":
        with pytest.raises(ValueError, match=name):
            ours.pose(**(p | {name: p[name][:-1]}))
    for bad in (float("nan"), float("inf")):
        wrong = p[name].clone()
        wrong.view(-1)[2] = bad
        with pytest.raises(library.NonFiniteError, match=f"{name}: value 2 is not finite"):
            ours.pose(**(p | {name: wrong}))


@pytest.mark.parametrize("name", ["rest", "joints", "basis", "joint_basis", "joint_regressor", "weights"])
def test_wrong_constants_are_refused(folder: Path, name: str) -> None:
    model = FlameModel(assets(folder))
    identity = model.fold_identity(torch.linspace(-1, 1, 300))
    array = {"rest": identity.planar, "joints": identity.joints}.get(name)
    array = getattr(model, name) if array is None else array
    for wrong in (array[:-1], array[0], array.double()):
        with pytest.raises(ValueError, match="basis" if name == "joint_basis" else name):
            poser(model, **{name: wrong})
    wrong = array.clone()
    wrong[-1, -1] = float("nan")
    with pytest.raises(library.NonFiniteError, match=f"{name}: value {array.numel() - 1} is not finite"):
        poser(model, **{name: wrong})


def test_wrong_trees_and_correctives_are_refused(folder: Path) -> None:
    model = FlameModel(assets(folder))
    for parents in ((-1, 0, 1, 1), (0, 0, 1, 1, 1), (-1, 2, 1, 1, 1), (-1, 0, 1, 1, -1)):
        with pytest.raises(ValueError, match="parents"):
            poser(model, parents=parents)
    with pytest.raises(ValueError, match="correctives"):
        poser(model, correctives=35)
    with pytest.raises(ValueError, match="basis"):
        poser(model, correctives=0)


def test_the_c_door_refuses_null_and_wrong_numbers(folder: Path) -> None:
    calls = library.library()
    ours, handle = poser(FlameModel(assets(folder))), ctypes.c_void_p()
    arrays = native._Arrays(vertices=40, expressions=0, correctives=7)
    empty, wanted, out = native._Moment(), native._Gradients(), (ctypes.c_float * 48 * 3)()
    refused = [
        calls.mien_flame_create(None, ctypes.byref(handle)),
        calls.mien_flame_create(ctypes.byref(arrays), ctypes.byref(handle)),
        calls.mien_flame_create(ctypes.byref(native._Arrays(vertices=0)), ctypes.byref(handle)),
        calls.mien_flame_create(ctypes.byref(native._Arrays(vertices=40)), ctypes.byref(handle)),
        calls.mien_flame_pose(None, ctypes.byref(empty), 1, out, out),
        calls.mien_flame_pose(ours.handle, ctypes.byref(empty), 1, out, out),
        calls.mien_flame_pose(ours.handle, ctypes.byref(native._Moment(n_expr=-1)), 1, out, out),
        calls.mien_flame_pose_backward(ours.handle, None, out, out, 1, ctypes.byref(wanted)),
        calls.mien_flame_pose_backward(ours.handle, ctypes.byref(empty), out, out, 1, ctypes.byref(wanted)),
    ]
    assert refused == [1] * len(refused) and not handle


def test_the_choice_is_visible(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FlameModel(assets(folder))
    identity, tables = model.fold_identity(torch.ones(300)), {name: v[None] for name, v in moment(13).items()}
    pose, note = choose_posing(model, identity)
    assert note == "flame: native kernel"
    torch.testing.assert_close(pose(tables, 0, 1), pose_in_torch(model, identity)(tables, 0, 1), rtol=1e-6, atol=1e-6)
    double = FlameModel(assets(folder)).double()
    assert choose_posing(double, double.fold_identity(torch.ones(300).double()))[1] == "flame: PyTorch"
    monkeypatch.setattr("flame_model.posing.NATIVE", "no_such_package.flame")
    assert choose_posing(model, identity)[1].startswith("flame: PyTorch (the native kernel can't be used: ")


def test_a_diverged_parameter_is_named_with_its_timestep(folder: Path) -> None:
    model = FlameModel(assets(folder))
    tables = {name: torch.stack([value, value]) for name, value in moment(14).items()}
    tables["jaw_pose"][1, 2] = float("nan")
    pose = NativePose(model, model.fold_identity(torch.ones(300)))
    assert pose(tables, 0, 1).isfinite().all()
    with pytest.raises(NumericalFault, match="flame: timestep 1: jaw_pose: value 2 is not finite"):
        pose(tables, 1, 1)


def test_rigs_agree_and_pass_the_same_gradients(tmp_path: Path) -> None:
    ours, twin = avatars.rig(tmp_path), avatars.rig(tmp_path)
    twin.pose = pose_in_torch(twin.flame, twin.identity)
    for timestep in (2, 0, 2):
        posed, expected = ours(timestep).vertices, twin(timestep).vertices
        torch.testing.assert_close(posed, expected, rtol=1e-6, atol=1e-6)
        weights = weights_of(len(posed))
        posed.backward(weights)
        expected.backward(weights)
    for name in ours.parameters:
        found, wanted = ours.parameters[name].grad, twin.parameters[name].grad
        assert found is not None and wanted is not None and found.is_sparse and wanted.is_sparse
        torch.testing.assert_close(found.to_dense(), wanted.to_dense(), rtol=1e-5, atol=1e-5)


def test_a_short_training_ends_where_the_pytorch_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Twelve steps of train.py, motion and dynamic offset included, to the rounding of float32."""
    flags = write_tiny(tmp_path / "tiny") + ["--iterations", "12", "--densify_from_iter", "100", "--threads", "1"]
    flags += ["--train_dynamic_offset", "--lambda_dynamic_offset", "0.1", "--flame_pose_lr", "1e-3"]
    flags += ["--rotation_lr", "0"]  # the first Gaussians are round: the gradients of their turns are rounding alone
    flags.remove("--quiet")
    ends, start = [], {}
    for name, module in (("native", "diff_gaussian_rasterization.flame"), ("twin", "no_such_package.flame")):
        monkeypatch.setattr("flame_model.posing.NATIVE", module)
        assert run_main(train.main, [*flags, "-m", str(tmp_path / name)]) == 0
        said = capfd.readouterr()
        assert ("flame: native kernel" in said.out + said.err) == (name == "native")
        loaded = load_run(tmp_path / name)
        assert loaded.dataset.motion is not None
        start = loaded.dataset.motion.per_frame
        ends.append(loaded.avatar.state_dict())
    for name, found in ends[0].items():
        torch.testing.assert_close(found, ends[1][name], rtol=1e-5, atol=3e-6, msg=lambda text, n=name: f"{n}: {text}")
    for name in WIDTHS:
        moved = (ends[0][f"flame.{name}"] - start[name]).abs().max()
        assert moved > 100 * (ends[0][f"flame.{name}"] - ends[1][f"flame.{name}"]).abs().max() and moved > 1e-5
