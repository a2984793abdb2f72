"""Sections and blocks that were never stored are not read, and the scores are those of the same values in full."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from evaluate.test_blocks import plain
from numpy.typing import NDArray
from pairs import evaluated

SHAPE = (7, 40, 50)


def scattered(seed: int, high: int) -> NDArray[np.uint8]:
    """Random values in parts of sections 1 and 4, and 0 elsewhere."""
    values = np.zeros(SHAPE, np.uint8)
    drawn = np.random.default_rng(seed).integers(0, high, SHAPE, np.uint8)
    for place in ((1, slice(0, 16), slice(0, 16)), (4, slice(20, 40), slice(10, 50))):
        values[place] = drawn[place]
    return values


def write(path: Path, values: NDArray[np.uint8], *, fill: int, dense: bool) -> str:
    with zarr.config.set({"array.write_empty_chunks": dense}):
        array = zarr.create_array(
            path, shape=SHAPE, chunks=(1, 8, 8), dtype="u1", fill_value=fill, dimension_names=list("zyx")
        )
        array[...] = values
    stored = [file for file in (path / "c").rglob("*") if file.is_file()]
    assert (len(stored) == 7 * 5 * 7) == dense
    return str(path)


CASES: dict[str, dict[str, Any]] = {
    "probability": {"metrics": ("pixels", "em", "cells", "voi"), "kind": "probability"},
    "blocks of probability": {"metrics": ("pixels", "cells", "voi"), "kind": "probability"},
    "labels": {"metrics": ("cells", "voi"), "kind": "labels", "three_d": False},
    "labels through sections": {"metrics": ("cells", "voi"), "kind": "labels", "three_d": True},
    "classes": {"metrics": ("pixels",), "kind": "classes"},
    "ignored": {"metrics": ("pixels", "cells"), "kind": "probability", "ignore": 2},
    "background ignored": {"metrics": ("pixels", "cells"), "kind": "probability", "ignore": 0},
}


@pytest.mark.by_default("background ignored", "labels through sections", "probability-60")
@pytest.mark.parametrize(
    "fill", [pytest.param(0, marks=pytest.mark.slow), 60, pytest.param(200, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_values_stored_in_full(tmp_path: Path, case: str, fill: int) -> None:
    options = dict(CASES[case])
    metrics, high = options.pop("metrics"), 255 if options["kind"] == "probability" else 4
    predicted, true = scattered(1, high), scattered(2, 3)
    predicted[predicted == 0] = fill if high == 255 else 0
    found = []
    for dense in (True, False):
        (folder := tmp_path / str(dense)).mkdir()
        paths = (
            write(folder / "p.zarr", predicted, fill=int(predicted[0, 0, 0]), dense=dense),
            write(folder / "t.zarr", true, fill=0, dense=dense),
        )
        scores = plain(evaluated(*paths, *metrics, block_voxels=200, **options))
        found.append({name: value for name, value in scores.items() if name != "truth"})
    assert found[0] == found[1]


def test_an_absent_volume_takes_no_time(tmp_path: Path) -> None:
    """32768 x 32768 voxels of which one chunk is stored; over a minute if all of them are counted."""
    paths, sides = [], {"shape": (32768, 32768), "chunks": (1024, 1024)}
    for name, first in (("p.zarr", 5000), ("t.zarr", 5001)):
        array = zarr.create_array(tmp_path / name, dtype="u1", fill_value=0, **sides)  # type: ignore[arg-type]
        array[20000:20010, first : first + 10] = 255
        paths.append(str(tmp_path / name))
    started = time.process_time()
    found = evaluated(*paths, "cells", "voi", kind="probability")
    assert time.process_time() - started < 15
    assert found.scores["cells"]["seg"] == pytest.approx(90 / 110)
