#!/bin/sh
# Tests with other versions of Python and of the libraries than usual. Each lane has an environment of its own:
#   sh tests/lanes.sh newest    the newest Python and libraries, without torch: tests that need it are skipped
#   sh tests/lanes.sh lowest    Python 3.11 and the lowest versions that pyproject.toml allows
# PYTHON names another Python. TEST_PROCESSES files are tested at a time (2). Other words go to pytest.
set -eu
unset CDPATH
cd "$(dirname "$0")/.."
lane=${1:-}
venv=$PWD/.venv-$lane
stamp=$venv/.installed
case $lane in
newest) minors='14 13 12' forbidden='torch==0' ;; # there are builds of torch without CUDA for few Pythons
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
    echo "no Python 3.$(echo "$minors" | sed 's/ /, 3./g') found; PYTHON=/path/to/python names one" >&2
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
    # Old libraries use what is deprecated in newer ones that they depend on. No cluster, no browser, no kills.
    $pytest -W ignore::DeprecationWarning "$@" tests/cli tests/core tests/evaluate tests/label tests/metrics tests/planning \
        tests/report tests/test_lazy.py tests/train/test_train.py tests/volumes \
        --ignore-glob='*/test_kill.py' --ignore-glob='*/test_memory.py'
fi
