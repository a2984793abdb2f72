from __future__ import annotations

from collections import Counter
from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.metrics.cells import CellSums
from unetcli.metrics.contingency import Contingency, ObjectOverlaps, matched_objects

LABELS = st.sampled_from([0, 1, 2, 3, 255, 2**32, 2**63, 2**64 - 1])
PIXELS = st.lists(st.tuples(LABELS, LABELS), max_size=40)
OVERLAPPING = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40)
Pixels = list[tuple[int, int]]


def table(pixels: Pixels, ignore: int | None = None) -> Contingency:
    columns = np.array(pixels, np.uint64).reshape(-1, 2)
    return Contingency.of(columns[:, 0], columns[:, 1], ignore=ignore)


def counted(found: Contingency) -> dict[tuple[int, int], int]:
    pairs = zip(found.reference.tolist(), found.result.tolist(), strict=True)
    return dict(zip(pairs, found.counts.tolist(), strict=True))


@given(PIXELS)
def test_a_table_counts_every_pixel_once(pixels: Pixels) -> None:
    found = table(pixels)
    assert counted(found) == Counter(pixels)
    assert list(counted(found)) == sorted(set(pixels))


@given(PIXELS, LABELS)
def test_ignored_pixels_count_nowhere(pixels: Pixels, ignore: int) -> None:
    assert counted(table(pixels, ignore)) == Counter(pair for pair in pixels if pair[0] != ignore)


@given(PIXELS, st.lists(st.integers(0, 40), max_size=4))
def test_blocks_add_up_to_the_whole(pixels: Pixels, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(pixels)]
    blocks = [table(pixels[first:stop]) for first, stop in pairwise(edges)]
    assert counted(reduce(add, blocks)) == counted(table(pixels))
    assert counted(Contingency.total(blocks[::-1])) == counted(table(pixels))


def test_a_total_of_nothing_is_empty() -> None:
    assert counted(Contingency.total([])) == {}


@pytest.mark.parametrize(("a", "b"), [("bool", "uint8"), ("int8", "uint64"), (">u2", "int64")])
def test_any_integer_dtype_and_shape_is_accepted(a: str, b: str) -> None:
    volume = np.arange(3 * 5 * 7).reshape(3, 5, 7) % 2
    found = Contingency.of(volume.astype(a), (90 * volume).astype(b)[:, ::-1])
    assert counted(found) == Counter(
        (one, 90 * other) for one, other in zip(volume.flat, volume[:, ::-1].flat, strict=True)
    )


@pytest.mark.parametrize(
    ("values", "said"), [(np.array([3, -1]), "label -1"), (np.array([0.5, 1]), "float64")], ids=["negative", "float"]
)
def test_values_that_are_not_labels_are_refused(values: NDArray[np.integer], said: str) -> None:
    for pair in ((values, np.array([1, 2])), (np.array([1, 2]), values)):
        with pytest.raises(UnetcliError, match=said):
            Contingency.of(*pair)


def test_a_negative_label_may_be_ignored() -> None:
    assert counted(Contingency.of(np.array([-1, 4]), np.array([7, 8]), ignore=-1)) == {(4, 8): 1}


@given(PIXELS)
def test_overlaps_are_those_of_sets_of_pixels(pixels: Pixels) -> None:
    found = ObjectOverlaps.of(table(pixels))
    sets = [
        {
            label: {n for n, pair in enumerate(pixels) if pair[side] == label}
            for label in {pair[side] for pair in pixels}
        }
        for side in (0, 1)
    ]
    for side, labels, sizes in ((0, found.reference, found.reference_sizes), (1, found.result, found.result_sizes)):
        assert dict(zip(labels.tolist(), sizes.tolist(), strict=True)) == {
            label: len(places) for label, places in sets[side].items() if label
        }
    pairs = [(int(found.reference[i]), int(found.result[j])) for i, j in zip(*found.pairs, strict=True)]
    assert pairs == sorted(pair for pair in set(pixels) if all(pair))
    assert found.shared.tolist() == [len(sets[0][a] & sets[1][b]) for a, b in pairs]
    assert found.unions.tolist() == [len(sets[0][a] | sets[1][b]) for a, b in pairs]


def test_found_missed_merged_split_and_extra_objects_are_distinguished() -> None:
    found = [(10, 1)] * 3 + [(0, 1)]
    missed = [(11, 0)] * 4
    merged = [(12, 2)] * 3 + [(13, 2)] * 3
    split = [(14, 3)] * 3 + [(14, 4)] * 2
    extra = [(0, 5)] * 2
    reference, result = matched_objects(table(found + missed + merged + split + extra))
    assert reference.labels.tolist() == [10, 11, 12, 13, 14]
    assert reference.sizes.tolist() == [3, 4, 3, 3, 5]
    assert reference.result.tolist() == [1, 0, 2, 2, 3]
    assert reference.jaccard.tolist() == pytest.approx([3 / 4, 0, 1 / 2, 1 / 2, 3 / 5])
    assert reference.shared_with.tolist() == [0, 0, 1, 1, 0]
    assert reference.pieces.tolist() == [1, 0, 0, 0, 2]
    assert result.labels.tolist() == [1, 2, 3, 4, 5]
    assert result.sizes.tolist() == [4, 6, 3, 2, 2]
    assert result.covers.tolist() == [1, 2, 1, 0, 0]
    assert result.inside.tolist() == [True, False, True, True, False]


@given(OVERLAPPING)
def test_the_list_agrees_with_the_scores(pixels: Pixels) -> None:
    reference, result = matched_objects(table(pixels))
    sums = CellSums.of(table(pixels))
    assert (len(reference.labels), len(result.labels)) == (sums.references, sums.results)
    assert reference.jaccard.sum() == pytest.approx(float(sums.jaccard))
    assert (reference.result == 0).sum() == sums.missed
    assert (result.covers == 0).sum() == sums.spurious
    assert np.maximum(result.covers - 1, 0).sum() == sums.merged
