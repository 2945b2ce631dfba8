"""Every registered rasteriser: it draws and trains, or says why it can't; the native one equals the reference."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from gaussian_renderer import build_renderer
from gaussian_renderer.backends import BACKENDS, gsplat
from gaussian_renderer.backends import reference as reference_module
from tests.gaussian_renderer.scenes import NAMES, background, camera, draw, gradients, leaves, shell
from utils.contracts import Camera, Rendered, Splats
from utils.errors import EnvironmentFault, InputError

FLIPPED = 2e-3  # share of pixels at which an alpha may fall on the other side of 1/255, or two splats change order
GRADIENT_NAMES = (*NAMES, "world_to_camera", "intrinsics", "background", "screen_offsets")


def usable(name: str) -> Callable[..., Rendered]:
    """The renderer, or a skip with the reason that users see."""
    try:
        return build_renderer(name, 2)
    except EnvironmentFault as fault:
        pytest.skip(str(fault))


@pytest.mark.parametrize("name", list(BACKENDS))
def test_a_registered_backend_trains(name: str) -> None:
    render = usable(name)
    device = "cuda" if name == "gsplat" else "cpu"
    view, behind = camera(40, 32, torch.float32).to(device), background(torch.float32).to(device)
    splats = shell(80, dtype=torch.float32)
    inputs = {key: leaf.detach().to(device).requires_grad_() for key, leaf in leaves(splats, view, behind).items()}
    target = torch.rand(3, 32, 40, generator=torch.Generator().manual_seed(0)).to(device)
    optimiser = torch.optim.SGD([inputs["sh"], inputs["opacities"]], lr=1.0)
    losses = []
    for _ in range(3):
        picture = draw(render, inputs, splats, view)
        loss = (picture.image - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        assert picture.image.shape == (3, 32, 40) and picture.radii.dtype == torch.int32
        assert picture.screen_offsets.grad is not None and picture.screen_offsets.grad.any()
        assert picture.screen_offsets.grad.shape == (80, 2) and picture.visible.any()
    assert losses[2] < losses[1] < losses[0]


def scenes() -> dict[str, tuple[Splats, Camera]]:
    """Float32 scenes that reach every branch: overlap, limits of the Jacobian, culling, low degrees, full opacity."""
    base, view = shell(500, dtype=torch.float32), camera(64, 48, torch.float32)
    opaque = replace(base, opacities=torch.full_like(base.opacities, 1.0))
    faint = replace(base, opacities=base.opacities * 0.01)  # half of them below 1/255 everywhere
    close = camera(64, 48, torch.float32, distance=0.12)
    wide = close.intrinsics.clone()
    wide[0, 0], wide[1, 1] = 25.0, 30.0
    return {
        "plain": (base, view),
        "odd size": (base, camera(61, 43, torch.float32)),
        "opaque": (opaque, view),
        "faint": (faint, view),
        "inside the shell": (base, replace(close, intrinsics=wide, near=0.05, far=0.2)),
        "degree 0 of 3": (replace(base, sh_degree=0), view),
        "degree 1": (replace(base, sh=base.sh[:, :4].contiguous(), sh_degree=1), view),
        "degree 2 of 3": (replace(base, sh_degree=2), view),
        "one splat": (shell(1, dtype=torch.float32), view),
        "none": (shell(0, dtype=torch.float32), view),
        "one pixel": (base, camera(1, 1, torch.float32)),
        "behind": (replace(base, means=base.means - view.world_to_camera[2, :3] * 5), view),
    }


@pytest.mark.parametrize("scene", list(scenes()))
def test_native_draws_the_reference_picture(scene: str) -> None:
    render, reference = usable("native"), build_renderer("reference")
    splats, view = scenes()[scene]
    ours = render(splats, view, background(torch.float32))
    exact = reference(splats, view, background(torch.float32))
    for part, tolerance in (("image", 1e-5), ("alpha", 1e-5), ("depth", 1e-5)):
        error = (getattr(ours, part) - getattr(exact, part)).abs().amax(0)
        assert (error > tolerance).float().mean() <= FLIPPED, (part, error.max())
    # Whether a box holds a pixel centre, or an opacity is 1/255, may fall either way.
    assert (ours.visible != exact.visible).sum() <= 0.002 * len(exact.radii)
    both = ours.visible & exact.visible
    assert ((ours.radii - exact.radii)[both].abs() <= 1).all()


@pytest.mark.parametrize("scene", [name for name in scenes() if name not in ("none", "behind")])
def test_native_gradients_are_those_of_the_reference(scene: str) -> None:
    render, reference = usable("native"), build_renderer("reference")
    splats, view = scenes()[scene]
    _, ours = gradients(render, splats, view, background(torch.float32))
    _, exact = gradients(reference, splats, view, background(torch.float32))
    for name in GRADIENT_NAMES:
        assert ours[name] is not None, name
        scale = exact[name].abs().max()
        error = (ours[name] - exact[name]).abs() / scale
        rows = error.reshape(len(error), -1).amax(-1)
        # A flipped pixel touches the splats over it; all others agree to rounding.
        assert (rows > 5e-5).float().mean() <= 0.01, (name, rows.topk(min(5, len(rows))))


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("z, drawn", [(0.5, False), (0.5001, True), (1.9999, True), (2.0, False)])
def test_both_planes_themselves_are_outside(name: str, z: float, drawn: bool) -> None:
    one = shell(1, dtype=torch.float32)
    one = replace(one, means=torch.tensor([[0.0, 0.0, z]]), opacities=torch.ones(1))
    view = Camera(torch.eye(4), camera(16, 16, torch.float32).intrinsics, 16, 16, near=0.5, far=2.0)
    assert bool(usable(name)(one, view, background(torch.float32)).visible[0]) == drawn


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_native_gives_the_same_bits_on_any_number_of_threads(threads: int) -> None:
    one = usable("native") and build_renderer("native", 1)
    many = build_renderer("native", threads)
    splats, view = scenes()["plain"]
    first, first_grads = gradients(one, splats, view, background(torch.float32))
    second, second_grads = gradients(many, splats, view, background(torch.float32))
    assert torch.equal(first.image, second.image) and torch.equal(first.depth, second.depth)
    for name in GRADIENT_NAMES:
        assert torch.equal(first_grads[name], second_grads[name]), name


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="found 'natve', expected one of native, reference, gsplat"):
        build_renderer("natve")


def test_a_backend_that_can_not_be_used_says_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="gsplat is not installed .*; it needs a CUDA device"):
        build_renderer("gsplat")


def test_a_backend_without_its_package_is_an_environment_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "other", "gaussian_renderer.backends.no_such_module:render")
    with pytest.raises(EnvironmentFault, match="no_such_module.*--rasterizer reference works anywhere"):
        build_renderer("other")


@pytest.fixture
def gsplat_on_cpu(oracle: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """gsplat's public functions, answered by its own plain-PyTorch twins: its kernels need a GPU."""
    package = importlib.import_module("gsplat")
    for name, stand_in in stand_ins(oracle, oracle.install_standins()).items():
        monkeypatch.setattr(package, name, checked(name, stand_in))


