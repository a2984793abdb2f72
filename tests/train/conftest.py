"""Fixtures that train small networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from train.scenes import TINY, contents, leave_pictures_out, write_discs

from unetcli.train.request import TrainRequest


@pytest.fixture
def pictured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    """Request to train a network of 5,000 parameters on eight sections of bright discs."""
    place_discs(tmp_path, monkeypatch)
    return TINY


@pytest.fixture
def request_(pictured: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    """The same request; pictures of samples and curves, which take longer than the training, are not drawn."""
    leave_pictures_out(monkeypatch)
    return pictured


def place_discs(place: Path, patch: pytest.MonkeyPatch) -> None:
    """Write the sections and change to their folder; one thread, because their number changes the last bits."""
    patch.chdir(place)
    patch.setenv("OMP_NUM_THREADS", "1")
    write_discs(place)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, TrainRequest]]:
    """Folder and request of a finished training that tests read but do not change."""
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
    """Folder of an uninterrupted training with a validation every 10 steps, to compare interrupted ones with."""
    from unetcli.train.train import train_model

    place = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        place_discs(place, patch)
        leave_pictures_out(patch)
        train_model(replace(TINY, validate_every=10))
    return place / "model"


@pytest.fixture
def trained(finished: tuple[Path, TrainRequest], monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    """Request of the finished training; the test runs in its folder."""
    monkeypatch.chdir(finished[0])
    return finished[1]
