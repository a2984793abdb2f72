from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import write_zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from train.scenes import border_of

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box, mirror_indices
from unetcli.train import targets as module
from unetcli.train.settings import IGNORED, TRUTHS, TruthRules
from unetcli.train.targets import TargetCache, class_weights, classes_of, is_empty
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

SEED = st.integers(0, 2**32 - 1)


def labels_of(seed: int, dtype: str = "uint16") -> NDArray[np.integer]:
    """Blobs of 2 x 3 pixels, with numbers 0 to 3."""
    random = np.random.default_rng(seed)
    return np.kron(random.integers(0, 4, (7, 8)), np.ones((2, 3))).astype(dtype)


def test_class_weights_give_every_class_the_same_total() -> None:
    counts = np.array([900, 90, 10])
    weights = class_weights(counts)
    assert (weights * counts).tolist() == pytest.approx([1000 / 3] * 3)
    assert weights.dtype == np.float32


def test_a_class_that_does_not_occur_weighs_nothing() -> None:
    assert class_weights(np.array([30, 0, 10]))[1] == 0


@given(SEED)
def test_binary_classes_are_all_that_is_labelled(seed: int) -> None:
    labels = labels_of(seed)
    assert np.array_equal(classes_of(labels, TruthRules(truth="binary")), labels > 0)


@given(SEED)
def test_labels_of_classes_are_the_classes(seed: int) -> None:
    labels = labels_of(seed)
    assert np.array_equal(classes_of(labels, TruthRules(truth="classes")), labels)


def test_between_objects_that_touch_the_class_is_background() -> None:
    labels = np.repeat([[3, 3, 3, 8, 8, 8, 0]], 5, axis=0)
    assert classes_of(labels, TruthRules(truth="instances")).tolist() == [[1, 1, 0, 0, 1, 1, 0]] * 5


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("truth", TRUTHS)
def test_classes_are_uint8_for_any_integer(dtype: str, truth: str) -> None:
    labels = np.zeros((4, 7), dtype)
    labels[1:3, 2:5] = 1
    found = classes_of(labels, TruthRules(truth=truth))
    assert found.dtype == np.uint8
    assert np.array_equal(found, labels)


@pytest.mark.parametrize("truth", ["binary", "instances"])
def test_numbers_of_objects_may_be_as_large_as_integers_go(truth: str) -> None:
    labels = np.array([[2**64 - 1, 2**64 - 1, 0, 2**64 - 2]], np.uint64)
    assert classes_of(labels, TruthRules(truth=truth)).tolist() == [[1, 1, 0, 1]]


@given(SEED, st.sampled_from(TRUTHS), st.integers(-1, 4))
def test_ignored_labels_have_no_truth_and_count_as_no_object(seed: int, truth: str, ignore: int) -> None:
    labels = labels_of(seed, "int16")
    found = classes_of(labels, TruthRules(truth=truth, ignore=ignore))
    rest = classes_of(np.where(labels == ignore, 0, labels), TruthRules(truth=truth))
    assert np.array_equal(found, np.where(labels == ignore, IGNORED, rest))


@pytest.mark.parametrize("value", [-1, 255, 70_000])
def test_what_could_be_no_label_may_be_ignored(value: int) -> None:
    labels = np.array([[0, 2, value]])
    for truth, second in (("binary", 1), ("instances", 1), ("classes", 2)):
        assert classes_of(labels, TruthRules(truth=truth, ignore=value)).tolist() == [[0, second, IGNORED]]


