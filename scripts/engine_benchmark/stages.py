"""What is timed. A stage is a function and a line in STAGES; its least work is a line in BOUNDS (bounds.py).

build(scene, threads) prepares a stage, not timed, and returns `run() -> {row: seconds}`; None where it makes no sense.
Outputs are fresh tensors each time, as a caller gets them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping

import torch

from scripts.engine_benchmark.scenes import Scene, draw
from scripts.engine_benchmark.step import Laps, plant_gradients, training, training_step
from utils.contracts import Mesh

Run = Callable[[], dict[str, float]]
Build = Callable[[Scene, int], "Run | None"]

WARM_UP = 2
SHARE_OF_SSIM = 0.2


def raster(scene: Scene, threads: int) -> Run:
    """Splats to picture, and the picture's gradient to every splat parameter."""
    splats = {name: value.clone().requires_grad_() for name, value in scene.splats.items()}
    view, background = scene.camera, torch.zeros(3)
    gradient = torch.randn(3, view.height, view.width, generator=torch.Generator().manual_seed(0))

    def run() -> dict[str, float]:
        for value in splats.values():
            value.grad = None
        start = time.perf_counter()
        image = draw(splats, view, background, threads)
        middle = time.perf_counter()
        image.backward(gradient)
        end = time.perf_counter()
        return {"forward": middle - start, "backward": end - middle}

    return run


def ssim(scene: Scene, threads: int) -> Run:
    """L1 and SSIM of a picture, and the gradient to it."""
    from diff_gaussian_rasterization.image import l1_ssim

    frame = scene.frame
    image = draw(scene.splats, scene.camera, frame.background).requires_grad_()

    def run() -> dict[str, float]:
        image.grad = None
        start = time.perf_counter()
        absolute, similarity = l1_ssim(image, frame.image, threads, (1 - SHARE_OF_SSIM, -SHARE_OF_SSIM))
        ((1 - SHARE_OF_SSIM) * absolute + SHARE_OF_SSIM * (1 - similarity)).backward()
        return {"ssim": time.perf_counter() - start}

    return run


def adam(scene: Scene, threads: int) -> Run:
    """The optimiser's step over all columns of the Gaussians."""
    optimiser = training(scene, threads).optimiser
    columns, gradients = scene.avatar.columns, plant_gradients(scene.avatar)
    optimiser.schedule(1)

    def run() -> dict[str, float]:
        for name, column in columns.items():
            column.grad = gradients[name]
        start = time.perf_counter()
        optimiser.step(None)
        return {"adam": time.perf_counter() - start}

    return run


def rig(scene: Scene, threads: int) -> Run:
    """Vertices and columns to world splats, and the gradients of those back to both."""
    avatar, frame = scene.avatar, scene.frame
    avatar.use_threads(threads)
    mesh = avatar.rig(frame.timestep)
    return placing(
        scene, lambda vertices: avatar.place(Mesh(vertices, mesh.faces), avatar.binding, avatar.columns), "rig"
    )


def placing(scene: Scene, place: Callable[[torch.Tensor], object], row: str) -> Run:
    """Times a placement with gradients to all that the picture looks at."""
    avatar = scene.avatar
    vertices = avatar.rig(scene.frame.timestep).vertices.detach().requires_grad_()
    names = ("means", "quats", "scales", "opacities")
    with torch.no_grad():
        gradients = [torch.randn_like(getattr(place(vertices), name)) for name in names]

    def run() -> dict[str, float]:
        for tensor in (vertices, *avatar.columns.values()):
            tensor.grad = None
        start = time.perf_counter()
        placed = place(vertices)
        torch.autograd.backward([getattr(placed, name) for name in names], gradients)
        return {row: time.perf_counter() - start}

    return run


def flame(scene: Scene, threads: int) -> Run | None:
    """FLAME parameters to posed vertices, and back; only where FLAME carries the Gaussians."""
    from scene.rigs import FlameRig

    posed, timestep = scene.avatar.rig, scene.frame.timestep
    if not isinstance(posed, FlameRig):
        return None
    gradient = torch.randn_like(posed(timestep).vertices)

    def run() -> dict[str, float]:
        for values in posed.parameters.values():
            values.grad = None
        start = time.perf_counter()
        posed(timestep).vertices.backward(gradient)
        return {"flame": time.perf_counter() - start}

    return run


def step(scene: Scene, threads: int) -> Run:
    """A whole training step, and what it is made of."""
    trained = training(scene, threads)

    def run() -> dict[str, float]:
        start, laps = time.perf_counter(), Laps()
        training_step(trained, laps)
        return {"step": laps.last - start, **{f"step: {name}": spent for name, spent in laps.seconds.items()}}

    return run


STAGES: Mapping[str, Build] = {
    "raster": raster,
    "ssim": ssim,
    "adam": adam,
    "rig": rig,
    "flame": flame,
    "step": step,
}


def best_times(runs: Iterable[Run], repeat: int, warm_up: int = WARM_UP) -> dict[str, float]:
    """The least seconds of every row. The stages take turns, so that a busy minute meets all of them."""
    stages = list(runs)
    best: dict[str, float] = {}
    for stage in stages:
        for _ in range(warm_up):
            stage()
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(repeat):
            for stage in stages:
                for row, seconds in stage().items():
                    best[row] = min(best.get(row, seconds), seconds)
    finally:
        if collecting:
            gc.enable()
    return with_sums(best)


def with_sums(best: Mapping[str, float]) -> dict[str, float]:
    """Adds the row `sum` behind every `backward`: the best forward and the best backward, as the goals have it."""
    rows: dict[str, float] = {}
    for row, seconds in best.items():
        rows[row] = seconds
        if row.startswith("backward"):
            rows[row.replace("backward", "sum", 1)] = best[row.replace("backward", "forward", 1)] + seconds
    return rows
