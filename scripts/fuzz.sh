#!/usr/bin/env bash
# Hostile arguments for every exported C function: libFuzzer with AddressSanitizer, UndefinedBehaviorSanitizer and leak
# detection on tests/fuzz.
#
#     scripts/fuzz.sh [RUNS] [CORPUS]        default: 1000000 runs from an empty corpus, some minutes on one core
#
# Needs clang++ (or $CLANG) with libFuzzer; builds into a temporary folder, which stays after a fault. Exit codes: 0
# clean, 1 a fault, whose input (in output/fuzz) and command are printed, 2 bad arguments, 3 no clang.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
CLANG=${CLANG:-clang++}
RUNS=${1:-1000000}
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT
. "$ROOT/scripts/native_build.sh"

case $RUNS in
  '' | *[!0-9]*) fail 2 "RUNS: found $RUNS, expected a positive number. Use scripts/fuzz.sh 1000000." ;;
esac
require_tool "$CLANG" "Install it (apt install clang libclang-rt-14-dev) or set CLANG."
require_tool cmake "Install cmake."
require_tool ninja "Install ninja."
echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' >"$FOLDER/empty.cpp"
"$CLANG" -fsanitize=fuzzer,address "$FOLDER/empty.cpp" -o "$FOLDER/empty" >/dev/null 2>&1 \
  || fail 3 "$CLANG: found no libFuzzer or AddressSanitizer, expected its runtime. Install libclang-rt-14-dev (or compiler-rt)."

# Comparisons of floats and counters teach the fuzzer nothing and cost a factor of two.
quiet=-fno-sanitize-coverage=trace-cmp
echo "building with fuzzer,$SANITIZERS"
build_native "$CLANG" -DMIEN_SANITIZE="$SANITIZERS,fuzzer-no-link" -DMIEN_OPTIMISE=-O2 -DCMAKE_CXX_FLAGS="$quiet"
sources=$(find "$ROOT/tests/fuzz" -name '*.cpp' ! -name replay.cpp)
# shellcheck disable=SC2086
build_harness "$CLANG" "$FOLDER/fuzz" -O2 -fsanitize="fuzzer,$SANITIZERS" -fno-sanitize-recover=all "$quiet" -- $sources

crashes=$ROOT/output/fuzz
corpus=${2:-$FOLDER/corpus}
mkdir -p "$crashes" "$corpus"
# Little memory in quarantine: an input ends within milliseconds, and fresh pages take longer than most of them.
export ASAN_OPTIONS=detect_leaks=1:quarantine_size_mb=16 UBSAN_OPTIONS=print_stacktrace=1
options=(-max_len=400 -len_control=10 -entropic=0 -seed="${SEED:-1}" -timeout=60 -rss_limit_mb=4096)
if "$FOLDER/fuzz" "${options[@]}" -runs="$RUNS" -artifact_prefix="$crashes/" "$corpus" >"$FOLDER/log" 2>&1; then
  grep -E '^Done' "$FOLDER/log"
  exit 0
fi
sed -nE '/ERROR:|runtime error:|returned status|knn:/,$p' "$FOLDER/log" | head -40 >&2
tail -4 "$FOLDER/log" >&2
input=$(grep -oE "$crashes/[a-z-]+-[0-9a-f]+" "$FOLDER/log" | tail -1)
trap - EXIT
fail 1 "$input: a fault, see above. Reproduce: $FOLDER/fuzz $input"
