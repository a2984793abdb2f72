"""Views of arrays: each slice equals that of the array in memory."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
from helpers import grey

from unetcli.volumes.views import Converted, Inverted, Merged, Picked, PickedSections, Rearranged
from unetcli.volumes.volume import Volume, aligned

VALUES = grey(3, 4, 5, 6)


def parts(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    return list(itertools.product(*[[slice(None), slice(n // 2, n), slice(0, 0)] for n in shape]))


VIEWS: dict[str, tuple[Any, np.ndarray]] = {
    "index": (Rearranged(VALUES, [slice(None), 2, slice(None), slice(None)]), VALUES[:, 2]),
    "first": (Rearranged(VALUES, [slice(None), slice(None), slice(None), slice(4)]), VALUES[..., :4]),
    "new": (Rearranged(VALUES[0], [None, 1, None, slice(None), slice(3)]), VALUES[0][None, 1, None, :, :3]),
    "inverted": (Inverted(VALUES, 255), 255 - VALUES),
    "inverted bool": (Inverted(VALUES > 99, 1), VALUES <= 99),
    "converted": (Converted(VALUES, np.negative, "u1"), np.negative(VALUES)),
    "merged": (Merged(VALUES, 2, partial(np.max, axis=0), "u1"), VALUES.max(axis=2)),
    "picked": (Picked(VALUES, 1, [3, 0, 2]), VALUES[:, [3, 0, 2]]),
    "sections": (PickedSections(VALUES, (0, 1), [(2, 3), (0, 0)]), VALUES[[2, 0], [3, 0]]),
    "sections, behind": (PickedSections(VALUES, (2, 0), [(1, 2), (4, 0)]), VALUES[[2, 0], :, [1, 4]].swapaxes(0, 1)),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_slices_of_a_view_equal_those_in_memory(kind: str) -> None:
    view, right = VIEWS[kind]
    assert (view.shape, view.dtype, len(view.chunks)) == (right.shape, right.dtype, right.ndim)
    for part in parts(right.shape):
        found = view[part]
        assert found.shape == right[part].shape
        assert np.array_equal(found, right[part])


def test_axes_of_extent_1_do_not_count_in_a_pair() -> None:
    image = Volume(path="a", array=VALUES[None, None, 0], stored_axes="tczyx")
    labels = Volume(path="b", array=VALUES[0], stored_axes="zyx")
    one, other = aligned(image, labels)
    assert (one.axes, one.extent, other.extent) == ("zyx", (4, 5, 6), (4, 5, 6))
    assert np.array_equal(one.read(one.whole()), other.read(other.whole()))
    longer = Volume(path="c", array=VALUES, stored_axes="tzyx")
    assert aligned(longer, labels) == (longer, labels)


@pytest.mark.parametrize(
    ("stored", "others", "axes"), [("tcyx", "zyx", "zyx"), ("zyx", "tyx", "zyx"), ("yx", "tzyx", "tzyx")]
)
def test_a_volume_takes_on_the_single_axes_of_another(stored: str, others: str, axes: str) -> None:
    extents = {"t": 1, "c": 1, "z": 1 if stored != "zyx" else 2, "y": 5, "x": 6}
    one = Volume(path="a", array=np.ones([extents[a] for a in stored]), stored_axes=stored)
    other = Volume(path="b", array=np.ones([1 if a in "tz" else extents[a] for a in others]), stored_axes=others)
    fitted = one.with_single_axes_of(other)
    assert fitted.axes == axes
    assert fitted.read(fitted.whole()).shape == (1, *fitted.extent)
