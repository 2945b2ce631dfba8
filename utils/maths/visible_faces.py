"""Which triangle of a mesh each pixel sees."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from utils.contracts import Camera, Mesh
from utils.errors import EnvironmentFault
from utils.maths.projection import project, to_camera

FARTHEST = 2.0**19  # pixels from the picture; the rasteriser's own limit is twice that


def visible_faces(mesh: Mesh, camera: Camera, threads: int | None = None) -> tuple[Tensor, Tensor]:
    """The face at each pixel centre, int32 [H, W], -1: none; and its barycentrics [H, W, 3]; on the CPU.

    Triangles with a corner before the near plane, or very far outside the picture, are left out.

    Raises:
        EnvironmentFault: the native rasteriser is not built.
    """
    vertices, camera = mesh.vertices.detach().cpu().float(), camera.to("cpu")
    seen = to_camera(vertices, camera.world_to_camera)
    pixels = project(seen, camera.intrinsics)
    drawable = (seen[:, 2] > camera.near) & (pixels.abs() < FARTHEST).all(1)
    depth = torch.where(drawable, seen[:, 2], torch.zeros(()))
    screen = torch.cat([torch.where(drawable[:, None], pixels, torch.zeros(())), depth[:, None]], 1)
    try:
        from diff_gaussian_rasterization.mesh import rasterize_mesh

        ids, weights, _ = rasterize_mesh(screen, mesh.faces.cpu(), camera.width, camera.height, camera.near, threads)
    except (ImportError, OSError) as error:
        raise EnvironmentFault(
            f"drawing a mesh needs the native rasteriser: {error} (`make setup` builds it)"
        ) from error
    return ids, weights


def region_pixels(
    mesh: Mesh, camera: Camera, regions: Mapping[str, Tensor], threads: int | None = None
) -> dict[str, Tensor]:
    """Where a picture shows regions [F] bool of a mesh: name -> [H, W] bool, on the CPU."""
    ids = visible_faces(mesh, camera, threads)[0].long()
    return {name: inside.cpu()[ids.clamp_min(0)] & (ids >= 0) for name, inside in regions.items()}
