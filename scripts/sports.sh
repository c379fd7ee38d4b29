#!/usr/bin/env bash
# Train RecGOAT on Sports with the published settings (presets/sports-paper.json). Arguments are appended:
#   scripts/sports.sh --epochs 1
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec $PYTHON -u main.py --preset sports-paper "$@"
