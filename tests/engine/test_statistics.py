"""Screen-gradient statistics and the look for values that are not finite, against PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scene.densification.gradient import add_view

native = pytest.importorskip("diff_gaussian_rasterization.statistics", reason="the native package is not installed")
from diff_gaussian_rasterization._library import isa_name, select_isa  # noqa: E402 - after the skip


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest):
    before = isa_name()
    try:
        select_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    select_isa(before)


def view(n: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    size = 10.0 ** torch.empty(n, 1).uniform_(-9, 1, generator=g)
    return torch.randn(n, 2, generator=g) * size, torch.randint(-1, 40, (n,), generator=g, dtype=torch.int32).clamp_min(
        0
    )


@pytest.mark.parametrize("n", [0, 1, 17, 3001])
def test_views_add_up_as_in_pytorch(isa: str, n: int) -> None:
    """To the bit where the machine fuses, so that a run makes the same decisions; an ulp off elsewhere."""
    ours, theirs = torch.zeros(3, n), torch.zeros(3, n)
    for seed in range(4):
        gradients, radii = view(n, seed)
        native.add_view(gradients, radii, 3.0, *ours)
        add_view(gradients, radii, 3.0, *theirs)
    assert torch.equal(ours[1:], theirs[1:])
    torch.testing.assert_close(ours[0], theirs[0], rtol=0 if isa != "scalar" else 5e-7, atol=0)


def test_a_view_by_hand() -> None:
    sums = torch.tensor([[1.0, 1.0], [2.0, 2.0], [9.0, 9.0]])
    native.add_view(torch.tensor([[3.0, 4.0], [6.0, 8.0]]), torch.tensor([11, 0], dtype=torch.int32), 2.0, *sums)
    assert sums.tolist() == [[11.0, 1.0], [3.0, 2.0], [11.0, 9.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2e19, -3e38])
@pytest.mark.parametrize("place", [0, 15, 16, 70_000, 99_999])
def test_one_bad_value_is_found(isa: str, bad: float, place: int) -> None:
    tensors = [torch.full((3,), 1.8e19), torch.zeros(0), torch.full((100_000,), -1.8e19), torch.ones(5, 1, 3)]
    for threads in (1, 3):
        assert native.squares_finite(tensors, threads)
    tensors[2][place] = bad
    for threads in (1, 3):
        assert not native.squares_finite(tensors, threads)


def test_many_values_on_several_threads() -> None:
    values = torch.ones(5_000_000)
    assert native.squares_finite([values], 3)
    values[4_321_000] = math.nan
    assert not native.squares_finite([values], 3)


def test_strided_tensors_and_none_at_all() -> None:
    values = torch.ones(6, 4)
    values[:, 3] = math.nan
    assert native.squares_finite([values[:, :3]]) and not native.squares_finite([values[:, 2:]])
    assert native.squares_finite([])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"screen_gradients": torch.zeros(4, 3)}, "screen_gradients: found shape"),
        ({"radii": torch.zeros(4)}, "radii: expected"),
        ({"seen": torch.zeros(5)}, "seen: found shape"),
        ({"radius": torch.zeros(8)[::2]}, "radius: is not contiguous"),
        ({"gradient": torch.zeros(4).double()}, "gradient: expected"),
    ],
)
def test_bad_arguments_are_refused_by_name(change: dict[str, Tensor], named: str) -> None:
    sums = {name: torch.zeros(4) for name in ("gradient", "seen", "radius")}
    tensors = {"screen_gradients": torch.zeros(4, 2), "radii": torch.zeros(4, dtype=torch.int32), **sums, **change}
    with pytest.raises(ValueError, match=named):
        native.add_view(factor=1.0, **tensors)


def test_gradients_to_look_at_must_be_floats() -> None:
    with pytest.raises(ValueError, match="expected float32"):
        native.squares_finite([torch.zeros(3).double()])
