"""Consecutive pictures of one camera under the mesh's exact flow: what moves with the surface should not flicker.

A pixel centre x shows the surface point with barycentrics b on face f. With V the vertices now and V' those of the
other timestep, in camera coordinates, and p the projection, the flow is p(sum_i b_i V'_f,i) - p(sum_i b_i V_f,i): no
estimate, but the motion of the mesh itself. A point counts as seen again if the four pixels around its new place all
show a surface at its depth. Warping by the flow and leaving out what was hidden follows Lai et al., "Learning blind
video temporal consistency" (2018), who estimate the flow from the photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from utils.contracts import Camera, Mesh, Neighbour
from utils.maths.projection import project, to_camera
from utils.maths.visible_faces import visible_faces

DEPTH_TOLERANCE = 0.003  # metres; what hides something on a head is mostly further away from it
SLOPE = 2.0  # and as many sizes of a pixel at that depth: surfaces up to 63 degrees off the view keep their neighbours
CONTRAST_FLOOR = 0.02  # of the full range: less contrast than this is noise
BANDS = 3

Features = Callable[[Tensor], Sequence[Tensor]]  # [3, H, W] -> levels [C, h, w], each h = floor(H / 2^k)


@dataclass(frozen=True)
class MeshFlow:
    """How the surface in a picture moves to another picture."""

    offset: Tensor  # [2, H, W] pixels (x, y), to be added to a pixel centre; 0 where not seen
    seen: Tensor  # [1, H, W] bool: the pixel shows the mesh, and the other picture shows the same point

    def to(self, device: torch.device | str) -> MeshFlow:
        return MeshFlow(self.offset.to(device), self.seen.to(device))

    def at(self, height: int, width: int) -> MeshFlow:
        """The flow between pictures reduced by a power of two: the mean of a cell, seen if half of the cell is."""
        factor = 1 << (min(self.seen.shape[-1] // width, self.seen.shape[-2] // height).bit_length() - 1)
        if factor == 1:
            return self
        share = F.avg_pool2d(self.seen.to(self.offset.dtype), factor)[:, :height, :width]
        mean = F.avg_pool2d(self.offset, factor)[:, :height, :width] / share.clamp_min(1e-6)
        seen = share >= 0.5
        return MeshFlow(torch.where(seen, mean / factor, 0.0), seen)


@torch.no_grad()
def mesh_flow(
    mesh: Mesh,
    camera: Camera,
    other: Mesh,
    other_camera: Camera,
    threads: int | None = None,
    tolerance: float = DEPTH_TOLERANCE,
) -> MeshFlow:
    """The exact flow from `mesh` in `camera` to `other`, the same mesh in another pose, in `other_camera`; on the CPU.

    Args:
        threads: of the native mesh rasteriser; None: one per CPU. The result is the same.
        tolerance: metres of depth by which a surface may miss a point and still count as showing it, besides `SLOPE`.

    Raises:
        EnvironmentFault: the native rasteriser is not built.
    """
    here, there = _in_camera(mesh, camera), _in_camera(other, other_camera)
    shape, pixels, points = _surface(torch.cat([here, there], 1), mesh, camera, threads)
    points, ahead = points[:, :3], points[:, 3:]
    before = ahead[:, 2] > other_camera.near
    ahead = torch.where(before[:, None], ahead, points)
    offset = project(ahead, other_camera.intrinsics.cpu()) - project(points, camera.intrinsics.cpu())
    centres = torch.stack([pixels % camera.width, pixels // camera.width], 1) + 0.5
    depths = _surface(there[:, 2:], other, other_camera, threads)
    allowed = tolerance + SLOPE * ahead[:, 2] / other_camera.intrinsics.diagonal()[:2].min().cpu()
    seen = before & _shown(centres + offset, ahead[:, 2], *_depth_range(*depths), allowed)
    flow = torch.zeros(2, camera.height * camera.width)
    flow.index_copy_(1, pixels, torch.where(seen[:, None], offset, 0.0).T)
    shown = torch.zeros(camera.height * camera.width, dtype=torch.bool).index_copy_(0, pixels, seen)
    return MeshFlow(flow.view(2, *shape), shown.view(1, *shape))


def _in_camera(mesh: Mesh, camera: Camera) -> Tensor:
    return to_camera(mesh.vertices.detach().cpu().float(), camera.world_to_camera.cpu())


def _surface(values: Tensor, mesh: Mesh, camera: Camera, threads: int | None) -> tuple[tuple[int, int], Tensor, Tensor]:
    """Values [V, C] of the vertices where a picture shows the mesh: its (H, W), flat pixels [n], values [n, C]."""
    ids, weights = visible_faces(mesh, camera, threads)
    pixels = (ids.flatten() >= 0).nonzero()[:, 0]
    faces, weights = ids.flatten().index_select(0, pixels).long(), weights.flatten(0, 1).index_select(0, pixels)
    corners = values[mesh.faces.cpu()].index_select(0, faces)
    found = corners[:, 0] * weights[:, :1] + corners[:, 1] * weights[:, 1:2] + corners[:, 2] * weights[:, 2:]
    return (ids.shape[0], ids.shape[1]), pixels, found


def _depth_range(shape: tuple[int, int], pixels: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest depth of the 2 x 2 pixels at (x, y) and to its lower right, both [H - 1, W - 1];
    infinite where there is no surface."""
    depth = torch.full((shape[0] * shape[1],), float("inf")).index_copy_(0, pixels, depths[:, 0]).view(shape)
    least, greatest = torch.minimum(depth[:, 1:], depth[:, :-1]), torch.maximum(depth[:, 1:], depth[:, :-1])
    return torch.minimum(least[1:], least[:-1]), torch.maximum(greatest[1:], greatest[:-1])


