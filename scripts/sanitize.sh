#!/usr/bin/env bash
# The native tests under AddressSanitizer and UndefinedBehaviorSanitizer, once per instruction set of this machine.
#
#     scripts/sanitize.sh [PYTEST_ARGUMENT...]        default: tests/engine
#
# Builds both native packages with g++ (or $CXX) into a temporary folder; nothing installed is touched. Python itself is not
# instrumented, hence the preloaded runtime and no leak detection (scripts/fuzz.sh looks for leaks). Exit code: pytest's.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
COMPILER=${CXX:-g++}
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT
. "$ROOT/scripts/native_build.sh"

require_tool "$COMPILER" "Install g++ or set CXX."
require_tool "$PYTHON" "Run make setup or set PYTHON."
require_tool cmake "Install cmake."
require_tool ninja "Install ninja."
runtime=$("$COMPILER" -print-file-name=libasan.so)
[ -f "$runtime" ] || fail 3 "$COMPILER: found no libasan.so, expected the sanitizers' runtime. Use g++ and install libasan."
# Without the C++ library in front, the runtime would find no exceptions to intercept.
preload="$runtime $("$COMPILER" -print-file-name=libstdc++.so)"

echo "building with $SANITIZERS"
build_native "$COMPILER" -DMIEN_SANITIZE="$SANITIZERS" -DMIEN_OPTIMISE=-O1
mkdir "$FOLDER/site"
cp -r "$ROOT/submodules/diff-gaussian-rasterization/diff_gaussian_rasterization" "$ROOT/submodules/simple-knn/simple_knn" \
  "$FOLDER/site"
cp "$FOLDER/diff-gaussian-rasterization/_native.so" "$FOLDER/site/diff_gaussian_rasterization"
cp "$FOLDER/simple-knn/_native.so" "$FOLDER/site/simple_knn"

export PYTHONPATH=$FOLDER/site PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1
export MIEN_EMULATION_SANITIZE=1 # the emulated device too: what compute-sanitizer's memcheck finds on a GPU, it finds here
reports=log_path=$FOLDER/report # pytest would swallow them
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:$reports
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1:$reports
cd "$ROOT"
[ $# -gt 0 ] || set -- tests/engine
status=0
for isa in $(instruction_sets); do
  echo "MIEN_ISA=$isa"
  MIEN_ISA=$isa LD_PRELOAD=$preload "$PYTHON" -m pytest -p no:cacheprovider "$@" || status=$?
done
cat "$FOLDER"/report.* 2>/dev/null || true
exit "$status"
