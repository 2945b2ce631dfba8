"""The definition of a correct picture, in plain PyTorch: any device, float32 or float64, derivatives by autograd.

Rules (all backends of ours share them):
  drawn     near < z < far, and a pixel centre lies in the bounding box of the ellipse where alpha >= 1/255
  radii     3 standard deviations of the longer axis, rounded up
  footprint EWA covariance + 0.3 pixel^2 on the diagonal; alpha = min(0.99, opacity exp(-d^T conic d / 2)) at pixel
            centres (j + 0.5, i + 0.5); no gradient where 0.99 acts; alpha < 1/255 contributes nothing
  order     by float32 camera z, ties by index; a pixel stops before the splat that would bring its transmittance
            below 1e-4
  colour    max(0, 0.5 + spherical harmonics towards the splat's centre); depth is that centre's camera z

Sources: 3D Gaussian splatting (Kerbl et al., 2023) for the model; gsplat's documented conventions (Apache-2.0) for the
two-sided Jacobian limits and the gradient at the clamp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from utils.contracts import Camera, Rendered, Splats
from utils.errors import NumericalFault
from utils.maths.projection import (
    camera_centre,
    covariance_2d,
    covariance_3d,
    project,
    projection_jacobian,
    to_camera,
)
from utils.maths.sh import eval_sh

ALPHA_MAX = 0.99
ALPHA_MIN = 1 / 255
TRANSMITTANCE_MIN = 1e-4
LOW_PASS = 0.3  # pixels^2
ROUNDNESS = 0.1  # pixels^4, lower bound under the root of the longer axis; the original's value, so that radii agree
SYMMETRIC = [[0, 1, 2], [1, 3, 4], [2, 4, 5]]  # where xx xy xz yy yz zz stand in the matrix
TILE = 16  # pixels; affects speed only, a tile lists every splat that reaches it


class Footprints(NamedTuple):
    """Splats in the image, near to far."""

    index: Tensor  # [M] row in Splats
    means: Tensor  # [M, 2] pixels
    conics: Tensor  # [M, 3] inverse covariance: xx, xy, yy, 1 / pixels^2
    features: Tensor  # [M, 4] colour and camera z
    opacities: Tensor  # [M]
    reach: Tensor  # [M, 2] pixels, half size of the box around alpha >= 1/255; without gradient
    radius: Tensor  # [M] pixels, 3 standard deviations of the longer axis; without gradient


def render(
    splats: Splats,
    camera: Camera,
    background: Tensor,
    threads: int | None = None,
    screen_offsets: Tensor | None = None,
) -> Rendered:
    """Draw splats, with gradients to every tensor of `splats` and `camera`, `background` and the screen offsets.

    Args:
        splats: N world-space Gaussians; any N, zero included.
        background: [3] colour behind everything.
        threads: ignored; PyTorch has its own setting.
        screen_offsets: [N, 2] added to the projected centres, in half images (NDC); a leaf of zeros if not given.
    """
    refuse_non_finite(splats, camera, background)
    if screen_offsets is None:
        screen_offsets = torch.zeros_like(splats.means[:, :2]).requires_grad_()
    footprints = _project(splats, camera, screen_offsets)
    radii = torch.zeros(splats.means.shape[0], dtype=torch.int32, device=splats.means.device)
    radii[footprints.index] = footprints.radius.ceil().int()
    rows = []
    for top in range(0, camera.height, TILE):
        rows.append(torch.cat(list(_tile_row(footprints, camera, top)), dim=2))
    blended = torch.cat(rows, dim=1)  # [5, H, W]: colour, depth, transmittance
    transmittance = blended[4:]
    image = blended[:3] + background[:, None, None] * transmittance
    return Rendered(image, 1 - transmittance, blended[3:4], radii, screen_offsets)


def refuse_non_finite(splats: Splats, camera: Camera, background: Tensor) -> None:
    """Raise NumericalFault naming the first tensor that holds NaN or infinity, and its row."""
    tensors = {name: getattr(splats, name) for name in ("means", "quats", "scales", "opacities", "sh", "covariances")}
    tensors |= {"world_to_camera": camera.world_to_camera, "intrinsics": camera.intrinsics, "background": background}
    for name, tensor in tensors.items():
        if tensor is not None and not bool(tensor.isfinite().all()):
            row = int(torch.nonzero(~tensor.isfinite())[0, 0])
            raise NumericalFault(f"renderer: {name}: row {row} is not finite. A step before this one diverged")


def _project(splats: Splats, camera: Camera, screen_offsets: Tensor) -> Footprints:
    """Footprints of the splats that are drawn, sorted."""
    pose, intrinsics = camera.world_to_camera, camera.intrinsics
    z = to_camera(splats.means, pose)[:, 2].detach()
    index = torch.nonzero((z > camera.near) & (z < camera.far) & (splats.opacities >= ALPHA_MIN))[:, 0]
    index = index[torch.argsort(z[index].float(), stable=True)]

    world = splats.means[index]
    points = to_camera(world, pose)
    half_image = torch.tensor([camera.width / 2, camera.height / 2], dtype=points.dtype, device=points.device)
    means = project(points, intrinsics) + screen_offsets[index] * half_image
    jacobian = projection_jacobian(points, intrinsics, camera.width, camera.height)
    if splats.covariances is None:
        world_covariance = covariance_3d(splats.quats[index], splats.scales[index])
    else:
        world_covariance = splats.covariances[index][:, SYMMETRIC]
    covariance = covariance_2d(world_covariance, jacobian, pose)
    xx, xy, yy = covariance[:, 0, 0] + LOW_PASS, covariance[:, 0, 1], covariance[:, 1, 1] + LOW_PASS
    determinant = xx * yy - xy * xy
    conics = torch.stack([yy, -xy, xx], dim=-1) / determinant[:, None]
    directions = torch.nn.functional.normalize(world - camera_centre(pose), dim=-1)
    colours = (eval_sh(splats.sh[index], directions, splats.sh_degree) + 0.5).clamp(min=0)
    opacities = splats.opacities[index]

    with torch.no_grad():
        extent = 2 * torch.log(opacities / ALPHA_MIN)  # squared Mahalanobis distance where alpha falls to 1/255
        reach = (extent[:, None] * torch.stack([xx, yy], dim=-1)).sqrt()
        middle = 0.5 * (xx + yy)
        radius = 3 * (middle + (middle * middle - determinant).clamp(min=ROUNDNESS).sqrt()).sqrt()
        first = (means - reach - 0.5).ceil().clamp(min=0)
        last = torch.minimum((means + reach - 0.5).floor(), 2 * half_image - 1)
        inside = (first <= last).all(-1) & (determinant > 0)
    features = torch.cat([colours, points[:, 2:]], dim=-1)
    return Footprints(*(t[inside] for t in (index, means, conics, features, opacities, reach, radius)))


def _tile_row(footprints: Footprints, camera: Camera, top: int) -> Iterator[Tensor]:
    """The tiles [5, h, w] of one row of tiles, left to right."""
    bottom = min(top + TILE, camera.height)
    y, reach_y = footprints.means[:, 1].detach(), footprints.reach[:, 1]
    row = torch.nonzero((y + reach_y > top) & (y - reach_y < bottom))[:, 0]
    x, reach_x = footprints.means[row, 0].detach(), footprints.reach[row, 0]
    for left in range(0, camera.width, TILE):
        right = min(left + TILE, camera.width)
        yield _blend(footprints, row[(x + reach_x > left) & (x - reach_x < right)], (top, bottom, left, right))


def _blend(footprints: Footprints, listed: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Blend the listed splats front to back into the pixels of a box -> [5, h, w]: colour, depth, transmittance."""
    top, bottom, left, right = box
    means, conics = footprints.means[listed], footprints.conics[listed]
    ys = torch.arange(top, bottom, dtype=means.dtype, device=means.device) + 0.5
    xs = torch.arange(left, right, dtype=means.dtype, device=means.device) + 0.5
    dx = xs[None, :, None] - means[:, 0]  # [1, w, L]
    dy = ys[:, None, None] - means[:, 1]  # [h, 1, L]
    quadratic = conics[:, 0] * dx * dx + conics[:, 2] * dy * dy + 2 * conics[:, 1] * dx * dy
    alpha = (footprints.opacities[listed] * torch.exp(-0.5 * quadratic)).clamp(max=ALPHA_MAX)
    alpha = torch.where((alpha >= ALPHA_MIN) & (quadratic >= 0), alpha, 0)
    with torch.no_grad():
        stopped = torch.cumprod(1 - alpha, dim=-1) < TRANSMITTANCE_MIN
    alpha = torch.where(stopped, 0, alpha)
    one = alpha.new_ones(*alpha.shape[:-1], 1)
    transmittance = torch.cumprod(torch.cat([one, 1 - alpha], dim=-1), dim=-1)  # [h, w, L + 1]: before each, after all
    blended = (alpha * transmittance[..., :-1]) @ footprints.features[listed]
    return torch.cat([blended, transmittance[..., -1:]], dim=-1).permute(2, 0, 1)
