"""Pictures as PNG files and data URLs: contrast, colours, sections, training curves and samples."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import distinct
from unetcli.core.errors import UnetcliError
from unetcli.core.files import remove_abandoned_drafts, replacing

PERCENTILES = (0.5, 99.5)
"""Percentiles of the grey values that are shown as black and white."""


def means(values: NDArray[Any], step: int) -> NDArray[np.float32]:
    """Downsample (.., y, x) by averaging blocks of ``step`` x ``step`` pixels, smaller ones at the far edges."""
    if step == 1:
        return values.astype(np.float32)
    rows, columns = (np.arange(0, n, step) for n in values.shape[-2:])
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.float64), rows, axis=-2), columns, axis=-1)
    counts = [np.diff([*starts, n]) for starts, n in zip((rows, columns), values.shape[-2:], strict=True)]
    return np.divide(sums, np.outer(*counts), dtype=np.float64).astype(np.float32)


def samples(values: NDArray[Any], step: int) -> NDArray[Any]:
    """Downsample (y, x) by taking every ``step``-th pixel, the middle one of each block where it exists."""
    picks = [np.minimum(np.arange(0, n, step) + step // 2, n - 1) for n in values.shape]
    return values[np.ix_(*picks)]


def enlarged(values: NDArray[Any], zoom: int) -> NDArray[Any]:
    """Enlarge (y, x, ..) by repeating each pixel ``zoom`` x ``zoom`` times."""
    return values.repeat(zoom, axis=0).repeat(zoom, axis=1)


def stretched(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stretch the contrast of one channel to 0 (black) .. 1 (white).

    The limits are ``PERCENTILES`` of the finite values; NaN and infinity become black.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.float32)
    low, high = np.percentile(values[finite], PERCENTILES)
    if high <= low:  # nearly constant, with a few bright spots
        low, high = values[finite].min(), values[finite].max()
    scaled: NDArray[Any] = (np.where(finite, values, low) - low) / (high - low if high > low else 1)
    return scaled.clip(0, 1).astype(np.float32)


def rgb(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours (y, x, 3) of one to three channels (c, y, x): one is shown as grey, two as red and green."""
    if len(channels) == 1:
        channels = channels.repeat(3, axis=0)
    return np.pad(channels, [(0, 3 - len(channels)), (0, 0), (0, 0)]).transpose(1, 2, 0)


def label_colours(labels: NDArray[Any]) -> NDArray[np.float32]:
    """Bright colours (.., 3) in 0..1 of labels; a label has the same colour in every picture, and 0 is black."""
    from matplotlib.colors import hsv_to_rgb

    values, places = distinct(labels)
    hue = (values.astype(np.uint64) * np.uint64(40503) % np.uint64(65536)).astype(np.float64) / 65536
    light = 0.8 + 0.2 * (values.astype(np.uint64) % np.uint64(2)).astype(np.float64)
    table = hsv_to_rgb(np.stack([hue, np.full(len(values), 0.8), light], axis=-1)).astype(np.float32)
    table[values == 0] = 0
    colours: NDArray[np.float32] = table[places]
    return colours


def outlines(labels: NDArray[Any], dots: int = 1) -> NDArray[np.bool_]:
    """Mask of the object pixels (y, x) at most ``dots`` from a pixel of another label, horizontally or vertically.

    >>> outlines(np.array([[0, 7, 7, 7, 4]])).astype(int).tolist()
    [[0, 1, 0, 1, 1]]
    """
    edge = np.zeros(labels.shape, np.bool_)
    for shift in range(1, dots + 1):
        for values, mask in ((labels, edge), (labels.T, edge.T)):
            differ = values[shift:] != values[:-shift]
            mask[shift:] |= differ
            mask[:-shift] |= differ
    return edge & labels.astype(np.bool_)


DOTS_PER_INCH = 100
SAMPLES_PER_ROW = 4
IGNORED = 255
"""Class of pixels without annotation."""
QUALITY = 85
"""Quality of the lossy WebP for grey values; labels, masks and probabilities are stored without loss."""
PANEL_DOTS, LEGEND = 512, 12
Colour = tuple[float, float, float]
KINDS: dict[str, Colour] = {
    "background": (0.12, 0.12, 0.14),
    "line": (0.9, 0.25, 0.2),
    "not annotated": (0.5, 0.55, 0.62),
    "foreground": (0.93, 0.93, 0.9),
}
"""Colours in a class map, by meaning."""


