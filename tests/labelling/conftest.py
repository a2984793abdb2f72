"""A prediction to be labelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import write_prediction
from labelling.maps import blobs
from labelling.store import SHAPE, STORE
from numpy.typing import NDArray


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def values(here: Path) -> NDArray[np.uint8]:
    """What is predicted, and stored at ``STORE``."""
    made = blobs(SHAPE, 2, seed=7)
    write_prediction(STORE, made, (1, 16, 16), levels=3)
    return made