def checked(name: str, stand_in: Callable) -> Callable:
    """Refuse arguments that the real function does not take."""
    signature = inspect.signature(getattr(importlib.import_module("gsplat"), name))

    def call(*args: object, **kwargs: object) -> object:
        bound = signature.bind(*args, **kwargs)
        return stand_in(**bound.arguments)

    return call


def stand_ins(oracle: ModuleType, twins: ModuleType) -> dict[str, Callable]:
    def project(means: Tensor, covars: None, quats: Tensor, scales: Tensor, opacities: Tensor, **rest: object) -> tuple:
        covariances, _ = twins._quat_scale_to_covar_preci(quats, scales, True, False, triu=False)
        return twins._fully_fused_projection(means, covariances, **rest)

    def tiles(
        means2d: Tensor, radii: Tensor, depths: Tensor, tile_size: int, tile_width: int, tile_height: int
    ) -> tuple:
        return oracle.fast_isect(means2d, radii, depths, tile_width, tile_height)

    def offsets(isect_ids: Tensor, n_images: int, tile_width: int, tile_height: int) -> Tensor:
        starts = torch.searchsorted(isect_ids >> 32, torch.arange(tile_height * tile_width))
        return starts.int().reshape(n_images, tile_height, tile_width)

    def blend(image_width: int, image_height: int, tile_size: int, **rest: Tensor) -> tuple:
        order = ("means2d", "conics", "colors", "opacities")
        tensors = [rest[name] for name in order]
        return twins._rasterize_to_pixels(
            *tensors, image_width, image_height, tile_size, rest["isect_offsets"], rest["flatten_ids"],
            backgrounds=rest["backgrounds"], batch_per_iter=1 << 20,
        )  # fmt: skip

    def harmonics(degrees_to_use: int, dirs: Tensor, coeffs: Tensor) -> Tensor:
        return twins._spherical_harmonics(degrees_to_use, dirs, coeffs)

    return {
        "fully_fused_projection": project,
        "isect_tiles": tiles,
        "isect_offset_encode": offsets,
        "rasterize_to_pixels": blend,
        "spherical_harmonics": harmonics,
    }


def test_gsplat_adapter_draws_the_reference_picture(gsplat_on_cpu: None) -> None:
    splats, view = shell(200), camera()
    ours, ours_grads = gradients(gsplat.render, splats, view, background())
    exact, exact_grads = gradients(reference_module.render, splats, view, background())
    for part in ("image", "alpha", "depth"):
        torch.testing.assert_close(getattr(ours, part), getattr(exact, part), rtol=0, atol=1e-9)
    assert torch.equal(ours.visible, exact.visible)
    for name in (*NAMES, "world_to_camera", "background", "screen_offsets"):
        bound = 1e-8 * exact_grads[name].abs().max().item()
        torch.testing.assert_close(ours_grads[name], exact_grads[name], rtol=0, atol=bound)


def test_gsplat_adapter_draws_nothing_as_background() -> None:
    picture, _ = gradients(gsplat.render, shell(0), camera(5, 4), background())
    assert torch.equal(picture.image, background()[:, None, None].expand(3, 4, 5)) and not picture.alpha.any()


@pytest.mark.gpu
def test_gsplat_on_a_gpu_draws_the_reference_picture() -> None:
    render = usable("gsplat")
    splats, view = scenes()["plain"]
    moved = replace(splats, **{name: getattr(splats, name).cuda() for name in NAMES})
    ours = render(moved, view.to("cuda"), background(torch.float32).cuda())
    exact = build_renderer("reference")(splats, view, background(torch.float32))
    assert ((ours.image.cpu() - exact.image).abs() > 1e-4).float().mean() <= FLIPPED
