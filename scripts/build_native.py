#!/usr/bin/env python3
"""Build both native packages, CUDA kernels included, with nvcc and a C++ compiler alone, for one kind of GPU.

    python scripts/build_native.py FOLDER [--architecture 90]

FOLDER/site then holds diff_gaussian_rasterization and simple_knn, for PYTHONPATH. Users install with pip, which runs
CMake; this is for machines where scripts/gpu_check.sh finds no CMake. The flags are those of the CMakeLists.txt
(tests/test_native_build.py compares them). It needs Python's standard library alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.errors import EnvironmentFault, InputError, run_main

SECONDS = 240  # of one compiler run
HOST = ["-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-Wall", "-Wextra"]
RELEASE = ["-O3", "-DNDEBUG", "-std=c++17"]  # what CMake puts before the flags of its lists
X86 = {
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-Wno-uninitialized", "-Wno-maybe-uninitialized"],
}
IEEE = ["-fno-math-errno", "-fno-trapping-math"]


@dataclass(frozen=True)
class Package:
    """A native package and what its CMakeLists.txt compiles it with."""

    folder: Path
    module: str
    prefix: str  # of the macros that name the instruction set
    contraction: str
    common: tuple[str, ...]  # of the sources that are compiled once
    device: tuple[str, ...]


RASTERISER = Package(ROOT / "submodules" / "diff-gaussian-rasterization", "diff_gaussian_rasterization", "MIEN", "fast",
                     ("-DMIEN_ISA=common", "-O2"), ("-DMIEN_ISA=device",))  # fmt: skip
NEIGHBOURS = Package(ROOT / "submodules" / "simple-knn", "simple_knn", "KNN", "off", ("-O3",), ())


@dataclass(frozen=True)
class Tools:
    """Compilers: `cudart`: libcudart_static.a."""

    cxx: str
    nvcc: str
    cudart: Path
    compress: str
    architecture: str


def find_tools(architecture: str) -> Tools:
    """Empty: for the first GPU here, or the newest before it that nvcc knows.

    Raises:
        EnvironmentFault: something is missing.
    """
    cxx = os.environ.get("CXX") or "c++"
    if shutil.which(cxx) is None:
        raise EnvironmentFault(f"{cxx}: not found, expected a C++17 compiler. Install one or set CXX.")
    nvcc = find_nvcc()
    listed = re.findall(r"compute_(\d+)", output(nvcc, "--list-gpu-arch"))
    if not architecture:
        here = int(native_architecture())
        architecture = str(max((int(known) for known in listed if int(known) <= here), default=here))
    if architecture not in listed:
        found = ", ".join(listed) or "nothing"
        raise EnvironmentFault(f"{nvcc}: compiles for {found}, not for {architecture}. Give another --architecture.")
    compress = "--compress-mode=size" if "--compress-mode" in output(nvcc, "--help") else "-Xfatbin=-compress-all"
    return Tools(cxx, nvcc, find_cudart(nvcc), compress, architecture)


def find_nvcc() -> str:
    folders = [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    asked = os.environ.get("CUDACXX")
    path = os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    found = shutil.which(asked or "nvcc", path=path)
    if found is None:
        raise EnvironmentFault(f"{asked or 'nvcc'}: not found, expected CUDA's compiler. Install it or set CUDACXX.")
    return found


def find_cudart(nvcc: str) -> Path:
    top = re.search(r"#\$ TOP=(.*)", output(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull))
    root = Path(top[1].strip()) if top else Path(nvcc).parent.parent
    for folder in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib", "targets/sbsa-linux/lib"):
        if (library := root / folder / "libcudart_static.a").is_file():
            return library
    raise EnvironmentFault(f"{nvcc}: found no libcudart_static.a under {root}. Install CUDA's runtime library.")


def output(*command: str) -> str:
    """What a program says, on either stream."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFault(f"{command[0]}: {error}") from error
    return done.stdout + done.stderr


def native_architecture() -> str:
    """The compute capability of the first GPU, as `90`. Raises EnvironmentFault where there is none."""
    said = (
        output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader") if shutil.which("nvidia-smi") else ""
    )
    found = re.match(r"\s*(\d+)\.(\d)", said)
    if not found:
        raise EnvironmentFault("nvidia-smi: shows no GPU, expected one to build for. Give --architecture.")
    return found[1] + found[2]


def commands(package: Package, tools: Tools, objects: Path) -> Iterator[tuple[Path, list[str]]]:
    """What compiles each source to which object."""
    csrc, base = package.folder / "csrc", [*RELEASE, *HOST, f"-ffp-contract={package.contraction}", *IEEE]
    sets = {"scalar": [], **X86} if platform.machine() in ("x86_64", "AMD64") else {"scalar": []}
    have = [f"-D{package.prefix}_HAVE_X86=1"] if len(sets) > 1 else []
    for source in sorted(csrc.glob("cuda/*.cu")):
        gencode = [f"-gencode=arch=compute_{tools.architecture},code={kind}_{tools.architecture}"
                   for kind in ("sm", "compute")]  # fmt: skip
        flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-cudart=static", f"-ccbin={tools.cxx}",
                 f"-Xcompiler={','.join(HOST)}", *gencode, tools.compress, *package.device]  # fmt: skip
        target = objects / f"{source.name}.o"
        yield target, [tools.nvcc, *flags, "-I", str(csrc), "-c", str(source), "-o", str(target)]
    for name, flags in sets.items():
        macros = [f"-D{package.prefix}_ISA={name}", f"-D{package.prefix}_ISA_{name}=1", *have]
        for source in sorted(csrc.glob("kernels/*.cpp")):
            target = objects / f"{source.stem}-{name}.o"
            yield target, [tools.cxx, *base, *flags, *macros, f"-I{csrc}", "-c", str(source), "-o", str(target)]
    for source in sorted(csrc.glob("*.cpp")):
        target = objects / f"{source.name}.o"
        yield target, [tools.cxx, *base, *package.common, *have, f"-I{csrc}", "-c", str(source), "-o", str(target)]


def run(command: list[str]) -> None:
    """Raises EnvironmentFault with the compiler's words on stderr if it fails."""
    what = Path(command[-1]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFault(f"{what}: {error}") from error
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        raise EnvironmentFault(f"{what}: does not build with {command[0]}, see above.")


def build(folder: Path, tools: Tools) -> Path:
    """Both packages, in `folder`/site."""
    jobs, links = [], []
    for package in (RASTERISER, NEIGHBOURS):
        objects, site = folder / package.module, folder / "site" / package.module
        objects.mkdir(parents=True, exist_ok=True)
        shutil.copytree(package.folder / package.module, site, dirs_exist_ok=True)
        compiled = list(commands(package, tools, objects))
        jobs += [command for _, command in compiled]
        last = ["-Wl,--exclude-libs,ALL", str(tools.cudart), "-pthread", "-ldl", "-lrt"]
        links.append([tools.cxx, "-shared", *(str(target) for target, _ in compiled), *last, "-o",
                      str(site / "_native.so")])  # fmt: skip
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs.sort(key=lambda command: command[0] != tools.nvcc)  # these take longest
        list(pool.map(run, jobs))
        list(pool.map(run, links))
    return folder / "site"


def main(arguments: list[str]) -> None:
    """The command line program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to build")
    parser.add_argument("--architecture", default="", help="compute capability, as 90 [of the first GPU here]")
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"[0-9]{0,3}", options.architecture):
        raise InputError("command line", "--architecture", f"found {options.architecture!r}, expected a number as 90")
    print(build(options.folder, find_tools(options.architecture)))


if __name__ == "__main__":
    raise SystemExit(run_main(main))
