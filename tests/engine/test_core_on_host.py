"""Every function of the maths core by its host instance: values by independent formulas, vjps by central differences.

The CUDA kernels and the CPU's are made of these functions. core_on_device.cu compiles the same cases for a GPU.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from .core_host import HEADERS, HERE, Core, build, gradient, relative, signatures
from .core_tables_geometry import frame, in_float, unit
from .core_tables_splats import TABLE


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """The functions of core_cases.h."""
    path = build(tmp_path_factory.mktemp("core"))
    if path is None:
        pytest.skip("no C++ compiler is on the PATH")
    return Core(path)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_the_double_instance_gives_what_it_must(core: Core, name: str) -> None:
    case = TABLE[name]
    assert relative(core(name, case.rows), case.expected(core, case.rows)) < case.bound


@pytest.mark.parametrize("name", sorted(TABLE))
def test_the_float_instance_agrees_with_the_double_one(core: Core, name: str) -> None:
    case = TABLE[name]
    rows = in_float(case.rows)
    assert relative(core(name, rows, dtype=np.float32), core(name, rows)) < case.float_bound


def test_no_vjp_is_tested_more_loosely_than_asked() -> None:
    assert all(case.bound <= 1e-6 for case in TABLE.values())


def test_every_function_of_the_headers_is_a_case() -> None:
    found: set[str] = set()
    for header in HEADERS:
        text = header.read_text()
        here = list(signatures(text))
        marked = re.findall(r"^(?!#|//).*?\bMIEN_HD\b", text, re.MULTILINE)
        assert len(here) == len(marked), f"{header.name}: {len(marked)} MIEN_HD, {len(here)} read: {here}"
        found.update(here)
    text = "".join(path.read_text() for path in HERE.glob("core_cases*.h"))
    cases = set(re.findall(r'CASE\([\w#]+,\s*"([^"]+)"', text))
    assert found - cases == set(), "functions without a case in core_cases.h"
    assert cases - found == set(), "cases of functions that are gone"


def test_every_case_is_tested(core: Core) -> None:
    assert set(core.entries) == set(TABLE)


def test_both_instances_are_made_of_the_same_cases() -> None:
    for name in ("core_on_host.cpp", "core_on_device.cu"):
        assert '#include "core_cases.h"' in Path(HERE / name).read_text()


@pytest.mark.parametrize("kind", ["a point", "a line", "v0 = v1", "nearly a line"])
def test_a_triangle_without_extent_has_a_finite_frame_and_passes_no_torque(core: Core, kind: str) -> None:
    corners = {
        "a point": [[1, 2, 3, 1, 2, 3, 1, 2, 3]],
        "a line": [[0, 0, 0, 1, 0, 0, 2, 0, 0]],
        "v0 = v1": [[0, 0, 0, 0, 0, 0, 1, 2, 0]],
        "nearly a line": [[0, 0, 0, 1, 0, 0, 2, 1e-12, 0]],
    }[kind]
    for dtype in (np.float32, np.float64):
        found = core("triangle_frame", np.array(corners, float), dtype=dtype)
        g = core("triangle_frame_vjp", found, np.array([[1.0, 1, 1, 0, 0, 0, 0]]), dtype=dtype)
        assert np.isfinite(found).all() and np.isfinite(g).all()
        assert np.abs(found[:, 6:10]).max() <= 1 + 1e-6
        if kind != "nearly a line":
            assert (g == 0).all()


def test_a_zero_quaternion_is_no_rotation(core: Core) -> None:
    zero = np.zeros((1, 4))
    for dtype in (np.float32, np.float64):
        length = core("inverse_length", zero, dtype=dtype)
        assert np.isfinite(length).all() and length[0, 0] == pytest.approx(1e12, rel=1e-6)
        unit_quat = core("quat_scale", length, zero, dtype=dtype)
        assert np.array_equal(core("rotation_matrix", unit_quat, dtype=dtype), np.eye(3).reshape(1, 9))
        assert np.isfinite(core("normalise_vjp", zero, np.ones((1, 4)), dtype=dtype)).all()


def test_a_vector_without_length_has_no_direction(core: Core) -> None:
    same = np.ones((1, 6))
    assert np.array_equal(core("direction", same), np.zeros((1, 4)))
    assert np.array_equal(core("direction_vjp", np.zeros((1, 4)), np.ones((1, 3))), np.zeros((1, 3)))


def test_a_turn_by_a_tiny_angle_keeps_its_gradient_in_float(core: Core) -> None:
    for angle in (0.0, 1e-20, 1e-10, 1e-6, 1e-4):
        p = angle * unit(np.array([[1.0, -2.0, 3.0]]))
        g = np.arange(9.0).reshape(1, 9) - 3
        exact = gradient(lambda x: core("axis_angle_matrix", x), p, g)
        assert relative(core("axis_angle_vjp", p, g, dtype=np.float32), exact) < 1e-3


def test_what_is_not_a_number_stays_above_a_threshold(core: Core) -> None:
    assert np.isnan(core("excess", np.array([[np.nan, 1.0]]))).all()


def test_a_scaled_triangle_scales_its_frame(core: Core) -> None:
    corners = TABLE["triangle_frame"].rows
    for factor in (1e-6, 1e6):
        assert relative(core("triangle_frame", factor * corners)[:, :10], frame(corners)[:, :10]) < 1e-9
