"""Our own rasteriser (`submodules/diff-gaussian-rasterization`): CPU, any number of threads, the same bits for each;
and CUDA, the same bits in every run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.contracts import Camera, Mesh, Rendered, RiggedSplats, Splats
from utils.errors import EnvironmentFault, NumericalFault


def unavailable() -> list[str]:
    """Every reason why the rasteriser can't be used here, with what to do."""
    if importlib.util.find_spec("diff_gaussian_rasterization") is None:
        return ["diff_gaussian_rasterization is not installed (pip install ./submodules/diff-gaussian-rasterization)"]
    from diff_gaussian_rasterization import isa_name

    try:
        isa_name()
    except ImportError as error:
        return [str(error)]
    return []


def unusable_on(device: torch.device | str) -> str | None:
    """Why it can't draw tensors of this device; None: it can."""
    from diff_gaussian_rasterization._device import usable

    return usable(device)


def render(splats: Splats, camera: Camera, background: Tensor, threads: int | None = None) -> Rendered:
    """Draw splats, with gradients to `splats`, the camera's pose and intrinsics, `background` and the screen offsets.

    Args:
        splats: world-space Gaussians on the CPU or on a GPU, float32.
        background: [3] colour behind everything.
        threads: of the CPU; None leaves the choice to MIEN_THREADS, else to the number of usable CPUs.

    Raises:
        EnvironmentFault: the tensors are on a device for which there are no kernels.
        NumericalFault: a tensor holds NaN or infinity.
    """
    from diff_gaussian_rasterization import rasterize

    if (why := unusable_on(splats.means.device)) is not None:
        problem = f"--rasterizer native can't draw on {splats.means.device}: {why}"
        raise EnvironmentFault(f"{problem}. Use --device cpu, or another rasteriser")
    shape = (splats.means, splats.quats, splats.scales, splats.opacities, splats.sh)
    return _draw(rasterize, shape, splats, camera, background, covariances=splats.covariances, threads=threads)


class _Faces:
    """What the native library knows of the last mesh's triangles."""

    faces: Tensor | None = None
    rig: Any = None

    @classmethod
    def of(cls, mesh: Mesh) -> Any:
        from diff_gaussian_rasterization.rig import FaceRig

        if cls.faces is not mesh.faces or cls.rig.n_vertices != mesh.vertices.shape[0]:
            cls.faces, cls.rig = mesh.faces, FaceRig(mesh.faces, mesh.vertices.shape[0])
        return cls.rig


def render_rigged(
    splats: RiggedSplats, camera: Camera, background: Tensor, threads: int | None = None, with_depth: bool = True
) -> Rendered:
    """Draw Gaussians on a mesh in one pass from its vertices to pixels, with gradients to the vertices, the Gaussians'
    columns, the camera, `background` and the screen offsets.

    Raises:
        NumericalFault: a tensor holds NaN or infinity, or a Gaussian leaves the range of numbers.
    """
    from diff_gaussian_rasterization import rasterize_rigged

    place = (_Faces.of(splats.mesh), splats.binding, splats.mesh.vertices)
    columns = (splats.means, splats.quats, splats.scales, splats.opacities, splats.sh0, splats.shN)
    return _draw(
        rasterize_rigged, (*place, *columns), splats, camera, background, with_depth=with_depth, threads=threads
    )


def _draw(
    rasterise: Callable[..., Any],
    tensors: tuple[Any, ...],
    splats: Splats | RiggedSplats,
    camera: Camera,
    background: Tensor,
    **more: Any,
) -> Rendered:
    from diff_gaussian_rasterization import NonFiniteError

    offsets = torch.zeros_like(splats.means[:, :2]).requires_grad_()
    try:
        image, alpha, depth, radii = rasterise(
            *tensors,
            sh_degree=splats.sh_degree,
            world_to_camera=camera.world_to_camera,
            intrinsics=camera.intrinsics,
            width=camera.width,
            height=camera.height,
            near=camera.near,
            far=camera.far,
            background=background,
            screen_offsets=offsets,
            **more,
        )
    except NonFiniteError as error:
        raise NumericalFault(f"renderer: {error}. A step before this one diverged") from error
    return Rendered(image, alpha, depth, radii, offsets)
