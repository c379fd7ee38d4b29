#!/usr/bin/env bash
# Run the tests, those of optional features included, in two processes. Arguments go to pytest:
#   scripts/test.sh                            all tests
#   scripts/test.sh -m 'not slow'              a quick run
#   scripts/test.sh tests/layers -k sinkhorn
#   scripts/test.sh -n 0                       in one process, for --pdb
# RECGOAT_TEST_DATA=FOLDER: also run the tests on real data, where FOLDER contains the dataset folder baby/.
set -euo pipefail
EXTRAS="features tune report export tests"
source "$(dirname "$0")/setup.sh"
exec $PYTHON -m pytest -rs --numprocesses 2 --dist worksteal "$@"
