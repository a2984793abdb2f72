#!/bin/sh
# Run the tests with other versions of Python and of the libraries. Each lane has its own environment:
#   sh tests/lanes.sh newest    the newest Python and libraries, without torch; tests that need torch are skipped
#   sh tests/lanes.sh lowest    Python 3.11 and the lowest versions that pyproject.toml allows
# The variable PYTHON selects another Python, TEST_PROCESSES the number of parallel processes (default 2). All further
# arguments are passed to pytest, in place of the folders that the lane tests by default.
set -eu
unset CDPATH
cd "$(dirname "$0")/.."
lane=${1:-}
venv=$PWD/.venv-$lane
stamp=$venv/.installed
case $lane in
newest) minors='14 13 12' forbidden='torch==0' ;; # builds of torch without CUDA exist for few versions of Python
lowest) minors=11 forbidden= ;;
*) echo "expected newest or lowest, found '$lane'" >&2 && exit 2 ;;
esac
shift

find_python() {
    for minor in $minors; do
        for python in ${PYTHON:-python3.$minor "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$minor".*/bin/python}; do
            "$python" -c pass 2>/dev/null && echo "$python" && return
        done
    done
    echo "no Python 3.$(echo "$minors" | sed 's/ /, 3./g') found; set PYTHON=/path/to/python" >&2
    return 1
}

outdated=
for file in pyproject.toml constraints.txt tests/constraints.txt; do
    [ -e "$stamp" ] && [ ! "$file" -nt "$stamp" ] || outdated=1
done
if [ -n "$outdated" ]; then
    python=$(find_python)
    echo "installing into $venv (a few minutes the first time)" >&2
    "$python" -m venv "$venv"
    PATH="$venv/bin:$PATH"
    python tests/requirements.py "$lane" >"$venv/requirements.txt"
    echo "$forbidden" >"$venv/constraints.txt"
    pip="python -m pip --quiet --disable-pip-version-check install"
    $pip --requirement "$venv/requirements.txt" --constraint "$venv/constraints.txt"
    $pip --no-deps --editable .
    touch "$stamp"
fi
PATH="$venv/bin:$PATH"
export PATH
python -VV

pytest="python -m pytest -p tests.tally --numprocesses ${TEST_PROCESSES:-2} --dist loadfile"
if [ "$lane" = newest ]; then
    $pytest --without-torch --at-least 1500 "$@"
else
    [ $# -gt 0 ] || set -- tests/cli tests/core tests/evaluate tests/label tests/metrics tests/planning tests/report \
        tests/test_lazy.py tests/train/test_train.py tests/volumes
    # Old libraries use deprecated functions of newer ones, so those warnings are ignored. Without cluster, browser, kills.
    $pytest -W ignore::DeprecationWarning "$@" --ignore-glob='*/test_kill.py' --ignore-glob='*/test_memory.py'
fi
