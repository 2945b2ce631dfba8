"""PyAV, imported when something needs it."""

from __future__ import annotations

from types import ModuleType

from utils.errors import EnvironmentFault


def load_pyav() -> ModuleType:
    """The package `av`; EnvironmentFault if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise EnvironmentFault("videos and JPEGs need PyAV, which is not installed; run `pip install av`") from error
    return av
