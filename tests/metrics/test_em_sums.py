from __future__ import annotations

import numpy as np
import pytest
from helpers import grey

from unetcli.metrics import em
from unetcli.metrics.bootstrap import intervals
from unetcli.metrics.em_sums import SCORES, EmSums


def stack(sections: int, seed: int = 0) -> list[em.SectionCounts]:
    truth = grey(sections, 17, 23, seed=seed) > 90
    random = grey(sections, 17, 23, seed=seed + 1).astype(np.float32) / 255
    values = np.where(truth, 0.4 + 0.6 * random, 0.7 * random).astype(np.float32)
    return [em.section_counts(*pair) for pair in zip(values, truth, strict=True)]


@pytest.mark.parametrize("sections", [1, 5])
def test_scores_are_those_of_the_exact_counts(sections: int) -> None:
    counts = stack(sections)
    total, expected = EmSums.stacked([EmSums.of(section) for section in counts]).total(), em.scores(counts)
    for name, score in SCORES.items():
        assert float(score(total)) == pytest.approx(expected[name], rel=1e-12, abs=1e-14), name


def test_what_is_not_defined_is_not_a_number() -> None:
    bare = em.section_counts(np.full((9, 11), 0.3, np.float32), np.zeros((9, 11), np.bool_))
    total, expected = EmSums.of(bare), em.scores([bare])
    for name, score in SCORES.items():
        assert np.isnan(score(total)) == (expected[name] is None), name


def test_each_sample_takes_its_own_best_level() -> None:
    """The interval of a minimum over levels lies where the minima of resampled stacks lie."""
    counts = stack(6, seed=4)
    units = EmSums.stacked([EmSums.of(section) for section in counts])
    found = intervals(units, SCORES)
    draws = np.random.default_rng(0).integers(6, size=(60, 6))
    resampled = [em.scores([counts[i] for i in drawn]) for drawn in draws]
    for name, interval in found.items():
        inside = [interval.low <= scores[name] <= interval.high for scores in resampled]
        assert np.mean(inside) > 0.8, name
