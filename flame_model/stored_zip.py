"""The zip archives that torch writes: members stored as they are, under one folder. Every field is judged before use.

Python's own reader allocates what a damaged directory asks for and accepts members that overlap; here the sum of all
members is at most the file, because none may share a byte with another. Layout: PKWARE APPNOTE 6.3.10, sections 4.3.7
to 4.3.16.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from utils.errors import InputError

MAX_FILE_BYTES = 4 << 30
MAX_MEMBERS = 10_000
MAX_DIRECTORY_BYTES = 4 << 20
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_NAME = re.compile(r"[^/\\\x00-\x1f]+(?:/[^/\\\x00-\x1f]+)+")
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF  # "see the 64-bit record"


@dataclass(frozen=True)
class Member:
    """Where the content of a member lies in the file."""

    start: int
    size: int
    crc: int


@contextmanager
def open_regular(path: Path, limit: int = MAX_FILE_BYTES) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file of at most `limit` bytes, opened to read, and its size.

    Raises:
        InputError: no such file, not a regular file, unreadable or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a FIFO must not block us
    except (OSError, ValueError) as error:
        raise InputError(path, "", f"can't be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(path, "", "is not a regular file")
            if status.st_size > limit:
                raise InputError(path, "", f"has {status.st_size} bytes, at most {limit} are read")
            yield file, status.st_size
    except OSError as error:
        raise InputError(path, "", f"can't be read: {error.strerror or error}") from error


class StoredZip:
    """The members of an open archive, by their names below the one folder that holds them all.

    Raises:
        InputError: anything that torch does not write; names the file and the byte offset or the member.
    """

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self.file, self.size, self.path = file, size, path
        self.members = self._below_one_folder(self._entries(*self._directory()))

    def read(self, name: str) -> bytes:
        """The content of a member, its CRC checked."""
        member = self.members[name]
        content = self._bytes(member.start, member.size)
        if zlib.crc32(content) != member.crc:
            raise InputError(self.path, name, "fails its CRC", "Copy the file again.")
        return content

    def _bytes(self, start: int, count: int) -> bytes:
        if start < 0 or count > self.size - start:
            raise self._error(start, f"needs {count} bytes where {max(self.size - start, 0)} are left")
        self.file.seek(start)
        content = self.file.read(count)
        if len(content) != count:
            raise self._error(start, "the file became shorter while it was read")
        return content

    def _error(self, offset: int, problem: str) -> InputError:
        return InputError(self.path, f"byte {offset}", problem, "The file is damaged or cut off: copy it again.")

    def _directory(self) -> tuple[int, int, int]:
        """First byte, bytes and entries of the directory."""
        end = self.size - _END.size
        if end < 0 or not (record := self._bytes(end, _END.size)).startswith(b"PK\x05\x06"):
            raise self._error(max(end, 0), "found no end of a zip archive")
        _, disk, directory_disk, here, count, size, start, comment = _END.unpack(record)
        if comment:
            raise self._error(end, "found a comment at the end of the archive")
        if _FULL_16 in (here, count) or _FULL_32 in (size, start):
            signature, disk, at, _ = _LOCATOR_64.unpack(self._bytes(end - _LOCATOR_64.size, _LOCATOR_64.size))
            if signature != b"PK\x06\x07":
                raise self._error(end, "found no 64-bit end of a zip archive")
            record = self._bytes(at, _END_64.size)
            signature, _, _, _, disk, directory_disk, here, count, size, start = _END_64.unpack(record)
            if signature != b"PK\x06\x06":
                raise self._error(at, "found no 64-bit end of a zip archive")
        if disk or directory_disk or here != count:
            raise self._error(end, "found an archive of several parts")
        if count > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES or start + size > end:
            problem = f"found a directory of {count} members in {size} bytes at {start}"
            raise self._error(end, f"{problem}, expected at most {MAX_MEMBERS} in {MAX_DIRECTORY_BYTES} before this")
        return start, size, count

    def _entries(self, start: int, size: int, count: int) -> dict[str, Member]:
        directory, at = self._bytes(start, size), 0
        members: dict[str, Member] = {}
        for _ in range(count):
            if size - at < _ENTRY.size or not directory.startswith(b"PK\x01\x02", at):
                raise self._error(start + at, "found no directory entry")
            _, _, _, flags, method, _, _, crc, packed, length, *lengths, _, _, _, offset = _ENTRY.unpack_from(
                directory, at
            )
            ends = [at + _ENTRY.size + sum(lengths[:i]) for i in range(4)]
            if ends[3] > size:
                raise self._error(start + at, "found a directory entry that ends behind the directory")
            name = self._name(directory[ends[0] : ends[1]], start + at)
            packed, length, offset = self._wide(directory[ends[1] : ends[2]], (packed, length, offset), start + at)
            if name in members:
                raise InputError(self.path, name, "found this member twice, expected it once")
            if method or flags & 1 or packed != length:
                found = "an encrypted" if flags & 1 else "a compressed"
                raise InputError(self.path, name, f"found {found} member, expected it stored as it is")
            members[name] = Member(self._content(name, offset), length, crc)
            at = ends[3]
        self._refuse_overlap(members, start)
        return members

    def _name(self, raw: bytes, at: int) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeError as error:
            raise self._error(at, "found a member whose name is not UTF-8") from error
        if not _NAME.fullmatch(name) or {".", ".."} & set(name.split("/")):
            problem = f"found the member {name[:80]!r}, expected names like archive/data/0"
            raise InputError(self.path, f"byte {at}", problem)
        return name

    def _wide(self, extra: bytes, values: tuple[int, int, int], at: int) -> tuple[int, int, int]:
        """Packed size, size and offset, from the 64-bit extra field where the entry says so."""
        if _FULL_32 not in values:
            return values
        packed, length, offset = values
        while len(extra) >= 4:
            kind, size = struct.unpack_from("<2H", extra)
            if kind == 1 and 8 * values.count(_FULL_32) <= size <= len(extra) - 4:
                wide = iter(struct.unpack_from(f"<{size // 8}Q", extra, 4))
                length = next(wide) if length == _FULL_32 else length  # in this order
                packed = next(wide) if packed == _FULL_32 else packed
                return packed, length, next(wide) if offset == _FULL_32 else offset
            extra = extra[4 + size :]
        raise self._error(at, "found a directory entry without its 64-bit sizes")

    def _content(self, name: str, offset: int) -> int:
        """First byte of the content, behind a local header that says the same name."""
        header = _LOCAL.unpack(self._bytes(offset, _LOCAL.size))
        if header[0] != b"PK\x03\x04" or header[3]:
            raise self._error(offset, "found no header of a stored member")
        if self._bytes(offset + _LOCAL.size, header[9]) != name.encode():
            raise self._error(offset, f"found another name than {name} in the header of that member")
        return offset + _LOCAL.size + header[9] + header[10]

    def _refuse_overlap(self, members: dict[str, Member], end: int) -> None:
        headers = _LOCAL.size
        for name, member in sorted(members.items(), key=lambda item: item[1].start, reverse=True):
            if member.start + member.size > end:
                raise InputError(self.path, name, "overlaps what follows it", "The file is damaged: copy it again.")
            end = member.start - headers

    def _below_one_folder(self, members: dict[str, Member]) -> dict[str, Member]:
        folders = sorted({name.split("/", 1)[0] for name in members})
        if len(folders) != 1:
            raise InputError(self.path, "", f"found members in {len(folders)} folders, expected 1")
        return {name.split("/", 1)[1]: member for name, member in members.items()}
