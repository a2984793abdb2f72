# Makes the virtual environment of a checkout, once, and puts it on the PATH. Sourced by the scripts of the project:
#   . examples/environment.sh [EXTRA]
# Needs Python 3.11 or later ($PYTHON, else python3); installs into .venv ($UNETCLI_VENV for another place).

root=$(cd "$(dirname "$0")/.." && pwd)
venv=${UNETCLI_VENV:-$root/.venv}
extra=${1:-}
stamp="$venv/.installed$extra"

if [ ! -e "$stamp" ] || [ "$root/pyproject.toml" -nt "$stamp" ] || [ "$root/constraints.txt" -nt "$stamp" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "unetcli needs Python 3.11 or later; PYTHON=/path/to/python3.11 names one" >&2
        exit 1
    }
    echo "installing into $venv (a few minutes the first time)" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$root/constraints.txt" --editable "$root${extra:+[$extra]}"
    touch "$stamp"
fi
PATH="$venv/bin:$PATH"
export PATH
