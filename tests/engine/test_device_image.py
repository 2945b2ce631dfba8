"""Fused L1 + SSIM and 8-bit conversion of the CUDA engine against float64 autograd and the CPU engine."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from torch import Tensor

native = pytest.importorskip("diff_gaussian_rasterization.image", reason="the native package is not installed")
from diff_gaussian_rasterization._device import device_call, device_library  # noqa: E402 - after the skip

from tests.engine.conftest import cpu_engine  # noqa: E402
from tests.engine.test_image import pictures, reference, value_and_gradient  # noqa: E402

l1_ssim, to_float = native.l1_ssim, native.to_float
SIZES = [(3, 1, 1), (1, 11, 11), (3, 3, 7), (1, 33, 5), (1, 5, 34), (2, 32, 32), (1, 37, 65), (3, 63, 58)]


def through(device: torch.device, image: Tensor, target: Tensor, weights: tuple[float, float]) -> list[Tensor]:
    return [value.cpu() for value in value_and_gradient(l1_ssim, image.to(device), target.to(device), weights)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_float64_autograd(engine_device: torch.device, size: tuple[int, int, int]) -> None:
    image, target = pictures(*size)
    for weights in [(1.0, 0.0), (0.0, 1.0), (0.8, -0.2)]:
        l1, ssim, gradient = through(engine_device, image, target, weights)
        expected = value_and_gradient(reference, image.double(), target.double(), weights)
        assert l1.item() == pytest.approx(expected[0].item(), abs=1e-6)
        assert ssim.item() == pytest.approx(expected[1].item(), abs=1e-6)
        assert torch.linalg.norm(gradient - expected[2]) <= 1e-5 * torch.linalg.norm(expected[2])
        assert (gradient - expected[2]).abs().max() <= 3e-5 * expected[2].abs().max()


def test_agrees_with_the_cpu_engine_on_a_cut_of_a_photograph_of_usual_size(engine_device: torch.device) -> None:
    image, target = (picture[:, 400:471, 250:373].contiguous() for picture in pictures(3, 802, 550))
    found = through(engine_device, image, target, (0.8, -0.2))
    with cpu_engine():
        expected = value_and_gradient(l1_ssim, image, target, (0.8, -0.2))
    assert abs(found[0] - expected[0]) <= 1e-7 and abs(found[1] - expected[1]) <= 3e-7
    assert (found[2] - expected[2]).abs().max() <= 1e-5 * expected[2].abs().max()


def test_identical_pictures(engine_device: torch.device) -> None:
    """SSIM is 1 and every gradient is exactly zero, in flat white areas too."""
    _, target = pictures(3, 40, 50)
    l1, ssim, gradient = through(engine_device, target, target.clone(), (0.8, -0.2))
    assert l1.item() == 0.0 and ssim.item() == 1.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_l1_gradient_is_the_sign(engine_device: torch.device) -> None:
    image = torch.tensor([[[0.25, 0.5, 0.75]]])
    gradient = through(engine_device, image, torch.full((1, 1, 3), 0.5), (3.0, 0.0))[2]
    assert gradient.flatten().tolist() == [-1.0, 0.0, 1.0]


def test_the_mean_of_white_is_white(engine_device: torch.device) -> None:
    target = torch.ones(1, 60, 80)
    image = target - 1e-3 * (torch.arange(80) % 2)
    gradient = through(engine_device, image, target, (0.0, 1.0))[2]
    exact = value_and_gradient(reference, image.double(), target.double(), (0.0, 1.0))[2]
    assert (gradient - exact).norm() <= 1e-3 * exact.norm()


def test_backward_takes_its_factors_from_the_device(
    engine_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, with any factor, of one value alone; and nobody looks at a number."""
    image, target = (picture.to(engine_device) for picture in pictures(3, 37, 41))
    image.requires_grad_()
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__bool__", "__float__", "cpu", "numpy"):
            patched.setattr(Tensor, name, lambda *_: pytest.fail("a value was read back"))
        l1, ssim = l1_ssim(image, target, weights=(0.8, -0.2))
        loss, one = 0.8 * l1 - 0.2 * ssim, torch.ones((), device=engine_device)
        first, second, double = (
            torch.autograd.grad(loss, image, factor, retain_graph=True)[0] for factor in (one, one, 2 * one)
        )
        alone = [torch.autograd.grad(value, image, retain_graph=True)[0] for value in (l1, ssim)]
    assert torch.equal(first, second)
    torch.testing.assert_close(double, 2 * first, rtol=1e-6, atol=0)
    torch.testing.assert_close(0.8 * alone[0] - 0.2 * alone[1], first, rtol=1e-5, atol=1e-9)


def test_without_gradient(engine_device: torch.device) -> None:
    image, target = (picture.to(engine_device) for picture in pictures(3, 12, 15))
    l1, ssim = l1_ssim(image, target)
    assert not l1.requires_grad and l1.device == image.device and l1.shape == ssim.shape == ()
    with torch.no_grad():
        again = l1_ssim(image.requires_grad_(), target)
    assert not again[0].requires_grad and torch.equal(again[1], ssim)
    assert torch.equal(l1_ssim(image, target)[1].detach(), ssim)


