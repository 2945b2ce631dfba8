"""`rasterize_rigged()`: pictures of Gaussians on a mesh, from vertices to pixels in one pass and back."""

from __future__ import annotations

from torch import Tensor

from ._library import thread_count
from ._rasterize import Mount, check_tensor, checked_camera, checked_picture, rasterize_tensors
from ._rules import Rules
from .rig import FaceRig


def rasterize_rigged(  # noqa: PLR0913
    rig: FaceRig,
    binding: Tensor,
    vertices: Tensor,
    means: Tensor,
    quats: Tensor,
    scales_log: Tensor,
    opacity_logit: Tensor,
    sh0: Tensor,
    shN: Tensor,  # noqa: N803 - the field's name for it
    *,
    sh_degree: int,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    near: float = 0.01,
    far: float = 100.0,
    background: Tensor,
    screen_offsets: Tensor | None = None,
    with_depth: bool = True,
    rules: str | Rules = "ours",
    threads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Draw Gaussians that ride on the triangles of a mesh: `FaceRig.place` and `rasterize` in one, without the
    splats in the world that lie between them.

    All tensors are float32, on the CPU or on one GPU (`binding` int64, on either); gradients flow to all of them but
    `binding`. The same input gives the same bits, as of `rasterize`.

    Args:
        rig: the mesh's triangles.
        binding: [N] int64, the face of each Gaussian.
        vertices: [V, 3] world space.
        means: [N, 3], quats: [N, 4], scales_log: [N, 3], opacity_logit: [N]: as for `FaceRig.place`.
        sh0: [N, 1, 3], shN: [N, K - 1, 3]: the coefficients of `rasterize`, the first one apart.
        with_depth: False leaves the depth out, which saves time.
        The others: as for `rasterize`.

    Returns:
        image [3, H, W], alpha [1, H, W], depth [1, H, W] or None, radii [N] int32, as of `rasterize`.

    Raises:
        NonFiniteError: NaN or infinity; names the tensor and the first row.
        ValueError: a tensor of another shape, dtype or device, a face that is not there, or an option out of range.
        MemoryError: too little memory on the GPU; says how much was asked for, and for how many Gaussians.
    """
    picture = checked_picture((width, height), (near, far), sh_degree, rules, thread_count(threads), bool(with_depth))
    posed = check_tensor("vertices", vertices, (rig.n_vertices, 3), vertices)
    mount = Mount(rig.mesh_near(posed), rig.bind(binding, posed))
    columns = (means, quats, scales_log, opacity_logit, sh0, shN)
    tensors: dict[str, Tensor | None] = {
        "vertices": posed,
        **_checked_columns(binding.shape[0], columns, sh_degree, posed),
        **checked_camera(world_to_camera, intrinsics, background, posed),
    }
    if screen_offsets is not None:
        tensors["screen_offsets"] = check_tensor("screen_offsets", screen_offsets, (binding.shape[0], 2), posed)
    return rasterize_tensors(picture, tensors, mount=mount)


def _checked_columns(count: int, columns: tuple[Tensor, ...], sh_degree: int, like: Tensor) -> dict[str, Tensor]:
    means, quats, scales_log, opacity_logit, sh0, higher = columns
    checked = {
        "means": check_tensor("means", means, (count, 3), like),
        "quats": check_tensor("quats", quats, (count, 4), like),
        "scales": check_tensor("scales_log", scales_log, (count, 3), like),
        "opacities": check_tensor("opacity_logit", opacity_logit, (count,), like),
        "sh0": check_tensor("sh0", sh0, (count, 1, 3), like),
        "sh": check_tensor("shN", higher, (count, "K - 1", 3), like),
    }
    least = (sh_degree + 1) ** 2 - 1
    if higher.shape[1] < least:
        raise ValueError(
            f"shN must have shape [{count}, >= {least}, 3] for sh_degree {sh_degree}, got {list(higher.shape)}"
        )
    return checked
