#!/usr/bin/env bash
# Prints the interpreter that `make` uses, and the stamp file of its environment where `make setup` looks after it.
#   PYTHON=…   this interpreter, as it is
#   VENV=…     the environment in this folder (pip or conda); only `make setup VENV=…` creates it
#   otherwise  the environment that you activated, if it has torch and TRL; else .venv, which `make setup` creates
set -euo pipefail
VENV=${VENV:-} PYTHON=${PYTHON:-}
complete() { "$1" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("torch", "trl"))))' 2>/dev/null; }
note() { [ -n "${QUIET:-}" ] || echo "note: $1" >&2; }

if [ -n "$PYTHON" ]; then
  command -v "$PYTHON" >/dev/null || { echo "error: PYTHON=$PYTHON is no interpreter; give the path of one, such as PYTHON=/usr/bin/python3.11" >&2; exit 2; }
  complete "$PYTHON" || note "$PYTHON has no torch or no TRL: install requirements/ there, or let \`make setup PYTHON=$PYTHON\` create .venv from it and run make without PYTHON"
  echo "$PYTHON"
  exit
fi
if [ -n "$VENV" ] && [ -z "${QUIET:-}" ] && ! [ -x "$VENV/bin/python" ] && ! [ -e "$VENV/.unfinished" ]; then
  echo "error: VENV=$VENV has no interpreter ($VENV/bin/python); \`make setup VENV=$VENV\` creates an environment for CPUs there," \
    "docs/installation.md says how to create one for GPUs" >&2
  exit 2
fi
if [ -z "$VENV" ]; then
  VENV=.venv
  active=${VIRTUAL_ENV:-}
  if [ -z "$active" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then active=${CONDA_PREFIX:-}; fi
  if [ -n "$active" ] && ! [ "$active" -ef .venv ]; then
    if complete "$active/bin/python"; then
      echo "$active/bin/python"
      exit
    fi
    note "the active environment $active has no torch or no TRL, so make uses .venv; requirements/ lists what is needed"
  fi
fi
# an environment that `make setup` did not create is used as it is
if [ -x "$VENV/bin/python" ] && [ ! -e "$VENV/.stamp" ] && [ ! -e "$VENV/.unfinished" ] && complete "$VENV/bin/python"; then
  echo "$VENV/bin/python"
else
  echo "$VENV/bin/python $VENV/.stamp"
fi
