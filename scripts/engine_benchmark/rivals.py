"""Who does the same elsewhere. A rival is a function and a line in RIVALS; its rows are called `STAGE (RIVAL)`.

build(scene, threads) as in stages.py; PyTorch has as many threads as our kernels. `Absent` says what is not installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gaussian_renderer import build_renderer
from scene.placement import place_in_torch
from scripts.engine_benchmark import gsplat_reference
from scripts.engine_benchmark.scenes import Scene, draw
from scripts.engine_benchmark.stages import SHARE_OF_SSIM, Build, Run, placing
from scripts.engine_benchmark.step import plant_gradients
from utils.contracts import Mesh, Splats
from utils.losses import photometric


def drawing(scene: Scene, rival: str, picture: Callable[[dict[str, Tensor]], Tensor]) -> Run:
    """Times a rasteriser forward and backward."""
    splats = {name: value.clone().requires_grad_() for name, value in scene.splats.items()}
    view = scene.camera
    gradient = torch.randn(3, view.height, view.width, generator=torch.Generator().manual_seed(0))

    def run() -> dict[str, float]:
        for value in splats.values():
            value.grad = None
        start = time.perf_counter()
        image = picture(splats)
        middle = time.perf_counter()
        image.backward(gradient)
        end = time.perf_counter()
        return {f"forward ({rival})": middle - start, f"backward ({rival})": end - middle}

    return run


def gsplat_raster(scene: Scene, threads: int) -> Run:
    """gsplat's PyTorch functions, with our blending where its own needs CUDA."""
    module = gsplat_reference.load()
    return drawing(scene, "gsplat reference", lambda splats: gsplat_reference.picture(module, scene, splats))


def gsplat_tiles(scene: Scene, threads: int) -> Run:
    """gsplat's tile listing, which the row before does without; seconds, so it is timed once."""
    module = gsplat_reference.load()
    with torch.no_grad():
        projected = gsplat_reference.project(module, scene, scene.splats)
    known: dict[str, float] = {}

    def run() -> dict[str, float]:
        if not known:
            start = time.perf_counter()
            gsplat_reference.list_tiles(module, scene, projected)
            known["tiles (gsplat reference)"] = time.perf_counter() - start
        return known

    return run


def torch_raster(scene: Scene, threads: int) -> Run:
    """Our reference backend."""
    render, view, black = build_renderer("reference"), scene.camera, torch.zeros(3)
    degree = round(scene.splats["sh"].shape[1] ** 0.5) - 1
    return drawing(scene, "torch", lambda splats: render(Splats(**splats, sh_degree=degree), view, black).image)


def torch_ssim(scene: Scene, threads: int) -> Run:
    """The twin that training uses on other devices."""
    frame = scene.frame
    image = draw(scene.splats, scene.camera, frame.background).requires_grad_()

    def run() -> dict[str, float]:
        image.grad = None
        start = time.perf_counter()
        absolute, similarity = photometric.l1(image, frame.image), photometric.ssim(image, frame.image)
        ((1 - SHARE_OF_SSIM) * absolute + SHARE_OF_SSIM * (1 - similarity)).backward()
        return {"ssim (torch)": time.perf_counter() - start}

    return run


def torch_rig(scene: Scene, threads: int) -> Run:
    """The twin that training uses on other devices."""
    avatar = scene.avatar
    faces = avatar.rig.faces
    place = lambda vertices: place_in_torch(Mesh(vertices, faces), avatar.binding, avatar.columns)  # noqa: E731
    return placing(scene, place, "rig (torch)")


def torch_adam(kind: str) -> Build:
    """torch.optim.Adam, `fused` or `foreach`."""

    def build(scene: Scene, threads: int) -> Run:
        columns = [column.detach().clone().requires_grad_() for column in scene.avatar.columns.values()]
        for column, gradient in zip(columns, plant_gradients(scene.avatar).values(), strict=True):
            column.grad = gradient
        optimiser = torch.optim.Adam(columns, lr=0.0, eps=1e-15, fused=kind == "fused", foreach=kind == "foreach")

        def run() -> dict[str, float]:
            start = time.perf_counter()
            optimiser.step()
            return {f"adam (torch {kind})": time.perf_counter() - start}

        return run

    return build


RIVALS: Mapping[str, tuple[str, Build]] = {  # name: the stage that it is beside, and who times it
    "gsplat reference": ("raster", gsplat_raster),
    "gsplat tiles": ("raster", gsplat_tiles),
    "torch raster": ("raster", torch_raster),
    "torch ssim": ("ssim", torch_ssim),
    "torch rig": ("rig", torch_rig),
    "torch Adam, fused": ("adam", torch_adam("fused")),
    "torch Adam, foreach": ("adam", torch_adam("foreach")),
}
