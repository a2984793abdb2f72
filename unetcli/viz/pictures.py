"""Pictures as PNG files: training curves, sections side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import distinct
from unetcli.core.files import replacing

DOTS_PER_INCH = 100
SAMPLES_PER_ROW = 4
IGNORED = 255
"""Class of pixels without truth."""
PANEL_DOTS, LEGEND = 512, 12
Colour = tuple[float, float, float]
KINDS: dict[str, Colour] = {
    "background": (0.12, 0.12, 0.14),
    "line": (0.9, 0.25, 0.2),
    "no truth": (0.5, 0.55, 0.62),
    "foreground": (0.93, 0.93, 0.9),
}
"""What a class map shows, by colour."""


def draw_curves(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Loss and, where sections are held out, pixel disagreement over the steps, from the rows of the training log."""
    from matplotlib.figure import Figure

    looked = [row for row in rows if "pixel_disagreement" in row]
    figure = Figure(figsize=(8 if looked else 4, 3.6), layout="constrained")
    left, *right = figure.subplots(1, 2 if looked else 1, squeeze=False)[0]
    left.plot(*_column(rows, "loss"), label="training", color="tab:blue", marker=".")
    if looked:
        left.plot(*_column(looked, "validation_loss"), label="held out", color="tab:orange", marker=".")
        _draw_looks(right[0], looked)
    left.set(xlabel="step", ylabel="weighted cross-entropy", title="loss")
    left.legend(frameon=False)
    _save(figure, file)


def _draw_looks(axes: Any, looked: Sequence[dict[str, Any]]) -> None:
    """Pixel disagreement, and which look is that of the kept model, by whatever measure it was chosen."""
    axes.plot(*_column(looked, "pixel_disagreement"), color="tab:orange", marker=".")
    kept = [row for row in looked if row["best"]][-1:]
    for row in kept:
        label = f"kept: step {row['step']}, {row['pixel_disagreement']:.4f}"
        axes.plot(*_column(kept, "pixel_disagreement"), "o", color="tab:red", label=label)
        axes.legend(frameon=False)
    axes.set_ylim(0, 1.15 * max(row["pixel_disagreement"] for row in looked) or 1)
    axes.set(xlabel="step", ylabel="share of wrong pixels", title="pixel disagreement, held out")


def _column(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps, and what was found there."""
    return [row["step"] for row in rows], [row[name] for row in rows]


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


def draw_samples(
    images: NDArray[np.floating], classes: NDArray[np.integer], weights: NDArray[np.floating], file: Path
) -> None:
    """What the network sees: tiles with the outlines of the classes, and below each the weights of the loss.

    Parameters
    ----------
    images : (sample, c, tile, tile)
        Normalised; all are shown with the same black and white, so that changes of grey values show.
    classes, weights : (sample, output, output)
        Of the centre of each tile, which is framed; the rest is context. Class 255 is ignored.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns = min(len(images), SAMPLES_PER_ROW)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.8, 7.2 * rows + 0.5), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    grey, heaviest = np.percentile(images, (0.5, 99.5)), float(np.percentile(weights, 99.9))
    colours = colormaps["inferno"].with_extremes(bad="0.6")
    for number, (image, truth, weight) in enumerate(zip(images, classes, weights, strict=True)):
        row, column = divmod(number, columns)
        _draw_tile(axes[2 * row, column], image, truth, grey)
        below, known = axes[2 * row + 1, column], np.where(truth == IGNORED, np.nan, weight)
        shown = below.imshow(known, cmap=colours, vmin=0, vmax=heaviest)
    figure.colorbar(shown, ax=axes, shrink=0.4, pad=0.01, extend="max", label="weight in the loss (grey: ignored)")
    figure.suptitle("training samples: tile, its output framed and the classes outlined; below, weights of the output")
    _save(figure, file)


