"""Training targets: the class of each pixel and its weight near borders, of label maps and windows of volumes."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box, mirror_indices
from unetcli.train.border import border_weights, cells_of, dividing_line, numbered
from unetcli.train.settings import IGNORED, TruthRules
from unetcli.volumes.volume import Volume, describe

LARGEST = 4096
"""Longest axis, in pixels, that is not cut into pieces."""
PIECE, TILE = 2048, 512
"""Sides, in pixels, of a piece of a longer axis, and of the unit in which border weights are computed, which divides
it."""
CELL_MARGIN = 256
"""Pixels beyond the reach of the rules in which a piece follows its cells; larger ones may be taken for two."""
Place = tuple[int, ...]
"""A section: its index along each leading axis."""
Value = TypeVar("Value")


def classes_of(labels: NDArray[Any], rules: TruthRules) -> NDArray[np.uint8]:
    """Class of each pixel, ``IGNORED`` where there is no truth.

    Parameters
    ----------
    labels : (y, x), integer or bool

    Returns
    -------
    (y, x), uint8

    Raises
    ------
    UnetcliError
        A label that is no class, or below 0.
    """
    unknown = None if rules.ignore is None else labels == rules.ignore
    drawn = labels if unknown is None else np.where(unknown, np.zeros((), labels.dtype), labels)
    _require_numbers(drawn, rules)
    classes = (drawn if rules.truth == "classes" else drawn != 0).astype(np.uint8)
    if rules.truth == "instances":
        classes[dividing_line(numbered(drawn))] = 0
    if rules.partial is not None:
        distance = ndimage.distance_transform_edt(drawn == 0) if drawn.any() else np.full(drawn.shape, np.inf)
        classes[distance > rules.partial] = IGNORED
    if unknown is not None:
        classes[unknown] = IGNORED
    return classes


def is_empty(labels: NDArray[Any], rules: TruthRules) -> bool:
    """Whether nothing is drawn: all labels are 0 or ignored. Such sections are left out of training."""
    return not ((labels != 0) & (True if rules.ignore is None else labels != rules.ignore)).any()


def class_weights(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """w_c(k) = n / (K n_k): every class weighs the same in the loss; 0 for a class that does not occur."""
    weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)


def weight_table(class_weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """(256,) float32: w_c of eq. 2 by class, 0 for pixels without truth."""
    table = np.zeros(IGNORED + 1, np.float32)
    table[: len(class_weights)] = class_weights
    return table


def _require_numbers(drawn: NDArray[Any], rules: TruthRules) -> None:
    """Refuse numbers that cannot be what the rules say."""
    if rules.truth == "binary":
        return
    lowest, highest = int(drawn.min(initial=0)), int(drawn.max(initial=0))
    if lowest < 0:
        raise UnetcliError(
            f"label {lowest}; {rules.truth} are numbered 0, 1, 2, ..; --ignore {lowest} where it means no truth"
        )
    if rules.truth == "classes" and highest >= IGNORED:
        raise UnetcliError(
            f"class {highest}; classes are numbered 0 to {IGNORED - 1}; --ignore {highest} where it means no truth, "
            "numbers of objects are --truth instances"
        )


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Number of pixels by class, and of cells."""

    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(IGNORED + 1, np.int64))
    """(256,): pixels of each class, those without truth last."""
    cells: int = 0

    def __add__(self, other: LabelCounts) -> LabelCounts:
        return LabelCounts(self.pixels + other.pixels, self.cells + other.cells)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Pixels of each class up to the highest that occurs, two classes at least."""
        occurring = np.flatnonzero(self.pixels[:IGNORED])
        return self.pixels[: max(int(occurring.max(initial=0)) + 1, 2)]


class TargetCache:
    """Classes and border weights of a label volume, by window; threads may share one.

    Cells are found in whole sections, so that a window shows what its section as a whole would; only sections beyond
    ``LARGEST`` are taken in pieces of a grid that is fixed to the section. With the cells known, the border weight is
    local: it is made tile by tile, where windows need it. Both are kept while they fit into ``budget_bytes``; what one
    section needs is always kept.
    """

    def __init__(self, labels: Volume, rules: TruthRules, budget_bytes: int = 2**30) -> None:
        require_labels(labels)
        self.labels, self.rules = labels, rules
        height, width = labels.extent[-2:]
        self._section = Box((0, 0), (height, width))
        self._pieces = _Grid(tuple(n if n <= LARGEST else PIECE for n in (height, width)), self._section)
        self._tiles = _Grid((TILE, TILE), self._section)
        self._cell_maps, self._border_tiles = _ByteCache(budget_bytes // 2), _ByteCache(budget_bytes // 2)
        self._lock = threading.Lock()

    def window(self, box: Box) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Classes and border weights of one section's window, (y, x) each.

        It may reach outside the section, where it is mirrored as images are.
        """
        return self.classes(box), self._mirrored(box, self._border_weights)

    def classes(self, box: Box) -> NDArray[np.uint8]:
        """The classes of one section's window alone, (y, x): no border weight is computed."""
        return self._mirrored(box, self._classes)

    def count(self, box: Box) -> LabelCounts:
        """Classes and cells of one section's window, not mirrored; a cell counts where its first pixel lies."""
        place, inner = _flat(box)
        counts = LabelCounts()
        with self._lock:
            for piece in self._pieces.meeting(inner):
                cell_map = self._cell_map(place, piece)
                inside = inner.clipped(piece).relative_to(cell_map.box)
                pixels = np.bincount(cell_map.classes[inside.slices].ravel(), minlength=IGNORED + 1)
                counts += LabelCounts(pixels, cell_map.cells_from(inside))
        return counts

    def is_empty(self, section: Box) -> bool:
        """Whether nothing is drawn in a section: no truth to learn from."""
        parts = self.pieces(section)
        return all(is_empty(self.labels.read(part).reshape(part.shape[-2:]), self.rules) for part in parts)

    def pieces(self, box: Box) -> Iterator[Box]:
        """Windows that cover a section once and need little memory each; all but the last are multiples of ``TILE``."""
        place, inner = _flat(box)
        for piece in self._pieces.meeting(inner):
            yield Box(place + piece.start, tuple(n + 1 for n in place) + piece.stop)

    def _mirrored(self, box: Box, inside: Callable[[Place, Box], NDArray[Any]]) -> NDArray[Any]:
        """A window put together from what lies inside the section."""
        place, window = _flat(box)
        indices = [mirror_indices(*s) for s in zip(window.start, window.stop, self._section.stop, strict=True)]
        inner = Box(tuple(int(i.min()) for i in indices), tuple(int(i.max()) + 1 for i in indices))
        with self._lock:
            found = inside(self.labels.mirrored(place + inner.start)[:-2], inner)
        if inner == window:
            return found
        rows, columns = (i - first for i, first in zip(indices, inner.start, strict=True))
        return found[np.ix_(rows, columns)]

    def _classes(self, place: Place, box: Box) -> NDArray[np.uint8]:
        found = np.empty(box.shape, np.uint8)
        for piece in self._pieces.meeting(box):
            cell_map, part = self._cell_map(place, piece), box.clipped(piece)
            found[part.relative_to(box).slices] = cell_map.classes[part.relative_to(cell_map.box).slices]
        return found

    def _border_weights(self, place: Place, box: Box) -> NDArray[np.float32]:
        found = np.zeros(box.shape, np.float32)
        for tile in self._tiles.meeting(box) if self.rules.w0 else ():
            weights, part = self._border_tile(place, tile), box.clipped(tile)
            found[part.relative_to(box).slices] = weights[part.relative_to(tile).slices]
        return found

    def _border_tile(self, place: Place, tile: Box) -> NDArray[np.float32]:
        """The border weights of a tile."""

        def make() -> NDArray[np.float32]:
            cell_map = self._cell_map(place, next(self._pieces.meeting(tile)))
            around = tile.grown((int(self.rules.fade),) * 2).clipped(cell_map.box)
            seen = around.relative_to(cell_map.box).slices
            weights = border_weights(cell_map.cells[seen], cell_map.classes[seen], self.rules)
            return np.ascontiguousarray(weights[tile.relative_to(around).slices])

        return self._border_tiles.get((place, tile), make)

    def _cell_map(self, place: Place, piece: Box) -> _CellMap:
        """Classes and cells of a piece."""

        def make() -> _CellMap:
            around = piece.grown((self.rules.reach + CELL_MARGIN,) * 2).clipped(self._section)
            box = Box(place + around.start, tuple(n + 1 for n in place) + around.stop)
            labels = self.labels.read(box).reshape(around.shape)
            try:
                classes = classes_of(labels, self.rules)
            except UnetcliError as error:
                raise UnetcliError(f"{self.labels.path}: {describe(box, self.labels.axes)}: {error}") from error
            return _CellMap(around, classes, cells_of(labels, classes, self.rules))

        return self._cell_maps.get((place, piece), make)