def _shown(places: Tensor, depth: Tensor, nearest: Tensor, farthest: Tensor, allowed: Tensor) -> Tensor:
    """Whether the four pixels around each place [n, 2] show a surface at its depth [n], up to `allowed` [n] metres: [n]
    bool."""
    height, width = nearest.shape
    if not nearest.numel():
        return torch.zeros(len(places), dtype=torch.bool)
    corner = (places - 0.5).floor()
    x, y = corner[:, 0].clamp(0, width - 1), corner[:, 1].clamp(0, height - 1)
    inside = (corner[:, 0] == x) & (corner[:, 1] == y)
    at = (y * width + x).long()
    near, far = nearest.flatten().index_select(0, at), farthest.flatten().index_select(0, at)
    return inside & (depth - near <= allowed) & (far - depth <= allowed)


def warp(image: Tensor, flow: MeshFlow) -> Tensor:
    """Fetch a picture [C, H, W] along a flow that leads into it: bilinear, 0 where the flow isn't seen."""
    height, width = image.shape[-2:]
    rows, columns = flow.seen.shape[-2:]
    offset = flow.offset.to(image)
    along = {"device": image.device, "dtype": image.dtype}
    x = offset[0] + torch.arange(columns, **along) + 0.5
    y = offset[1] + (torch.arange(rows, **along) + 0.5)[:, None]
    if image.device.type == "cpu":
        grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], -1)
        fetched = F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
    else:
        fetched = bilinear(image, x - 0.5, y - 0.5)
    return torch.where(flow.seen.to(image.device), fetched, 0.0)


