"""Pictures as PNG files: training curves, sections side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.files import replacing

DOTS_PER_INCH = 100


def draw_curves(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Loss and held-out pixel disagreement over the steps, from the rows of the training log."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in rows]
    left.plot(steps, [row["loss"] for row in rows], label="training", color="tab:blue")
    looked = [row for row in rows if "pixel_disagreement" in row]
    if looked:
        at = [row["step"] for row in looked]
        left.plot(at, [row["validation_loss"] for row in looked], label="held out", color="tab:orange")
        right.plot(at, [row["pixel_disagreement"] for row in looked], color="tab:orange", marker=".")
        best = min(looked, key=lambda row: row["pixel_disagreement"])
        right.plot(best["step"], best["pixel_disagreement"], "o", color="tab:red", label=f"best: {best['pixel_disagreement']:.4f}")
        right.legend(frameon=False)
        right.set_ylim(bottom=0)
    left.set(xlabel="step", ylabel="weighted cross-entropy", title="loss")
    right.set(xlabel="step", ylabel="share of wrong pixels", title="pixel disagreement, held out")
    left.legend(frameon=False)
    _save(figure, file)


def draw_sections(columns: dict[str, Sequence[NDArray[Any]]], file: Path) -> None:
    """Sections side by side: a row per section, a column per name; (y, x) grey values each."""
    from matplotlib.figure import Figure

    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(4 * len(columns), 4 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for place, (name, sections) in enumerate(columns.items()):
        axes[0, place].set_title(name)
        for row, section in enumerate(sections):
            low, high = np.percentile(section, (0.5, 99.5))
            axes[row, place].imshow(section, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            axes[row, place].set_axis_off()
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    with replacing(file) as draft:
        figure.savefig(draft, dpi=DOTS_PER_INCH, format="png")
