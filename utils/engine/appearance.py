"""A second drawing of a picture, for losses that may change how Gaussians look but not where they are."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from gaussian_renderer import Renderer
from scene.gaussian_model import GaussianModel
from utils.contracts import Frame, Mesh, RiggedSplats, Splats


def draw_appearance(avatar: GaussianModel, mesh: Mesh, frame: Frame, render: Renderer) -> Tensor:
    """The picture [3, H, W] of a frame, the same as the step's own, with gradients to colours and opacities alone.

    Drawn again instead of routing gradients of the step's picture: one backward pass through a rasteriser gives every
    parameter the gradient of the same sum of losses.
    """
    splats = avatar.on(Mesh(mesh.vertices.detach(), mesh.faces))
    return render(still(splats), frame.camera, frame.background, with_depth=False).image


def still(splats: RiggedSplats) -> RiggedSplats:
    """The same Gaussians, whose positions, orientations and scales get no gradients."""

    def world() -> Splats:
        placed = splats.world()
        return replace(placed, means=placed.means.detach(), quats=placed.quats.detach(), scales=placed.scales.detach())

    means, quats, scales = splats.means.detach(), splats.quats.detach(), splats.scales.detach()
    return replace(splats, means=means, quats=quats, scales=scales, world=world)
