"""The types that flow through Mien, in the order in which they flow.

dataset -> (Frame, Motion) -> rig -> Mesh -> Gaussians -> Splats -> renderer -> Rendered -> losses -> Terms

`scene`, `gaussian_renderer` and `utils.losses` never import each other; they meet here.

Conventions, valid everywhere:
  world      metres, FLAME axes (x to the subject's left, y up, the face looks along +z)
  camera     OpenCV axes (x right, y down, z forward); a world point p is seen at `world_to_camera @ [p, 1]`
  pixels     x right, y down, the centre of the top-left pixel is (0.5, 0.5)
  rotations  quaternions are (w, x, y, z); axis-angle is in radians
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with full intrinsics. May carry gradients in both tensors."""

    world_to_camera: Tensor  # [4, 4] OpenCV, acts on column vectors
    intrinsics: Tensor  # [3, 3] pixels: fx, fy, cx, cy (cy counted from the top)
    width: int  # pixels
    height: int  # pixels
    near: float = 0.01  # metres; a splat nearer than this is not drawn
    far: float = 100.0  # metres

    def to(self, device: torch.device | str) -> Camera:
        return Camera(
            self.world_to_camera.to(device), self.intrinsics.to(device), self.width, self.height, self.near, self.far
        )


@dataclass(frozen=True)
class Frame:
    """One photograph and what is known about it."""

    camera: Camera
    image: Tensor  # [3, H, W] in [0, 1], composited over `background`
    mask: Tensor | None  # [1, H, W] in [0, 1]: the foreground matte, if the dataset has one
    background: Tensor  # [3] in [0, 1]
    timestep: int  # row of `Motion`
    camera_id: str
    name: str  # stem of the image file, for messages

    def to(self, device: torch.device | str) -> Frame:
        mask = None if self.mask is None else self.mask.to(device)
        moved = {"image": self.image.to(device), "mask": mask, "background": self.background.to(device)}
        return replace(self, camera=self.camera.to(device), **moved)


@dataclass(frozen=True)
class Motion:
    """Rig parameters of a sequence: one row per timestep, and those that do not change.

    FLAME names and shapes: per_frame rotation, neck_pose, jaw_pose, translation [T, 3], eyes_pose [T, 6] (left, right),
    expr [T, E] and optionally dynamic_offset [T, V, 3]; static shape [S] and optionally static_offset [V, 3].
    A tracker's own meshes: per_frame vertices [T, V, 3] in metres, static faces [F, 3] int64.
    """

    per_frame: Mapping[str, Tensor]
    static: Mapping[str, Tensor]

    @property
    def timesteps(self) -> int:
        return next(iter(self.per_frame.values())).shape[0] if self.per_frame else 1


@dataclass(frozen=True)
class Points:
    """A coloured point cloud in world space, from which an unbound scene starts."""

    positions: Tensor  # [N, 3]
    colours: Tensor  # [N, 3] in [0, 1]


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh in world space."""

    vertices: Tensor  # [V, 3] metres
    faces: Tensor  # [F, 3] int64


@dataclass(frozen=True)
class Splats:
    """3D Gaussians in world space, activated: what a renderer draws."""

    means: Tensor  # [N, 3] metres
    quats: Tensor  # [N, 4] (w, x, y, z), unit length
    scales: Tensor  # [N, 3] metres, standard deviations
    opacities: Tensor  # [N] in [0, 1]
    sh: Tensor  # [N, K, 3] real spherical harmonics, K = (d + 1)^2 with d up to 3
    sh_degree: int  # degree to evaluate, may be lower than what K holds
    covariances: Tensor | None = None  # [N, 6] xx xy xz yy yz zz, metres^2: drawn instead of quats and scales if given


@dataclass(frozen=True)
class RiggedSplats:
    """Gaussians on the triangles of a posed mesh, as they are trained. A renderer that knows meshes draws them as they
    are; `world()` gives every other one the same Gaussians in the world."""

    mesh: Mesh
    binding: Tensor  # [N] int64: the face of each Gaussian
    means: Tensor  # [N, 3] triangle scales
    quats: Tensor  # [N, 4] (w, x, y, z) of any length
    scales: Tensor  # [N, 3] log of triangle scales
    opacities: Tensor  # [N] logit
    sh0: Tensor  # [N, 1, 3]
    shN: Tensor  # noqa: N815 - [N, K - 1, 3]
    sh_degree: int
    world: Callable[[], Splats]


@dataclass(frozen=True)
class Rendered:
    """A picture of splats and what training needs to know about how it came about."""

    image: Tensor  # [3, H, W] composited over the background given to the renderer, not clamped
    alpha: Tensor  # [1, H, W] in [0, 1]
    depth: Tensor | None  # [1, H, W] metres: opacity-weighted sum of camera z (divide by alpha for the mean), if wanted
    radii: Tensor  # [N] int32 pixels, 0 = not drawn
    screen_offsets: (
        Tensor  # [N, 2] zeros; after backward its .grad is d loss / d screen mean, in NDC (half image) units
    )

    @property
    def visible(self) -> Tensor:
        """[N] bool: drawn in this picture."""
        return self.radii > 0


@dataclass(frozen=True)
class Drawn:
    """One view of a training step: the photograph, the mesh as posed in it, and our picture."""

    frame: Frame
    mesh: Mesh
    rendered: Rendered


@dataclass(frozen=True)
class Subject:
    """What is known of a person before the first step, for losses and strategies."""

    tracked: Mapping[str, Tensor] = field(default_factory=dict)  # [T, C] copies of the parameters that are trained
    sequence: Tensor | None = None  # [T] int64: the recording that a timestep is of; -1: no training frame shows it
    regions: Mapping[str, Tensor] = field(default_factory=dict)  # name -> [F] bool; empty without --flame_masks
    least_side: int = 0  # pixels, of all training pictures; 0: not known


@dataclass(frozen=True)
class Neighbour:
    """The frame of the same camera a timestep earlier or later, and how the avatar draws it now."""

    frame: Frame
    mesh: Mesh
    image: Tensor  # [3, H, W], not clamped; with gradients only if they were asked for


@dataclass(frozen=True)
class Terms:
    """Named, weighted loss terms (0-dim tensors)."""

    values: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        return torch.stack(list(self.values.values())).sum()
