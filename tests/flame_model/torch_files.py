"""Torch files made by hand: a zip writer that can lie in every field, and pickles of tensors assembled by opcode."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace

from tests.flame_model import hostile

FULL = 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """A member; fields that are None are told as they are."""

    name: str
    content: bytes
    method: int = 0
    flags: int = 0
    size: int | None = None  # in the directory, packed and unpacked
    unpacked: int | None = None
    offset: int | None = None
    crc: int | None = None
    local_name: str | None = None
    local_method: int | None = None
    wide: bool = False  # sizes and offset in the 64-bit extra field


def pack(
    entries: list[Entry], count: int | None = None, directory_size: int | None = None, wide: bool = False
) -> bytes:
    """A zip archive. `wide`: its end is told by the 64-bit record."""
    body, directory = b"", b""
    for entry in entries:
        name = entry.name.encode("utf-8", "surrogateescape")
        local = name if entry.local_name is None else entry.local_name.encode()
        crc = zlib.crc32(entry.content) if entry.crc is None else entry.crc
        size = len(entry.content) if entry.size is None else entry.size
        unpacked = size if entry.unpacked is None else entry.unpacked
        offset = len(body) if entry.offset is None else entry.offset
        method = entry.method if entry.local_method is None else entry.local_method
        head = struct.pack("<5H3I2H", 20, entry.flags, method, 0, 0, crc, size & FULL, unpacked & FULL, len(local), 0)
        body += b"PK\x03\x04" + head + local + entry.content
        extra = b""
        if entry.wide:
            extra = struct.pack("<2H3Q", 1, 24, unpacked, size, offset)
            size = unpacked = offset = FULL
        directory += b"PK\x01\x02" + struct.pack(
            "<6H3I5H2I", 20, 20, entry.flags, entry.method, 0, 0, crc, size & FULL, unpacked & FULL, len(name),
            len(extra), 0, 0, 0, 0, offset & FULL,
        )  # fmt: skip
        directory += name + extra
    count = len(entries) if count is None else count
    size, start = len(directory) if directory_size is None else directory_size, len(body)
    content = body + directory
    if wide:
        record = len(content)
        content += b"PK\x06\x06" + struct.pack("<Q2H2I4Q", 44, 20, 20, 0, 0, count, count, size, start)
        content += b"PK\x06\x07" + struct.pack("<IQI", 0, record, 1)
        return content + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, FULL, FULL, 0)
    return content + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, count & 0xFFFF, count & 0xFFFF, size & FULL, start, 0)


def torch_file(pickle: bytes, storages: dict[str, bytes] | None = None, byteorder: bytes | None = b"little") -> bytes:
    """A file as torch.save packs it."""
    members = {"data.pkl": pickle, "version": b"3\n"} | ({} if byteorder is None else {"byteorder": byteorder})
    members |= {f"data/{key}": content for key, content in (storages or {}).items()}
    return pack([Entry(f"archive/{name}", content) for name, content in members.items()])


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else hostile.long_integer(value)


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(integer(value) for value in values) + b"t"


@dataclass(frozen=True)
class Tensor:
    """The pickle of a tensor; bytes replace a part by anything."""

    module: str = "torch"
    storage: str = "FloatStorage"
    tag: str = "storage"
    key: bytes = hostile.text("0")
    count: bytes = integer(6)
    offset: bytes = integer(0)
    size: bytes = integers((2, 3))
    stride: bytes = integers((3, 1))
    more: bytes = b""  # after the hooks
    persistent: bytes | None = None  # instead of the storage

    @property
    def pickle(self) -> bytes:
        parts = hostile.text(self.tag) + hostile.named(self.module, self.storage) + self.key + hostile.text("cpu")
        storage = b"(" + parts + self.count + b"tQ" if self.persistent is None else self.persistent
        rest = b"\x89" + hostile.called(hostile.named("collections", "OrderedDict"))
        function = hostile.named("torch._utils", "_rebuild_tensor_v2")
        return hostile.called(function, storage, self.offset, self.size, self.stride, rest + self.more)

    def file(self, storages: dict[str, bytes] | None = None) -> bytes:
        """A file that holds {"x": this tensor}."""
        content = {"0": struct.pack("<6f", *range(6))} if storages is None else storages
        return torch_file(b"\x80\x02}" + hostile.text("x") + self.pickle + b"s.", content)


def bad_tensors() -> dict[str, bytes]:
    """Tensors that contradict their storage, or are none."""
    good, far = Tensor(), 1 << 62
    many = b"(" + b"K\x01" * 9 + b"t"
    cases = {
        "longer than the storage": replace(good, size=integers((3, 3))),
        "1 TiB": replace(good, size=integers((1 << 38,)), stride=integers((1,))),
        "1 TiB of one number": replace(good, size=integers((1 << 38,)), stride=integers((0,))),
        "expanded": replace(good, size=integers((4, 3)), stride=integers((0, 1))),
        "product overflows": replace(good, size=integers((far, far, far)), stride=integers((0, 0, 0))),
        "stride beyond": replace(good, stride=integers((4, 1))),
        "negative stride": replace(good, stride=integers((-3, 1)), offset=integer(3)),
        "huge stride": replace(good, stride=integers((far, 1))),
        "negative size": replace(good, size=integers((-2, -3))),
        "offset beyond": replace(good, offset=integer(1)),
        "offset negative": replace(good, offset=integer(-1)),
        "offset huge": replace(good, offset=integer(far)),
        "offset boolean": replace(good, offset=b"\x88"),
        "offset text": replace(good, offset=hostile.text("0")),
        "fewer strides": replace(good, stride=integers((1,))),
        "size a list": replace(good, size=b"]"),
        "size boolean": replace(good, size=b"\x88\x88\x86"),
        "9 dimensions": replace(good, size=many, stride=many),
        "empty with a huge side": replace(good, size=integers((0, far)), stride=integers((0, 0))),
        "conjugated": replace(good, more=b"}" + hostile.text("conj") + b"\x88s"),
        "eight arguments": replace(good, more=b"NN"),
        "no storage": replace(good, persistent=b"N"),
        "storage a number": replace(good, persistent=b"K\x01Q"),
        "storage a tensor": replace(good, persistent=good.pickle),
        "short persistent id": replace(good, persistent=hostile.text("storage") + b"\x85Q"),
        "another tag": replace(good, tag="module"),
        "storage of another type": replace(good, module="numpy", storage="ndarray"),
        "count of another content": replace(good, count=integer(5), size=integers((1,)), stride=integers((1,))),
        "count huge": replace(good, count=hostile.long_integer(far)),
        "count negative": replace(good, count=integer(-6)),
        "count boolean": replace(good, count=b"\x88"),
        "wider type": replace(good, storage="DoubleStorage"),
        "missing content": replace(good, key=hostile.text("7")),
        "key with a path": replace(good, key=hostile.text("../data.pkl")),
        "key a number": replace(good, key=b"K\x00"),
        "key in other digits": replace(good, key=hostile.text("\u0660")),
    }
    files = {name: case.file() for name, case in cases.items()}
    files["booleans of 2"] = replace(good, storage="BoolStorage").file({"0": b"\0\1\0\1\2\0"})
    return files


def bad_archives() -> dict[str, bytes]:
    """A good pickle in archives that torch does not write."""
    pickle, data = Entry("archive/data.pkl", b"\x80\x02K\x01."), Entry("archive/data/0", bytes(24))
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = bomb.compress(bytes(10_000_000)) + bomb.flush()
    after = 30 + len(pickle.name) + len(pickle.content)
    good = pack([pickle, data])
    return {
        "compressed": pack([pickle, replace(data, method=8, content=packed, unpacked=10_000_000)]),
        "compressed to its size": pack([pickle, replace(data, method=8, content=packed)]),
        "compressed in the directory alone": pack([pickle, replace(data, method=8, local_method=0)]),
        "compressed in its header": pack([pickle, replace(data, local_method=8)]),
        "encrypted": pack([pickle, replace(data, flags=1)]),
        "unpacks to more": pack([pickle, replace(data, unpacked=1 << 31)]),
        "twice": pack([pickle, pickle]),
        "overlapping": pack([replace(pickle, size=40, crc=zlib.crc32(good[after - 5 : after + 35])), data]),
        "into the directory": pack([pickle, replace(data, size=25)]),
        "behind the end": pack([pickle, replace(data, size=1 << 31)]),
        "content of another": pack([pickle, replace(data, offset=0)]),
        "offset behind the end": pack([pickle, replace(data, offset=1 << 31)]),
        "offset behind 2^63": pack([pickle, replace(data, offset=1 << 63, wide=True)]),
        "offset inside": pack([pickle, replace(data, offset=after + 1)]),
        "another name in its header": pack([pickle, replace(data, local_name="archive/data/1")]),
        "wrong CRC": pack([replace(pickle, crc=1)]),
        "path upwards": pack([pickle, replace(data, name="archive/../../x")]),
        "absolute path": pack([pickle, replace(data, name="/archive/x")]),
        "backslashes": pack([pickle, replace(data, name="archive\\data\\0")]),
        "NUL in a name": pack([pickle, replace(data, name="archive/data\0/0")]),
        "line end in a name": pack([pickle, replace(data, name="archive/da\nerror: x/0")]),
        "name not UTF-8": pack([pickle, replace(data, name="archive/\udcff")]),
        "folder": pack([pickle, replace(data, name="archive/data/")]),
        "two folders": pack([pickle, replace(data, name="other/data/0")]),
        "no folder": pack([replace(pickle, name="data.pkl")]),
        "no pickle": pack([data]),
        "no members": pack([]),
        "fewer entries than it says": pack([pickle], count=2),
        "two million entries": pack([pickle], count=2_000_000, wide=True),
        "directory of 2 GiB": pack([pickle], directory_size=1 << 31),
        "directory of 2^63": pack([pickle], directory_size=1 << 63, wide=True),
        "several disks": good[:-18] + b"\1\0" + good[-16:],
        "a comment": good[:-2] + b"\1\0!",
        "something behind": good + b"PK",
        "torchscript": pack([pickle, replace(data, name="archive/constants.pkl")]),
        "big-endian": torch_file(pickle.content, {}, b"big"),
        "huge byte order": torch_file(pickle.content, {}, b"little" * 1000),
    }
