"""Trainings that tests share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from training.scenes import TINY, contents, write_discs

from unetcli.training.request import TrainRequest


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    """Eight sections of bright discs; a network of 5,000 parameters."""
    monkeypatch.chdir(tmp_path)
    write_discs(tmp_path)
    return TINY


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, TrainRequest]]:
    """A training that tests look at and leave as it is: its place, and what was asked for."""
    from unetcli.training.train import train_model

    place = tmp_path_factory.mktemp("finished")
    write_discs(place)
    request = replace(TINY, steps=150, validate_every=50)
    with contextlib.chdir(place):
        train_model(request)
    before = contents(place)
    yield place, request
    assert contents(place) == before


@pytest.fixture
def trained(finished: tuple[Path, TrainRequest], monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    """In the place of the finished training."""
    monkeypatch.chdir(finished[0])
    return finished[1]
