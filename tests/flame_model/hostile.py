"""Hostile and broken pickles, assembled opcode by opcode. Each must be refused with the byte offset; none may act."""

from __future__ import annotations

import pickle
import struct

from tests.flame_model.synthetic import Python2

GIB = 1 << 30
_write = Python2(2)


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def stacked(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def as_field(value: bytes) -> bytes:
    """A model file whose first field is `value`."""
    return b"\x80\x02}" + text("v_template") + value + b"s."


def dtype(code: str = "f8", order: str = "<") -> bytes:
    state = _write.tuple(b"K\x03", text(order), b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00")
    return called(named("numpy", "dtype"), text(code), b"K\x00", b"K\x01") + state + b"b"


def array(shape: bytes, raw: bytes, data_type: bytes | None = None, first: bytes | None = None) -> bytes:
    first = named("numpy", "ndarray") if first is None else first
    empty = called(named("numpy.core.multiarray", "_reconstruct"), first, b"K\x00\x85", text("b"))
    return empty + _write.tuple(b"K\x01", shape, dtype() if data_type is None else data_type, b"\x89", raw) + b"b"


def long_integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def calls(marker: str) -> dict[str, bytes]:
    """Files that would create the file `marker` in a reader that makes calls, and calls of what is not on the list."""
    command = f"touch {marker}"
    opened = f"open({marker!r}, 'w')"
    forbidden = {
        "os.system": ("os", "system", command),
        "posix.system": ("posix", "system", command),
        "builtins.eval": ("builtins", "eval", opened),
        "builtins.exec": ("builtins", "exec", opened),
        "python 2 eval": ("__builtin__", "eval", opened),
        "subprocess.getoutput": ("subprocess", "getoutput", command),
        "pty.spawn": ("pty", "spawn", command),
        "runpy": ("runpy", "run_path", marker),
        "numpy runstring": ("numpy.testing", "runstring", opened),
        "torch bytes": ("torch.storage", "_load_from_bytes", opened),
        "whole module": ("numpy.core.multiarray", "fromfile", marker),
        "ordered dict outside landmarks": ("collections", "OrderedDict", "x"),
        "chumpy select": ("chumpy.reordering", "Select", "x"),
        "protocol 5 arrays": ("numpy._core.numeric", "_frombuffer", "x"),
        "new line in the name": ("os", "system\r", command),
        "unicode look-alike": ("numpy", "ndarrаy", "x"),
    }
    files = {}
    for name, (module, function, argument) in forbidden.items():
        files[f"{name}, global"] = called(named(module, function), text(argument)) + b"."
        files[f"{name}, stack global"] = b"\x80\x04" + called(stacked(module, function), text(argument)) + b"."
    dotted = [
        ("builtins", "set.__subclasses__"),
        ("numpy", "ndarray.__class__.__base__"),
        ("builtins", "object.__init__"),
    ]
    dotted += [("numpy.core.multiarray", "_reconstruct.__globals__"), ("builtins", "len.__self__.eval")]
    for module, name in dotted:
        files[f"dotted {module} {name}"] = b"\x80\x04" + called(stacked(module, name), text(command)) + b"."
    files["inside a field"] = as_field(called(named("os", "system"), text(command)))
    files["inst"] = b"(" + text(command) + b"ios\nsystem\n."
    files["obj"] = b"(" + named("numpy", "ndarray") + text(command) + b"o."
    return files


def opcodes() -> dict[str, bytes]:
    """Refused, malformed or over-sized opcodes, and stacks that do not hold what an opcode takes."""
    return {**refused_opcodes(), **broken_stacks()}


def refused_opcodes() -> dict[str, bytes]:
    """Opcodes that are never accepted, and lengths or digits beyond reason."""
    huge = struct.pack("<Q", 2 * GIB)
    ndarray = named("numpy", "ndarray")
    return {
        "empty": b"",
        "text": b"hello\n",
        "zip": b"PK\x03\x04" + bytes(60),
        "persistent id": b"Pmodule\n.",
        "binary persistent id": b"K\x01Q.",
        "extension 1": b"\x82\x01.",
        "extension 2": b"\x83\x01\x00.",
        "extension 4": b"\x84\x01\x00\x00\x00.",
        "newobj_ex": b"\x80\x04" + ndarray + b")}\x92.",
        "frozenset": b"\x80\x04(\x91.",
        "bytearray8 of 2 GiB": b"\x80\x04\x96" + huge,
        "bytearray8": b"\x80\x04\x96" + struct.pack("<Q", 1) + b"x.",
        "out-of-band buffer": b"\x80\x04\x97.",
        "read-only buffer": b"\x80\x04\x98.",
        "protocol 5": pickle.dumps({}, 5),
        "protocol 255": b"\x80\xff}.",
        "bytes8 of 2 GiB": b"\x8e" + huge,
        "bytes8 of 2^64": b"\x8e" + b"\xff" * 8,
        "unicode8 of 2 GiB": b"\x8d" + huge,
        "bytes of 4 GiB": b"B\xff\xff\xff\xff",
        "string of 4 GiB": b"T\xff\xff\xff\xff",
        "frame of 2 GiB": b"\x80\x04\x95" + huge + b"}.",
        "integer of 4 GiB": b"\x8b\xff\xff\xff\xff",
        "integer of 255 bytes": b"\x8a\xff" + b"\x7f" * 255 + b".",
        "a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
        "a million digits long": b"L" + b"9" * 1_000_000 + b"L\n.",
        "malformed integer": b"Iseven\n.",
        "malformed float": b"F1.0.0\n.",
        "unquoted string": b"Shello\n.",
        "open string": b"S'hello\n.",
        "bad escape": b"S'\\u1234'\n.",
        "named unicode": b"S'\\N{BULLET}'\n.",
        "bad utf-8": b"X\x02\x00\x00\x00\xc3\x28.",
        "wide text": b"X" + struct.pack("<I", 1_000_004) + b"x" * 1_000_000 + "\U0001f600".encode() + b".",
        "wide text line": b"V" + b"x" * 1_000_000 + b"\\U0001f600\n.",
    }


def broken_stacks() -> dict[str, bytes]:
    """Well-formed opcodes on a stack or memo that does not hold what they take."""
    ndarray = named("numpy", "ndarray")
    return {
        "stack underflow": b".",
        "reduce of nothing": b"R.",
        "pop of nothing": b"0.",
        "pop below a mark": b"K\x01(\x85.",
        "tuple without mark": b"t.",
        "dict of one": b"(K\x01d.",
        "memo never set": b"h\x07.",
        "memo index far away": b"j\xff\xff\xff\xff.",
        "malformed memo index": b"g-1\n.",
        "truncated": pickle.dumps({"v_template": [1.5] * 20}, 2)[:-20],
        "a list as key": b"}]K\x01s.",
        "a tuple as key": b"})K\x01s.",
        "set of lists": b"\x80\x04\x8f(]\x90.",
        "items of a tuple": b")K\x01K\x01s.",
        "items of a call": ndarray + b")\x81" + b"K\x01K\x01s.",
        "append to a tuple": b")K\x01a.",
        "append to a call": ndarray + b")\x81K\x01a.",
        "add to a list": b"](K\x01\x90.",
        "call of text": text("os.system") + b")R.",
        "call of a call": ndarray + b")R)R.",
        "arguments not a tuple": ndarray + b"]R.",
        "build on a global": ndarray + b"}" + text("__reduce__") + text("x") + b"sb.",
        "build on a dict": b"}}b.",
        "build twice": ndarray + b")\x81}b}b.",
        "stack global of numbers": b"\x80\x04K\x01K\x02\x93.",
        "too many opcodes": b"N0" * 60_000 + b"N.",
        "deep list": b"]" * 40 + b"a" * 39 + b".",
        "list in itself": b"]q\x00h\x00a.",
        "dict in itself": b"}q\x00" + text("x") + b"h\x00s.",
        "tuple of itself": b"](h\x00tq\x00a."[:1] + b"q\x00h\x00\x85a.",
        "chumpy of itself": as_field(named("chumpy.ch", "Ch") + b")\x81q\x00}" + text("x") + b"h\x00sb"),
        "laughing lists": b"]q\x00" + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(30)) + b".",
    }


def records() -> dict[str, bytes]:
    """Well-formed pickles whose records contradict themselves; refused when they are turned into arrays."""
    raw, one = b"C\x08" + bytes(8), b"K\x01\x85"
    encode = named("_codecs", "encode")
    shapes = {
        "1 TiB": long_integer(1 << 37) + b"\x85",
        "product overflows": long_integer(1 << 62) * 4,
        "negative": b"J\xff\xff\xff\xff\x85",
        "boolean": b"\x88\x85",
        "float": b"G" + struct.pack(">d", 1.0) + b"\x85",
        "text": text("1") + b"\x85",
        "not a tuple": b"K\x01",
        "33 dimensions": b"(" + b"K\x01" * 33 + b"t",
        "empty with a huge side": b"K\x00" + long_integer(1 << 62) + b"\x86",
    }
    shapes["product overflows"] = b"(" + shapes["product overflows"] + b"t"
    fields = {f"shape {name}": array(shape, b"C\x00" if "empty" in name else raw) for name, shape in shapes.items()}
    for code in ("O8", "V8", "S8", "U2", "M8", "m8", "c16", "f16", "i3", "", "f8,f8", "float64"):
        fields[f"dtype {code}"] = array(one, raw, dtype(code))
    reconstruct = called(
        named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"), b"K\x00\x85", text("b")
    )
    fields |= {
        "byte order": array(one, raw, dtype("f8", "!")),
        "dtype without state": array(one, raw, called(named("numpy", "dtype"), text("f8"), b"K\x00", b"K\x01")),
        "dtype is the token": array(one, raw, named("numpy", "dtype")),
        "dtype is text": array(one, raw, text("f8")),
        "array of another class": array(one, raw, first=named("chumpy.ch", "Ch")),
        "array of text": array(one, raw, first=text("ndarray")),
        "array without state": reconstruct,
        "array with a dict as state": reconstruct + b"}b",
        "array with a short state": reconstruct + b"K\x01\x85b",
        "raw too short": array(one, b"C\x07" + bytes(7)),
        "raw a list": array(one, b"]"),
        "raw beyond latin1": array(one, text("\u4e2d" * 8)),
        "raw encoded otherwise": array(one, called(encode, text("x" * 8), text("rot13"))),
        "raw encoded with errors": array(one, called(encode, text("x" * 8), text("latin1"), text("ignore"))),
        "raw encoded twice": array(one, called(encode, called(encode, text("x" * 8), text("latin1")), text("latin1"))),
        "scalar too short": called(named("numpy.core.multiarray", "scalar"), dtype(), b"C\x01x"),
        "scalar of one argument": called(named("numpy.core.multiarray", "scalar"), dtype()),
        "set as array": called(named("builtins", "set"), b"]"),
        "encode as array": called(encode, text("x"), text("latin1")),
        "chumpy without x": named("chumpy.ch", "Ch") + b")\x81}b",
        "chumpy without state": named("chumpy.ch", "Ch") + b")\x81",
        "chumpy with arguments": called(named("chumpy.ch", "Ch"), b"K\x01") + b"}b",
        "instance of text": called(named("copy_reg", "_reconstructor"), text("x"), named("builtins", "object"), b"N"),
        "instance with another base": called(
            named("copy_reg", "_reconstructor"), named("chumpy.ch", "Ch"), named("chumpy.ch", "Ch"), b"N"
        ),
        "sparse without parts": named("scipy.sparse.csc", "csc_matrix")
        + b")\x81}" + text("_shape") + b"K\x05K\x05\x86sb",
        "sparse of a huge shape": named("scipy.sparse.csr", "csr_matrix")
        + b")\x81}" + text("_shape") + long_integer(1 << 62) + b"K\x05\x86sb",
    }  # fmt: skip
    return {name: as_field(value) for name, value in fields.items()}


def shared_content() -> bytes:
    """300 arrays of 40 kB that all point at the same 40 kB: amplification through the memo."""
    names = ("face neck scalp boundary right_eyeball left_eyeball right_ear left_ear forehead eye_region nose lips "
             "right_eye_region left_eye_region").split()  # fmt: skip
    content = b"\x80\x02}"
    for name in [*names, *(f"more{i}" for i in range(286))]:
        raw = b"B" + struct.pack("<I", 40_000) + bytes(40_000) + b"q\x00" if name == "face" else b"h\x00"
        content += text(name) + array(b"M" + struct.pack("<H", 5000) + b"\x85", raw, dtype("i8")) + b"s"
    return content + b"."
