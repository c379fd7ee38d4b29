#!/usr/bin/env bash
# Train RecGOAT on Electronics with the published settings (presets/electronics-paper.json). Arguments are
# appended: scripts/electronics.sh --epochs 1
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec $PYTHON -u main.py --preset electronics-paper "$@"
