"""gsplat's PyTorch reference functions (Apache-2.0, optional) on the CPU, as far as they run there.

Covariance, projection, harmonics and the slow tile listing are gsplat's own. Its blending needs CUDA: our reference
backend lists the tiles and blends instead, which is faster than what gsplat's own listing in Python would be.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gaussian_renderer.backends import reference
from scripts.engine_benchmark.scenes import Scene
from utils.maths.projection import camera_centre

FUNCTIONS = ("_quat_scale_to_covar_preci", "_fully_fused_projection", "_spherical_harmonics", "_isect_tiles")
TILE = 16


class Absent(Exception):
    """A rival is not on this machine; says why."""


def load() -> ModuleType:
    """The module with the reference functions.

    Raises:
        Absent: gsplat is not installed, or is a version without them.
    """
    try:
        module = importlib.import_module("gsplat.cuda._torch_impl")
    except (ImportError, OSError, RuntimeError) as error:
        raise Absent(f"gsplat is not installed here ({error})") from error
    if missing := [name for name in FUNCTIONS if not hasattr(module, name)]:
        raise Absent(f"gsplat {importlib.metadata.version('gsplat')} has no {missing[0]}; 1.5.3 has")
    return module


def project(module: Any, scene: Scene, splats: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """gsplat's projection: radii [N, 2], means2d [N, 2], depths [N], conics [N, 3], colours [N, 3]."""
    view = scene.camera
    covariances, _ = module._quat_scale_to_covar_preci(splats["quats"], splats["scales"], True, False, triu=False)
    radii, means2d, depths, conics, _ = module._fully_fused_projection(
        splats["means"], covariances, view.world_to_camera[None], view.intrinsics[None], view.width, view.height,
        eps2d=0.3, near_plane=view.near, far_plane=view.far,
    )  # fmt: skip
    directions = splats["means"] - camera_centre(view.world_to_camera)
    degree = round(splats["sh"].shape[1] ** 0.5) - 1
    colours = (module._spherical_harmonics(degree, directions, splats["sh"]) + 0.5).clamp_min(0.0)
    return radii[0], means2d[0], depths[0], conics[0], colours


def picture(module: Any, scene: Scene, splats: dict[str, Tensor]) -> Tensor:
    """[3, H, W] over black: gsplat's projection, our blending."""
    radii, means2d, depths, conics, colours = project(module, scene, splats)
    with torch.no_grad():
        drawn = torch.nonzero((radii > 0).all(dim=-1))[:, 0]
        order = drawn[torch.argsort(depths[drawn], stable=True)]
    footprints = reference.Footprints(
        index=order,
        means=means2d[order],
        conics=conics[order],
        features=torch.cat([colours, depths[:, None]], dim=1)[order],
        opacities=splats["opacities"][order],
        reach=radii[order].to(means2d.dtype),
        radius=radii[order].amax(dim=1).to(means2d.dtype),
    )
    rows = range(0, scene.camera.height, reference.TILE)
    tiles = [torch.cat(list(reference._tile_row(footprints, scene.camera, top)), dim=2) for top in rows]
    return torch.cat(tiles, dim=1)[:3]


def list_tiles(module: Any, scene: Scene, projected: tuple[Tensor, ...]) -> None:
    """gsplat's own tile listing, a Python loop over the Gaussians."""
    radii, means2d, depths = projected[:3]
    across, down = -(-scene.camera.width // TILE), -(-scene.camera.height // TILE)
    module._isect_tiles(means2d[None], radii[None], depths[None], TILE, across, down)
