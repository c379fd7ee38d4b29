#!/usr/bin/env bash
# Train RecGOAT on Baby with the published settings (presets/baby-paper.json). Arguments are appended:
#   scripts/baby.sh --epochs 1
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec $PYTHON -u main.py --preset baby-paper "$@"
