# For sourcing by sanitize.sh, fuzz.sh, valgrind.sh and gpu_check.sh (which takes the messages): building the native
# packages for checks. Needs $ROOT and $FOLDER.
SANITIZERS=address,undefined,float-cast-overflow # the last is not part of `undefined`

# fail CODE MESSAGE: the error contract of utils/errors.py.
fail() {
  echo "error: $2" >&2
  exit "$1"
}

# The build tools, or exit code 3 with the one that is missing.
require_tool() {
  command -v "$1" >/dev/null 2>&1 || fail 3 "$1: not found, expected it on the PATH. $2"
}

# build_native COMPILER CMAKE_OPTION...: both packages into $FOLDER/diff-gaussian-rasterization and $FOLDER/simple-knn.
build_native() {
  local compiler=$1 package
  shift
  for package in diff-gaussian-rasterization simple-knn; do
    cmake -S "$ROOT/submodules/$package" -B "$FOLDER/$package" -G Ninja -DCMAKE_CXX_COMPILER="$compiler" \
      -DMIEN_CUDA=OFF "$@" \
      >"$FOLDER/build.log" 2>&1 && ninja -C "$FOLDER/$package" >>"$FOLDER/build.log" 2>&1 \
      || { tail -20 "$FOLDER/build.log" >&2; fail 3 "$package: does not build with $compiler, see above."; }
  done
}

# build_harness COMPILER OUTPUT FLAG... -- SOURCE...: tests/fuzz against both packages.
build_harness() {
  local compiler=$1 output=$2 flags=()
  shift 2
  while [ "$1" != -- ]; do flags+=("$1"); shift; done
  shift
  "$compiler" -std=c++17 -g -Wall -Wextra "${flags[@]}" "$@" "$FOLDER"/diff-gaussian-rasterization/_native.so \
    "$FOLDER"/simple-knn/_native.so -o "$output" || fail 3 "tests/fuzz: does not build with $compiler, see above."
}

# The instruction sets of this machine that the kernels know.
instruction_sets() {
  local sets=scalar
  if grep -qw avx2 /proc/cpuinfo 2>/dev/null && grep -qw fma /proc/cpuinfo; then sets="$sets avx2"; fi
  if grep -qw avx512vl /proc/cpuinfo 2>/dev/null && grep -qw avx512dq /proc/cpuinfo; then sets="$sets avx512"; fi
  echo "$sets"
}
