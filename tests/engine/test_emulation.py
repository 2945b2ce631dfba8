"""The emulated device: it runs sound kernels as a GPU does, and finds the faults that a GPU would leave undefined."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
import torch
from diff_gaussian_rasterization import _device
from diff_gaussian_rasterization._library import DeviceFault, check_with, open_library

from scripts.emulated_library import build

spoiled = pytest.mark.skipif(
    os.environ.get("MIEN_EMULATION_SANITIZE") == "1", reason="AddressSanitizer guards shared memory, nothing spoils it"
)
ORDERS = ["forward", "reverse", "1", "2", "3"]
BLOCK = 64


@pytest.fixture(scope="module")
def cases(emulated_library: Path) -> ctypes.CDLL:
    """The emulated library together with emulation_cases.cu."""
    return open_library(build(more=[Path(__file__).parent / "emulation_cases.cu"]))


@pytest.fixture(params=ORDERS)
def any_order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every order of threads and blocks."""
    monkeypatch.setenv("MIEN_EMULATION_ORDER", request.param)
    return request.param


def at(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def reverse(cases: ctypes.CDLL, with_barrier: bool) -> list[float]:
    values, out = torch.arange(float(BLOCK)), torch.zeros(BLOCK)
    check_with(cases, cases.case_reverse(at(values), at(out), int(with_barrier)))
    return out.tolist()


def fault(cases: ctypes.CDLL, which: str) -> str:
    out = torch.zeros(BLOCK)
    with pytest.raises(DeviceFault) as caught:
        check_with(cases, cases.case_fault(which.encode(), at(out)))
    return str(caught.value)


def test_the_engine_counts_its_devices(engine_device: torch.device) -> None:
    count = ctypes.c_int32(-1)
    assert _device.device_library().mien_cuda_devices(ctypes.byref(count)) == 0
    assert count.value >= 1
    assert _device.on_device(torch.zeros(1, device=engine_device))


def test_a_barrier_makes_the_order_irrelevant(cases: ctypes.CDLL, any_order: str) -> None:
    assert reverse(cases, with_barrier=True) == list(range(BLOCK - 1, -1, -1))


@spoiled
def test_a_missing_barrier_shows_in_the_order(cases: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for order in ORDERS:
        monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
        seen.add(str(reverse(cases, with_barrier=False)))
    assert len(seen) == len(ORDERS)


@spoiled
def test_shared_memory_holds_nothing_of_use_at_first(cases: ctypes.CDLL) -> None:
    out = torch.zeros(BLOCK)
    check_with(cases, cases.case_fault(b"shared_before_written", at(out)))
    assert out.isnan().all()


@pytest.mark.parametrize("living", [64, 63, 33, 32])
def test_threads_that_have_returned_are_not_waited_for(cases: ctypes.CDLL, any_order: str, living: int) -> None:
    blocks = 5
    values = torch.arange(float(blocks * BLOCK)).reshape(blocks, BLOCK)
    out = torch.zeros(blocks)
    check_with(cases, cases.case_sum(at(values), blocks, living, at(out)))
    whole = living // 32 * 32  # lanes of a warp that is not whole keep what they have
    expected = values[:, :whole].sum(1) + (values[:, whole] if living > whole else 0)
    assert torch.equal(out, expected)


def test_groups_of_lanes_meet_on_their_own(cases: ctypes.CDLL, any_order: str) -> None:
    out = torch.zeros(BLOCK, dtype=torch.int32)
    check_with(cases, cases.case_groups(at(out)))
    lane = torch.arange(BLOCK) % 32
    turned = lane // 4 * 4 + (lane + 100 * (lane // 4) + 1) % 4
    assert torch.equal(out, (turned + 1000 * 16).int())


def test_threads_that_wait_for_each_other_are_named(cases: ctypes.CDLL, any_order: str) -> None:
    message = fault(cases, "warp_and_barrier")
    assert "kernel launched in emulation_cases.cu:" in message
    assert "block (0, 0, 0): threads wait for each other for ever" in message
    assert "thread (16, 0, 0) at the barrier of emulation_cases.cu:" in message
    assert "thread (0, 0, 0) in the warp operation of emulation_cases.cu:" in message
    assert reverse(cases, with_barrier=True)[0] == BLOCK - 1  # the device can still be used


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("two_barriers", "while others wait at the one of emulation_cases.cu:"),
        ("two_shuffles", "while other lanes are in the one of emulation_cases.cu:"),
        ("not_in_mask", "is not in the mask 0x0000ffff of its warp operation"),
        ("too_many_threads", "invalid configuration argument"),
    ],
)
def test_undefined_use_is_refused(cases: ctypes.CDLL, any_order: str, which: str, expected: str) -> None:
    assert expected in fault(cases, which)


