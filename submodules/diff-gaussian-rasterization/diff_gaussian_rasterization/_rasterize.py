"""`rasterize()`: pictures of 3D Gaussians with gradients to everything that is continuous."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _calls
from ._calls import SPLAT_TENSORS, Lease, Workspace, address
from ._library import thread_count
from ._rules import RULES, Rules


@dataclass(frozen=True)
class Picture:
    """What of a picture is not a tensor."""

    width: int
    height: int
    near: float
    far: float
    sh_degree: int
    rules: Rules
    threads: int
    with_depth: bool = True


class Mount(NamedTuple):
    """The native handles of the mesh that Gaussians ride on, and of their binding to it."""

    mesh: Any
    binding: Any


NAMES = (*SPLAT_TENSORS, "vertices", "world_to_camera", "intrinsics", "background")


def check_tensor(name: str, tensor: Tensor, shape: tuple[int | str, ...], like: Tensor | None = None) -> Tensor:
    """A contiguous float32 tensor of the given shape (strings stand for any size).

    Args:
        like: the tensor must be on this one's device; on the CPU if there is none. A tensor like itself may be on the
            CPU or on a GPU.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
    found = tuple(tensor.shape)
    if found != shape and (
        len(found) != len(shape) or any(not isinstance(w, str) and w != s for w, s in zip(shape, found, strict=True))
    ):
        wanted = "[" + ", ".join(str(size) for size in shape) + "]"
        raise ValueError(f"{name} must have shape {wanted}, got {list(tensor.shape)}")
    if tensor.dtype != torch.float32:
        raise ValueError(f"{name} must have dtype torch.float32, got {tensor.dtype}")
    if like is tensor and not (tensor.is_cpu or tensor.is_cuda):
        raise ValueError(f"{name} must be on the CPU or on a GPU, got {tensor.device}")
    if (tensor.device != like.device) if isinstance(like, Tensor) else not tensor.is_cpu:
        place = "the CPU" if like is None or like.is_cpu else like.device
        raise ValueError(f"{name} must be on {place}, got {tensor.device}")
    return tensor.contiguous()


def _settings(picture: Picture, tensors: dict[str, Tensor | None], centre: Tensor | None) -> _calls.Settings:
    rules = picture.rules
    return _calls.Settings(
        world_to_camera=address(tensors["world_to_camera"]),
        intrinsics=address(tensors["intrinsics"]),
        background=address(tensors["background"]),
        centre=address(centre),
        near_plane=picture.near,
        far_plane=picture.far,
        eps2d=rules.eps2d,
        alpha_max=rules.alpha_max,
        stop=rules.stop,
        width=picture.width,
        height=picture.height,
        normalise_quats=rules.normalise_quats,
        square_extent=rules.square_extent,
        clamp_passes_gradient=rules.clamp_passes_gradient,
        antialias=rules.antialias,
        symmetric_clamp=rules.symmetric_clamp,
    )


def _inputs(picture: Picture, tensors: dict[str, Tensor | None], mount: Mount | None) -> _calls.Inputs:
    means, sh = tensors["means"], tensors["sh"]
    if means is None:
        raise ValueError("means must be given")
    coefficients = 0 if sh is None else sh.shape[1] + (tensors["sh0"] is not None)
    return _calls.Inputs(
        count=means.shape[0],
        sh_coefficients=coefficients,
        sh_degree=picture.sh_degree,
        mesh=None if mount is None else mount.mesh.value,
        binding=None if mount is None else mount.binding.value,
        **{name: address(tensors[name]) for name in (*SPLAT_TENSORS, "vertices")},
    )