@given(SEED, st.sampled_from(TRUTHS), st.integers(1, 9))
def test_background_counts_only_near_what_is_drawn(seed: int, truth: str, partial: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.where(random.random((19, 23)) < 0.02, random.integers(1, 4, (19, 23)), 0)
    found = classes_of(labels, TruthRules(truth=truth, partial=partial))
    drawn = np.argwhere(labels)
    for place in np.argwhere(labels == 0):
        near = len(drawn) and ((drawn - place) ** 2).sum(1).min() <= partial**2
        assert found[tuple(place)] == (0 if near else IGNORED)
    assert np.array_equal(found[labels > 0], classes_of(labels, TruthRules(truth=truth))[labels > 0])


def test_pixels_that_are_ignored_are_no_cell_to_be_near_to() -> None:
    labels = np.array([[1, 0, 0, 0, 0, 9]])
    found = classes_of(labels, TruthRules(truth="binary", ignore=9, partial=2))
    assert found.tolist() == [[1, 0, 0, IGNORED, IGNORED, IGNORED]]


@pytest.mark.parametrize(
    ("value", "truth", "message"),
    [
        (255, "classes", "class 255: .* 0 to 254"),
        (2**64 - 1, "classes", "class 18446744073709551615: "),
        (-1, "classes", "label -1: .*--ignore -1"),
        (-7, "instances", "label -7: instances must be numbered"),
    ],
)
def test_numbers_that_can_be_no_class_are_refused_by_name(value: int, truth: str, message: str) -> None:
    labels = np.array([[0, 1, value]], np.int64 if value < 2**63 else np.uint64)
    with pytest.raises(UnetcliError, match=message):
        classes_of(labels, TruthRules(truth=truth))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"truth": "auto"}, "--truth auto: expected binary, instances or classes"),
        ({"w0": -1}, "--w0 -1: "),
        ({"w0": float("inf")}, "--w0 inf: "),
        ({"sigma": 0}, "--sigma 0: "),
        ({"sigma": float("nan")}, "--sigma nan: "),
        ({"partial": 0}, "--partial 0: expected at least 1 pixel"),
    ],
    ids=str,
)
def test_rules_that_cannot_be_followed_are_refused_by_option(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UnetcliError, match=message):
        TruthRules(**{"truth": "binary", **option})


def test_rules_survive_being_written_down() -> None:
    rules = TruthRules(truth="instances", w0=3, sigma=2.5, everywhere=True, ignore=-1, partial=7)
    assert TruthRules(**asdict(rules)) == rules


@pytest.mark.parametrize(
    ("labels", "ignore", "empty"),
    [
        ([0, 0], None, True),
        ([0, 1], None, False),
        ([1, 1], None, False),
        ([9, 9], 9, True),
        ([9, 1], 9, False),
        ([0, 9], 9, False),  # background was drawn, and the rest marked as not annotated
        ([0, 0], 9, True),  # perhaps nobody looked at it
        ([0, 0], 0, True),
        ([0, 1], 0, False),
    ],
)
def test_a_section_is_empty_where_nothing_is_drawn(labels: list[int], ignore: int | None, empty: bool) -> None:
    rules = TruthRules(truth="binary", ignore=ignore)
    assert is_empty([np.array([labels])], rules) is empty
    assert is_empty([np.array([[label]]) for label in labels], rules) is empty


def test_real_cells_that_touch_stay_apart_in_the_classes(data: Path) -> None:
    """Each component of the foreground, four- or eight-connected, belongs to one object."""
    labels = tifffile.imread(data / "phc_psc" / "01-labels.tif", key=29)
    foreground = classes_of(labels, TruthRules(truth="instances")) == 1
    for connectivity in (None, np.ones((3, 3))):
        components, count = ndimage.label(foreground, connectivity)
        assert all(len(np.unique(labels[components == n])) == 1 for n in range(1, count + 1))
        assert count >= len(np.unique(labels)) - 1


RULES = TruthRules(truth="instances", sigma=1.5, partial=6)
SHAPE = (3, 61, 83)


def crowd(*shape: int, seed: int = 0) -> NDArray[np.uint16]:
    """Sections of cells of a few pixels across, some of which touch."""
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
    """Make sections of more than 40 pixels count as too large to be treated as a whole."""
    for name, value in (("MAX_WHOLE", 40), ("PIECE", 32), ("PATCH", 8), ("CELL_MARGIN", 10)):
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("tile", [16, 512])
def test_a_window_is_a_part_of_the_whole_section(monkeypatch: pytest.MonkeyPatch, truth: str, tile: int) -> None:
    monkeypatch.setattr(module, "PATCH", tile)
    rules, labels = TruthRules(truth=truth, sigma=1.5), crowd(*SHAPE) % 200
    cache = TargetCache(volume(labels), rules)
    for section, y, x in [(0, 0, 0), (2, 17, 40), (1, 30, 51)]:
        found = cache.window(Box((section, y, x), (section + 1, y + 31, x + 32)))
        for part, expected in zip(found, whole(labels[section], rules), strict=True):
            np.testing.assert_array_equal(part, expected[y : y + 31, x : x + 32])
            assert np.asarray(part).dtype == np.asarray(expected).dtype


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
@settings(max_examples=15)
@pytest.mark.usefixtures("small_pieces")
def test_whatever_the_window_and_what_was_asked_before_a_pixel_is_the_same(
    y: int, x: int, side: int, seed: int
) -> None:
    """This holds even where pieces cut cells that are larger than the margin."""
    labels, random = np.kron(crowd(24, 44), np.ones((3, 3), np.uint16)), np.random.default_rng(seed)
    cache, rules = TargetCache(volume(labels), RULES, budget_bytes=int(random.integers(2**17))), RULES
    expected = TargetCache(volume(labels), rules).window(Box((0, 0), labels.shape))
    for corner in [*random.integers(-30, 130, (3, 2)), (y, x)]:
        start = tuple(int(v) for v in corner)
        found = cache.window(Box(start, (start[0] + side, start[1] + side)))
        index = np.ix_(*(mirror_indices(a, a + side, n) for a, n in zip(start, labels.shape, strict=True)))
        for part, full in zip(found, expected, strict=True):
            np.testing.assert_array_equal(part, full[index])


