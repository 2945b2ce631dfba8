"""The reference rasteriser against finite differences, an independent oracle, a per-pixel loop, and as axioms."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from gaussian_renderer import build_renderer
from gaussian_renderer.backends.reference import render
from tests.gaussian_renderer.scenes import NAMES, background, camera, draw, gradients, leaves, shell, weighted_sum
from utils.contracts import Camera, Splats
from utils.errors import InputError
from utils.maths.projection import camera_centre, covariance_3d, project, to_camera
from utils.maths.rotations import axis_angle_to_matrix, matrix_to_quaternion, multiply
from utils.maths.sh import eval_sh


def loop_over_pixels(splats: Splats, view: Camera, behind: Tensor) -> Tensor:
    """[5, H, W] colour, alpha, depth: the rules of the module's docstring, pixel by pixel and splat by splat."""
    points = to_camera(splats.means, view.world_to_camera)
    order = sorted(range(len(points)), key=lambda i: (float(points[i, 2].float()), i))
    covariances = covariance_3d(splats.quats, splats.scales)
    directions = splats.means - camera_centre(view.world_to_camera)
    colours = eval_sh(splats.sh, directions / directions.norm(dim=-1, keepdim=True), splats.sh_degree) + 0.5
    fx, fy, rotation = view.intrinsics[0, 0], view.intrinsics[1, 1], view.world_to_camera[:3, :3]
    drawn = []
    for i in order:
        x, y, z = points[i]
        if not view.near < z < view.far:
            continue
        jacobian = torch.stack([fx / z, 0 * z, -fx * x / z**2, 0 * z, fy / z, -fy * y / z**2]).view(2, 3)
        flat = jacobian @ rotation @ covariances[i] @ rotation.T @ jacobian.T + 0.3 * torch.eye(2, dtype=z.dtype)
        drawn.append((i, project(points[i], view.intrinsics), torch.linalg.inv(flat), z))
    picture = torch.zeros(5, view.height, view.width, dtype=behind.dtype)
    for row in range(view.height):
        for column in range(view.width):
            transmittance = torch.ones((), dtype=behind.dtype)
            for i, centre, conic, z in drawn:
                d = torch.tensor([column + 0.5, row + 0.5], dtype=behind.dtype) - centre
                alpha = min(splats.opacities[i] * torch.exp(-0.5 * d @ conic @ d), torch.tensor(0.99))
                if alpha < 1 / 255:
                    continue
                if transmittance * (1 - alpha) < 1e-4:
                    break
                picture[:3, row, column] += transmittance * alpha * colours[i].clamp(min=0)
                picture[4, row, column] += transmittance * alpha * z
                transmittance = transmittance * (1 - alpha)
            picture[:3, row, column] += transmittance * behind
            picture[3, row, column] = 1 - transmittance
    return picture


@pytest.mark.parametrize("opacity", [None, 1.0])
def test_the_picture_is_that_of_a_loop_over_pixels(opacity: float | None) -> None:
    splats, view = shell(60), camera(21, 18)
    if opacity:  # the cap of 0.99 and the early stop act
        splats = replace(splats, opacities=torch.full_like(splats.opacities, opacity))
    picture = render(splats, view, background())
    expected = loop_over_pixels(splats, view, background())
    torch.testing.assert_close(torch.cat([picture.image, picture.alpha, picture.depth]), expected)


def central_differences(name: str, splats: Splats, view: Camera, behind: Tensor, entries: int) -> None:
    """Compare the gradient to some entries of one input with central differences."""
    _, grads = gradients(render, splats, view, behind)
    inputs = leaves(splats, view, behind)
    values, step = inputs[name].detach().view(-1), 1e-7
    g = torch.Generator().manual_seed(3)
    for i in torch.randperm(len(values), generator=g)[:entries].tolist():
        losses = []
        for sign in (1, -1):
            before = values[i].item()
            values[i] = before + sign * step
            losses.append(weighted_sum(draw(render, inputs, splats, view)).item())
            values[i] = before
        found, expected = grads[name].view(-1)[i].item(), (losses[0] - losses[1]) / (2 * step)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6 * grads[name].abs().max().item()), (name, i)


