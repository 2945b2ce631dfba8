"""Scenes for the rasteriser's tests, and an independent dense renderer in float64 PyTorch: no tiles, autograd."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NAMES = (
    "means",
    "quats",
    "scales",
    "opacities",
    "sh",
    "world_to_camera",
    "intrinsics",
    "background",
    "screen_offsets",
)
SPLATS = NAMES[:5]


@dataclass(frozen=True)
class Scene:
    parameters: dict[str, Tensor]  # float64, the names in NAMES
    width: int
    height: int

    def leaves(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: value.to(dtype).clone().requires_grad_() for name, value in self.parameters.items()}


def make_scene(n: int, width: int, height: int, seed: int = 0, coefficients: int = 16, spread: float = 0.12) -> Scene:
    """n random Gaussians a metre before a turned camera with an off-centre principal point; some out of the picture."""
    r = np.random.default_rng(seed)
    focal = 1.1 * height / (2.2 * spread)
    view = np.eye(4)
    view[:3, :3] = _rotation(r.normal(size=4) * 0.15 + np.array([1.0, 0, 0, 0]))
    view[:3, 3] = [0.01, -0.02, 1.0]
    values = {
        "means": r.normal(size=(n, 3)) * spread * np.array([0.8, 0.8, 0.5]),
        "quats": r.normal(size=(n, 4)),
        "scales": np.exp(r.normal(size=(n, 3)) * 0.6) * 2.5 * spread / math.sqrt(n) / 2,
        "opacities": 1 / (1 + np.exp(-1.2 * r.normal(size=n) - 0.4)) * 0.97 + 0.01,
        "sh": r.normal(size=(n, coefficients, 3)) * 0.15,
        "world_to_camera": view,
        "intrinsics": np.array([[focal, 0, width / 2 + 2.3], [0, focal * 1.07, height / 2 - 1.9], [0, 0, 1.0]]),
        "background": np.array([0.2, 0.5, 0.7]),
        "screen_offsets": r.normal(size=(n, 2)) * 0.01,
    }
    values["sh"][:, 0] *= 4
    return Scene({name: torch.tensor(value) for name, value in values.items()}, width, height)


def _rotation(q: np.ndarray) -> np.ndarray:
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def output_weights(scene: Scene, seed: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Fixed random dL/dimage, dL/dalpha, dL/ddepth (float64)."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((3, scene.height, scene.width), (1, scene.height, scene.width), (1, scene.height, scene.width))
    image, alpha, depth = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
    return image, alpha, depth


def harmonics(d: Tensor, degree: int) -> Tensor:
    """[N, (degree + 1)^2] real spherical harmonics at unit directions, by Legendre recurrence."""
    x, y, z = d.unbind(-1)
    legendre = {(0, 0): torch.ones_like(z)}  # P_l^m / sin^m, Condon-Shortley phase included
    for m in range(1, degree + 1):
        legendre[m, m] = (1 - 2 * m) * legendre[m - 1, m - 1]
    for m in range(degree + 1):
        for k in range(m + 1, degree + 1):
            below = legendre[k - 2, m] if k - 2 >= m else torch.zeros_like(z)
            legendre[k, m] = ((2 * k - 1) * z * legendre[k - 1, m] - (k + m - 1) * below) / (k - m)
    cos, sin = [torch.ones_like(x)], [torch.zeros_like(x)]  # sin^m cos(m phi), sin^m sin(m phi)
    for _ in range(degree):
        cos, sin = cos + [x * cos[-1] - y * sin[-1]], sin + [x * sin[-1] + y * cos[-1]]
    columns = []
    for k in range(degree + 1):
        for m in range(-k, k + 1):
            a = abs(m)
            norm = math.sqrt((2 * k + 1) / (4 * math.pi) * math.factorial(k - a) / math.factorial(k + a))
            angular = (cos[a] if m > 0 else sin[a]) * math.sqrt(2) if m else cos[0]
            columns.append(norm * legendre[k, a] * angular)
    return torch.stack(columns, dim=-1)


def dense(
    p: dict[str, Tensor], width: int, height: int, sh_degree: int, **options: float
) -> tuple[Tensor, Tensor, Tensor]:
    """image [3, H, W], alpha [1, H, W], depth [1, H, W]; options alpha_max, eps2d, near."""
    alpha_max, eps2d, near = options.get("alpha_max", 0.99), options.get("eps2d", 0.3), options.get("near", 0.01)
    rotation, translation, k = p["world_to_camera"][:3, :3], p["world_to_camera"][:3, 3], p["intrinsics"]
    q = torch.nn.functional.normalize(p["quats"], dim=-1)
    w, x, y, z = q.unbind(-1)
    r = torch.stack(
        [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
            torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
            torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        -2,
    )
    covariance = r @ torch.diag_embed(p["scales"] ** 2) @ r.transpose(-1, -2)
    point = p["means"] @ rotation.T + translation
    fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
    tx, ty, tz = point.unbind(-1)
    u = torch.minimum(torch.maximum(tx / tz, -(cx + 0.15 * width) / fx), (width - cx + 0.15 * width) / fx)
    v = torch.minimum(torch.maximum(ty / tz, -(cy + 0.15 * height) / fy), (height - cy + 0.15 * height) / fy)
    zero = torch.zeros_like(tz)
    jacobian = torch.stack(
        [torch.stack([fx / tz, zero, -fx * u / tz], -1), torch.stack([zero, fy / tz, -fy * v / tz], -1)], -2
    )
    jw = jacobian @ rotation
    inverse = torch.linalg.inv(jw @ covariance @ jw.transpose(-1, -2) + eps2d * torch.eye(2, dtype=tz.dtype))
    half = torch.tensor([width / 2, height / 2], dtype=tz.dtype)
    screen = torch.stack([fx * tx / tz + cx, fy * ty / tz + cy], -1) + p["screen_offsets"] * half
    centre = -rotation.T @ translation
    basis = harmonics(torch.nn.functional.normalize(p["means"] - centre, dim=-1), sh_degree)
    colour = ((basis[..., None] * p["sh"][:, : basis.shape[1]]).sum(1) + 0.5).clamp_min(0)

    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([columns, rows], -1).to(tz.dtype) + 0.5
    transmittance = torch.ones(height, width, dtype=tz.dtype)
    alive = torch.ones(height, width, dtype=torch.bool)
    image, depth = torch.zeros(3, height, width, dtype=tz.dtype), torch.zeros(height, width, dtype=tz.dtype)
    for i in torch.argsort(tz.detach(), stable=True).tolist():
        if tz[i] < near:
            continue
        d = pixels - screen[i]
        alpha = (p["opacities"][i] * torch.exp(-0.5 * torch.einsum("hwi,ij,hwj->hw", d, inverse[i], d))).clamp_max(
            alpha_max
        )
        alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
        alive = alive & ((transmittance * (1 - alpha) >= 1e-4) | (alpha == 0))
        weight = torch.where(alive, alpha * transmittance, 0.0)
        image = image + weight * colour[i][:, None, None]
        depth = depth + weight * tz[i]
        transmittance = transmittance - weight
    return image + transmittance * p["background"][:, None, None], (1 - transmittance)[None], depth[None]
