"""LPIPS and its loading, on random weights: the pretrained ones are not part of the repository."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from utils import perceptual_networks as networks
from utils.errors import EnvironmentFault, InputError

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")


def random_features(backbone: str, seed: int = 0) -> nn.Sequential:
    """The real layers with random weights, without the 120 million of the classifier behind them."""
    with torch.device("meta"):
        features = getattr(torchvision.models, backbone)(weights=None).features
    features = features.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in features.state_dict().items():
        fan_in = tensor[0].numel() if name.endswith("weight") else 100
        tensor.normal_(generator=generator).mul_((2 / fan_in) ** 0.5)
    return features


def whole_network(features: nn.Sequential) -> dict[str, Tensor]:
    return {f"features.{name}": tensor for name, tensor in features.state_dict().items()}


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    save_file(whole_network(random_features("alexnet")), path)
    return path


def images(size: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    a = torch.rand(2, 3, size, size + 9, generator=generator) * 2 - 1
    return a, (a + 0.3 * torch.randn(a.shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize("variant", ["alex", "vgg"])
def test_equals_the_lpips_package(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lpips = pytest.importorskip("lpips", reason="lpips is not installed")
    backbone = networks.LPIPS_VARIANTS[variant].backbone
    features = random_features(backbone, seed=1)
    path = tmp_path / f"{backbone}.safetensors"
    save_file(whole_network(features), path)
    monkeypatch.setattr(torchvision.models, backbone, lambda pretrained: SimpleNamespace(features=features))
    package = lpips.LPIPS(net=variant, pnet_rand=True, verbose=False)
    monkeypatch.undo()
    ours = networks.load_lpips(variant, str(path))
    a, b = images()
    with torch.no_grad():
        expected = package(a, b).flatten()
        assert expected.min() > 1e-3
        torch.testing.assert_close(ours(a, b), expected, rtol=1e-5, atol=1e-7)
        assert ours(a, a).abs().max() == 0


def test_accepts_pth_and_bare_feature_names(tmp_path: Path, alexnet_file: Path) -> None:
    features = random_features("alexnet")
    torch.save(features.state_dict(), tmp_path / "alexnet.pth")
    a, b = images()
    from_pth = networks.load_lpips("alex", str(tmp_path / "alexnet.pth"))
    assert torch.equal(from_pth(a, b), networks.load_lpips("alex", str(alexnet_file))(a, b))
    assert not any(p.requires_grad for p in from_pth.parameters())
    assert not any(getattr(layer, "inplace", False) for layer in from_pth.features)  # would spoil what a user keeps


def test_gradients_reach_the_image(alexnet_file: Path) -> None:
    a, b = images()
    distance = networks.load_lpips("alex", str(alexnet_file))
    a.requires_grad_()
    distance(a, b).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all() and a.grad.abs().sum() > 0


def test_hash_in_the_name_is_verified(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(random_features("alexnet").state_dict(), buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    good, bad = tmp_path / f"alexnet-{digest[:8]}.pth", tmp_path / "alexnet-owt-7be5be79.pth"
    for path in (good, bad):
        path.write_bytes(buffer.getvalue())
    networks.load_features("alexnet", good)
    with pytest.raises(InputError, match=rf"SHA-256 {digest[:8]}\.\.\., expected 7be5be79"):
        networks.load_features("alexnet", bad)


def test_finds_torchvisions_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert networks.find_weights("alexnet", "") is None
    with pytest.raises(InputError) as error:
        networks.load_lpips("alex")
    for part in ("alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models/", "--lpips_alex_weights"):
        assert part in str(error.value)
    cached = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    assert networks.find_weights("alexnet", "") == cached


class Exploding:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("the file caused a call",)


def broken_files(folder: Path) -> dict[str, Path]:
    def safetensors(name: str, **changes: Tensor) -> Path:
        state = {key: tensor.half() for key, tensor in whole_network(random_features("alexnet")).items()}
        state.update({f"features.{key}": tensor for key, tensor in changes.items()})
        save_file(state, folder / f"{name}.safetensors")
        return folder / f"{name}.safetensors"

    holed = torch.zeros(64)
    holed[5] = torch.nan
    files = {
        r"features\.0\.weight: found shape \[64, 3, 3, 3\], expected \[64, 3, 11, 11\]": safetensors(
            "shape", **{"0.weight": torch.zeros(64, 3, 3, 3)}
        ),
        r"features\.0\.bias: holds values that are no finite floats": safetensors("nan", **{"0.bias": holed}),
        r"not readable as safetensors": folder / "cut.safetensors",
        r"features\.0\.weight: is missing": folder / "other.pth",
        r"asks for more than plain weights": folder / "hostile.pth",
        r"expected a state dict": folder / "list.pth",
    }
    whole = (folder / "shape.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save({"linear.weight": torch.zeros(3)}, folder / "other.pth")
    torch.save([torch.zeros(3)], folder / "list.pth")
    (folder / "hostile.pth").write_bytes(pickle.dumps(Exploding(), protocol=2))
    return files


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    for message, path in broken_files(tmp_path).items():
        with pytest.raises(InputError, match=message) as error:
            networks.load_features("alexnet", path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        networks.load_lpips("alex", str(tmp_path / "absent.safetensors"))


def test_pth_needs_a_pytorch_without_known_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, tmp_path / "alexnet.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(EnvironmentFault, match=r"2\.9\.1.*safetensors"):
        networks.load_features("alexnet", tmp_path / "alexnet.pth")
