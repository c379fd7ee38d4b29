#!/usr/bin/env bash
# Run the tests, those of optional features included. Arguments go to pytest:
#   scripts/test.sh                            all tests
#   scripts/test.sh -m 'not slow'              a quick run
#   scripts/test.sh tests/test_model.py -k sinkhorn
# RECGOAT_TEST_DATA=FOLDER: also run the tests on real data, where FOLDER contains the dataset folder baby/.
set -euo pipefail
EXTRAS="features tune report export tests"
source "$(dirname "$0")/setup.sh"
exec $PYTHON -m pytest -rs "$@"
