#!/usr/bin/env bash
# Check everything on a machine with an NVIDIA GPU, in ten minutes and without a network: tests, the published
# sizes beside their floors, the textbook variant, a profile. Writes runs/gpu_check/gpu_check.json and .md.
#   bash scripts/gpu_check.sh
#   PYTHON=python3 bash scripts/gpu_check.sh --parts tests baby
#   bash scripts/gpu_check.sh --rehearse    the same with tiny sizes on a CPU
# Nothing is installed: Python is $PYTHON, else that of .venv, else python3.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${PYTHON:-}" ] || if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
exec "$PYTHON" -m benchmarks.gpu_check "$@"
