"""Statistics and limits of the CUDA engine against the CPU engine and plain PyTorch."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from torch import Tensor

native = pytest.importorskip("diff_gaussian_rasterization.binding", reason="the native package is not installed")
from diff_gaussian_rasterization import statistics  # noqa: E402 - after the skip
from diff_gaussian_rasterization._device import device_call, device_library  # noqa: E402

from scene.densification.gradient import add_view  # noqa: E402
from tests.engine.conftest import cpu_engine  # noqa: E402
from tests.engine.test_binding import THRESHOLDS, WEIGHTS, expected, gaussians  # noqa: E402
from tests.engine.test_statistics import view  # noqa: E402


def there(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    return [tensor.to(device) for tensor in tensors]


def limits(device: torch.device, means: Tensor, scales: Tensor, radii: Tensor, *options: tuple[float, float]):
    means, scales, radii = there(device, means, scales, radii)
    means, scales = means.clone().requires_grad_(), scales.clone().requires_grad_()
    xyz, scale = native.binding_limits(means, scales, radii, *(options or (THRESHOLDS, WEIGHTS)))
    return [t.cpu() for t in (xyz.detach(), scale.detach(), *torch.autograd.grad(xyz + scale, (means, scales)))]


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 3000])
def test_limits_agree_with_float64_and_with_the_cpu_engine(engine_device: torch.device, n: int) -> None:
    ours = limits(engine_device, *gaussians(n))
    for mine, theirs in zip(ours, expected(*gaussians(n)), strict=True):
        torch.testing.assert_close(mine.double(), theirs.detach(), rtol=2e-5, atol=1e-9)
    with cpu_engine():
        for mine, theirs in zip(ours, limits(torch.device("cpu"), *gaussians(n)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)


def test_limits_by_hand(engine_device: torch.device) -> None:
    means = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.5, 0.0], [9.0, 9.0, 9.0]])
    scales = torch.tensor([[0.6, 0.5, 0.1], [1.6, 0.6, 0.6], [5.0, 5.0, 5.0]])
    xyz, scale, g_means, g_scales = limits(engine_device, means, scales, torch.tensor([2, 1, 0], dtype=torch.int32))
    assert xyz.item() == pytest.approx(0.01 * 4.0 / 2) and scale.item() == pytest.approx(1.0 / 2)
    torch.testing.assert_close(g_means, torch.tensor([[0.003, 0.0, 0.004], [0.0] * 3, [0.0] * 3]))
    torch.testing.assert_close(g_scales, torch.tensor([[0.0] * 3, [0.5, 0.0, 0.0], [0.0] * 3]))


def test_nothing_drawn_costs_nothing(engine_device: torch.device) -> None:
    means, scales, radii = gaussians(40)
    assert [value.abs().max().item() for value in limits(engine_device, means, scales, 0 * radii)] == [0.0] * 4


def test_threshold_0_at_the_centre_has_no_slope(engine_device: torch.device) -> None:
    zero, radii = torch.zeros(20, 3), torch.ones(20, dtype=torch.int32)
    assert [v.abs().max().item() for v in limits(engine_device, zero, zero, radii, (0.0, 0.0), WEIGHTS)] == [0.0] * 4


def test_a_weight_of_0_leaves_that_limit_out(engine_device: torch.device) -> None:
    means, scales, radii = gaussians(50)
    for weights in ((0.0, 1.0), (0.3, 0.0)):
        ours = [tensor.requires_grad_() for tensor in there(engine_device, means.clone(), scales.clone())]
        values = native.binding_limits(*ours, radii.to(engine_device), THRESHOLDS, weights)
        values[0 if weights[0] else 1].backward()
        wanted = expected(means, scales, radii, weights=weights)
        for value, tensor, weight, theirs, slope in zip(values, ours, weights, wanted[:2], wanted[2:], strict=True):
            torch.testing.assert_close(value.detach().cpu().double(), theirs.detach(), rtol=1e-5, atol=0)
            assert (tensor.grad is None) == (weight == 0.0)
            if tensor.grad is not None:
                torch.testing.assert_close(tensor.grad.cpu().double(), slope, rtol=1e-5, atol=1e-9)


def test_factors_come_from_the_device(engine_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward multiplies by what comes from above without looking at it."""
    means, scales, radii = gaussians(50)
    plain = limits(engine_device, means, scales, radii)
    ours = [tensor.requires_grad_() for tensor in there(engine_device, means.clone(), scales.clone())]
    radii = radii.to(engine_device)
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__bool__", "__float__", "cpu", "numpy"):
            patched.setattr(Tensor, name, lambda *_: pytest.fail("a value was read back"))
        xyz, scale = native.binding_limits(*ours, radii, THRESHOLDS, WEIGHTS)
        grads = torch.autograd.grad(2.0 * xyz - 0.5 * scale, ours)
    torch.testing.assert_close(grads[0].cpu(), 2.0 * plain[2], rtol=1e-6, atol=0)
    torch.testing.assert_close(grads[1].cpu(), -0.5 * plain[3], rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_show(engine_device: torch.device, bad: float) -> None:
    means, scales, radii = gaussians(30)
    radii[:] = 1
    means[3, 1] = scales[4, 2] = bad
    xyz, scale, *_ = limits(engine_device, means, scales, radii)
    assert not xyz.isfinite() and not scale.isfinite()
    radii[3:5] = 0
    assert all(value.isfinite().all() for value in limits(engine_device, means, scales, radii))


def batch_of_limits(device: torch.device, means: Tensor, logs: Tensor, radii: Tensor, before: Tensor):
    """As the captured step asks for them: several views, logarithmic scales, gradients added to what is there."""
    means, logs, radii = there(device, means, logs, radii)
    g_means, g_scales = before.clone().to(device), (2 * before).to(device)
    sums = torch.full((len(radii), 3), torch.nan, dtype=torch.float64, device=device)
    floats = ctypes.c_int64()
    count = ctypes.c_int64(len(means))
    assert device_library().mien_cuda_binding_scratch(count, len(radii), ctypes.byref(floats)) == 0
    scratch = torch.full((floats.value,), torch.nan, device=device)
    at = [tensor.data_ptr() for tensor in (means, logs, radii)]
    work = native._Limits(*at, *THRESHOLDS, *WEIGHTS, g_means.data_ptr(), g_scales.data_ptr())
    tables = native._DeviceLimits(work, len(means), True, True, scratch.data_ptr(), sums.data_ptr(), len(radii))
    device_call("binding_limits", ctypes.byref(tables), near=means)
    return [tensor.cpu() for tensor in (sums, g_means, g_scales)]


def batch_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    means, scales, _ = gaussians(700)
    random = torch.Generator().manual_seed(1)
    radii = torch.randint(-2, 4, (3, 700), generator=random, dtype=torch.int32).clamp_min(0)
    radii[2] = 0
    return means, scales.clamp_min(1e-3).log(), radii, torch.randn(700, 3, generator=random)


def test_several_views_and_logarithmic_scales_add_to_what_is_there(engine_device: torch.device) -> None:
    means, logs, radii, before = batch_inputs()
    sums, g_means, g_scales = batch_of_limits(engine_device, means, logs, radii, before)
    scales = logs.exp()
    each = [expected(means, scales, drawn) for drawn in radii[:2]]
    torch.testing.assert_close(g_means.double(), before + each[0][2] + each[1][2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(g_scales.double(), 2 * before + (each[0][3] + each[1][3]) * scales, rtol=1e-5, atol=1e-6)
    assert sums[:, 0].tolist() == [float((drawn > 0).sum()) for drawn in radii] and sums[2].tolist() == [0.0] * 3
    for found, (xyz, scale, *_) in zip(sums.tolist(), each, strict=False):
        assert WEIGHTS[0] * found[1] / found[0] == pytest.approx(xyz.item(), rel=1e-6)
        assert WEIGHTS[1] * found[2] / found[0] == pytest.approx(scale.item(), rel=1e-6)


@pytest.mark.parametrize("n", [0, 1, 257, 3001])
def test_views_add_up_as_on_the_cpu(engine_device: torch.device, n: int) -> None:
    """To the bit where both fuse."""
    ours, theirs = torch.zeros(3, n, device=engine_device), torch.zeros(3, n)
    for seed in range(4):
        gradients, radii = view(n, seed)
        statistics.add_view(gradients.to(engine_device), radii.to(engine_device), 3.0, *ours)
        add_view(gradients, radii, 3.0, *theirs)
    assert torch.equal(ours[1:].cpu(), theirs[1:])
    torch.testing.assert_close(ours[0].cpu(), theirs[0], rtol=5e-7, atol=0)


@pytest.mark.parametrize("stopped", [0, 4])
def test_several_views_at_once_unless_training_has_stopped(engine_device: torch.device, stopped: int) -> None:
    views = [view(300, seed) for seed in range(3)]
    gradients, radii = there(engine_device, *(torch.stack(list(part)) for part in zip(*views, strict=True)))
    ours, theirs = torch.ones(3, 300, device=engine_device), torch.ones(3, 300, device=engine_device)
    health = torch.zeros(8, dtype=torch.int32, device=engine_device)
    health[0] = stopped
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (gradients, radii, *ours, health)]
    count, factor = ctypes.c_int64(300), ctypes.c_float(2.0)
    device_call("statistics_add_view", *pointers[:2], count, factor, *pointers[2:5], 3, pointers[5], near=radii)
    for one, drawn in views if not stopped else []:
        statistics.add_view(one.to(engine_device), drawn.to(engine_device), 2.0, *theirs)
    assert torch.equal(ours, theirs)


def finite(device: torch.device, *tensors: Tensor) -> bool:
    flag = statistics.squares_finite(there(device, *tensors))
    assert isinstance(flag, Tensor) and flag.dtype == torch.bool and flag.shape == ()
    assert flag.device.type == device.type
    return bool(flag)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2e19, -3e38])