def test_memory_ends(cases: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = cases.case_allocate
    allocate.argtypes = [ctypes.c_int64]
    monkeypatch.setenv("MIEN_EMULATION_BYTES", "1000000")
    for _ in range(3):  # what is freed counts no more
        check_with(cases, allocate(700_000))
    with pytest.raises(MemoryError, match="allocating 1000064 bytes: out of memory"):
        check_with(cases, allocate(800_000))


@pytest.mark.parametrize(("what", "kind"), [("allocation", MemoryError), ("launch", DeviceFault)])
def test_failures_come_when_asked_for(
    cases: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, what: str, kind: type[Exception]
) -> None:
    out = torch.zeros(BLOCK)
    monkeypatch.setenv("MIEN_EMULATION_FAIL", f"{what}:2")
    call = {
        "allocation": lambda: cases.case_allocate(ctypes.c_int64(10)),
        "launch": lambda: cases.case_fault(b"shared_before_written", at(out)),
    }[what]
    check_with(cases, call())
    with pytest.raises(kind):
        check_with(cases, call())
    check_with(cases, call())


def test_a_graph_reads_device_memory_when_it_is_played(cases: ctypes.CDLL) -> None:
    out = torch.zeros(BLOCK)
    check_with(cases, cases.case_graph(b"", at(out)))
    assert torch.equal(out, torch.full((BLOCK,), 3.0))


@pytest.mark.parametrize("what", ["allocate", "synchronise", "null stream"])
def test_what_must_not_be_captured_spoils_the_capture(cases: ctypes.CDLL, what: str) -> None:
    out = torch.zeros(BLOCK)
    with pytest.raises(DeviceFault, match=r"captur.*; operation failed due to a previous error during capture"):
        check_with(cases, cases.case_graph(what.encode(), at(out)))
    assert torch.equal(out, torch.zeros(BLOCK))
    check_with(cases, cases.case_graph(b"", at(out)))  # later captures are not affected


def make_current(cases: ctypes.CDLL, number: int) -> int:
    before = ctypes.c_int(-1)
    check_with(cases, cases.case_make_current(number, ctypes.byref(before)))
    return before.value


@pytest.mark.parametrize(
    ("device", "failing", "expected"),
    [
        (0, "", None),
        (1, "", None),
        (0, "launch:1", DeviceFault),
        (2, "", DeviceFault),
    ],
)
def test_a_call_leaves_the_current_device_as_it_was(
    cases: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, device: int, failing: str, expected: type[Exception] | None
) -> None:
    data, out = torch.arange(10, dtype=torch.uint8), torch.zeros(10)
    monkeypatch.setenv("MIEN_EMULATION_FAIL", failing)
    queue = _device.Queue(device, None)
    make_current(cases, 1)
    try:
        call = cases.mien_cuda_image_to_float
        status = call(at(data), ctypes.c_int64(10), at(out), ctypes.byref(queue))
        assert make_current(cases, 1) == 1
    finally:
        make_current(cases, 0)
    if expected is None:
        check_with(cases, status)
        assert torch.equal(out, data / 255.0)
    else:
        with pytest.raises(expected):
            check_with(cases, status)
