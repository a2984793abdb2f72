"""A look through the annotated sections: grey values, classes, and what kind of truth the labels are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import Moments, PerChannel
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.train.corpus import Annotated, Corpus
from unetcli.train.targets import IGNORED, TRUTHS, class_weights
from unetcli.volumes.volume import Volume

PIXELS = 2**28
"""About as many pixels are looked at; of larger corpora, sections or pieces of them spread evenly."""
ENOUGH = 1000
"""Different labels, after which it is clear that they are many."""
PIECE = 2048
"""Side of a piece of a section that is too large to be looked at whole."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What the training sections hold."""

    mean: PerChannel
    std: PerChannel
    class_counts: NDArray[np.int64]
    """Pixels of each class."""
    sections: int
    """Sections with truth."""
    left_out: int
    """Sections in which nothing is drawn."""
    share: float
    """Of the pixels, how many were looked at; statistics are estimates below 1."""

    def class_weights(self, *, balance: bool) -> NDArray[np.float32]:
        """w_c of eq. 2: classes weigh the same in all, or pixels do."""
        return class_weights(self.class_counts) if balance else np.ones(len(self.class_counts), np.float32)


def survey(corpus: Corpus) -> Survey:
    """Statistics over the training sections, section by section.

    Raises
    ------
    UnetcliError
        No truth anywhere, or a class that does not occur.
    """
    planes = list(corpus.planes(corpus.train))
    every = sum(1 for part in corpus.train for _ in part.region.planes())
    if not planes:
        raise UnetcliError(
            f"{corpus.pairs[0].labels.path}: nothing is drawn in any training section; --sections A:B names others"
        )
    share = min(1.0, PIXELS / sum(box.size for _, box in planes))
    grey, classes = Moments(), np.zeros(IGNORED + 1, np.int64)
    for pair, box in spread(planes, share):
        grey.add(pair.image(box))
        classes += np.bincount(pair.classes(box).ravel(), minlength=IGNORED + 1)
    return Survey(grey.mean, grey.std, occurring(corpus, classes), len(planes), every - len(planes), share)


def occurring(corpus: Corpus, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts of classes 0 to the highest that occurs; refused where one between is missing.

    Class 0 may be missing where label 0 is ignored: scribbles say what is what in a few places only.
    """
    highest = max(1, int(np.flatnonzero(counts[:IGNORED]).max(initial=0)))
    found = counts[: highest + 1]
    missing = found == 0
    missing[0] &= any(pair.rules.ignore != 0 for pair in corpus.pairs)
    if missing.any():
        raise UnetcliError(
            f"{corpus.pairs[0].labels.path}: no pixel of class {int(np.argmax(missing))} in the training sections; "
            f"all of 0 to {highest} are needed, --sections A:B names others"
        )
    return found


def spread(planes: Sequence[tuple[Annotated, Box]], share: float) -> Iterator[tuple[Annotated, Box]]:
    """The planes, or evenly spread pieces that make up about a share of their pixels."""
    if share == 1.0:
        yield from planes
        return
    pieces = [(pair, box) for pair, plane in planes for box in pieces_of(plane)]
    count = max(1, int(len(pieces) * share))
    yield from (pieces[int(n)] for n in np.linspace(0, len(pieces) - 1, count))


def pieces_of(plane: Box) -> Iterable[Box]:
    """Squares of ``PIECE`` pixels, smaller ones at the end."""
    (y0, x0), (y1, x1) = plane.start[-2:], plane.stop[-2:]
    for y in range(y0, y1, PIECE):
        for x in range(x0, x1, PIECE):
            corner, end = (y, x), (min(y + PIECE, y1), min(x + PIECE, x1))
            yield Box(plane.start[:-2] + corner, plane.stop[:-2] + end)


def require_usable(corpus: Corpus, found: Survey) -> None:
    """Refuse held-out sections that cannot be read, or with a class that training does not meet."""
    for pair, box in corpus.planes(corpus.held_out):
        pair.image(box)
        classes = pair.classes(box)
        highest = int(classes[classes != IGNORED].max(initial=0))
        if highest >= len(found.class_counts):
            raise UnetcliError(
                f"{pair.labels.path}: class {highest} in the held-out sections only; "
                "--validation A:B or --sections for another split"
            )


def resolve_truth(truth: str, labels: Sequence[tuple[Volume, Box]], ignore: int | None = None) -> str:
    """What the labels of some regions mean; ``auto`` is binary for at most two values and asks otherwise."""
    if truth in TRUTHS:
        return truth
    if truth != "auto":
        raise UnetcliError(f"--truth {truth}: expected auto, {', '.join(TRUTHS[:-1])} or {TRUTHS[-1]}")
    for volume in {id(volume): volume for volume, _ in labels}.values():
        regions = [region for other, region in labels if other is volume]
        values = sorted({value for region in regions for value in label_values(volume, region)} - {ignore})
        if len(values) > 2:
            shown = ", ".join(map(str, values[:4])) + (f", .. {values[-1]}" if len(values) > 4 else "")
            raise UnetcliError(
                f"{volume.path}: {len(values)} different values ({shown}); say what they are: --truth instances "
                "(one number per object), --truth classes (one per class) or --truth binary (all but 0 is foreground)"
            )
    return "binary"


def label_values(labels: Volume, region: Box) -> list[int]:
    """The different labels of a region, sorted; the first few sections that hold more than two are enough."""
    values: set[int] = set()
    for box in region.planes():
        values.update(np.unique(labels.read(box)).tolist())
        if len(values) > ENOUGH:
            break
    return sorted(values)
