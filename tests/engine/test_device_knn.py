"""`simple_knn` by its CUDA kernels: the bits of its CPU kernels, whatever the points."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engine.conftest import why_no_gpu
from tests.engine.test_knn import KINDS, cloud

knn = pytest.importorskip("simple_knn._C", reason="the native package is not installed")
device_side = pytest.importorskip("simple_knn._device")


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where points must lie for the CUDA kernels to search them."""
    if request.param == "cuda":
        if (reason := why_no_gpu()) is not None:
            pytest.skip(reason)
        if device_side.device_library(torch.zeros(1, 3, device="cuda")) is None:
            pytest.skip("simple_knn was built without CUDA kernels")
        yield torch.device("cuda")
        return
    device_side.emulate(request.getfixturevalue("emulated_library"))
    yield torch.device("cpu")
    device_side.emulate(None)


def both(points: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the device finds, and what the CPU kernels find."""
    found = knn.distCUDA2(points.to(device))
    assert found.device.type == device.type
    library, device_side._emulated = device_side._emulated, None
    try:
        expected = knn.distCUDA2(points)
    finally:
        device_side._emulated = library
    return found.cpu(), expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [100, 2500])
def test_the_bits_of_the_cpu(device: torch.device, kind: str, count: int) -> None:
    points = cloud(kind, count, np.random.default_rng(count)).astype(np.float32)
    found, expected = both(torch.from_numpy(points), device)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 1057])
def test_every_size_around_leaves_and_nodes(device: torch.device, count: int) -> None:
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(count))
    found, expected = both(points, device)
    assert torch.equal(found, expected) and found.shape == (count,)


def test_four_levels_of_boxes(device: torch.device) -> None:
    points = torch.rand(34_000, 3, generator=torch.Generator().manual_seed(4))
    found, expected = both(points, device)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-20, 1e15, 3e38])
def test_tiny_and_huge_coordinates(device: torch.device, size: float) -> None:
    points = size * torch.rand(300, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - size / 2
    found, expected = both(points.float(), device)
    assert torch.equal(found, expected)


def test_duplicates_and_a_single_place(device: torch.device) -> None:
    points = torch.cat([torch.zeros(1000, 3), torch.ones(2, 3)])
    found, expected = both(points, device)
    assert torch.equal(found, expected) and found[-1] == 2.0
    assert not both(torch.full((300, 3), 1.25), device)[0].any()


def test_far_points_between_near_ones(device: torch.device) -> None:
    """Leaves whose box is large: the bounds, not the order, must decide what is looked at."""
    points = torch.from_numpy(cloud("uniform", 1500, np.random.default_rng(5)).astype(np.float32))
    points[::50] *= 1000
    found, expected = both(points, device)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("order", ["reverse", "1"])
def test_the_order_of_threads_does_not_matter(
    emulated_library: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    points = torch.rand(1100, 3, generator=torch.Generator().manual_seed(1))
    device_side.emulate(emulated_library)
    try:
        expected = knn.distCUDA2(points)
        monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
        assert torch.equal(knn.distCUDA2(points), expected)
    finally:
        device_side.emulate(None)


def test_the_order_of_points_does_not_matter(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the caller's nor that of the search: a curve only makes it fast."""
    points = torch.rand(300, 3, generator=torch.Generator().manual_seed(2))
    expected, shuffle = both(points, device)[0], torch.randperm(300, generator=torch.Generator().manual_seed(3))
    assert torch.equal(both(points[shuffle], device)[0], expected[shuffle])
    monkeypatch.setattr(device_side, "morton_order", lambda points: torch.arange(len(points), device=points.device))
    assert torch.equal(both(points, device)[0], expected)


def test_morton_order_follows_the_curve() -> None:
    """A grid of 8 x 8 x 8: each eighth of the rows fills an octant, each eighth of that one of its octants."""
    axis = torch.arange(8.0)
    grid = torch.cartesian_prod(axis, axis, axis)[torch.randperm(512, generator=torch.Generator().manual_seed(0))]
    in_order = grid[device_side.morton_order(grid)]
    for part in (64, 8):
        boxes = in_order.view(-1, part, 3)
        assert ((boxes.amax(1) - boxes.amin(1)) == round(part ** (1 / 3)) - 1).all()


def test_morton_order_of_one_place_and_of_denormals() -> None:
    assert device_side.morton_order(torch.full((5, 3), 2.5)).tolist() == [0, 1, 2, 3, 4]
    assert device_side.morton_order(1e-45 * torch.tensor([[1.0, 0, 0], [0, 0, 0], [3, 3, 3]])).tolist() == [1, 0, 2]


def test_strided_and_tracked_tensors(device: torch.device) -> None:
    table = torch.rand(50, 7, generator=torch.Generator().manual_seed(0)).to(device)
    expected = knn.distCUDA2(table[:, :3].contiguous())
    found = knn.distCUDA2(table.requires_grad_()[:, :3])
    assert torch.equal(found, expected) and not found.requires_grad


def test_bad_points_are_refused(device: torch.device) -> None:
    points = torch.zeros(4, 3, device=device)
    for value in (float("nan"), float("-inf")):
        points[2, 1] = value
        with pytest.raises(ValueError, match=r"points: row 2 is \[0, -?(nan|inf), 0\], expected finite"):
            knn.distCUDA2(points)


def test_the_c_door_refuses_null_and_wrong_numbers(emulated_library: Path) -> None:
    calls = device_side.open_library(emulated_library)
    size = device_side.c_int64()
    refused = [
        calls.knn_cuda_scratch(device_side.c_int64(0), device_side.ctypes.byref(size)),
        calls.knn_cuda_scratch(device_side.c_int64(2**32), device_side.ctypes.byref(size)),
        calls.knn_cuda_scratch(device_side.c_int64(5), None),
        calls.knn_cuda_mean_squared_distances(None, None, device_side.c_int64(5), None, None, None),
    ]
    assert refused == [1] * len(refused)
    assert calls.knn_cuda_scratch(device_side.c_int64(2**32 - 1), device_side.ctypes.byref(size)) == 0
    leaves = 2**27
    assert 24 * leaves < size.value < 25 * leaves
