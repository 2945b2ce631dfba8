"""Losses against their formulas written naively; what is weighted 0 is absent; nothing visible costs nothing."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.contracts import Camera, Frame, Mesh, Rendered, Terms
from utils.errors import InputError
from utils.losses import LOSSES, LossContext, binding, build_losses, photometric
from utils.losses.binding import BindingOptions
from utils.losses.photometric import PhotometricOptions, l1, ssim

N = 30


def context(seed: int = 0, visible: float = 0.5, dtype: torch.dtype = torch.float32, size: int = 24) -> LossContext:
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64).to(dtype)

    camera = Camera(torch.eye(4), torch.eye(3), size, size)
    frame = Frame(camera, rand(3, size, size), None, torch.ones(3), 0, "0", "0")
    radii = (torch.rand(N, generator=g) < visible).int() * 5
    image = rand(3, size, size).requires_grad_()
    rendered = Rendered(image, rand(1, size, size), rand(1, size, size), radii, torch.zeros(N, 2))
    means, scales = (4 * rand(N, 3) - 2).requires_grad_(), (1.5 * rand(N, 3)).requires_grad_()
    mesh = Mesh((0.04 * rand(4, 3)).requires_grad_(), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    return LossContext(7, frame, rendered, means, scales, mesh, torch.arange(N) % 2)


def naive_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. (2004) with an 11-tap window of sigma 1.5, by scipy, channel by channel."""
    correlate1d = pytest.importorskip("scipy.ndimage").correlate1d
    offsets = np.arange(11) - 5
    taps = np.exp(-(offsets**2) / (2 * 1.5**2))
    taps /= taps.sum()

    def blur(image: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(image, taps, axis=0, mode="constant"), taps, axis=1, mode="constant")

    values = []
    for a, b in zip(x, y, strict=True):
        ma, mb = blur(a), blur(b)
        va, vb, cab = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
        top = (2 * ma * mb + 0.01**2) * (2 * cab + 0.03**2)
        values.append(top / ((ma**2 + mb**2 + 0.01**2) * (va + vb + 0.03**2)))
    return float(np.mean(values))


@pytest.mark.parametrize(("height", "width"), [(24, 31), (5, 40), (1, 1), (11, 3)])
def test_ssim_equals_the_formula(height: int, width: int) -> None:
    g = torch.Generator().manual_seed(height)
    x, y = (torch.rand(3, height, width, generator=g, dtype=torch.float64) for _ in range(2))
    assert ssim(x, y).item() == pytest.approx(naive_ssim(x.numpy(), y.numpy()), abs=1e-12)
    assert ssim(x, x).item() == pytest.approx(1, abs=1e-12)


