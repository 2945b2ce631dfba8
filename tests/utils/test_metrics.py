"""The metrics against independent float64 computations in NumPy and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d
from torch import Tensor

from utils.contracts import Camera, Frame, Mesh, Rendered, RiggedSplats, Splats
from utils.engine import metrics
from utils.engine.evaluate import evaluate


def pair(seed: int = 0, height: int = 37, width: int = 29, noise: float = 0.07) -> tuple[Tensor, Tensor, Tensor]:
    random = np.random.default_rng(seed)
    smooth = correlate1d(random.random((3, height, width)), np.ones(5) / 5, axis=2)
    noisy = np.clip(smooth + noise * random.standard_normal(smooth.shape) * np.array([1, 2, 3])[:, None, None], 0, 1)
    mask = (random.random((1, height, width)) > 0.6) * random.random((1, height, width))
    return tuple(torch.from_numpy(a.astype(np.float32)) for a in (smooth, noisy, mask))  # type: ignore[return-value]


def float64(*tensors: Tensor) -> list[np.ndarray]:
    return [t.numpy().astype(np.float64) for t in tensors]


def ssim_by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    """Eq. 13 of Wang et al. 2004 with SciPy's correlation; zero padding is its mode `constant`."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def blur(image: np.ndarray) -> np.ndarray:
        rows = correlate1d(image, taps, axis=1, mode="constant")
        return correlate1d(rows, taps, axis=2, mode="constant")

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = 1e-4, 9e-4
    index = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(index.mean())


@pytest.mark.parametrize("seed", range(4))
def test_every_metric_equals_its_float64_definition(seed: int) -> None:
    truth, image, mask = pair(seed, 37 + seed, 29 + 8 * seed)
    found = metrics.score(image, truth, mask)
    a, b, m = float64(image, truth, mask)
    squared = (a - b) ** 2
    expected = {
        "psnr": -10 * np.log10(squared.mean()),
        "psnr_channel_mean": np.mean([-10 * np.log10(channel.mean()) for channel in squared]),
        "psnr_foreground": -10 * np.log10((m * squared).sum() / (3 * m.sum())),
        "ssim": ssim_by_scipy(a, b),
        "l1": np.abs(a - b).mean(),
    }
    assert found == pytest.approx(expected, rel=1e-5, abs=0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (11, 11)])
def test_ssim_of_images_smaller_than_the_window(shape: tuple[int, int]) -> None:
    truth, image, _ = pair(1, *shape)
    assert metrics.ssim(image, truth) == pytest.approx(ssim_by_scipy(*float64(image, truth)), rel=1e-4)


def test_ssim_keeps_its_digits_on_bright_flat_images() -> None:
    truth = torch.full((3, 24, 24), 0.98) + 0.001 * torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    image = truth + 0.0005
    assert metrics.ssim(image, truth) == pytest.approx(ssim_by_scipy(*float64(image, truth)), abs=2e-4)


def test_known_values() -> None:
    black, grey = torch.zeros(3, 16, 16), torch.full((3, 16, 16), 0.1)
    assert metrics.psnr(black, grey) == pytest.approx(20.0, abs=1e-5)
    assert metrics.l1(black, grey) == pytest.approx(0.1)
    one_channel = black.clone()
    one_channel[0] = 0.1  # channels at 20 dB, and twice the ceiling
    assert metrics.psnr_channel_mean(black, one_channel) == pytest.approx((20 + 2 * metrics.PSNR_CEILING) / 3)
    assert metrics.psnr(black, one_channel) == pytest.approx(20 + 10 * math.log10(3), abs=1e-5)


def test_equal_images_score_best() -> None:
    image, _, mask = pair()
    ceiling = metrics.PSNR_CEILING
    best = {"psnr": ceiling, "psnr_channel_mean": ceiling, "psnr_foreground": ceiling, "ssim": 1.0, "l1": 0.0}
    assert metrics.score(image, image, mask) == pytest.approx(best, abs=1e-6)


