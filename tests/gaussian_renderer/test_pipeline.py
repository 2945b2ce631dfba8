"""Colours and covariances made in PyTorch: the same picture and the same gradients as the rasteriser's own."""

from __future__ import annotations

import pytest
import torch

from gaussian_renderer import PipelineOptions, build_renderer
from tests.gaussian_renderer.scenes import background, camera, gradients, shell


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("colours, covariances", [(True, False), (False, True), (True, True)])
def test_python_steps_change_nothing_but_rounding(name: str, colours: bool, covariances: bool) -> None:
    splats, view, behind = shell(120, dtype=torch.float32), camera(48, 40, torch.float32), background(torch.float32)
    own, own_grads = gradients(build_renderer(name), splats, view, behind)
    pipeline = PipelineOptions(colours, covariances)
    other, other_grads = gradients(build_renderer(name, None, pipeline), splats, view, behind)
    assert torch.equal(own.radii, other.radii)
    torch.testing.assert_close(other.image, own.image, rtol=0, atol=2e-6)
    for key, grad in own_grads.items():
        scale = float(grad.abs().max())
        torch.testing.assert_close(other_grads[key], grad, rtol=0, atol=2e-4 * scale, msg=lambda m, k=key: f"{k}: {m}")
