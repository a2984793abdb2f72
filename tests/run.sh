#!/bin/sh
# Run all checks (style, types, tests) in a separate environment. Cluster tests start their own SLURM cluster (Debian's
# slurm-wlm and munge). If it is missing, root installs it; for other users those tests are skipped with the reason.
#   sh tests/run.sh          default tests
#   sh tests/run.sh --all    also slow tests, then other versions of Python and of the libraries (tests/lanes.sh)
# The variable TEST_PROCESSES sets the number of parallel processes (default 2), each with its own cluster and browser.
# All further arguments are passed to pytest: sh tests/run.sh tests/core/test_files.py
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