def require_labels(volume: Volume) -> None:
    """Refuse a volume that holds no labels."""
    if volume.channels != 1:
        raise UnetcliError(f"{volume.path}: {volume.channels} channels; labels have one")
    if volume.dtype.kind not in "bui":
        raise UnetcliError(f"{volume.path}: numbers of {volume.dtype}; labels are integers, as uint8 or uint16")


@dataclass(frozen=True, slots=True)
class _CellMap:
    """Classes and cells of a piece and its surroundings."""

    box: Box
    """(y, x) in the section."""
    classes: NDArray[np.uint8]
    cells: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        return self.classes.nbytes + self.cells.nbytes

    def cells_from(self, inside: Box) -> int:
        """Number of cells whose first pixel lies there."""
        flat = self.cells.ravel()[::-1]
        first = np.empty(int(flat.max(initial=0)) + 1, np.intp)
        first[flat] = np.arange(len(flat))[::-1]  # of several values for one cell the last is kept
        rows, columns = np.divmod(first[1:], self.cells.shape[1])
        (top, left), (bottom, right) = inside.start, inside.stop
        return int(((top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)).sum())


@dataclass(frozen=True, slots=True)
class _Grid:
    """A section cut into boxes of equal sides, from its origin."""

    sides: tuple[int, ...]
    section: Box

    def meeting(self, box: Box) -> Iterator[Box]:
        """The boxes that share pixels with one inside the section, in C order."""
        ranges = [range(a // n, -(-b // n)) for a, b, n in zip(box.start, box.stop, self.sides, strict=True)]
        for place in itertools.product(*ranges):
            start = tuple(i * n for i, n in zip(place, self.sides, strict=True))
            yield Box(start, tuple(a + n for a, n in zip(start, self.sides, strict=True))).clipped(self.section)


class _ByteCache:
    """The values used last, up to a number of bytes; the very last one always."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget, self.nbytes = budget_bytes, 0
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made where it is not kept; it has ``nbytes``."""
        if key not in self._values:
            self._values[key] = make()
            self.nbytes += self._values[key].nbytes
        self._values.move_to_end(key)
        while self.nbytes > self._budget and len(self._values) > 1:
            self.nbytes -= self._values.popitem(last=False)[1].nbytes
        return cast(Value, self._values[key])


def _flat(box: Box) -> tuple[Place, Box]:
    """A window's section, and its place in there."""
    if any(side != 1 for side in box.shape[:-2]):
        raise ValueError(f"no window of one section: {box}")
    return box.start[:-2], Box(box.start[-2:], box.stop[-2:])
