#!/usr/bin/env bash
# Format check, lint, types, import contracts and tests, in an environment of its own.
export PIP_COMPILE=0 # most of what is installed is never imported here
source "$(dirname "$0")/environment.sh" dev

export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
unset PYTHONDONTWRITEBYTECODE # hundreds of processes start in the tests: none has to compile anything again
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/lint-imports
.venv/bin/python -m pytest -n 3 "$@" # on two cores: much waits for a process or a clock
