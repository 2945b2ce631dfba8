"""Drawing splats: `build_renderer(name)` gives `render(splats, camera, background, with_depth) -> Rendered`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from gaussian_renderer.backends import BACKENDS
from utils.contracts import Camera, Rendered, RiggedSplats, Splats
from utils.errors import EnvironmentFault, InputError
from utils.maths.projection import camera_centre, covariance_3d
from utils.maths.sh import SH_0, eval_sh


class Renderer(Protocol):
    """Draws splats over a background colour [3]; without depth where nobody wants it (a backend may draw it anyway)."""

    def __call__(
        self, splats: Splats | RiggedSplats, camera: Camera, background: Tensor, with_depth: bool = True
    ) -> Rendered: ...


@dataclass
class PipelineOptions:
    """Steps that PyTorch may do instead of the rasteriser: the same picture, slower; for looking into it."""

    convert_SHs_python: bool = field(default=False, metadata={"help": "evaluate colours in PyTorch"})  # noqa: N815
    compute_cov3D_python: bool = field(default=False, metadata={"help": "build covariances in PyTorch"})  # noqa: N815

    @property
    def in_torch(self) -> bool:
        """Whether PyTorch does anything of the rasteriser's."""
        return self.convert_SHs_python or self.compute_cov3D_python


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
    draw_rigged = rigged_entry(module, pipeline)

    def render(splats: Splats | RiggedSplats, camera: Camera, background: Tensor, with_depth: bool = True) -> Rendered:
        if isinstance(splats, RiggedSplats):
            if draw_rigged is not None and module.unusable_on(splats.means.device) is None:
                check_camera(splats.means, camera, background)
                return draw_rigged(splats, camera, background, threads, with_depth)
            splats = splats.world()
        check(splats, camera, background)
        if pipeline and pipeline.convert_SHs_python:
            splats = with_colours(splats, camera)
        if pipeline and pipeline.compute_cov3D_python:
            splats = replace(splats, covariances=upper_triangle(covariance_3d(splats.quats, splats.scales)))
        return draw(splats, camera, background, threads)

    return render


def rigged_entry(module: ModuleType, pipeline: PipelineOptions | None) -> Callable[..., Rendered] | None:
    """What draws `RiggedSplats` as they are; None: they have to be placed in the world first."""
    return None if pipeline and pipeline.in_torch else getattr(module, "render_rigged", None)


def describe(name: str, device: torch.device | str, pipeline: PipelineOptions | None = None) -> str:
    """A line for the log: which way `build_renderer`'s renderer takes from an avatar to its picture."""
    module = importlib.import_module(BACKENDS[name].split(":")[0])
    if rigged_entry(module, pipeline) and module.unusable_on(device) is None:
        return f"rasterizer: {name}, from mesh to picture in one pass"
    return f"rasterizer: {name}, of Gaussians placed in the world first"


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
    }
    check_tensors(expected, splats.means)
    check_camera(splats.means, camera, background)
    if not splats.means.is_floating_point():
        raise InputError("renderer", "means", f"are {splats.means.dtype}, expected a floating-point type")
    if not 0 <= splats.sh_degree <= 3 or splats.sh.shape[1] < (splats.sh_degree + 1) ** 2:
        problem = f"has {splats.sh.shape[1]} coefficients, which is too few for degree {splats.sh_degree}"
        raise InputError("renderer", "sh", f"{problem}; expected (degree + 1)^2 of a degree from 0 to 3")


def check_camera(means: Tensor, camera: Camera, background: Tensor) -> None:
    """Likewise for what a picture needs beside its splats."""
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "world_to_camera": (camera.world_to_camera, (4, 4)),
        "intrinsics": (camera.intrinsics, (3, 3)),
        "background": (background, (3,)),
    }
    check_tensors(expected, means)
    if camera.width < 1 or camera.height < 1:
        raise InputError("renderer", "camera", f"is {camera.width} x {camera.height} pixels, expected at least 1 x 1")


def check_tensors(expected: dict[str, tuple[Tensor, tuple[int, ...]]], means: Tensor) -> None:
    """Refuse tensors of another shape than the one beside them, or of another type or device than the means."""
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise InputError("renderer", name, f"has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype != means.dtype or tensor.device != means.device:
            found = f"{tensor.dtype} on {tensor.device}"
            raise InputError("renderer", name, f"is {found}, expected {means.dtype} on {means.device} like the means")
