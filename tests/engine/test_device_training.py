"""What training asks of the CUDA engine step by step: losses, guard, optimiser and statistics use its kernels, and none
of them looks at a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("diff_gaussian_rasterization.image", reason="the native package is not installed")
from diff_gaussian_rasterization import _device  # noqa: E402 - after the skip

from tests.engine.conftest import cpu_engine  # noqa: E402
from tests.utils.test_losses import context  # noqa: E402
from utils.contracts import Terms  # noqa: E402
from utils.engine.adam import Update, adam_rows, choose_adam  # noqa: E402
from utils.engine.guard import POLL_EVERY, FiniteGuard  # noqa: E402
from utils.errors import NumericalFault  # noqa: E402
from utils.losses import binding, photometric  # noqa: E402
from utils.maths.table_rows import row_gradient  # noqa: E402


@contextmanager
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which functions of the CUDA engine are called; reading a value back is an error."""
    made: list[str] = []
    library = _device.device_library()

    class Spy:
        def __getattr__(self, name: str) -> Callable[..., int]:
            if name.startswith("mien_cuda_"):
                made.append(name.removeprefix("mien_cuda_"))
            return getattr(library, name)

    with monkeypatch.context() as patched:
        for module in ("_device", "image", "binding"):
            patched.setattr(f"diff_gaussian_rasterization.{module}.device_library", lambda: Spy())
        for name in ("item", "tolist", "__bool__", "__float__", "cpu", "numpy"):
            patched.setattr(Tensor, name, lambda *_: pytest.fail("a value was read back"))
        yield made


def losses_and_gradients(device: torch.device) -> tuple[dict[str, Tensor], list[Tensor]]:
    c = context(seed=3)
    image, means, scales = leaves = [
        tensor.detach().to(device).requires_grad_() for tensor in (c.rendered.image, c.local_means, c.local_scales)
    ]
    rendered = replace(c.rendered, image=image, radii=c.rendered.radii.to(device))
    frame = replace(c.frame, image=c.frame.image.to(device))
    c = replace(c, frame=frame, rendered=rendered, local_means=means, local_scales=scales)
    found = dict(photometric.build(photometric.PhotometricOptions(), 1)(c))
    found |= binding.build(binding.BindingOptions(), 1)(c)
    return found, list(torch.autograd.grad(torch.stack(list(found.values())).sum(), leaves))


def test_losses_use_the_device(engine_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    with calls(monkeypatch) as made:
        found, slopes = losses_and_gradients(engine_device)
    assert {"image_l1_ssim", "image_l1_ssim_gradient", "binding_limits", "binding_gradients"} <= set(made)
    with cpu_engine():
        expected, theirs = losses_and_gradients(torch.device("cpu"))
    assert list(found) == list(expected)
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5, abs=1e-7)
    for mine, other in zip(slopes, theirs, strict=True):
        assert (mine.cpu() - other).abs().max() <= 1e-5 * other.abs().max()


def terms(device: torch.device, bad: float) -> Terms:
    return Terms({"l1": torch.tensor(0.5, device=device), "ssim": torch.tensor(bad, device=device)})


@pytest.mark.parametrize("fault", ["term", "gradient", "sparse gradient"])
def test_the_guard_stops_every_update_and_names_the_first_bad_step(
    engine_device: torch.device, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    guard, adam = FiniteGuard(True, lambda step: None), choose_adam(engine_device, 1)
    assert guard.how == "gradient check: native kernel" and adam.note == "adam: native kernel"
    values = torch.ones(3, device=engine_device, requires_grad=True)
    table = torch.ones(4, 2, device=engine_device, requires_grad=True)
    moments = [(torch.zeros_like(t), torch.zeros_like(t)) for t in (values.detach(), table.detach())]
    steps = torch.zeros(4, device=engine_device)
    history = []
    with calls(monkeypatch) as made:
        for step in range(1, 8):
            bad = step == 5
            values.grad = torch.full((3,), float("nan") if bad and fault == "gradient" else 1.0, device=engine_device)
            row = torch.full((2,), 2e19 if bad and fault == "sparse gradient" else 1.0, device=engine_device)
            table.grad = row_gradient(1, row, table.shape)
            found = terms(engine_device, float("inf") if bad and fault == "term" else 0.1)
            allowed = guard.check(step, f"view{step}", found, {"values": values, "table": table})
            adam.step([Update(values, values.grad, moments[0], 0.1)], step, allowed)
            adam.rows(table, table.grad, moments[1], 0.1, steps, allowed)
            history.append(torch.cat([values.detach(), table.detach().reshape(-1), steps, *moments[0]]))
    assert {"squares_finite", "adam_step", "adam_rows"} <= set(made)
    moved = [not torch.equal(a, b) for a, b in zip(history, history[1:], strict=False)]
    assert moved == [True] * 3 + [False] * 3 and steps.tolist() == [0, 4, 0, 0]
    wanted = "ssim" if fault == "term" else "a gradient"
    with pytest.raises(NumericalFault, match=f"iteration 5, view view5: .*{wanted}"):
        guard.check(POLL_EVERY, "last", terms(engine_device, 0.1), {})


def test_sparse_gradients_of_several_views_add_up(engine_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without sorting the rows, which would wait for the device."""
    random = torch.Generator().manual_seed(4)
    start, parts = torch.randn(5, 3, 2, generator=random), torch.randn(3, 3, 2, generator=random)
    ends = []
    for device in (engine_device, None):
        there = [t.clone() if device is None else t.clone().to(device) for t in (start, *parts)]
        table, slopes = there[0], there[1:]
        first, second, third = (row_gradient(r, s, table.shape) for r, s in zip((3, 0, 3), slopes, strict=True))
        gradient = first + second + third
        moments, steps = (torch.zeros_like(table), torch.zeros_like(table)), torch.zeros(5, device=table.device)
        if device is None:
            adam_rows(table, gradient, moments, 0.01, steps)
        else:
            with calls(monkeypatch) as made:
                choose_adam(device, 1).rows(table, gradient, moments, 0.01, steps)
            assert made == ["adam_rows"]
        ends.append([t.cpu() for t in (table, *moments, steps)])
    assert ends[0][3].tolist() == [1, 0, 0, 1, 0]
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_log_says_where_native_kernels_work(monkeypatch: pytest.MonkeyPatch) -> None:
    options = photometric.PhotometricOptions(), binding.BindingOptions()
    for why, ending in ((None, "native kernel"), ("no nvcc", "native kernel on the CPU, PyTorch on a GPU")):
        monkeypatch.setattr(_device, "usable", lambda where, why=why: why if str(where) == "cuda" else None)
        assert photometric.describe(options[0]) == f"l1, ssim: {ending}"
        assert binding.describe(options[1]) == f"xyz, scale: {ending}"
        guard, adam = FiniteGuard(True, lambda step: None).how, choose_adam("cuda", 1).note
        reason = "PyTorch (the native kernel can't be used: no nvcc)" if why else "native kernel"
        assert guard == f"gradient check: {reason}" and adam == f"adam: {reason}"
