#!/bin/sh
# All checks, in an environment of their own: style, types, tests.
#   sh tests/run.sh          the default tier
#   sh tests/run.sh --all    the long tests too
# Other words go to pytest: sh tests/run.sh tests/test_plan.py
set -eu
extra=dev
. "$(dirname "$0")/../examples/environment.sh"
cd "$root"

tier=
if [ "${1:-}" = --all ]; then
    shift
    tier='not gpu'
fi
ruff check .
ruff format --check .
mypy
python -m pytest ${tier:+-m "$tier"} "$@"
