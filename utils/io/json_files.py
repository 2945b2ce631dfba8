"""Strict JSON: what the file says is what is used, and what is wrong is named by its field."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError

MAX_BYTES = 1 << 30
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; anything else is an InputError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(path, "", "is not a regular file")
        if status.st_size > limit:
            raise InputError(path, "", f"found {status.st_size} bytes, expected at most {limit}")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(path, "", "does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(path, "", f"can't be read: {getattr(error, 'strerror', None) or error}") from error


def read_json(path: Path) -> Any:
    """Parse a UTF-8 JSON file.

    Raises:
        InputError: not a regular file, a byte order mark, not UTF-8, a syntax error (line and column), a duplicate key,
            NaN or Infinity (with its field), nested or large beyond reason.
    """
    return parse_json(read_bytes(path, MAX_BYTES), path)


def parse_json(data: bytes, source: str | Path) -> Any:
    """`read_json` for bytes that are in memory; `source` is named in errors."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise InputError(source, "byte 0", f"found a {encoding} byte order mark", "Save it as UTF-8 without BOM.")
    constants: list[str] = []

    def remember(constant: str) -> float:
        constants.append(constant)
        return math.nan

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique(source), parse_constant=remember)
    except UnicodeDecodeError as error:
        raise InputError(source, f"byte {error.start}", "found bytes that are not UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise InputError(source, place, f"is not JSON: {error.msg}", "The file may be incomplete.") from error
    except RecursionError:
        raise InputError(source, "", "is nested too deeply") from None
    except ValueError as error:  # Python refuses to convert numbers of thousands of digits
        raise InputError(source, "", f"holds a number that can't be read: {error}") from error
    if constants:
        raise InputError(source, _first_nan(value), f"found {constants[0]}, expected a finite number")
    return value


def _unique(source: str | Path):
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(source, twice, "found this key twice in one object, expected it once")
        return value

    return build


def _first_nan(value: Any) -> str:
    """The field that holds the first NaN, such as `frames[3].transform_matrix[0][1]`; empty if there is none."""
    stack = [("", value)]
    while stack:
        where, value = stack.pop()
        if isinstance(value, dict):
            children = [(f"{where}.{key}" if where else key, child) for key, child in value.items()]
        elif isinstance(value, list):
            children = [(f"{where}[{i}]", child) for i, child in enumerate(value)]
        elif isinstance(value, float) and math.isnan(value):
            return where
        else:
            continue
        stack.extend(reversed(children))
    return ""


@dataclass(frozen=True)
class JsonObject:
    """An object inside a JSON file, read field by field; each reader raises InputError naming file and field."""

    source: Path
    where: str  # e.g. "frames[3]"
    value: Mapping[str, Any]

    @classmethod
    def of(cls, source: Path, where: str, value: Any) -> JsonObject:
        if not isinstance(value, dict):
            raise InputError(source, where, f"found {kind(value)}, expected an object")
        return cls(source, where, value)

    def error(self, field: str, problem: str, advice: str = "") -> InputError:
        return InputError(self.source, f"{self.where}.{field}" if self.where else field, problem, advice)

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.value.get(field) is not None

    def _required(self, field: str, expected: str) -> Any:
        if not self.has(field):
            raise self.error(field, f"is missing, expected {expected}")
        return self.value[field]

    def number(self, field: str) -> float:
        """A finite number."""
        value = self._required(field, "a number")
        if not is_number(value):
            raise self.error(field, f"found {kind(value)}, expected a finite number")
        return float(value)

    def integer(self, field: str, low: int, high: int) -> int:
        """An integer in [low, high]."""
        value = self._required(field, f"an integer in [{low}, {high}]")
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(field, f"found {kind(value)}, expected an integer in [{low}, {high}]")
        return value

    def text(self, field: str) -> str:
        """A string that is not empty and holds no control characters or broken Unicode."""
        value = self._required(field, "a string")
        if not isinstance(value, str) or not value or any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in value):
            raise self.error(field, f"found {kind(value)}, expected a non-empty string without control characters")
        return value

    def matrix(self, field: str, rows: int, columns: int) -> np.ndarray:
        """A float64 [rows, columns] matrix of finite numbers, written as a list of rows."""
        value = self._required(field, f"{rows} rows of {columns} numbers")
        if not isinstance(value, list) or len(value) != rows:
            raise self.error(field, f"found {kind(value)}, expected {rows} rows of {columns} numbers")
        for r, row in enumerate(value):
            if not isinstance(row, list) or len(row) != columns:
                raise self.error(f"{field}[{r}]", f"found {kind(row)}, expected {columns} numbers")
            for c, number in enumerate(row):
                if not is_number(number):
                    raise self.error(f"{field}[{r}][{c}]", f"found {kind(number)}, expected a finite number")
        return np.array(value, dtype=np.float64)

    def object(self, field: str) -> JsonObject:
        """An object."""
        where = f"{self.where}.{field}" if self.where else field
        return JsonObject.of(self.source, where, self._required(field, "an object"))

    def objects(self, field: str) -> list[JsonObject]:
        """A list of objects."""
        value = self._required(field, "a list of objects")
        if not isinstance(value, list):
            raise self.error(field, f"found {kind(value)}, expected a list of objects")
        prefix = f"{self.where}.{field}" if self.where else field
        return [JsonObject.of(self.source, f"{prefix}[{i}]", item) for i, item in enumerate(value)]


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that float64 holds (booleans are not numbers)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= 1.7976931348623157e308  # False for NaN and infinity, and for integers too large for a float


def kind(value: Any) -> str:
    """A JSON value in few words, for messages."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value) if not isinstance(value, int) or abs(value) < 10**18 else "an integer of over 18 digits"
    return text if len(text) <= 60 else text[:57] + "..."
