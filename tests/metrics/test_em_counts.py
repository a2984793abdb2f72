from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import grey
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from unetcli.metrics import em
from unetcli.metrics.em_counts import (
    LEVELS,
    SCORES,
    WARPING_LEVELS,
    EmSums,
    PixelCounts,
    SectionCounts,
    above,
    errors_at,
    section_counts,
)
from unetcli.metrics.sums import intervals
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
    values = np.abs(near).view(np.float32)  # at level 0: the smallest positive values
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
def test_a_mask_of_everything_changes_nothing_and_an_empty_one_counts_nothing(section: Section) -> None:
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


def test_arrays_of_different_shapes_are_refused() -> None:
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
        assert len(found.positions) == at.warping.total


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


def stack(sections: int, seed: int = 0) -> list[SectionCounts]:
    truth = grey(sections, 17, 23, seed=seed) > 90
    random = grey(sections, 17, 23, seed=seed + 1).astype(np.float32) / 255
    values = np.where(truth, 0.4 + 0.6 * random, 0.7 * random).astype(np.float32)
    return [section_counts(*pair) for pair in zip(values, truth, strict=True)]


@pytest.mark.parametrize("sections", [1, 5])
def test_scores_are_those_of_the_exact_counts(sections: int) -> None:
    counts = stack(sections)
    total, expected = EmSums.stacked([EmSums.of(section) for section in counts]).total(), em.scores(counts)
    for name, score in SCORES.items():
        assert float(score(total)) == pytest.approx(expected[name], rel=1e-12, abs=1e-14), name


def test_undefined_scores_are_nan() -> None:
    bare = section_counts(np.full((9, 11), 0.3, np.float32), np.zeros((9, 11), np.bool_))
    total, expected = EmSums.of(bare), em.scores([bare])
    for name, score in SCORES.items():
        assert np.isnan(score(total)) == (expected[name] is None), name


def test_each_sample_takes_its_own_best_level() -> None:
    """The interval of a minimum over levels covers the minima of resampled stacks."""
    counts = stack(6, seed=4)
    units = EmSums.stacked([EmSums.of(section) for section in counts])
    found = intervals(units, SCORES)
    draws = np.random.default_rng(0).integers(6, size=(60, 6))
    resampled = [em.scores([counts[i] for i in drawn]) for drawn in draws]
    for name, interval in found.items():
        inside = [interval.low <= scores[name] <= interval.high for scores in resampled]
        assert np.mean(inside) > 0.8, name
