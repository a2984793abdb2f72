"""A run folder for the tests of executors."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "run"
    (place / "logs").mkdir(parents=True)
    return place
