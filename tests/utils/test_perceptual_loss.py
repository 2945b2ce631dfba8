"""Perceptual distances against torchvision's VGG19 and the `lpips` package on the same random weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from utils import perceptual_loss
from utils.perceptual_loss import CombinedPerceptualLoss, LPIPSWrapper, VGGPerceptualLoss
from utils.perceptual_networks import build_lpips, load_features, random_features

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")


@pytest.fixture(scope="module")
def vgg19() -> nn.Sequential:
    return random_features("vgg19", seed=1)


def images(size: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    a = torch.rand(2, 3, size, size + 9, generator=generator, dtype=dtype)
    return a, (a + 0.2 * torch.randn(a.shape, generator=generator, dtype=dtype)).clamp(0, 1)


def with_slope(distance: nn.Module, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a = a.clone().requires_grad_()
    value = distance(a, b)
    (slope,) = torch.autograd.grad((value * torch.tensor([1.0, 0.3], dtype=a.dtype)).sum(), a)
    return value.detach(), slope


def torchvisions_own(state: dict[str, Tensor]) -> nn.Sequential:
    """The layers as torchvision makes them, in-place ReLUs included."""
    with torch.device("meta"):
        features = torchvision.models.vgg19(weights=None).features
    features = features.to_empty(device="cpu")
    features.load_state_dict(state)
    return features.double().eval()


def first_relus(features: nn.Sequential) -> list[int]:
    """Index of relu1_1, relu2_1 ...: the first ReLU of the network and after each pooling."""
    found, wanted = [], True
    for index, layer in enumerate(features):
        if isinstance(layer, nn.ReLU) and wanted:
            found.append(index)
        wanted = (wanted and not isinstance(layer, nn.ReLU)) or isinstance(layer, nn.MaxPool2d)
    return found


def test_vgg_equals_torchvision_on_the_same_weights(tmp_path: Path, vgg19: nn.Sequential) -> None:
    """In double: value within 1e-7, gradient within 1e-7 of its largest (our constants are floats)."""
    save_file({f"features.{name}": tensor for name, tensor in vgg19.state_dict().items()}, tmp_path / "v.safetensors")
    theirs = torchvisions_own(vgg19.state_dict())
    ours = VGGPerceptualLoss(load_features("vgg19", tmp_path / "v.safetensors")).double()
    relus = first_relus(theirs)
    assert relus == [1, 6, 11, 20, 29] == list(perceptual_loss.VGG_TAPS)

    def reference(a: Tensor, b: Tensor) -> Tensor:
        normalise = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        total = torch.zeros(len(a), dtype=a.dtype)
        for index, weight in zip(relus, [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1], strict=True):
            x, y = (theirs[: index + 1](normalise(image)) for image in (a, b))
            total = total + torch.stack([weight * (p - q).abs().mean() for p, q in zip(x, y, strict=True)])
        return total

    (value, slope), (expected, expected_slope) = with_slope(ours, *images()), with_slope(reference, *images())  # type: ignore[arg-type]
    assert expected.min() > 1e-2 and expected_slope.abs().max() > 1e-5
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(slope, expected_slope, rtol=0, atol=1e-7 * float(expected_slope.abs().max()))


@pytest.mark.parametrize("variant", ["alex", "vgg"])
def test_lpips_equals_its_package_on_the_same_weights(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradient in double; the package takes [-1, 1], the wrapper [0, 1]."""
    lpips = pytest.importorskip("lpips", reason="lpips is not installed")
    backbone = {"alex": "alexnet", "vgg": "vgg16"}[variant]
    features = random_features(backbone, seed=2)
    monkeypatch.setattr(torchvision.models, backbone, lambda pretrained: SimpleNamespace(features=features))
    package = lpips.LPIPS(net=variant, pnet_rand=True, verbose=False).double()
    monkeypatch.undo()
    ours = LPIPSWrapper(build_lpips(variant, random_features(backbone, seed=2))).double()
    a, b = images(48)
    value, slope = with_slope(ours, a, b)
    expected, expected_slope = with_slope(lambda x, y: package(2 * x - 1, 2 * y - 1).flatten(), a, b)  # type: ignore[arg-type]
    assert expected.min() > 1e-3
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(slope, expected_slope, rtol=0, atol=1e-7 * float(expected_slope.abs().max()))


@pytest.mark.parametrize("layers", [1, 3])
def test_fewer_layers_are_the_first_terms_of_the_sum(layers: int, vgg19: nn.Sequential) -> None:
    a, b = images(dtype=torch.float32)
    part = VGGPerceptualLoss(vgg19, layers)
    x, y = part.features_of(a), part.features_of(b)
    weights = [1 / 32, 1 / 16, 1 / 8][:layers]
    expected = sum(w * (p - q).abs().mean(dim=(1, 2, 3)) for w, p, q in zip(weights, x, y, strict=True))
    assert len(part.features) == [2, 7, 12][layers - 1]  # the layers behind it aren't run
    torch.testing.assert_close(part(a, b), expected)


def test_combined_gives_means_by_name_and_leaves_the_target_alone(vgg19: nn.Sequential) -> None:
    vgg, alex = VGGPerceptualLoss(vgg19, 2), LPIPSWrapper(build_lpips("alex", random_features("alexnet")))
    a, b = (image.requires_grad_() for image in images(dtype=torch.float32))
    terms = CombinedPerceptualLoss({"vgg": vgg, "lpips": alex})(a, b)
    assert list(terms) == ["vgg", "lpips"]
    for name, part in (("vgg", vgg), ("lpips", alex)):
        assert terms[name].ndim == 0 and terms[name].item() == pytest.approx(part(a, b).mean().item())
    (terms["vgg"] + terms["lpips"]).backward()
    assert a.grad is not None and bool(a.grad.isfinite().all()) and bool(a.grad.any()) and b.grad is None
    assert not any(p.requires_grad for p in (*vgg.parameters(), *alex.parameters()))


def test_equal_pictures_cost_nothing(vgg19: nn.Sequential) -> None:
    a, _ = images(dtype=torch.float32)
    terms = CombinedPerceptualLoss({"vgg": VGGPerceptualLoss(vgg19, 3)})(a.requires_grad_(), a)
    terms["vgg"].backward()
    assert terms["vgg"].item() == 0 and a.grad is not None and not a.grad.any()


def test_half_precision_is_close_and_reversible(vgg19: nn.Sequential) -> None:
    """bfloat16 keeps 8 bits: values within 2 %, the gradient's direction within a cosine of 0.9."""
    combined = CombinedPerceptualLoss({"vgg": VGGPerceptualLoss(load_copy(vgg19), 3)})
    a, b = images(dtype=torch.float32)
    found = {}
    for precision in (torch.float32, torch.bfloat16, torch.float32):
        combined.use_precision(precision)
        image = a.clone().requires_grad_()
        value = combined(image, b)["vgg"]
        assert value.dtype == torch.float32
        found[precision] = (value.item(), *torch.autograd.grad(value, image))
    full, half = found[torch.float32], found[torch.bfloat16]
    assert half[0] == pytest.approx(full[0], rel=0.02) and half[0] != full[0]
    assert torch.nn.functional.cosine_similarity(half[1].flatten(), full[1].flatten(), dim=0) > 0.9


def load_copy(features: nn.Sequential) -> nn.Sequential:
    copy = random_features("vgg19")
    copy.load_state_dict(features.state_dict())
    return copy