def test_one_bad_value_is_found(engine_device: torch.device, bad: float) -> None:
    """In any of more arrays than one launch takes, at their ends too."""
    tensors = [torch.full((3,), 1.8e19), torch.zeros(0), torch.full((5000,), -1.8e19), torch.ones(5, 1, 3)]
    tensors += [*(torch.ones(2) for _ in range(18)), torch.ones(1), torch.ones(2049)]
    assert finite(engine_device, *tensors)
    for which, place in [
        (0, 2),
        (2, 0),
        (2, 2047),
        (2, 2048),
        (2, 4999),
        (3, 14),
        (15, 0),
        (16, 1),
        (22, 0),
        (23, 2048),
    ]:
        spoiled = [tensor.clone() for tensor in tensors]
        spoiled[which].view(-1)[place] = bad
        assert not finite(engine_device, *spoiled), (which, place)


def test_strided_tensors_and_none_at_all(engine_device: torch.device) -> None:
    values = torch.ones(6, 4, device=engine_device)
    values[:, 3] = math.nan
    assert bool(statistics.squares_finite([values[:, :3]])) and not bool(statistics.squares_finite([values[:, 2:]]))
    assert statistics.squares_finite([]) is True


@pytest.mark.parametrize("order", ["reverse", "1", "2"])
def test_same_bits_whatever_the_order_of_threads(
    engine_device: torch.device, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    def everything() -> list[Tensor]:
        sums = torch.zeros(3, 700, device=engine_device)
        gradients, radii = there(engine_device, *view(700, 1))
        statistics.add_view(gradients, radii, 2.0, *sums)
        return [*batch_of_limits(engine_device, *batch_inputs()), *limits(engine_device, *gaussians(700)), sums]

    monkeypatch.delenv("MIEN_EMULATION_ORDER", raising=False)
    forward = everything()
    monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
    assert all(torch.equal(a, b) for a, b in zip(forward, everything(), strict=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"means": torch.zeros(4, 2)}, "means must have shape"),
        ({"scales": torch.zeros(4, 3).double()}, "scales must have dtype"),
        ({"scales": torch.zeros(4, 3).to("meta")}, "scales must be on"),
        ({"means": torch.zeros(4, 3).to("meta")}, "means must be on"),
        ({"radii": torch.zeros(4)}, "radii must be an int32"),
        ({"radii": torch.zeros(5, dtype=torch.int32)}, "radii must have shape"),
    ],
)
def test_bad_limits_are_refused_by_name(engine_device: torch.device, change: dict[str, Tensor], named: str) -> None:
    tensors = {"means": torch.zeros(4, 3), "scales": torch.zeros(4, 3), "radii": torch.zeros(4, dtype=torch.int32)}
    tensors = {k: v if v.is_meta else v.to(engine_device) for k, v in {**tensors, **change}.items()}
    with pytest.raises(ValueError, match=named):
        native.binding_limits(**tensors, thresholds=THRESHOLDS, weights=WEIGHTS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"screen_gradients": torch.zeros(4, 3)}, "screen_gradients: found shape"),
        ({"radii": torch.zeros(4)}, "radii: expected"),
        ({"seen": torch.zeros(5)}, "seen: found shape"),
        ({"radius": torch.zeros(4).to("meta")}, "radius: expected"),
        ({"gradient": torch.zeros(4).double()}, "gradient: expected"),
    ],
)
def test_bad_statistics_are_refused_by_name(engine_device: torch.device, change: dict[str, Tensor], named: str) -> None:
    sums = {name: torch.zeros(4) for name in ("gradient", "seen", "radius")}
    tensors = {"screen_gradients": torch.zeros(4, 2), "radii": torch.zeros(4, dtype=torch.int32), **sums, **change}
    tensors = {k: v if v.is_meta else v.to(engine_device) for k, v in tensors.items()}
    with pytest.raises(ValueError, match=named):
        statistics.add_view(factor=1.0, **tensors)
    with pytest.raises(ValueError, match="expected float32"):
        statistics.squares_finite([torch.zeros(3, device=engine_device).double()])
