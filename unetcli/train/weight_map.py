"""The ``weights`` command: the loss weights of a label volume, as an OME-Zarr image and a picture."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import (
    explain_write_errors,
    is_remote,
    remove_abandoned_drafts,
    replacing_folder,
    require_apart,
    stem,
    strip_scheme,
)
from unetcli.core.geometry import Box
from unetcli.core.options import resolve_sections
from unetcli.core.records import decoded
from unetcli.core.streams import ProgressCallback, silent
from unetcli.train.request import WeightsRequest
from unetcli.train.settings import IGNORED, TruthRules
from unetcli.train.targets import LabelCounts, TargetCache, class_weights, weight_table
from unetcli.train.truth import resolve_class_values, resolve_truth
from unetcli.viz.png import require_own_picture, software_of
from unetcli.volumes.image import MARKER, ArraySpec, Image, image_attributes, marker
from unetcli.volumes.label_fringe import warn_about_fringe
from unetcli.volumes.labels import open_labels
from unetcli.volumes.other_formats import require_zarr_name
from unetcli.volumes.samples import fingerprint
from unetcli.volumes.store import LocalStore
from unetcli.volumes.volume import Volume, describe

log = logging.getLogger(__name__)

SHOWN = 768
"""Largest side of the window in the picture, in pixels."""
STEP = 64
"""Spacing, in pixels, of the windows that are compared to choose that window."""
KIND = "weights"
CHUNK = 512
SOFTWARE = "unetcli weights"
"""Written to the metadata of pictures; only pictures with it are replaced."""
Write = Callable[[Box, NDArray[np.float32]], None]
"""Function that stores a window of one section; the box is in coordinates of the labels."""


def rules_of(request: WeightsRequest, labels: Volume, region: Box) -> TruthRules:
    """Resolve the rules of a request; ``--truth auto`` reads the labels."""
    names = ("w0", "sigma", "everywhere", "ignore", "partial", "class_values", "background", "label_threshold")
    options = {name: getattr(request, name) for name in names}
    given = {name: value for name, value in options.items() if value is not None}
    TruthRules(truth="binary", **given)  # reports wrong options before data are read
    regions = [(labels, region)]
    truth = resolve_truth(request.truth, regions, request.ignore, request.background)
    if truth == "classes":
        given["class_values"] = resolve_class_values(request.classes, regions, request.ignore, request.background)
    return TruthRules(truth=truth, **given)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassWeight:
    """Pixel count and weight of one class."""

    name: str
    pixels: int
    weight: float
    """Class weight w_c of eq. 2 of the U-Net paper (2015)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSummary:
    """Result of a call of ``weights``."""

    output: str
    picture: str
    rules: dict[str, Any]
    sections: tuple[int, int]
    left_out: int
    """Number of sections without labels; their weights are 0."""
    classes: list[ClassWeight]
    ignored: int
    """Number of pixels without ground truth in the other sections."""
    cells: int
    """Number of cells."""
    highest: float
    """Largest weight of a pixel."""

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        left_out = f", {self.left_out} of them without labels (weight 0)" if self.left_out else ""
        return f"{self.output}: weights of sections {self.sections[0]}:{self.sections[1]}{left_out}; {self.picture}"


def write_weights(request: WeightsRequest, report: ProgressCallback = silent) -> WeightsSummary:
    """Write the loss weights of the requested sections, and a picture of the window with the largest border weights.

    The weight of a pixel is w(x) of eq. 2 of the U-Net paper (2015), in float32; it is 0 without ground truth.

    Parameters
    ----------
    request : WeightsRequest
        Options of the command.
    report : callable, optional
        Called with the sections done and their total number; each section is read twice.

    Raises
    ------
    UnetcliError
        The request cannot be carried out; nothing has been written.
    """
    path, labels, sections = _resolve(request)
    region = labels.sections(*sections)
    rules = rules_of(request, labels, region)
    question = _question(request, labels, sections, rules)
    if not request.overwrite and (made := _made_before(path, question)):
        log.info("%s: complete already, for the same request", path)
        return made
    require_free(path, overwrite=request.overwrite)
    if not rules.values.table:
        warn_about_fringe(labels)
    targets = TargetCache(labels, rules, budget_bytes=0)  # only the present piece is kept: memory stays small
    planes = [plane for plane in region.planes() if request.keep_empty or not targets.is_empty(plane)]
    if not planes:
        raise UnetcliError(f"{labels.path}: no label in any section; --keep-empty uses them as background")
    counts = LabelCounts()
    for done, plane in enumerate(planes, start=1):
        counts += targets.count(plane)
        report(done, 2 * len(planes))
    weights = class_weights(counts.class_counts)
    if request.balance is False:
        weights = np.ones_like(weights)
    writer = _WeightWriter(targets, weight_table(weights))

    def fill(write: Write) -> None:
        for done, plane in enumerate(planes, start=1):
            writer.write(plane, write)
            report(len(planes) + done, 2 * len(planes))

    def summary() -> WeightsSummary:
        return summary_of(path, rules, sections, len(planes), counts, weights, writer.highest)

    def provenance() -> dict[str, Any]:
        found = {name: value for name, value in asdict(summary()).items() if name not in ("output", "picture")}
        class_weights = [row["weight"] for row in found["classes"]]
        return {"rules": asdict(rules), "class_weights": class_weights, "request": question, "summary": found}

    with explain_write_errors(path, "writes it again"):
        publish(path, labels, region, provenance, fill, writer.draw)
    return summary()


