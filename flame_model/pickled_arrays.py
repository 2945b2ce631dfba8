"""Second pass over a safely read pickle: inert records become numpy arrays, after every size has been checked.

Understands numpy arrays and scalars, chumpy objects (their `x`) and scipy CSC/CSR matrices, without these packages.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from flame_model.pickle_reader import Call, Global
from utils.errors import InputError

DTYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"b1", "f2", "f4", "f8"}
BYTE_ORDERS = {"<": "<", ">": ">", "=": "=", "|": "="}
MAX_DIMENSIONS = 8


class PickledArrays:
    """Turns the records of one file into arrays. Together they never exceed the size of the file.

    Args:
        source: the file, for messages.
        budget: its size in bytes.
    """

    def __init__(self, source: Path, budget: int) -> None:
        self.source = source
        self.budget = budget
        self._done: dict[int, tuple[Call, np.ndarray]] = {}  # keeps the record: an id is only unique while it lives

    def array(self, value: Any, name: str, dense_limit: int = 1 << 20) -> np.ndarray:
        """The array that `value` stands for, in the dtype of the file; read-only unless it was sparse.

        Args:
            value: what `read_pickle` returned for it.
            name: of the field, for messages.
            dense_limit: most entries that a sparse matrix may have when written out.

        Raises:
            InputError: not an array, or its parts contradict each other; names the file, field and byte offset.
        """
        if type(value) is not Call:
            raise InputError(self.source, name, f"found {_name(value)}, expected an array")
        if id(value) not in self._done:
            self._done[id(value)] = (value, self._convert(value, name, dense_limit))
        return self._done[id(value)][1]

    def _convert(self, call: Call, name: str, dense_limit: int) -> np.ndarray:
        kind, arguments = call.function.kind, call.arguments
        if kind == "array":
            return self._ndarray(call, name)
        if kind == "scalar":
            if len(arguments) != 2:
                raise self._error(call, name, "a scalar with other than 2 arguments")
            return self._from_raw(call, name, (), arguments[0], arguments[1])
        if kind == "instance":  # protocols 0 and 1: copy_reg._reconstructor(class, object, None)
            if len(arguments) != 3 or not _is_global(arguments[0]) or not _is_global(arguments[1], "object"):
                raise self._error(call, name, "an instance that is not built from a permitted class")
            kind = arguments[0].kind
        elif arguments:
            raise self._error(call, name, f"'{call.function.name}' with arguments, expected none")
        state = call.state
        if type(state) is not dict or kind not in ("chumpy", "csc", "csr"):
            raise self._error(call, name, f"'{call.function.name}' where an array is expected")
        if kind == "chumpy":
            if "x" not in state:
                raise self._error(call, name, "a chumpy object without its value x")
            return self.array(state["x"], name, dense_limit)
        return self._sparse(call, name, state, kind == "csr", dense_limit)

    def state_of_array(self, call: Call, name: str) -> tuple[tuple[int, ...], Any, bool, Any]:
        """(shape, dtype record, Fortran order, raw content) of a pickled ndarray, shape checked."""
        arguments, state = call.arguments, call.state
        if call.function.kind != "array" or not arguments or not _is_global(arguments[0], "ndarray"):
            raise self._error(call, name, "an array that is not a plain numpy.ndarray")
        if type(state) is not tuple or len(state) != 5 or type(state[1]) is not tuple:
            raise self._error(call, name, "an array without its 5-part state")
        shape = state[1]
        if len(shape) > MAX_DIMENSIONS or any(type(size) is not int or size < 0 for size in shape):
            raise self._error(call, name, "an array with a malformed shape")
        return shape, state[2], bool(state[3]), state[4]

    def _ndarray(self, call: Call, name: str) -> np.ndarray:
        shape, dtype, fortran, raw = self.state_of_array(call, name)
        return self._from_raw(call, name, shape, dtype, raw, fortran)

    def _from_raw(
        self, call: Call, name: str, shape: tuple[int, ...], dtype: Any, raw: Any, fortran: bool = False
    ) -> np.ndarray:
        data_type = self._dtype(call, name, dtype)
        content = self._raw(call, name, raw)
        expected = math.prod(shape) * data_type.itemsize
        if len(content) != expected:
            raise self._error(call, name, f"{len(content)} bytes for shape {shape} {data_type}, expected {expected}")
        self.budget -= expected
        if self.budget < 0:
            raise self._error(call, name, "arrays that together are larger than the file")
        if expected == 0:
            if len(shape) != 1:
                raise self._error(call, name, f"an empty array of shape {shape}")
            return np.zeros(0, data_type)
        return np.frombuffer(content, data_type).reshape(shape, order="F" if fortran else "C")

    def _dtype(self, call: Call, name: str, record: Any) -> np.dtype:
        if not (type(record) is Call and record.function.kind == "dtype" and record.arguments):
            raise self._error(call, name, "an array without a numpy.dtype")
        code, state = record.arguments[0], record.state
        if type(code) is not str or code not in DTYPES:
            shown = f"'{code[:20]}'" if type(code) is str else _name(code)
            raise self._error(record, name, f"the data type {shown}, expected plain numbers")
        order = state[1] if type(state) is tuple and len(state) > 1 else None
        if type(order) is not str or order not in BYTE_ORDERS:
            raise self._error(record, name, "a data type with a malformed byte order")
        return np.dtype(BYTE_ORDERS[order] + code)

    def _raw(self, call: Call, name: str, raw: Any) -> bytes:
        if type(raw) is Call and raw.function.kind == "encode":
            if len(raw.arguments) != 2 or type(raw.arguments[0]) is not str or raw.arguments[1] != "latin1":
                raise self._error(raw, name, "an encoding other than (text, 'latin1')")
            raw = raw.arguments[0]
        if type(raw) is str:  # bytes written by Python 2, or by Python 3 in a protocol without bytes
            try:
                return raw.encode("latin-1")
            except UnicodeError as error:
                raise self._error(call, name, "array bytes with characters beyond latin1") from error
        if type(raw) is not bytes:
            raise self._error(call, name, f"{_name(raw)} where array bytes are expected")
        return raw

    def _sparse(self, call: Call, name: str, state: dict[Any, Any], by_row: bool, dense_limit: int) -> np.ndarray:
        shape = state.get("_shape", state.get("shape"))
        if type(shape) is not tuple or len(shape) != 2 or any(type(size) is not int or size < 0 for size in shape):
            raise self._error(call, name, "a sparse matrix with a malformed shape")
        rows, columns = shape
        if rows * columns > dense_limit or max(shape) > dense_limit:
            raise self._error(call, name, f"a sparse matrix of shape {shape}, expected at most {dense_limit} entries")
        parts = {key: self.array(state.get(key), f"{name}.{key}") for key in ("data", "indices", "indptr")}
        data, indices, starts = parts["data"], parts["indices"], parts["indptr"]
        majors, minors = (rows, columns) if by_row else (columns, rows)
        problem = _sparse_problem(data, indices, starts, majors, minors)
        if problem:
            raise self._error(call, name, f"a sparse matrix with {problem}")
        major = np.repeat(np.arange(majors), np.diff(starts.astype(np.int64)))
        minor = indices.astype(np.int64)
        dense = np.zeros(shape, np.float64)
        np.add.at(dense, (major, minor) if by_row else (minor, major), data.astype(np.float64))  # duplicates add up
        return dense

    def _error(self, call: Call, name: str, found: str) -> InputError:
        return InputError(self.source, f"{name}: byte {call.offset}", f"found {found}")


class ArrayFields:
    """Fetches entries of a safely read dict as arrays of a given kind and shape.

    Args:
        fields: what `read_pickle` returned.
        path: the file, for messages.
        size: its size in bytes, which all arrays together don't exceed.
    """

    def __init__(self, fields: dict[Any, Any], path: Path, size: int) -> None:
        self.fields, self.path, self.arrays = fields, path, PickledArrays(path, size)

    def array(self, name: str, shape: tuple[int | None, ...], dense_limit: int = 0) -> np.ndarray:
        """The entry `name`, not empty, of `shape` (None: any size); sparse only if `dense_limit` entries allow it.

        Raises:
            InputError: missing, not an array, or of another shape; names the file and the field.
        """
        if name not in self.fields:
            raise InputError(self.path, name, "this entry is missing")
        array = self.arrays.array(self.fields[name], name, dense_limit)
        fits = array.ndim == len(shape) and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits or 0 in array.shape:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise InputError(self.path, name, f"found shape {array.shape}, expected ({wanted})")
        return array

    def floats(self, name: str, shape: tuple[int | None, ...], dense_limit: int = 0) -> np.ndarray:
        """Like `array`, as finite float32 in C order."""
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.array(self.array(name, shape, dense_limit), np.float32, order="C")  # a copy, writable
        finite = np.isfinite(array)
        if not finite.all():
            index = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise InputError(self.path, name, f"found a value that is not a finite float32 at {index}")
        return array

    def integers(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Like `array`, as int64 in C order; floats are refused."""
        array = self.array(name, shape)
        if array.dtype.kind not in "iu":
            raise InputError(self.path, name, f"found {array.dtype} values, expected integers")
        return np.ascontiguousarray(array.astype(np.int64))


def _sparse_problem(data: np.ndarray, indices: np.ndarray, starts: np.ndarray, majors: int, minors: int) -> str:
    """What contradicts the compressed sparse format; empty if nothing does."""
    if data.ndim != 1 or indices.shape != data.shape or starts.shape != (majors + 1,):
        return "parts of contradicting lengths"
    if indices.dtype.kind not in "iu" or starts.dtype.kind not in "iu":
        return "indices that are not integers"
    if starts[0] != 0 or starts[-1] != len(data) or (starts[1:] < starts[:-1]).any():
        return "row or column starts that do not rise from 0 to the number of entries"
    if len(indices) and (indices.min() < 0 or indices.max() >= minors):
        return f"an index outside 0 to {minors - 1}"
    return ""


def _is_global(value: Any, kind: str | None = None) -> bool:
    return type(value) is Global and (kind is None or value.kind == kind)


def _name(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