def test_ssim_gradient_equals_finite_differences() -> None:
    g = torch.Generator().manual_seed(1)
    x, y = (torch.rand(2, 7, 13, generator=g, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda image: ssim(image, y), x.requires_grad_())


def native_l1_ssim() -> Any:
    native, reason = photometric._native()
    if native is None:
        pytest.skip(f"the native kernel is not installed: {reason} (make setup)")
    return native


@pytest.mark.parametrize(("height", "width"), [(64, 48), (33, 61), (1, 1), (7, 130)])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_native_kernel_equals_the_plain_formula(height: int, width: int, threads: int) -> None:
    native = native_l1_ssim()
    g = torch.Generator().manual_seed(2)
    x, y = (torch.rand(3, height, width, generator=g) for _ in range(2))
    y[:, : height // 2] = x[:, : height // 2]  # equal areas: L1 has no slope, SSIM is 1
    ours, plain = x.clone().requires_grad_(), x.double().requires_grad_()
    absolute, similarity = native(ours, y, threads)
    (0.8 * absolute + 0.2 * (1 - similarity)).backward()
    expected = l1(plain, y.double()), ssim(plain, y.double())
    (0.8 * expected[0] + 0.2 * (1 - expected[1])).backward()
    assert absolute.item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert similarity.item() == pytest.approx(expected[1].item(), rel=1e-5)
    assert ours.grad is not None and plain.grad is not None
    bound = 2e-4 * plain.grad.abs().max().item()
    torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=0, atol=bound)


def triangle_scale(corners: list[list[float]]) -> float:
    """Half of base and height; the height from the area, twice of which is base times height."""
    first, second, third = corners
    sides = [math.dist(first, second), math.dist(second, third), math.dist(third, first)]
    half = sum(sides) / 2
    return 0.5 * (sides[0] + 2 * math.sqrt(half * math.prod(half - side for side in sides)) / sides[0])


def naive_terms(c: LossContext, o: BindingOptions) -> dict[str, float]:
    """The documented formulas, Gaussian by Gaussian."""
    xyz, scale = [], []
    face_scales = [triangle_scale(corners) for corners in c.mesh.vertices[c.mesh.faces].tolist()]
    for mu, s, face, radius in zip(c.local_means, c.local_scales, c.binding, c.rendered.radii, strict=True):
        if radius == 0:
            continue
        mu, s, k = mu.tolist(), s.tolist(), face_scales[face]
        if o.metric_xyz:
            xyz.append(math.hypot(*(max(k * m - o.threshold_xyz, 0) for m in mu)))
        else:
            xyz.append(max(math.hypot(*mu) - o.threshold_xyz, 0))
        world = [k * v if o.metric_scale else v for v in s]
        scale.append(math.hypot(*(max(v - o.threshold_scale, 0) for v in world)))
    return {"xyz": o.lambda_xyz * float(np.mean(xyz)), "scale": o.lambda_scale * float(np.mean(scale))}


@pytest.mark.parametrize(
    "options",
    [
        BindingOptions(),
        BindingOptions(metric_xyz=True, threshold_xyz=0.01),
        BindingOptions(metric_scale=True, threshold_scale=0.01),
        BindingOptions(lambda_xyz=0.3, threshold_xyz=0.2, lambda_scale=2.0, threshold_scale=0.9),
    ],
)
def test_binding_terms_equal_the_formulas(options: BindingOptions) -> None:
    c = context()
    terms = build_losses({"binding": options})(c)
    for name, expected in naive_terms(c, options).items():
        assert expected > 0
        assert terms.values[name].item() == pytest.approx(expected, rel=1e-5)


def test_the_original_weights_are_the_defaults() -> None:
    c = context()
    terms = build_losses({})(c)
    image, target = c.rendered.image.detach(), c.frame.image
    assert terms.values["l1"].item() == pytest.approx(0.8 * (image - target).abs().mean().item(), rel=1e-5)
    expected = 0.2 * (1 - naive_ssim(image.double().numpy(), target.double().numpy()))
    assert terms.values["ssim"].item() == pytest.approx(expected, rel=1e-5)
    assert list(terms.values) == ["l1", "ssim", "xyz", "scale"]
    assert terms.total.item() == pytest.approx(sum(t.item() for t in terms.values.values()), rel=1e-6)
    terms.total.backward()
    for leaf in (c.rendered.image, c.local_means, c.local_scales):
        assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.any()


@pytest.mark.parametrize("metric", [False, True])
def test_binding_slopes_equal_finite_differences(metric: bool) -> None:
    c = context(dtype=torch.float64)
    loss = build_losses({"binding": BindingOptions(1.0, 0.3, metric, 1.0, 0.4, metric)})

    def total(means: Tensor, scales: Tensor, vertices: Tensor) -> Tensor:
        mesh = Mesh(50 * vertices, c.mesh.faces)
        moved = dataclasses.replace(c, local_means=means, local_scales=scales, mesh=mesh)
        terms = loss(moved).values
        return terms["xyz"] + terms["scale"]

    assert torch.autograd.gradcheck(total, (c.local_means, c.local_scales, c.mesh.vertices))


@pytest.mark.parametrize("metric", [False, True])
def test_nothing_visible_costs_nothing_and_has_no_slope(metric: bool) -> None:
    c = context(visible=0.0)
    terms = build_losses({"binding": BindingOptions(metric_xyz=metric, metric_scale=metric)})(c)
    assert terms.values["xyz"].item() == 0 and terms.values["scale"].item() == 0
    (terms.values["xyz"] + terms.values["scale"]).backward()
    assert c.local_means.grad is not None and not c.local_means.grad.any() and c.local_means.grad.isfinite().all()


def test_gaussians_at_rest_have_finite_slopes() -> None:
    c = dataclasses.replace(context(visible=2.0), local_means=torch.zeros(N, 3, requires_grad=True))
    c = dataclasses.replace(c, local_scales=torch.full((N, 3), 0.5, requires_grad=True))
    terms = build_losses({"binding": BindingOptions(threshold_xyz=0.0)})(c)
    terms.total.backward()
    assert terms.values["xyz"].item() == 0 and terms.values["scale"].item() == 0
    for leaf in (c.local_means, c.local_scales):
        assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_only_visible_gaussians_get_slopes() -> None:
    c = context()
    build_losses({"binding": BindingOptions(threshold_xyz=0.0, threshold_scale=0.0)})(c).total.backward()
    visible = c.rendered.visible
    assert c.local_means.grad is not None
    assert c.local_means.grad[visible].any(-1).all() and not c.local_means.grad[~visible].any()


@pytest.mark.parametrize(
    ("options", "present"),
    [
        ({"photometric": PhotometricOptions(0.0)}, {"l1", "xyz", "scale"}),
        ({"photometric": PhotometricOptions(1.0)}, {"ssim", "xyz", "scale"}),
        ({"binding": BindingOptions(lambda_xyz=0.0)}, {"l1", "ssim", "scale"}),
        ({"binding": BindingOptions(lambda_scale=0.0)}, {"l1", "ssim", "xyz"}),
    ],
)
def test_a_term_of_weight_0_is_absent(options: dict[str, Any], present: set[str]) -> None:
    assert set(build_losses(options)(context()).values) == present


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_registered_loss_runs_two_steps(name: str) -> None:
    entry = LOSSES[name]
    for option in dataclasses.fields(entry.options):
        assert option.metadata.get("help"), option.name
    c, loss = context(), entry.build(entry.options(), 1)
    for _ in range(2):
        terms = loss(c)
        assert all(value.ndim == 0 and value.isfinite() for value in terms.values())
        if terms:  # some are off by default
            Terms(terms).total.backward()


@pytest.mark.parametrize(
    ("options", "value", "message"),
    [
        (PhotometricOptions, {"lambda_dssim": 1.5}, "--lambda_dssim: is 1.5, expected 0 to 1"),
        (PhotometricOptions, {"lambda_dssim": math.nan}, "--lambda_dssim: is nan"),
        (BindingOptions, {"lambda_xyz": -1.0}, "--lambda_xyz: is -1.0"),
        (BindingOptions, {"threshold_scale": math.inf}, "--threshold_scale: is inf"),
    ],
)
def test_options_out_of_range_are_named(options: type, value: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        options(**value)


def test_options_of_a_loss_that_does_not_exist_are_refused() -> None:
    with pytest.raises(KeyError, match="photmetric"):
        build_losses({"photmetric": PhotometricOptions()})


def test_the_run_log_says_which_kernel_computes_what(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all("native kernel" in note for note in build_losses({}).notes)
    with_metres = {"binding": BindingOptions(metric_scale=True)}
    note = build_losses(with_metres).notes[1]
    assert note.startswith("xyz: native kernel") and note.endswith("; scale: PyTorch (in metres)")
    assert describe_in_metres() == "xyz, scale: PyTorch (in metres)"
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name in (photometric.NATIVE, binding.NATIVE):
            raise builtins.ImportError("no such package")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    losses = build_losses({})
    assert losses.notes == tuple(
        f"{terms}: PyTorch (the native kernel can't be used: no such package)" for terms in ("l1, ssim", "xyz, scale")
    )
    assert losses(context()).values["ssim"].isfinite()


def describe_in_metres() -> str:
    return binding.describe(BindingOptions(metric_xyz=True, metric_scale=True))


@pytest.mark.parametrize(
    "options", [{}, {"metric_xyz": True, "threshold_xyz": 0.01}, {"metric_scale": True}, {"lambda_xyz": 0.0}]
)
def test_native_limits_equal_pytorch(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    terms, slopes = [], []
    for native in (True, False):
        if not native:
            monkeypatch.setattr(binding, "_native", lambda options: (None, "not wanted"))
        c = context(seed=3)
        found = binding.build(BindingOptions(**options), 1)(c)
        sum(found.values()).backward()  # type: ignore[union-attr]
        terms.append({name: value.item() for name, value in found.items()})
        slopes.append([c.local_means.grad, c.local_scales.grad])
    assert list(terms[0]) == list(terms[1]) and terms[0] == pytest.approx(terms[1], rel=1e-5)
    for mine, theirs in zip(*slopes, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)
