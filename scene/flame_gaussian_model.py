"""FlameGaussianModel: Gaussians bound to the faces of a FLAME rig whose motion is trained with them: one avatar."""

from __future__ import annotations

from scene.gaussian_model import GaussianModel
from scene.rigs import FlameRig
from utils.contracts import Motion


class FlameGaussianModel(GaussianModel):
    """A GaussianModel on FLAME, saved as the original saves it: `point_cloud.ply` and `flame_param.npz`."""

    rig: FlameRig

    def driven_by(self, motion: Motion, source: str) -> FlameGaussianModel:
        """The same avatar (its Gaussians, shape and static offset) with another motion.

        Raises:
            InputError: motion that does not fit the avatar's FLAME model; names `source`.
        """
        rig = self.rig
        own = {"shape": rig.shape, "static_offset": rig.static_offset}
        driven = FlameRig(rig.flame, Motion(motion.per_frame, own), source, rig.shape.device)
        return FlameGaussianModel(self.columns, self.binding, self.sh_degree, driven)
