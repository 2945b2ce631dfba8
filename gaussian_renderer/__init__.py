"""Drawing splats: `build_renderer(name)` gives `render(splats, camera, background) -> Rendered`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gaussian_renderer.backends import BACKENDS
from utils.contracts import Camera, Rendered, Splats
from utils.errors import EnvironmentFault, InputError
from utils.maths.projection import camera_centre, covariance_3d
from utils.maths.sh import SH_0, eval_sh

Renderer = Callable[[Splats, Camera, Tensor], Rendered]


@dataclass
class PipelineOptions:
    """Steps that PyTorch may do instead of the rasteriser: the same picture, slower; for looking into it."""

    convert_SHs_python: bool = field(default=False, metadata={"help": "evaluate colours in PyTorch"})  # noqa: N815
    compute_cov3D_python: bool = field(default=False, metadata={"help": "build covariances in PyTorch"})  # noqa: N815


def build_renderer(name: str, threads: int | None = None, pipeline: PipelineOptions | None = None) -> Renderer:
    """Load the rasteriser `name` of `BACKENDS`.

    Args:
        threads: of the CPU kernels; None leaves the choice to the rasteriser.
        pipeline: what PyTorch does before it.

    Raises:
        InputError: there is no such rasteriser.
        EnvironmentFault: this machine can't run it; says every reason, and what to do.
    """
    if name not in BACKENDS:
        raise InputError("--rasterizer", "", f"found {name!r}, expected one of {', '.join(BACKENDS)}")
    module_name, function_name = BACKENDS[name].split(":")
    try:
        module = importlib.import_module(module_name)
        reasons = module.unavailable() if hasattr(module, "unavailable") else []
    except (ImportError, OSError) as error:
        reasons = [f"{error} (`make setup` builds and installs it)"]
    if reasons:
        advice = "--rasterizer reference works anywhere, slowly"
        raise EnvironmentFault(f"--rasterizer {name}: not usable here: {'; '.join(reasons)}. {advice}")
    draw = getattr(module, function_name)

    def render(splats: Splats, camera: Camera, background: Tensor) -> Rendered:
        check(splats, camera, background)
        if pipeline and pipeline.convert_SHs_python:
            splats = with_colours(splats, camera)
        if pipeline and pipeline.compute_cov3D_python:
            splats = replace(splats, covariances=upper_triangle(covariance_3d(splats.quats, splats.scales)))
        return draw(splats, camera, background, threads)

    return render


def with_colours(splats: Splats, camera: Camera) -> Splats:
    """The same splats with the colour that this camera sees as their only SH coefficient."""
    directions = torch.nn.functional.normalize(splats.means - camera_centre(camera.world_to_camera), dim=-1)
    seen = eval_sh(splats.sh, directions, splats.sh_degree)
    return replace(splats, sh=(seen / SH_0)[:, None, :], sh_degree=0)


def upper_triangle(matrices: Tensor) -> Tensor:
    """[N, 3, 3] symmetric -> [N, 6]: xx xy xz yy yz zz."""
    return torch.stack([matrices[:, i, j] for i in range(3) for j in range(i, 3)], dim=-1)


def check(splats: Splats, camera: Camera, background: Tensor) -> None:
    """Refuse tensors that don't fit together, before a kernel sees them. Reads no values, so never waits for a GPU.

    Raises:
        InputError: names the tensor.
    """
    n = splats.means.shape[0]
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "means": (splats.means, (n, 3)),
        "quats": (splats.quats, (n, 4)),
        "scales": (splats.scales, (n, 3)),
        "opacities": (splats.opacities, (n,)),
        "sh": (splats.sh, (n, splats.sh.shape[1] if splats.sh.ndim == 3 else -1, 3)),
        "world_to_camera": (camera.world_to_camera, (4, 4)),
        "intrinsics": (camera.intrinsics, (3, 3)),
        "background": (background, (3,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise InputError("renderer", name, f"has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype != splats.means.dtype or tensor.device != splats.means.device:
            found, means = f"{tensor.dtype} on {tensor.device}", f"{splats.means.dtype} on {splats.means.device}"
            raise InputError("renderer", name, f"is {found}, expected {means} like the means")
    if not splats.means.is_floating_point():
        raise InputError("renderer", "means", f"are {splats.means.dtype}, expected a floating-point type")
    if not 0 <= splats.sh_degree <= 3 or splats.sh.shape[1] < (splats.sh_degree + 1) ** 2:
        problem = f"has {splats.sh.shape[1]} coefficients, which is too few for degree {splats.sh_degree}"
        raise InputError("renderer", "sh", f"{problem}; expected (degree + 1)^2 of a degree from 0 to 3")
    if camera.width < 1 or camera.height < 1:
        raise InputError("renderer", "camera", f"is {camera.width} x {camera.height} pixels, expected at least 1 x 1")
