"""Read a pickle without ever letting it cause a call.

A pickle is a program for a small stack machine. The machine here is our own: a permitted global becomes an inert
`Global`, a call of it an inert `Call` that merely keeps its arguments and state. `flame_model.pickled_arrays` turns
those records into numpy arrays in a second pass, after checking every size. There is no second parser whose opinion
could differ, and no class of ours or of another package is ever looked up, called or changed. Rules and bounds follow
the known weaknesses of allow-listing unpicklers: state set on classes, dotted names, huge lengths and memo indices,
nested and cyclic values.

Protocols 0 to 4 are read, and strings of Python 2 as latin1. References to things outside the pickle are recorded for
the one caller that asks for it, `flame_model.torch_file`; everywhere else they are refused.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flame_model.pickle_globals import MODEL_GLOBALS, Globals
from utils.errors import InputError

MAX_FILE_BYTES = 256 << 20
MAX_OPCODES = 100_000
MAX_DEPTH = 16
MAX_LINE = 256  # bytes of a number or name written as text
MAX_INTEGER = 16  # bytes
LONG_TEXT = 1 << 16  # bytes from which a text can only be array bytes
FLAME_ADVICE = (
    "Use the file as it comes from https://flame.is.tue.mpg.de; scripts/flame_globals.py lists what a file asks for"
)


@dataclass(frozen=True)
class Global:
    """A permitted name. `kind` says what it stands for; nothing is imported."""

    kind: str
    name: str
    offset: int


@dataclass(eq=False)
class Call:
    """What a pickle asked to be called: function, arguments and the state set afterwards. Never carried out."""

    function: Global
    arguments: tuple[Any, ...]
    offset: int
    state: Any = None
    has_state: bool = False
    items: dict[Any, Any] | None = None  # of a `mapping`, set one by one


@dataclass(frozen=True, eq=False)
class Persistent:
    """Something that a pickle keeps outside itself, by the name it has there. Never looked up here."""

    name: Any
    offset: int


@dataclass
class Listing:
    """What a pickle contains, found without loading it."""

    opcodes: dict[str, int] = field(default_factory=dict)
    globals: list[tuple[int, str, bool]] = field(default_factory=list)  # byte offset, "module name", permitted
    stopped: str = ""  # why the listing ends before the end of the pickle; empty if it does not


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most 256 MiB.

    Raises:
        InputError: no such file, not a regular file, unreadable or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a FIFO must not block us
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(path, "", "is not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise InputError(path, "", f"has {status.st_size} bytes, at most {MAX_FILE_BYTES} are read")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(status.st_size)  # a larger count would be allocated at once
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise InputError(path, "", f"can't be read: {getattr(error, 'strerror', None) or error}") from error


def read_pickle(
    data: bytes,
    source: Path,
    allowed: Globals = MODEL_GLOBALS,
    base: int = 0,
    *,
    persistent: bool = False,
    advice: str = FLAME_ADVICE,
) -> Any:
    """Interpret pickle bytes into plain containers, numbers, text, `Global`s, `Call`s and `Persistent`s.

    Args:
        data: the pickle (trailing bytes are not looked at).
        source: the file, for messages.
        allowed: permitted globals.
        base: offset of `data` in the file, for messages.
        persistent: whether the pickle may refer to things outside itself.
        advice: what to do about a global that is not permitted.

    Raises:
        InputError: anything not permitted or malformed; names the file and the byte offset.
    """
    machine = _Machine(data, source, allowed, base)
    machine.persistent, machine.advice = persistent, advice
    value = machine.run()
    _check_depth(value, source, base + machine.start)
    return value


def list_globals(path: Path, allowed: Globals = MODEL_GLOBALS) -> Listing:
    """Opcode counts and globals of a pickle file, permitted or not, without loading it.

    Raises:
        InputError: the file can't be read at all. Malformed content ends the listing and is named in `stopped`.
    """
    listing = Listing()
    try:
        _Machine(read_bytes(path), path, allowed, 0, listing).run()
    except InputError as error:
        if not listing.opcodes:
            raise
        listing.stopped = str(error)
    return listing


def _check_depth(root: Any, source: Path, offset: int) -> None:
    """Refuse nesting deeper than MAX_DEPTH; a cycle is endless nesting. A value is expanded at most once per depth."""
    deepest: dict[int, int] = {}
    pending = [(root, 1, offset)]
    while pending:
        value, depth, offset = pending.pop()
        if type(value) not in (Call, Persistent, dict, list, tuple) or deepest.get(id(value), 0) >= depth:
            continue
        if type(value) is Call:
            offset, children = value.offset, [*value.arguments, value.state, value.items]
        elif type(value) is Persistent:
            offset, children = value.offset, [value.name]
        else:
            children = list(value.values()) if type(value) is dict else list(value)
        if depth > MAX_DEPTH:
            problem = f"values are nested more than {MAX_DEPTH} deep, or contain themselves"
            raise InputError(source, f"byte {offset}", problem)
        deepest[id(value)] = depth
        pending.extend((child, depth + 1, offset) for child in children)


class _Machine:
    """The stack machine. Every handler bounds what it reads before it reads it."""

    def __init__(
        self,
        data: bytes,
        source: Path,
        allowed: Globals,
        base: int,
        listing: Listing | None = None,
    ) -> None:
        self.data, self.source, self.allowed, self.base, self.listing = data, source, allowed, base, listing
        self.at = 0  # next byte
        self.start = 0  # first byte of the current opcode
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}  # a dict: a huge index costs nothing
        self.persistent, self.advice = False, FLAME_ADVICE

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            self.start = self.at
            code = self.take(1)[0]
            name, handler = OPCODES.get(code, (f"0x{code:02x}", None))
            if self.listing is not None:
                self.listing.opcodes[name] = self.listing.opcodes.get(name, 0) + 1
            if name == "STOP":
                return self.pop()
            if handler is None or (name == "BINPERSID" and not self.persistent):
                advice = "Re-save the file with pickle protocol 4" if name in _PROTOCOL_5 else ""
                raise self.error(f"found the pickle opcode {name}, which is not permitted here", advice)
            handler(self)
        raise self.error(f"has more than {MAX_OPCODES} pickle opcodes")

    def error(self, problem: str, advice: str = "") -> InputError:
        return InputError(self.source, f"byte {self.base + self.start}", problem, advice)

    # -- reading

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise self.error(
                f"needs {count} bytes where {len(self.data) - self.at} are left: truncated or not a pickle"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def sized(self, size: int) -> bytes:
        return self.take(self.unsigned(size))

    def line(self, limit: int = MAX_LINE) -> bytes:
        end = self.data.find(b"\n", self.at, min(self.at + limit + 1, len(self.data)))
        if end < 0:
            raise self.error(f"found no line end within {limit} bytes")
        return self.take(end + 1 - self.at)[:-1]

    # -- stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.error("takes a value from an empty stack")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        del self.stack[-1]
        return value

    def pop_marked(self) -> list[Any]:
        if not self.marks:
            raise self.error("takes values down to a mark that was never set")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    # -- numbers and text

    def protocol(self) -> None:
        version = self.take(1)[0]
        if version > 4:
            advice = "Re-save it with pickle.dump(..., protocol=4)"
            raise self.error(f"is written in pickle protocol {version}, expected 0 to 4", advice)

    def frame(self) -> None:
        if self.unsigned(8) > len(self.data) - self.at:
            raise self.error("announces a frame longer than the file")

    def parsed(self, parse: Callable[[str], Any]) -> None:
        text = self.line()
        try:
            self.push(parse(text.decode("ascii")))
        except ValueError as error:
            raise self.error("holds a malformed number") from error

    def integer(self) -> None:
        booleans = {"00": False, "01": True}
        self.parsed(lambda text: booleans[text] if text in booleans else int(text))

    def sized_integer(self, size: int) -> None:
        raw = self.sized(size)
        if len(raw) > MAX_INTEGER:
            raise self.error(f"holds an integer of {len(raw)} bytes, at most {MAX_INTEGER} are read")
        self.push(int.from_bytes(raw, "little", signed=True))

    def text(self, size: int) -> None:
        raw = self.sized(size)
        # Only text that fits one byte per character may be long, else one wide character quadruples the memory.
        if len(raw) > LONG_TEXT and np.frombuffer(raw, np.uint8).max() > 0xC3:
            raise self.error(f"holds a text of {len(raw)} bytes that is not latin1")
        self.push(self.decoded(raw, "utf-8", "surrogatepass"))

    def text_line(self) -> None:
        raw = self.line(MAX_FILE_BYTES)
        if len(raw) > LONG_TEXT and re.search(rb"\\(?:U|u(?!00))", raw):
            raise self.error(f"holds a text of {len(raw)} bytes that is not latin1")
        self.push(self.decoded(raw, "raw-unicode-escape"))

    def quoted_line(self) -> None:
        """A Python 2 string in protocol 0: the repr of bytes."""
        raw = self.line(MAX_FILE_BYTES).strip()
        if len(raw) < 2 or raw[:1] not in (b"'", b'"') or raw[-1:] != raw[:1]:
            raise self.error("holds a string without quotes")
        # A run of backslashes pairs up from its beginning, so that what is left over starts an escape.
        if re.search(rb"\\(?!x[0-9a-fA-F]{2}|[abfnrtv'\"])", raw[1:-1].replace(rb"\\", b"__")):
            raise self.error("holds a string with a malformed escape")
        self.push(self.decoded(raw[1:-1], "unicode-escape"))

    def decoded(self, raw: bytes, encoding: str, errors: str = "strict") -> str:
        try:
            return raw.decode(encoding, errors)
        except UnicodeError as error:
            raise self.error(f"holds a malformed {encoding} text") from error

    # -- containers

    def tuple_of(self, count: int) -> None:
        self.push(tuple(reversed([self.pop() for _ in range(count)])))

    def extend_list(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise self.error("appends to something that is not a list")
        target.extend(values)

    def extend_dict(self, values: list[Any], target: Any) -> None:
        target = target.items if type(target) is Call else target
        if type(target) is not dict:
            raise self.error("sets items of something that is not a dict")
        if len(values) % 2:
            raise self.error("sets an item without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[self.hashable(key)] = value

    def extend_set(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not set:
            raise self.error("adds to something that is not a set")
        target.update(self.hashable(value) for value in values)

    def hashable(self, key: Any) -> Any:
        """Only scalars are hashed: hashing nested tuples can take exponential time."""
        if key is not None and type(key) not in (str, int, float, bool, bytes):
            raise self.error(f"uses a {type(key).__name__} as a key, expected a scalar")
        return key

    def new_dict(self) -> None:
        values, target = self.pop_marked(), {}
        self.extend_dict(values, target)
        self.push(target)

    # -- memo

    def index_line(self) -> int:
        raw = self.line(32)
        if not raw.isdigit():
            raise self.error("holds a malformed memo index")
        return int(raw)

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.error(f"recalls the memo {index}, which was never set")
        self.push(self.memo[index])

    # -- globals and calls, recorded only

    def find(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise self.error("names a global by something that is not text")
        kind = self.allowed.get((module, name))
        shown = f"{module[:80]} {name[:80]}"
        if self.listing is not None:
            self.listing.globals.append((self.base + self.start, shown, kind is not None))
            kind = kind or "refused"
        if kind is None:
            protocol_5 = name == "_frombuffer" and module in ("numpy._core.numeric", "numpy.core.numeric")
            advice = "Re-save it with pickle.dump(..., protocol=4)" if protocol_5 else self.advice
            raise self.error(f"asks for the global '{shown}', which is not permitted in this file", advice)
        self.push(Global(kind, shown, self.base + self.start))

    def global_lines(self) -> None:
        module, name = self.line(), self.line()
        self.find(self.decoded(module, "utf-8"), self.decoded(name, "utf-8"))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.find(module, name)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(function) is not Global:
            raise self.error("calls something that is not a permitted global")
        if type(arguments) is not tuple:
            raise self.error(f"calls '{function.name}' with arguments that are not a tuple")
        items = {} if function.kind == "mapping" else None
        self.push(Call(function, arguments, self.base + self.start, items=items))

    def persistent_id(self) -> None:
        self.push(Persistent(self.pop(), self.base + self.start))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if type(target) is not Call:
            raise self.error("sets the state of something that is not a new object")
        if target.has_state:
            raise self.error(f"sets the state of '{target.function.name}' twice")
        target.state, target.has_state = state, True


_PROTOCOL_5 = {"BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"}

Handler = Callable[[_Machine], object]
_HANDLERS: dict[str, tuple[bytes, Handler | None]] = {
    "STOP": (b".", None),
    "PROTO": (b"\x80", _Machine.protocol),
    "FRAME": (b"\x95", _Machine.frame),
    "MARK": (b"(", lambda m: m.marks.append(len(m.stack))),
    "POP": (b"0", lambda m: m.marks.pop() if m.marks and m.marks[-1] == len(m.stack) else m.pop()),
    "POP_MARK": (b"1", _Machine.pop_marked),
    "DUP": (b"2", lambda m: m.push(m.top())),
    "NONE": (b"N", lambda m: m.push(None)),
    "NEWTRUE": (b"\x88", lambda m: m.push(True)),
    "NEWFALSE": (b"\x89", lambda m: m.push(False)),
    "INT": (b"I", _Machine.integer),
    "LONG": (b"L", lambda m: m.parsed(lambda text: int(text.rstrip("L")))),
    "FLOAT": (b"F", lambda m: m.parsed(float)),
    "BININT": (b"J", lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True))),
    "BININT1": (b"K", lambda m: m.push(m.unsigned(1))),
    "BININT2": (b"M", lambda m: m.push(m.unsigned(2))),
    "LONG1": (b"\x8a", lambda m: m.sized_integer(1)),
    "LONG4": (b"\x8b", lambda m: m.sized_integer(4)),
    "BINFLOAT": (b"G", lambda m: m.push(struct.unpack(">d", m.take(8))[0])),
    "STRING": (b"S", _Machine.quoted_line),
    "BINSTRING": (b"T", lambda m: m.push(m.sized(4).decode("latin-1"))),
    "SHORT_BINSTRING": (b"U", lambda m: m.push(m.sized(1).decode("latin-1"))),
    "BINBYTES": (b"B", lambda m: m.push(m.sized(4))),
    "SHORT_BINBYTES": (b"C", lambda m: m.push(m.sized(1))),
    "BINBYTES8": (b"\x8e", lambda m: m.push(m.sized(8))),
    "UNICODE": (b"V", _Machine.text_line),
    "SHORT_BINUNICODE": (b"\x8c", lambda m: m.text(1)),
    "BINUNICODE": (b"X", lambda m: m.text(4)),
    "BINUNICODE8": (b"\x8d", lambda m: m.text(8)),
    "EMPTY_TUPLE": (b")", lambda m: m.push(())),
    "TUPLE": (b"t", lambda m: m.push(tuple(m.pop_marked()))),
    "TUPLE1": (b"\x85", lambda m: m.tuple_of(1)),
    "TUPLE2": (b"\x86", lambda m: m.tuple_of(2)),
    "TUPLE3": (b"\x87", lambda m: m.tuple_of(3)),
    "EMPTY_LIST": (b"]", lambda m: m.push([])),
    "LIST": (b"l", lambda m: m.push(m.pop_marked())),
    "APPEND": (b"a", lambda m: m.extend_list([m.pop()])),
    "APPENDS": (b"e", lambda m: m.extend_list(m.pop_marked())),
    "EMPTY_DICT": (b"}", lambda m: m.push({})),
    "DICT": (b"d", _Machine.new_dict),
    "SETITEM": (b"s", lambda m: m.extend_dict([m.pop(), m.pop()][::-1], m.top())),
    "SETITEMS": (b"u", lambda m: m.extend_dict(m.pop_marked(), m.top())),
    "EMPTY_SET": (b"\x8f", lambda m: m.push(set())),
    "ADDITEMS": (b"\x90", lambda m: m.extend_set(m.pop_marked())),
    "GLOBAL": (b"c", _Machine.global_lines),
    "STACK_GLOBAL": (b"\x93", _Machine.stack_global),
    "REDUCE": (b"R", _Machine.call),
    "NEWOBJ": (b"\x81", _Machine.call),
    "BUILD": (b"b", _Machine.build),
    "PUT": (b"p", lambda m: m.remember(m.index_line())),
    "BINPUT": (b"q", lambda m: m.remember(m.unsigned(1))),
    "LONG_BINPUT": (b"r", lambda m: m.remember(m.unsigned(4))),
    "MEMOIZE": (b"\x94", lambda m: m.remember(len(m.memo))),
    "GET": (b"g", lambda m: m.recall(m.index_line())),
    "BINGET": (b"h", lambda m: m.recall(m.unsigned(1))),
    "LONG_BINGET": (b"j", lambda m: m.recall(m.unsigned(4))),
    "BINPERSID": (b"Q", _Machine.persistent_id),  # only where the reader allows it
    # known and refused
    "PERSID": (b"P", None),
    "EXT1": (b"\x82", None),
    "EXT2": (b"\x83", None),
    "EXT4": (b"\x84", None),
    "INST": (b"i", None),
    "OBJ": (b"o", None),
    "NEWOBJ_EX": (b"\x92", None),
    "FROZENSET": (b"\x91", None),
    "BYTEARRAY8": (b"\x96", None),
    "NEXT_BUFFER": (b"\x97", None),
    "READONLY_BUFFER": (b"\x98", None),
}
OPCODES: Mapping[int, tuple[str, Handler | None]] = {
    code[0]: (name, handle) for name, (code, handle) in _HANDLERS.items()
}
"""byte -> (name, handler); None means refused."""
