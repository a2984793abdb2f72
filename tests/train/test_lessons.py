from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from train.scenes import border_of

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box, mirror_indices
from unetcli.train import targets as module
from unetcli.train.recipes import IGNORED, TRUTHS, TruthRules
from unetcli.train.targets import TargetCache, classes_of
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

RULES = TruthRules(truth="instances", sigma=1.5, partial=6)
SHAPE = (3, 61, 83)
SEED = st.integers(0, 2**32 - 1)


def crowd(*shape: int, seed: int = 0) -> NDArray[np.uint16]:
    """Sections of cells, a few pixels across, that touch here and there."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint16)
    for section in labels.reshape(-1, *shape[-2:]):
        for number in range(1, shape[-1] * shape[-2] // 60):
            y, x = random.integers(0, shape[-2]), random.integers(0, shape[-1])
            height, width = random.integers(1, 8, 2)
            section[y : y + height, x : x + width] = number
    return labels


def volume(values: NDArray[Any]) -> Volume:
    return Volume(path="labels.zarr", array=values, stored_axes="tzyx"[-values.ndim :])


def whole(section: NDArray[np.uint16], rules: TruthRules) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    classes = classes_of(section, rules)
    return classes, border_of(section, classes, rules)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 40 pixels were a section too large to be looked at as a whole."""
    for name, value in (("LARGEST", 40), ("PIECE", 32), ("TILE", 8), ("CELL_MARGIN", 10)):
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("tile", [16, 512])
def test_a_window_is_a_part_of_the_whole_section(monkeypatch: pytest.MonkeyPatch, truth: str, tile: int) -> None:
    monkeypatch.setattr(module, "TILE", tile)
    rules, labels = TruthRules(truth=truth, sigma=1.5), crowd(*SHAPE) % 200
    here = TargetCache(volume(labels), rules)
    for section, y, x in [(0, 0, 0), (2, 17, 40), (1, 30, 51)]:
        found = here.window(Box((section, y, x), (section + 1, y + 31, x + 32)))
        for part, expected in zip(found, whole(labels[section], rules), strict=True):
            np.testing.assert_array_equal(part, expected[y : y + 31, x : x + 32])
            assert part.dtype == expected.dtype


@given(st.integers(-150, 90), st.integers(-200, 120), st.integers(-4, 6), st.integers(1, 90))
def test_outside_its_section_a_window_is_mirrored(y: int, x: int, section: int, side: int) -> None:
    labels = crowd(*SHAPE)
    found = TargetCache(volume(labels), RULES).window(Box((section, y, x), (section + 1, y + side, x + 2 * side)))
    place = int(mirror_indices(section, section + 1, SHAPE[0])[0])
    rows, columns = mirror_indices(y, y + side, SHAPE[1]), mirror_indices(x, x + 2 * side, SHAPE[2])
    for part, expected in zip(found, whole(labels[place], RULES), strict=True):
        np.testing.assert_array_equal(part, expected[np.ix_(rows, columns)])


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.usefixtures("small_pieces")
def test_a_section_in_pieces_is_as_the_whole_where_no_cell_is_larger_than_the_margin(truth: str) -> None:
    rules, labels = TruthRules(truth=truth, sigma=1.5, partial=6), crowd(70, 131, seed=4) % 200
    if truth == "binary":
        labels[::9], labels[:, ::9] = 0, 0  # connected cells would be larger
    found = TargetCache(volume(labels), rules).window(Box((0, 0), labels.shape))
    for part, expected in zip(found, whole(labels, rules), strict=True):
        np.testing.assert_array_equal(part, expected)


@given(st.integers(-20, 60), st.integers(-20, 120), st.integers(1, 60), SEED)
@settings(max_examples=40)
@pytest.mark.usefixtures("small_pieces")
def test_whatever_the_window_and_what_was_asked_before_a_pixel_is_the_same(
    y: int, x: int, side: int, seed: int
) -> None:
    """Even where pieces cut cells that are larger than the margin."""
    labels, random = np.kron(crowd(24, 44), np.ones((3, 3), np.uint16)), np.random.default_rng(seed)
    here, rules = TargetCache(volume(labels), RULES, budget_bytes=int(random.integers(2**17))), RULES
    expected = TargetCache(volume(labels), rules).window(Box((0, 0), labels.shape))
    for corner in [*random.integers(-30, 130, (3, 2)), (y, x)]:
        start = tuple(int(v) for v in corner)
        found = here.window(Box(start, (start[0] + side, start[1] + side)))
        index = np.ix_(*(mirror_indices(a, a + side, n) for a, n in zip(start, labels.shape, strict=True)))
        for part, full in zip(found, expected, strict=True):
            np.testing.assert_array_equal(part, full[index])


