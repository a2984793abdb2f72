"""Values of labels become numbers of classes and objects, with background 0; every other value is an error."""

from __future__ import annotations

import numpy as np
import pytest

from unetcli.core.errors import UnetcliError
from unetcli.core.label_values import LabelValues
from unetcli.volumes.label_values import with_numbers
from unetcli.volumes.volume import Volume


def numbers(labels: list[int], values: LabelValues, ignore: int | None = None, dtype: str = "u1") -> list[int | None]:
    """The numbers of labels, and the ignored one last."""
    one = Volume(path="l.tif", array=np.array([labels], dtype), stored_axes="yx")
    found, ignored = with_numbers(one, values, ignore)
    stored = found.read(found.whole())[0, 0]
    assert stored.dtype == found.dtype
    return [*stored.tolist(), ignored]


@pytest.mark.parametrize("dtype", ["u1", "i2", "u8"])
def test_values_of_classes_become_their_numbers(dtype: str) -> None:
    values = LabelValues(classes=(128, 0, 255 if dtype == "u1" else 300))
    assert values.classes is not None
    assert numbers([0, 128, values.classes[2], 128], values, dtype=dtype) == [1, 0, 2, 0, None]
    assert numbers([7, 0, 128], values, 7, dtype=dtype) == [255, 1, 0, 255]
    with pytest.raises(
        UnetcliError, match=r"l\.tif: y 0:1, x 0:2: label 7 is none of the classes 128, 0, .*--ignore 7"
    ):
        numbers([0, 7], values, dtype=dtype)


@pytest.mark.parametrize(
    ("labels", "background", "ignore", "dtype", "expected"),
    [
        ([255, 0, 255], 255, None, "u1", [0, 255, 0, None]),
        ([1, 0, 2], 1, 2, "u1", [0, 1, 2, 2]),
        ([1, 0, 2], 1, 0, "u1", [0, 1, 2, 1]),
        ([-1, 0, 1, 5], -1, 5, "i2", [0, 1, 2, 6, 6]),
        ([1, 0], 1, None, "?", [0, 1, None]),
        ([0, 3], 300, None, "u1", [300, 3, None]),
        ([0, 3], 0, 3, "u1", [0, 3, 3]),
    ],
    ids=str,
)
def test_background_becomes_0_and_0_an_object(
    labels: list[int], background: int, ignore: int | None, dtype: str, expected: list[int | None]
) -> None:
    assert numbers(labels, LabelValues(background=background), ignore, dtype) == expected


def test_a_threshold_divides_a_mask_and_background_is_on_one_side() -> None:
    labels = [0, 3, 127, 128, 255, 9]
    assert numbers(labels, LabelValues(threshold=128), 9) == [0, 0, 0, 1, 1, 255, 255]
    assert numbers(labels, LabelValues(threshold=128, background=255)) == [1, 1, 1, 0, 0, 1, None]


@pytest.mark.parametrize(
    ("classes", "background", "message"),
    [
        ((0, 1, 1), 0, "2 to 255 different"),
        ((3,), 0, "--classes 3: expected 2 to 255"),
        ((0, 1), 1, "not with --classes"),
    ],
)
def test_values_that_contradict_each_other_are_refused(classes: tuple[int, ...], background: int, message: str) -> None:
    with pytest.raises(UnetcliError, match=message):
        LabelValues(classes=classes, background=background)
