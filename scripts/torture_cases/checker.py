"""Runs a case and judges it: exit code, one error line and what it must name, nothing written, time, memory, calls."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from scripts.torture_cases.case import PROGRAMS, Box, Case, Command, Either, Refused, Templates, Works
from scripts.torture_cases.known import finding
from utils.errors import MienError, run_main

ROOT = Path(__file__).resolve().parent.parent.parent
USUAL_SECONDS, HANG_SECONDS, LONGEST_LINE, MEMORY_FACTOR = 5.0, 60, 2000, 1.5
# What no input may cause. `open` is watched for what lies in the folder `outside` of a case.
CALLS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class"}
USUAL = re.compile(r"decoded \d+ pictures in|warning: |lpips_\w+: not computed|libpng warning: |\s*$")
DECODERS = re.compile(
    r"libpng error: |Corrupt JPEG data: |Unsupported marker type |Premature end of JPEG file|Invalid "
)


class Hung(BaseException):
    """The time is up; no program may catch it."""


@dataclass(frozen=True)
class Outcome:
    """What a program did."""

    code: int
    errors: str
    seconds: float
    peak_mib: float  # of the whole process
    before_mib: float = 0.0  # resident when the case began: this process keeps what earlier cases imported
    calls: tuple[str, ...] = ()
    started_up: float = 0.0  # seconds that a process of its own takes for intact inputs


@dataclass(frozen=True)
class Result:
    """A case and the verdict."""

    case: Case
    outcome: Outcome
    refused: bool
    complaint: str  # empty: as expected
    known: str  # the finding that explains the complaint

    @property
    def failed(self) -> bool:
        """Wrong, and nobody knew; or known, but no longer wrong."""
        return bool(self.complaint) != bool(self.known)


class Checker:
    """Runs cases in this process, or in one of their own, on copies of one set of inputs."""

    def __init__(self, folder: Path) -> None:
        self.templates = Templates(folder)
        self.watch = Watch()
        self.valid_peak, self.import_seconds, self.import_peak = 0.0, 0.0, 0.0

    def run(self, case: Case, own_process: bool = False) -> Result:
        """Spoil a fresh box, run, judge, and remove the box."""
        self.measure_valid()
        box = self.templates.box(case.trained)
        try:
            command = case.spoil(box)
            before = snapshot(box.root)
            outcome = self.outcome(command, box, own_process)
            complaint = self.complaint(case, box, outcome, before)
        finally:
            for release in box.held:
                release()
            shutil.rmtree(box.root, ignore_errors=True)
        return Result(case, outcome, outcome.code != 0, complaint, finding(case.id))

    def outcome(self, command: Command, box: Box, own_process: bool) -> Outcome:
        if not command.script or not (own_process or command.script not in PROGRAMS):
            return self.in_here(command, box)
        if not self.import_seconds:
            valid = in_process(self.templates.box(False).train())
            self.import_seconds, self.import_peak = valid.seconds, valid.peak_mib
        return in_process(command, self.import_seconds)

    def complaint(self, case: Case, box: Box, outcome: Outcome, before: dict[str, Any]) -> str:
        try:
            return self.judge(case, box, outcome, before)
        except (OSError, ValueError, KeyError, MienError) as error:
            return f"what the run left can't be judged: {error!r}"

    def measure_valid(self) -> None:
        """How much memory the process takes for intact inputs."""
        if not self.valid_peak:
            caught(Command(lambda argv: self.templates.make_run(), []))
            box = self.templates.box(True)
            self.valid_peak = max(self.in_here(command, box).peak_mib for command in (box.train(), box.render()))
            shutil.rmtree(box.root)

    def in_here(self, command: Command, box: Box) -> Outcome:
        """Run in this process, with file descriptor 2 (native libraries) and `sys.stderr` caught."""
        reset_peak()
        before = peak_mib()
        self.watch.begin(box.root / "outside")
        started = time.perf_counter()
        code, errors = caught(command)
        seconds = time.perf_counter() - started
        return Outcome(code, errors, seconds, peak_mib(), before, self.watch.end())

    def judge(self, case: Case, box: Box, outcome: Outcome, before: dict[str, Any]) -> str:
        """What is wrong; empty if nothing is."""
        limit = case.seconds + outcome.started_up
        valid = self.import_peak if outcome.started_up else self.valid_peak
        if outcome.calls:
            return f"caused {', '.join(outcome.calls)}"
        if outcome.seconds > limit:
            return f"took {outcome.seconds:.1f} s, the limit is {limit:.1f} s"
        allowed = max(MEMORY_FACTOR * valid, outcome.before_mib + (MEMORY_FACTOR - 1.0) * valid)
        if case.seconds <= USUAL_SECONDS and outcome.peak_mib > allowed:
            return f"peak of {outcome.peak_mib:.0f} MiB, a valid run takes {valid:.0f} MiB"
        expected = case.expected
        if isinstance(expected, Either):
            expected = expected.works if outcome.code == 0 else expected.refused
        if isinstance(expected, Works):
            return judge_success(expected, box, outcome)
        return judge_refusal(expected, box, outcome, before)


def judge_success(expected: Works, box: Box, outcome: Outcome) -> str:
    if outcome.code != 0:
        return f"exit code {outcome.code}, expected 0 ({expected.why}): {tail(outcome.errors)}"
    wrong = "" if expected.chatty else noise(outcome.errors, 0, expected.decoder_may_complain)
    return wrong or expected.check(box, outcome.errors)


def judge_refusal(expected: Refused, box: Box, outcome: Outcome, before: dict[str, Any]) -> str:
    if outcome.code not in expected.codes:
        return f"exit code {outcome.code}, expected {expected.codes}: {tail(outcome.errors)}"
    if wrong := noise(outcome.errors, 1):
        return wrong
    line = next(line for line in outcome.errors.splitlines() if line.startswith("error: "))
    if not line.isprintable() or len(line) > LONGEST_LINE:
        return f"the error line has {len(line)} characters or unprintable ones: {line[:200]!r}"
    for word in expected.words:
        if not re.search(word, line):
            return f"the error line lacks {word!r}: {line}"
    after = snapshot(box.root)
    if not expected.writes and after != before:
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return f"refused, but {', '.join(changed[:6])} changed"
    leftovers = [name for name in after.keys() - before.keys() if ".tmp-" in name or ".old-" in name]
    if leftovers:
        return f"left {', '.join(leftovers[:6])} behind"
    return expected.check(box, outcome.errors) if expected.check else ""


def noise(errors: str, lines: int, decoders: bool = True) -> str:
    """A complaint unless stderr has exactly so many error lines and nothing unusual beside them."""
    found = errors.splitlines()
    if "Traceback" in errors:
        return f"a traceback: {tail(errors)}"
    count = sum(line.startswith("error: ") for line in found)
    if count != lines:
        return f"{count} error lines, expected {lines}: {tail(errors)}"
    strange = [line for line in found if not line.startswith("error: ") and not USUAL.match(line)]
    if decoders:
        strange = [line for line in strange if not DECODERS.match(line)]
    return f"unexpected on stderr: {strange[0]!r}" if strange else ""


def tail(errors: str) -> str:
    return " | ".join(errors.strip().splitlines()[-3:])[-600:]


class Watch:
    """An audit hook (they can't be removed) that notes forbidden events while it is on."""

    def __init__(self) -> None:
        self.outside, self.noted, self.on = "", [], False
        sys.addaudithook(self.hook)

    def begin(self, outside: Path) -> None:
        self.outside, self.noted, self.on = str(outside), [], True

    def end(self) -> tuple[str, ...]:
        self.on = False
        return tuple(self.noted)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in CALLS:
            self.noted.append(f"{event}{arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.fsdecode(arguments[0])
            if "\0" not in path and self.outside and os.path.realpath(path).startswith(self.outside):
                self.noted.append(f"open {path}")


def caught(command: Command) -> tuple[int, str]:
    """Exit code and everything written to stderr."""
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file, open(os.devnull, "w") as nothing:
        descriptor = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            with contextlib.redirect_stderr(file), contextlib.redirect_stdout(nothing), warned(), deadline():
                code = run_here(command)
            file.flush()
        finally:
            os.dup2(descriptor, 2)
            os.close(descriptor)
        file.seek(0)
        return code, file.read()


def run_here(command: Command) -> int:
    try:
        return run_main(command.main, command.argv)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except (Exception, Hung):  # noqa: BLE001 - whatever escapes is what this looks for
        traceback.print_exc()
        return 1


@contextlib.contextmanager
def warned() -> Iterator[None]:
    """Python's warnings go to stderr each time, whatever a test runner does with them."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        print(warnings.formatwarning(message, category, filename, lineno), file=sys.stderr)

    with warnings.catch_warnings():
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    def up(number: int, frame: FrameType | None) -> None:
        raise Hung(f"still running after {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def in_process(command: Command, started_up: float = 0.0) -> Outcome:
    """Run the real program in a process of its own."""
    started = time.perf_counter()
    words = [sys.executable, *command.script.split(), *command.argv]
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        file.seek(0)
        errors = file.read().decode("utf-8", "replace")
    seconds = time.perf_counter() - started
    return Outcome(process.returncode, errors, seconds, usage.ru_maxrss / 1024, started_up=started_up)


def snapshot(folder: Path) -> dict[str, Any]:
    """Every entry below a folder with its content, links not followed; of a lock only that it is there."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = "" if path.name == ".lock" else path.read_bytes()
        else:
            found[name] = path.lstat().st_mode
    return found


def reset_peak() -> None:
    with contextlib.suppress(OSError):  # Linux
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Largest resident size since the reset; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024
