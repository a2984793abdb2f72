from __future__ import annotations

from collections import deque

import numpy as np
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from unetcli.metrics.partitions import components
from unetcli.metrics.thinning import thin

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))
DAM = 0


def flooded(segments: NDArray[np.int32]) -> NDArray[np.int32]:
    """The rule of the official program as a story, with a dictionary: who is asked first, and what follows."""
    height, width = segments.shape
    label = {(x, y): int(segments[y, x]) for x in range(width) for y in range(height) if segments[y, x]}

    def neighbours(x: int, y: int) -> list[tuple[int, int]]:
        near = [(x - 1, y), (x, y - 1), (x + 1, y), (x, y + 1)]
        return [(u, v) for u, v in near if 0 <= u < width and 0 <= v < height]

    columns = [(x, y) for x in range(width) for y in range(height)]
    queue = deque(p for p in columns if p not in label and any(q in label for q in neighbours(*p)))
    known, rejoin = set(label) | set(queue), False
    while queue:
        pixel = queue.popleft()
        for near in neighbours(*pixel):
            if near not in known:
                known.add(near)
                queue.append(near)
            elif label.get(near, DAM) != DAM:
                if pixel not in label or (label[pixel] == DAM and rejoin):
                    label[pixel] = label[near]
                elif label[pixel] not in (DAM, label[near]):
                    label[pixel], rejoin = DAM, False
            elif near in label and pixel not in label:
                label[pixel], rejoin = DAM, True
    return np.array([[label[x, y] for x in range(width)] for y in range(height)], np.int32)


@settings(deadline=None, max_examples=300)
@given(MASKS)
def test_ties_are_decided_as_in_the_official_program(mask: NDArray[np.bool_]) -> None:
    segments = components(mask)
    if mask.any():
        assert np.array_equal(thin(segments), flooded(segments))
        assert np.array_equal(thin(np.asfortranarray(segments)), flooded(segments))


@settings(deadline=None)
@given(MASKS)
def test_segments_keep_their_pixels_and_no_membrane_is_left_but_dams(mask: NDArray[np.bool_]) -> None:
    segments = components(mask)
    thinned = thin(segments)
    assert (thinned >= 0).all()
    assert (thinned[mask] == segments[mask]).all()
    assert thinned.max() == max(segments.max(), 1)


@settings(deadline=None)
@given(MASKS)
def test_two_segments_never_touch(mask: NDArray[np.bool_]) -> None:
    thinned = thin(components(mask))
    for a, b in ((thinned[1:], thinned[:-1]), (thinned[:, 1:], thinned[:, :-1])):
        assert ((a == b) | (a == DAM) | (b == DAM)).all()


def test_without_any_segment_the_section_is_one() -> None:
    assert thin(np.zeros((3, 5), np.int32)).tolist() == [[1] * 5] * 3


def test_one_segment_takes_everything() -> None:
    segments = np.zeros((13, 22), np.int32)
    segments[6, 20] = 1
    assert (thin(segments) == 1).all()


def test_thick_membrane_leaves_a_dam_of_one_pixel() -> None:
    segments = components(np.arange(22)[None].repeat(13, 0) // 7 % 2 == 0)
    thinned = thin(segments)
    assert (thinned == DAM).sum(1).tolist() == [1] * 13
    assert np.array_equal(np.unique(thinned), [0, 1, 2])


def test_the_segments_given_stay_as_they_are() -> None:
    segments = components(np.eye(5, dtype=bool))
    before = segments.copy()
    thin(segments)
    assert np.array_equal(segments, before)
