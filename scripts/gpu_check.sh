#!/usr/bin/env bash
# Everything that only a GPU can show, in one command and under 9 minutes: builds the native packages for the GPU that is
# there, runs the tests marked `gpu`, watches some training steps with compute-sanitizer, and measures.
#
#     scripts/gpu_check.sh [FOLDER]        where the table goes; default docs/benchmarks
#
# Needs PyTorch, NumPy, nvcc and g++ (CMake and make build if both are there). Nothing is installed or downloaded; what
# else is missing is named, and what needs it is left out. Wheels in .whl/ (or $WHEELS) are unpacked and used. $PYTHON:
# the interpreter; default .venv's, or python3.
# Every step has a time limit. Exit codes: 0 all well, 1 a check failed, 2 bad arguments, 3 no GPU or no tools.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
FOLDER=$ROOT/build/gpu_check
TABLES=${1:-$ROOT/docs/benchmarks}
SECONDS=0 # bash counts them
BUDGET=525
FOR_BENCHMARK=180 # seconds that what comes before it leaves
. "$ROOT/scripts/native_build.sh"

[ $# -le 1 ] || fail 2 "command line: found $# arguments, expected at most one, the folder of the table."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=$ROOT/.venv/bin/python
  [ -x "$PYTHON" ] || PYTHON=python3
fi
require_tool "$PYTHON" "Set PYTHON to one with PyTorch."
require_tool timeout "Install coreutils."
mkdir -p "$FOLDER/site"
export PYTHONPATH=$FOLDER/site${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE
cd "$ROOT"

# Why there is nothing to check, or nothing.
no_gpu() {
  "$PYTHON" - <<'END' 2>/dev/null || echo "$PYTHON has no PyTorch"
import torch
try:
    torch.cuda.init()
except (RuntimeError, AssertionError) as error:
    print(str(error).splitlines()[0])
END
}
reason=$(no_gpu)
[ -z "$reason" ] || fail 3 "GPU: $reason"

NOTES=()
FAILED=0
left() { echo $((BUDGET - SECONDS)); }

# note RESULT TEXT: remembers a line for the table; RESULT: passed, failed or skipped.
note() {
  echo "gpu_check: $1: $2"
  NOTES+=(--note "$1: $2")
  [ "$1" != failed ] || FAILED=1
}

# limited SECONDS LOG COMMAND...: runs it, output to the log; 124 when the time was up.
limited() {
  local seconds=$1 log=$2
  shift 2
  [ "$seconds" -le $(($(left) - FOR_BENCHMARK)) ] || seconds=$(($(left) - FOR_BENCHMARK))
  : >"$log"
  [ "$seconds" -gt 0 ] || return 124
  timeout -k 10 "$seconds" "$@" >"$log" 2>&1
}

# The log's last line, or the first that says what went wrong.
gist() { grep -m1 -E "[Ee]rror[: ]|FAILED|not supported" "$1" || tail -n 1 "$1"; }

# result NAME STATUS LOG SUMMARY
result() {
  case $2 in
    0) note passed "$1: $4" ;;
    124 | 137) note failed "$1: not done when its time was up" ;;
    *) note failed "$1: $(gist "$3" | tr -d '\r' | cut -c1-200)" ;;
  esac
}

