"""A small avatar on the tiny head, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from flame_model import FlameModel, load_flame
from scene.flame_gaussian_model import FlameGaussianModel
from scene.gaussian_model import ModelOptions
from scene.rigs import FlameRig
from tests.tiny import write_model
from utils.contracts import Motion

WIDTHS = {"rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "translation": 3, "expr": 5}
TIMESTEPS = 4


def motion(seed: int = 0) -> Motion:
    random = torch.Generator().manual_seed(seed)
    per_frame = {n: 0.1 * torch.randn(TIMESTEPS, width, generator=random) for n, width in WIDTHS.items()}
    return Motion(per_frame, {"shape": torch.linspace(-1, 1, 7)})


def rig(folder: Path, moved: Motion | None = None) -> FlameRig:
    flame = FlameModel(load_flame(write_model(folder / "head.pkl")).with_teeth())
    return FlameRig(flame, moved or motion(), "test", "cpu")


def avatar(folder: Path, options: ModelOptions | None = None) -> FlameGaussianModel:
    """One Gaussian per face, every parameter shaken so that no two rows are equal."""
    model = FlameGaussianModel.on_rig(rig(folder), options or ModelOptions(), 0, "cpu")
    random = torch.Generator().manual_seed(1)
    for name, column in model.columns.items():
        model.columns[name] = (column.detach() + 0.1 * torch.randn(column.shape, generator=random)).requires_grad_()
    model.sh_degree = model.max_sh_degree
    return model
