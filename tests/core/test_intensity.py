from __future__ import annotations

import numpy as np
import pytest
from helpers import grey

from unetcli.core.intensity import Moments, along


def moments(*pieces: np.ndarray) -> Moments:
    found = Moments()
    for piece in pieces:
        found.add(piece)
    return found


def test_each_channel_has_its_own_mean_and_deviation_whatever_the_pieces() -> None:
    values = np.stack([grey(13, 22).astype(np.float64), 1e4 + 3e3 * grey(13, 22, seed=1), np.full((13, 22), 7.0)])
    found = moments(values[:, :5], values[:, 5:, :20], values[:, 5:, 20:])
    assert found.mean == pytest.approx(tuple(values.mean((1, 2))))
    assert found.std == pytest.approx((*values[:2].std((1, 2)), 1))  # 1 where all are equal
    alike = (values - along(found.mean, 3)) / along(found.std, 3)
    assert alike[:2].mean((1, 2)) == pytest.approx(0, abs=1e-9)
    assert alike[:2].std((1, 2)) == pytest.approx(1)


def test_an_only_channel_has_plain_numbers() -> None:
    values = grey(1, 13, 22)
    found = moments(values)
    assert isinstance(found.mean, float)
    assert (found.mean, found.std) == pytest.approx((values.mean(), values.std()))


def test_what_is_not_finite_counts_in_no_channel() -> None:
    values = grey(2, 3, 4).astype(np.float32)
    values[0, 0, 0], values[1, 2, 1], values[1, 1, 1] = np.nan, np.inf, -np.inf
    found = moments(values)
    rest = [channel[np.isfinite(channel)] for channel in values.astype(float)]
    assert found.mean == pytest.approx(tuple(channel.mean() for channel in rest))
    assert found.std == pytest.approx(tuple(channel.std() for channel in rest))


def test_nothing_at_all_is_left_as_it_is() -> None:
    assert (moments().mean, moments().std) == (0.0, 1.0)
    assert moments(np.full((2, 3), np.nan)).mean == (0.0, 0.0)