def grey_url(image: NDArray[np.float32]) -> str:
    """Data URL of grey values (c, y, x), with stretched contrast: three channels as colours, else the first."""
    import imagecodecs

    colours = rgb(np.stack([stretched(channel) for channel in image[: 3 if len(image) == 3 else 1]]))
    dots = np.ascontiguousarray(np.rint(colours * 255).astype(np.uint8))
    return _data_url("webp", imagecodecs.webp_encode(dots, level=QUALITY, lossless=False))


def share_url(values: NDArray[Any]) -> str:
    """Data URL of values (y, x) from 0 to 1, or of a mask, in 255 steps."""
    return png_url(np.rint(values * 255.0).astype(np.uint8))


def labels_url(values: NDArray[Any]) -> str:
    """Data URL of labels (y, x) as 24-bit colours, red the lowest byte; labels above 2^24 - 1 continue from 1."""
    bounded = values.astype(np.uint64)
    bounded = np.where(bounded, (bounded - 1) % (2**24 - 1) + 1, 0)
    return png_url(np.stack([(bounded >> np.uint64(n) & np.uint64(255)).astype(np.uint8) for n in (0, 8, 16)], axis=-1))


def png_url(values: NDArray[np.uint8]) -> str:
    """Data URL of grey values (y, x) or colours (y, x, 3), without loss."""
    import imagecodecs

    return _data_url("png", imagecodecs.png_encode(np.ascontiguousarray(values), level=9))


def _data_url(kind: str, data: bytes | bytearray) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def save_pixels(colours: NDArray[np.float32], bar: tuple[float, str] | None, file: Path, software: str) -> None:
    """Write a picture with one pixel per value, without smoothing.

    Parameters
    ----------
    colours : (y, x, 3)
        Red, green and blue in 0..1.
    bar
        Length in pixels and text of a scale bar at the lower right; None for no scale bar.
    software
        Written to the file's metadata, to recognise pictures that may be replaced.
    """
    from matplotlib.image import imsave

    if bar is not None:
        drawn = _scale_bar(*bar, height=colours.shape[0], width=colours.shape[1])
        opacity = drawn[..., 3:]
        colours = colours * (1 - opacity) + drawn[..., :3] * opacity
    dots = np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)
    remove_abandoned_drafts(file)
    with replacing(file) as draft:
        imsave(draft, dots, format="png", metadata={"Software": software})


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def software_of(file: Path) -> str | None:
    """Program that a PNG file names as its author; None if it names none, or is no readable PNG file."""
    try:
        with file.open("rb") as stream:
            known = stream.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
            return next((text for text in _texts(stream) if text), None) if known else None
    except (OSError, ValueError, struct.error):
        return None


def _texts(stream: BinaryIO) -> Iterator[str | None]:
    """Value of each ``Software`` text before the pixels of a PNG file, None for its other chunks."""
    while True:
        length, kind = struct.unpack(">I4s", stream.read(8))
        if kind in (b"IDAT", b"IEND"):
            return
        name, _, value = stream.read(length).partition(b"\0")
        stream.read(4)  # checksum
        yield value.decode("latin-1") if (kind, name) == (b"tEXt", b"Software") else None


def require_own_picture(file: Path, software: str) -> None:
    """Raise unless ``file`` is free or a picture that ``software``, a command of unetcli, wrote."""
    if (file.exists() or file.is_symlink()) and not (file.is_file() and software_of(file) == software):
        raise UnetcliError(f"{file}: exists and was not written by {software}; choose another --output")


