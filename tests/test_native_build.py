"""How the native packages find a CUDA compiler, and what they say without one."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import build_native
from utils.errors import EnvironmentFault

PACKAGES = Path(__file__).resolve().parents[1] / "submodules"
RASTERISER, NEIGHBOURS = PACKAGES / "diff-gaussian-rasterization", PACKAGES / "simple-knn"


def configure(package: Path, folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not on the PATH")
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "MIEN_", "LD_PRELOAD"))}
    command = [cmake, "-S", str(package), "-B", str(folder), *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**usual, **environment}
    )


def test_both_packages_have_the_same_cmake_file() -> None:
    files = [package / "cmake" / "MienCuda.cmake" for package in (RASTERISER, NEIGHBOURS)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_both_packages_ask_for_the_same_compiler() -> None:
    def pins(package: Path) -> list[str]:
        return [line for line in (package / "pyproject.toml").read_text().splitlines() if '"nvidia-' in line]

    assert pins(RASTERISER) == pins(NEIGHBOURS)
    assert len({line.split("==")[1].rpartition(".")[0] for line in pins(RASTERISER)}) == 1  # one minor version


@pytest.mark.parametrize("package", [RASTERISER, NEIGHBOURS], ids=lambda package: package.name)
def test_a_compiler_that_is_not_there_is_a_message(tmp_path: Path, package: Path) -> None:
    done = configure(package, tmp_path, CUDACXX="/nowhere/nvcc")
    assert done.returncode == 0, done.stderr
    assert "CUDA: without kernels, since CUDACXX=/nowhere/nvcc was not found when it was installed" in done.stdout


def test_a_compiler_that_does_not_work_is_a_message(tmp_path: Path) -> None:
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    broken.chmod(0o755)
    done = configure(NEIGHBOURS, tmp_path / "build", CUDACXX=str(broken))
    assert done.returncode == 0, done.stderr
    assert f"CUDA: without kernels, since {broken} does not work with" in done.stdout


@pytest.mark.parametrize(
    ("present", "expected"), [("8.6\n9.0\n8.6", "86 90"), ("12.1", "120"), ("", "75 80 86 90 120")]
)
def test_kernels_are_for_the_gpus_at_hand_or_for_all(tmp_path: Path, present: str, expected: str) -> None:
    tools = {
        "nvidia-smi": f"[ -n '{present}' ] && printf '{present}\n'",
        "nvcc": "[ $1 = --list-gpu-arch ] && printf 'compute_%s\n' 75 80 86 87 90 120\nexit 1",
    }
    for name, script in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = configure(NEIGHBOURS, tmp_path / "build", CUDACXX=str(tmp_path / "nvcc"), PATH=path)
    assert f"CUDA: for GPUs {expected}, and PTX" in done.stdout


def test_asking_for_kernels_without_a_compiler_is_an_error(tmp_path: Path) -> None:
    done = configure(RASTERISER, tmp_path, CUDACXX="/nowhere/nvcc", MIEN_CUDA="on")
    assert done.returncode != 0
    assert "CUDA kernels were asked for (MIEN_CUDA=ON)" in " ".join(done.stderr.split())


def test_a_library_without_kernels_says_why(tmp_path: Path) -> None:
    done = configure(NEIGHBOURS, tmp_path, "-DMIEN_PORTABLE=ON", "-DMIEN_OPTIMISE=-O0", MIEN_CUDA="off")
    assert done.returncode == 0, done.stderr
    subprocess.run(["cmake", "--build", str(tmp_path)], check=True, capture_output=True, timeout=300)
    library = ctypes.CDLL(str(tmp_path / "_native.so"))
    library.knn_cuda_missing.restype = ctypes.c_char_p
    assert b"it was installed with MIEN_CUDA=OFF" in library.knn_cuda_missing()


def meaning(command: list[str]) -> tuple[str, frozenset[str]]:
    """Which source a compiler run is about, and its flags: not where it puts what, and what CMake adds to modules."""
    kept, words = [], iter(command[1:])
    for word in words:
        if word in ("-o", "-MF", "-MT"):
            next(words)
        elif word not in ("-c", "-MD", "-D_native_EXPORTS"):
            kept.append(word)
    source = next(word for word in kept if word.endswith((".cpp", ".cu")))
    return source, frozenset(kept) - {source}


@pytest.mark.parametrize(
    "package", [build_native.RASTERISER, build_native.NEIGHBOURS], ids=lambda package: package.module
)
def test_building_without_cmake_compiles_the_same_with_the_same_flags(
    tmp_path: Path, package: build_native.Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc, log, top = tmp_path / "nvcc", tmp_path / "calls", tmp_path / "cuda"
    (top / "lib64").mkdir(parents=True)
    (top / "lib64" / "libcudart_static.a").touch()
    nvcc.write_text(
        "#!/bin/sh\ncase $1 in --list-gpu-arch) echo compute_90 ;; --help) echo --compress-mode ;;\n"
        f"--dryrun) echo '#$ TOP={top}' >&2 ;; *) echo \"nvcc $*\" >>{log} ;; esac\n"
    )
    nvcc.chmod(0o755)
    options = ["-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-DCMAKE_CXX_COMPILER=c++", "-DMIEN_CUDA_ARCHITECTURES=90"]
    done = configure(package.folder, tmp_path / "build", *options, CUDACXX=str(nvcc), MIEN_CUDA="on")
    assert done.returncode == 0, done.stderr
    probe = meaning(log.read_text().splitlines()[0].replace(shutil.which("c++") or "", "c++").split())
    listed = json.loads((tmp_path / "build" / "compile_commands.json").read_text())
    wanted = {meaning(entry["command"].split()) for entry in listed}

    monkeypatch.setenv("CUDACXX", str(nvcc))
    monkeypatch.setenv("CXX", "c++")
    tools = build_native.find_tools("90")
    assert tools.cudart == top / "lib64" / "libcudart_static.a"
    ours = [meaning(command) for _, command in build_native.commands(package, tools, tmp_path)]
    assert {(source, flags) for source, flags in ours if source.endswith(".cpp")} == wanted
    kernels = dict(pair for pair in ours if pair[0].endswith(".cu"))
    assert set(kernels) == {str(path) for path in (package.folder / "csrc" / "cuda").glob("*.cu")}
    assert set(kernels.values()) == {probe[1]}


def test_building_without_cmake_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, said in (("CUDACXX", "/nowhere/nvcc", "expected CUDA's compiler"),
                              ("CXX", "/nowhere/g++", "expected a C\\+\\+17 compiler")):  # fmt: skip
        monkeypatch.setenv(name, value)
        with pytest.raises(EnvironmentFault, match=f"{value.replace('+', '.')}: not found, {said}"):
            build_native.find_tools("90")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="nvidia-smi: shows no GPU"):
        build_native.native_architecture()
