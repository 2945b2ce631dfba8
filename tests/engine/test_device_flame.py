"""FLAME posed by the CUDA kernels: against the PyTorch model in float64, the CPU kernel, and itself."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flame_model import FlameModel, load_flame
from tests.engine.conftest import cpu_engine
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

native = pytest.importorskip("diff_gaussian_rasterization.flame", reason="the native package is not installed")
PARAMETERS = ("expr", "rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation", "dynamic_offset")
BAD_INPUT, BAD_GRADIENT = 2, 8
PI = float(np.pi)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flame")


class Batch:
    """Several views in one call of the C functions; gradients of every parameter that is given."""

    def __init__(self, ours: Any, tables: dict[str, Tensor], rows: list[int] | None, views: int) -> None:
        device, vertices = next(iter(tables.values())).device, ours.n_vertices
        self.ours, self.tables, self.views = ours, tables, views
        self.rows = None if rows is None else torch.tensor(rows, device=device)
        self.vertices = torch.full((views, vertices, 3), torch.nan, device=device)
        self.state = torch.full((views, ours.kernels._state), torch.nan, device=device)
        self.scratch = torch.full((views, ours.kernels._scratch), torch.nan, device=device)
        self.gradients = {
            name: torch.full((views, *t.shape[1:]), torch.nan, device=device) for name, t in tables.items()
        }
        self.health = torch.zeros(6, dtype=torch.int32, device=device)

    def pointers(self, tensors: dict[str, Tensor]) -> Any:
        places = (tensors[name].data_ptr() if name in tensors else None for name in PARAMETERS)
        return (ctypes.c_void_p * len(PARAMETERS))(*places)

    def run(self, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        grad, queue = weights.to(self.vertices.device).contiguous(), native.queue_of(self.vertices)
        moments = native._DeviceMoments(
            self.views, None if self.rows is None else self.rows.data_ptr(), self.pointers(self.tables),
            self.tables["expr"].shape[1], self.state.data_ptr(), self.vertices.data_ptr(),
        )  # fmt: skip
        wanted = self.pointers(self.gradients)
        back = native._DeviceGradients(grad.data_ptr(), wanted, self.scratch.data_ptr(), self.health.data_ptr())
        handle, call = self.ours.handle, self.ours.kernels._call
        call("flame_pose", handle, ctypes.byref(moments), ctypes.byref(queue))
        call("flame_pose_backward", handle, ctypes.byref(moments), ctypes.byref(back), ctypes.byref(queue))
        return self.vertices.cpu(), {name: gradient.cpu() for name, gradient in self.gradients.items()}


def tables_of(vertices: int, count: int, device: torch.device) -> dict[str, Tensor]:
    moments = [moment(seed) | {"dynamic_offset": dynamic(vertices, seed)} for seed in range(count)]
    return {name: torch.stack([p[name] for p in moments]).to(device) for name in moments[0]}


@pytest.mark.parametrize("vertices", [5, 32, 33, 1100])
@pytest.mark.parametrize("offset", [False, True])
def test_agrees_with_pytorch_in_float64(engine_device: torch.device, folder: Path, vertices: int, offset: bool) -> None:
    p = moment() | ({"dynamic_offset": dynamic(vertices)} if offset else {})
    assert_agrees(assets(folder, vertices), p, weights_of(vertices), device=engine_device)


def test_agrees_on_flame_topology_with_teeth(engine_device: torch.device, shared: Path) -> None:
    """Correctives and expressions, zero in the stand-in, are made non-zero; those of the teeth stay zero."""
    stand_in = load_flame(shared / "data" / "flame_stand_in" / "flame2023.pkl")
    random = np.random.default_rng(0)
    pose_dirs, expr_dirs = (
        random.normal(0, 1e-3, array.shape).astype(np.float32) for array in (stand_in.pose_dirs, stand_in.expr_dirs)
    )
    facts = replace(stand_in, pose_dirs=pose_dirs, expr_dirs=expr_dirs).with_teeth()
    p = moment(3, 0.3, expr=100) | {"dynamic_offset": dynamic(5143)}
    assert_agrees(facts, p, weights_of(5143), 4e-6, device=engine_device)


@pytest.mark.parametrize("angle", [0.0, 1e-20, 1e-4, PI, 2 * PI, 10.0])
def test_every_angle(engine_device: torch.device, folder: Path, angle: float) -> None:
    p = moment(2)
    for name in ("rotation", "neck_pose", "jaw_pose", "eyes_pose"):
        p[name] = angle * torch.nn.functional.normalize(p[name].view(-1, 3), dim=1).flatten()
    assert_agrees(assets(folder), p, weights_of(40), device=engine_device)


@pytest.mark.parametrize("used", [0, 5])
@pytest.mark.parametrize("correctives", [True, False])
def test_directions_that_do_nothing(engine_device: torch.device, folder: Path, used: int, correctives: bool) -> None:
    """Left out as a whole, or in the blocks of vertices where they are zero."""
    facts = assets(folder, 200)
    expr_dirs, pose_dirs = facts.expr_dirs.copy(), facts.pose_dirs * np.float32(correctives)
    expr_dirs[:, :, used:] = 0
    expr_dirs[50:, :, 1] = 0
    pose_dirs[:90, :, 20] = 0
    changed = replace(facts, expr_dirs=expr_dirs, pose_dirs=pose_dirs)
    assert_agrees(changed, moment(8), weights_of(200), device=engine_device)
    ours = poser(FlameModel(changed), engine_device)
    _, gradients = in_native(ours, moment(8), weights_of(200), device=engine_device)
    assert not gradients["expr"][used:].any()


def test_fewer_and_more_expressions_than_the_model_has(engine_device: torch.device, folder: Path) -> None:
    facts, weights = assets(folder), weights_of(40)
    ours, p = poser(FlameModel(facts), engine_device), moment(9)
    padded = p | {"expr": torch.cat([p["expr"][:4], torch.zeros(8)])}
    exact, exact_gradients = in_native(ours, padded, weights, device=engine_device)
    for expr in (p["expr"][:4], torch.cat([p["expr"][:4], torch.zeros(8), torch.ones(5)])):
        values, gradients = in_native(ours, p | {"expr": expr}, weights, device=engine_device)
        assert torch.equal(values, exact) and torch.equal(gradients["expr"][:4], exact_gradients["expr"][:4])
        assert len(expr) == 4 or not gradients["expr"][12:].any()
    nothing = p | {"expr": torch.zeros(0), "dynamic_offset": dynamic(40)}
    assert_agrees(facts, nothing, weights, device=engine_device)


@pytest.mark.parametrize("offset", [False, True])
def test_agrees_with_the_cpu_kernel(engine_device: torch.device, folder: Path, offset: bool) -> None:
    p = moment(6) | ({"dynamic_offset": dynamic(200)} if offset else {})
    model, weights = FlameModel(assets(folder, 200)), weights_of(200)
    with cpu_engine():
        expected, expected_gradients = in_native(poser(model), p, weights)
    found, gradients = in_native(poser(model, engine_device), p, weights, device=engine_device)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    for name, gradient in gradients.items():
        assert (gradient - expected_gradients[name]).abs().max() <= 4e-6 * expected_gradients[name].abs().max(), name


@pytest.mark.parametrize("rows", [[2, 0, 2], [4], [1, 3, 3, 0, 2, 4, 1]])
def test_every_view_of_a_batch_is_what_it_is_alone(engine_device: torch.device, folder: Path, rows: list[int]) -> None:
    """To the bit: rows come from the device, repeated ones too, and a batch may be larger than what shares a read."""
    ours, tables = poser(FlameModel(assets(folder, 70)), engine_device), tables_of(70, 5, engine_device)
    weights = torch.randn(len(rows), 70, 3, generator=torch.Generator().manual_seed(3))
    values, gradients = Batch(ours, tables, rows, len(rows)).run(weights)
    for view, row in enumerate(rows):
        alone = {name: table[row].cpu() for name, table in tables.items()}
        posed, single = in_native(ours, alone, weights[view], device=engine_device)
        assert torch.equal(values[view], posed)
        for name in tables:
            assert torch.equal(gradients[name][view], single[name]), name


def test_without_rows_the_first_counts(engine_device: torch.device, folder: Path) -> None:
    ours, tables = poser(FlameModel(assets(folder)), engine_device), tables_of(40, 3, engine_device)
    weights = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(3))
    without, first = Batch(ours, tables, None, 2).run(weights), Batch(ours, tables, [0, 0], 2).run(weights)
    assert torch.equal(without[0], first[0]) and all(torch.equal(without[1][name], first[1][name]) for name in tables)


def test_rows_are_read_when_the_work_is_done(engine_device: torch.device, folder: Path) -> None:
    """As a captured step needs it: what lies behind the addresses changes, the call does not."""
    ours, tables = poser(FlameModel(assets(folder)), engine_device), tables_of(40, 3, engine_device)
    weights = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(3))
    batch = Batch(ours, tables, [0, 1], 2)
    before = batch.run(weights)[0].clone()
    assert batch.rows is not None
    batch.rows.copy_(torch.tensor([1, 2]))
    after, gradients = batch.run(weights)
    assert torch.equal(after[0], before[1]) and not torch.equal(after[1], before[0])
    assert all(torch.equal(gradients[name], Batch(ours, tables, [1, 2], 2).run(weights)[1][name]) for name in tables)


@pytest.mark.parametrize("order", ["reverse", "1", "2"])
def test_the_order_of_threads_does_not_matter(
    emulated_library: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    weights = torch.randn(5, 70, 3, generator=torch.Generator().manual_seed(3))
    native_device = pytest.importorskip("diff_gaussian_rasterization._device")
    native_device.emulate(emulated_library)
    try:
        ours, tables = poser(FlameModel(assets(folder, 70))), tables_of(70, 3, torch.device("cpu"))
        expected, expected_gradients = Batch(ours, tables, [2, 0, 2, 1, 1], 5).run(weights)
        monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
        found, gradients = Batch(ours, tables, [2, 0, 2, 1, 1], 5).run(weights)
    finally:
        native_device.emulate(None)
    assert torch.equal(found, expected)
    assert all(torch.equal(gradients[name], expected_gradients[name]) for name in tables)


def test_gradients_that_nobody_asked_for(engine_device: torch.device, folder: Path) -> None:
    p, weights = moment(11) | {"dynamic_offset": dynamic(40)}, weights_of(40)
    ours = poser(FlameModel(assets(folder)), engine_device)
    _, everything = in_native(ours, p, weights, device=engine_device)
    there = {name: value.to(engine_device) for name, value in p.items()}
    for name in p:
        leaf = there[name].clone().requires_grad_()
        (alone,) = torch.autograd.grad(ours.pose(**(there | {name: leaf})), leaf, weights.to(engine_device))
        assert torch.equal(alone.cpu(), everything[name])
    assert not ours.pose(**there).requires_grad


def test_rows_of_tables(engine_device: torch.device, folder: Path) -> None:
    """The same bits as of single vectors; sparse gradients of that row alone, which add up."""
    ours, weights = poser(FlameModel(assets(folder)), engine_device), weights_of(40)
    tables = {name: table.requires_grad_() for name, table in tables_of(40, 5, engine_device).items()}
    alone = [
        in_native(ours, {name: table[row].detach() for name, table in tables.items()}, weights, device=engine_device)
        for row in range(5)
    ]
    for row in (0, 4, 4):
        posed = ours.pose(**tables, row=row)
        assert torch.equal(posed.cpu(), alone[row][0])
        posed.backward(weights.to(engine_device))
    for name, table in tables.items():
        assert table.grad is not None and table.grad.is_sparse
        dense = table.grad.to_dense().cpu()
        for row, times in enumerate((1, 0, 0, 0, 2)):
            assert torch.equal(dense[row], times * alone[row][1][name])
    with pytest.raises(ValueError, match="row: found 5, expected 0 to 4"):
        ours.pose(**tables, row=5)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_told_of(
    engine_device: torch.device, folder: Path, name: str, value: float
) -> None:
    """By the way back; the eager call looks at nothing, and the vertices show it."""
    ours, tables = poser(FlameModel(assets(folder)), engine_device), tables_of(40, 2, engine_device)
    weights = torch.ones(2, 40, 3)
    healthy = Batch(ours, tables, [0, 1], 2)
    healthy.run(weights)
    assert not healthy.health.any()
    tables[name][1].view(-1)[2] = value
    ill = Batch(ours, tables, [0, 1], 2)
    ill.run(weights)
    assert int(ill.health[0]) & BAD_INPUT
    assert torch.isfinite(ours.pose(**tables, row=0)).all() and not torch.isfinite(ours.pose(**tables, row=1)).all()


@pytest.mark.parametrize("name", PARAMETERS)
def test_gradients_that_cannot_be_squared_are_told_of(engine_device: torch.device, folder: Path, name: str) -> None:
    ours, tables = poser(FlameModel(assets(folder)), engine_device), tables_of(40, 2, engine_device)
    batch = Batch(ours, tables, [0, 1], 2)
    batch.gradients = {name: batch.gradients[name]}
    weights = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(3))
    batch.run(1e15 * weights)
    assert int(batch.health[0]) == 0
    batch.run(1e25 * weights)
    assert int(batch.health[0]) == BAD_GRADIENT


@pytest.mark.parametrize("name", [*WIDTHS, "dynamic_offset"])
def test_wrong_parameters_are_refused(engine_device: torch.device, folder: Path, name: str) -> None:
    ours = poser(FlameModel(assets(folder)), engine_device)
    p = {n: t.to(engine_device) for n, t in (moment(12) | {"dynamic_offset": dynamic(40)}).items()}
    for wrong in (p[name][None], p[name].double(), p[name].to("meta"), [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match=name):
            ours.pose(**(p | {name: wrong}))


def test_wrong_constants_are_refused(engine_device: torch.device, folder: Path) -> None:
    model = FlameModel(assets(folder))
    with pytest.raises(ValueError, match="rest must be on the CPU or on a GPU"):
        poser(model, "meta")
    with pytest.raises(ValueError, match="joints must be a tensor, got NoneType"):
        poser(model, engine_device, joints=None)
    wrong = model.weights.clone()
    wrong[-1, -1] = float("nan")
    with pytest.raises(native.NonFiniteError, match=f"weights: value {wrong.numel() - 1} is not finite"):
        poser(model, engine_device, weights=wrong)
    with pytest.raises(ValueError, match="parents"):
        poser(model, engine_device, parents=(-1, 2, 1, 1, 1))


def test_the_c_door_refuses_null_and_wrong_numbers(engine_device: torch.device, folder: Path) -> None:
    ours, handle = poser(FlameModel(assets(folder)), engine_device), ctypes.c_void_p()
    calls, size, queue = ours.kernels._native, ctypes.c_int64(), ctypes.byref(native.queue_of(ours._like))
    fine = Batch(ours, tables_of(40, 1, engine_device), None, 1)

    def moments(**changed: Any) -> Any:
        whole = {"views": 1, "tables": fine.pointers(fine.tables), "n_expr": 12, "state": fine.state.data_ptr()}
        whole |= {"vertices": fine.vertices.data_ptr()} | changed
        return ctypes.byref(native._DeviceMoments(**whole))

    empty = native._DeviceGradients()
    refused = [
        calls.mien_cuda_flame_create(None, ctypes.byref(handle), queue),
        calls.mien_cuda_flame_create(ctypes.byref(native._Arrays(vertices=40)), ctypes.byref(handle), queue),
        calls.mien_cuda_flame_sizes(None, ctypes.byref(size), ctypes.byref(size)),
        calls.mien_cuda_flame_pose(None, moments(), queue),
        calls.mien_cuda_flame_pose(ours.handle, None, queue),
        calls.mien_cuda_flame_pose(ours.handle, moments(), None),
        calls.mien_cuda_flame_pose(ours.handle, moments(views=0), queue),
        calls.mien_cuda_flame_pose(ours.handle, moments(views=65536), queue),
        calls.mien_cuda_flame_pose(ours.handle, moments(n_expr=-1), queue),
        calls.mien_cuda_flame_pose(ours.handle, moments(state=None), queue),
        calls.mien_cuda_flame_pose(ours.handle, moments(tables=fine.pointers({})), queue),
        calls.mien_cuda_flame_pose_backward(ours.handle, moments(), None, queue),
        calls.mien_cuda_flame_pose_backward(ours.handle, moments(), ctypes.byref(empty), queue),
    ]
    assert refused == [1] * len(refused) and not handle
