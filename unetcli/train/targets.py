"""Training targets: the class and border weight of each pixel, for label maps and for windows of volumes."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box, mirror_indices
from unetcli.train.border import border_weights, cells_of, dividing_line, renumbered
from unetcli.train.settings import IGNORED, TruthRules
from unetcli.volumes.label_values import with_numbers
from unetcli.volumes.volume import Volume, describe

MAX_WHOLE = 4096
"""Longest axis of a section, in pixels, that is not cut into pieces."""
PIECE, PATCH = 2048, 512
"""Sides, in pixels, of the pieces of a larger section, and of the patches in which border weights are computed; the
second divides the first."""
CELL_MARGIN = 256
"""Margin around a piece, in pixels, beyond the reach of the rules; cells that extend farther may be counted as two."""
SectionIndex = tuple[int, ...]
"""Index of a section along each leading axis."""
Value = TypeVar("Value")


def classes_of(labels: NDArray[Any], rules: TruthRules) -> NDArray[np.uint8]:
    """Class of each pixel of a label map.

    Parameters
    ----------
    labels : (y, x), integer or bool
    rules : TruthRules
        Meaning of the labels, and which pixels are ignored.

    Returns
    -------
    (y, x), uint8
        0 is background; ``IGNORED`` (255) is no ground truth.

    Raises
    ------
    UnetcliError
        A label is below 0 or, with ``truth="classes"``, above 254.
    """
    ignored = None if rules.ignore is None else labels == rules.ignore
    kept = labels if ignored is None else np.where(ignored, np.zeros((), labels.dtype), labels)
    _require_valid_labels(kept, rules)
    classes = (kept if rules.truth == "classes" else kept != 0).astype(np.uint8)
    if rules.truth == "instances":
        classes[dividing_line(renumbered(kept))] = 0
    if rules.partial is not None:
        distance = ndimage.distance_transform_edt(kept == 0) if kept.any() else np.full(kept.shape, np.inf)
        classes[distance > rules.partial] = IGNORED
    if ignored is not None:
        classes[ignored] = IGNORED
    return classes


def is_empty(parts: Iterable[NDArray[Any]], rules: TruthRules) -> bool:
    """Whether nothing is drawn in a section, given in parts. Such sections are left out of training by default.

    Labels of 0 alone may be background or a section that nobody annotated. Beside the ignored label, which marks what
    is not annotated, they are background that was drawn.
    """
    background = ignored = False
    for labels in parts:
        unknown = np.zeros(labels.shape, bool) if rules.ignore is None else labels == rules.ignore
        if ((labels != 0) & ~unknown).any():
            return False
        background |= bool((~unknown).any())
        ignored |= bool(unknown.any())
    return not (background and ignored)


def class_weights(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Class weights w_c of eq. 2 of the U-Net paper (2015) that give all classes the same total weight.

    w_c(k) = n / (K n_k) for n pixels, K classes and n_k pixels of class k.

    Parameters
    ----------
    counts : (classes,), int64
        Pixels of each class.

    Returns
    -------
    (classes,), float32
        0 for a class that does not occur.
    """
    weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)


