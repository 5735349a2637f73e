#!/usr/bin/env bash
# Format check, lint, types, import contracts and tests, in an environment of its own.
source "$(dirname "$0")/environment.sh" dev

export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
unset PYTHONDONTWRITEBYTECODE # hundreds of processes start in the tests: none has to compile the package again
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/lint-imports
.venv/bin/python -m pytest -n 2 "$@"
