# Sourced by the other scripts: goes to the repository root, makes .venv and installs requirements.txt once, sets PYTHON.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! [ .venv/installed -nt requirements.txt ]; then
    echo "installing requirements.txt into .venv"
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --requirement requirements.txt
    touch .venv/installed
fi
PYTHON=.venv/bin/python
