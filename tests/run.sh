#!/bin/sh
# All checks, in an environment of their own: style, types, tests. The tests of clusters start a real SLURM of their own
# (Debian's slurm-wlm and munge); as root it is installed where it is missing, else those tests are skipped with the reason.
#   sh tests/run.sh          the default tier
#   sh tests/run.sh --all    the long tests too, then other versions of Python and of the libraries (tests/lanes.sh)
# TEST_PROCESSES files are tested at a time (2). Each process starts a cluster and a browser of its own.
# Other words go to pytest: sh tests/run.sh tests/test_plan.py
set -eu
group=dev
. "$(dirname "$0")/../examples/environment.sh"
cd "$root"

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! { command -v slurmctld && command -v munged; } >/dev/null; then
    echo "installing slurm-wlm and munge for the tests" >&2
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends \
        slurm-wlm munge; } >/dev/null 2>&1 || echo "could not install them" >&2
fi

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v chromium >/dev/null; then
    echo "installing chromium for the tests" >&2
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends \
        chromium; } >/dev/null 2>&1 || echo "could not install it" >&2
fi

tier=
if [ "${1:-}" = --all ]; then
    shift
    tier='not gpu'
fi
ruff check .
ruff format --check .
mypy
python -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile ${tier:+-m "$tier"} "$@"
if [ -n "$tier" ] && [ $# = 0 ]; then
    sh tests/lanes.sh lowest
    sh tests/lanes.sh newest
fi
