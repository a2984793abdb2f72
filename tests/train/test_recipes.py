from __future__ import annotations

import itertools
import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetcli.core.errors import UnetcliError
from unetcli.train.settings import (
    LIMITS,
    POLY_POWER,
    RATES,
    RECIPES,
    SCHEDULES,
    Augmentation,
    Optimisation,
    log_uniform,
)

BASE = Optimisation(
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=0.0,
    schedule="constant",
    warm_up=0,
    clip=None,
    ema=0.0,
    batch_size=1,
    steps=None,
)


def rates(schedule: str, steps: int = 100, warm_up: int = 0) -> list[float]:
    chosen = replace(BASE, schedule=schedule, steps=None if schedule == "constant" else steps, warm_up=warm_up)
    return [chosen.rate(step) for step in range(steps + 1)]


def test_a_constant_rate_stays() -> None:
    assert rates("constant") == [0.1] * 101


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_a_decaying_rate_begins_whole_falls_at_every_step_and_ends_at_0(schedule: str) -> None:
    found = rates(schedule)
    assert found[0] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(found))
    assert found[99] > 0
    assert found[100] == 0


def test_the_schedules_are_their_formulas() -> None:
    """The cosine is that of Loshchilov and Hutter 2017 (eq. 5, one period), the polynomial has the power 0.9."""
    cosine, poly = rates("cosine"), rates("poly")
    for step in range(101):
        assert cosine[step] == pytest.approx(0.1 * (1 + math.cos(math.pi * step / 100)) / 2)
        assert poly[step] == pytest.approx(0.1 * (1 - step / 100) ** POLY_POWER)
    assert cosine[50] == pytest.approx(0.05)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_in_a_line_then_joins_the_schedule(schedule: str) -> None:
    with_it, without = rates(schedule, warm_up=9), rates(schedule)
    assert with_it[0] == pytest.approx(0.01 * without[0] / 0.1)
    assert [a / b for a, b in zip(with_it[:10], without[:10], strict=True)] == pytest.approx(
        [(k + 1) / 10 for k in range(10)]
    )
    assert with_it[9:] == without[9:]


@given(
    schedule=st.sampled_from(SCHEDULES),
    steps=st.integers(1, 1000),
    warm_up=st.integers(0, 2000),
    step=st.integers(0, 3000),
)
def test_a_rate_is_never_below_0_nor_above_the_one_asked_for(
    schedule: str, steps: int, warm_up: int, step: int
) -> None:
    rate = replace(BASE, schedule=schedule, steps=steps, warm_up=warm_up).rate(step)
    assert 0 <= rate <= BASE.learning_rate
    assert rate > 0 or step >= steps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lbfgs"}, "--optimizer lbfgs: expected sgd, adam or adamw"),
        ({"schedule": "step"}, "--schedule step: expected constant, cosine or poly"),
        ({"learning_rate": 0.0}, "--lr 0.0: expected a number above 0"),
        ({"learning_rate": math.inf}, "--lr inf"),
        ({"learning_rate": math.nan}, "--lr nan"),
        ({"momentum": 1.0}, "--momentum 1.0: expected 0 <= momentum < 1"),
        ({"momentum": -0.1}, "--momentum -0.1"),
        ({"weight_decay": -1e-4}, "--weight-decay -0.0001: expected"),
        ({"weight_decay": math.nan}, "--weight-decay nan"),
        ({"warm_up": -1}, "--warm-up -1: expected at least 0"),
        ({"ema": 1.0}, "--ema 1.0: expected 0 <= ema < 1"),
        ({"batch_size": 0}, "--batch-size 0: expected at least 1"),
        ({"clip": 0.0}, "--clip 0.0: expected a number above 0"),
        ({"clip": math.inf}, "--clip inf"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_meant_is_refused_naming_its_option(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnetcliError, match=message) as caught:
        replace(BASE, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_all_that_is_needed(recipe: str) -> None:
    recipe_values = RECIPES[recipe]
    needed = {field.name for field in fields(Optimisation)} - {"steps"}
    assert needed | {"dropout", "batch_norm"} == set(recipe_values)
    chosen = Optimisation(**{name: recipe_values[name] for name in needed}, steps=None)
    assert chosen.decays == (recipe_values["schedule"] != "constant")


def test_every_recipe_s_optimizer_has_a_rate_and_the_paper_s_numbers_are_the_paper_s() -> None:
    assert {recipe_values["optimizer"] for recipe_values in RECIPES.values()} <= set(RATES)
    paper = RECIPES["paper"]
    assert (paper["optimizer"], paper["momentum"], paper["batch_size"], paper["batch_norm"]) == ("sgd", 0.99, 1, False)


def test_settings_survive_being_written_as_plain_values() -> None:
    settings = Augmentation(elastic=3, flip=False, blur=0.5)
    values = asdict(settings)
    assert {type(value) for value in values.values()} == {float, bool}
    assert Augmentation(**values) == settings


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", True, None], ids=repr)
def test_what_is_no_strength_is_refused_naming_the_option(name: str, value: Any) -> None:
    with pytest.raises(UnetcliError, match=rf"^{name} = .*: expected 0 \(off\) <="):
        Augmentation(**{name: value})


@pytest.mark.parametrize("name", LIMITS)
def test_the_highest_strength_is_allowed_and_no_more(name: str) -> None:
    highest = LIMITS[name][0]
    assert getattr(Augmentation(**{name: highest}), name) == highest
    with pytest.raises(UnetcliError, match=name):
        Augmentation(**{name: highest * 1.001})


def test_a_flip_is_a_yes_or_no() -> None:
    with pytest.raises(UnetcliError, match="flip = 1: expected true or false"):
        Augmentation(flip=1)  # type: ignore[arg-type]


def test_displacements_are_the_papers_until_a_tile_is_too_small_for_them() -> None:
    paper = Augmentation()
    assert [paper.displacement(tile) for tile in (1212, 572, 316, 240)] == [10.0] * 4
    assert paper.displacement(96) == 4.0
    assert replace(paper, elastic=1.5).displacement(96) == 1.5


def test_a_strength_and_its_inverse_are_equally_likely() -> None:
    assert log_uniform(0.3, 0.7) * log_uniform(0.3, -0.7) == pytest.approx(1)
    assert log_uniform(0.0, 0.7) == 1.0