def _scale_bar(length: float, text: str, *, height: int, width: int) -> NDArray[np.float32]:
    """Scale bar (height, width, 4) in 0..1: white with a dark outline, its length above it, on a transparent ground."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    figure = Figure(figsize=((width + 0.5) / DOTS_PER_INCH, (height + 0.5) / DOTS_PER_INCH), dpi=DOTS_PER_INCH)
    figure.patch.set_alpha(0)
    thick, margin = max(3, width // 200), max(4, width // 40)
    left = width - margin - length
    style: dict[str, Any] = {"color": "white", "path_effects": [withStroke(linewidth=2, foreground="black")]}
    figure.add_artist(Rectangle((left, margin), length, thick, transform=None, linewidth=0, **style))
    middle, above, size = (left + length / 2) / width, (margin + 1.6 * thick) / height, max(7, width / 72)
    figure.text(middle, above, text, ha="center", va="bottom", size=size, **style)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    drawn: NDArray[np.float32] = (np.asarray(canvas.buffer_rgba()) / 255).astype(np.float32)
    return drawn


def draw_curves(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot the loss over the steps of a training log.

    With held-out sections, the pixel disagreement and the reliability diagram of the kept model are plotted too.
    """
    from matplotlib.figure import Figure

    validated = [row for row in rows if _is_number(row.get("pixel_disagreement"))]
    reliable = [row["reliability"] for row in validated if row["best"] and row.get("reliability")][-1:]
    columns = 1 + bool(validated) + len(reliable)
    figure = Figure(figsize=(4 * columns, 3.6), layout="constrained")
    left, *right = figure.subplots(1, columns, squeeze=False)[0]
    _plot(left, rows, "loss", label="training", color="tab:blue", marker=".")
    if validated:
        _plot(left, validated, "validation_loss", label="held out", color="tab:orange", marker=".")
        _draw_validation(right[0], validated)
    for diagram in reliable:
        _draw_reliability(right[1], diagram)
    left.set(xlabel="step", ylabel="weighted cross-entropy", title="loss")
    left.legend(frameon=False)
    _save(figure, file)


def _draw_validation(axes: Any, validated: Sequence[dict[str, Any]]) -> None:
    """Plot the pixel disagreement of each validation; the kept model is marked, by whichever measure it was chosen."""
    _plot(axes, validated, "pixel_disagreement", color="tab:orange", marker=".")
    for row in [row for row in validated if row["best"]][-1:]:
        label = f"kept: step {row['step']}, {row['pixel_disagreement']:.4f}"
        _plot(axes, [row], "pixel_disagreement", label=label, color="tab:red", marker="o", linestyle="none")
        axes.legend(frameon=False)
    axes.set_ylim(0, 1.15 * max(row["pixel_disagreement"] for row in validated) or 1)
    axes.set(xlabel="step", ylabel="fraction of wrong pixels", title="pixel disagreement, held out")


def _draw_reliability(axes: Any, diagram: dict[str, list[Any]]) -> None:
    """Plot the fraction of correct pixels over the predicted probability; on the diagonal, both are equal."""
    points = zip(diagram["probability"], diagram["right"], diagram["pixels"], strict=True)
    known = [(probability, right, pixels) for probability, right, pixels in points if pixels]
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.plot(*zip(*(point[:2] for point in known), strict=True), color="tab:orange", marker=".")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set(xlabel="predicted probability", ylabel="fraction of correct pixels", title="reliability, held out")


