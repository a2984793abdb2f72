from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unetcli.metrics import cells
from unetcli.metrics.cells import CellSums
from unetcli.metrics.contingency import Contingency
from unetcli.metrics.pixels import Confusion
from unetcli.metrics.sums import (
    MAX_UNITS,
    Difference,
    Interval,
    Sums,
    differences,
    draw_weights,
    grouped,
    intervals,
    quotient,
)


def frames(n: int) -> list[CellSums]:
    generator = np.random.default_rng(1)
    return [CellSums.of(Contingency.of(*generator.integers(0, 4, (2, 30)))) for _ in range(n)]


def test_sums_come_back_from_json() -> None:
    stack = CellSums.stacked(frames(3))
    again = CellSums.from_dict(json.loads(json.dumps(stack.to_dict())))
    assert again.to_dict() == stack.to_dict()
    assert again.matches.shape == (3, 10)


def test_sums_of_another_class_are_refused() -> None:
    with pytest.raises(KeyError, match="counts"):
        Confusion.from_dict(frames(1)[0].to_dict())


def test_the_total_of_a_stack_is_the_sum_of_its_units() -> None:
    one, other, third = frames(3)
    stack = CellSums.stacked([one, other, third])
    assert stack.total().to_dict() == (one + other + third).to_dict()
    assert stack.take([0, 2]).total().to_dict() == (one + third).to_dict()


def test_stacks_are_concatenated_in_order() -> None:
    one, other, third = frames(3)
    whole = CellSums.concatenated([CellSums.stacked([one, other]), CellSums.stacked([third])])
    assert whole.to_dict() == CellSums.stacked([one, other, third]).to_dict()


def test_sums_travel_to_other_processes() -> None:
    (one,) = frames(1)
    assert pickle.loads(pickle.dumps(one)).to_dict() == one.to_dict()


def test_resampling_weighs_the_units() -> None:
    one, other = frames(2)
    found = CellSums.stacked([one, other]).resampled(np.array([[2.0, 0], [1, 1]]))
    assert found.take(0).to_dict() == (one + one).to_dict()
    assert found.take(1).to_dict() == (one + other).to_dict()


@dataclass(frozen=True, slots=True, eq=False)
class Mean(Sums):
    total_value: NDArray[Any]
    number: NDArray[Any]


def mean(sums: Mean) -> NDArray[np.float64]:
    return quotient(sums.total_value, sums.number)


def units(values: NDArray[np.float64]) -> Mean:
    return Mean(values, np.ones(len(values)))


def normal(n: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=n)


def interval(units: Sums, score: Any, **options: Any) -> Interval:
    return intervals(units, {"score": score}, **options)["score"]


def difference(current: Sums, baseline: Sums, score: Any) -> Difference:
    return differences(current, baseline, {"score": score})["score"]


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = normal(400, 1)
    found = interval(units(values), mean)
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * values.std() / 20
    assert [found.low, found.high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.15 * half)
    assert found.units == 400


def test_intervals_cover_the_true_value_as_often_as_stated() -> None:
    found = [interval(units(normal(60, seed)), mean, resamples=400, seed=seed) for seed in range(300)]
    held = sum(i.low <= 0 <= i.high for i in found if i.low is not None and i.high is not None)
    assert 0.89 <= held / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval_and_another_one_another() -> None:
    values = units(normal(30, 2))
    assert interval(values, mean) == interval(values, mean)
    assert interval(values, mean) != interval(values, mean, seed=7)


def test_every_draw_takes_as_many_units_as_there_are() -> None:
    weights = np.concatenate(list(draw_weights(units(normal(13, 3)), 50, 0)))
    assert weights.shape == (50, 13)
    assert (weights.sum(axis=1) == 13).all()


def test_batches_of_draws_do_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = units(normal(17, 4))
    whole = interval(values, mean)
    monkeypatch.setattr("unetcli.metrics.sums.BATCH_BYTES", 5 * 8 * 36)
    assert interval(values, mean) == whole


@pytest.mark.parametrize("n", [0, 1])
def test_one_unit_gives_no_interval_but_a_reason(n: int) -> None:
    found = interval(units(np.ones(n)), mean)
    assert (found.low, found.high) == (None, None)
    assert found.entries("seg") == {"seg_interval": None, "seg_interval_reason": found.reason}
    assert "two are needed" in str(found.reason)


def test_an_interval_is_reported_beside_its_score() -> None:
    assert Interval(0.25, 0.5, 9).entries("seg") == {"seg_interval": [0.25, 0.5]}


def test_a_score_that_most_draws_leave_undefined_has_no_interval() -> None:
    rare = Mean(np.array([1.0, 0, 0]), np.array([1.0, 0, 0]))
    found = interval(rare, mean, resamples=100)
    assert found.low is None
    assert "not defined in" in str(found.reason)


def test_many_units_are_grouped_without_changing_sum_or_spread() -> None:
    values = normal(40_000, 5) + 3
    few = grouped(units(values), 0)
    assert len(few.number) == MAX_UNITS
    assert mean(few.total()) == pytest.approx(values.mean())
    found = interval(units(values), mean, resamples=1000)
    half = 1.96 * values.std() / 200
    assert found.units == 40_000
    assert [found.low, found.high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.2 * half)


def test_a_small_steady_gain_is_more_than_noise_though_the_intervals_overlap() -> None:
    """Sections differ by 1, the predictions on each section by 0.05; pairing removes what both find difficult."""
    current, baseline = normal(50, 6), normal(50, 6) - 0.05 + 0.02 * normal(50, 7)
    found = difference(units(current), units(baseline), mean)
    assert found.value == pytest.approx((current - baseline).mean())
    assert found.more_than_noise is True
    alone = [interval(units(values), mean) for values in (current, baseline)]
    assert alone[0].low < alone[1].high  # type: ignore[operator]


def test_a_chance_difference_is_noise() -> None:
    found = difference(units(normal(50, 8)), units(normal(50, 9)), mean)
    assert found.more_than_noise is False


def test_a_prediction_does_not_differ_from_itself() -> None:
    found = difference(units(normal(50, 8)), units(normal(50, 8)), mean)
    assert (found.value, found.interval.low, found.interval.high, found.more_than_noise) == (0, 0, 0, False)


def test_what_cannot_be_compared_is_reported() -> None:
    single = difference(units(np.ones(1)), units(np.zeros(1)), mean)
    assert (single.value, single.more_than_noise) == (1, None)
    with pytest.raises(ValueError, match="3 units against 4"):
        difference(units(np.ones(3)), units(np.ones(4)), mean)
    assert Difference(None, Interval(None, None, 0, "why")).more_than_noise is None


def test_scores_of_cells_are_resampled_by_frame() -> None:
    generator = np.random.default_rng(10)
    frames = []
    for _ in range(12):
        reference = generator.integers(0, 9, 400)
        frames.append(cells.CellSums.of(Contingency.of(reference, np.where(generator.random(400) < 0.7, reference, 0))))
    stack = cells.CellSums.stacked(frames)
    for name, score in cells.SCORES.items():
        found = interval(stack, score, resamples=200)
        value = float(score(stack.total()))
        assert found.low is not None, name
        assert found.low <= value <= found.high, name  # type: ignore[operator]
