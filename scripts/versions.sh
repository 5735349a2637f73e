#!/usr/bin/env bash
# The tests of what touches other libraries, on other versions of them. Needs uv; PYTHON names the interpreter.
#   bash scripts/versions.sh --resolution lowest-direct                      # the lower bounds, all extras
#   PYTHON=3.13 bash scripts/versions.sh torch==2.14.1 transformers==5.23.0  # one set of older ones
set -euo pipefail
cd "$(dirname "$0")/.."

uv venv --quiet --clear --python "${PYTHON:-3.11}" .venv-versions
uv pip install --quiet --python .venv-versions/bin/python --requirement pyproject.toml --extra dev "$@"
uv pip list --python .venv-versions/bin/python | grep -iE "^(torch|torchvision|open.clip.torch|transformers|timm|peft|numpy) "
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=$PWD
exec .venv-versions/bin/python -m pytest -n 2 tests/{core,models,classification,captioning,language,conformance,training,exports}
