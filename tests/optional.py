"""hypothesis, or what stands in for it where it is missing: its tests are skipped, the others of their file still run,
and other files may import from it. Machines with a GPU are tested with what they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hypothesis import given, settings
    from hypothesis import strategies as st
else:
    try:
        from hypothesis import given, settings
        from hypothesis import strategies as st
    except ImportError:

        class Anything:
            """Strategies are made when a file is read."""

            def __getattr__(self, name: str) -> Callable[..., Anything]:
                return lambda *_, **__: self

        def given(*_: Any, **__: Any) -> Callable[[Any], Any]:
            def skipped() -> None:
                pytest.skip("hypothesis is not installed")

            def replace(test: Callable[..., None]) -> Callable[[], None]:
                skipped.__name__ = test.__name__
                return skipped

            return replace

        def settings(**_: Any) -> Callable[[Any], Any]:
            return lambda test: test

        st = Anything()

__all__ = ["given", "settings", "st"]
