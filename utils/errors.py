"""The error contract: one line on stderr, a documented exit code, no traceback unless `--debug` is given.

    error: FILE: FIELD or FRAME: found X, expected Y. What to do.

Exit codes: 2 bad input, 3 environment (disk, permission, lock, device), 4 numerics, 130 / 143 interrupted by a signal.
"""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn


class MienError(Exception):
    """An error that a user can act on. `str(error)` is the line after `error: `."""

    exit_code = 1


class InputError(MienError):
    """A file or an option is not what it must be.

    Args:
        source: the file (or flag) that is wrong.
        where: the field, frame, row or byte offset inside it; empty if the whole file is meant.
        problem: what was found and what was expected.
        advice: what the user can do, a full sentence.
    """

    exit_code = 2

    def __init__(self, source: str | Path, where: str, problem: str, advice: str = "") -> None:
        parts = [str(source)] + ([where] if where else []) + [problem]
        line = ": ".join(one_line(part) for part in parts)
        super().__init__(f"{line}. {one_line(advice)}" if advice else line)


class EnvironmentFault(MienError):
    """The machine refuses: disk full, no permission, folder in use, device missing."""

    exit_code = 3


def disk_advice(error: OSError) -> str:
    """What to do when a file can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "Free some space and run the command again; training goes on with --resume."
    return "Choose a folder that can be written."


class NumericalFault(MienError):
    """A loss, gradient or parameter stopped being finite."""

    exit_code = 4


def one_line(text: str) -> str:
    """Control characters become escapes, so that hostile names can't forge a second line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Terminated(MienError):
    """SIGTERM outside the training loop (which saves and stops by itself)."""

    exit_code = 128 + signal.SIGTERM


def on_terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated("stopped by SIGTERM")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: the machine's, or that of a GPU."""
    torch = sys.modules.get("torch")  # what isn't loaded has raised nothing
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.cuda.OutOfMemoryError))


def device_refused(error: BaseException) -> bool:
    """Whether a GPU or its driver refused, as PyTorch or the native library report it."""
    torch, native = sys.modules.get("torch"), sys.modules.get("diff_gaussian_rasterization._library")
    kinds = (getattr(torch, "AcceleratorError", None), getattr(native, "DeviceFault", None))
    return isinstance(error, tuple(kind for kind in kinds if kind is not None))


def run_main(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Run a command line program under the error contract and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    before = signal.signal(signal.SIGTERM, on_terminate)  # an exception, so that half-written files are cleaned up
    try:
        return main(arguments) or 0
    except (MienError, OSError, MemoryError, RuntimeError) as error:
        refused = out_of_memory(error) or device_refused(error)
        if isinstance(error, RuntimeError) and not refused:
            raise
        if "--debug" in arguments:
            traceback.print_exc()
        line = str(error).strip().splitlines()[0] if refused and str(error).strip() else str(error)
        print(f"error: {one_line(line or type(error).__name__)}", file=sys.stderr)
        return error.exit_code if isinstance(error, MienError) else EnvironmentFault.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
