"""Fused L1 + SSIM and 8-bit conversion against plain PyTorch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.optional import given, settings, st

native = pytest.importorskip("diff_gaussian_rasterization.image", reason="the native package is not installed")
l1_ssim, to_float = native.l1_ssim, native.to_float
from diff_gaussian_rasterization._library import isa_name, select_isa  # noqa: E402 - after the skip


def reference(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The textbook formula: five convolutions with an 11x11 window, zero padding."""
    distance = torch.arange(-5, 6, dtype=image.dtype)
    tap = torch.exp(-(distance**2) / (2 * 1.5**2))
    tap = tap / tap.sum()
    channels = image.shape[0]
    window = torch.outer(tap, tap).expand(channels, 1, 11, 11)

    def mean(picture: Tensor) -> Tensor:
        return F.conv2d(picture[None], window, padding=5, groups=channels)[0]

    m, n = mean(image), mean(target)
    var_m, var_n, cov = mean(image**2) - m**2, mean(target**2) - n**2, mean(image * target) - m * n
    ssim = (2 * m * n + 0.01**2) * (2 * cov + 0.03**2) / ((m**2 + n**2 + 0.01**2) * (var_m + var_n + 0.03**2))
    return (image - target).abs().mean(), ssim.mean()


def pictures(channels: int, height: int, width: int, seed: int = 0, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """A picture with smooth, noisy, black and white areas, and a disturbed copy."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    smooth = 0.5 + 0.5 * np.sin(x * (1 + np.arange(channels))[:, None, None] + 2 * y)
    target = np.clip(smooth + rng.normal(0, 0.1, smooth.shape) * (x > 1.5), 0, 1)
    target[:, : height // 4] = 1.0
    target[:, :, : width // 5] = 0.0
    image = np.clip(target + noise * rng.normal(0, 1, target.shape), -0.2, 1.2)
    return torch.from_numpy(image).float(), torch.from_numpy(target).float()


def value_and_gradient(function, image: Tensor, target: Tensor, weights: tuple[float, float]):
    image = image.clone().requires_grad_()
    l1, ssim = function(image, target)
    (weights[0] * l1 + weights[1] * ssim).backward()
    assert image.grad is not None
    return l1.detach(), ssim.detach(), image.grad


SIZES = [(3, 1, 1), (3, 3, 7), (3, 257, 129), (3, 64, 64), (1, 11, 200), (3, 33, 5), (3, 5, 34), (2, 70, 16)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.8, -0.2)], ids=["l1", "ssim", "both"])
def test_agrees_with_float64_autograd(size: tuple[int, int, int], weights: tuple[float, float]) -> None:
    image, target = pictures(*size)
    l1, ssim, gradient = value_and_gradient(l1_ssim, image, target, weights)
    expected = value_and_gradient(reference, image.double(), target.double(), weights)
    assert l1.item() == pytest.approx(expected[0].item(), abs=1e-6)
    assert ssim.item() == pytest.approx(expected[1].item(), abs=1e-6)
    assert torch.linalg.norm(gradient - expected[2]) <= 1e-5 * torch.linalg.norm(expected[2])
    assert (gradient - expected[2]).abs().max() <= 3e-5 * expected[2].abs().max()


@pytest.mark.parametrize("noise", [0.1, 0.01])
def test_more_accurate_than_the_textbook_formula_in_float32(noise: float) -> None:
    """White areas are where E[x^2] - E[x]^2 loses its digits; the native formula must not."""
    image, target = pictures(3, 64, 64, noise=noise)
    exact = value_and_gradient(reference, image.double(), target.double(), (0.0, 1.0))[2]
    errors = [(value_and_gradient(f, image, target, (0.0, 1.0))[2] - exact).norm() for f in (l1_ssim, reference)]
    assert errors[0] < 0.5 * errors[1]


def test_gradient_agrees_with_finite_differences() -> None:
    """Of the native values alone: no reference implementation is involved. Directions average the float32 rounding."""
    image, target = pictures(3, 20, 24, noise=0.2)
    gradient = value_and_gradient(l1_ssim, image, target, (0.0, 1.0))[2].double()
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        direction = torch.randn(image.shape, generator=generator)
        step = 2e-3
        change = l1_ssim(image + step * direction, target)[1] - l1_ssim(image - step * direction, target)[1]
        assert change.item() / (2 * step) == pytest.approx((gradient * direction).sum().item(), rel=1e-2, abs=1e-4)


def test_identical_pictures() -> None:
    """SSIM is 1 and every gradient is exactly zero, in flat white areas too."""
    _, target = pictures(3, 40, 50)
    l1, ssim, gradient = value_and_gradient(l1_ssim, target, target.clone(), (0.8, -0.2))
    assert l1.item() == 0.0 and ssim.item() == 1.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_l1_gradient_is_the_sign() -> None:
    image = torch.tensor([[[0.25, 0.5, 0.75]]])
    gradient = value_and_gradient(l1_ssim, image, torch.full((1, 1, 3), 0.5), (3.0, 0.0))[2]
    assert gradient.flatten().tolist() == [-1.0, 0.0, 1.0]


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 70), seed=st.integers(0, 1000), noise=st.floats(0.0, 0.5))
def test_any_size_agrees_with_float64(height: int, width: int, seed: int, noise: float) -> None:
    image, target = pictures(3, height, width, seed, noise)
    l1, ssim = l1_ssim(image, target)
    expected_l1, expected_ssim = reference(image.double(), target.double())
    assert l1.item() == pytest.approx(expected_l1.item(), abs=1e-6)
    assert ssim.item() == pytest.approx(expected_ssim.item(), abs=2e-6)


def test_same_bits_for_any_thread_count() -> None:
    image, target = pictures(3, 131, 77)
    one = value_and_gradient(lambda a, b: l1_ssim(a, b, threads=1), image, target, (0.8, -0.2))
    for threads in (2, 3, 7):
        other = value_and_gradient(lambda a, b, n=threads: l1_ssim(a, b, threads=n), image, target, (0.8, -0.2))
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_known_weights_give_the_same_gradient_without_a_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever backward asks for in the end: those weights, a multiple of them, others, one term alone, or twice."""
    image, target = pictures(3, 37, 45)
    passes: list[object] = []
    real = native._pass
    monkeypatch.setattr(native, "_pass", lambda *given: (passes.append(given), real(*given))[1])
    for known, wanted, expected_passes in [
        ((0.8, -0.2), (0.8, -0.2), 1),
        ((0.8, -0.2), (0.8 / 3, -0.2 / 3), 1),
        ((0.8, -0.2), (-1.6, 0.4), 1),
        ((0.8, -0.2), (0.8, -0.3), 2),
        ((0.0, -1.0), (0.0, -1.0), 1),
        ((0.0, -1.0), (0.5, 0.0), 2),
        ((0.0, 0.0), (0.8, -0.2), 2),
        (None, (0.8, -0.2), 2),
    ]:
        passes.clear()
        found = value_and_gradient(lambda a, b, k=known: l1_ssim(a, b, weights=k), image, target, wanted)
        assert len(passes) == expected_passes, (known, wanted)
        expected = value_and_gradient(reference, image.double(), target.double(), wanted)
        assert torch.linalg.norm(found[2] - expected[2]) <= 1e-5 * torch.linalg.norm(expected[2])


def test_backward_can_be_called_twice() -> None:
    image, target = pictures(3, 20, 30)
    image.requires_grad_()
    l1, ssim = l1_ssim(image, target, weights=(0.8, -0.2))
    loss = 0.8 * l1 - 0.2 * ssim
    first, second, double = (
        torch.autograd.grad(loss, image, torch.tensor(factor), retain_graph=True)[0] for factor in (1.0, 1.0, 2.0)
    )
    assert torch.equal(first, second) and torch.equal(double, 2 * first)


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
@pytest.mark.parametrize("size", [(3, 70, 90), (1, 11, 200), (2, 150, 33), (1, 300, 7)], ids=str)
def test_every_instruction_set(isa: str, size: tuple[int, int, int]) -> None:
    before = isa_name()
    try:
        select_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        image, target = pictures(*size)
        found = value_and_gradient(lambda a, b: l1_ssim(a, b, 3, (0.8, -0.2)), image, target, (0.8, -0.2))
        again = value_and_gradient(lambda a, b: l1_ssim(a, b, 1, (0.8, -0.2)), image, target, (0.8, -0.2))
        plain = l1_ssim(image, target)
    finally:
        select_isa(before)
    expected = value_and_gradient(reference, image.double(), target.double(), (0.8, -0.2))
    assert found[0].item() == pytest.approx(expected[0].item(), abs=1e-6)
    assert found[1].item() == pytest.approx(expected[1].item(), abs=1e-6)
    assert (found[2] - expected[2]).abs().max() <= 3e-5 * expected[2].abs().max()
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))
    assert torch.equal(plain[0], found[0]) and torch.equal(plain[1], found[1])