@pytest.mark.parametrize("name", [*NAMES, "world_to_camera", "intrinsics", "background"])
def test_gradients_equal_central_differences(name: str) -> None:
    # Large and faint: no splat ends, is capped or stops a pixel within the step, so the loss is smooth there.
    splats = replace(shell(12, 5), opacities=torch.linspace(0.1, 0.5, 12, dtype=torch.float64))
    splats = replace(splats, scales=splats.scales * 4, sh=splats.sh * 0.2)
    central_differences(name, splats, camera(16, 12, distance=0.4), background(), 12)


def test_gradients_equal_central_differences_where_the_jacobian_is_limited() -> None:
    splats, view = beside_the_image()
    points = to_camera(splats.means, view.world_to_camera)
    assert (points[:, 0] / points[:, 2] > 1.1).all()
    for name in ("means", "world_to_camera", "intrinsics"):
        central_differences(name, splats, view, background(), 16)


def beside_the_image() -> tuple[Splats, Camera]:
    """Splats right of the image, farther than the limit of the Jacobian, that reach into it."""
    splats = replace(
        shell(4, 2),
        means=torch.tensor([[1.3, 0.02 * i, 1.0 + 0.03 * i] for i in range(4)], dtype=torch.float64),
        scales=torch.full((4, 3), 0.35, dtype=torch.float64),
        opacities=torch.full((4,), 0.6, dtype=torch.float64),
        sh=torch.zeros(4, 16, 3, dtype=torch.float64),
    )
    intrinsics = torch.tensor([[10.0, 0, 8], [0, 10, 8], [0, 0, 1]], dtype=torch.float64)
    return splats, Camera(torch.eye(4, dtype=torch.float64), intrinsics, 16, 16)


def test_screen_offsets_move_the_projected_centres() -> None:
    splats = replace(shell(12, 5), opacities=torch.full((12,), 0.4, dtype=torch.float64))
    splats, view = replace(splats, scales=splats.scales * 4), camera(16, 12)
    offsets = torch.zeros(12, 2, dtype=torch.float64, requires_grad=True)
    picture = render(splats, view, background(), screen_offsets=offsets)
    weighted_sum(picture).backward()
    assert picture.screen_offsets is offsets and offsets.grad is not None
    # Moving every splat by d pixels is moving the principal point by d pixels: d / (half image) in NDC.
    moved = view.intrinsics.detach().clone().requires_grad_()
    weighted_sum(render(splats, replace(view, intrinsics=moved), background())).backward()
    half = torch.tensor([8.0, 6.0], dtype=torch.float64)
    assert moved.grad is not None
    torch.testing.assert_close(offsets.grad.sum(0), moved.grad[:2, 2] * half)
    step, i = 1e-6, 3
    for axis in (0, 1):
        losses = []
        for sign in (1, -1):
            shifted = torch.zeros(12, 2, dtype=torch.float64)
            shifted[i, axis] = sign * step
            losses.append(weighted_sum(render(splats, view, background(), screen_offsets=shifted)).item())
        assert offsets.grad[i, axis].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5)


def test_moving_world_and_camera_together_changes_nothing() -> None:
    splats, view = shell(200), camera()
    splats = replace(splats, sh_degree=0)  # higher degrees belong to world axes
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = axis_angle_to_matrix(torch.tensor([0.7, -0.4, 1.1], dtype=torch.float64))
    turn[:3, 3] = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
    moved = replace(
        splats,
        means=to_camera(splats.means, turn),
        quats=multiply(matrix_to_quaternion(turn[:3, :3]).expand(200, 4), splats.quats),
    )
    other = replace(view, world_to_camera=view.world_to_camera @ torch.linalg.inv(turn))
    one, two = render(splats, view, background()), render(moved, other, background())
    for part in ("image", "alpha", "depth"):
        torch.testing.assert_close(getattr(one, part), getattr(two, part), rtol=0, atol=1e-9)
    assert torch.equal(one.radii, two.radii)


def test_order_of_rows_and_sign_of_quaternions_do_not_matter() -> None:
    splats, view = shell(100), camera()
    g = torch.Generator().manual_seed(1)
    p = torch.randperm(100, generator=g)
    shuffled = replace(splats, **{name: getattr(splats, name)[p] for name in NAMES})
    shuffled = replace(shuffled, quats=-shuffled.quats)
    one, two = render(splats, view, background()), render(shuffled, view, background())
    torch.testing.assert_close(one.image, two.image, rtol=0, atol=1e-12)
    assert torch.equal(one.radii[p], two.radii)


