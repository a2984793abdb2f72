from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from unetcli.metrics.em_counts import (
    LEVELS,
    WARPING_LEVELS,
    PixelCounts,
    SectionCounts,
    above,
    combine,
    errors_at,
    section_counts,
)
from unetcli.metrics.warping import ErrorKind

Section = tuple[NDArray[np.float32], NDArray[np.bool_]]
SECTIONS = arrays.array_shapes(min_dims=2, max_dims=2, max_side=8).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)), arrays.arrays(bool, shape)
    )
)


def random_section(seed: int, shape: tuple[int, int] = (13, 22)) -> Section:
    random = np.random.default_rng(seed)
    interior = random.random(shape) > 0.3
    return np.clip(interior + random.normal(0, 0.4, shape), 0, 1).astype(np.float32), interior


def test_the_levels_are_those_of_the_official_loop(data: Path) -> None:
    meta = json.loads((data / "metrics_cases" / "expected.json").read_text())["meta"]
    assert list(LEVELS) == meta["thresholds"]
    assert len(WARPING_LEVELS) == meta["warping_levels"]


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_above_is_the_comparison_in_doubles(level: float) -> None:
    near = np.float32(level).view(np.int32) + np.arange(-50, 51, dtype=np.int32)
    values = np.abs(near).view(np.float32)  # at level 0: the smallest there are
    values = np.concatenate([values, np.float32([0, -0.0, 0.5, 1, np.nan]), np.arange(256, dtype=np.float32) / 255])
    assert above(values, level).tolist() == (values.astype(np.float64) > level).tolist()


@settings(deadline=None)
@given(SECTIONS)
def test_counts_survive_json_unchanged(section: Section) -> None:
    counts = section_counts(*section)
    assert SectionCounts.from_dict(json.loads(json.dumps(counts.to_dict()))) == counts


@settings(deadline=None)
@given(SECTIONS)
def test_every_pixel_is_counted_at_every_level(section: Section) -> None:
    for counts, level in zip(section_counts(*section).levels, LEVELS, strict=True):
        assert counts.pixels.all == section[1].size
        assert counts.pixels.interior == section[1].sum()
        assert counts.pixels.proposed == (section[0].astype(np.float64) > level).sum()
        assert (counts.warping is None) == (level not in WARPING_LEVELS)
        assert counts.rand.tp + counts.rand.fn == counts.thinned.tp + counts.thinned.fn  # the reference is not thinned


@settings(deadline=None)
@given(SECTIONS)
def test_judging_everything_is_no_mask_and_judging_nothing_counts_nothing(section: Section) -> None:
    everything = np.ones(section[1].shape, bool)
    assert section_counts(*section, everything) == section_counts(*section)
    for counts in section_counts(*section, ~everything).levels:
        assert counts.pixels.all == counts.rand.tp == counts.thinned.fn == 0
        assert counts.warping is None or counts.warping.total == 0


def test_arrays_in_columns_or_read_only_count_the_same() -> None:
    probability, interior = random_section(1)
    expected = section_counts(probability, interior)
    columns = np.asfortranarray(probability), np.asfortranarray(interior)
    for array in columns:
        array.setflags(write=False)
    assert section_counts(*columns) == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 22), (13, 1)], ids=str)
def test_sections_of_a_single_line_count_too(shape: tuple[int, int]) -> None:
    counts = section_counts(np.full(shape, 0.55, np.float32), np.ones(shape, bool)).levels
    assert [level.pixels.tp for level in counts] == [shape[0] * shape[1]] * 6 + [0] * 5


def test_arrays_that_do_not_fit_are_refused() -> None:
    probability, interior = random_section(1)
    with pytest.raises(ValueError, match=r"\[\(1, 22\), \(13, 22\)\]; expected the same \(y, x\)"):
        section_counts(probability, interior[:1])
    with pytest.raises(ValueError, match="expected the same"):
        errors_at(probability[None], interior[None], 0.5)


def test_errors_of_a_picture_are_those_that_were_counted() -> None:
    probability, interior = random_section(2)
    counts = section_counts(probability, interior)
    for level, at in zip(WARPING_LEVELS, counts.levels, strict=False):
        found = errors_at(probability, interior, level)
        assert found.counts == at.warping
        assert at.warping is not None
        assert len(found.of(ErrorKind.SPLIT)) == at.warping.split
        assert len(found.places) == at.warping.total


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(7)), st.sets(st.integers(1, 6)))
def test_parts_combine_in_any_order_and_overlapping(order: list[int], cuts: set[int]) -> None:
    counts = {number: section_counts(*random_section(number, (5, 7))) for number in order}
    edges = [0, *sorted(cuts), 7]
    parts = [{n: counts[n] for n in order[a : b + 1]} for a, b in itertools.pairwise(edges)]
    together = combine(*parts)
    assert list(together.items()) == sorted(counts.items())


def test_a_section_counted_twice_with_different_results_is_refused() -> None:
    one, other = ({3: section_counts(*random_section(seed))} for seed in (1, 2))
    with pytest.raises(ValueError, match="section 3 was counted twice"):
        combine(one, other)


@pytest.mark.parametrize(
    ("counts", "score"),
    [
        (PixelCounts(0, 0, 3, 1), 0),
        (PixelCounts(0, 2, 3, 1), 0),
        (PixelCounts(6, 2, 4, 1), 2 / 3),
        (PixelCounts(6, 0, 0, 1), 1),
        (PixelCounts(0, 2, 0, 1), None),
    ],
    ids=["nothing found", "nothing right", "some right", "all right", "nothing there"],
)
def test_f_score_of_pixels_at_its_edges(counts: PixelCounts, score: float | None) -> None:
    assert counts.f_score == (score if score is None else pytest.approx(score))
