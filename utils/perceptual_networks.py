"""Pretrained feature networks, loaded from files the user has, and LPIPS on top of them.

Where weights come from, in this order: the path given by flag; torchvision's cache (`$TORCH_HOME/hub/checkpoints`, by
default `~/.cache/torch/hub/checkpoints`). Nothing is downloaded.

How a file is trusted: `.safetensors` can only hold tensors and is preferred. A `.pth` is a pickle: it is read by
PyTorch's restricted unpickler (`weights_only=True`) of a release whose known escapes are closed (>= 2.10), and where
the name carries the first digits of its SHA-256, as torchvision's names do (`vgg16-397923af.pth`), these must agree.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils.errors import EnvironmentFault, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

SAFE_PTH_TORCH = (2, 10)  # weights_only escapes: CVE-2025-32434 (< 2.6) and CVE-2026-24747 (< 2.10)


@dataclass(frozen=True)
class Backbone:
    """A torchvision network of which only `features`, the convolutional part, is used."""

    name: str  # function of torchvision.models
    file: str  # in torchvision's cache; the digits are the first of its SHA-256

    @property
    def url(self) -> str:
        return f"https://download.pytorch.org/models/{self.file}"


BACKBONES = {
    "vgg16": Backbone("vgg16", "vgg16-397923af.pth"),
    "vgg19": Backbone("vgg19", "vgg19-dcbb9e9d.pth"),
    "alexnet": Backbone("alexnet", "alexnet-owt-7be5be79.pth"),
}


def needed_weights(backbone: str, given: str, flag: str) -> Path:
    """The file with the weights of `backbone`.

    Raises:
        InputError: the given path is no file, or none was `given` and torchvision's cache lacks it; says where to get
            it, and the flag that takes it.
    """
    path = find_weights(backbone, given)
    if path is None:
        wanted = BACKBONES[backbone]
        advice = f"Get {wanted.url} and give its path with {flag}, or put it into torchvision's cache."
        raise InputError(wanted.file, "", f"is not in {torch.hub.get_dir()}/checkpoints", advice)
    return path


def find_weights(backbone: str, given: str) -> Path | None:
    """The file with the weights of `backbone`, or None if none was `given` and torchvision's cache lacks it.

    Raises:
        InputError: the given path is no file.
    """
    if given:
        if not Path(given).is_file():
            raise InputError(given, "", "no such file", f"Get {BACKBONES[backbone].url} and give its path.")
        return Path(given)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[backbone].file
    return cached if cached.is_file() else None


def load_features(backbone: str, path: Path) -> nn.Sequential:
    """torchvision's `features` of `backbone` with the weights of `path`, in evaluation mode, without gradients.

    Accepts the whole network's state dict (`features.0.weight`, other entries are not used) or that of the features
    alone (`0.weight`).

    Raises:
        InputError: not a file of these weights; names the tensor.
        EnvironmentFault: torchvision is missing, or this PyTorch can't read a `.pth` safely.
    """
    features = _empty_features(backbone)
    stored = _read_tensors(path)
    state = {}
    for name, wanted in features.state_dict().items():
        tensor = stored.get(f"features.{name}", stored.get(name))
        if tensor is None:
            raise InputError(path, f"features.{name}", "is missing", f"The file must hold torchvision's {backbone}.")
        if tensor.shape != wanted.shape:
            found, expected = list(tensor.shape), list(wanted.shape)
            raise InputError(path, f"features.{name}", f"found shape {found}, expected {expected} ({backbone})")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise InputError(path, f"features.{name}", "holds values that are no finite floats")
        state[name] = tensor.float()
    return frozen(features, state)


def random_features(backbone: str, seed: int = 0) -> nn.Sequential:
    """torchvision's `features` of `backbone` with random weights (He et al. 2015), for tests and to measure cost: what
    they see says nothing about how a picture looks.

    Raises:
        EnvironmentFault: torchvision is missing.
    """
    features, generator = _empty_features(backbone), torch.Generator().manual_seed(seed)
    state = {}
    for name, wanted in features.state_dict().items():
        spread = (2 / wanted[0].numel()) ** 0.5 if name.endswith("weight") else 0.1
        state[name] = spread * torch.randn(wanted.shape, generator=generator)
    return frozen(features, state)


def frozen(features: nn.Sequential, state: Mapping[str, Tensor]) -> nn.Sequential:
    """`features` with the weights of `state`, in evaluation mode, without gradients."""
    features.load_state_dict(state, assign=True)
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # features taken before it must stay
    return features.eval().requires_grad_(False)


@dataclass(frozen=True)
class LpipsVariant:
    """Which layers of which backbone; `heads` is the file of linear weights in the `lpips` package."""

    backbone: str
    taps: tuple[int, ...]  # indices into `features`
    heads: str
    flag: str


LPIPS_VARIANTS = {
    "vgg": LpipsVariant("vgg16", (3, 8, 15, 22, 29), "vgg.pth", "--lpips_vgg16_weights"),
    "alex": LpipsVariant("alexnet", (1, 4, 7, 9, 11), "alex.pth", "--lpips_alex_weights"),
}


class Lpips(nn.Module):
    """Learned perceptual distance, version 0.1 (Zhang, Isola, Efros, Shechtman, Wang 2018, eq. 1).

    d(a, b) = sum over layers of the mean over pixels of w . (unit(f_a) - unit(f_b))^2, features f of unit length along
    their channels, w the heads learned from human judgements.

    Args:
        features: of the variant's backbone (`load_features`).
        heads: one [C] tensor per layer.
        taps: index into `features` of each layer.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: nn.Sequential, heads: Sequence[Tensor], taps: Sequence[int]) -> None:
        super().__init__()
        self.features, self.taps = features[: max(taps) + 1], tuple(taps)
        # ImageNet's mean and deviation, for inputs in [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        for index, head in enumerate(heads):
            self.register_buffer(f"head{index}", head.float().view(1, -1, 1, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of images [B, 3, H, W] in [-1, 1] (32 pixels or more along each side) -> [B]."""
        heads = (self.get_buffer(f"head{index}") for index in range(len(self.taps)))
        pairs = zip(heads, self.unit_features(a), self.unit_features(b), strict=True)
        return torch.stack([(head * (x - y).square()).sum(1).mean(dim=(1, 2)) for head, x, y in pairs]).sum(0)

    def unit_features(self, images: Tensor) -> list[Tensor]:
        """Features of images in [-1, 1] at each layer, of unit length along their channels."""
        found = tapped((images - self.shift) / self.scale, self.features, self.taps)
        return [x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10) for x in found]


def tapped(images: Tensor, features: nn.Sequential, taps: Sequence[int]) -> list[Tensor]:
    """What the layers `taps` of `features` make of images [B, 3, H, W]; computed in the precision of the layers' own
    weights, given back in that of the images."""
    precision = next(features.parameters()).dtype
    x, found = images.to(precision), []
    for index, layer in enumerate(features):
        x = layer(x)
        if index in taps:
            found.append(x.to(images.dtype))
    return found


def load_lpips(variant: str, weights: str = "") -> Lpips:
    """LPIPS "vgg" or "alex".

    Args:
        weights: path of the backbone's weights; empty looks in torchvision's cache.
    Raises:
        InputError: the weights can't be had (says which file, the page and the flag) or aren't what they must be.
        EnvironmentFault: a package is missing.
    """
    wanted = LPIPS_VARIANTS[variant]
    return build_lpips(variant, load_features(wanted.backbone, needed_weights(wanted.backbone, weights, wanted.flag)))


def build_lpips(variant: str, features: nn.Sequential) -> Lpips:
    """LPIPS "vgg" or "alex" on the given features of its backbone, with the heads of the `lpips` package.

    Raises:
        EnvironmentFault: the package is missing.
    """
    wanted = LPIPS_VARIANTS[variant]
    return Lpips(features, _lpips_heads(wanted.heads), wanted.taps).eval().requires_grad_(False)


def _lpips_heads(file: str) -> list[Tensor]:
    spec = importlib.util.find_spec("lpips")
    path = Path(spec.origin).parent / "weights" / "v0.1" / file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise EnvironmentFault("the package `lpips` with the linear heads of LPIPS is missing; run `pip install lpips`")
    state = _read_pth(path)  # from an installed package, so as trusted as code
    return [state[f"lin{index}.model.1.weight"].flatten() for index in range(5)]


def _empty_features(backbone: str) -> nn.Sequential:
    try:
        import torchvision.models
    except ImportError as error:
        raise EnvironmentFault("the package `torchvision` is missing; run `pip install torchvision`") from error
    with torch.device("meta"):  # neither memory nor time for random values that are replaced anyway
        return getattr(torchvision.models, BACKBONES[backbone].name)(weights=None).features


def _read_tensors(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(path, "", f"not readable as safetensors: {error}", "Get the file again.") from error
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_PTH_TORCH:
        raise EnvironmentFault(
            f"{path}: this PyTorch ({torch.__version__}) can't read a .pth safely; update to 2.10 or later, or convert "
            "the file to .safetensors"
        )
    _check_hash_in_name(path)
    return _read_pth(path)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, however large, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_hash_in_name(path: Path) -> None:
    named = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", path.name)
    if named is None:
        return
    found = digest_of(path)[: len(named[1])]
    if found != named[1]:
        problem = f"found SHA-256 {found}..., expected {named[1]}... as in the file's name"
        raise InputError(path, "", problem, "The file is damaged or not what it says: get it again.")


def _read_pth(path: Path) -> Mapping[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols; what matters is whether it reads
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # its own text advises to read the file unsafely
        raise InputError(path, "", "asks for more than plain weights, or is damaged", "Get the file again.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(path, "", f"not readable as PyTorch weights: {reason}", "Get the file again.") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(path, "", "found something else than named tensors, expected a state dict")
    return state
