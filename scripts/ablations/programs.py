"""Mien's programs as child processes: several at a time, each with its log, ended together with their parent."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from utils.errors import EnvironmentFault, disk_advice

ROOT = Path(__file__).resolve().parents[2]
GRACE = 3.0  # seconds; a signal from the terminal reaches the children too, and a second one would cost them their save
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int  # its exit code
    error: str  # its last line that begins with `error: `, without that; else its last line


class Programs:
    """Runs programs; `stop` ends those that are running and lets no further one begin."""

    def __init__(self) -> None:
        self.lock, self.stopped = threading.Lock(), False
        self.running: set[subprocess.Popen[bytes]] = set()

    def run(self, log: Path, script: str, *words: str) -> Ended:
        """Run a program of the repository; what it prints goes to the end of `log`.

        Raises:
            EnvironmentFault: the log can't be written, or `stop` was called.
        """
        command = [sys.executable, "-u", str(ROOT / script), *words]
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as file:
                file.write(f"$ {shlex.join(['python', script, *words])}\n".encode())
                file.flush()
                start = file.tell()
                code = self._wait(command, file)
            with open(log, "rb") as file:
                file.seek(start)
                printed = file.read().decode("utf-8", "replace").splitlines()
        except OSError as error:
            raise EnvironmentFault(f"{log}: {error.strerror or error}. {disk_advice(error)}") from error
        return Ended(code, last_error(printed))

    def _wait(self, command: Sequence[str], file: IO[bytes]) -> int:
        with self.lock:
            if self.stopped:
                raise EnvironmentFault("stopped")
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
            self.running.add(process)
        try:
            code = process.wait()
        finally:
            with self.lock:
                self.running.discard(process)
        if self.stopped:
            raise EnvironmentFault("stopped")
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        """Let running programs save and end: SIGTERM to those that the signal which ended us hasn't reached."""
        with self.lock:
            self.stopped, left = True, list(self.running)
        for process in left:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.terminate()

    def do_all(self, work: Callable[[T], R], items: Sequence[T], side_by_side: int) -> list[R]:
        """`work(item)` for all items, some side by side; an exception (a signal's too) stops every program first."""
        pool = ThreadPoolExecutor(side_by_side)
        try:
            return [future.result() for future in [pool.submit(work, item) for item in items]]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            self.stop()
            raise
        finally:
            pool.shutdown(wait=True)


def last_error(lines: Sequence[str]) -> str:
    """The last line of the form `error: ...` without its head, else the last line that isn't empty."""
    errors = [line[len("error: ") :] for line in lines if line.startswith("error: ")]
    said = [line.strip() for line in lines if line.strip()]
    return (errors or said or ["it said nothing"])[-1]
