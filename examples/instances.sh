#!/bin/sh
# Segment cells of HeLa and PSC (cell tracking challenge) and compute SEG, with the command line alone.
# Trains on the first frames, chooses the threshold on the next, and scores objects on the rest, which are used for
# nothing else.
#
#   sh examples/instances.sh DATA [FOLDER]        DATA holds dic_hela and phc_psc; writes to FOLDER (./instances)
#   HELA_MODEL=folder PSC_MODEL=folder sh ..      uses existing models instead of training
#
# The same command continues an interrupted run. STEPS sets the number of training steps (default: 800).
set -eu
group=
. "$(dirname "$0")/environment.sh"

data=$(cd "${1:?expected DATA, the folder that holds dic_hela and phc_psc}" && pwd)
hela_model=${HELA_MODEL:+$(cd "$HELA_MODEL" && pwd)} psc_model=${PSC_MODEL:+$(cd "$PSC_MODEL" && pwd)}
folder=${2:-instances}
mkdir -p "$folder"
cd "$folder"

# instances NAME SET TRAIN SELECT TEST SMALLEST MODEL: trains, predicts and scores one data set. TRAIN, SELECT and TEST
# are sections A:B; SMALLEST is half the size of the smallest cell in TRAIN.
instances() {
    name=$1 images=$data/$2/01-images.tif labels=$data/$2/01-labels.tif
    train=$3 select=$4 test=$5 smallest=$6 model=$7
    if [ -z "$model" ]; then
        model=$name.model
        unetcli train "$images" "$labels" --truth instances --sections "$train" --validation "$select" \
            --select seg --steps "${STEPS:-800}" --output "$model" --device cpu
    fi
    for part in select test; do
        eval "sections=\$$part"
        unetcli predict "$images" --sections "$sections" --model "$model" --output "$name.$part.zarr" --device cpu
    done
    score components --method components
    score distance --method watershed --landscape distance --depth 1.5
    score probability --method watershed --landscape probability
}

# score NAME OPTION..: chooses the best threshold on the selection frames, then labels and scores the test frames
score() {
    method=$1
    shift
    set -- "$@" --min-size "$smallest"
    unetcli label "$name.select.zarr" --name "$method" --auto-threshold-from "$labels" --json "$@" > "$name.$method.json"
    threshold=$(value threshold "$name.$method.json")
    unetcli label "$name.test.zarr" --name "$method" --threshold "$threshold" "$@"
    unetcli evaluate "$name.test.zarr/labels/$method" "$labels" --metrics cells --json > "$name.$method.scores.json"
    unetcli -q show "$images" --overlay "$name.test.zarr/labels/$method" --output "$name.$method.png" \
        --section "${test%:*}"
    row="| $name | $method | $threshold |"
    for key in seg det f1; do
        row="$row $(printf %.3f "$(value "$key" "$name.$method.scores.json")") |"
    done
    echo "$row" >> table.md
}

# value KEY FILE: prints the first number with this key
value() {
    sed -n "s/^ *\"$1\": \([0-9.e-]*\),*$/\1/p" "$2" | head -n 1
}

printf '| set | method | threshold | SEG | DET | F1 |\n|---|---|---|---|---|---|\n' > table.md
instances hela dic_hela 0:50 50:60 60:84 660 "$hela_model"
instances psc phc_psc 0:18 18:22 22:30 19 "$psc_model"
cat table.md