def bilinear(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A picture [C, H, W] at columns x and rows y, both [h, w]; beyond its border as at the border: [C, h, w].

    `grid_sample` sums its gradients with atomics on a GPU, in no fixed order; those of `index_select` have one.
    """
    height, width = image.shape[-2:]
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.floor(), y.floor()
    across, down = x - left, y - top
    columns = (left.long(), (left.long() + 1).clamp_max(width - 1))
    rows = (top.long(), (top.long() + 1).clamp_max(height - 1))
    shares = ((1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across)
    places = [(row * width + column).flatten() for row in rows for column in columns]
    corners = [image.flatten(1).index_select(1, place).view(-1, *x.shape) for place in places]
    return sum((corner * share for corner, share in zip(corners, shares, strict=True)), torch.zeros_like(corners[0]))


def seen_difference(values: Tensor, other: Tensor, flow: MeshFlow) -> Tensor:
    """Mean over seen pixels and channels of |values - warped other|, both [C, h, w]; 0 if nothing is seen."""
    seen = flow.seen.to(values.device)
    difference = torch.where(seen, values - warp(other, flow), 0.0).abs().sum()
    return difference / (len(values) * seen.sum().clamp_min(1))


class OpticalFlowConsistency:
    """The error of a picture should not change from frame to frame: mean |e - warp(e')| over pixels seen twice.

    With e = picture - photograph, now and (') in a neighbouring frame. True changes of appearance, such as shadows that
    don't move with the skin, are in both photographs and cost nothing. Both pictures should carry gradients: the
    Gaussians are in both, and what they do to both alike cancels only then (docs/log.md has the numbers).
    """

    def __call__(self, image: Tensor, photograph: Tensor, neighbour: Neighbour, flow: MeshFlow) -> Tensor:
        """A picture [3, H, W], its photograph [3, H, W], and the flow to the neighbour -> 0-dim."""
        return seen_difference(image - photograph, neighbour.image - neighbour.frame.image, flow)


class TemporalFeatureStability:
    """The same for features of the pictures: mean over levels of mean |f - warp(f')| over cells seen twice.

    With f = features(picture) - features(photograph).

    Args:
        features: of a picture, without state; `local_contrast` needs no weights, a pretrained network's layers will
            do. A level reduced by 2^k has floor(H / 2^k) rows.
    """

    def __init__(self, features: Features | None = None) -> None:
        self.features = features or local_contrast

    def __call__(self, image: Tensor, photograph: Tensor, neighbour: Neighbour, flow: MeshFlow) -> Tensor:
        """A picture [3, H, W], its photograph [3, H, W], and the flow to the neighbour -> 0-dim."""
        errors, before = self.errors(image, photograph), self.errors(neighbour.image, neighbour.frame.image)
        differences = [
            seen_difference(level, other, flow.at(*level.shape[-2:]))
            for level, other in zip(errors, before, strict=True)
        ]
        return torch.stack(differences).mean()

    def errors(self, image: Tensor, photograph: Tensor) -> list[Tensor]:
        """By how much the features [C, h, w] of a picture differ from the photograph's."""
        with torch.no_grad():
            truth = self.features(photograph)
        return [level - true for level, true in zip(self.features(image), truth, strict=True)]


def local_contrast(image: Tensor) -> list[Tensor]:
    """Bands of the Laplacian pyramid of the grey picture [3, H, W], each divided by the contrast around the pixel.

    Level k is [1, floor(H / 2^k), floor(W / 2^k)]; with g the grey picture at that size and B the 3 x 3 binomial
    window, it is d / sqrt(B(B(d^2)) + c^2), d = g - B(g), c = `CONTRAST_FLOOR`. Burt and Adelson, "The Laplacian
    pyramid as a compact image code" (1983); the division as in Laparra et al., "Perceptual image quality assessment
    using a normalized Laplacian pyramid" (2016), with a fixed window instead of learnt filters.
    """
    grey, levels = image.mean(0, keepdim=True), []
    for _ in range(BANDS):
        band = grey - _blur(grey)
        levels.append(band / (_blur(_blur(band.square())) + CONTRAST_FLOOR**2).sqrt())
        if min(grey.shape[-2:]) < 2:
            break
        grey = F.avg_pool2d(grey, 2)
    return levels


def _blur(image: Tensor) -> Tensor:
    """The 3 x 3 binomial window; the border repeats. Sums of shifted pictures: faster than a convolution on the CPU."""
    wide = torch.cat([image[..., :1], image, image[..., -1:]], -1)
    image = 0.25 * (wide[..., :-2] + wide[..., 2:]) + 0.5 * image
    high = torch.cat([image[..., :1, :], image, image[..., -1:, :]], -2)
    return 0.25 * (high[..., :-2, :] + high[..., 2:, :]) + 0.5 * image
