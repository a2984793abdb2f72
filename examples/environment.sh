# Makes the virtual environment of a checkout, once, and puts it on the PATH. Sourced by the scripts of the project:
#   extra=dev    (an extra of pyproject.toml, or empty)
#   . examples/environment.sh
# Needs Python 3.11 or later ($PYTHON, else the first that fits); installs into .venv ($UNETCLI_VENV for another place).

unset CDPATH
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${UNETCLI_VENV:-$root/.venv}
mkdir -p "$venv"
venv=$(cd "$venv" && pwd)
stamp="$venv/.installed$extra"

if [ ! -e "$stamp" ] || [ "$root/pyproject.toml" -nt "$stamp" ] || [ "$root/constraints.txt" -nt "$stamp" ]; then
    found=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            found=$candidate
            break
        fi
    done
    if [ -z "$found" ]; then
        echo "unetcli needs Python 3.11 or later; PYTHON=/path/to/python3.11 names one" >&2
        exit 1
    fi
    echo "installing into $venv (a few minutes the first time)" >&2
    "$found" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$root/constraints.txt" --editable "$root${extra:+[$extra]}"
    touch "$venv/.installed" "$stamp" # an extra brings all the rest too
fi
PATH="$venv/bin:$PATH"
export PATH
