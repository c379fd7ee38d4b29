#!/usr/bin/env bash
# Runs the test suite in the project's own virtual environment. Arguments go to pytest: scripts/test.sh -k sinkhorn
set -euo pipefail
EXTRAS=data/requirements.txt
source "$(dirname "$0")/setup.sh"
exec $PYTHON -m pytest -rs "$@"