def test_the_mean_of_white_is_white() -> None:
    """Where [a b] - [a] [b] of a white area is not exactly zero, that error is as large as its gradient."""
    target = torch.ones(1, 60, 80)
    image = target - 1e-3 * (torch.arange(80) % 2)
    gradient = value_and_gradient(l1_ssim, image, target, (0.0, 1.0))[2]
    exact = value_and_gradient(reference, image.double(), target.double(), (0.0, 1.0))[2]
    assert (gradient - exact).norm() <= 1e-3 * exact.norm()


def test_strided_pictures() -> None:
    image, target = pictures(3, 12, 15)
    strided = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not strided.is_contiguous()
    expected = value_and_gradient(l1_ssim, image, target, (1.0, 1.0))
    found = value_and_gradient(l1_ssim, strided, target, (1.0, 1.0))
    assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True))


def test_without_gradient() -> None:
    image, target = pictures(3, 12, 15)
    l1, ssim = l1_ssim(image, target)
    assert not l1.requires_grad and not ssim.requires_grad
    with torch.no_grad():
        again = l1_ssim(image.requires_grad_(), target)
    assert not again[0].requires_grad and torch.equal(again[1], ssim)


GREY = torch.full((3, 4, 5), 0.5)


@pytest.mark.parametrize(
    ("image", "target", "named"),
    [
        (GREY.double(), GREY, "image: found torch.float64"),
        (GREY, GREY.byte(), "target: found torch.uint8"),
        (GREY[0], GREY[0], "image: found shape"),
        (GREY[:, :0], GREY[:, :0], "image: found shape"),
        (GREY, GREY[:, :3], "target: found shape"),
        (GREY, GREY.clone().requires_grad_(), "target: requires a gradient"),
        (GREY.to("meta"), GREY, "image: is on meta"),
        (GREY.numpy(), GREY, "image: found float32"),
    ],
)
def test_bad_pictures_are_refused_by_name(image: Tensor, target: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        l1_ssim(image, target)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, float("nan")), (float("inf"), 0.0)])
def test_bad_weights_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights: found"):
        l1_ssim(GREY, GREY, weights=weights)


def test_every_byte_becomes_the_float_that_division_gives() -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(300)[: 3 * 25 * 101].reshape(3, 25, 101)
    expected = levels.float() / 255
    for threads in (1, 3):
        floats = to_float(levels, threads=threads)
        assert floats.is_contiguous() and torch.equal(floats, expected)
    assert torch.equal(to_float(levels[:, ::2, 1:]), expected[:, ::2, 1:])
    large = levels.repeat(1, 20, 10)
    assert torch.equal(to_float(large, threads=2), large.float() / 255)


@pytest.mark.filterwarnings("error")
def test_a_read_only_array_becomes_floats() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    levels.flags.writeable = False
    assert torch.equal(to_float(levels[1:, 2:]), torch.from_numpy(levels[1:, 2:].astype(np.float32) / np.float32(255)))
    assert to_float(levels[:0]).shape == (0, 8, 8)


@pytest.mark.parametrize(
    "levels", [torch.zeros(4, 5), np.zeros((4, 5)), torch.zeros(4, dtype=torch.uint8, device="meta"), [1, 2]]
)
def test_bad_bytes_are_refused(levels: object) -> None:
    with pytest.raises(ValueError, match="levels: found"):
        to_float(levels)
