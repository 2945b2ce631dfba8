"""The interface that 3D Gaussian splatting projects know under this package's name."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._library import thread_count
from ._rasterize import Picture, check_tensor, rasterize_tensors
from ._rules import RULES

_NEAR = 0.2  # a splat is dropped if its z is not larger
_FAR = 1e10
_AGREEMENT = 1e-3  # relative, between the focal lengths of projmatrix and tanfov


class GaussianRasterizationSettings(NamedTuple):
    """Camera and options.

    Matrices act on row vectors: they are the transposes of world-to-camera and of projection @ world-to-camera.
    """

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor  # [3]
    scale_modifier: float
    viewmatrix: Tensor  # [4, 4]
    projmatrix: Tensor  # [4, 4]
    sh_degree: int
    campos: Tensor  # [3]
    prefiltered: bool
    debug: bool
    antialiasing: bool = False


class GaussianRasterizer(nn.Module):
    """Draws Gaussians with the rules of diff-gaussian-rasterization; gradients to the Gaussians, none to the settings.

    One deliberate difference: where the clamp inside the Jacobian acts (far outside the picture), its true derivative
    is used. The tensors are on the CPU or on one GPU; the settings' own may be elsewhere.
    """

    def __init__(self, raster_settings: GaussianRasterizationSettings) -> None:
        super().__init__()
        self.raster_settings = raster_settings

    def markVisible(self, positions: Tensor) -> Tensor:  # noqa: N802 (the name callers use)
        """[N] bool: in front of the near plane. positions: [N, 3] world space."""
        with torch.no_grad():
            matrix = self.raster_settings.viewmatrix
            return positions @ matrix[:3, 2] + matrix[3, 2] > _NEAR

    def forward(  # noqa: PLR0913 (the signature callers use)
        self,
        means3D: Tensor,  # noqa: N803
        means2D: Tensor | None,  # noqa: N803
        opacities: Tensor,
        shs: Tensor | None = None,
        colors_precomp: Tensor | None = None,
        scales: Tensor | None = None,
        rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None,  # noqa: N803
        dc: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw.

        Args:
            means3D: [N, 3] world space.
            means2D: [N, 3]; its values are not used. Its gradient is that of the screen means, in half images; the
                third entry is 0.
            opacities: [N, 1].
            shs: [N, K, 3], or colors_precomp: [N, 3].
            scales: [N, 3] and rotations: [N, 4] (w, x, y, z), unit; or cov3D_precomp: [N, 6] (xx xy xz yy yz zz).
            dc: [N, 1, 3], the first coefficient, if `shs` holds only the others.

        Returns:
            color [3, H, W] and radii [N] int32, 0 = not drawn.

        Raises:
            ValueError: not exactly one of two alternatives is given, or a tensor does not fit.
        """
        settings = self.raster_settings
        if (shs is None) == (colors_precomp is None):
            raise ValueError("give exactly one of shs and colors_precomp")
        if (scales is None or rotations is None) == (cov3D_precomp is None) or (scales is None) != (rotations is None):
            raise ValueError("give exactly one of (scales and rotations) and cov3D_precomp")
        if shs is not None and dc is not None:
            shs = torch.cat((dc, shs), dim=1)
        n = means3D.shape[0]
        splats = {
            "means": check_tensor("means3D", means3D, (n, 3), means3D),
            "opacities": check_tensor("opacities", opacities.reshape(-1), (n,), means3D),
            "sh": None if shs is None else check_tensor("shs", shs, (n, "K", 3), means3D),
            "colors": None
            if colors_precomp is None
            else check_tensor("colors_precomp", colors_precomp, (n, 3), means3D),
            "covariances": None
            if cov3D_precomp is None
            else check_tensor("cov3D_precomp", cov3D_precomp, (n, 6), means3D),
            "quats": None if rotations is None else check_tensor("rotations", rotations, (n, 4), means3D),
            "scales": None
            if scales is None
            else check_tensor("scales", scales, (n, 3), means3D) * settings.scale_modifier,
            "screen_offsets": None
            if means2D is None
            else _gradient_only(check_tensor("means2D", means2D, (n, 3), means3D)),
        }
        tensors = {**splats, **_camera(settings, means3D.device)}
        centre = _plain(settings.campos, means3D.device)
        image, _, _, radii = rasterize_tensors(_picture(settings), tensors, centre)
        return image, radii


def _gradient_only(means2d: Tensor) -> Tensor:
    xy = means2d[:, :2]
    return (xy - xy.detach()).contiguous()


def _plain(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().to(device, torch.float32).contiguous()


def _picture(settings: GaussianRasterizationSettings) -> Picture:
    if settings.sh_degree not in (0, 1, 2, 3):
        raise ValueError(f"sh_degree must be 0, 1, 2 or 3, got {settings.sh_degree!r}")
    # The library draws z >= near, this interface z > near.
    near = float(torch.nextafter(torch.tensor(_NEAR), torch.tensor(1.0)))
    rules = dataclasses.replace(RULES["dgr"], antialias=bool(settings.antialiasing))
    size = int(settings.image_width), int(settings.image_height)
    return Picture(*size, near, _FAR, int(settings.sh_degree), rules, thread_count(None), with_depth=False)


def _camera(settings: GaussianRasterizationSettings, device: torch.device) -> dict[str, Tensor]:
    """The camera's tensors by name. The principal point is in projmatrix alone."""
    view = _plain(settings.viewmatrix, device).T.contiguous()
    width, height = settings.image_width, settings.image_height
    matrices = torch.stack((settings.projmatrix.detach(), settings.viewmatrix.detach())).cpu().double()
    projection = (matrices[0].T @ torch.linalg.inv(matrices[1].T)).tolist()
    fx, fy = width / (2 * settings.tanfovx), height / (2 * settings.tanfovy)
    for name, found, wanted in (("x", projection[0][0] * width / 2, fx), ("y", projection[1][1] * height / 2, fy)):
        if abs(found - wanted) > _AGREEMENT * wanted:
            raise ValueError(f"projmatrix has focal length {name} {found:.6g} pixels, tanfov{name} says {wanted:.6g}")
    cx, cy = (projection[0][2] + 1) * width / 2, (projection[1][2] + 1) * height / 2
    intrinsics = torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], device=device)
    return {"world_to_camera": view, "intrinsics": intrinsics, "background": _plain(settings.bg, device)}
