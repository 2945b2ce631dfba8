"""gsplat >= 1.5 (Apache-2.0, optional) as rasteriser, on CUDA, through its public functions.

Differs from our rules: gsplat 1.5 caps alpha at 0.999, stops a pixel at a transmittance of exactly 1e-4 too, gives no
gradient to the intrinsics. It sums over pixels with float atomics, so two runs differ in the last bits.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util

import torch
from torch import Tensor

from utils.contracts import Camera, Rendered, Splats
from utils.maths.projection import camera_centre

OLDEST = (1, 5)
TILE = 16
LOW_PASS = 0.3  # pixels^2


def unavailable() -> list[str]:
    """Every reason why gsplat can't be used here, with what to do."""
    reasons = []
    if importlib.util.find_spec("gsplat") is None:
        reasons.append("gsplat is not installed (pip install gsplat)")
    else:
        version = importlib.metadata.version("gsplat")
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            reasons.append(f"gsplat is {version}, expected 1.5 or newer (pip install --upgrade gsplat)")
    if not torch.cuda.is_available():
        reasons.append("it needs a CUDA device and PyTorch sees none (--rasterizer native draws on the CPU)")
    if reasons:
        return reasons
    # The first import builds gsplat's kernels if its wheel came without them, which takes minutes and can fail.
    try:
        kernels = importlib.import_module("gsplat.cuda._backend")._C
    except (ImportError, OSError, RuntimeError, IndexError) as error:
        return [f"its CUDA kernels can't be built: {error} (install a wheel with kernels: docs.gsplat.studio)"]
    return [] if kernels else ["its CUDA kernels are missing and there is no CUDA toolkit to build them (install nvcc)"]


def render(splats: Splats, camera: Camera, background: Tensor, threads: int | None = None) -> Rendered:
    """Draw splats, with gradients to `splats`, the camera's pose, `background` and the screen offsets.

    Args:
        splats: world-space Gaussians on a CUDA device, float32.
        background: [3] colour behind everything.
        threads: ignored; this is a GPU.
    """
    offsets = torch.zeros_like(splats.means[:, :2]).requires_grad_()
    height, width = camera.height, camera.width
    if splats.means.shape[0] == 0:
        empty = background.new_zeros(1, height, width)
        radii = torch.zeros(0, dtype=torch.int32, device=background.device)
        return Rendered(background[:, None, None].expand(3, height, width), empty, empty, radii, offsets)

    import gsplat

    pose = camera.world_to_camera
    radii, centres, depths, conics, _ = gsplat.fully_fused_projection(
        splats.means,
        splats.covariances,
        None if splats.covariances is not None else splats.quats,
        None if splats.covariances is not None else splats.scales,
        pose[None],
        camera.intrinsics[None],
        width,
        height,
        eps2d=LOW_PASS,
        near_plane=camera.near,
        far_plane=camera.far,
        opacities=splats.opacities,
    )
    directions = splats.means - camera_centre(pose)  # normalised by gsplat
    colours = (gsplat.spherical_harmonics(splats.sh_degree, directions, splats.sh) + 0.5).clamp(min=0)
    centres = centres + offsets * offsets.new_tensor([width / 2, height / 2])
    columns, rows = -(-width // TILE), -(-height // TILE)
    _, keys, order = gsplat.isect_tiles(centres.detach(), radii, depths.detach(), TILE, columns, rows)
    tiles = gsplat.isect_offset_encode(keys, 1, columns, rows)
    blended, alpha = gsplat.rasterize_to_pixels(
        centres,
        conics,
        torch.cat([colours[None], depths[..., None]], dim=-1),
        splats.opacities[None],
        width,
        height,
        TILE,
        tiles,
        order,
        backgrounds=torch.cat([background, background.new_zeros(1)])[None],
    )
    picture = blended[0].permute(2, 0, 1)
    return Rendered(picture[:3], alpha[0].permute(2, 0, 1), picture[3:], radii[0].amax(-1).int(), offsets)
