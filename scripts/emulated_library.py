#!/usr/bin/env python3
"""The CUDA engine as a library for the CPU: its .cu files compiled by the C++ compiler, every thread a fiber.

    python scripts/emulated_library.py        builds it if need be and prints its path

MIEN_EMULATION_SANITIZE=1: with AddressSanitizer and UndefinedBehaviorSanitizer, whose runtime must then be preloaded
(scripts/sanitize.sh).

For tests on machines without a GPU. It lies under build/emulated, in files named by a digest of what they were made
from: only what has changed is compiled, and several sessions may share the folder.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.errors import EnvironmentFault, run_main

SOURCES = ROOT / "submodules" / "diff-gaussian-rasterization" / "csrc"
KNN = ROOT / "submodules" / "simple-knn" / "csrc"
CACHE = ROOT / "build" / "emulated"
KEPT_SECONDS = 7 * 86400  # what nobody used for so long is removed

FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-Wall", "-Wextra"]
FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]  # as CMakeLists.txt has them
FLAGS += ["-U_FORTIFY_SOURCE"]  # glibc's checked longjmp refuses to change stacks
SANITIZERS = [
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
]
COMPILE_SECONDS = 600


def compiler() -> str:
    """The C++ compiler: $CXX or c++.

    Raises:
        EnvironmentFault: there is none.
    """
    name = os.environ.get("CXX") or "c++"
    if shutil.which(name) is None:
        raise EnvironmentFault(f"{name}: not found, expected a C++17 compiler. Install one or set CXX.")
    return name


def _machine_flags() -> list[str]:
    return ["-march=native"] if platform.machine() in ("x86_64", "AMD64") else []  # others have fma without being asked


def _translations(sanitize: bool, more: Sequence[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Source files and the flags of each."""
    common = [*FLAGS, *_machine_flags(), *(["-g", "-O1", *SANITIZERS] if sanitize else ["-O1"])]
    for source in sorted(SOURCES.glob("*.cpp")):
        yield source, [*common, "-DMIEN_ISA=common"]
    for source in sorted((SOURCES / "kernels").glob("*.cpp")):
        yield source, [*common, "-DMIEN_ISA=scalar", "-DMIEN_ISA_scalar=1"]
    device = [*(SOURCES / "cuda").glob("*.cu"), *(SOURCES / "cuda" / "emulation").glob("*.cpp"), *more]
    for source in sorted(device):
        yield source, [*common, "-DMIEN_ISA=device", "-DMIEN_EMULATED", "-Werror", "-Wno-unknown-pragmas"]
    common += ["-ffp-contract=off", "-DMIEN_EMULATED", "-Werror", f"-I{KNN}", "-DKNN_ISA=scalar", "-DKNN_ISA_scalar=1"]
    for source in sorted([*KNN.glob("*.cpp"), *(KNN / "kernels").glob("*.cpp"), *(KNN / "cuda").glob("*.cu")]):
        yield source, common


def _digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()[:32]


def _headers() -> tuple[bytes, bytes]:
    """Contents of the headers that CPU sources see, and of all."""
    common, device = hashlib.sha256(), hashlib.sha256()
    for header in sorted([*SOURCES.rglob("*.h"), *KNN.rglob("*.h")]):
        content = str(header.relative_to(ROOT)).encode() + header.read_bytes()
        device.update(content)
        if "cuda" not in header.relative_to(ROOT).parts:
            common.update(content)
    return common.digest(), device.digest()


def _run(command: list[str], what: str) -> str:
    """Raises EnvironmentFault with the compiler's words if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False, env=_plain()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFault(f"{what}: {error}") from error
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        raise EnvironmentFault(f"{what}: does not compile with {command[0]}, see above.")
    return done.stdout


def _plain() -> dict[str, str]:
    """The environment without a preloaded sanitizer, which would watch the compiler too."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def _compile(cxx: str, source: Path, flags: list[str], target: Path) -> Path:
    """Compile unless it was done before."""
    if target.exists():
        os.utime(target)
        return target
    new = target.with_suffix(f".{os.getpid()}.new")
    command = [cxx, *flags, "-I", str(SOURCES), "-x", "c++", "-c", str(source), "-o", str(new)]
    _run(command, source.name)
    os.replace(new, target)
    return target


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _forget_old(folder: Path) -> None:
    for path in folder.iterdir():
        if path.suffix in (".o", ".so", ".new") and time.time() - path.stat().st_mtime > KEPT_SECONDS:
            path.unlink(missing_ok=True)


def build(more: Sequence[Path] = (), folder: Path = CACHE) -> Path:
    """The emulated library of the sources as they are now, built if need be.

    Args:
        more: .cu files to add.

    Raises:
        EnvironmentFault: there is no compiler, or it refuses; its words are on stderr.
    """
    cxx = compiler()
    sanitize = os.environ.get("MIEN_EMULATION_SANITIZE") == "1"
    machine = _run([cxx, *_machine_flags(), "-dM", "-E", "-x", "c++", os.devnull], cxx).encode()
    common_headers, all_headers = _headers()
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for source, flags in _translations(sanitize, more):
        headers = all_headers if "-DMIEN_EMULATED" in flags else common_headers
        key = _digest(machine, " ".join(flags).encode(), headers, str(source).encode(), source.read_bytes())
        jobs.append((source, flags, folder / f"{source.stem}-{key}.o"))
    link = ["-shared", *(["-g", *SANITIZERS] if sanitize else []), "-pthread", "-Wl,-z,defs" if not sanitize else "-g"]
    target = folder / f"emulated-{_digest(' '.join(link).encode(), *(job[2].name.encode() for job in jobs))}.so"
    with _locked(folder):
        if not target.exists():
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                objects = list(pool.map(lambda job: _compile(cxx, *job), jobs))
            new = target.with_suffix(f".{os.getpid()}.new")
            _run([cxx, *map(str, objects), *link, "-o", str(new)], target.name)
            os.replace(new, target)
            _forget_old(folder)
        os.utime(target)
    return target


def main(arguments: list[str]) -> None:
    """The command line program."""
    parser = argparse.ArgumentParser(description="Build the CUDA engine for the CPU and print the library's path.")
    parser.parse_args(arguments)
    print(build())


if __name__ == "__main__":
    raise SystemExit(run_main(main))
