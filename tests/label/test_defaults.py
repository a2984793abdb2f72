"""Defaults of label that follow from the truth that the model was trained on."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_prediction
from label.store import STORE, label, stored
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.label.objects import label_section
from unetcli.label.watershed import separate_section
from unetcli.volumes.image import MARKER

RADIUS, SPECK = 12, 20
"""Radius of the discs, and pixels of a speck."""
SMALLEST = 400


def touching_discs() -> NDArray[np.uint8]:
    """Two discs that overlap, a third one, and a speck, as certain foreground; (1, 60, 90)."""
    y, x = np.ogrid[:60, :90]
    found = np.zeros((60, 90), bool)
    for centre in ((20, 20), (20, 40), (40, 70)):
        found |= np.hypot(y - centre[0], x - centre[1]) < RADIUS
    found[50:54, 10:15] = True
    return np.where(found, 255, 0).astype(np.uint8)[np.newaxis]


def state(**facts: Any) -> None:
    """Add to the marker of the prediction what the model knows of the training truth."""
    file = STORE / "zarr.json"
    document = json.loads(file.read_text())
    document["attributes"][MARKER] |= facts
    file.write_text(json.dumps(document))


@pytest.fixture
def discs(here: Path) -> NDArray[np.uint8]:
    write_prediction(STORE, touching_discs(), (1, 16, 16))
    return touching_discs()


def test_instances_are_separated_and_specks_removed(discs: NDArray[np.uint8], caplog: Any) -> None:
    state(truth="instances", smallest_objects=[SMALLEST])
    with caplog.at_level(logging.INFO):
        summary = label()
    assert (summary.method, summary.min_size, summary.depth) == ("watershed", SMALLEST // 2, 3.8)
    assert (summary.objects, summary.removed) == (3, 1)
    assert np.array_equal(stored()[0], separate_section(discs[0], depth=3.8, min_size=SMALLEST // 2))
    chosen = "--method watershed --landscape distance --depth 3.8 --min-size 200"
    line = f"from the training truth (instances, whose smallest object has 400 pixels): {chosen}"
    assert [record.getMessage() for record in caplog.records].count(line) == 1


def test_two_valued_truth_is_flooded_by_probability(discs: NDArray[np.uint8]) -> None:
    state(truth="binary", smallest_objects=[SMALLEST])
    summary = label()
    assert (summary.method, summary.min_size, summary.depth) == ("watershed", 200, 0.1)
    assert np.array_equal(stored()[0], separate_section(discs[0], landscape="probability", depth=0.1, min_size=200))


@pytest.mark.parametrize("off", [0, 1])
def test_options_win(discs: NDArray[np.uint8], off: int) -> None:
    state(truth="instances", smallest_objects=[SMALLEST])
    summary = label(method="components", min_size=off)
    assert (summary.objects, summary.removed, summary.min_size, summary.depth) == (3, 0, off, None)
    assert np.array_equal(stored()[0], label_section(discs[0], 0.5))
    assert label(depth=2.0, overwrite=True).depth == 2


@pytest.mark.parametrize("facts", [{}, {"truth": "classes", "smallest_objects": [0]}], ids=["unknown", "classes"])
def test_without_a_known_truth_all_components_are_kept(discs: NDArray[np.uint8], facts: dict[str, Any]) -> None:
    state(**facts)
    summary = label()
    assert (summary.method, summary.min_size, summary.removed) == ("components", 0, 0)
    assert np.array_equal(stored()[0], label_section(discs[0], 0.5))
    assert label(method="watershed", overwrite=True).depth == 1.5


def test_in_three_dimensions_only_the_smallest_object_is_known(discs: NDArray[np.uint8]) -> None:
    state(truth="instances", smallest_objects=[SMALLEST])
    summary = label(three_d=True)
    assert (summary.method, summary.min_size, summary.removed) == ("components", 200, 1)
    summary = label(three_d=True, method="watershed", overwrite=True)
    assert summary.depth == 1.5


def test_each_class_has_its_own_smallest_object(here: Path) -> None:
    write_prediction(STORE, np.stack([touching_discs()] * 3), (1, 16, 16))
    state(truth="classes", smallest_objects=[0, 2 * SPECK, 2 * SPECK + 2])
    sizes = np.bincount(ndimage.label(touching_discs())[0].ravel())
    assert SPECK in sizes
    assert [label(channel=c, name=f"c{c}").objects for c in range(3)] == [3, 3, 2]


def test_the_same_command_continues_with_its_defaults(discs: NDArray[np.uint8]) -> None:
    state(truth="instances", smallest_objects=[SMALLEST])
    first, again = label(), label()
    assert (again.found_done, again.made, again.objects) == (first.blocks, 0, first.objects)


def test_the_command_line_prints_the_choice(
    unetcli: Callable[..., subprocess.CompletedProcess[str]], discs: NDArray[np.uint8]
) -> None:
    state(truth="instances", smallest_objects=[SMALLEST])
    done = unetcli("label", STORE, "--json")
    found = json.loads(done.stdout)
    assert {name: found[name] for name in ("method", "min_size", "depth", "removed")} == {
        "method": "watershed",
        "min_size": 200,
        "depth": 3.8,
        "removed": 1,
    }
    assert "--min-size 200" in done.stderr
    assert "3 objects above 0.5, 1 smaller than 200 voxels removed" in done.stderr
