# shellcheck shell=bash
# Sourced by the other scripts: changes to the repository root, fills .venv, sets PYTHON.
#   EXTRAS="features report"    extras of pyproject.toml to install with the run-time packages (default: none)
# .venv/installed_NAME holds a copy of the files that NAME was installed from; when they change, pip runs again.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
PYTHON=.venv/bin/python
if [ ! -x $PYTHON ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "python3 is $(python3 --version 2>&1); Python 3.11 or newer is needed" >&2; exit 2; }
    python3 -m venv --clear .venv
fi

specification() { cat requirements.txt constraints.txt pyproject.toml; }
MISSING=()
for NAME in runtime ${EXTRAS:-}; do
    specification | cmp -s - ".venv/installed_$NAME" 2>/dev/null || MISSING+=("$NAME")
done
if [ ${#MISSING[@]} -gt 0 ]; then
    echo "installing into .venv: ${MISSING[*]}"
    if [ "${MISSING[*]}" = runtime ]; then
        $PYTHON -m pip install --requirement requirements.txt
    else
        LIST=$(IFS=,; echo "${MISSING[*]}")
        $PYTHON -m pip install --constraint constraints.txt --editable ".[${LIST#runtime,}]"
    fi
    for NAME in "${MISSING[@]}"; do specification >".venv/installed_$NAME"; done
fi
