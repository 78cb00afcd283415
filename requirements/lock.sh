#!/usr/bin/env bash
# Resolves setup.py into the lock files that the Makefile and the Dockerfile install from. Usage: lock.sh PATH_TO_UV
#
# One set of versions for every Python from 3.11 on (--fork-strategy fewest), so that users on 3.12 run what the tests ran. dev.lock and
# tpu.lock hold only what they add to run.lock.
set -euo pipefail
uv=$1
cd "$(dirname "$0")/.."

resolve() { # resolve ARGS...: the pinned requirements, one a line; setuptools is there to install maxagent itself
  echo 'setuptools>=77' | "$uv" pip compile setup.py - --universal --python-version 3.11 --fork-strategy fewest --no-header \
    --no-annotate --quiet "$@"
}

comment="# Written by \`make lock\` from setup.py; edit that."
resolved=$(resolve)
printf '%s\n%s\n' "$comment" "$resolved" > requirements/run.lock
for extra in dev tpu; do
  resolved=$(resolve --extra "$extra" --constraint requirements/run.lock)
  {
    printf '%s\n-r run.lock\n' "$comment"
    grep --invert-match --line-regexp --fixed-strings --file=requirements/run.lock <<< "$resolved"
  } > "requirements/$extra.lock"
done
