# Creates the virtual environment of a checkout once, and puts it on the PATH. The scripts of the project source it:
#   group=dev    (a dependency group of pyproject.toml, or empty for the use of unetcli alone)
#   . examples/environment.sh
# Needs Python 3.11 or later: $PYTHON, else the first suitable one on the PATH. Installs into $UNETCLI_VENV or .venv.
# UNETCLI_TORCH=cpu installs the small build of torch without CUDA; the usual one brings gigabytes of CUDA packages.
# uv is installed first, as it knows where to find that build. The variable only affects a new environment.

unset CDPATH
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${UNETCLI_VENV:-$root/.venv}
mkdir -p "$venv"
venv=$(cd "$venv" && pwd)
stamp="$venv/.installed$group"

# is_outdated: whether a file that determines the environment is newer than it
is_outdated() {
    [ ! -e "$stamp" ] && return
    for file in pyproject.toml constraints.txt ${group:+tests/constraints.txt}; do
        [ "$root/$file" -nt "$stamp" ] && return
    done
    return 1
}

# install_all: install unetcli in editable form, its dependencies, and the group with the extras that it uses
install_all() {
    if [ -n "$group" ]; then
        set -- --constraint "$root/tests/constraints.txt" --group "$root/pyproject.toml:$group" \
            --editable "$root[s3,tensorboard,h5py]"
    else
        set -- --editable "$root"
    fi
    set -- --constraint "$root/constraints.txt" "$@"
    if [ -n "${UNETCLI_TORCH:-}" ]; then
        pip_install uv
        "$venv/bin/uv" --quiet pip install --python "$venv/bin/python" --torch-backend "$UNETCLI_TORCH" "$@"
    else
        # the pip that comes with Python 3.11 to 3.13 does not know groups
        pip_install --help | grep -e --group >/dev/null || pip_install 'pip>=25.1'
        pip_install "$@"
    fi
}

pip_install() {
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check install "$@"
}

if is_outdated; then
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
    install_all
    touch "$venv/.installed" "$stamp" # a group includes everything else
fi
PATH="$venv/bin:$PATH"
export PATH
