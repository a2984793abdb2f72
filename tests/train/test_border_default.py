"""The default of the border weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import grey, write_zarr
from numpy.typing import NDArray
from scipy import ndimage
from train.scenes import TINY, annotated, dataset, leave_pictures_out

from unetcli.model.file import read_header
from unetcli.train.border_default import raised_fraction, with_default_border_weight
from unetcli.train.dataset import Dataset
from unetcli.train.request import TrainRequest
from unetcli.train.train import train_model


def grid(gap: int, side: int = 96, cell: int = 20) -> NDArray[np.uint8]:
    """Two sections of square cells with ``gap`` pixels of background between them."""
    inside = np.arange(side) % (cell + gap) >= gap
    return np.stack([np.outer(inside, inside)] * 2).astype(np.uint8)


def dataset_of(labels: NDArray[Any], **rules: Any) -> Dataset:
    return dataset(annotated(np.zeros(labels.shape, np.uint8), labels, **{"truth": "binary", "w0": 10.0, **rules}))


def test_the_raised_fraction_is_that_of_the_background_near_two_cells() -> None:
    """With sigma 5, w0 exp(-d^2 / 50) is above 1 for d1 + d2 below 10.7 pixels."""
    assert raised_fraction(dataset_of(grid(gap=4))) > 0.8
    assert raised_fraction(dataset_of(grid(gap=40))) == 0
    assert raised_fraction(dataset_of(np.ones((1, 30, 30), np.uint8))) == 0  # no background


@pytest.mark.parametrize("truth", ["binary", "instances"])
def test_membranes_are_learned_without_border_weights_and_cells_with_them(truth: str) -> None:
    numbered = [ndimage.label(grid(gap))[0].astype(np.uint16) for gap in (4, 40)]
    membranes, cells = (dataset_of(labels, truth=truth) for labels in numbered)
    assert [pair.rules.w0 for pair in with_default_border_weight(membranes).pairs] == [0.0]
    assert with_default_border_weight(cells) is cells


@pytest.fixture
def membranes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    """Request to train two steps on membranes."""
    monkeypatch.chdir(tmp_path)
    leave_pictures_out(monkeypatch)
    write_zarr(Path("raw.zarr"), grey(2, 96, 96))
    write_zarr(Path("labels.zarr"), grid(gap=4))
    return replace(TINY, recipe="fast", schedule="constant", steps=2)


def trained_w0(request: TrainRequest) -> float:
    summary = train_model(request)
    found: float = read_header(Path(summary.model)).provenance["config"]["rules"]["w0"]
    return found


def test_only_the_default_of_the_recipe_fast_depends_on_the_labels(membranes: TrainRequest) -> None:
    assert trained_w0(membranes) == 0
    assert trained_w0(replace(membranes, output=Path("named"), w0=3.0)) == 3
    assert trained_w0(replace(membranes, output=Path("paper"), recipe="paper")) == 10


def test_a_training_continues_with_the_border_weight_that_it_began_with(membranes: TrainRequest) -> None:
    """Also if it began when another default was chosen."""
    assert trained_w0(replace(membranes, w0=10.0)) == 10
    assert trained_w0(replace(membranes, steps=4)) == 10
