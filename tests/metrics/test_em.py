from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetcli.metrics.em import LEVELS, PairCounts, above, f_score, pair_f_score, rand_counts, scores, section_counts

CASES = ("hand_gap_7", "hand_split_9", "noisy_128", "thin8_64", "stack3_96", "split_128")
NAMES = {"pixel_error": "pixel_error", "pixel_disagreement": "pixel_disagreement_min"} | {
    name: name for name in ("rand_error", "rand_error_pairs")
}
MAPS = st.integers(1, 24).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n).map(np.array)] * 2)
)


@pytest.fixture(scope="session")
def official(data: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What the official program says, case by case."""
    return json.loads((data / "metrics_cases" / "expected.json").read_text())["cases"]  # type: ignore[no-any-return]


def case_scores(data: Path, name: str) -> dict[str, float | None]:
    files = (data / "metrics_cases" / f"{name}_{kind}.tif" for kind in ("prob", "label"))
    probability, label = (np.atleast_3d(tifffile.imread(file)) for file in files)
    if probability.shape[-1] == 1:
        probability, label = probability[None, ..., 0], label[None, ..., 0]
    return scores([section_counts(p.astype(np.float32), a > 0) for p, a in zip(probability, label, strict=True)])


def test_no_case_of_the_official_program_is_left_out(official: dict[str, object]) -> None:
    assert set(CASES) == set(official)


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_official_program(
    data: Path, official: dict[str, dict[str, dict[str, float]]], case: str
) -> None:
    found, expected = case_scores(data, case), official[case]
    for ours, theirs in NAMES.items():
        assert found[ours] == pytest.approx(expected["summary"][theirs], abs=1e-9), ours
    for name in set(NAMES) & set(expected["best_threshold"]):
        assert found[f"{name}_threshold"] == expected["best_threshold"][name], name


def test_the_levels_are_those_of_the_official_loop(data: Path) -> None:
    meta = json.loads((data / "metrics_cases" / "expected.json").read_text())["meta"]
    assert list(LEVELS) == meta["thresholds"]


def counted_by_hand(
    cells: NDArray[np.integer], segments: NDArray[np.integer], *, ordered: bool
) -> tuple[int, int, int]:
    """Every pair of pixels inside cells, one by one; a pixel that the proposal calls membrane is alone."""
    tp = fp = fn = 0
    inside = [(a, b if b else -1 - place) for place, (a, b) in enumerate(zip(cells, segments, strict=True)) if a]
    pairs = itertools.product(inside, repeat=2) if ordered else itertools.combinations(inside, 2)
    for (a, b), (c, d) in pairs:
        tp += a == c and b == d
        fp += a != c and b == d
        fn += a == c and b != d
    return tp, fp, fn


@settings(deadline=None)
@given(MAPS)
def test_rand_counts_are_those_of_counting_every_pair(maps: tuple[NDArray[np.integer], NDArray[np.integer]]) -> None:
    every, different = rand_counts(*maps)
    assert (every.tp, every.fp, every.fn) == counted_by_hand(*maps, ordered=True)
    assert (different.tp, different.fp, different.fn) == counted_by_hand(*maps, ordered=False)


def test_pairs_are_counted_exactly_in_large_sections() -> None:
    cells = np.ones(2**16, int)
    segments = np.repeat([1, 2], 2**15)
    every, different = rand_counts(cells, segments)
    assert (every.tp, every.fp, every.fn) == (2**31, 0, 2**31)
    assert different.tp == (2**31 - 2**16) // 2


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_above_is_the_comparison_in_doubles(level: float) -> None:
    near = np.float32(level).view(np.int32) + np.arange(-50, 51, dtype=np.int32)
    values = np.abs(near).view(np.float32)  # at level 0: the smallest there are
    values = np.concatenate([values, np.float32([0, -0.0, 0.5, 1, np.nan]), np.arange(256, dtype=np.float32) / 255])
    assert above(values, level).tolist() == (values.astype(np.float64) > level).tolist()


def test_a_perfect_map_has_no_error() -> None:
    interior = np.zeros((13, 22), bool)
    interior[1:6, 2:9] = interior[7:12, 3:20] = True
    found = scores([section_counts(interior.astype(np.float32), interior)])
    assert [found[name] for name in NAMES] == [0, 0, 0, 0]
    assert found["pixel_error_threshold"] == 0.0


def test_cells_that_touch_at_a_corner_are_two() -> None:
    interior = np.kron(np.eye(2), np.ones((3, 3))).astype(bool)
    joined = np.ones((6, 6), np.float32)
    (counts, *_) = section_counts(joined, interior)
    assert counts.rand.fp == 2 * 9 * 9  # all pairs across, both ways


def test_sections_are_pooled_before_the_level_is_chosen() -> None:
    """Each section alone would be perfect at a level of its own; the stack has one level."""
    interior = np.array([[1, 1, 1, 0]], bool)
    high, low = np.float32([[0.9, 0.9, 0.9, 0.6]]), np.float32([[0.4, 0.4, 0.4, 0.1]])
    alone = [scores([section_counts(p, interior)])["pixel_error"] for p in (high, low)]
    together = scores([section_counts(p, interior) for p in (high, low)])
    assert alone == [0, 0]
    assert together["pixel_error"] == pytest.approx(1 - f_score(PairCounts(6, 1, 0)))


@pytest.mark.parametrize("proposal", [0.0, 1.0], ids=["nothing found", "all found"])
def test_a_reference_without_interior_has_no_score_and_says_why(proposal: float) -> None:
    found = scores([section_counts(np.full((5, 3), proposal, np.float32), np.zeros((5, 3), bool))])
    for name in ("pixel_error", "rand_error", "rand_error_pairs"):
        assert (found[name], found[f"{name}_threshold"]) == (None, None)
        assert "interior" in found[f"{name}_reason"]
    assert found["pixel_disagreement"] == (0 if proposal == 0 else 1)


def test_one_empty_section_does_not_take_the_score_from_the_others() -> None:
    interior = np.array([[1, 1, 0, 1]], bool)
    empty = section_counts(np.zeros((1, 4), np.float32), np.zeros((1, 4), bool))
    found = scores([section_counts(interior.astype(np.float32), interior), empty])
    assert (found["pixel_error"], found["rand_error"]) == (0, 0)


@pytest.mark.parametrize(
    ("counts", "pixels", "pairs"),
    [(PairCounts(0, 0, 3), 0, 0), (PairCounts(0, 2, 3), 0, 0), (PairCounts(6, 2, 4), 2 / 3, 2 / 3)],
    ids=["nothing found", "nothing right", "some right"],
)
def test_f_scores_at_their_edges(counts: PairCounts, pixels: float, pairs: float) -> None:
    assert f_score(counts) == pytest.approx(pixels)
    assert pair_f_score(counts) == pytest.approx(pairs)


def test_a_single_pixel_of_interior_has_no_pair() -> None:
    interior = np.array([[0, 1, 0]], bool)
    found = scores([section_counts(interior.astype(np.float32), interior)])
    assert (found["rand_error"], found["rand_error_pairs"]) == (0, None)
    assert "two pixels" in found["rand_error_pairs_reason"]