def batch(device: torch.device, images: Tensor, targets: Tensor, scales: tuple[float, float], **more: Tensor):
    """Pictures [B, C, H, W] at once, as a captured step asks for them: sums [B, 2] and gradients."""
    gradients = torch.full_like(images, torch.nan).to(device)
    sums = torch.full((len(images), 2), torch.nan, dtype=torch.float64, device=device)
    images, targets = images.to(device).contiguous(), targets.to(device).contiguous()
    at = {name: tensor.to(device).contiguous() for name, tensor in more.items()}
    work = native._Pictures(*images.shape, images.data_ptr(), None if more else targets.data_ptr())
    for name, tensor in at.items():
        setattr(work, name, tensor.data_ptr())
    work.l1_scale, work.ssim_scale, work.gradients, work.sums = *scales, gradients.data_ptr(), sums.data_ptr()
    floats = ctypes.c_int64()
    assert device_library().mien_cuda_image_l1_ssim_scratch(ctypes.byref(work), ctypes.byref(floats)) == 0
    scratch = torch.full((floats.value,), torch.nan, device=device)
    work.scratch = scratch.data_ptr()
    device_call("image_l1_ssim", ctypes.byref(work), near=images)
    return sums.cpu(), gradients.cpu()


def test_a_batch_is_its_pictures_one_by_one(engine_device: torch.device) -> None:
    pairs = [pictures(3, 35, 34, seed) for seed in range(3)]
    images, targets = (torch.stack(list(side)) for side in zip(*pairs, strict=True))
    sums, gradients = batch(engine_device, images, targets, (0.3, -0.7))
    for view, (image, target) in enumerate(pairs):
        alone = batch(engine_device, image[None], target[None], (0.3, -0.7))
        assert torch.equal(sums[view], alone[0][0]) and torch.equal(gradients[view], alone[1][0])
        exact = value_and_gradient(reference, image.double(), target.double(), (0.3, -0.7))
        pixels = image.numel()
        assert sums[view].tolist() == pytest.approx([exact[0].item() * pixels, exact[1].item() * pixels], rel=1e-6)
        assert (gradients[view] / pixels - exact[2]).abs().max() <= 3e-5 * exact[2].abs().max()


def test_photographs_as_bytes_at_offsets(engine_device: torch.device) -> None:
    """The same bits as from the floats; the store also holds other pictures, mattes and an odd number of bytes."""
    levels = torch.randint(0, 256, (2, 3, 21, 33), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = (levels.float() / 255 + 0.1 * torch.randn(levels.shape)).contiguous()
    offset = torch.tensor([3 * 21 * 33 + 7, 0])
    store = torch.full((20_000,), 255, dtype=torch.uint8)
    for view, start in enumerate(offset.tolist()):
        store[start : start + levels[view].numel()] = levels[view].reshape(-1)
    expected = batch(engine_device, images, levels.float() / 255, (0.5, -0.25))
    found = batch(engine_device, images, levels, (0.5, -0.25), store=store, offset=offset)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("order", ["reverse", "1", "2"])
def test_same_bits_whatever_the_order_of_threads(
    engine_device: torch.device, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    image, target = pictures(2, 41, 70)
    monkeypatch.delenv("MIEN_EMULATION_ORDER", raising=False)
    forward = through(engine_device, image, target, (0.8, -0.2))
    monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
    other = through(engine_device, image, target, (0.8, -0.2))
    assert all(torch.equal(a, b) for a, b in zip(forward, other, strict=True))


GREY = torch.full((3, 4, 5), 0.5)


@pytest.mark.parametrize(
    ("image", "target", "named"),
    [
        (GREY, GREY[:, :3], "target: found shape"),
        (GREY.to("meta"), GREY.to("meta"), "image: is on meta"),
        (GREY, GREY.to("meta"), "target: is on meta"),
        (GREY.double(), GREY, "image: found torch.float64"),
    ],
)
def test_bad_pictures_are_refused_by_name(
    engine_device: torch.device, image: Tensor, target: Tensor, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        l1_ssim(*(picture if picture.is_meta else picture.to(engine_device) for picture in (image, target)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": None}, "a picture is null"),
        ({"targets": None}, "a picture is null"),
        ({"scratch": None}, "scratch is null"),
        ({"height": 0}, "are empty"),
        ({"width": 1 << 21}, "2\\^20 pixels a side"),
        ({"views": 0}, "number of pictures"),
        ({"channels": 4096, "views": 4096, "height": 1 << 20}, "too large"),
    ],
)
def test_the_door_refuses(engine_device: torch.device, change: dict[str, int | None], named: str) -> None:
    tensor = torch.zeros(4096, device=engine_device)
    work = native._Pictures(1, 1, 4, 4, tensor.data_ptr(), tensor.data_ptr(), scratch=tensor.data_ptr())
    for name, value in change.items():
        setattr(work, name, value)
    with pytest.raises(ValueError, match=named):
        device_call("image_l1_ssim", ctypes.byref(work), near=tensor)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 1023, 1025, 5000])
def test_every_byte_becomes_the_float_that_division_gives(engine_device: torch.device, count: int) -> None:
    levels = torch.arange(count + 1).to(torch.uint8)
    for start in (0, 1):  # aligned to four bytes, and not
        floats = to_float(levels[start : start + count].to(engine_device))
        assert torch.equal(floats.cpu(), levels[start : start + count].float() / 255)
    unaligned = levels.to(engine_device)[1:]
    assert torch.equal(to_float(unaligned).cpu(), levels[1:].float() / 255)


def test_an_array_becomes_floats_on_the_cpu(engine_device: torch.device) -> None:
    levels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert torch.equal(to_float(levels), torch.from_numpy(levels).float() / 255)