def test_splats_at_one_depth_are_drawn_in_order_of_their_rows() -> None:
    splats = splat_at([[0.0, 0.0, 1.0]] * 2, opacity=0.9)
    splats = replace(splats, sh=torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]], dtype=torch.float64), sh_degree=0)
    red, green, _ = render(splats, simple_camera(), background()).image[:, 8, 8]
    swapped = replace(splats, sh=splats.sh.flip(0))
    red_2, green_2, _ = render(swapped, simple_camera(), background()).image[:, 8, 8]
    assert red > green and red_2 < green_2


def splat_at(means: list[list[float]], opacity: float = 0.5, scale: float = 0.1) -> Splats:
    n = len(means)
    return Splats(
        torch.tensor(means, dtype=torch.float64),
        torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).repeat(n, 1),
        torch.full((n, 3), scale, dtype=torch.float64),
        torch.full((n,), opacity, dtype=torch.float64),
        torch.zeros(n, 1, 3, dtype=torch.float64),
        0,
    )


def simple_camera(size: int = 17) -> Camera:
    half = size / 2
    intrinsics = torch.tensor([[20.0, 0, half], [0, 20.0, half], [0, 0, 1]], dtype=torch.float64)
    return Camera(torch.eye(4, dtype=torch.float64), intrinsics, size, size, near=0.2, far=10.0)


def test_one_splat_in_the_middle_has_the_values_of_the_formula() -> None:
    picture = render(splat_at([[0, 0, 1]]), simple_camera(), background())
    variance = (20 * 0.1) ** 2 + 0.3
    for pixels in (0, 2):
        alpha = 0.5 * math.exp(-(pixels**2) / (2 * variance))
        assert picture.alpha[0, 8, 8 + pixels].item() == pytest.approx(alpha, rel=1e-12)
        assert picture.depth[0, 8, 8 + pixels].item() == pytest.approx(alpha, rel=1e-12)
        assert picture.image[2, 8, 8 + pixels].item() == pytest.approx(0.5 * alpha + 0.6 * (1 - alpha), rel=1e-12)
    assert picture.radii.tolist() == [math.ceil(3 * math.sqrt(variance + math.sqrt(0.1)))]
    assert picture.radii.dtype == torch.int32 and picture.visible.tolist() == [True]


@pytest.mark.parametrize(
    ("mean", "opacity"),
    [
        ([0.0, 0.0, 0.2], 0.5),  # on the near plane
        ([0.0, 0.0, -1.0], 0.5),
        ([0.0, 0.0, 10.0], 0.5),  # on the far plane
        ([0.0, 0.0, 0.0], 0.5),  # in the camera
        ([5.0, 0.0, 1.0], 0.5),  # beside the image
        ([0.0, 0.0, 1.0], 1 / 256),  # nowhere as opaque as 1/255
    ],
)
def test_what_is_not_drawn_leaves_the_background_and_gets_no_gradient(mean: list[float], opacity: float) -> None:
    splats, view = splat_at([mean], opacity), simple_camera()
    picture, grads = gradients(render, splats, view, background())
    assert torch.equal(picture.image, background()[:, None, None].expand(3, 17, 17))
    assert not picture.alpha.any() and not picture.depth.any() and picture.radii.tolist() == [0]
    assert not picture.visible.any()
    for name in (*NAMES, "screen_offsets"):
        assert grads[name] is None or not grads[name].any()
    assert grads["background"].any()


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 40), (33, 2)])
def test_any_size_and_count(n: int, width: int, height: int) -> None:
    splats = shell(n)
    picture, grads = gradients(render, splats, camera(width, height, distance=0.5), background())
    assert picture.image.shape == (3, height, width) and picture.alpha.shape == picture.depth.shape == (
        1,
        height,
        width,
    )
    assert picture.radii.shape == (n,) and picture.screen_offsets.shape == (n, 2)
    assert all(grad is None or grad.isfinite().all() for grad in grads.values())


