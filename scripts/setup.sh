# Sourced by the other scripts: goes to the repository root, makes .venv, installs requirements.txt and what EXTRAS names
# (requirements files) once, sets PYTHON.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for FILE in requirements.txt ${EXTRAS:-}; do
    STAMP=.venv/installed_${FILE//\//_}
    [ "$STAMP" -nt "$FILE" ] && continue
    echo "installing $FILE into .venv"
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --requirement "$FILE" --constraint requirements.txt
    touch "$STAMP"
done
PYTHON=.venv/bin/python