def weight_table(class_weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lookup table of class weights.

    Parameters
    ----------
    class_weights : (classes,), float32
        w_c of eq. 2.

    Returns
    -------
    (256,), float32
        w_c by class; 0 for ``IGNORED`` and all other values.
    """
    table = np.zeros(IGNORED + 1, np.float32)
    table[: len(class_weights)] = class_weights
    return table


def _require_valid_labels(labels: NDArray[Any], rules: TruthRules) -> None:
    """Raise UnetcliError if a label cannot be an object or class number."""
    if rules.truth == "binary":
        return
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if lowest < 0:
        raise UnetcliError(
            f"label {lowest}: {rules.truth} must be numbered 0, 1, 2, ..; --ignore {lowest} ignores these pixels, "
            f"--background {lowest} makes them background"
        )
    if rules.truth == "classes" and highest >= IGNORED:
        raise UnetcliError(
            f"class {highest}: classes must be numbered 0 to {IGNORED - 1}; --ignore {highest} ignores these pixels, "
            "--truth instances reads labels as object numbers"
        )


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Number of pixels per class and number of cells."""

    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(IGNORED + 1, np.int64))
    """(256,): pixels of each class; the last entry counts pixels without ground truth."""
    cells: int = 0

    def __add__(self, other: LabelCounts) -> LabelCounts:
        return LabelCounts(self.pixels + other.pixels, self.cells + other.cells)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Pixels of each class up to the highest that occurs, for at least two classes."""
        occurring = np.flatnonzero(self.pixels[:IGNORED])
        return self.pixels[: max(int(occurring.max(initial=0)) + 1, 2)]


class TargetCache:
    """Classes and border weights of a label volume, computed when a window needs them, and cached; thread-safe.

    Its ``labels`` have the numbers of classes or objects instead of other values, and its ``rules`` are for them.

    Cells are found in whole sections, so the result does not depend on the window. Only sections with an axis longer
    than ``MAX_WHOLE`` are cut into pieces, on a grid that is fixed to the section. Once the cells are known, the border
    weight is local, and is computed in patches.

    Parameters
    ----------
    labels : Volume
        Labels, as :mod:`unetcli.volumes.labels` reads them.
    rules : TruthRules
        How labels become classes and border weights.
    budget_bytes : bytes
        Size of the cache; the piece used last is kept in any case.
    """

    def __init__(self, labels: Volume, rules: TruthRules, budget_bytes: int = 2**30) -> None:
        self.labels, ignore = with_numbers(labels, rules.values, rules.ignore)
        self.rules = replace(rules, class_values=None, background=0, label_threshold=None, ignore=ignore)
        height, width = labels.extent[-2:]
        self._section = Box((0, 0), (height, width))
        self._pieces = _Grid(tuple(n if n <= MAX_WHOLE else PIECE for n in (height, width)), self._section)
        self._patches = _Grid((PATCH, PATCH), self._section)
        self._maps, self._border_patches = _ByteCache(budget_bytes // 2), _ByteCache(budget_bytes // 2)
        self._lock = threading.Lock()

    def window(self, box: Box) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Classes and border weights of a window.

        Parameters
        ----------
        box : Box, voxels
            Part of one section; may extend beyond it, where it is mirrored like the images.

        Returns
        -------
        classes : (y, x), uint8
        border_weights : (y, x), float32
        """
        return self.classes(box), self._mirrored(box, self._border_weights)

    def classes(self, box: Box) -> NDArray[np.uint8]:
        """Classes of a window, (y, x), uint8, without computing border weights."""
        return self._mirrored(box, self._classes)

    def count(self, box: Box) -> LabelCounts:
        """Count the pixels per class and the cells of a window inside a section.

        A cell is counted if its first pixel, in C order, lies in the window.
        """
        section, inner = _split_window(box)
        counts = LabelCounts()
        with self._lock:
            for piece in self._pieces.intersecting(inner):
                class_map = self._class_map(section, piece)
                inside = inner.clipped(piece).relative_to(class_map.box)
                pixels = np.bincount(class_map.classes[inside.slices].ravel(), minlength=IGNORED + 1)
                counts += LabelCounts(pixels, _cells_from(self._cells(section, piece), inside))
        return counts

    def is_empty(self, section: Box) -> bool:
        """Whether nothing is drawn in a section; see :func:`is_empty`."""
        return is_empty(map(self.labels.read, self.pieces(section)), self.rules)

    def pieces(self, box: Box) -> Iterator[Box]:
        """Yield windows that cover a section once; the sides of all but the last are multiples of ``PATCH``.

        Each window is small enough to be read at once.
        """
        section, inner = _split_window(box)
        for piece in self._pieces.intersecting(inner):
            yield _in_section(section, piece)

    def _mirrored(self, box: Box, inside: Callable[[SectionIndex, Box], NDArray[Any]]) -> NDArray[Any]:
        """Values of a window, mirrored at the edges of the section; ``inside`` computes those within it."""
        section, window = _split_window(box)
        indices = [mirror_indices(*s) for s in zip(window.start, window.stop, self._section.stop, strict=True)]
        inner = Box(tuple(int(i.min()) for i in indices), tuple(int(i.max()) + 1 for i in indices))
        with self._lock:
            found = inside(self.labels.mirrored(section + inner.start)[:-2], inner)
        if inner == window:
            return found
        rows, columns = (i - first for i, first in zip(indices, inner.start, strict=True))
        return found[np.ix_(rows, columns)]

    def _classes(self, section: SectionIndex, box: Box) -> NDArray[np.uint8]:
        found = np.empty(box.shape, np.uint8)
        for piece in self._pieces.intersecting(box):
            class_map, part = self._class_map(section, piece), box.clipped(piece)
            found[part.relative_to(box).slices] = class_map.classes[part.relative_to(class_map.box).slices]
        return found

    def _border_weights(self, section: SectionIndex, box: Box) -> NDArray[np.float32]:
        found = np.zeros(box.shape, np.float32)
        for patch in self._patches.intersecting(box) if self.rules.w0 else ():
            weights, part = self._border_patch(section, patch), box.clipped(patch)
            found[part.relative_to(box).slices] = weights[part.relative_to(patch).slices]
        return found

    def _border_patch(self, section: SectionIndex, patch: Box) -> NDArray[np.float32]:
        """Border weights of a patch."""

        def make() -> NDArray[np.float32]:
            piece = next(self._pieces.intersecting(patch))
            class_map, cells = self._class_map(section, piece), self._cells(section, piece)
            around = patch.grown((int(self.rules.max_distance),) * 2).clipped(class_map.box)
            seen = around.relative_to(class_map.box).slices
            weights = border_weights(cells[seen], class_map.classes[seen], self.rules)
            return np.ascontiguousarray(weights[patch.relative_to(around).slices])

        return self._border_patches.get((section, patch), make)

    def _class_map(self, section: SectionIndex, piece: Box) -> _ClassMap:
        """Classes of a piece and its margin."""

        def make() -> _ClassMap:
            around = piece.grown((self.rules.reach + CELL_MARGIN,) * 2).clipped(self._section)
            labels = self._labels(section, around)
            try:
                classes = classes_of(labels, self.rules)
            except UnetcliError as error:
                box = _in_section(section, around)
                raise UnetcliError(f"{self.labels.path}: {describe(box, self.labels.axes)}: {error}") from error
            if self.rules.truth == "instances":  # its cells are labels, which would be read again
                self._maps.get(("cells", section, piece), lambda: cells_of(labels, classes, self.rules))
            return _ClassMap(around, classes)

        return self._maps.get(("classes", section, piece), make)

    def _cells(self, section: SectionIndex, piece: Box) -> NDArray[np.int32]:
        """Cells of a piece and its margin; only border weights and counts of cells need them."""
        known = self._class_map(section, piece)

        def make() -> NDArray[np.int32]:
            labels = self._labels(section, known.box) if self.rules.truth == "instances" else known.classes
            return cells_of(labels, known.classes, self.rules)

        return self._maps.get(("cells", section, piece), make)

    def _labels(self, section: SectionIndex, box: Box) -> NDArray[Any]:
        """Labels of a part of a section, (y, x)."""
        return self.labels.read(_in_section(section, box)).reshape(box.shape)


