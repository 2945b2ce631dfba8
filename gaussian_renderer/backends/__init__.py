"""The rasterisers. Adding one = one module, and one line here.

The module defines `render(splats, camera, background, threads) -> Rendered`, and may define `unavailable() ->
list[str]`: the reasons why it can't be used on this machine, each with its fix; and `render_rigged(splats, camera,
background, threads, with_depth)`, which draws `RiggedSplats` without placing them in the world first, with
`unusable_on(device) -> str | None`: why it can't on that device, None if it can.
"""

from __future__ import annotations

BACKENDS: dict[str, str] = {
    "native": "gaussian_renderer.backends.native:render",
    "reference": "gaussian_renderer.backends.reference:render",
    "gsplat": "gaussian_renderer.backends.gsplat:render",
}
