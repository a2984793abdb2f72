from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from unetcli.core.errors import UnetcliError
from unetcli.train.recipes import HIGHEST, Augmentation, log_uniform


def test_settings_survive_being_written_as_plain_values() -> None:
    settings = Augmentation(elastic=3, flip=False, blur=0.5)
    values = asdict(settings)
    assert {type(value) for value in values.values()} == {float, bool}
    assert Augmentation(**values) == settings


@pytest.mark.parametrize("name", HIGHEST)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", True, None], ids=repr)
def test_what_is_no_strength_is_refused_naming_the_option(name: str, value: Any) -> None:
    with pytest.raises(UnetcliError, match=rf"^{name} = .*: expected a number from 0 \(off\) to"):
        Augmentation(**{name: value})


@pytest.mark.parametrize("name", HIGHEST)
def test_the_highest_strength_is_allowed_and_no_more(name: str) -> None:
    highest = HIGHEST[name][0]
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
