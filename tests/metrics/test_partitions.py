from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from unetcli.metrics.partitions import Cells, Information, Overlap, PairCounts, components

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=6)
MASKS = SHAPES.flatmap(lambda shape: st.tuples(*[arrays.arrays(bool, shape)] * 3))


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_], judged: NDArray[np.bool_] | None = None) -> Overlap:
    return Overlap.of(Cells.of(a, judged), components(b))


def together(
    a: NDArray[np.bool_], b: NDArray[np.bool_], judged: NDArray[np.bool_] | None = None
) -> list[tuple[int, int]]:
    """Cell and segment of each pixel that counts; a pixel without a segment has one of its own."""
    cells, segments = components(a).ravel().tolist(), components(b).ravel().tolist()
    kept = np.ones(a.shape, bool) if judged is None else judged
    pixels = enumerate(zip(cells, segments, kept.ravel(), strict=True))
    return [(c, s or -1 - place) for place, (c, s, counts) in pixels if c and counts]


def counted_by_hand(pixels: list[tuple[int, int]], *, ordered: bool) -> PairCounts:
    """Every pair of pixels, one by one."""
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
def test_only_judged_pixels_count_and_they_part_no_cell(masks: tuple[NDArray[np.bool_], ...]) -> None:
    assert overlap(*masks).pairs == counted_by_hand(together(*masks), ordered=True)
    everything = np.ones_like(masks[0])
    assert overlap(*masks[:2], everything).pairs == overlap(*masks[:2]).pairs


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
def test_a_partition_tells_all_about_itself_exactly(masks: tuple[NDArray[np.bool_], ...]) -> None:
    mask = masks[0]
    found = overlap(mask, mask)
    assert found.pairs.f_score == (1 if mask.any() else None)
    assert found.information.f_score == (1 if components(mask).max(initial=0) > 1 else None)


def test_one_piece_tells_exactly_nothing_about_seven() -> None:
    pieces = np.arange(14)[None] % 2 == 0
    assert overlap(pieces, np.ones_like(pieces)).information.mutual == 0
    assert overlap(np.ones_like(pieces), pieces).information.mutual == 0


def test_pairs_are_exact_beyond_64_bits() -> None:
    sizes = np.array([2**32, 2**32])
    found = Overlap(cells=sizes, segments=np.array([2**33]), shared=sizes, singles=0)
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
    assert overlap(corner, np.ones_like(corner)).pairs.fp == 2 * 9 * 9  # all pairs across, both ways


@pytest.mark.parametrize(
    ("counts", "score"),
    [(PairCounts(0, 0, 3), 0), (PairCounts(0, 2, 3), 0), (PairCounts(6, 2, 4), 2 / 3), (PairCounts(0, 0, 0), None)],
    ids=["nothing found", "nothing right", "some right", "nothing there"],
)
def test_f_scores_at_their_edges(counts: PairCounts, score: float | None) -> None:
    assert counts.f_score == score
