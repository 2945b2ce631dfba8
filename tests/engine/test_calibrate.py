"""Calibration: rates that a processor can have, and refusals. Nothing is asserted about how fast this machine is."""

from __future__ import annotations

from typing import Any

import pytest

module = pytest.importorskip("diff_gaussian_rasterization.calibrate", reason="the native package is not installed")
library = pytest.importorskip("diff_gaussian_rasterization._library")


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest):
    before = library.isa_name()
    try:
        library.select_isa(request.param)
    except ValueError as reason:
        pytest.skip(str(reason))
    yield request.param
    library.select_isa(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_rates(isa: str, threads: int) -> None:
    sizes = (0, 4096, 1 << 20)  # at least one step of the kernel, whatever is asked for
    rates = module.calibrate(sizes, threads, 0.0)
    assert 0 < rates.instructions < threads * 32 * 10e9  # 32 vector instructions a cycle at 10 GHz
    assert len(rates.reads) == len(rates.updates) == len(sizes)
    assert all(0 < rate < threads * 512 * 10e9 for rate in (*rates.reads, *rates.updates))


def test_no_memory() -> None:
    rates = module.calibrate(threads=1, seconds=0.0)
    assert rates.instructions > 0 and rates.reads == rates.updates == ()


@pytest.mark.parametrize("named, arguments", [
    ("sizes", {"sizes": (-1,)}), ("sizes", {"sizes": (1.5,)}), ("sizes", {"sizes": (2**34 + 1,)}),
    ("threads", {"threads": 0}), ("threads", {"threads": 257}), ("seconds", {"seconds": -1.0}),
    ("seconds", {"seconds": float("nan")})])  # fmt: skip
def test_refusals(named: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=named):
        module.calibrate(**arguments)
