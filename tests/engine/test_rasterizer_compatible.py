"""The interface known from other projects: names, conventions, and the same picture as `rasterize`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.rasterizer_scenes import Scene, make_scene
from tests.engine.test_rasterizer import dgr, draw, relative


def settings_of(scene: Scene, **changes: Any) -> Any:
    """Settings of a camera whose principal point is off centre, as row-vector matrices."""
    k, view = scene.parameters["intrinsics"], scene.parameters["world_to_camera"]
    w, h = scene.width, scene.height
    near, far = 0.01, 100.0
    projection = torch.zeros(4, 4, dtype=torch.float64)
    projection[0, 0], projection[0, 2] = 2 * k[0, 0] / w, 2 * k[0, 2] / w - 1
    projection[1, 1], projection[1, 2] = 2 * k[1, 1] / h, 2 * k[1, 2] / h - 1
    projection[2, 2], projection[2, 3], projection[3, 2] = far / (far - near), -far * near / (far - near), 1
    fields = {
        "image_height": h,
        "image_width": w,
        "tanfovx": float(w / (2 * k[0, 0])),
        "tanfovy": float(h / (2 * k[1, 1])),
        "bg": scene.parameters["background"].float(),
        "scale_modifier": 1.0,
        "viewmatrix": view.T.float(),
        "projmatrix": (projection @ view).T.float(),
        "sh_degree": 3,
        "campos": torch.linalg.inv(view)[:3, 3].float(),
        "prefiltered": False,
        "debug": False,
    }
    return dgr.GaussianRasterizationSettings(**{**fields, **changes})


def splats_of(scene: Scene) -> dict[str, Tensor]:
    p = scene.leaves(torch.float32)
    return {
        "means3D": p["means"],
        "means2D": torch.zeros(len(p["means"]), 3, requires_grad=True),
        "opacities": p["opacities"].detach()[:, None].requires_grad_(),
        "shs": p["sh"],
        "scales": p["scales"],
        "rotations": torch.nn.functional.normalize(p["quats"].detach(), dim=-1).requires_grad_(),
    }


def covariance_of(p: dict[str, Tensor]) -> Tensor:
    w, x, y, z = p["rotations"].detach().unbind(-1)
    r = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        -1,
    ).reshape(-1, 3, 3)
    full = r @ torch.diag_embed(p["scales"].detach() ** 2) @ r.transpose(-1, -2)
    return full[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]].contiguous().requires_grad_()


def test_settings_have_the_known_fields() -> None:
    assert dgr.GaussianRasterizationSettings._fields == (
        *("image_height", "image_width", "tanfovx", "tanfovy", "bg", "scale_modifier", "viewmatrix", "projmatrix"),
        *("sh_degree", "campos", "prefiltered", "debug", "antialiasing"),
    )
    scene = make_scene(2, 8, 8)
    assert settings_of(scene).antialiasing is False
    rasterizer = dgr.GaussianRasterizer(raster_settings=settings_of(scene))
    assert isinstance(rasterizer, torch.nn.Module)


def test_a_camera_centre_that_is_not_finite_is_refused() -> None:
    """It would turn every colour black without a word."""
    scene = make_scene(2, 8, 8)
    settings = settings_of(scene, campos=torch.tensor([0.0, float("nan"), 0.0]))
    with pytest.raises(dgr.NonFiniteError, match="^camera centre is not finite$"):
        dgr.GaussianRasterizer(settings)(**splats_of(scene))


def test_same_picture_as_rasterize() -> None:
    scene = make_scene(300, 60, 44, seed=9)
    scene.parameters["screen_offsets"].zero_()
    scene.parameters["quats"] = torch.nn.functional.normalize(
        scene.parameters["quats"], dim=-1
    )  # these rules leave that to the caller
    p = splats_of(scene)
    color, radii = dgr.GaussianRasterizer(settings_of(scene))(**p)
    assert color.shape == (3, 44, 60) and radii.shape == (300,) and radii.dtype == torch.int32
    leaves = scene.leaves(torch.float32)
    image, _, _, radii2 = draw(leaves, scene, rules="dgr", near=0.2)
    assert torch.allclose(color, image, atol=2e-5) and torch.equal(radii > 0, radii2 > 0)
    weights = torch.randn(color.shape, generator=torch.Generator().manual_seed(0))
    (color * weights).sum().backward()
    (image * weights).sum().backward()
    assert relative(p["means3D"].grad, leaves["means"].grad) < 1e-4
    assert relative(p["shs"].grad, leaves["sh"].grad) < 1e-4
    assert p["means2D"].grad.shape == (300, 3) and not p["means2D"].grad[:, 2].any()
    assert relative(p["means2D"].grad[:, :2], leaves["screen_offsets"].grad) < 1e-4


def test_values_of_means2d_do_not_matter() -> None:
    scene = make_scene(40, 30, 30)
    p = splats_of(scene)
    rasterizer = dgr.GaussianRasterizer(settings_of(scene))
    wanted, _ = rasterizer(**p)
    moved, _ = rasterizer(**{**p, "means2D": torch.ones(40, 3)})
    assert torch.equal(wanted, moved)


def test_precomputed_covariances_and_colours() -> None:
    scene = make_scene(200, 40, 52, seed=6)
    p = splats_of(scene)
    colours = torch.rand(200, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    by_shape = {name: p[name] for name in ("means3D", "means2D", "opacities", "scales", "rotations")}
    by_covariance = {name: p[name].detach().clone().requires_grad_() for name in ("means3D", "means2D", "opacities")}
    covariance = covariance_of(p)
    rasterizer = dgr.GaussianRasterizer(settings_of(scene))
    a, _ = rasterizer(**by_shape, colors_precomp=colours)
    b, _ = rasterizer(**by_covariance, colors_precomp=colours, cov3D_precomp=covariance)
    assert ((a - b).abs() > 1e-5).double().mean() < 1e-3
    weights = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    (a * weights).sum().backward()
    first = colours.grad.clone()
    colours.grad = None
    (b * weights).sum().backward()
    assert relative(colours.grad, first) < 1e-3
    assert relative(by_covariance["means3D"].grad, p["means3D"].grad) < 1e-3
    # chain rule through S = R diag(s^2) R^T: <dL/dS, dS/ds> must be dL/ds
    scales = p["scales"].detach().clone().requires_grad_()
    rebuilt = covariance_of_scales(p["rotations"].detach(), scales)
    (rebuilt * covariance.grad).sum().backward()
    assert relative(scales.grad, p["scales"].grad) < 1e-3


def covariance_of_scales(rotations: Tensor, scales: Tensor) -> Tensor:
    unit = covariance_of  # the same formula, differentiable in the scales
    columns = [
        unit({"rotations": rotations, "scales": torch.eye(3)[i].expand(len(scales), 3)}).detach() for i in range(3)
    ]
    return sum(columns[i] * scales[:, i : i + 1] ** 2 for i in range(3))  # type: ignore[return-value]


def test_split_harmonics_and_scale_modifier() -> None:
    scene = make_scene(30, 24, 24)
    p = splats_of(scene)
    whole, _ = dgr.GaussianRasterizer(settings_of(scene))(**p)
    split, _ = dgr.GaussianRasterizer(settings_of(scene))(**{**p, "dc": p["shs"][:, :1], "shs": p["shs"][:, 1:]})
    assert torch.equal(whole, split)
    doubled, _ = dgr.GaussianRasterizer(settings_of(scene, scale_modifier=2.0))(**p)
    by_hand, _ = dgr.GaussianRasterizer(settings_of(scene))(**{**p, "scales": 2 * p["scales"]})
    assert torch.equal(doubled, by_hand) and not torch.equal(doubled, whole)


def test_antialiasing_dims_thin_splats() -> None:
    scene = make_scene(30, 24, 24)
    scene.parameters["scales"] *= 0.1
    p = splats_of(scene)
    plain, _ = dgr.GaussianRasterizer(settings_of(scene, bg=torch.zeros(3)))(**p)
    smooth, _ = dgr.GaussianRasterizer(settings_of(scene, bg=torch.zeros(3), antialiasing=True))(**p)
    assert smooth.sum() < 0.8 * plain.sum()


def test_antialiasing_gradient_against_differences() -> None:
    scene = make_scene(1, 12, 12)
    p = splats_of(scene)
    values = {name: value.detach().clone() for name, value in p.items()}
    values["means3D"].zero_()
    values["scales"].copy_(torch.tensor([[0.02, 0.012, 0.015]]))
    rasterizer = dgr.GaussianRasterizer(settings_of(scene, antialiasing=True, bg=torch.zeros(3)))
    values["scales"].requires_grad_()
    centre = rasterizer(**values)[0][
        0
    ].argmax()  # one pixel well inside: the splat's edge, where alpha is cut at 1/255, jumps
    rasterizer(**values)[0][0].flatten()[centre].backward()
    gradient = values["scales"].grad.clone()
    for axis in range(3):
        sums = []
        for step in (2e-4, -2e-4):
            moved = values["scales"].detach().clone()
            moved[0, axis] += step
            sums.append(float(rasterizer(**{**values, "scales": moved})[0][0].flatten()[centre]))
        assert abs((sums[0] - sums[1]) / 4e-4 - float(gradient[0, axis])) < 0.02 * float(gradient.abs().max())


def test_exactly_one_of() -> None:
    scene = make_scene(5, 16, 16)
    p = splats_of(scene)
    rasterizer = dgr.GaussianRasterizer(settings_of(scene))
    without = {name: value for name, value in p.items() if name not in ("shs", "scales", "rotations")}
    shape, covariance = {"scales": p["scales"], "rotations": p["rotations"]}, covariance_of(p)
    with pytest.raises(ValueError, match="exactly one of shs and colors_precomp"):
        rasterizer(**without, **shape)
    with pytest.raises(ValueError, match="exactly one of shs and colors_precomp"):
        rasterizer(**without, **shape, shs=p["shs"], colors_precomp=torch.zeros(5, 3))
    for wrong in ({}, {"scales": p["scales"]}, {"rotations": p["rotations"]}, {**shape, "cov3D_precomp": covariance}):
        with pytest.raises(ValueError, match=r"exactly one of \(scales and rotations\) and cov3D_precomp"):
            rasterizer(**without, shs=p["shs"], **wrong)
    with pytest.raises(ValueError, match="exactly one of"):
        rasterizer(**without, shs=p["shs"], scales=p["scales"], cov3D_precomp=covariance)


def test_mark_visible() -> None:
    scene = make_scene(4, 16, 16)
    scene.parameters["world_to_camera"].copy_(torch.eye(4))
    depths = torch.tensor([[0.0, 0, 0.2], [0, 0, 0.2001], [0, 0, -1.0], [9, 9, 5.0]])
    visible = dgr.GaussianRasterizer(settings_of(scene)).markVisible(depths)
    assert visible.tolist() == [False, True, False, True]


def test_focal_length_and_projection_must_agree() -> None:
    scene = make_scene(4, 16, 16)
    with pytest.raises(ValueError, match="projmatrix has focal length x"):
        dgr.GaussianRasterizer(settings_of(scene, tanfovx=2.0))(**splats_of(scene))


def test_dgr_cuts_at_the_tiles_of_the_three_sigma_square() -> None:
    """An opaque splat is seen beyond 3 sigma (alpha is up to 0.011 there), but not in tiles beyond the square."""
    scene = make_scene(1, 64, 16)
    p = scene.parameters
    p["means"].zero_(), p["screen_offsets"].zero_(), p["world_to_camera"].copy_(torch.eye(4)), p["background"].zero_()
    p["world_to_camera"][2, 3] = 1.0
    p["intrinsics"].copy_(torch.tensor([[100.0, 0, 31.6], [0, 100, 8], [0, 0, 1]]))
    (
        p["quats"].copy_(torch.tensor([1.0, 0, 0, 0])),
        p["scales"].fill_(0.0493),
        p["opacities"].fill_(0.99),
        p["sh"].zero_(),
    )
    leaves = scene.leaves(torch.float32)
    ours, dgr_like = (draw(leaves, scene, rules=rules)[1][0, 8] for rules in ("ours", "dgr"))
    assert ours[15] > 0.004  # 16.1 pixels from the mean; 3 sigma are 14.97, rounded up to 15
    assert dgr_like[15] == 0 and torch.equal(dgr_like[16:48], ours[16:48])
