"""N1: NaN, infinities, denormals and 1e38 in one element, in training and in the rasterisers. N2: nothing to draw."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import train
from gaussian_renderer import build_renderer
from scripts.torture_cases.case import (
    FIRST_CHECKPOINT,
    Box,
    Case,
    Command,
    Either,
    Expected,
    Refused,
    Works,
    state_digest,
)
from scripts.torture_cases.checkpoints import COLUMNS, MOTION
from scripts.torture_cases.meshes import finite
from tests.scene.make_capture import png, read_transforms, write_transforms
from utils.contracts import Camera, Rendered, RiggedSplats, Splats
from utils.engine.guard import FiniteGuard
from utils.engine.optimiser import Optimiser
from utils.errors import run_main
from utils.maths.table_rows import stored_values

BAD, ODD = (float("nan"), float("inf"), -float("inf")), (1e-40, 1e38)
BAD_STEP = FIRST_CHECKPOINT + 1
SPLATS = ("means", "quats", "scales", "opacities", "sh")
CAMERA = ("world_to_camera", "intrinsics", "background")
BACKENDS = ("native", "reference")
WHERE = (f"iteration {BAD_STEP}", r"view 0000\d_0\d")


def values(seed: int) -> Iterator[Case]:
    """N1: all cases of the row."""
    rng = np.random.default_rng([seed, 11])
    for value in (*BAD, *ODD):
        for name in (*COLUMNS, *MOTION):
            yield in_training("gradient", name, value, float(rng.random()))
        for name in (*COLUMNS, *CAMERA, "image"):
            yield in_training("drawn", name, value, float(rng.random()))
        for name in (*COLUMNS, *MOTION):
            yield in_training("parameter", name, value, float(rng.random()))
        for backend in BACKENDS:
            for name in (*SPLATS, *CAMERA):
                yield in_renderer(backend, name, value, float(rng.random()))


def poison(tensor: Tensor, value: float, share: float) -> None:
    """Set the element at this share of a tensor."""
    with torch.no_grad():
        flat = tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
        flat[int(share * flat.numel())] = value


def in_training(what: str, name: str, value: float, share: float) -> Case:
    """One element turns bad in the step after the first checkpoint."""
    patch = {"gradient": bad_gradient, "drawn": bad_drawing, "parameter": bad_parameter}[what]

    def prepare(box: Box) -> Command:
        def main(argv: list[str]) -> int | None:
            with patch(name, value, share):
                return train.main(argv)

        return Command(main, box.train("--checkpoint_iterations=3").argv)

    # A parameter of the rig that is bad before the step may show as what it makes of the mesh.
    named = {
        "gradient": f"gradient of {name}",
        "drawn": "loss term" if name == "image" else name,
        "parameter": name if name in COLUMNS else f"vertices|{name}",
    }[what]
    saved = what != "parameter"  # there the state was already bad, and saving it would spread it
    refused = Refused((*WHERE, named), (4,), writes=True, check=stopped_before if saved else nothing_bad_saved)
    expected: Expected = refused
    if value in ODD:  # may do harm only in a later view, which shows the Gaussian
        later = (r"iteration \d", WHERE[1])
        expected = Either(Refused(later, (4,), writes=True, check=nothing_bad_saved), Works(finite, "it is a number"))
    return Case("N1", f"training: {what} {name} {value:g}", prepare, expected)


@contextmanager
def bad_gradient(name: str, value: float, share: float) -> Iterator[None]:
    real = FiniteGuard.check

    def check(self: FiniteGuard, step: int, view: str, terms: Any, parameters: Any) -> Any:
        gradient = parameters[name].grad
        if step == BAD_STEP and gradient is not None:
            stored = stored_values(gradient)  # of motion: the rows that have any
            stored[int(share * stored.shape[0])].view(-1)[0] = value
        return real(self, step, view, terms, parameters)

    with mock.patch.object(FiniteGuard, "check", check):
        yield


@contextmanager
def bad_parameter(name: str, value: float, share: float) -> Iterator[None]:
    real = Optimiser.schedule

    def schedule(self: Optimiser, step: int) -> None:
        real(self, step)
        if step == BAD_STEP:
            parameter = self.avatar.parameters[name].data
            for row in range(parameter.shape[0]) if name in MOTION else (int(share * parameter.shape[0]),):
                poison(parameter[row], value, share)  # which timestep is drawn is not known here: all of them

    with mock.patch.object(Optimiser, "schedule", schedule):
        yield


@contextmanager
def bad_drawing(name: str, value: float, share: float) -> Iterator[None]:
    """What the renderer gets, or gives, holds the value in the second step."""
    real = build_renderer

    def build(*arguments: Any) -> Callable[..., Rendered]:
        draw, drawn = real(*arguments), [0]

        def render(splats: RiggedSplats, camera: Camera, background: Tensor, with_depth: bool = True) -> Rendered:
            drawn[0] += torch.is_grad_enabled()  # evaluations draw without
            if drawn[0] != BAD_STEP or not torch.is_grad_enabled():
                return draw(splats, camera, background, with_depth)
            splats, camera, background = spoilt(name, value, share, splats, camera, background)
            rendered = draw(splats, camera, background, with_depth)
            if name == "image":
                mask = torch.zeros_like(rendered.image)
                poison(mask, value, share)
                rendered = replace(rendered, image=rendered.image + mask)
            return rendered

        return render

    with mock.patch.object(train, "build_renderer", build):
        yield


Drawn = TypeVar("Drawn", Splats, RiggedSplats)


def spoilt(
    name: str, value: float, share: float, splats: Drawn, camera: Camera, background: Tensor
) -> tuple[Drawn, Camera, Tensor]:
    """The same with one bad element; the tensors given stay as they are."""

    def changed(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        poison(copy.detach(), value, share)
        return copy

    if name in (*SPLATS, *COLUMNS):
        return replace(splats, **{name: changed(getattr(splats, name))}), camera, background
    if name in ("world_to_camera", "intrinsics"):
        return splats, replace(camera, **{name: changed(getattr(camera, name))}), background
    return splats, camera, changed(background) if name == "background" else background


def nothing_bad_saved(box: Box, errors: str) -> str:
    return finite(box, errors)


def stopped_before(box: Box, errors: str) -> str:
    """The state before the bad step was saved: continued, it ends in the bits of a run that nothing disturbed."""
    saved = [path.parent.name for path in box.out.rglob("state.safetensors")]
    if saved != [f"step_{FIRST_CHECKPOINT:07d}"]:
        return f"saved checkpoints {saved}, expected that of step {FIRST_CHECKPOINT}"
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = run_main(train.main, box.train("--resume").argv)
    if code:
        return f"can't be continued: {said.getvalue()}"
    same = state_digest(box.out) == state_digest(box.root.parent / "intact" / "run")
    return "" if same else "continued from what was saved, the run ends in other bits than an undisturbed one"


def scene(count: int = 200, seed: int = 0) -> tuple[Splats, Camera, Tensor]:
    """Random splats in front of a camera."""
    rng = np.random.default_rng(seed)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32))

    quats = rng.normal(size=(count, 4))
    splats = Splats(
        tensor(rng.normal(0, 0.1, (count, 3)) + [0, 0, 1]),
        tensor(quats / np.linalg.norm(quats, axis=1, keepdims=True).clip(1e-9)),
        tensor(rng.uniform(0.005, 0.03, (count, 3))),
        tensor(rng.uniform(0.1, 0.9, count)),
        tensor(rng.normal(0, 0.3, (count, 4, 3))),
        1,
    )
    camera = Camera(torch.eye(4), torch.tensor([[40.0, 0, 16], [0, 40, 12], [0, 0, 1]]), 32, 24)
    return splats, camera, torch.tensor([0.25, 0.5, 0.75])


def in_renderer(backend: str, name: str, value: float, share: float) -> Case:
    """The rasteriser itself: refuses what is not finite, draws what is."""

    def prepare(box: Box) -> Command:
        inputs = spoilt(name, value, share, *scene())

        def main(argv: list[str]) -> None:
            draw_and_differentiate(backend, *inputs, may_overflow=value == 1e38)

        return Command(main, [])

    expected: Expected = Refused((name,), (4,))
    if value in ODD:
        expected = Either(Refused(("",), (4,)), Works(why="it is a number"))
    return Case("N1", f"{backend}: {name} {value:g}", prepare, expected)


def draw_and_differentiate(
    backend: str, splats: Splats, camera: Camera, background: Tensor, may_overflow: bool = False
) -> Rendered:
    """Draw; the picture and, unless they may overflow, the gradients must be finite, or RuntimeError."""
    leaves = {name: getattr(splats, name).clone().requires_grad_() for name in SPLATS}
    rendered = build_renderer(backend, 1)(replace(splats, **leaves), camera, background)
    rendered.image.sum().backward()
    for name, tensor in {"image": rendered.image, "alpha": rendered.alpha, "depth": rendered.depth}.items():
        if not bool(tensor.isfinite().all()):
            raise RuntimeError(f"{name} is not finite")
    for name, leaf in leaves.items():
        if not may_overflow and leaf.grad is not None and not bool(leaf.grad.isfinite().all()):
            raise RuntimeError(f"the gradient of {name} is not finite")
    return rendered


def empty_pictures(seed: int) -> Iterator[Case]:
    """N2: all cases of the row."""
    empty: dict[str, Callable[[Splats], Splats]] = {
        "no Gaussians": lambda s: replace(s, **{name: getattr(s, name)[:0] for name in SPLATS}),
        "all behind the camera": lambda s: replace(s, means=s.means * torch.tensor([1.0, 1.0, -1.0])),
        "all beside the picture": lambda s: replace(s, means=s.means + torch.tensor([50.0, 0.0, 0.0])),
        "all at the camera": lambda s: replace(s, means=torch.zeros_like(s.means)),
        "all beyond the far plane": lambda s: replace(s, means=s.means * 1000.0),
        "all transparent": lambda s: replace(s, opacities=torch.zeros_like(s.opacities)),
    }
    for backend in BACKENDS:
        for name, change in empty.items():
            yield drawn(f"{backend}: {name}", backend, change, background_only)
        yield drawn(f"{backend}: no size at all", backend, lambda s: replace(s, scales=torch.zeros_like(s.scales)))
        yield drawn(f"{backend}: one pixel", backend, lambda s: s, pixels=1)
        yield drawn(
            f"{backend}: all in one place",
            backend,
            lambda s: replace(s, means=s.means[:1].expand_as(s.means).contiguous()),
        )
    yield drawn("native: 10^5 on one tile", "native", on_one_tile, count=100_000)
    for power, seconds in ((6, 30.0), (7, 120.0)):
        command = Command(crowd, [str(10**power)], "-m scripts.torture_cases.crowd")
        yield Case(
            "N2",
            f"native: 10^{power} on one tile",
            lambda box, c=command: c,
            Works(why="a picture, and gradients, that are finite"),
            seconds=seconds,
        )
    yield from empty_runs()


def crowd(argv: list[str]) -> None:
    """Draw so many splats on one tile."""
    draw_and_differentiate("native", *replaced(scene(int(argv[0])), on_one_tile))


def replaced(
    inputs: tuple[Splats, Camera, Tensor], change: Callable[[Splats], Splats]
) -> tuple[Splats, Camera, Tensor]:
    return change(inputs[0]), inputs[1], inputs[2]


def on_one_tile(splats: Splats) -> Splats:
    return replace(splats, means=splats.means * torch.tensor([0.01, 0.01, 1.0]), scales=splats.scales * 0.01)


def background_only(rendered: Rendered, background: Tensor) -> str:
    same = torch.equal(rendered.image, background[:, None, None].expand_as(rendered.image))
    return "" if same and not bool(rendered.alpha.any()) and not bool(rendered.visible.any()) else "something was drawn"


def drawn(
    name: str,
    backend: str,
    change: Callable[[Splats], Splats],
    judge: Callable[[Rendered, Tensor], str] = lambda rendered, background: "",
    pixels: int = 0,
    count: int = 200,
) -> Case:
    def prepare(box: Box) -> Command:
        def main(argv: list[str]) -> None:
            splats, camera, background = scene(count)
            if pixels:
                camera = replace(camera, width=pixels, height=pixels)
            complaint = judge(draw_and_differentiate(backend, change(splats), camera, background), background)
            if complaint:
                raise RuntimeError(complaint)

        return Command(main, [])

    return Case("N2", name, prepare, Works(why="a picture, and gradients, that are finite"))


def empty_runs() -> Iterator[Case]:
    """Whole programs with nothing in view."""
    yield Case(
        "N2",
        "train.py: every camera looks away",
        looking_away,
        Refused(("00000_00", "no vertex of the mesh", "inspect")),
    )
    yield Case("N2", "train.py: pictures of one pixel", one_pixel, Works(finite, "any size from 1x1"))
    yield Case(
        "N2",
        "train.py: reduced to a width of 24 pixels",
        lambda box: box.train("-r", "24"),
        Works(finite, "any size from 1x1"),
    )
    yield Case(
        "N2",
        "render.py: an avatar of no Gaussians",
        no_gaussians,
        Either(Refused((r"point_cloud\.ply",)), Works()),
        trained=True,
    )


def looking_away(box: Box) -> Command:
    for split in ("train", "val", "test"):
        frames = read_transforms(box.capture, split)
        for frame in frames:
            matrix = np.array(frame["transform_matrix"])
            matrix[:3, :3] = matrix[:3, :3] @ np.diag([-1.0, 1.0, -1.0])
            frame["transform_matrix"] = matrix.tolist()
        write_transforms(box.capture, split, frames)
    return box.train()


def one_pixel(box: Box) -> Command:
    for split in ("train", "val", "test"):
        frames = [{**frame, "w": 1, "h": 1, "cx": 0.5, "cy": 0.5} for frame in read_transforms(box.capture, split)]
        for frame in frames:
            (box.capture / frame["file_path"]).write_bytes(png(np.full((1, 1, 3), 90, np.uint8)))
            (box.capture / frame["fg_mask_path"]).write_bytes(png(np.full((1, 1, 1), 255, np.uint8)))
        write_transforms(box.capture, split, frames)
    return box.train()


def no_gaussians(box: Box) -> Command:
    path = box.avatar / "point_cloud.ply"
    data = path.read_bytes()
    header = data[: data.index(b"end_header\n") + len(b"end_header\n")]
    lines = [b"element vertex 0" if line.startswith(b"element") else line for line in header.split(b"\n")]
    path.write_bytes(b"\n".join(lines))
    return box.render()
