#!/usr/bin/env bash
# Check style, formatting and types, as pyproject.toml configures them. To repair what can be repaired
# automatically:
#   .venv/bin/ruff check --fix && .venv/bin/ruff format
set -euo pipefail
EXTRAS=lint
source "$(dirname "$0")/setup.sh"
STATUS=0
$PYTHON -m ruff check . || STATUS=1
$PYTHON -m ruff format --check . || STATUS=1
$PYTHON -m mypy || STATUS=1
exit $STATUS