def draw_weights(
    labels: NDArray[np.integer], classes: NDArray[np.uint8], weights: NDArray[np.floating], title: str, file: Path
) -> None:
    """Labels, the classes made of them with the line between cells, and the weights of the loss; (y, x) each."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    figure, panels, bar = _panels(classes.shape[0], classes.shape[1], count=3)
    figure.suptitle(title, fontsize=10)
    kinds = _kinds(labels, classes)
    coloured = np.zeros((*classes.shape, 3))
    for _, colour, pixels in kinds:
        coloured[pixels] = colour
    heat = colormaps["inferno"].with_extremes(bad=KINDS["no truth"])
    known = np.where(classes == IGNORED, np.nan, weights)
    panels[0].imshow(_label_colours(labels), interpolation="nearest")
    panels[1].imshow(coloured, interpolation="nearest")
    shown = panels[2].imshow(known, cmap=heat, vmin=0, interpolation="nearest")
    figure.colorbar(shown, cax=bar)
    patches = [Patch(facecolor=colour, edgecolor="0.3", label=name) for name, colour, _ in kinds[:LEGEND]]
    panels[1].legend(
        handles=patches,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=4,
        frameon=False,
        fontsize=8,
        borderaxespad=0.4,
    )
    for axes, name in zip(panels, ("labels", "classes", "weight in the loss"), strict=True):
        axes.set_title(name, fontsize=10)
    _save(figure, file)


def _panels(height: int, width: int, count: int) -> tuple[Any, list[Any], Any]:
    """A figure, its panels side by side with every pixel a square of whole dots, and a place for a colour bar."""
    from matplotlib.figure import Figure

    zoom = max(1, round(PANEL_DOTS / max(height, width)))
    high, wide = height * zoom, width * zoom
    slot, top, bottom, edge = max(wide, 200) + 24, 56, 56, 70
    dots = (slot * count + 24 + edge, high + top + bottom)
    figure = Figure(figsize=(dots[0] / DOTS_PER_INCH, dots[1] / DOTS_PER_INCH))

    def axes(left: float, across: float) -> Any:
        return figure.add_axes((left / dots[0], bottom / dots[1], across / dots[0], high / dots[1]))

    panels = [axes(24 + slot * number + (slot - 24 - wide) // 2, wide) for number in range(count)]
    for panel in panels:
        panel.set_axis_off()
    return figure, panels, axes(24 + slot * count - 8, 14)


def _kinds(labels: NDArray[Any], classes: NDArray[np.uint8]) -> list[tuple[str, Colour, NDArray[np.bool_]]]:
    """What is to be seen in a class map: name, colour and pixels of each."""
    from matplotlib import colormaps

    line = (classes == 0) & (labels != 0)
    parts = {"background": (classes == 0) & ~line, "line": line, "no truth": classes == IGNORED}
    kinds = [(name, KINDS[name], pixels) for name, pixels in parts.items()]
    numbers = [n for n in np.unique(classes).tolist() if n not in (0, IGNORED)]
    if numbers == [1]:
        kinds.append(("foreground", KINDS["foreground"], classes == 1))
    else:
        many = colormaps["tab20"].colors  # type: ignore[attr-defined]
        kinds += [(f"class {n}", many[(n - 1) % len(many)], classes == n) for n in numbers]
    return [kind for kind in kinds if kind[2].any()]


def _label_colours(labels: NDArray[Any]) -> NDArray[np.float64]:
    """Colours (y, x, 3) that differ much between numbers that follow each other; 0 is black, a single number white."""
    from matplotlib.colors import hsv_to_rgb

    values, places = distinct(labels)
    order = np.arange(len(values))
    hue, light = order * 0.618034 % 1, 0.7 + 0.3 * (order * 0.381966 % 1)  # golden ratio: far from those before
    table = hsv_to_rgb(np.stack([hue, np.full(len(values), 0.65), light], axis=-1))
    if np.count_nonzero(values) == 1:
        table[:] = 1
    table[values == 0] = 0
    colours: NDArray[np.float64] = table[places]
    return colours


def _draw_tile(axes: Any, image: NDArray[Any], truth: NDArray[Any], grey: NDArray[Any]) -> None:
    """One tile (c, y, x), up to three channels as colours, with the outlines of each class of its centre."""
    from matplotlib.patches import Rectangle

    low, high = grey
    shown = np.clip((image[:3] - low) / max(high - low, 1e-6), 0, 1)
    colours = np.moveaxis(np.pad(shown, [(0, 3 - len(shown)), (0, 0), (0, 0)]), 0, -1) if len(shown) > 1 else shown[0]
    axes.imshow(colours, cmap="gray", vmin=0, vmax=1)
    edge = (image.shape[-1] - truth.shape[-1]) // 2
    inside = edge + np.arange(truth.shape[-1])
    for number in set(np.unique(truth).tolist()) - {0, IGNORED}:
        if not (mask := truth == number).all():  # else there is no outline, which matplotlib warns of
            axes.contour(inside, inside, mask, [0.5], colors=[f"C{number % 10}"], linewidths=1.1)
    corner = (edge - 0.5, edge - 0.5)
    axes.add_patch(Rectangle(corner, len(inside), len(inside), facecolor="none", edgecolor="white", linewidth=1))


def _save(figure: Any, file: Path) -> None:
    with replacing(file) as draft:
        figure.savefig(draft, dpi=DOTS_PER_INCH, format="png")