unpack_wheels() {
  local wheel
  for wheel in "${WHEELS:-$ROOT/.whl}"/*.whl; do
    [ -f "$wheel" ] || continue
    "$PYTHON" -m zipfile -e "$wheel" "$FOLDER/site"
  done
}

name_missing() {
  local missing
  missing=$("$PYTHON" - <<'END'
import importlib.util as util
names = {"pytest": "tests", "gsplat": "rival", "cv2": "pictures", "plyfile": "reading PLY files", "safetensors": "checkpoints",
         "tensorboard": "its event files",
         "yaml": "presets", "tqdm": "progress", "torchvision": "perceptual loss", "PIL": "contact sheets"}
print(", ".join(f"{name} ({what})" for name, what in names.items() if util.find_spec(name) is None))
END
  )
  [ -z "$missing" ] || note skipped "what needs a package that is not installed: $missing"
}

# build_with_cmake LOG: both packages as pip builds them, into $FOLDER/site.
build_with_cmake() {
  local package
  for package in diff-gaussian-rasterization simple-knn; do
    limited 60 "$1" cmake -S "submodules/$package" -B "$FOLDER/$package" -DMIEN_CUDA=ON \
      -DMIEN_CUDA_ARCHITECTURES="${MIEN_CUDA_ARCHITECTURES:-native}" || return
    limited 240 "$1" cmake --build "$FOLDER/$package" --parallel "$(nproc)" || return
  done
  cp -r submodules/diff-gaussian-rasterization/diff_gaussian_rasterization submodules/simple-knn/simple_knn "$FOLDER/site"
  cp "$FOLDER/diff-gaussian-rasterization/_native.so" "$FOLDER/site/diff_gaussian_rasterization"
  cp "$FOLDER/simple-knn/_native.so" "$FOLDER/site/simple_knn"
}

build() {
  local status=0 log=$FOLDER/build.log how=cmake
  if command -v cmake >/dev/null && command -v make >/dev/null; then
    build_with_cmake "$log" || status=$?
  else
    how="nvcc and g++ alone"
    limited 300 "$log" "$PYTHON" scripts/build_native.py "$FOLDER" || status=$?
  fi
  [ "$status" = 0 ] || { tail -20 "$log" >&2; fail 3 "the native packages do not build ($status), see above."; }
  note passed "build by $how in $SECONDS s"
}

run_tests() {
  local files status=0 log=$FOLDER/tests.log
  if ! "$PYTHON" -c 'import pytest' 2>/dev/null; then
    note skipped "tests: pytest is not installed"
    return
  fi
  mapfile -t files < <(grep -rlE 'engine_device|mark\.gpu' tests --include='test_*.py' | sort)
  limited 120 "$log" "$PYTHON" -m pytest -m gpu -p no:cacheprovider -rs --continue-on-collection-errors "${files[@]}" || status=$?
  grep -q ' passed' "$log" || [ "$status" != 0 ] || status=1 # all skipped is not what a GPU is here for
  result tests "$status" "$log" "$(tail -n 1 "$log")"
}

# Steps of a tiny scene; the first steps are those before the graph, so that the tools see every kernel.
run_sanitizer() {
  local tool status log
  if ! command -v compute-sanitizer >/dev/null; then
    note skipped "compute-sanitizer is not on the PATH"
    return
  fi
  for tool in memcheck racecheck initcheck; do
    log=$FOLDER/$tool.log status=0
    limited 45 "$log" compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" scripts/benchmark_gpu.py --device cuda \
      --smoke --sections step || status=$?
    if grep -qE "Device not supported|not supported on this|Unable to (find|initialize)|failed to initialize" "$log"; then
      note skipped "$tool: compute-sanitizer refuses: $(grep -m1 -E "not supported|Unable|failed to" "$log" | cut -c1-160)"
      return
    fi
    [ "$status" != 124 ] && [ "$status" != 137 ] || { note skipped "$tool: not done within 45 s"; continue; }
    result "$tool" "$status" "$log" "$(grep -E "ERROR SUMMARY|RACECHECK SUMMARY" "$log" | tail -n 1 | tr -d '=' | sed 's/^ *//')"
  done
}

run_benchmark() {
  local seconds status=0
  seconds=$(left)
  timeout -k 10 "$seconds" "$PYTHON" scripts/benchmark_gpu.py --output "$TABLES" --limit $((seconds * 8 / 100)) \
    --long_limit $((seconds * 24 / 100)) "${NOTES[@]}" || status=$?
  [ "$status" = 0 ] || { echo "gpu_check: failed: the benchmark ($status); what it measured is in $TABLES"; FAILED=1; }
}

unpack_wheels
name_missing
build
run_tests
run_sanitizer
run_benchmark
echo "gpu_check: $SECONDS s, logs in $FOLDER"
exit "$FAILED"
