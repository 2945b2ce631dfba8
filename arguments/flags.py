"""A dataclass field becomes a command line flag of the same name; `--flag` and `--flag True` both work for booleans.

A field may carry metadata: `help` (one line), `alias` (a short form such as `-s`) and `bare` (the value of a flag typed
without one). Supported types: bool, int, float,
str and list[int].
"""

from __future__ import annotations

import argparse
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn, get_type_hints

from utils.errors import InputError


def strict_bool(text: str) -> bool:
    """`True`/`False` in the spellings people type; anything else is refused (argparse turns it into exit code 2)."""
    known = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected True or False")
    return known[text.lower()]


class OneLineParser(argparse.ArgumentParser):
    """argparse under the error contract: `error: FLAG: problem`, without the page of usage before it."""

    def error(self, message: str) -> NoReturn:
        raise InputError("command line", "", message, f"`python {self.prog} --help` lists every flag.")


def default_of(field: Field[Any]) -> Any:
    """The default value of a dataclass field, made fresh for mutable ones."""
    return field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]


def add_flags(parser: argparse.ArgumentParser, title: str, options_class: type) -> None:
    """Add one flag per field of `options_class` under the help heading `title`.

    Nothing is stored for flags that were not typed, so that presets and saved runs can fill them.
    """
    group = parser.add_argument_group(title)
    hints = get_type_hints(options_class)
    for field in fields(options_class):
        names = [field.metadata["alias"]] if "alias" in field.metadata else []
        names.append(f"--{field.name}")
        text = f"{field.metadata.get('help', '')} [{default_of(field)}]".replace("%", "%%").strip()
        kind = kind_of(hints[field.name], field)
        group.add_argument(*names, dest=field.name, default=argparse.SUPPRESS, help=text, **kind)


def kind_of(hint: Any, field: Field[Any]) -> dict[str, Any]:
    """argparse keywords for a field; one with metadata `bare` takes that value when the flag is typed alone."""
    if "bare" in field.metadata:
        return {"nargs": "?", "const": field.metadata["bare"], "type": hint, "metavar": hint.__name__.upper()}
    if hint is bool:
        return {"nargs": "?", "const": True, "type": strict_bool, "metavar": "BOOL"}
    if hint in (int, float, str):
        return {"type": hint, "metavar": hint.__name__.upper()}
    if hint == list[int]:
        return {"nargs": "*", "type": int, "metavar": "INT"}
    raise TypeError(f"no flag can be made of a field of type {hint}")
