from __future__ import annotations

import itertools
import math
from collections import Counter, deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from unetcli.metrics.contingency import Cells, Information, Overlap, PairCounts, components, thin

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=6)
MASKS = SHAPES.flatmap(lambda shape: st.tuples(*[arrays.arrays(bool, shape)] * 3))


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None) -> Overlap:
    return Overlap.of(Cells.of(a, valid), components(b))


def together(
    a: NDArray[np.bool_], b: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None
) -> list[tuple[int, int]]:
    """Cell and segment of each pixel that is counted; a pixel without a segment is a segment of its own."""
    cells, segments = components(a).ravel().tolist(), components(b).ravel().tolist()
    kept = np.ones(a.shape, bool) if valid is None else valid
    pixels = enumerate(zip(cells, segments, kept.ravel(), strict=True))
    return [(c, s or -1 - place) for place, (c, s, counts) in pixels if c and counts]


def counted_by_hand(pixels: list[tuple[int, int]], *, ordered: bool) -> PairCounts:
    """Count every pair of pixels, one by one."""
    tp = fp = fn = 0
    pairs = itertools.product(pixels, repeat=2) if ordered else itertools.combinations(pixels, 2)
    for (a, b), (c, d) in pairs:
        tp += a == c and b == d
        fp += a != c and b == d
        fn += a == c and b != d
    return PairCounts(tp, fp, fn)


def entropy(names: list[object]) -> float:
    counts = Counter(names)
    return -sum(n / len(names) * math.log(n / len(names)) for n in counts.values())


@settings(deadline=None)
@given(MASKS)
def test_pairs_are_those_of_counting_every_pair(masks: tuple[NDArray[np.bool_], ...]) -> None:
    a, b, _ = masks
    found, pixels = overlap(a, b), together(a, b)
    assert found.pairs == counted_by_hand(pixels, ordered=True)
    assert found.different_pairs == counted_by_hand(pixels, ordered=False)


@settings(deadline=None)
@given(MASKS)
def test_only_valid_pixels_count_but_the_others_still_connect_cells(masks: tuple[NDArray[np.bool_], ...]) -> None:
    assert overlap(*masks).pairs == counted_by_hand(together(*masks), ordered=True)
    everything = np.ones_like(masks[0])
    assert overlap(masks[0], masks[1], everything).pairs == overlap(*masks[:2]).pairs


@settings(deadline=None)
@given(MASKS)
def test_information_is_that_of_the_shares_of_pixels(masks: tuple[NDArray[np.bool_], ...]) -> None:
    a, b, _ = masks
    found, pixels = overlap(a, b).information, together(a, b)
    if not pixels:
        assert found == Information(0, 0)
        return
    cells, segments = entropy([c for c, _ in pixels]), entropy([s for _, s in pixels])
    assert found.entropies == pytest.approx(cells + segments, abs=1e-12)
    assert found.mutual == pytest.approx(cells + segments - entropy(list(pixels)), abs=1e-12)


@settings(deadline=None)
@given(MASKS)
def test_a_partition_determines_itself_exactly(masks: tuple[NDArray[np.bool_], ...]) -> None:
    mask = masks[0]
    found = overlap(mask, mask)
    assert found.pairs.f_score == (1 if mask.any() else None)
    assert found.information.f_score == (1 if components(mask).max(initial=0) > 1 else None)


def test_one_piece_has_no_mutual_information_with_seven() -> None:
    pieces = np.arange(14)[None] % 2 == 0
    assert overlap(pieces, np.ones_like(pieces)).information.mutual == 0
    assert overlap(np.ones_like(pieces), pieces).information.mutual == 0


def test_pairs_are_exact_beyond_64_bits() -> None:
    sizes = np.array([2**32, 2**32])
    found = Overlap(cells=sizes, segments=np.array([2**33]), shared=sizes, singletons=0)
    assert found.pairs == PairCounts(2**65, 2**65, 0)
    assert found.different_pairs == PairCounts(2**64 - 2**32, 2**64, 0)


def test_pairs_are_exact_in_large_sections() -> None:
    halves = np.ones((2, 2**16), bool)
    halves[1] = False
    found = overlap(np.ones_like(halves), halves)
    assert found.pairs == PairCounts(2**32 + 2**16, 0, 2**34 - 2**32 - 2**16)


def test_cells_that_touch_at_a_corner_are_two() -> None:
    corner = np.kron(np.eye(2), np.ones((3, 3))).astype(bool)
    assert components(corner).max() == 2
    assert (
        overlap(corner, np.ones_like(corner)).pairs.fp == 2 * 9 * 9
    )  # all pairs between the two cells, in both orders


@pytest.mark.parametrize(
    ("counts", "score"),
    [(PairCounts(0, 0, 3), 0), (PairCounts(0, 2, 3), 0), (PairCounts(6, 2, 4), 2 / 3), (PairCounts(0, 0, 0), None)],
    ids=["nothing found", "nothing right", "some right", "nothing there"],
)
def test_f_scores_at_their_edges(counts: PairCounts, score: float | None) -> None:
    assert counts.f_score == score


LARGER_MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))
DAM = 0


def flooded(segments: NDArray[np.int32]) -> NDArray[np.int32]:
    """The flooding rule of the official program, written with a dictionary and one step per pixel."""
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
@given(LARGER_MASKS)
def test_ties_are_resolved_as_in_the_official_program(mask: NDArray[np.bool_]) -> None:
    segments = components(mask)
    if mask.any():
        assert np.array_equal(thin(segments), flooded(segments))
        assert np.array_equal(thin(np.asfortranarray(segments)), flooded(segments))


@settings(deadline=None)
@given(LARGER_MASKS)
def test_segments_keep_their_pixels_and_no_membrane_is_left_but_dams(mask: NDArray[np.bool_]) -> None:
    segments = components(mask)
    thinned = thin(segments)
    assert (thinned >= 0).all()
    assert (thinned[mask] == segments[mask]).all()
    assert thinned.max() == max(segments.max(), 1)


@settings(deadline=None)
@given(LARGER_MASKS)
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
