"""The rig on a GPU, or emulated: FaceRig.place against the CPU engine, forward and backward."""

from __future__ import annotations

import pytest
import torch
from diff_gaussian_rasterization.rig import FaceRig, Placed
from torch import Tensor

from tests.engine.conftest import cpu_engine
from tests.engine.test_rig import scene, weights

ROUNDING = 2e-6  # relative to the largest value (seen: 3e-7)
GRADIENT = 1e-5  # relative L2 (seen: 2e-6 of vertices, whose sums are of other orders)
LEAVES = ("vertices", "means", "quats", "scales_log", "opacity_logit")

Given = tuple[Tensor, Tensor, Tensor, list[Tensor]]  # vertices, faces, binding, columns


def run(given: Given, device: torch.device, wanted: tuple[str, ...] = LEAVES) -> tuple[Placed, dict[str, Tensor]]:
    """What `place` returns, and the gradients of a fixed weighted sum towards those that are wanted; on the CPU."""
    vertices, faces, binding, columns = given
    leaves = {name: value.to(device) for name, value in zip(LEAVES, (vertices, *columns), strict=True)}
    for name in wanted:
        leaves[name].requires_grad_()
    on_mesh = [leaves[name] for name in LEAVES[1:]]
    rig = FaceRig(faces, len(vertices))
    placed = rig.place(leaves["vertices"], binding.to(device), *on_mesh)  # pyright: ignore[reportArgumentType]
    pairs = zip(weights(placed), placed, strict=True)
    total = torch.stack([(weight.to(device) * value).sum() for weight, value in pairs]).sum()
    found = torch.autograd.grad(total, [leaves[name] for name in wanted])
    return Placed(*(value.detach().cpu() for value in placed)), {
        name: value.cpu() for name, value in zip(wanted, found, strict=True)
    }


def assert_is_the_cpu_engines(given: Given, device: torch.device) -> None:
    copies = (given[0].clone(), given[1], given[2], [column.clone() for column in given[3]])
    placed, gradients = run(given, device)
    with cpu_engine():
        wanted, wanted_gradients = run(copies, torch.device("cpu"))
    for name, value in zip(Placed._fields, placed, strict=True):
        expected = getattr(wanted, name)
        assert float((value - expected).abs().max()) <= ROUNDING * float(expected.abs().max()), name
    for name, value in gradients.items():
        expected = wanted_gradients[name].double()
        assert bool(value.isfinite().all())
        assert float((value.double() - expected).norm()) <= GRADIENT * float(expected.norm()), name


@pytest.mark.parametrize("count", [1, 127, 301, 1000])
def test_is_the_cpu_engines(engine_device: torch.device, count: int) -> None:
    assert_is_the_cpu_engines(scene(count=count), engine_device)


def test_a_crowded_face(engine_device: torch.device) -> None:
    vertices, faces, binding, columns = scene(count=700)
    binding[50:650] = 3
    binding[binding == 4] = 5  # and an empty one
    assert_is_the_cpu_engines((vertices, faces, binding, columns), engine_device)


def test_a_triangle_without_extent(engine_device: torch.device) -> None:
    vertices, faces, binding, columns = scene()
    faces[7] = faces[7, 0]
    binding[:20] = 7
    assert_is_the_cpu_engines((vertices, faces, binding, columns), engine_device)


def test_a_zero_quaternion_and_extreme_columns(engine_device: torch.device) -> None:
    vertices, faces, binding, columns = scene()
    columns[1][5] = 0.0
    columns[2][6] = -90.0
    columns[3][7], columns[3][8] = 200.0, -200.0
    assert_is_the_cpu_engines((vertices, faces, binding, columns), engine_device)


@pytest.mark.parametrize("name", LEAVES)
def test_only_what_is_wanted_gets_a_gradient(engine_device: torch.device, name: str) -> None:
    given = scene(count=90)
    everything = run((given[0].clone(), given[1], given[2], [c.clone() for c in given[3]]), engine_device)[1]
    alone = run(given, engine_device, (name,))[1]
    assert list(alone) == [name] and torch.equal(alone[name], everything[name])


def test_no_gaussians(engine_device: torch.device) -> None:
    vertices, faces, binding, columns = scene(count=0)
    placed, gradients = run((vertices, faces, binding, columns), engine_device)
    assert [tuple(value.shape) for value in placed] == [(0, 3), (0, 4), (0, 3), (0,)]
    assert not gradients["vertices"].any()


@pytest.mark.parametrize("order", ["reverse", "3"])
def test_any_order_of_threads_gives_the_same_bits(
    engine_device: torch.device, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once() -> list[Tensor]:
        placed, gradients = run(scene(), engine_device)
        return [*placed, *gradients.values()]

    expected = once()
    monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
    assert all(torch.equal(a, b) for a, b in zip(once(), expected, strict=True))
