"""One pass over the annotated sections: grey values, classes, and what kind of truth the labels are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetcli.errors import UnetcliError
from unetcli.geometry import Box
from unetcli.training.sampling import Annotated
from unetcli.training.targets import TRUTHS
from unetcli.volumes.volume import Volume

MOST_CLASSES = 256


@dataclass(frozen=True, slots=True)
class Survey:
    """What the training sections hold."""

    mean: float
    std: float
    class_counts: NDArray[np.int64]
    """Pixels of each class."""


def survey(data: Annotated, region: Box) -> Survey:
    """Statistics over a region, section by section."""
    count, total, squares = 0, 0.0, 0.0
    classes = np.zeros(2, np.int64)
    for box in region.planes():
        grey = data.image(box).astype(np.float64)
        count, total, squares = count + grey.size, total + grey.sum(), squares + (grey**2).sum()
        target = data.target(box)
        if target.min() < 0:
            raise UnetcliError(f"{data.labels.path}: label {target.min()}; classes are numbered 0, 1, 2, ..")
        if target.max() >= MOST_CLASSES:
            raise UnetcliError(
                f"{data.labels.path}: class {target.max()}; classes are numbered from 0, {MOST_CLASSES} at most; "
                "numbers of objects are --truth instances"
            )
        found = np.bincount(target.ravel(), minlength=len(classes))
        classes = found + np.pad(classes, (0, len(found) - len(classes)))
    mean = total / count
    if (classes == 0).any():
        raise UnetcliError(f"{data.labels.path}: no pixel of class {int(np.argmin(classes))} in the training sections")
    return Survey(mean, max(squares / count - mean**2, 0.0) ** 0.5 or 1.0, classes)


def require_usable(data: Annotated, held_out: Box, found: Survey) -> None:
    """Refuse held-out sections that cannot be read, or with a class that training does not meet."""
    for box in held_out.planes():
        data.image(box)
        if (highest := int(data.target(box).max())) >= len(found.class_counts):
            raise UnetcliError(
                f"{data.labels.path}: class {highest} in the held-out sections only; "
                "--validation-fraction or --sections for another split"
            )


def resolve_truth(truth: str, labels: Volume, region: Box) -> str:
    """What the labels mean; ``auto`` is binary for at most two values and asks otherwise."""
    if truth in TRUTHS:
        return truth
    if truth != "auto":
        raise UnetcliError(f"--truth {truth}: expected auto, {', '.join(TRUTHS[:-1])} or {TRUTHS[-1]}")
    values = label_values(labels, region)
    if len(values) > 2:
        shown = ", ".join(map(str, values[:4])) + (f", .. {values[-1]}" if len(values) > 4 else "")
        raise UnetcliError(
            f"{labels.path}: {len(values)} different values ({shown}); say what they are: --truth instances "
            "(one number per object), --truth classes (one per class) or --truth binary (all but 0 is foreground)"
        )
    return "binary"


def label_values(labels: Volume, region: Box) -> list[int]:
    """The different labels of a region, sorted."""
    values: set[int] = set()
    for box in region.planes():
        values.update(np.unique(labels.read(box)).tolist())
    return sorted(values)
