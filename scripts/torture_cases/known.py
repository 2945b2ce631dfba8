"""Cases that the programs get wrong today, each with its finding. A case that is listed here and goes well fails."""

from __future__ import annotations

from fnmatch import fnmatchcase

KNOWN: dict[str, str] = {}  # pattern of a case's id -> what is wrong


def finding(name: str) -> str:
    """The finding that explains why a case fails; empty if it must not fail."""
    return next((why for pattern, why in KNOWN.items() if fnmatchcase(name, pattern)), "")
