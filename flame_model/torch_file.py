"""Read what `torch.save` wrote, without torch and without ever letting the file cause a call.

A torch file (PyTorch 1.6 and newer) is a zip archive of a pickle and one raw member per storage. The pickle goes
through `flame_model.pickle_reader`: a permitted global is an inert record. A tensor is rebuilt here as a view into the
bytes of its storage, after its type, size, strides and offset have been checked against that storage. torch's own
`weights_only` mode is no boundary for files of strangers: see CVE-2025-32434 and CVE-2026-24747.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flame_model.pickle_globals import ARRAY_GLOBALS, Globals
from flame_model.pickle_reader import Call, Global, Persistent, read_pickle
from flame_model.pickled_arrays import PickledArrays
from flame_model.stored_zip import MAX_FILE_BYTES, StoredZip, open_regular
from utils.errors import InputError

MAX_PICKLE_BYTES = 64 << 20  # numpy arrays lie inside the pickle
MAX_DIMENSIONS = 8
MAX_EMPTY = 1 << 40  # product of the other sides of a tensor without entries
STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "|b1",
}  # fmt: skip
TORCH_GLOBALS: Globals = {
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch._utils", "_rebuild_parameter"): "parameter",
    ("collections", "OrderedDict"): "mapping",
    **{("torch", name): code for name, code in STORAGES.items()},
    **ARRAY_GLOBALS,
}
"""Tensors and numpy arrays of plain numbers, and ordered dicts."""
ADVICE = "Only tensors, numpy arrays, numbers, text, lists, tuples and dicts are read from torch files."
LEGACY_ADVICE = "If you trust it, load it and save it again with PyTorch 1.6 or newer."
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")


def read_torch_file(path: Path, limit: int = MAX_FILE_BYTES) -> Any:
    """The content of a file that `torch.save` wrote.

    Args:
        path: a file in torch's zip form.
        limit: most bytes that it may have; as many may be held in memory.
    Returns:
        dicts (also for OrderedDict), lists, tuples, text, bytes, numbers, booleans and None, with read-only numpy
        arrays for tensors, parameters and arrays, and numbers for numpy scalars.
    Raises:
        InputError: another form, damaged, or asking for anything else; names the file and the entry or byte offset.
    """
    path = Path(path)
    with open_regular(path, limit) as (file, size):
        refuse_other_forms(file, path)
        archive = StoredZip(file, size, path)
        for name in ("constants.pkl", "code/__torch__.py"):
            if name in archive.members:
                raise InputError(path, name, "found a TorchScript model, expected data", "Save its state_dict instead.")
        if "data.pkl" not in archive.members:
            raise InputError(path, "data.pkl", "is missing from the archive", "It was not written by torch.save.")
        if "byteorder" in archive.members and (order := bounded(archive, "byteorder", 16, path)) != b"little":
            raise InputError(path, "byteorder", f"found {order!r}, expected b'little'", "Save it on another machine.")
        content = bounded(archive, "data.pkl", MAX_PICKLE_BYTES, path)
        start = archive.members["data.pkl"].start
        tree = read_pickle(content, path, TORCH_GLOBALS, start, persistent=True, advice=ADVICE)
        return _Values(archive, path, len(content)).value(tree, "")


def refuse_other_forms(file: BinaryIO, path: Path) -> None:
    """Name what the file is if it is not a zip archive."""
    head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return
    if _LEGACY_MAGIC in head[:32]:
        raise InputError(path, "byte 0", "found the form that torch wrote before version 1.6", LEGACY_ADVICE)
    if head[257:262] == b"ustar":
        raise InputError(path, "byte 0", "found the legacy .tar form of torch", LEGACY_ADVICE)
    raise InputError(path, "byte 0", "is not a file that torch.save wrote: expected a zip archive")


def bounded(archive: StoredZip, name: str, limit: int, path: Path) -> bytes:
    size = archive.members[name].size
    if size > limit:
        raise InputError(path, name, f"has {size} bytes, at most {limit} are read")
    return archive.read(name)


class _Values:
    """Second pass: records become values. A record that occurs in several places becomes one value."""

    def __init__(self, archive: StoredZip, path: Path, pickle_bytes: int) -> None:
        self.archive, self.path = archive, path
        self.arrays = PickledArrays(path, pickle_bytes)
        self._done: dict[int, tuple[Any, Any]] = {}  # keeps the record: an id is only unique while it lives
        self._storages: dict[str, bytes] = {}

    def value(self, record: Any, name: str) -> Any:
        """What `record` stands for; `name` is its place, for messages."""
        if record is None or type(record) in (bool, int, float, str, bytes):
            return record
        if id(record) not in self._done:
            self._done[id(record)] = (record, self._convert(record, name))
        return self._done[id(record)][1]

    def _convert(self, record: Any, name: str) -> Any:
        if type(record) is dict:
            return {key: self.value(item, f"{name}.{str(key)[:40]}".lstrip(".")) for key, item in record.items()}
        if type(record) in (list, tuple):
            return type(record)(self.value(item, f"{name}[{index}]") for index, item in enumerate(record))
        kind = record.function.kind if type(record) is Call else ""
        if kind == "mapping" and not record.arguments:
            return self._convert(record.items, name)
        if kind == "array":
            return self.arrays.array(record, name)
        if kind == "scalar":
            return self.arrays.array(record, name).item()
        if kind == "parameter" and len(record.arguments) == 3:
            return self._tensor(record.arguments[0], name)
        return self._tensor(record, name)

    def _tensor(self, call: Any, name: str) -> np.ndarray:
        """The tensor of a call of `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, more])`."""
        if type(call) is not Call or call.function.kind != "tensor" or len(call.arguments) not in (6, 7):
            raise self._error(call, name, f"{_shown(call)} where a value is expected", ADVICE)
        storage, offset, size, stride, _, _, *more = call.arguments
        if more and more[0]:  # marks a tensor as conjugated or negated
            raise self._error(call, name, "a tensor with metadata")
        flat = self._storage(storage, call, name)
        numbers = [offset, *size, *stride] if type(size) is type(stride) is tuple else [None]
        if any(type(number) is not int or number < 0 for number in numbers) or len(size) != len(stride):
            raise self._error(call, name, "a tensor with a malformed offset, size or stride")
        if len(size) > MAX_DIMENSIONS:
            raise self._error(call, name, f"a tensor of {len(size)} dimensions, at most {MAX_DIMENSIONS} are read")
        if 0 in size and math.prod(filter(None, size)) <= MAX_EMPTY:
            return np.zeros(size, flat.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 in size or math.prod(size) > len(flat) or last >= len(flat):
            problem = f"a tensor of size {_short(size)}, stride {_short(stride)}, offset {_short(offset)}"
            raise self._error(call, name, f"{problem} in a storage of {len(flat)} entries")
        steps = [step * flat.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
        return np.lib.stride_tricks.as_strided(flat[offset:], size, steps, writeable=False)

    def _storage(self, record: Any, call: Call, name: str) -> np.ndarray:
        """All entries of a storage, [n]."""
        parts: Any = record.name if type(record) is Persistent and type(record.name) is tuple else ()
        known = len(parts) == 5 and parts[0] == "storage" and type(parts[1]) is Global
        if not known or parts[1].kind not in STORAGES.values():
            raise self._error(call, name, "a tensor without a storage of a known type")
        _, token, key, _, count = parts
        if type(key) is not str or not (key.isascii() and key.isdecimal()) or type(count) is not int or count < 0:
            raise self._error(record, name, "a storage with a malformed key or size")
        member, dtype = f"data/{key}", np.dtype(token.kind)
        if member not in self.archive.members:
            raise self._error(record, name, f"a storage whose content {member[:40]} is missing")
        size = self.archive.members[member].size
        if size != count * dtype.itemsize:
            problem = f"a storage of {_short(count)} {dtype} in {size} bytes ({member})"
            raise self._error(record, name, f"{problem}, expected {_short(count * dtype.itemsize)}")
        if member not in self._storages:
            self._storages[member] = self.archive.read(member)
        flat = np.frombuffer(self._storages[member], dtype)
        if dtype.kind == "b" and size and flat.view(np.uint8).max() > 1:
            raise self._error(record, name, "a storage of booleans that are neither 0 nor 1")
        return flat

    def _error(self, record: Any, name: str, found: str, advice: str = "") -> InputError:
        offset = getattr(record, "offset", None)
        where = [part for part in (name[-100:], "" if offset is None else f"byte {offset}") if part]
        return InputError(self.path, ": ".join(where), f"found {found}", advice)


def _shown(record: Any) -> str:
    if type(record) is Call:
        return f"a call of '{record.function.name}'"
    return f"'{record.name}'" if type(record) is Global else f"a {type(record).__name__.lower()}"


def _short(number: Any) -> str:
    return str(number)[:60]
