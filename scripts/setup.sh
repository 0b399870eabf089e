#!/usr/bin/env bash
# Creates .venv (or VENV) from requirements/cpu.txt: `make setup`. Rerun it to repair an incomplete environment.
# PYTHON chooses the interpreter (3.11 or newer) it is made from. If pip finds only torch's CUDA build (gigabytes), get the CPU build with
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
PINS=requirements/cpu.txt
CORE=requirements/core.txt
BODY=$(mktemp)
trap 'rm -f "$BODY"' EXIT

if [ -z "${CPU:-}" ] && nvidia-smi -L 2>/dev/null | grep -q .; then
  cat >&2 <<TEXT
error: this machine has GPUs, and \`make setup\` creates an environment for CPUs. Create one for GPUs, and name or activate it:
  $PYTHON -m venv .venv-gpu && .venv-gpu/bin/pip install -r requirements/gpu.txt
  make doctor VENV=.venv-gpu
or with conda: conda env create -f environment.yml && conda activate faithful-grpo
For the CPU environment all the same: make setup CPU=1
TEXT
  exit 2
fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: Python 3.11 or newer is needed, $PYTHON is $("$PYTHON" -V 2>&1); set PYTHON=/path/to/python3.11" >&2; exit 2; }
command -v g++ >/dev/null || echo "note: no g++ found; only a DeepSpeed file with offload_optimizer needs it (apt install g++)" >&2

# shellcheck source=scripts/install.sh
. scripts/install.sh
alone
# a working folder keeps its packages; one whose interpreter does not start is created anew
"$VENV/bin/python" -c '' 2>/dev/null || "$PYTHON" -m venv --clear "$VENV"
touch "$VENV/.unfinished"

step "1/3 torch (about 200 MB)" "$(grep '^torch==' "$CORE")"
# torchvision from PyPI depends on a CUDA torch, hence --no-deps; deepspeed is built against the torch above
grep -vE '^(#|$|-c |torch$|deepspeed$)' $PINS > "$BODY"
step "2/3 $(grep -c . "$BODY") pinned packages" --no-deps -c "$CORE" -c requirements/rest.txt -r "$BODY" setuptools wheel
DS_BUILD_OPS=0 step "3/3 deepspeed, the torchvision shim" --no-deps --no-build-isolation "$(grep '^deepspeed==' "$CORE")"
"$VENV/bin/python" scripts/install_shim.py
"$VENV/bin/python" -c 'import torch, transformers, trl; from transformers import AutoProcessor'
touch "$VENV/.stamp"
rm "$VENV/.unfinished"
