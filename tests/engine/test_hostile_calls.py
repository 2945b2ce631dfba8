"""Hostile arguments at the C door: the harness of `tests/fuzz` under AddressSanitizer and UndefinedBehaviorSanitizer.

A few hundred fixed pseudo-random inputs and one instruction set; `scripts/fuzz.sh` is the long version with libFuzzer,
all instruction sets and as many inputs as wanted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HARNESS = ROOT / "tests" / "fuzz"
ENGINE = ROOT / "submodules" / "diff-gaussian-rasterization" / "csrc"
KNN = ROOT / "submodules" / "simple-knn" / "csrc"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = ("-std=c++17", "-O0", "-g1", "-w", "-pthread", "-ffp-contract=off", *SANITIZE)
INPUTS = 600


def run(command: list[str], **options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1", **options}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)  # noqa: S603


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A C++ compiler whose programs run under both sanitizers here."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        pytest.skip(f"no C++ compiler: {name} is not on the PATH (set CXX)")
    program = tmp_path_factory.mktemp("probe") / "probe"
    (program.with_suffix(".cpp")).write_text("int main() { return 0; }\n")
    for command in ([name, *SANITIZE, f"{program}.cpp", "-o", str(program)], [str(program)]):
        done = run(command)
        if done.returncode != 0:
            pytest.skip(f"{name} has no working sanitizers here: {done.stderr.strip().splitlines()[-1:]}")
    return name


def kernel_flags(package: str) -> list[str]:
    """AVX2 where there is any, for the sake of the lanes behind the last row, in place of the portable kernels."""
    cpu = Path("/proc/cpuinfo")
    wide = cpu.is_file() and {"avx2", "fma", "bmi2"} <= set(cpu.read_text().split())
    return [
        f"-D{package}_ISA=scalar",
        *([f"-D{package}_ISA_avx2=1", "-march=x86-64-v3"] if wide else [f"-D{package}_ISA_scalar=1"]),
    ]


def objects(folder: Path, compiler: str) -> list[list[str]]:
    """One compiler call per source file: as in CMakeLists.txt for one instruction set, and the harness."""
    engine = ["-I", str(ENGINE), "-DMIEN_ISA=common"]
    kernels = ["-I", str(ENGINE), *kernel_flags("MIEN")]
    knn = ["-I", str(KNN)]
    knn_kernels = [*knn, *kernel_flags("KNN")]
    groups = [
        (ENGINE, engine),
        (ENGINE / "kernels", kernels),
        (KNN, knn),
        (KNN / "kernels", knn_kernels),
        (HARNESS, []),
    ]
    sources = [(source, flags) for where, flags in groups for source in sorted(where.glob("*.cpp"))]
    sources.sort(key=lambda pair: -pair[0].stat().st_size)  # the long ones first
    return [
        [compiler, *FLAGS, *flags, "-c", str(source), "-o", str(folder / f"{number}.o")]
        for number, (source, flags) in enumerate(sources)
    ]


def test_hostile_arguments_do_no_harm(compiler: str, tmp_path: Path) -> None:
    calls = objects(tmp_path, compiler)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(run, calls):
            assert done.returncode == 0, done.stderr
    program = str(tmp_path / "replay")
    linked = run([compiler, *FLAGS, *(call[-1] for call in calls), "-o", program])
    assert linked.returncode == 0, linked.stderr
    done = run([program, "--random", str(INPUTS)])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{INPUTS} inputs\n"


def test_every_exported_function_is_called() -> None:
    """A function without a harness is one nobody has been hostile to."""
    exported = set()
    for source in (*ENGINE.glob("*.cpp"), *KNN.glob("*.cpp")):
        exported |= set(re.findall(r"^(?:MIEN|KNN)_API [\w* ]*?\b(\w+)\(", source.read_text(), flags=re.MULTILINE))
    called = "".join(source.read_text() for source in HARNESS.glob("*.cpp"))
    assert len(exported) > 20
    assert {name for name in exported if f"{name}(" not in called} == set()
