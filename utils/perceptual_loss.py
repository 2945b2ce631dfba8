"""How different two pictures look to a network: distances of deep features, as losses on images in [0, 1].

VGG (Johnson, Alahi, Fei-Fei 2016, with the layers and weights of pix2pixHD: Wang et al. 2018, supplement):
    d(a, b) = sum over l of w_l mean |f_l(a) - f_l(b)|, f_l = relu{l}_1 of VGG19, w = 1/32, 1/16, 1/8, 1/4, 1
LPIPS (Zhang et al. 2018): `utils.perceptual_networks.Lpips`.

Nothing here knows of training, cameras or files; `utils/losses/perceptual.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from utils.perceptual_networks import Lpips, tapped

VGG_TAPS = (1, 6, 11, 20, 29)  # indices into torchvision's vgg19().features: relu1_1, relu2_1 ... relu5_1
VGG_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
LEAST_SIDE = 32  # pixels; of smaller pictures the last layers are empty


class VGGPerceptualLoss(nn.Module):
    """L1 distance of VGG19's features.

    Args:
        features: torchvision's `vgg19().features`, ready for use (`utils.perceptual_networks.load_features`). What lies
            behind the last layer that is wanted is dropped.
        layers: how many of the five layers, from the first on; each keeps its weight.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: nn.Sequential, layers: int = len(VGG_TAPS)) -> None:
        super().__init__()
        self.taps, self.weights = VGG_TAPS[:layers], VGG_WEIGHTS[:layers]
        self.features = features[: self.taps[-1] + 1]
        # of ImageNet, for inputs in [0, 1]
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Distance of images [B, 3, H, W] in [0, 1] (32 pixels or more along each side) -> [B]."""
        pairs = zip(self.weights, self.features_of(image), self.features_of(target), strict=True)
        return torch.stack([weight * (a - b).abs().mean(dim=(1, 2, 3)) for weight, a, b in pairs]).sum(0)

    def features_of(self, images: Tensor) -> list[Tensor]:
        """Features of images in [0, 1] at each layer."""
        return tapped((images - self.mean) / self.deviation, self.features, self.taps)


class LPIPSWrapper(nn.Module):
    """LPIPS of images in [0, 1], where the network itself takes [-1, 1]."""

    def __init__(self, network: Lpips) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Distance of images [B, 3, H, W] in [0, 1] (32 pixels or more along each side) -> [B]."""
        return self.network(2 * image - 1, 2 * target - 1)


class CombinedPerceptualLoss(nn.Module):
    """Several distances of the same images, by name.

    Args:
        parts: name -> `VGGPerceptualLoss`, `LPIPSWrapper`, or any module from two batches of images to [B].
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def use_precision(self, precision: torch.dtype) -> None:
        """Compute features in this precision; distances are always taken in that of the images.

        bfloat16, not float16: the gradient of a mean over a million features underflows there (`docs/perceptual.md`).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last).to(precision)

    def forward(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Name -> mean distance of images [B, 3, H, W] in [0, 1], 0-dim; gradients reach `image` alone."""
        return {name: part(image, target.detach()).mean() for name, part in self.parts.items()}
