# shellcheck shell=bash
# Sourced by the other scripts: changes to the repository root, fills .venv, sets PYTHON.
#   EXTRAS="features report"    extras of pyproject.toml to install with the run-time packages (default: none)
# .venv/installed_NAME holds a copy of the files that NAME was installed from; when they change, it is installed again.
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

# install ARGUMENT...: with uv where it is there, which also picks the CPU or CUDA build of torch for this machine;
# with pip otherwise, or if uv fails, for example because a mirror is configured for pip alone.
install() {
    if command -v uv >/dev/null &&
        uv pip install --constraint constraints.txt --python $PYTHON --torch-backend auto "$@"; then
        return
    fi
    $PYTHON -m pip install --constraint constraints.txt "$@"
}

if [ ${#MISSING[@]} -gt 0 ]; then
    echo "installing into .venv: ${MISSING[*]} (once; about 1.2 GB with the CPU build of torch)"
    if [ "${MISSING[*]}" = runtime ]; then
        install --requirement requirements.txt
    else
        LIST=$(IFS=,; echo "${MISSING[*]}")
        install --editable ".[${LIST#runtime,}]"
    fi
    for NAME in "${MISSING[@]}"; do specification >".venv/installed_$NAME"; done
fi