def test_what_is_kept_stays_below_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", 16)
    labels = crowd(12, 64, 64)
    section = 64 * 64 * (1 + 4 + 4)
    here = TargetCache(volume(labels), RULES, budget_bytes=3 * section)
    kept = 0
    for number in [*range(12), 3, 0]:
        here.window(Box((number, 0, 0), (number + 1, 64, 64)))
        kept = here._cell_maps.nbytes + here._border_tiles.nbytes
        assert kept <= 3 * section
    assert kept > section


def test_a_section_is_read_once_while_it_is_kept() -> None:
    class Counting:
        def __init__(self, values: NDArray[Any]) -> None:
            self.values, self.shape, self.dtype, self.reads = values, values.shape, values.dtype, 0

        def __getitem__(self, picks: Any) -> NDArray[Any]:
            self.reads += 1
            return self.values[picks]

    array = Counting(crowd(*SHAPE))
    here = TargetCache(Volume(path="labels.zarr", array=array, stored_axes="zyx"), RULES)
    for y in (0, 9, 20):
        here.window(Box((1, y, 5), (2, y + 30, 40)))
    assert array.reads == 1


def test_threads_may_share_lessons() -> None:
    labels = crowd(5, 61, 83)
    here = TargetCache(volume(labels), RULES, budget_bytes=50_000)
    troubles: list[int] = []

    def look(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 5, 12):
            found = here.window(Box((int(number), 0, 0), (int(number) + 1, 61, 83)))
            same = [np.array_equal(a, b) for a, b in zip(found, whole(labels[number], RULES), strict=True)]
            troubles.extend([] if all(same) else [int(number)])

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not troubles


@pytest.mark.usefixtures("small_pieces")
def test_a_census_counts_pixels_by_class_and_every_cell_once() -> None:
    labels, rules = crowd(70, 131), TruthRules(truth="instances", ignore=3)
    here = TargetCache(volume(labels), rules)
    found, classes = here.count(Box((0, 0), labels.shape)), classes_of(labels, rules)
    assert found.class_counts.tolist() == [(classes == 0).sum(), (classes == 1).sum()]
    assert found.pixels[IGNORED] == (classes == IGNORED).sum()
    assert found.cells == len(np.unique(labels[classes == 1]))
    parts = [here.count(part) for part in here.pieces(Box((0, 0), labels.shape))]
    assert len(parts) > 2
    assert sum(part.cells for part in parts) == found.cells
    assert np.array_equal(sum(part.pixels for part in parts), found.pixels)


def test_class_counts_go_up_to_the_highest_class() -> None:
    here = TargetCache(volume(np.array([[0, 0, 4], [2, 9, 9]])), TruthRules(truth="classes", ignore=9))
    assert here.count(Box((0, 0), (2, 3))).class_counts.tolist() == [2, 0, 1, 0, 1]
    assert here.count(Box((0, 0), (1, 2))).class_counts.tolist() == [2, 0]


def test_labels_of_a_file_are_read_as_they_are(tmp_path: Path) -> None:
    labels = crowd(2, *SHAPE).astype(">u2")
    path = write_zarr(tmp_path / "labels.zarr", labels, (1, 1, 20, 30), dimension_names=["t", "z", "y", "x"])
    found = TargetCache(open_volume(path), RULES).window(Box((1, 2, 0, 0), (2, 3, 61, 83)))
    for part, expected in zip(found, whole(labels[1, 2], RULES), strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("values", [np.zeros((2, 8, 9), np.float32), np.zeros((2, 2, 8, 9), np.uint8)])
def test_volumes_that_are_no_labels_are_refused(values: NDArray[Any]) -> None:
    axes = "zyx" if values.ndim == 3 else "czyx"
    with pytest.raises(UnetcliError, match=r"labels.zarr: .*; labels (are integers|have one)"):
        TargetCache(Volume(path="labels.zarr", array=values, stored_axes=axes), RULES)


def test_a_label_that_is_no_class_is_told_with_its_place() -> None:
    labels = np.zeros((3, 8, 9), np.uint16)
    labels[2, 4, 4] = 300
    here = TargetCache(volume(labels), TruthRules(truth="classes"))
    with pytest.raises(UnetcliError, match=r"labels.zarr: z 2:3, y 0:8, x 0:9: class 300; classes are"):
        here.window(Box((2, 0, 0), (3, 3, 3)))


def test_a_window_of_several_sections_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="no window of one section"):
        TargetCache(volume(crowd(*SHAPE)), RULES).window(Box((0, 0, 0), (2, 5, 5)))