def _plot(axes: Any, rows: Sequence[dict[str, Any]], name: str, **style: Any) -> None:
    known = [row for row in rows if _is_number(row.get(name))]  # a damaged log may lack values
    axes.plot([row["step"] for row in known], [row[name] for row in known], **style)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def draw_samples(
    images: NDArray[np.floating], classes: NDArray[np.integer], weights: NDArray[np.floating], file: Path
) -> None:
    """Plot training tiles with the outlines of their classes, and below each tile its loss weights.

    Parameters
    ----------
    images : (sample, c, tile, tile)
        Normalised tiles; all are shown with the same contrast, so that changes of grey values are visible.
    classes, weights : (sample, output, output)
        Classes and loss weights of the centre of each tile, which is framed; the rest is context. Class 255 is
        ignored.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns = min(len(images), SAMPLES_PER_ROW)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.8, 7.2 * rows + 0.5), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    low, high = np.percentile(images, PERCENTILES)
    greys, heaviest = (images - low) / max(high - low, 1e-6), float(np.percentile(weights, 99.9))
    colours = colormaps["inferno"].with_extremes(bad="0.6")
    for number, (image, truth, weight) in enumerate(zip(greys, classes, weights, strict=True)):
        row, column = divmod(number, columns)
        _draw_tile(axes[2 * row, column], image, truth)
        below, known = axes[2 * row + 1, column], np.where(truth == IGNORED, np.nan, weight)
        shown = below.imshow(known, cmap=colours, vmin=0, vmax=heaviest)
    figure.colorbar(shown, ax=axes, shrink=0.4, pad=0.01, extend="max", label="loss weight (grey: ignored)")
    figure.suptitle("training samples: tiles with the output framed and the classes outlined; below, loss weights")
    _save(figure, file)


def _draw_tile(axes: Any, image: NDArray[Any], truth: NDArray[Any]) -> None:
    """Draw one tile (c, y, x) in 0..1, up to three channels as colours, with the outlines of the classes."""
    from matplotlib.patches import Rectangle

    axes.imshow(rgb(np.clip(image[:3], 0, 1)))
    edge = (image.shape[-1] - truth.shape[-1]) // 2
    inside = edge + np.arange(truth.shape[-1])
    for number in set(np.unique(truth).tolist()) - {0, IGNORED}:
        if not (mask := truth == number).all():  # matplotlib warns if there is no outline
            axes.contour(inside, inside, mask, [0.5], colors=[f"C{number % 10}"], linewidths=1.1)
    corner = (edge - 0.5, edge - 0.5)
    axes.add_patch(Rectangle(corner, len(inside), len(inside), facecolor="none", edgecolor="white", linewidth=1))


def draw_weights(
    labels: NDArray[np.integer],
    classes: NDArray[np.uint8],
    weights: NDArray[np.floating],
    title: str,
    file: Path,
    software: str,
) -> None:
    """Plot labels, the classes with the line between touching cells, and the loss weights; (y, x) each.

    ``software`` is written to the file's metadata, as in :func:`save_pixels`.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    figure, panels, bar = _panels(*classes.shape)
    figure.suptitle(title, fontsize=10)
    kinds = _kinds(labels, classes)
    coloured = np.zeros((*classes.shape, 3))
    for _, colour, pixels in kinds:
        coloured[pixels] = colour
    known = np.where(classes == IGNORED, np.nan, weights)
    heat = colormaps["inferno"].with_extremes(bad=KINDS["not annotated"])
    shown = {"labels": label_colours(labels), "classes": coloured, "loss weight": known}
    for axes, (name, values) in zip(panels, shown.items(), strict=True):
        drawn = axes.imshow(values, cmap=heat, vmin=0, interpolation="nearest")
        axes.set_title(name, fontsize=10)
        axes.set_axis_off()
    figure.colorbar(drawn, cax=bar)
    patches = [Patch(facecolor=colour, edgecolor="0.3", label=name) for name, colour, _ in kinds[:LEGEND]]
    style = {"frameon": False, "fontsize": 8, "borderaxespad": 0.4}
    panels[1].legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, **style)
    remove_abandoned_drafts(file)
    _save(figure, file, {"Software": software})


def _panels(height: int, width: int) -> tuple[Any, list[Any], Any]:
    """Figure, its three panels, where each pixel is a square of whole dots, and the axes of a colour bar."""
    from matplotlib.figure import Figure

    zoom = max(1, round(PANEL_DOTS / max(height, width)))
    high, wide = height * zoom, width * zoom
    slot, top, bottom, edge = max(wide, 200) + 24, 56, 56, 70
    dots = (slot * 3 + 24 + edge, high + top + bottom)
    figure = Figure(figsize=(dots[0] / DOTS_PER_INCH, dots[1] / DOTS_PER_INCH))

    def axes(left: float, across: float) -> Any:
        return figure.add_axes((left / dots[0], bottom / dots[1], across / dots[0], high / dots[1]))

    panels = [axes(24 + slot * number + (slot - 24 - wide) // 2, wide) for number in range(3)]
    return figure, panels, axes(24 + slot * 3 - 8, 14)


def _kinds(labels: NDArray[Any], classes: NDArray[np.uint8]) -> list[tuple[str, Colour, NDArray[np.bool_]]]:
    """Name, colour and pixels of each category that occurs in a class map."""
    from matplotlib import colormaps

    line = (classes == 0) & (labels != 0)
    parts = {"background": (classes == 0) & ~line, "line": line, "not annotated": classes == IGNORED}
    kinds = [(name, KINDS[name], pixels) for name, pixels in parts.items()]
    numbers = [n for n in np.unique(classes).tolist() if n not in (0, IGNORED)]
    if numbers == [1]:
        kinds.append(("foreground", KINDS["foreground"], classes == 1))
    else:
        many = colormaps["tab20"].colors  # type: ignore[attr-defined]
        kinds += [(f"class {n}", many[(n - 1) % len(many)], classes == n) for n in numbers]
    return [kind for kind in kinds if kind[2].any()]


def _save(figure: Any, file: Path, metadata: dict[str, str] | None = None) -> None:
    with replacing(file) as draft:
        figure.savefig(draft, dpi=DOTS_PER_INCH, format="png", metadata=metadata)