@dataclass(frozen=True, slots=True)
class _ClassMap:
    """Classes of a piece and its margin."""

    box: Box
    """Position (y, x) in the section."""
    classes: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return self.classes.nbytes


def _cells_from(cells: NDArray[np.int32], inside: Box) -> int:
    """Number of cells whose first pixel, in C order, lies in a box."""
    flat = cells.ravel()[::-1]
    first = np.empty(int(flat.max(initial=0)) + 1, np.intp)
    first[flat] = np.arange(len(flat))[::-1]  # of several values for one index, numpy keeps the last
    rows, columns = np.divmod(first[1:], cells.shape[1])
    (top, left), (bottom, right) = inside.start, inside.stop
    return int(((top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)).sum())


@dataclass(frozen=True, slots=True)
class _Grid:
    """Grid of boxes with equal sides that covers a section from its origin."""

    sides: tuple[int, ...]
    section: Box

    def intersecting(self, box: Box) -> Iterator[Box]:
        """Yield the boxes of the grid that intersect a box inside the section, in C order."""
        ranges = [range(a // n, -(-b // n)) for a, b, n in zip(box.start, box.stop, self.sides, strict=True)]
        for index in itertools.product(*ranges):
            start = tuple(i * n for i, n in zip(index, self.sides, strict=True))
            yield Box(start, tuple(a + n for a, n in zip(start, self.sides, strict=True))).clipped(self.section)


class _ByteCache:
    """Least recently used cache with a limit in bytes; the value used last is always kept."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget, self.nbytes = budget_bytes, 0
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of a key, made by ``make`` if it is not cached; values have ``nbytes``."""
        if key not in self._values:
            self._values[key] = make()
            self.nbytes += self._values[key].nbytes
        self._values.move_to_end(key)
        while self.nbytes > self._budget and len(self._values) > 1:
            self.nbytes -= self._values.popitem(last=False)[1].nbytes
        return cast(Value, self._values[key])


def _in_section(section: SectionIndex, box: Box) -> Box:
    """The box of a volume that is a part (y, x) of a section."""
    return Box(section + box.start, tuple(n + 1 for n in section) + box.stop)


def _split_window(box: Box) -> tuple[SectionIndex, Box]:
    """Index of a window's section, and the window's position (y, x) in it."""
    if any(side != 1 for side in box.shape[:-2]):
        raise ValueError(f"expected a window of one section, found {box}")
    return box.start[:-2], Box(box.start[-2:], box.stop[-2:])
