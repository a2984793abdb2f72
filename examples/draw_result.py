"""Draw sections of a volume, its prediction and the truth side by side.

Usage: python examples/draw_result.py VOLUME PREDICTION TRUTH PICTURE.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from unetcli.evaluate.counting import probabilities
from unetcli.evaluate.plan import pair_up
from unetcli.viz.png import stretched
from unetcli.volumes.opening import open_volume

SECTIONS = 2


def main(volume: str, prediction: str, truth: str, picture: str) -> None:
    """Draw ``SECTIONS`` sections, spread evenly over the region that the prediction covers."""
    pair = pair_up(open_volume(prediction), open_volume(truth), Path(prediction))
    images = open_volume(volume)
    first, stop = pair.region.start[0], pair.region.stop[0]
    columns: dict[str, list[np.ndarray]] = {"input": [], "prediction": [], "truth": []}
    for number in np.linspace(first, stop, SECTIONS + 2, dtype=int)[1:-1]:
        box = pair.truth.sections(int(number), int(number) + 1).clipped(pair.region)
        piece = pair.read(box)
        columns["input"].append(images.read(box)[0, 0])
        columns["prediction"].append(probabilities(piece.prediction, prediction)[0, 0])
        columns["truth"].append(piece.reference[0])
    figure = Figure(figsize=(4 * len(columns), 4 * SECTIONS + 0.4), layout="constrained")
    axes = figure.subplots(SECTIONS, len(columns))
    for place, (name, sections) in enumerate(columns.items()):
        axes[0, place].set_title(name)
        for row, section in enumerate(sections):
            axes[row, place].imshow(stretched(section), cmap="gray", vmin=0, vmax=1)
            axes[row, place].set_axis_off()
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
