"""The perceptual loss as training has it: what it looks at, when, with which weight; what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arguments import parse
from tests.utils.test_losses import context
from utils.contracts import Camera, Frame, Mesh, Rendered, Subject
from utils.errors import InputError
from utils.losses import LossContext, build_losses, check_losses, perceptual
from utils.losses.perceptual import PerceptualOptions, build, describe, is_due
from utils.perceptual_loss import VGGPerceptualLoss
from utils.perceptual_networks import random_features

pytest.importorskip("torchvision", reason="torchvision is not installed")

HEIGHT, WIDTH = 70, 90
# three triangles: left eye, right eye, mouth
CORNERS = [[-0.3, -0.2], [-0.2, -0.2], [-0.25, -0.1], [0.2, -0.2], [0.3, -0.2], [0.25, -0.1], [0.0, 0.1], [0.1, 0.1],
           [0.0, 0.3]]  # fmt: skip
FACES = torch.arange(9).reshape(3, 3)
REGIONS = {"eyes": torch.tensor([True, True, False]), "mouth": torch.tensor([False, False, True]),
           "tail": torch.tensor([False, False, False])}  # fmt: skip
SUBJECT = Subject(regions=REGIONS)
SMALL = {"use_vgg_loss": True, "vgg_weights": "random", "perceptual_layers": 1, "perceptual_crop": 32,
         "perceptual_from_iter": 0, "perceptual_interval": 1, "lambda_perceptual": 0.5}  # fmt: skip


def options(**changes: Any) -> PerceptualOptions:
    return PerceptualOptions(**{**SMALL, **changes})


def head(step: int = 1, shift: float = 0.0, iterations: int = 100) -> LossContext:
    plain, g = context(), torch.Generator().manual_seed(5)
    camera = Camera(torch.eye(4), torch.tensor([[100.0, 0, 45.5], [0, 100, 35.5], [0, 0, 1]]), WIDTH, HEIGHT)
    vertices = torch.tensor([[x + shift, y, 1.0] for x, y in CORNERS])
    frame: Frame = replace(plain.frame, camera=camera, image=torch.rand(3, HEIGHT, WIDTH, generator=g))
    image = torch.rand(3, HEIGHT, WIDTH, generator=g).requires_grad_()
    rendered: Rendered = replace(plain.rendered, image=image)
    return replace(plain, step=step, frame=frame, rendered=rendered, mesh=Mesh(vertices, FACES), iterations=iterations)


def slope_of(found: dict[str, Tensor], image: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(sum(found.values()), image)  # type: ignore[arg-type]
    return slope


def test_it_is_the_mean_over_crops_around_the_regions() -> None:
    """The mouth spans pixels 45..55 by 45..65, the eyes 15..75 by 15..25: crops by hand, 32 pixels a side."""
    c = head(step=7)
    found = build(options(perceptual_interval=7), 1, SUBJECT)(c)
    begin = 15 + int(0.7548776662466927 * (61 - 32 + 1))  # of the second look: one R2 step along the slack
    network = VGGPerceptualLoss(random_features("vgg19"), 1)
    pieces = [(slice(5, 37), slice(begin, begin + 32)), (slice(38, 70), slice(35, 67))]
    distances = [network(c.rendered.image[None, :, y, x], c.frame.image[None, :, y, x]) for y, x in pieces]
    assert list(found) == ["vgg_random"]
    assert found["vgg_random"].item() == pytest.approx(0.5 * 7 * torch.cat(distances).mean().item(), rel=1e-5)


def test_its_slope_lies_in_the_crops_and_nowhere_else() -> None:
    c = head()
    slope = slope_of(build(options(perceptual_patches="mouth"), 1, SUBJECT)(c), c.rendered.image)
    rows, columns = slope.abs().sum(0).nonzero().T
    assert (rows.min(), rows.max()) == (38, 69) and columns.max() - columns.min() == 31
    assert columns.min() <= 45 and columns.max() >= 55
    whole = slope_of(build(options(perceptual_patches="image"), 1)(c), c.rendered.image)
    assert whole.abs().sum(0).count_nonzero() > 0.99 * HEIGHT * WIDTH


def test_a_region_beside_the_picture_has_no_crop_and_none_at_all_no_term() -> None:
    loss = build(options(), 1, SUBJECT)
    right = head(shift=0.3)  # the right eye is out, the left one and the mouth are in
    rows = slope_of(loss(right), right.rendered.image)
    assert rows.any() and loss(head(shift=5.0)) == {}


def test_crops_larger_than_the_picture_are_the_picture() -> None:
    c = head()
    large = build(options(perceptual_crop=500, perceptual_patches="mouth"), 1, SUBJECT)(c)
    assert large["vgg_random"].item() == pytest.approx(
        build(options(perceptual_patches="image"), 1)(c)["vgg_random"].item()
    )


def test_every_nth_step_from_the_start_on_with_n_fold_weight() -> None:
    plain = options(perceptual_patches="image")
    once = build(plain, 1)(head())["vgg_random"].item()
    loss = build(replace(plain, perceptual_interval=5, perceptual_from_iter=12), 1)
    terms = {step: loss(head(step)) for step in range(1, 26)}
    assert [step for step, found in terms.items() if found] == [15, 20, 25]
    assert terms[15]["vgg_random"].item() == pytest.approx(5 * once)
    late = replace(plain, perceptual_from_iter=-1, perceptual_interval=10)
    assert [step for step in range(1, 101) if is_due(late, step, 100)] == [60, 70, 80, 90, 100]


def test_stopping_the_gradient_draws_the_picture_anew_when_it_looks_and_not_else() -> None:
    c, drawn = head(step=2), []

    def appearance() -> Tensor:
        drawn.append(c.rendered.image.detach().clone().requires_grad_())
        return drawn[-1]

    c = replace(c, appearance=appearance)
    loss = build(options(perceptual_stop_gradient=True, perceptual_interval=2, perceptual_patches="image"), 1)
    assert loss(replace(c, step=1)) == {} and not drawn
    found = loss(c)
    assert found["vgg_random"].item() == build(options(perceptual_interval=2, perceptual_patches="image"), 1)(c)[
        "vgg_random"
    ].item()  # fmt: skip
    found["vgg_random"].backward()
    assert len(drawn) == 1 and drawn[0].grad is not None and drawn[0].grad.any() and c.rendered.image.grad is None
    with pytest.raises(LookupError, match="appearance"):
        loss(head(step=2))


def test_both_networks_are_two_terms() -> None:
    both = options(use_lpips_loss=True, lpips_net="alex", lpips_alex_weights="random")
    found = build_losses({"perceptual": both}, 1, SUBJECT)(head()).values
    assert [name for name in found if name.startswith(("vgg", "lpips"))] == ["vgg_random", "lpips_random"]
    assert all(found[name] > 0 for name in ("vgg_random", "lpips_random"))


def test_it_remembers_nothing() -> None:
    """The same step gives the same bits, whatever came before: nothing of it belongs into a checkpoint."""
    fresh, used = (build(options(perceptual_interval=2), 1, SUBJECT) for _ in range(2))
    for step in (2, 4, 6):
        used(head(step))
    assert fresh(head(8))["vgg_random"].item() == used(head(8))["vgg_random"].item()


def test_off_by_default_and_says_where_flags_have_no_effect() -> None:
    assert build(PerceptualOptions(), 1)(head()) == {} and describe(PerceptualOptions()) == ""
    idle = describe(PerceptualOptions(use_vgg_loss=True))
    assert idle == "perceptual: off; --use_vgg_loss without --lambda_perceptual has no effect"


def test_random_weights_are_said_loudly_and_others_are_not() -> None:
    assert "RANDOM WEIGHTS WERE ASKED FOR" in describe(options())
    quiet = describe(options(vgg_weights="vgg19.pth", perceptual_stop_gradient=True))
    assert "RANDOM" not in quiet and "colours and opacities only" in quiet


@pytest.mark.parametrize("changes, backbone, flag", [
    ({"use_vgg_loss": True}, "vgg19-dcbb9e9d.pth", "--vgg_weights"),
    ({"use_lpips_loss": True}, "vgg16-397923af.pth", "--lpips_vgg16_weights"),
    ({"use_lpips_loss": True, "lpips_net": "alex"}, "alexnet-owt-7be5be79.pth", "--lpips_alex_weights")])  # fmt: skip
def test_missing_weights_are_named_with_their_page_and_flag(
    changes: dict[str, Any], backbone: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    chosen = PerceptualOptions(lambda_perceptual=0.1, **changes)
    for look in (lambda: check_losses({"perceptual": chosen}), lambda: build(chosen, 1, SUBJECT)):
        with pytest.raises(InputError) as caught:
            look()
        for part in (backbone, f"https://download.pytorch.org/models/{backbone}", flag, str(tmp_path)):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
    check_losses({"perceptual": replace(chosen, lambda_perceptual=0.0)})  # what is off needs nothing


def test_regions_that_are_not_known_are_named() -> None:
    with pytest.raises(InputError, match="--perceptual_patches.*--flame_masks"):
        build(options(), 1, Subject())
    for name in ("ears", "tail"):
        with pytest.raises(InputError, match=rf"--perceptual_patches: {name}: is no region .* It has eyes, mouth; or"):
            build(options(perceptual_patches=f"eyes,{name}"), 1, SUBJECT)


def test_pictures_too_small_are_refused_before_the_first_step() -> None:
    """Not at 60 % of a run, when the loss first looks."""
    with pytest.raises(InputError, match="--lambda_perceptual: found training pictures of 24 pixels along a side"):
        build(options(perceptual_patches="image"), 1, Subject(least_side=24))
    build(options(perceptual_patches="image"), 1, Subject(least_side=32))


@pytest.mark.parametrize("changes, named", [
    ({"lambda_perceptual": -1.0}, "--lambda_perceptual: is -1.0"),
    ({"lambda_perceptual": float("nan")}, "--lambda_perceptual: is nan"),
    ({"use_vgg_loss": False}, "--lambda_perceptual: is 0.5, but no network .* Add --use_vgg_loss"),
    ({"lpips_net": "squeeze"}, "--lpips_net"), ({"perceptual_patches": "eyes,"}, "--perceptual_patches"),
    ({"perceptual_patches": "eyes,image"}, "--perceptual_patches"), ({"perceptual_patches": ""}, "--perceptual_patch"),
    ({"perceptual_patches": "eyes,eyes"}, "--perceptual_patches"), ({"perceptual_crop": 31}, "--perceptual_crop"),
    ({"perceptual_layers": 0}, "--perceptual_layers"), ({"perceptual_layers": 6}, "--perceptual_layers"),
    ({"perceptual_interval": 0}, "--perceptual_interval"), ({"perceptual_interval": 11}, "--perceptual_interval"),
    ({"perceptual_from_iter": -2}, "--perceptual_from_iter"), ({"perceptual_precision": "half"}, "half")])  # fmt: skip
def test_options_out_of_range_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        options(**changes)


def test_paths_are_kept_absolute_and_the_word_random_is_no_path() -> None:
    words = ["-s", "data", "--vgg_weights", "v.pth", "--lpips_vgg16_weights", "random", "--lpips_alex_weights", "a.pth"]
    chosen = parse(words, "train.py").losses["perceptual"]
    assert chosen.vgg_weights == str(Path("v.pth").absolute()) and chosen.lpips_vgg16_weights == "random"
    assert chosen.lpips_alex_weights == str(Path("a.pth").absolute())


def test_precision_follows_the_device_unless_it_is_asked_for() -> None:
    network = perceptual.open_networks(options())
    for precision, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        perceptual.prepare(network, torch.device("cpu"), precision)
        assert next(network.parameters()).dtype == expected
