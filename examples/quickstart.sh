#!/bin/sh
# Train a small network on the CPU, predict sections that were not trained on, score them, and draw a picture.
# Takes under 4 minutes on 2 cores once the packages are installed.
#
#   sh examples/quickstart.sh [FOLDER]              uses a synthetic sample; writes to FOLDER (./quickstart)
#   UNETCLI_DATA=/path sh examples/quickstart.sh    uses the sections in /path/isbi2012; writes to ./quickstart-isbi
#   STEPS=100 SAMPLE='--size 256' sh examples/quickstart.sh     sets training steps (800), options of make_sample.py
#
# The same command continues an interrupted run.
set -eu
group=
. "$(dirname "$0")/environment.sh"

if [ -n "${UNETCLI_DATA:-}" ]; then
    folder=${1:-quickstart-isbi}
    raw=$(cd "$UNETCLI_DATA" && pwd)/isbi2012/train-volume.tif
    labels=$(cd "$UNETCLI_DATA" && pwd)/isbi2012/train-labels.tif
    volume=$raw truth=$labels train_on=0:20 test_on=20:25
else
    folder=${1:-quickstart}
    raw=raw.zarr labels=labels.zarr volume=big.zarr truth=truth.zarr train_on=: test_on=:
    python "$root/examples/make_sample.py" ${SAMPLE:-} "$folder"
fi
mkdir -p "$folder"
cd "$folder"

unetcli train "$raw" "$labels" --sections "$train_on" --steps "${STEPS:-800}" --device cpu
unetcli predict "$volume" --sections "$test_on" --model model --output prediction.zarr --device cpu
unetcli evaluate prediction.zarr "$truth" > scores.txt
cat scores.txt
python "$root/examples/draw_result.py" "$volume" prediction.zarr "$truth" picture.png

echo
echo "model       $folder/model/model.safetensors (curves.png and log.jsonl beside it)"
echo "prediction  $folder/prediction.zarr (OME-Zarr; scores in $folder/scores.txt)"
echo "picture     $folder/picture.png (input, prediction and truth side by side)"
