"""Fixtures: a prediction, and its labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import write_prediction
from label.maps import blobs
from label.store import FOLDER, SHAPE, STORE, label
from numpy.typing import NDArray


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished_prediction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prediction, made once; ``values`` copies it."""
    place = tmp_path_factory.mktemp("prediction")
    write_prediction(place / STORE, blobs(SHAPE, 2, seed=7), (1, 16, 16), levels=3)
    return place


@pytest.fixture(scope="session")
def finished_labels(tmp_path_factory: pytest.TempPathFactory, finished_prediction: Path) -> Path:
    """A folder with that prediction and its labels, made once; ``labels`` copies it."""
    place = tmp_path_factory.mktemp("labels")
    shutil.copytree(finished_prediction, place, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        label()
    return place


@pytest.fixture
def values(here: Path, finished_prediction: Path) -> NDArray[np.uint8]:
    """Stored probabilities of the prediction at ``STORE``."""
    shutil.copytree(finished_prediction, here, dirs_exist_ok=True)
    return blobs(SHAPE, 2, seed=7)


@pytest.fixture
def labels(here: Path, finished_labels: Path) -> None:
    """The prediction of ``values`` and its labels, in the current folder."""
    shutil.copytree(finished_labels, here, dirs_exist_ok=True)
    places = FOLDER / "paths.json"
    places.write_text(places.read_text().replace(str(finished_labels), str(here)))
