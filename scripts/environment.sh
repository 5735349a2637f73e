# Makes .venv and installs mmprompt with the extras named in $1. Sourced by the other scripts; quick when nothing changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "mmprompt needs Python 3.11 or newer, and '$python' is not. Set PYTHON=/path/to/python3.11." >&2
    exit 2
fi
stamp=".venv/.installed-$1"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    echo "Installing mmprompt[$1] into .venv (a few minutes the first time) ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
    touch "$stamp"
fi
