"""What several tests of the engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from diff_gaussian_rasterization._library import isa_name, select_isa


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this CPU has, in use while the test runs."""
    before = isa_name()
    try:
        select_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    select_isa(before)
