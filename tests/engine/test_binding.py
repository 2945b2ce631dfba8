"""The native limits on Gaussians against the PyTorch formulas in float64, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

native = pytest.importorskip("diff_gaussian_rasterization.binding", reason="the native package is not installed")
from diff_gaussian_rasterization._library import isa_name, select_isa  # noqa: E402 - after the skip

binding_limits = native.binding_limits
THRESHOLDS, WEIGHTS = (1.0, 0.6), (0.01, 1.0)


def gaussians(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    means, scales = torch.randn(n, 3, generator=g), torch.rand(n, 3, generator=g)
    radii = (torch.rand(n, generator=g) < 0.6).int() * 7
    return means, scales, radii


def expected(means: Tensor, scales: Tensor, radii: Tensor, thresholds=THRESHOLDS, weights=WEIGHTS):
    """The formulas in float64 by autograd, over the drawn ones alone."""
    means, scales = means.double().requires_grad_(), scales.double().requires_grad_()
    far = (means[radii > 0].norm(dim=1) - thresholds[0]).clamp_min(0)
    excess = (scales[radii > 0] - thresholds[1]).clamp_min(0)
    large = excess[excess.any(1)].norm(dim=1)  # the slope of a length at 0 is not what is tested here
    shown = max(1, int((radii > 0).sum()))
    xyz, scale = weights[0] * far.sum() / shown, weights[1] * large.sum() / shown
    grads = torch.autograd.grad(xyz + scale, (means, scales), allow_unused=True)
    return xyz, scale, *(torch.zeros_like(means) if g is None else g for g in grads)


def found(means: Tensor, scales: Tensor, radii: Tensor, thresholds=THRESHOLDS, weights=WEIGHTS, threads: int = 1):
    means, scales = means.clone().requires_grad_(), scales.clone().requires_grad_()
    xyz, scale = binding_limits(means, scales, radii, thresholds, weights, threads)
    return xyz.detach(), scale.detach(), *torch.autograd.grad(xyz + scale, (means, scales))


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 37, 5000])
def test_agrees_with_float64(isa: str, n: int) -> None:
    before = isa_name()
    try:
        select_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        ours = found(*gaussians(n))
    finally:
        select_isa(before)
    for mine, theirs in zip(ours, expected(*gaussians(n)), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-5, atol=1e-9)


def test_by_hand() -> None:
    means = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.5, 0.0], [9.0, 9.0, 9.0]])
    scales = torch.tensor([[0.6, 0.5, 0.1], [1.6, 0.6, 0.6], [5.0, 5.0, 5.0]])
    xyz, scale, g_means, g_scales = found(means, scales, torch.tensor([2, 1, 0], dtype=torch.int32))
    assert xyz.item() == pytest.approx(0.01 * 4.0 / 2) and scale.item() == pytest.approx(1.0 / 2)
    torch.testing.assert_close(g_means, torch.tensor([[0.003, 0.0, 0.004], [0.0] * 3, [0.0] * 3]))
    torch.testing.assert_close(g_scales, torch.tensor([[0.0] * 3, [0.5, 0.0, 0.0], [0.0] * 3]))


def test_nothing_drawn_costs_nothing() -> None:
    means, scales, radii = gaussians(40)
    assert [value.abs().max().item() for value in found(means, scales, 0 * radii)] == [0.0] * 4


def test_threshold_0_at_the_centre_has_no_slope() -> None:
    zero, radii = torch.zeros(20, 3), torch.ones(20, dtype=torch.int32)
    assert [value.abs().max().item() for value in found(zero, zero, radii, (0.0, 0.0))] == [0.0] * 4


def test_a_weight_of_0_leaves_that_limit_out() -> None:
    means, scales, radii = gaussians(50)
    for weights in ((0.0, 1.0), (0.3, 0.0)):
        ours = means.clone().requires_grad_(), scales.clone().requires_grad_()
        values = binding_limits(*ours, radii, THRESHOLDS, weights)
        values[0 if weights[0] else 1].backward()
        wanted = expected(means, scales, radii, weights=weights)
        for value, tensor, weight, theirs, slope in zip(values, ours, weights, wanted[:2], wanted[2:], strict=True):
            torch.testing.assert_close(value.detach().double(), theirs.detach(), rtol=1e-5, atol=0)
            assert (tensor.grad is None) == (weight == 0.0)
            if tensor.grad is not None:
                torch.testing.assert_close(tensor.grad.double(), slope, rtol=1e-5, atol=1e-9)


def test_the_gradient_is_multiplied_by_what_comes_from_above() -> None:
    means, scales, radii = gaussians(50)
    ours = means.clone().requires_grad_(), scales.clone().requires_grad_()
    xyz, scale = binding_limits(*ours, radii, THRESHOLDS, WEIGHTS)
    grads = torch.autograd.grad(2.0 * xyz - 0.5 * scale, ours)
    plain = found(means, scales, radii)
    assert torch.equal(grads[0], 2.0 * plain[2]) and torch.equal(grads[1], -0.5 * plain[3])


def test_same_bits_for_any_thread_count() -> None:
    many = gaussians(150_001)
    one = found(*many)
    for threads in (2, 5):
        assert all(torch.equal(a, b) for a, b in zip(one, found(*many, threads=threads), strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_show(bad: float) -> None:
    means, scales, radii = gaussians(30)
    radii[:] = 1
    means[3, 1] = scales[4, 2] = bad
    xyz, scale, *_ = found(means, scales, radii)
    assert not xyz.isfinite() and not scale.isfinite()
    radii[3:5] = 0
    assert all(value.isfinite().all() for value in found(means, scales, radii))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"means": torch.zeros(4, 2)}, "means must have shape"),
        ({"scales": torch.zeros(3, 3)}, "scales must have shape"),
        ({"scales": torch.zeros(4, 3).double()}, "scales must have dtype"),
        ({"radii": torch.zeros(4)}, "radii must be an int32"),
        ({"radii": torch.zeros(5, dtype=torch.int32)}, "radii must have shape"),
    ],
)
def test_bad_arguments_are_refused_by_name(change: dict[str, Tensor], named: str) -> None:
    tensors = {"means": torch.zeros(4, 3), "scales": torch.zeros(4, 3), "radii": torch.zeros(4, dtype=torch.int32)}
    with pytest.raises(ValueError, match=named):
        binding_limits(**{**tensors, **change}, thresholds=THRESHOLDS, weights=WEIGHTS)
