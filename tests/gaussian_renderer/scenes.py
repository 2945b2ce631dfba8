"""Small scenes for the renderer's tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from utils.contracts import Camera, Rendered, Splats
from utils.maths.rotations import axis_angle_to_matrix, normalise

BACKGROUND = (0.2, 0.4, 0.6)
NAMES = ("means", "quats", "scales", "opacities", "sh")


def shell(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Splats:
    """Splats on an ellipsoid the size of a head (metres), some nearly opaque, some faint, at any orientation."""
    g = torch.Generator().manual_seed(seed)
    normals = torch.nn.functional.normalize(torch.randn(n, 3, generator=g, dtype=torch.float64), dim=-1)
    spacing = 0.3 / math.sqrt(max(n, 1))
    return Splats(
        (normals * torch.tensor([0.075, 0.11, 0.095], dtype=torch.float64)).to(dtype),
        normalise(torch.randn(n, 4, generator=g, dtype=torch.float64)).to(dtype),
        (spacing * torch.exp(0.5 * torch.randn(n, 3, generator=g, dtype=torch.float64))).to(dtype),
        torch.sigmoid(0.5 + 1.5 * torch.randn(n, generator=g, dtype=torch.float64)).clamp(max=0.98).to(dtype),
        (0.3 * torch.randn(n, 16, 3, generator=g, dtype=torch.float64)).to(dtype),
        3,
    )


def camera(width: int = 64, height: int = 48, dtype: torch.dtype = torch.float64, distance: float = 0.6) -> Camera:
    """Looks at the shell from the front and above; principal point off the centre, fx and fy differ."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = axis_angle_to_matrix(torch.tensor([math.pi - 0.2, 0.1, 0.15], dtype=torch.float64))
    pose[:3, 3] = torch.tensor([0.01, -0.01, distance], dtype=torch.float64)
    focal = 0.75 * height * distance / 0.22
    intrinsics = [[focal, 0, 0.53 * width], [0, 1.05 * focal, 0.46 * height], [0, 0, 1]]
    return Camera(pose.to(dtype), torch.tensor(intrinsics, dtype=torch.float64).to(dtype), width, height)


def background(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(BACKGROUND, dtype=dtype)


def leaves(splats: Splats, view: Camera, behind: Tensor) -> dict[str, Tensor]:
    """Fresh leaves of everything that a picture depends on."""
    tensors = {name: getattr(splats, name) for name in NAMES}
    tensors |= {"world_to_camera": view.world_to_camera, "intrinsics": view.intrinsics, "background": behind}
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}


def draw(render: Callable[..., Rendered], inputs: dict[str, Tensor], splats: Splats, view: Camera) -> Rendered:
    """Draw `splats` and `view` with the tensors of `inputs` in their place.

    Quaternions are normalised first, as callers must; some rasterisers do it again, which then changes nothing.
    """
    moved = Camera(
        inputs["world_to_camera"], inputs["intrinsics"], view.width, view.height, view.near, view.far
    )  # fmt: skip
    tensors = {name: inputs[name] for name in NAMES} | {"quats": normalise(inputs["quats"])}
    return render(replace(splats, **tensors), moved, inputs["background"])


def weighted_sum(picture: Rendered, seed: int = 7) -> Tensor:
    """A fixed random linear function of image, alpha and depth, as a loss."""
    g = torch.Generator().manual_seed(seed)
    total = picture.image.new_zeros(())
    for part in (picture.image, picture.alpha, picture.depth):
        total = total + (part * torch.randn(part.shape, generator=g, dtype=torch.float64).to(part)).sum()
    return total


def gradients(render: Callable[..., Rendered], splats: Splats, view: Camera, behind: Tensor) -> tuple[Rendered, dict]:
    """The picture, and the gradients of `weighted_sum` to every leaf and the screen offsets."""
    inputs = leaves(splats, view, behind)
    picture = draw(render, inputs, splats, view)
    weighted_sum(picture).backward()
    grads = {name: leaf.grad for name, leaf in inputs.items()}
    return picture, grads | {"screen_offsets": picture.screen_offsets.grad}
