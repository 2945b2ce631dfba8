"""`cfg_args`, the text file in which the original keeps the options of a run. It is parsed, never evaluated."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from utils.engine.options import fits, known_flags, type_name
from utils.errors import InputError

CFG_ARGS = "cfg_args"
LIMIT = 1 << 20  # bytes
EXPECTED = "Namespace(name=value, ...) with plain values"


def read_cfg_args(path: Path) -> dict[str, Any]:
    """The flags in an original's `cfg_args` that exist here; others (of its viewer, say) are left out.

    Raises:
        InputError: not such a file, or a value of the wrong type; names the flag.
    """
    if path.stat().st_size > LIMIT:
        raise InputError(path, "", f"has {path.stat().st_size} bytes, expected at most {LIMIT}")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8").strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(path, "", f"can't be parsed ({error}), expected {EXPECTED}") from error
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "Namespace"
            and not tree.args):  # fmt: skip
        raise InputError(path, "", f"expected {EXPECTED}")
    hints, flat = known_flags(), {}
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise InputError(path, "", f"found **, expected {EXPECTED}")
        if keyword.arg in flat:
            raise InputError(path, keyword.arg, f"is there twice, expected {EXPECTED}")
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            raise InputError(path, keyword.arg, f"is no plain value, expected {EXPECTED}") from error
        if keyword.arg not in hints or value is None:
            continue
        value = str(value) if hints[keyword.arg] is str else value  # the original's camera ids are numbers
        if not fits(value, hints[keyword.arg]):
            raise InputError(path, keyword.arg, f"found {value!r}, expected {type_name(hints[keyword.arg])}")
        flat[keyword.arg] = value
    return flat