def test_what_is_kept_stays_below_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATCH", 16)
    labels = crowd(12, 64, 64)
    section = 64 * 64 * (1 + 4 + 4)
    cache = TargetCache(volume(labels), RULES, budget_bytes=3 * section)
    kept = 0
    for number in [*range(12), 3, 0]:
        cache.window(Box((number, 0, 0), (number + 1, 64, 64)))
        kept = cache._maps.nbytes + cache._border_patches.nbytes
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
    cache = TargetCache(Volume(path="labels.zarr", array=array, stored_axes="zyx"), RULES)
    for y in (0, 9, 20):
        cache.window(Box((1, y, 5), (2, y + 30, 40)))
    assert array.reads == 1


def test_threads_may_share_a_cache_of_targets() -> None:
    labels = crowd(5, 61, 83)
    cache = TargetCache(volume(labels), RULES, budget_bytes=50_000)
    troubles: list[int] = []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 5, 12):
            found = cache.window(Box((int(number), 0, 0), (int(number) + 1, 61, 83)))
            same = [np.array_equal(a, b) for a, b in zip(found, whole(labels[number], RULES), strict=True)]
            troubles.extend([] if all(same) else [int(number)])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not troubles


@pytest.mark.usefixtures("small_pieces")
def test_label_counts_are_pixels_by_class_and_every_cell_once() -> None:
    labels, rules = crowd(70, 131), TruthRules(truth="instances", ignore=3)
    cache = TargetCache(volume(labels), rules)
    found, classes = cache.count(Box((0, 0), labels.shape)), classes_of(labels, rules)
    assert found.class_counts.tolist() == [(classes == 0).sum(), (classes == 1).sum()]
    assert found.pixels[IGNORED] == (classes == IGNORED).sum()
    assert found.cells == len(np.unique(labels[classes == 1]))
    parts = [cache.count(part) for part in cache.pieces(Box((0, 0), labels.shape))]
    assert len(parts) > 2
    assert sum(part.cells for part in parts) == found.cells
    assert np.array_equal(sum(part.pixels for part in parts), found.pixels)


def test_class_counts_go_up_to_the_highest_class() -> None:
    cache = TargetCache(volume(np.array([[0, 0, 4], [2, 9, 9]])), TruthRules(truth="classes", ignore=9))
    assert cache.count(Box((0, 0), (2, 3))).class_counts.tolist() == [2, 0, 1, 0, 1]
    assert cache.count(Box((0, 0), (1, 2))).class_counts.tolist() == [2, 0]


def test_labels_of_a_file_are_read_as_they_are(tmp_path: Path) -> None:
    labels = crowd(2, *SHAPE).astype(">u2")
    path = write_zarr(tmp_path / "labels.zarr", labels, (1, 1, 20, 30), dimension_names=["t", "z", "y", "x"])
    found = TargetCache(open_volume(path), RULES).window(Box((1, 2, 0, 0), (2, 3, 61, 83)))
    for part, expected in zip(found, whole(labels[1, 2], RULES), strict=True):
        np.testing.assert_array_equal(part, expected)


def test_a_label_that_is_no_class_is_reported_with_its_position() -> None:
    labels = np.zeros((3, 8, 9), np.uint16)
    labels[2, 4, 4] = 300
    cache = TargetCache(volume(labels), TruthRules(truth="classes"))
    with pytest.raises(UnetcliError, match=r"labels.zarr: z 2:3, y 0:8, x 0:9: class 300: classes"):
        cache.window(Box((2, 0, 0), (3, 3, 3)))


def test_a_window_of_several_sections_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="expected a window of one section"):
        TargetCache(volume(crowd(*SHAPE)), RULES).window(Box((0, 0, 0), (2, 5, 5)))