def test_the_cap_of_alpha_passes_no_gradient_and_a_stopped_pixel_hides_the_rest() -> None:
    splats = splat_at([[0, 0, 1.0], [0, 0, 1.1], [0, 0, 1.2]], scale=300.0)
    splats = replace(splats, opacities=torch.tensor([1.0, 0.95, 0.95], dtype=torch.float64))
    picture, grads = gradients(render, splats, simple_camera(), background())
    expected = torch.full_like(picture.alpha, 1 - 0.01 * 0.05)  # the third would bring it to 2.5e-5
    torch.testing.assert_close(picture.alpha, expected, rtol=0, atol=1e-5)
    assert grads["opacities"][0] == 0 and grads["opacities"][1] != 0 and grads["opacities"][2] == 0
    assert grads["sh"][:2].any() and not grads["sh"][2].any()


def test_colours_below_zero_are_black_and_get_no_gradient() -> None:
    splats = splat_at([[0, 0, 1.0]])
    splats = replace(splats, sh=torch.tensor([[[-3.0, 0.5, -3.0]]], dtype=torch.float64))
    picture, grads = gradients(render, splats, simple_camera(), 0 * background())
    assert picture.image[0].abs().max() == 0 and picture.image[1, 8, 8] > 0
    assert grads["sh"][0, 0, 1] != 0 and grads["sh"][0, 0, 0] == 0


def test_float32_gives_the_picture_of_float64() -> None:
    splats, view = shell(300), camera()
    exact = render(splats, view, background())
    single = render(shell(300, dtype=torch.float32), camera(dtype=torch.float32), background(torch.float32))
    assert single.image.dtype == torch.float32
    error = (single.image.double() - exact.image).abs()
    assert (error > 2e-5).double().mean() < 1e-3  # at these pixels an alpha crosses 1/255
    assert error.max() < 1 / 255


@pytest.mark.parametrize(("n", "width", "height"), [(500, 80, 64), (40, 33, 17)])
def test_picture_and_gradients_equal_the_oracle(oracle: ModuleType, n: int, width: int, height: int) -> None:
    functions = oracle.install_standins()
    scene = {name: torch.tensor(value) for name, value in oracle.head_shell(n).items()}
    pose, intrinsics = (torch.tensor(value) for value in oracle.camera(width, height))
    splats = Splats(scene["means"], scene["quats"], scene["scales"], scene["opacities"], scene["sh"], 3)
    view = Camera(pose, intrinsics, width, height)
    inputs = leaves(splats, view, background())
    p = {name: inputs[name] for name in NAMES}
    image, alpha, _ = oracle.render(
        functions,
        p,
        inputs["world_to_camera"],
        intrinsics,
        width,
        height,
        inputs["background"],
        "gsplat",
        "gsplat",
        False,
    )
    g = torch.Generator().manual_seed(4)
    w_image = torch.randn(3, height, width, generator=g, dtype=torch.float64)
    w_alpha = torch.randn(1, height, width, generator=g, dtype=torch.float64)
    ((image.permute(2, 0, 1) * w_image).sum() + (alpha[None] * w_alpha).sum()).backward()

    ours = leaves(splats, view, background())
    picture = draw(render, ours, splats, view)
    ((picture.image * w_image).sum() + (picture.alpha * w_alpha).sum()).backward()
    torch.testing.assert_close(picture.image, image.permute(2, 0, 1), rtol=0, atol=1e-10)
    torch.testing.assert_close(picture.alpha[0], alpha, rtol=0, atol=1e-10)
    for name in (*NAMES, "world_to_camera", "background"):
        expected = inputs[name].grad
        assert expected is not None
        torch.testing.assert_close(ours[name].grad, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quats": torch.zeros(3, 3, dtype=torch.float64)}, "quats"),
        ({"opacities": torch.zeros(3, 1, dtype=torch.float64)}, "opacities"),
        ({"scales": torch.zeros(3, 3)}, "scales: is torch.float32"),
        ({"sh": torch.zeros(3, 9, 3, dtype=torch.float64)}, "too few for degree 3"),
        ({"sh_degree": 4}, "degree"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    draw_checked = build_renderer("reference")
    with pytest.raises(InputError, match=message):
        draw_checked(replace(shell(3), **change), camera(), background())
    with pytest.raises(InputError, match="background"):
        draw_checked(shell(3), camera(), torch.zeros(4, dtype=torch.float64))
