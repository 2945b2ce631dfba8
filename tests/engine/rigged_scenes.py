"""Gaussians on a mesh for the rasteriser's tests, and their picture in float64 PyTorch: no tiles, no loops, autograd.

The reference also says which pixels are clear: far enough from every threshold (the least alpha, its clamp, the end of
a pixel, the order of two splats, the edge of a splat's tiles) that rounding can't carry them across. Losses look at
clear pixels only, so that pictures and gradients may be held to rounding, without room for pixels that flip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diff_gaussian_rasterization import RULES, Rules, rasterize_rigged
from diff_gaussian_rasterization.rig import FaceRig
from torch import Tensor

from scene.placement import place_in_torch
from tests.engine.rasterizer_scenes import harmonics
from tests.tiny import ellipsoid
from utils.contracts import Mesh
from utils.maths.rotations import axis_angle_to_matrix, quaternion_to_matrix

COLUMNS = ("means", "quats", "scales_log", "opacity_logit", "sh0", "shN")
CAMERA = ("world_to_camera", "intrinsics", "background")
NAMES = ("vertices", *COLUMNS, *CAMERA, "screen_offsets")
NEAR, FAR = 0.2, 3.0
TILE = 16
CLEAR = 3e-4  # relative distance to a threshold from which rounding keeps away
FIRST_ROW_ONLY = {"intrinsics": ([0, 1, 0, 1], [0, 1, 2, 2]), "world_to_camera": (slice(0, 3), slice(None))}


@dataclass(frozen=True)
class Scene:
    parameters: dict[str, Tensor]  # float64, the names of NAMES; float32 holds every value exactly
    faces: Tensor
    binding: Tensor
    width: int
    height: int

    def leaves(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: value.to(dtype).clone().requires_grad_() for name, value in self.parameters.items()}


def make_scene(seed: int = 0, count: int = 300, opaque: bool = False, width: int = 44, height: int = 37) -> Scene:
    """A head-sized ellipsoid before a turned camera. A third of the Gaussians sit on one face, odd faces have none.
    Three more faces lie behind the camera, before the near plane, and beside the picture, beyond the limit of the
    Jacobian, with Gaussians that reach into it. With `opaque`, the front hides the back."""
    r = np.random.default_rng(seed)
    pose, intrinsics = camera(width, height)
    vertices, faces = ellipsoid()
    vertices = vertices + r.normal(size=vertices.shape) * 2e-3
    triangle = 0.06 * np.array([[-0.5, -0.4, 0.0], [0.6, -0.3, 0.1], [0.1, 0.7, -0.1]])
    for centre in ([0.02, 0.01, -0.5], [0.01, 0.0, 0.12], [0.27, 0.05, 0.6]):
        seen = triangle + np.array(centre) - pose[:3, 3]
        faces = np.concatenate([faces, [[len(vertices) + i for i in range(3)]]])
        vertices = np.concatenate([vertices, seen @ pose[:3, :3]])  # R^T (c - t)
    head = len(faces) - 3
    binding = 2 * r.integers(0, head // 2, count)
    binding[r.permutation(count)[: count // 3]] = front_face(vertices, faces[:head], pose)
    binding[r.permutation(count)[: count // 8]] = head + r.integers(0, 3, count // 8)
    values = {
        "vertices": vertices,
        "means": r.normal(size=(count, 3)) * 0.4,
        "quats": 2.0 * r.normal(size=(count, 4)),
        "scales_log": r.normal(size=(count, 3)) * 0.4 - (0.6 if opaque else 1.0),
        "opacity_logit": 1.5 * r.normal(size=count) + (5.0 if opaque else 0.3),
        "sh0": r.normal(size=(count, 1, 3)) * 0.6,
        "shN": r.normal(size=(count, 15, 3)) * 0.15,
        "world_to_camera": pose,
        "intrinsics": intrinsics,
        "background": np.array([0.2, 0.5, 0.7]),
        "screen_offsets": r.normal(size=(count, 2)) * 0.01,
    }
    beside = binding == head + 2
    values["scales_log"][beside], values["means"][beside] = 0.3, 0.1 * values["means"][beside]
    parameters = {name: torch.tensor(value).float().double() for name, value in values.items()}
    return Scene(parameters, torch.tensor(faces), torch.tensor(binding), width, height)


def camera(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """0.6 m before the head, a little from above; the principal point off the centre, two focal lengths."""
    pose = np.eye(4)
    pose[:3, :3] = axis_angle_to_matrix(torch.tensor([math.pi - 0.2, 0.1, 0.15], dtype=torch.float64)).numpy()
    pose[:3, 3] = [0.01, -0.01, 0.6]
    focal = 0.8 * height * 0.6 / 0.24
    return pose, np.array([[focal, 0, 0.53 * width], [0, 1.05 * focal, 0.46 * height], [0, 0, 1]])


def front_face(vertices: np.ndarray, faces: np.ndarray, pose: np.ndarray) -> int:
    depth = vertices[faces].mean(1) @ pose[2, :3]
    return int(depth.argmin())


@dataclass(frozen=True)
class Reference:
    image: Tensor  # [3, H, W]
    alpha: Tensor  # [1, H, W]
    depth: Tensor  # [1, H, W]
    shown: Tensor  # [N] bool: adds something to a pixel
    radius: Tensor  # [N] pixels, not rounded
    clear: Tensor  # [H, W] bool

    @property
    def pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.image, self.alpha, self.depth


@dataclass(frozen=True)
class Footprints:
    """Splats in the picture, near to far; by columns."""

    index: Tensor  # [M]
    x: Tensor  # [M, 2] pixels
    z: Tensor
    covariance: Tensor  # [M, 2, 2] filtered
    opacity: Tensor
    colour: Tensor  # [M, 3]
    radius: Tensor  # [M] pixels: three standard deviations of the longer axis; a floor of the original's for round ones


def jacobian(point: Tensor, k: Tensor, size: tuple[int, int], symmetric: bool) -> Tensor:
    """[M, 2, 3] at camera points, moved back to 15 % of the picture beside its edge."""
    rows, z = [], point[:, 2]
    for axis in range(2):
        f, middle, pixels = k[axis, axis], k[axis, 2], size[axis]
        middle = torch.full_like(middle, pixels / 2) if symmetric else middle
        low, high = -(middle + 0.15 * pixels) / f, (1.15 * pixels - middle) / f
        slope = torch.minimum(torch.maximum(point[:, axis] / z, low), high)
        row = [torch.zeros_like(z), torch.zeros_like(z), -f * slope / z]
        row[axis] = f / z
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


def footprints(p: Mapping[str, Tensor], scene: Scene, degree: int, rules: Rules) -> Footprints:
    columns = {"means": p["means"], "quats": p["quats"], "scales": p["scales_log"], "opacities": p["opacity_logit"]}
    placed = place_in_torch(Mesh(p["vertices"], scene.faces), scene.binding, columns)
    turn, shift, size = p["world_to_camera"][:3, :3], p["world_to_camera"][:3, 3], (scene.width, scene.height)
    depth = (placed.means @ turn.T + shift)[:, 2].detach()
    index = torch.nonzero((depth > NEAR) & (depth < FAR))[:, 0]
    index = index[torch.argsort(depth[index].float(), stable=True)]
    means = placed.means[index]
    point = means @ turn.T + shift
    k = p["intrinsics"]
    x = torch.stack([k[i, i] * point[:, i] / point[:, 2] + k[i, 2] for i in range(2)], -1)
    x = x + p["screen_offsets"][index] * x.new_tensor(size) / 2
    axes = quaternion_to_matrix(placed.quats[index]) * placed.scales[index][:, None, :]
    root = jacobian(point, k, size, rules.symmetric_clamp) @ turn @ axes
    raw = root @ root.transpose(-1, -2)
    covariance = raw + rules.eps2d * torch.eye(2, dtype=raw.dtype)
    opacity = placed.opacities[index]
    if rules.antialias:
        opacity = opacity * (torch.linalg.det(raw) / torch.linalg.det(covariance)).clamp_min(2.5e-5).sqrt()
    sh = torch.cat([p["sh0"], p["shN"]], 1)[index, : (degree + 1) ** 2]
    basis = harmonics(torch.nn.functional.normalize(means + turn.T @ shift, dim=-1), degree)
    colour = (torch.einsum("mk,mkc->mc", basis, sh) + 0.5).clamp_min(0)
    half, determinant = covariance.detach().diagonal(dim1=1, dim2=2).mean(1), torch.linalg.det(covariance.detach())
    radius = 3 * (half + (half**2 - determinant).clamp_min(0.1).sqrt()).sqrt()
    return Footprints(index, x, point[:, 2], covariance, opacity, colour, radius)


def in_square(f: Footprints, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """[M, P] whether the tiles of the 3 sigma square hold the pixel; [M] whether rounding could change that."""
    radius, middle = f.radius.ceil(), f.x.detach() - 0.5
    inside, ends = torch.ones(len(radius), len(pixels), dtype=torch.bool), [f.radius]
    for axis in range(2):
        low, high = (middle[:, axis] - radius) / TILE, (middle[:, axis] + radius + TILE - 1) / TILE
        tile = (pixels[:, axis] / TILE).floor()
        inside &= (tile >= low.floor()[:, None]) & (tile < high.floor()[:, None])
        ends += [low, high]
    return inside, torch.stack([(end - end.round()).abs() < CLEAR for end in ends]).any(0)


def reference(p: Mapping[str, Tensor], scene: Scene, degree: int = 3, rules: str | Rules = "ours") -> Reference:
    """All pixels and all splats at once."""
    rules = RULES[rules] if isinstance(rules, str) else rules
    f = footprints(p, scene, degree, rules)
    rows, columns = torch.meshgrid(torch.arange(scene.height), torch.arange(scene.width), indexing="ij")
    pixels = torch.stack([columns, rows], -1).view(-1, 2).to(f.x.dtype) + 0.5
    d = pixels - f.x[:, None]  # [M, P, 2]
    form = torch.einsum("mpi,mij,mpj->mp", d, torch.linalg.inv(f.covariance), d)
    raw = f.opacity[:, None] * torch.exp(-0.5 * form)
    inside, doubtful = torch.ones_like(raw, dtype=torch.bool), torch.zeros_like(f.z, dtype=torch.bool)
    if rules.square_extent:
        inside, doubtful = in_square(f, pixels)
    if rules.clamp_passes_gradient:
        alpha = raw + (raw.clamp_max(rules.alpha_max) - raw).detach()
    else:
        alpha = raw.clamp_max(rules.alpha_max)
    seen = (raw >= 1 / 255) & inside
    alpha = torch.where(seen, alpha, 0.0)
    after = torch.cumprod(1 - alpha, 0)
    live = after >= rules.stop
    weight = torch.where(live, alpha * torch.cat([torch.ones_like(after[:1]), after[:-1]]), 0.0)
    rest = 1 - weight.sum(0)
    image = torch.einsum("mp,mc->cp", weight, f.colour) + p["background"][:, None] * rest
    depth = (weight * f.z[:, None]).sum(0)

    with torch.no_grad():
        log, z = raw.clamp_min(1e-30).log(), f.z.detach()
        met = seen & torch.cat([torch.ones_like(live[:1]), live[:-1]])
        risky = (log + math.log(255)).abs() < CLEAR
        risky |= (log - math.log(rules.alpha_max)).abs() < CLEAR
        risky |= (after / rules.stop).clamp_min(1e-30).log().abs() < 10 * CLEAR
        risky |= seen & doubtful[:, None]
        for step in (1, 2):
            swapped = (z[step:] - z[:-step] < 5e-7)[:, None]
            risky[step:] |= seen[step:] & seen[:-step] & swapped
        earlier = torch.cat([torch.ones_like(after[:1]), after[:-1]]) > 0.5 * rules.stop
        clear = ~(risky & earlier).any(0)
    shown, radius = (torch.zeros(len(scene.binding), dtype=dtype) for dtype in (torch.bool, torch.float64))
    shown[f.index], radius[f.index] = met.any(1), f.radius
    shape = (-1, scene.height, scene.width)
    return Reference(image.view(shape), (1 - rest).view(shape), depth.view(shape), shown, radius, clear.view(shape)[0])


def draw(p: Mapping[str, Tensor], scene: Scene, degree: int = 3, **options: Any) -> tuple[Tensor, ...]:
    """The native picture: image, alpha, depth (None if not wanted), radii."""
    rig = FaceRig(scene.faces, len(p["vertices"]))
    tensors = {name: p[name] for name in NAMES if name in p}
    options = {"near": NEAR, "far": FAR, "width": scene.width, "height": scene.height, **options}
    return rasterize_rigged(rig, scene.binding, **tensors, sh_degree=degree, **options)  # pyright: ignore[reportReturnType]


def output_weights(scene: Scene, clear: Tensor | None = None, seed: int = 7) -> list[Tensor]:
    """Fixed random dL/dimage, dL/dalpha, dL/ddepth (float64); 0 where a pixel is not clear."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(channels, scene.height, scene.width) for channels in (3, 1, 1)]
    weights = [torch.randn(shape, generator=g, dtype=torch.float32).double() for shape in shapes]
    return weights if clear is None else [weight * clear for weight in weights]


def gradients(p: Mapping[str, Tensor], outputs: tuple[Tensor, ...], weights: list[Tensor]) -> dict[str, Tensor]:
    """Of the weighted sum of the outputs, by name; of matrices, the entries that mean something."""
    total = torch.stack([(out * w.to(out.dtype)).sum() for out, w in zip(outputs, weights, strict=True)]).sum()
    found = dict(zip(p, torch.autograd.grad(total, list(p.values())), strict=True))
    return {name: g[FIRST_ROW_ONLY[name]] if name in FIRST_ROW_ONLY else g for name, g in found.items()}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))
