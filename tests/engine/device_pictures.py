"""What the tests of the CUDA rasteriser share: a picture drawn by both engines, and how far they may differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.engine.conftest import cpu_engine

Draw = Callable[[dict[str, Tensor]], tuple[Tensor | None, ...]]  # leaves -> image, alpha, depth, radii

ROUNDING = 5e-6  # of image, alpha and depth, which are of order 1 (seen: 3e-6)
FLIPPED = 2e-3  # share of pixels that differ by more: an alpha near 1/255, a pixel's end, splats of nearly one depth
GRADIENT = 1e-4  # relative L2, of pixels that don't differ (seen: 4e-5 in a picture 16 pixels wide, else 7e-6)
CAMERA = 2e-4  # the same of the camera, whose sums nearly cancel (seen: 2e-5)


class Drawn(NamedTuple):
    outputs: tuple[Tensor | None, ...]
    leaves: dict[str, Tensor]

    @property
    def pictures(self) -> list[Tensor]:
        return [out for out in self.outputs[:3] if out is not None]

    @property
    def radii(self) -> Tensor:
        radii = self.outputs[3]
        assert radii is not None
        return radii.cpu()

    def gradients(self, weights: list[Tensor]) -> dict[str, Tensor]:
        """Of the weighted sum of the pictures, on the CPU; of matrices all entries. The graph is kept."""
        pairs = zip(self.pictures, weights, strict=True)
        total = torch.stack([(out * weight.to(out)).sum() for out, weight in pairs]).sum()
        wanted = {name: leaf for name, leaf in self.leaves.items() if leaf.requires_grad}
        found = torch.autograd.grad(total, list(wanted.values()), retain_graph=True)
        return {name: gradient.cpu() for name, gradient in zip(wanted, found, strict=True)}


def leaves_on(device: torch.device, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().float().to(device).clone().requires_grad_() for name, value in parameters.items()}


def drawn(draw: Draw, parameters: Mapping[str, Tensor], device: torch.device) -> Drawn:
    leaves = leaves_on(device, parameters)
    return Drawn(draw(leaves), leaves)


def weights_of(pictures: list[Tensor], mask: Tensor | None = None, seed: int = 7) -> list[Tensor]:
    """Fixed random dL/doutput on the CPU; 0 outside the mask [H, W]."""
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out.shape, generator=g) for out in pictures]
    return weights if mask is None else [weight * mask for weight in weights]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))


def assert_agree(ours: Drawn, draw: Draw, parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Pictures, radii and all gradients are the CPU engine's. Returns the relative errors of the gradients."""
    with cpu_engine():
        theirs = drawn(draw, parameters, torch.device("cpu"))
    errors = [
        (a.detach().cpu() - b.detach()).abs().amax(0) for a, b in zip(ours.pictures, theirs.pictures, strict=True)
    ]
    worst = torch.stack(errors).amax(0)
    alike = worst <= ROUNDING
    assert float((~alike).float().mean()) <= FLIPPED
    assert int((ours.radii - theirs.radii).abs().max()) <= 1 if len(theirs.radii) else True
    assert int(((ours.radii > 0) != (theirs.radii > 0)).sum()) <= 1
    weights = weights_of(theirs.pictures, alike)
    found = ours.gradients(weights)
    with cpu_engine():
        wanted = theirs.gradients(weights)
    assert found.keys() == wanted.keys()
    far = {name: relative(found[name], wanted[name]) for name in wanted}
    for name, error in far.items():
        assert bool(found[name].isfinite().all()), name
        assert error <= (CAMERA if name in ("world_to_camera", "intrinsics") else GRADIENT), (name, error)
    return far


def same_bits(a: Drawn, b: Drawn) -> bool:
    weights = weights_of(a.pictures)
    first, second = a.gradients(weights), b.gradients(weights)
    pictures = zip(a.outputs, b.outputs, strict=True)
    return all(x is y is None or torch.equal(x, y) for x, y in pictures) and all(  # type: ignore[arg-type]
        torch.equal(first[name], second[name]) for name in first
    )


def refusal(call: Callable[[], Any]) -> tuple[type[Exception], str] | None:
    """What a call raises, and its words; None: nothing."""
    try:
        call()
    except (ValueError, RuntimeError, MemoryError) as error:
        return type(error), str(error)
    return None
