#!/usr/bin/env bash
# The ablations on one subject: scripts/run_ablations.sh SUBJECT [SEEDS] [flags] [-- TRAIN_FLAGS]; --help lists the flags.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-}
if [ -z "$python" ]; then
  if [ -x "$here/../.venv/bin/python" ]; then python=$here/../.venv/bin/python; else python=python3; fi
fi
exec "$python" "$here/run_ablations.py" "$@"