def summary_of(
    path: Path,
    rules: TruthRules,
    sections: tuple[int, int],
    used: int,
    counts: LabelCounts,
    weights: NDArray[np.float32],
    highest: float,
) -> WeightsSummary:
    """Summarise a weight map.

    Parameters
    ----------
    used
        Number of sections with weights.
    weights : (class,), float32
    highest
        Largest weight of a pixel.
    """
    first = "class 1" if rules.truth == "classes" else "foreground"
    names = ("background", first, *(f"class {n}" for n in range(2, len(weights))))
    rows = zip(names, counts.class_counts, weights, strict=True)
    return WeightsSummary(
        output=str(path),
        picture=str(picture_of(path)),
        rules=asdict(rules),
        sections=sections,
        left_out=sections[1] - sections[0] - used,
        classes=[ClassWeight(name=name, pixels=int(n), weight=round(float(w), 6)) for name, n, w in rows],
        ignored=int(counts.pixels[IGNORED]),
        cells=counts.cells,
        highest=round(highest, 6),
    )


def _question(request: WeightsRequest, labels: Volume, sections: tuple[int, int], rules: TruthRules) -> dict[str, Any]:
    """Everything that the weights depend on, as plain JSON."""
    asked = {"keep_empty": request.keep_empty, "balance": request.balance, "sections": sections, "rules": asdict(rules)}
    plain: dict[str, Any] = json.loads(json.dumps({"labels": fingerprint(labels), **asked}))
    return plain


def _made_before(path: Path, question: dict[str, Any]) -> WeightsSummary | None:
    """Summary of a complete weight map that an earlier call wrote for the same request; None if there is none."""
    found = marker(path) or {}
    if found.get("kind") != KIND or found.get("request") != question or software_of(picture_of(path)) != SOFTWARE:
        return None
    try:
        places = {"output": str(path), "picture": str(picture_of(path))}
        made: WeightsSummary = decoded(WeightsSummary, {**found["summary"], **places})
    except (ValueError, KeyError, TypeError):  # of another version, or damaged
        return None
    return made


def _resolve(request: WeightsRequest) -> tuple[Path, Volume, tuple[int, int]]:
    """Return the path of the weight map, the labels and the sections; drafts of killed calls are deleted."""
    labels = open_labels(request.labels)
    count = 1 if labels.section_axis is None else labels.extent[labels.section_axis]
    sections = resolve_sections(request.sections, count, labels.path)
    place = request.output or f"{stem(request.labels)}.weights.zarr"
    if is_remote(strip_scheme(place)):
        raise UnetcliError(f"--output {place}: a weight map needs a local path")
    path = Path(strip_scheme(place))
    require_zarr_name(path)
    require_apart(path, [request.labels])
    require_free(path, overwrite=True)  # the rest depends on the labels, which takes time to read
    for file in (path, picture_of(path)):
        remove_abandoned_drafts(file)
    return path, labels, sections


@dataclass(slots=True)
class _WeightWriter:
    """Writes the weights of one section after another, and records the piece with the largest border weights."""

    targets: TargetCache
    table: NDArray[np.float32]
    """(256,): weight of each class."""
    highest: float = 0.0
    """Largest weight written."""
    _busiest: Box | None = None
    _total: float = -1.0

    def write(self, plane: Box, write: Write) -> None:
        """Write the weights of a section, piece by piece."""
        for piece in self.targets.pieces(plane):
            classes, border = self.targets.window(piece)
            weights = self.table[classes] + border
            write(piece, weights)
            self.highest = max(self.highest, float(weights.max()))
            if (total := float(border.sum(dtype=np.float64))) > self._total:
                self._busiest, self._total = piece, total

    def draw(self, file: Path) -> None:
        """Draw labels, classes and weights of the window with the largest sum of border weights."""
        from unetcli.viz.png import draw_weights

        assert self._busiest is not None, "nothing was written"
        box = busiest_window(self._busiest, self.targets.window(self._busiest)[1])
        classes, border = self.targets.window(box)
        labels = self.targets.labels.read(box).reshape(classes.shape)
        title = f"{Path(self.targets.labels.path).name}: {describe(box, self.targets.labels.axes)}"
        draw_weights(labels, classes, self.table[classes] + border, title, file, SOFTWARE)


