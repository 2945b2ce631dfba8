"""The posed mesh over a picture: shaded, half transparent, without OpenGL."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.contracts import Camera, Mesh
from utils.maths.projection import camera_centre
from utils.maths.visible_faces import visible_faces

SHARE = 0.5  # of the mesh in the blend
AMBIENT = 0.1  # the rest falls with the squared cosine to a light at the camera: more contrast than Lambert's law


def overlay(mesh: Mesh, camera: Camera, picture: Tensor, threads: int | None = None) -> Tensor:
    """Blend the shaded mesh into a picture [3, H, W] in [0, 1]; all on the CPU."""
    shading, covered = shade(mesh, camera, threads)
    return torch.where(covered, (1 - SHARE) * picture + SHARE * shading, picture)


def shade(mesh: Mesh, camera: Camera, threads: int | None = None) -> tuple[Tensor, Tensor]:
    """Grey levels [H, W] in [0, 1] of the mesh, smooth, lit from the camera; and where the mesh is, bool [H, W]."""
    ids, weights = visible_faces(mesh, camera, threads)
    vertices, faces, camera = mesh.vertices.detach().cpu().float(), mesh.faces.cpu(), camera.to("cpu")
    to_eye = camera_centre(camera.world_to_camera) - vertices
    attributes = unit(vertex_normals(vertices, faces)), unit(to_eye)
    corners = faces[ids.clamp_min(0).long()]
    normals, directions = ((attribute[corners] * weights[..., None]).sum(-2) for attribute in attributes)
    shading = AMBIENT + (1 - AMBIENT) * (unit(normals) * unit(directions)).sum(-1).square()
    return shading, ids >= 0


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[V, 3] sums of the normals of the faces at each vertex, each as long as twice its area."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    normals = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total.index_add_(0, faces[:, corner], normals)
    return total


def unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)