def test_background_doesnt_count_inside_the_matte() -> None:
    truth, image, _ = pair()
    mask = torch.zeros(1, *truth.shape[1:])
    mask[:, 5:20, 5:20] = 1
    elsewhere = image * mask + truth * (1 - mask) * 0.5
    inside = metrics.psnr(image[:, 5:20, 5:20], truth[:, 5:20, 5:20])
    assert metrics.psnr_foreground(elsewhere, truth, mask) == pytest.approx(inside, abs=1e-4)
    assert metrics.psnr_foreground(image, truth, torch.ones_like(mask)) == pytest.approx(metrics.psnr(image, truth))


def test_foreground_psnr_is_none_without_foreground() -> None:
    truth, image, mask = pair()
    assert metrics.psnr_foreground(image, truth, None) is None
    assert metrics.psnr_foreground(image, truth, torch.zeros_like(mask)) is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), noise=st.floats(0.01, 0.5))
def test_order_and_symmetry(seed: int, noise: float) -> None:
    truth, image, mask = pair(seed, 14, 17, noise)
    forward, backward = metrics.score(image, truth, mask), metrics.score(truth, image, mask)
    assert forward == pytest.approx(backward, rel=1e-5)
    assert forward["psnr_channel_mean"] >= forward["psnr"] - 1e-9  # type: ignore[operator]
    assert -1 <= forward["ssim"] <= 1  # type: ignore[operator]


def test_means_skip_views_that_lack_a_value() -> None:
    views = [{"psnr": 20.0, "psnr_foreground": None}, {"psnr": 30.0, "psnr_foreground": 12.0}]
    assert metrics.mean_scores(views) == {"psnr": 25.0, "psnr_foreground": 12.0}
    assert metrics.mean_scores([{"psnr_foreground": None}]) == {"psnr_foreground": None}
    assert metrics.mean_scores([]) == {}


class FlatAvatar:
    """The timestep travels through the mesh and the splats into a picture of one brightness."""

    def rig(self, timestep: int) -> Mesh:
        return Mesh(torch.full((3, 3), float(timestep)), torch.tensor([[0, 1, 2]]))

    def on(self, mesh: Mesh) -> RiggedSplats:
        nothing = torch.zeros(3)
        return RiggedSplats(mesh, nothing, mesh.vertices, *[nothing] * 5, sh_degree=0, world=lambda: pytest.fail())


def flat_render(splats: Splats | RiggedSplats, camera: Camera, background: Tensor, with_depth: bool = True) -> Rendered:
    assert not torch.is_grad_enabled() and not with_depth  # scores need no depth
    level = splats.means.mean() / 10 + background[:, None, None].expand(3, camera.height, camera.width)
    return Rendered(level, *[torch.zeros(1)] * 4)


def frames(count: int, mask: Tensor | None = None) -> list[Frame]:
    camera = Camera(torch.eye(4), torch.eye(3), 12, 9)
    return [
        Frame(camera, torch.full((3, 9, 12), 0.5), mask, torch.zeros(3), step, "0", f"{step:05d}")
        for step in range(count)
    ]


def test_evaluate_renders_each_frame_at_its_timestep() -> None:
    background = torch.full((3,), 0.1)
    levels = [0.1, 0.2, 0.3]
    found = evaluate(FlatAvatar(), flat_render, frames(3), background)
    assert found["l1"] == pytest.approx(np.mean([0.5 - level for level in levels]), rel=1e-5)
    assert found["psnr"] == pytest.approx(np.mean([-20 * np.log10(0.5 - level) for level in levels]), rel=1e-5)
    assert found["psnr_foreground"] is None
    masked = evaluate(FlatAvatar(), flat_render, frames(3, torch.ones(1, 9, 12)), background)
    assert masked["psnr_foreground"] == pytest.approx(found["psnr"], rel=1e-5)


def test_evaluate_clamps_and_takes_an_empty_split() -> None:
    over = evaluate(FlatAvatar(), flat_render, frames(1), torch.full((3,), 7.0))
    assert over["l1"] == pytest.approx(0.5)
    assert evaluate(FlatAvatar(), flat_render, [], torch.zeros(3)) == {}
