"""Trainings that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from train.scenes import TINY, contents, write_discs

from unetcli.train.request import TrainRequest


@pytest.fixture
def pictured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    """Eight sections of bright discs; a network of 5,000 parameters."""
    place_discs(tmp_path, monkeypatch)
    return TINY


@pytest.fixture
def request_(pictured: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    """The same without figures of samples and curves, which take longer than the training."""
    leave_figures_out(monkeypatch)
    return pictured


def place_discs(place: Path, patch: pytest.MonkeyPatch) -> None:
    """Write sections to train on and go there; one thread, because the number of threads shows in the last bits."""
    patch.chdir(place)
    patch.setenv("OMP_NUM_THREADS", "1")
    write_discs(place)


def leave_figures_out(patch: pytest.MonkeyPatch) -> None:
    for name in ("unetcli.train.loop.draw_first_samples", "unetcli.viz.png.draw_curves"):
        patch.setattr(name, lambda *_: None)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, TrainRequest]]:
    """A training that tests look at and leave as it is: its place, and what was asked for."""
    from unetcli.train.train import train_model

    place = tmp_path_factory.mktemp("finished")
    request = replace(TINY, steps=150, validate_every=50)
    with pytest.MonkeyPatch.context() as patch:
        place_discs(place, patch)
        train_model(request)
    before = contents(place)
    yield place, request
    assert contents(place) == before


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training with a look every 10 steps that went straight through, for those that did not."""
    from unetcli.train.train import train_model

    place = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        place_discs(place, patch)
        leave_figures_out(patch)
        train_model(replace(TINY, validate_every=10))
    return place / "model"


@pytest.fixture
def trained(finished: tuple[Path, TrainRequest], monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    """In the place of the finished training."""
    monkeypatch.chdir(finished[0])
    return finished[1]
