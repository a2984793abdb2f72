from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from unetcli.metrics.cells import CellSums
from unetcli.metrics.contingency import Contingency
from unetcli.metrics.pixels import Confusion


def frames(n: int) -> list[CellSums]:
    generator = np.random.default_rng(1)
    return [CellSums.of(Contingency.of(*generator.integers(0, 4, (2, 30)))) for _ in range(n)]


def test_sums_come_back_from_json() -> None:
    stack = CellSums.stacked(frames(3))
    again = CellSums.from_dict(json.loads(json.dumps(stack.to_dict())))
    assert again.to_dict() == stack.to_dict()
    assert again.matches.shape == (3, 10)


def test_sums_of_another_kind_are_not_taken_for_ours() -> None:
    with pytest.raises(KeyError, match="counts"):
        Confusion.from_dict(frames(1)[0].to_dict())


def test_the_total_of_a_stack_is_the_sum_of_its_units() -> None:
    one, other, third = frames(3)
    stack = CellSums.stacked([one, other, third])
    assert stack.total().to_dict() == (one + other + third).to_dict()
    assert stack.taken([0, 2]).total().to_dict() == (one + third).to_dict()


def test_stacks_are_joined_in_order() -> None:
    one, other, third = frames(3)
    joined = CellSums.joined([CellSums.stacked([one, other]), CellSums.stacked([third])])
    assert joined.to_dict() == CellSums.stacked([one, other, third]).to_dict()


def test_sums_travel_to_other_processes() -> None:
    (one,) = frames(1)
    assert pickle.loads(pickle.dumps(one)).to_dict() == one.to_dict()


def test_resampling_weighs_the_units() -> None:
    one, other = frames(2)
    found = CellSums.stacked([one, other]).resampled(np.array([[2.0, 0], [1, 1]]))
    assert found.taken(0).to_dict() == (one + one).to_dict()
    assert found.taken(1).to_dict() == (one + other).to_dict()
