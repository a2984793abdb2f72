#!/bin/sh
# Tests and benchmarks that need a GPU, on a machine that has a Python with torch: at most 8 minutes, unattended.
#   sh tests/gpu.sh [--device cuda|cpu] [--quick] [--only PART,..] [--out FOLDER] [--wheels FOLDER] [--isbi FOLDER]
#                    [--minutes N]
# --out      folder for tables, JSON and logs (default: gpu-results)
# --wheels   folder with wheels of packages that the machine's Python lacks; installed beside it, into a new folder
# --isbi     folder with train-volume.tif and train-labels.tif of ISBI 2012; without it, nothing is trained on them
# --minutes  time of that training (default: 2)
# --quick    small network and volumes, on any machine: sh tests/gpu.sh --device cpu --quick
# Tests run if pytest is there. The exit code is 1 if a test or a part failed; the others run all the same.
set -u
cd "$(dirname "$0")/.."
device=cuda quick='' only='' out=gpu-results wheels='' isbi='' minutes=2
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=--quick ;;
    --device | --only | --out | --wheels | --isbi | --minutes) eval "${1#--}=\$2" && shift ;;
    *) echo "tests/gpu.sh: unknown option $1; see its first lines" >&2 && exit 2 ;;
    esac
    shift
done
scratch=$(mktemp -d) failed=''
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"
if [ -n "$wheels" ]; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$scratch/site" \
        "$wheels"/*.whl || exit 1
fi
export PYTHONPATH="$PWD:$scratch/site:${PYTHONPATH:-}" PYTHONUNBUFFERED=1
[ "$device" = cpu ] || nvidia-smi >"$out/nvidia-smi.txt" || exit 1
if [ -z "$only" ] && python3 -c 'import pytest, hypothesis' 2>/dev/null && [ "$device" != cpu ]; then
    # by name: other test files import packages that the machine need not have
    python3 -m pytest -p no:cacheprovider -q -m gpu $(grep -l 'mark.gpu' tests/*/test_*.py) >"$out/tests.log" 2>&1 ||
        failed=tests
    tail -n 40 "$out/tests.log"
fi
python3 tests/benchmarks/gpu.py --device "$device" $quick --out "$out" --scratch "$scratch/work" \
    ${isbi:+--isbi "$isbi"} --minutes "$minutes" ${only:+--only "$only"} 2>&1 | tee "$out/log.txt"
grep -q '^failed: ' "$out/log.txt" && failed="$failed benchmarks"
[ -z "$failed" ] || { echo "failed: $failed" >&2 && exit 1; }