class _Rasterize(torch.autograd.Function):
    """Arguments: picture, centre, mount, whether a backward pass may come, then the tensors of NAMES."""

    @staticmethod
    def forward(
        ctx: Any, picture: Picture, centre: Tensor | None, mount: Mount | None, keep: bool, *tensors: Any
    ) -> tuple[Tensor | None, ...]:
        named = dict(zip(NAMES, tensors, strict=True))
        inputs, means = _inputs(picture, named, mount), named["means"]
        image = means.new_empty(3, picture.height, picture.width)
        alpha = means.new_empty(1, picture.height, picture.width)
        depth = torch.empty_like(alpha) if picture.with_depth else None
        radii = means.new_empty(inputs.count, dtype=torch.int32)
        outputs = _calls.PictureOutputs(*(address(tensor) for tensor in (image, alpha, depth, radii)))
        lease = Workspace.take(means)
        _calls.draw(lease.workspace, _settings(picture, named, centre), inputs, outputs, picture.threads, keep)
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(False)
        if keep:
            ctx.save_for_backward(image, depth, centre, *tensors)
            ctx.picture, ctx.mount, ctx.lease = picture, mount, lease
        return image, alpha, depth, radii

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, g_image: Tensor | None, g_alpha: Tensor | None, g_depth: Tensor | None, _: Any
    ) -> tuple[Any, ...]:
        image, depth, centre, *tensors = ctx.saved_tensors
        picture: Picture = ctx.picture
        lease: Lease = ctx.lease
        named = dict(zip(NAMES, tensors, strict=True))
        wanted = dict(zip(NAMES, ctx.needs_input_grad[4:], strict=True))
        wanted["world_to_camera"] = wanted["intrinsics"] = wanted["world_to_camera"] or wanted["intrinsics"]
        gradients = {
            name: torch.empty_like(tensor) if wanted[name] and tensor is not None else None
            for name, tensor in named.items()
        }
        g_image = torch.zeros_like(image) if g_image is None else g_image.contiguous()
        g_alpha = None if g_alpha is None else g_alpha.contiguous()
        g_depth = None if g_depth is None else g_depth.contiguous()
        pictures = _calls.PictureInputs(*(address(tensor) for tensor in (g_image, g_alpha, g_depth, image, depth)))
        outputs = _calls.AllGradients(**{name: address(tensor) for name, tensor in gradients.items()})
        inputs, settings = _inputs(picture, named, ctx.mount), _settings(picture, named, centre)
        _calls.draw_backward(lease.workspace, settings, inputs, pictures, outputs, picture.threads)
        return None, None, None, None, *gradients.values()


