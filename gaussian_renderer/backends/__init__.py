"""The rasterisers. Adding one = one module, and one line here.

The module defines `render(splats, camera, background, threads) -> Rendered`, and may define `unavailable() ->
list[str]`: the reasons why it can't be used on this machine, each with its fix.
"""

from __future__ import annotations

BACKENDS: dict[str, str] = {
    "native": "gaussian_renderer.backends.native:render",
    "reference": "gaussian_renderer.backends.reference:render",
    "gsplat": "gaussian_renderer.backends.gsplat:render",
}