def busiest_window(box: Box, border: NDArray[np.float32]) -> Box:
    """Part of a window, at most ``SHOWN`` pixels per side, with the largest sum of border weights.

    Parameters
    ----------
    box : Box, voxels
        Window of one section.
    border : (y, x), float32
        Border weights of the window.

    >>> busiest_window(Box((3, 0, 100), (4, 9, 1200)), np.eye(9, 1100, 900, dtype=np.float32))
    Box(start=(3, 0, 292), stop=(4, 9, 1060))
    """
    sums = np.pad(border.cumsum(0, np.float64).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = (np.arange(0, max(n - SHOWN, 0) + STEP, STEP).clip(0, max(n - SHOWN, 0)) for n in border.shape)
    below, right = (np.minimum(at + SHOWN, n) for at, n in zip((rows, columns), border.shape, strict=True))
    inside = sums[np.ix_(below, right)] - sums[np.ix_(rows, right)] - sums[np.ix_(below, columns)]
    row, column = np.unravel_index(np.argmax(inside + sums[np.ix_(rows, columns)]), inside.shape)
    start = (box.start[-2] + int(rows[row]), box.start[-1] + int(columns[column]))
    stop = tuple(min(a + SHOWN, b) for a, b in zip(start, box.stop[-2:], strict=True))
    return Box(box.start[:-2] + start, box.stop[:-2] + stop)


def require_free(path: Path, *, overwrite: bool) -> None:
    """Raise unless a weight map can be written to ``path``: its folder exists, and it replaces only a weight map.

    A weight map that is there already is replaced only with ``overwrite``.
    """
    if not path.parent.is_dir():
        raise UnetcliError(f"--output {path}: folder {path.parent} does not exist; create it first")
    require_own_picture(picture_of(path), SOFTWARE)
    if LocalStore(path).is_free():
        return
    if (found := marker(path)) is None or found.get("kind") != KIND:
        raise UnetcliError(f"{path}: exists and was not written by unetcli weights; choose another --output")
    if not overwrite:
        raise UnetcliError(f"{path}: exists; --overwrite replaces it, or choose another --output")


def picture_of(path: Path) -> Path:
    """Return the path of the picture beside a weight map."""
    return path.with_name(f"{path.name.removesuffix('.zarr')}.png")


def publish(
    path: Path,
    labels: Volume,
    region: Box,
    provenance: Callable[[], Mapping[str, Any]],
    fill: Callable[[Write], None],
    draw: Callable[[Path], None],
) -> None:
    """Write an image of ``region`` with everything that ``fill`` stores, in place of an earlier weight map.

    The picture comes first, so that an image that exists has its picture. A killed process leaves nothing under the
    image's name.

    Parameters
    ----------
    provenance
        Returns the content of the marker that is known once the weights are written.
    draw
        Writes the picture to the given file, once the weights are written.
    """
    spec = weight_map_spec(labels, region)
    start = dict(zip(labels.axes, region.start, strict=True))
    about = {
        "complete": True,
        "kind": KIND,
        "extent": list(labels.extent),
        "region": [[a, b] for a, b in zip(region.start, region.stop, strict=True)],
    }
    with replacing_folder(path) as draft:
        image = Image(draft, spec)
        image.level.create(image.store)
        array = image.level.open()
        fill(lambda box, w: image.level.write(array, box.relative_to(region), w.reshape(1, *box.shape)))
        attributes = image_attributes(spec, path, labels, start)
        image.replace_attributes({**attributes, MARKER: {**about, **provenance()}})
        require_free(path, overwrite=True)
        draw(picture_of(path))


def weight_map_spec(labels: Volume, region: Box) -> ArraySpec:
    """Describe the array that holds the weights of ``region``: float32, with the axes of ``labels``."""
    chunks = (1,) * (len(region.shape) - 2) + tuple(min(n, CHUNK) for n in region.shape[-2:])
    return ArraySpec(
        axes=labels.axes,
        shape=region.shape,
        chunks=chunks,
        write_chunks=chunks,
        outputs=1,
        dtype="float32",
        zarr_format=3,
    )
