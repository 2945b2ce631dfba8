#!/usr/bin/env bash
# Every exported C function under valgrind's memcheck, for uninitialised values above all: the harness of tests/fuzz on
# pseudo-random inputs, without Python, once per instruction set that valgrind knows (it has no AVX-512).
#
#     scripts/valgrind.sh [INPUTS]        default: 1600 per instruction set, some minutes
#
# Exit codes: 0 clean, 1 faults, 2 bad arguments, 3 no valgrind or compiler.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
COMPILER=${CXX:-g++}
INPUTS=${1:-1600}
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT
. "$ROOT/scripts/native_build.sh"

case $INPUTS in
  '' | *[!0-9]*) fail 2 "INPUTS: found $INPUTS, expected a positive number. Use scripts/valgrind.sh 1600." ;;
esac
require_tool valgrind "Install it (apt install valgrind)."
require_tool "$COMPILER" "Install g++ or set CXX."
require_tool cmake "Install cmake."
require_tool ninja "Install ninja."

echo "building"
build_native "$COMPILER" -DCMAKE_CXX_FLAGS=-g -DMIEN_OPTIMISE=-O2
build_harness "$COMPILER" "$FOLDER/replay" -O1 -- "$ROOT"/tests/fuzz/*.cpp
status=0
for isa in scalar avx2; do
  [[ " $(instruction_sets) " == *" $isa "* ]] || continue
  echo "MIEN_ISA=$isa"
  MIEN_ISA=$isa valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite,indirect \
    --show-leak-kinds=definite,indirect --num-callers=20 "$FOLDER/replay" --random "$INPUTS" || status=1
done
exit "$status"
