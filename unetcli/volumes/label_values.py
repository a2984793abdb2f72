"""Labels whose values have a meaning of their own, as labels with the numbers of classes or objects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import LabelError
from unetcli.core.files import Place
from unetcli.core.label_values import IGNORED, LabelValues, option_text, value_text, values_text
from unetcli.core.records import decoded
from unetcli.volumes.image import find_marker
from unetcli.volumes.views import Converted
from unetcli.volumes.volume import Volume


def with_numbers(labels: Volume, values: LabelValues, ignore: int | None = None) -> tuple[Volume, int | None]:
    """Labels with the numbers of classes or objects instead of their values, and the value that is ignored in them.

    Background is 0 in them. Reading a value that is neither that of a class nor ignored raises :class:`UnetcliError`.
    """
    if values.classes is not None or values.threshold is not None:
        convert = MaskNumbers(values, ignore) if values.classes is None else ClassNumbers(values.classes, ignore)
        array = Converted(labels.array, convert, np.uint8)
        return replace(labels, array=array), None if ignore is None else IGNORED
    if values.background == 0:
        return labels, ignore
    numbers = ObjectNumbers(values.background)
    array = Converted(labels.array, numbers, numbers.dtype(labels.dtype))
    return replace(labels, array=array), None if ignore is None else int(numbers(np.array([ignore]))[0])


@dataclass(frozen=True, slots=True)
class MaskNumbers:
    """Function from the values of a mask to 0 and 1, on the two sides of a threshold; ignored ones: ``IGNORED``."""

    values: LabelValues
    ignore: int | None

    def __call__(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        threshold = self.values.threshold
        assert threshold is not None
        found: NDArray[np.uint8] = ((labels >= threshold) != (self.values.background >= threshold)).astype(np.uint8)
        if self.ignore is not None:
            found[labels == self.ignore] = IGNORED
        return found


@dataclass(frozen=True, slots=True)
class ObjectNumbers:
    """Function from labels to labels with background 0; labels of 0 become a number that no other object has."""

    background: int

    def dtype(self, labels: np.dtype[Any]) -> np.dtype[Any]:
        """Data type of the numbers of labels of another type."""
        return np.result_type(labels, np.int64 if self.background < 0 else np.min_scalar_type(self.background))

    def __call__(self, labels: NDArray[Any]) -> NDArray[Any]:
        found = labels.astype(self.dtype(labels.dtype))
        if self.background < 0:
            return found - self.background
        found[labels == 0] = self.background
        found[labels == self.background] = 0
        return found


@dataclass(frozen=True, slots=True)
class ClassNumbers:
    """Function from the values of labels to the numbers of their classes, uint8; ignored ones become ``IGNORED``."""

    classes: tuple[int, ...]
    ignore: int | None

    def __call__(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        order = np.argsort(self.classes)
        known, values = np.array(self.classes, np.int64)[order], labels.astype(np.int64, copy=False)
        places = np.searchsorted(known, values).clip(max=len(known) - 1)
        found: NDArray[np.uint8] = order.astype(np.uint8)[places]
        unknown = known[places] != values
        if self.ignore is not None:
            found[values == self.ignore] = IGNORED
            unknown &= values != self.ignore
        if unknown.any():
            value = int(values[unknown][0])
            raise LabelError(
                f"label {value_text(value)} is none of the classes {values_text(self.classes)}; --ignore "
                f"{option_text(value)} leaves it out, --classes states other values"
            )
        return found


def trained_values(prediction: Place) -> LabelValues:
    """Meaning of label values in the training of the model that made a prediction."""
    found = (find_marker(prediction) or {}).get("label_values")
    return LabelValues() if found is None else decoded(LabelValues, found)
