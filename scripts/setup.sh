# Sourced by the other scripts: goes to the repository root, makes .venv and installs requirements.txt once, sets PYTHON.
# EXTRAS names a second list to install, once as well.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for list in requirements.txt ${EXTRAS:-}; do
    mark=.venv/installed-${list//\//-}
    [ "$mark" -nt "$list" ] && continue
    echo "installing $list into .venv"
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --requirement "$list"
    touch "$mark"
done
PYTHON=.venv/bin/python
