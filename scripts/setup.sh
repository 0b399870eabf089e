#!/usr/bin/env bash
# Creates .venv from requirements/cpu.txt: `make setup`. Rerun it to repair an incomplete environment.
# PYTHON chooses the interpreter (3.11 or newer). If pip finds only torch's CUDA build (gigabytes), get the CPU build with
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
PINS=requirements/cpu.txt
CORE=requirements/core.txt
BODY=$(mktemp)
trap 'rm -f "$BODY"' EXIT

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: Python 3.11 or newer is needed, $PYTHON is $("$PYTHON" -V 2>&1); set PYTHON=/path/to/python3.11" >&2; exit 2; }
command -v g++ >/dev/null || echo "note: no g++ found; only a DeepSpeed file with offload_optimizer needs it (apt install g++)" >&2

# a working folder keeps its packages; one whose interpreter does not start is created anew
.venv/bin/python -c '' 2>/dev/null || "$PYTHON" -m venv --clear .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

echo "1/3 torch"
pip install -q "$(grep '^torch==' "$CORE")"
echo "2/3 the pinned set"
# torchvision from PyPI depends on a CUDA torch, hence --no-deps; deepspeed is built against the torch above
grep -vE '^(#|$|-c |torch$|deepspeed$)' $PINS > "$BODY"
pip install -q --no-deps -c "$CORE" -c requirements/rest.txt -r "$BODY" setuptools wheel
echo "3/3 deepspeed, the torchvision shim"
DS_BUILD_OPS=0 pip install -q --no-deps --no-build-isolation "$(grep '^deepspeed==' "$CORE")"
.venv/bin/python scripts/install_shim.py
.venv/bin/python -c 'import torch, transformers, trl; from transformers import AutoProcessor'
touch .venv/.stamp