def rasterize_tensors(
    picture: Picture,
    tensors: dict[str, Tensor | None],
    centre: Tensor | None = None,
    mount: Mount | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Draw checked tensors, by their name in NAMES; those that are not given are None."""
    ordered = [tensors.get(name) for name in NAMES]
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in ordered)
    return _Rasterize.apply(picture, centre, mount, keep, *ordered)  # type: ignore[return-value]


@functools.lru_cache(maxsize=64)
def checked_picture(
    size: tuple[int, int],
    planes: tuple[float, float],
    sh_degree: int,
    rules: str | Rules,
    threads: int,
    with_depth: bool = True,
) -> Picture:
    if isinstance(rules, str) and rules not in RULES:
        raise ValueError(f"rules must be one of {', '.join(RULES)} or a Rules, got {rules!r}")
    chosen = RULES[rules] if isinstance(rules, str) else rules
    if isinstance(sh_degree, bool) or sh_degree not in (0, 1, 2, 3):
        raise ValueError(f"sh_degree must be 0, 1, 2 or 3, got {sh_degree!r}")
    for name, value in zip(("width", "height"), size, strict=True):
        if not 1 <= value <= 65535:
            raise ValueError(f"{name} must lie in 1 .. 65535, got {value!r}")
    if not 0 < planes[0] < planes[1]:
        raise ValueError(f"near must be positive and smaller than far, got near {planes[0]!r}, far {planes[1]!r}")
    return Picture(*size, *planes, sh_degree, chosen, threads, with_depth)


def _checked_splats(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], screen_offsets: Tensor | None, sh_degree: int
) -> dict[str, Tensor | None]:
    means, quats, scales, opacities, sh = tensors
    count = means.shape[0] if isinstance(means, Tensor) and means.dim() > 0 else 0
    splats: dict[str, Tensor | None] = {
        "means": check_tensor("means", means, (count, 3), means),
        "quats": check_tensor("quats", quats, (count, 4), means),
        "scales": check_tensor("scales", scales, (count, 3), means),
        "opacities": check_tensor("opacities", opacities, (count,), means),
        "sh": check_tensor("sh", sh, (count, "K", 3), means),
    }
    needed = (sh_degree + 1) ** 2
    if sh.shape[1] < needed:
        raise ValueError(
            f"sh must have shape [{count}, >= {needed}, 3] for sh_degree {sh_degree}, got {list(sh.shape)}"
        )
    if screen_offsets is not None:
        splats["screen_offsets"] = check_tensor("screen_offsets", screen_offsets, (count, 2), means)
    return splats


def rasterize(  # noqa: PLR0913
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
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
    covariances: Tensor | None = None,
    with_depth: bool = True,
    rules: str | Rules = "ours",
    threads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Draw 3D Gaussians (Kerbl et al., 3D Gaussian Splatting, 2023).

    All tensors are float32, on the CPU or on one GPU; gradients flow to every one of them. The same input gives the
    same bits; on the CPU they don't depend on `threads`. On a GPU, forward waits once for the number of tiles that the
    splats reach; nothing else waits.

    Args:
        means: [N, 3] world space.
        quats: [N, 4] (w, x, y, z), normalised inside.
        scales: [N, 3] standard deviations.
        opacities: [N] in [0, 1].
        sh: [N, K, 3] real spherical harmonics, K >= (sh_degree + 1)^2; colour = max(0, 0.5 + sum basis * coefficient).
        world_to_camera: [4, 4] OpenCV (x right, y down, z forward), acts on column vectors; its last row is not read.
        intrinsics: [3, 3] pixels; fx, fy, cx, cy are read. The centre of the top-left pixel is (0.5, 0.5).
        near, far: a splat is drawn if near < z < far.
        background: [3].
        screen_offsets: [N, 2] added to the screen means, in half images: (W / 2, H / 2) pixels per unit.
        covariances: [N, 6] xx xy xz yy yz zz, used instead of quats and scales (which then get no gradient).
        with_depth: False leaves the depth out, which saves time.
        rules: "ours", "dgr" (diff-gaussian-rasterization), "gsplat15", or a `Rules`.
        threads: of the CPU; None for the environment variable MIEN_THREADS, else the number of usable CPUs.

    Returns:
        image [3, H, W] over the background, alpha [1, H, W], depth [1, H, W] (sum of weight * camera z) or None, and
        radii [N] int32: three standard deviations of the longer axis in pixels, rounded up; 0 if not drawn.

    Raises:
        NonFiniteError: NaN or infinity; names the tensor and the first row. A GPU does not look at coefficients beyond
            sh_degree.
        ValueError: a tensor of another shape, dtype or device, or an option out of range.
        MemoryError: too little memory on the GPU; says how much was asked for, and for how many Gaussians.
    """
    picture = checked_picture((width, height), (near, far), sh_degree, rules, thread_count(threads), bool(with_depth))
    splats = _checked_splats((means, quats, scales, opacities, sh), screen_offsets, sh_degree)
    if covariances is not None:
        splats["covariances"] = check_tensor("covariances", covariances, (means.shape[0], 6), means)
        splats["quats"] = splats["scales"] = None
    return rasterize_tensors(picture, {**splats, **checked_camera(world_to_camera, intrinsics, background, means)})


def checked_camera(world_to_camera: Tensor, intrinsics: Tensor, background: Tensor, means: Tensor) -> dict[str, Tensor]:
    """What a picture needs beside its splats, by name."""
    return {
        "world_to_camera": check_tensor("world_to_camera", world_to_camera, (4, 4), means),
        "intrinsics": check_tensor("intrinsics", intrinsics, (3, 3), means),
        "background": check_tensor("background", background, (3,), means),
    }
