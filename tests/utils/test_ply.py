"""PLY files of Gaussians: the exact bytes of the layout, round trips, and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.errors import EnvironmentFault, InputError, NumericalFault
from utils.io.ply import property_names, read_gaussian_ply, write_gaussian_ply


def gaussians(n: int, degree: int = 3, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    r = np.random.default_rng(seed)
    shapes = {
        "means": (n, 3),
        "sh0": (n, 1, 3),
        "shN": (n, (degree + 1) ** 2 - 1, 3),
        "opacities": (n,),
        "scales": (n, 3),
        "quats": (n, 4),
    }
    columns = {name: r.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return columns, r.integers(0, 10144, n)


def header_and_rows(path: Path) -> tuple[bytes, bytes]:
    data = path.read_bytes()
    end = data.index(b"end_header\n") + len(b"end_header\n")
    return data[:end], data[end:]


def test_the_bytes_are_those_of_the_layout(tmp_path: Path) -> None:
    columns, binding = gaussians(3)
    write_gaussian_ply(tmp_path / "a.ply", columns, binding)
    header, rows = header_and_rows(tmp_path / "a.ply")
    names = (
        "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2".split()
        + [f"f_rest_{i}" for i in range(45)]
        + "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3 binding_0".split()
    )
    expected = ["ply", "format binary_little_endian 1.0", "element vertex 3", *(f"property float {n}" for n in names)]
    assert header.decode() == "\n".join([*expected, "end_header", ""])
    assert len(rows) == 3 * 252
    for i in range(3):
        rest = [columns["shN"][i, k, c] for c in range(3) for k in range(15)]  # channel-major
        values = [*columns["means"][i], 0, 0, 0, *columns["sh0"][i, 0], *rest, columns["opacities"][i]]
        values += [*columns["scales"][i], *columns["quats"][i], float(binding[i])]
        assert rows[252 * i : 252 * (i + 1)] == struct.pack("<63f", *values)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("n", [0, 1, 50])
def test_round_trip(tmp_path: Path, degree: int, bound: bool, n: int) -> None:
    columns, binding = gaussians(n, degree)
    write_gaussian_ply(tmp_path / "a.ply", columns, binding if bound else None)
    read, read_binding = read_gaussian_ply(tmp_path / "a.ply", 10144)
    assert set(read) == set(columns)
    for name, column in columns.items():
        assert read[name].shape == column.shape and read[name].dtype == np.float32
        assert np.array_equal(read[name], column)
    if bound:
        assert read_binding is not None and read_binding.dtype == np.int64 and np.array_equal(read_binding, binding)
    else:
        assert read_binding is None


def write_table(path: Path, table: dict[str, np.ndarray], order: str = "<", kind: str = "f4") -> None:
    """A PLY written independently of the module under test."""
    word = {"f4": "float", "f8": "double", "i4": "int"}[kind]
    n = len(next(iter(table.values())))
    lines = [
        "ply",
        f"format binary_{'little' if order == '<' else 'big'}_endian 1.0",
        "comment other",
        f"element vertex {n}",
    ]
    lines += [f"property {word} {name}" for name in table] + ["end_header", ""]
    values = np.stack(list(table.values()), axis=1).astype(order + kind)
    path.write_bytes("\n".join(lines).encode() + values.tobytes())


@pytest.mark.parametrize(("order", "kind"), [(">", "f4"), ("<", "f8"), (">", "f8")])
def test_other_orders_types_and_byte_orders_are_read(tmp_path: Path, order: str, kind: str) -> None:
    names = [n for n in property_names(4, True) if not n.startswith("n")][::-1]
    table = {name: np.full(2, float(i + 1), np.float32) for i, name in enumerate(names)}
    write_table(tmp_path / "a.ply", table, order, kind)
    columns, binding = read_gaussian_ply(tmp_path / "a.ply")
    assert binding is not None and binding.tolist() == [1, 1]
    assert columns["means"].tolist() == [[float(len(names) - i) for i in range(3)]] * 2
    assert columns["shN"][0, 1, 2] == table["f_rest_7"][0]


def damaged(path: Path, old: bytes, new: bytes) -> Path:
    columns, binding = gaussians(4)
    write_gaussian_ply(path, columns, binding)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"ply\n", b"plx\n", "not that of a PLY file"),
        (b"end_header", b"end_footer", "not that of a PLY file"),
        (b"element vertex 4", b"element vertex 5", "early end-of-file"),
        (b"element vertex 4", b"element vertex 3", "bytes, expected"),
        (b"element vertex 4", b"element vertex 999999999999999", "early end-of-file"),
        (b"element vertex 4", b"element vertex 99999999999999999999999999", "is damaged"),
        (b"element vertex 4", b"element vertex -4", "is damaged"),
        (b"element vertex 4", b"element point 4", "no element 'vertex'"),
        (b"binary_little_endian", b"ascii", "format ascii"),
        (b"binary_little_endian", b"binary_other_endian", "is damaged"),
        (b"property float x", b"property list uchar float x", "list property"),
        (b"property float x\n", b"property float y\n", "two properties with same name"),
        (b"property float opacity", b"property float opaqueness", "lacks opacity"),
        (b"f_rest_44", b"f_best_44", "has 44 f_rest properties"),
        (b"f_rest_44", b"f_rest_45", "lacks f_rest_44"),
        (b"property float nx", b"property float binding_1", "binding_1"),
        (b"property float x", b"property float128 x", "is damaged"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_gaussian_ply(damaged(tmp_path / "a.ply", old, new))
    assert str(tmp_path / "a.ply") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", np.nan, "vertex 2: x is nan"),
        ("f_rest_44", np.inf, "vertex 2: f_rest_44 is inf"),
        ("binding_0", np.nan, "vertex 2: binding_0 is nan"),
        ("binding_0", 1.5, "vertex 2: binding_0 is 1.5"),
        ("binding_0", -1.0, "vertex 2: binding_0 is -1"),
        ("binding_0", 10144.0, "vertex 2: binding_0 is 10144, expected a face from 0 to 10143"),
        ("binding_0", 1e30, "vertex 2: binding_0 is 1e\\+30"),
        ("rot_0", 0.0, "vertex 2: rot is zero"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, name: str, value: float, message: str) -> None:
    table = {p: np.zeros(4) for p in property_names(16, True)}
    table["rot_0"][:] = 1
    table[name][2] = value
    write_table(tmp_path / "a.ply", table)
    with pytest.raises(InputError, match=message):
        read_gaussian_ply(tmp_path / "a.ply", 10144)


def test_a_double_beyond_float32_is_named(tmp_path: Path) -> None:
    table = {p: np.full(1, 1e300 if p == "y" else 1.0) for p in property_names(1, False)}
    write_table(tmp_path / "a.ply", table, kind="f8")
    with pytest.raises(InputError, match="vertex 0: y is inf"):
        read_gaussian_ply(tmp_path / "a.ply")


def test_a_missing_file_or_a_folder_is_an_environment_fault(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.ply", tmp_path):
        with pytest.raises(EnvironmentFault, match="can't be read"):
            read_gaussian_ply(path)


def test_values_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    columns, binding = gaussians(5)
    columns["scales"][3, 1] = np.inf
    with pytest.raises(NumericalFault, match="vertex 3: scale_1 is inf"):
        write_gaussian_ply(tmp_path / "a.ply", columns, binding)
    assert not list(tmp_path.iterdir())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1), replacement=st.binary(max_size=12), cut=st.floats(0, 1))
def test_whatever_bytes_are_damaged_the_file_reads_or_is_refused(
    tmp_path: Path, position: float, replacement: bytes, cut: float
) -> None:
    path = tmp_path / "a.ply"
    columns, binding = gaussians(2, 0)
    write_gaussian_ply(path, columns, binding)
    data = path.read_bytes()
    start = int(position * len(data))
    data = data[:start] + replacement + data[start + len(replacement) :]
    path.write_bytes(data[: int(len(data) * (0.5 + cut / 2))] if cut < 0.5 else data)
    try:
        read, _ = read_gaussian_ply(path)
    except InputError:
        return
    assert all(np.isfinite(column).all() for column in read.values())
