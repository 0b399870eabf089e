# shellcheck shell=bash
# Sourced by setup.sh and setup_vllm.sh: `alone` lets one of them at a time work in this checkout, and `step TITLE ARGUMENTS…` runs
# pip install in $VENV and shows that it is alive.

# Two `make` of a fresh checkout (a server and a stage) both call setup. The second waits, and ends if $VENV is complete then.
# $BODY is a file that is older than the waiting.
alone() {
  command -v flock >/dev/null || return 0
  exec 9<requirements
  flock -n 9 && return
  echo "waiting: another make sets up an environment of this folder" >&2
  flock 9
  if [ "$VENV/.stamp" -nt "$BODY" ]; then exit 0; fi
}

# On a terminal the line shows the package pip is at; elsewhere there is one line per step. pip's own words are kept for an error.
step() {
  local title=$1 log start=$SECONDS pid
  shift
  log=$(mktemp)
  "$VENV/bin/python" -m pip --disable-pip-version-check install --progress-bar off "$@" > "$log" 2>&1 &
  pid=$!
  if [ -t 2 ]; then
    while kill -0 "$pid" 2>/dev/null; do
      printf '\r\033[K%s: %s' "$title" "$(tail -n 1 "$log" | tr -d '\r' | cut -c1-60)" >&2
      sleep 1
    done
    printf '\r\033[K' >&2
  else
    echo "$title" >&2
  fi
  if ! wait "$pid"; then
    tail -n 30 "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
  echo "$title: done in $((SECONDS - start)) s" >&2
}
