from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import grey
from numpy.typing import NDArray
from train.scenes import annotated, dataset, region, volume

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.train import dataset as module
from unetcli.train.data_checks import require_compatible, require_pair
from unetcli.train.dataset import AnnotatedVolume, Part, dataset_statistics, require_usable
from unetcli.train.settings import IGNORED, TruthRules
from unetcli.volumes.volume import Volume

SHAPE = (3, 13, 22)


def image(size: dict[str, float], unit: str = "nanometer", path: str = "raw.zarr") -> Volume:
    return volume(grey(*SHAPE), path=path, voxel_size=size, units=dict.fromkeys(size, unit) if unit else {})


@pytest.mark.parametrize(
    ("labels", "axes", "message"),
    [
        (
            grey(3, 13, 21),
            "zyx",
            r"raw\.zarr is 3x13x22, but labels\.zarr is 3x13x21: labels must",
        ),
        (grey(13, 22), "yx", "must cover the same voxels"),
    ],
    ids=["shape", "axes"],
)
def test_labels_that_do_not_fit_are_refused(labels: NDArray[Any], axes: str, message: str) -> None:
    with pytest.raises(UnetcliError, match=message):
        require_pair(volume(grey(*SHAPE), path="raw.zarr"), volume(labels, axes), None)


def test_labels_of_another_voxel_size_are_refused_naming_both() -> None:
    raw = image({"z": 50, "y": 4, "x": 4})
    labels = image({"z": 50, "y": 8, "x": 8}, path="labels.zarr")
    message = r"raw\.zarr has voxels of 50 x 4 x 4 nanometer, but labels\.zarr of 50 x 8 x 8 nanometer: .*resampled"
    with pytest.raises(UnetcliError, match=message):
        require_pair(raw, labels, None)


def test_half_the_voxels_of_twice_the_size_are_recognised_by_their_size() -> None:
    raw = image({"y": 0.5, "x": 0.5}, "micrometer")
    labels = Volume(
        path="half.zarr",
        array=grey(3, 6, 11),
        stored_axes="zyx",
        voxel_size={"y": 1000, "x": 1000},
        units=dict.fromkeys("yx", "nanometer"),
    )
    message = r"raw\.zarr has voxels of 0\.5 x 0\.5 micrometer, but half\.zarr of 1000 x 1000 nanometer: .*resampled"
    with pytest.raises(UnetcliError, match=message):
        require_pair(raw, labels, None)


@pytest.mark.parametrize(
    "labels",
    [
        image({}),
        image({"z": 50}),
        image({"z": 50, "y": 4.001, "x": 3.999}),
        image({"z": 50, "y": 8, "x": 8, "t": 3}, unit=""),
        image({"z": 0.05, "y": 0.004, "x": 0.004}, unit="micrometer"),
    ],
    ids=["none stated", "some stated", "rounded", "without a unit", "another unit"],
)
def test_voxel_sizes_that_agree_or_cannot_be_compared_are_taken(labels: Volume) -> None:
    require_pair(image({"z": 50, "y": 4, "x": 4}), labels, None)


@pytest.mark.parametrize("channel", [-1, 2])
def test_a_channel_that_is_not_there_is_refused_naming_those_that_are(channel: int) -> None:
    raw = volume(grey(2, 13, 22), "cyx", "raw.zarr")
    with pytest.raises(UnetcliError, match=rf"--channel {channel}: raw\.zarr has channels 0 to 1"):
        require_pair(raw, volume(grey(13, 22)), channel)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (volume(grey(*SHAPE).astype(np.uint16), path="b"), "a has 1 channels of uint8, but b has 1 of uint16"),
        (volume(grey(2, *SHAPE), "czyx", "b"), "a has 1 channels of uint8, but b has 2 of uint8"),
        (image({"y": 9}, path="b"), "voxels of 4 nanometer, but b of 9 nanometer"),
    ],
    ids=["dtype", "channels", "voxel size"],
)
def test_pairs_of_different_type_channels_or_voxel_size_are_refused(other: Volume, message: str) -> None:
    with pytest.raises(UnetcliError, match=message):
        require_compatible([image({"y": 4}, path="a"), image({"y": 4}), other])


def test_pairs_may_have_other_shapes_and_axes() -> None:
    require_compatible([volume(grey(*SHAPE)), volume(grey(5, 6)), volume(grey(2, 3, 4, 5))])


def test_parts_are_the_sections_named_of_pairs_that_have_any() -> None:
    pairs = [annotated(grey(*shape), grey(*shape) % 2) for shape in (SHAPE, (13, 22), (4, 5, 6))]
    data = dataset(*pairs, train=((0, 2), (0, 1), (3, 3)), held_out=((2, 3), (1, 1), (0, 4)))
    assert data.train == (Part(0, Box((0, 0, 0), (2, 13, 22))), Part(1, Box((0, 0), (13, 22))))
    assert data.held_out == (Part(0, Box((2, 0, 0), (3, 13, 22))), Part(2, Box((0, 0, 0), (4, 5, 6))))


def test_runs_are_the_sections_with_truth_and_nothing_between_them() -> None:
    labels = np.zeros((2, 7, 5, 6), np.uint8)
    for t, z in ((0, 1), (0, 2), (0, 6), (1, 0), (1, 4)):
        labels[t, z, 2, 3] = 1
    data = dataset(annotated(grey(*labels.shape), labels))
    runs = [run.region for run in data.runs(data.train[0])]
    expected = [(0, 1, 3), (0, 6, 7), (1, 0, 1), (1, 4, 5)]
    assert runs == [Box((t, a, 0, 0), (t + 1, b, 5, 6)) for t, a, b in expected]
    everything = dataset(annotated(grey(*labels.shape), labels), keep_empty=True)
    assert list(everything.runs(everything.train[0])) == list(everything.train)


@pytest.mark.parametrize(("ignore", "empty"), [(None, [False, False, True]), (7, [True, False, True])])
def test_a_section_is_empty_where_all_of_it_is_0_or_ignored(ignore: int | None, empty: list[bool]) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[0], labels[1, 12, 21] = 7, 1
    pair = annotated(grey(*SHAPE), labels, truth="binary", ignore=ignore)
    assert [pair.is_empty(plane) for plane in pair.raw.whole().planes()] == empty
    assert not pair.is_empty(Box((1, 0, 0), (2, 2, 2)))  # a window: its whole section is searched


def test_sections_too_large_to_search_count_as_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SEARCHED", 100)
    pair = annotated(grey(*SHAPE), np.zeros(SHAPE, np.uint8))
    assert not pair.is_empty(Box((0, 0, 0), (1, 13, 22)))


def test_objects_are_those_labelled_else_the_connected_parts() -> None:
    labels = np.zeros((6, 9), np.uint8)
    labels[1:3, 1:4], labels[1:3, 4:6], labels[5, 8] = 3, 5, 9
    box = Box((0, 0), (6, 9))
    named = annotated(labels, labels, truth="instances", ignore=9).instances(box)
    assert set(np.unique(named)) == {0, 3, 5}
    found = annotated(labels, labels, truth="binary", ignore=9).instances(box)
    assert (len(np.unique(found)), found[5, 8]) == (2, 0)


def test_memory_is_shared_by_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes are read by chunk if all together do not fit into memory, even if each one would."""
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 1000)
    values, rules = volume(grey(*SHAPE)), TruthRules(truth="binary")  # 858 bytes
    alone, one_of_four = (AnnotatedVolume.buffered(values, values, rules, None, pairs=n) for n in (1, 4))
    assert isinstance(alone.raw.array, np.ndarray)
    assert not isinstance(one_of_four.raw.array, np.ndarray)
    assert np.array_equal(one_of_four.image(Box((1, 0, 0), (2, 13, 22))), alone.image(Box((1, 0, 0), (2, 13, 22))))


def test_classes_and_border_weights_of_a_window_belong_together() -> None:
    labels = np.zeros((40, 40), np.uint16)
    labels[5:15, 5:15], labels[5:15, 17:27], labels[30:, 30:] = 1, 2, 9
    pair = annotated(grey(40, 40), labels, truth="instances", ignore=9, w0=10.0)
    classes, border_weights = pair.targets.window(Box((-6, 0), (44, 50)))
    assert (border_weights[classes == IGNORED] == 0).all()
    assert (border_weights[classes == 1] == 0).all()
    assert border_weights[6 + 10, 15:17].min() > 5
    assert np.array_equal(classes, pair.targets.classes(Box((-6, 0), (44, 50))))


@pytest.mark.parametrize("box", [Box((0, 0, 0), SHAPE), Box((1, 0, 0), (2, 13, 22)), Box((0, 3, 5), (3, 9, 22))])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_statistics_are_of_the_training_sections_alone(box: Box, dtype: str) -> None:
    raw, labels = grey(*SHAPE).astype(dtype), grey(*SHAPE, seed=1) % 3
    found = dataset_statistics(region(annotated(raw, labels), box))
    inside = raw[box.slices].astype(float)
    assert (found.mean, found.std) == pytest.approx((inside.mean(), inside.std()))
    assert found.class_counts.tolist() == np.bincount(labels[box.slices].ravel()).tolist()
    assert (found.fraction, found.left_out) == (1.0, 0)


def test_several_pairs_are_counted_as_one() -> None:
    one, two = grey(*SHAPE), grey(9, 31, seed=5)
    pairs = [annotated(values, values % 3) for values in (one, two)]
    found = dataset_statistics(dataset(*pairs))
    together = np.concatenate([one.ravel(), two.ravel()])
    assert (found.mean, found.std) == pytest.approx((together.mean(), together.std()))
    assert found.class_counts.tolist() == np.bincount(together % 3).tolist()
    assert found.sections == 4


def test_one_channel_alone_is_measured_where_one_is_chosen() -> None:
    raw = np.stack([grey(13, 22), grey(13, 22, seed=3) // 2])
    found = dataset_statistics(dataset(annotated(raw, grey(13, 22) % 2, axes="cyx", channel=1)))
    assert found.mean == pytest.approx(raw[1].mean())
    both = dataset_statistics(dataset(annotated(raw, grey(13, 22) % 2, axes="cyx")))
    assert both.mean == pytest.approx((raw[0].mean(), raw[1].mean()))
    assert both.std == pytest.approx((raw[0].std(), raw[1].std()))


def test_sections_in_which_nothing_is_drawn_are_left_out_unless_asked_for() -> None:
    raw, labels = grey(*SHAPE), grey(*SHAPE, seed=1) % 2
    labels[1] = 0
    data = annotated(raw, labels)
    without, with_all = dataset_statistics(dataset(data)), dataset_statistics(dataset(data, keep_empty=True))
    assert (without.sections, without.left_out) == (2, 1)
    assert without.mean == pytest.approx(raw[[0, 2]].mean())
    assert (with_all.sections, with_all.left_out) == (3, 0)
    assert with_all.class_counts[0] == without.class_counts[0] + 13 * 22


def test_ignored_values_are_neither_counted_nor_drawn() -> None:
    raw, labels = grey(*SHAPE), grey(*SHAPE, seed=1) % 2
    labels[0, :4], labels[2] = 7, 7
    found = dataset_statistics(dataset(annotated(raw, labels, ignore=7)))
    assert found.class_counts.tolist() == np.bincount(labels[labels != 7]).tolist()
    assert (found.sections, found.left_out) == (2, 1)


def test_nothing_drawn_at_all_is_refused_naming_the_way_out() -> None:
    data = annotated(grey(*SHAPE), np.zeros(SHAPE, np.uint8))
    with pytest.raises(UnetcliError, match=r"labels\.zarr: no label in any training section; choose other --sections"):
        dataset_statistics(dataset(data))


def test_more_classes_in_later_sections_are_counted() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0, :3], labels[2, 0, :4], labels[1, 1, 1] = 1, 3, 2
    assert dataset_statistics(dataset(annotated(grey(*SHAPE), labels))).class_counts.tolist() == [
        labels.size - 8,
        3,
        1,
        4,
    ]


def test_images_of_one_value_have_deviation_1() -> None:
    raw = np.full(SHAPE, 7, np.uint8)
    found = dataset_statistics(dataset(annotated(raw, grey(*SHAPE) % 2)))
    assert (found.mean, found.std) == (7, 1)


def test_the_border_between_objects_counts_as_background() -> None:
    labels = np.ones((13, 22), np.uint8)
    labels[:, 11:] = 2
    found = dataset_statistics(dataset(annotated(grey(13, 22), labels, truth="instances")))
    assert found.class_counts.tolist() == [2 * 13, 20 * 13]


@pytest.mark.parametrize("balance", [True, False])
def test_balanced_classes_weigh_the_same_in_all_else_pixels_do(balance: bool) -> None:
    found = dataset_statistics(dataset(annotated(grey(*SHAPE), (grey(*SHAPE, seed=1) > 200).astype(np.uint8))))
    weights = found.class_weights(balance=balance)
    if balance:
        shares = weights * found.class_counts
        assert shares[0] == pytest.approx(shares[1])
        assert shares.sum() == pytest.approx(found.class_counts.sum())
    else:
        assert weights.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("values", "truth", "missing"),
    [([0, 0], "binary", 1), ([1, 1], "binary", 0), ([0, 2], "classes", 1)],
    ids=["no foreground", "no background", "a class left out"],
)
def test_a_class_without_a_pixel_is_refused(values: list[int], truth: str, missing: int) -> None:
    labels = np.resize(np.array(values, np.uint8), SHAPE)
    with pytest.raises(UnetcliError, match=rf"labels\.zarr: no pixel of class {missing} in the training sections"):
        dataset_statistics(dataset(annotated(grey(*SHAPE), labels, truth=truth), keep_empty=True))


def test_a_negative_class_is_refused() -> None:
    labels = np.resize(np.array([0, 1, -1], np.int16), SHAPE)
    with pytest.raises(UnetcliError, match=r"labels\.zarr: .*label -1: classes must be numbered"):
        dataset_statistics(dataset(annotated(grey(*SHAPE), labels)))


def test_statistics_of_a_large_dataset_are_estimated_from_pieces_of_all_its_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quarter of the pixels of a linear ramp, in pieces of 8: statistics agree within a few per cent."""
    monkeypatch.setattr(module, "STATISTICS_PIXELS", 4 * 61 * 83 // 4)
    monkeypatch.setattr(module, "PIECE", 8)
    raw = np.add.outer(np.arange(4), np.add.outer(np.arange(61), np.arange(83))).astype(np.uint16)
    found = dataset_statistics(dataset(annotated(raw, grey(*raw.shape) % 2)))
    assert found.fraction == pytest.approx(0.25)
    assert found.class_counts.sum() == pytest.approx(raw.size / 4, rel=0.2)
    assert found.mean == pytest.approx(raw.mean(), rel=0.05)
    assert found.std == pytest.approx(raw.std(), rel=0.1)


def test_a_class_that_only_the_held_out_sections_have_is_refused() -> None:
    labels = np.zeros((4, 8, 8), np.uint8)
    labels[:, 4:] = 1
    labels[3, 6:] = 2
    pair = annotated(labels, labels)
    fine, bad = (dataset(pair, train=((0, 2),), held_out=((n, n + 1),)) for n in (2, 3))
    found = dataset_statistics(fine)
    require_usable(fine, found)
    with pytest.raises(UnetcliError, match="class 2 occurs only in held-out sections"):
        require_usable(bad, found)


def test_held_out_sections_that_cannot_be_read_are_refused_before_training() -> None:
    raw = np.zeros((3, 8, 8), np.float64)
    raw[2, 1, 1] = 1e300
    labels = np.tile(np.arange(2, dtype=np.uint8), (3, 8, 4))
    data = dataset(annotated(raw, labels), train=((0, 2),), held_out=((2, 3),))
    with pytest.raises(UnetcliError, match=r"a number beyond 1e\+30 at z 2:3"):
        require_usable(data, dataset_statistics(data))


@pytest.mark.parametrize("nonfinite", [None, 5.0])
def test_statistics_are_those_of_finite_grey_values(nonfinite: float | None) -> None:
    raw, labels = np.arange(3 * 8 * 8, dtype=np.float32).reshape(3, 8, 8), np.tile([0, 1], (3, 8, 4)).astype(np.uint8)
    raw[1, :, 1], raw[2, 0, 0] = np.nan, np.inf
    found = dataset_statistics(dataset(replace(annotated(raw, labels), nonfinite=nonfinite)))
    finite = raw[np.isfinite(raw)]
    assert (found.mean, found.std) == pytest.approx((finite.mean(), finite.std()))
    assert found.extremes == ((0, 191),)
    assert found.nonfinite == 9 / raw.size
    assert found.class_counts.tolist() == ([96, 96] if nonfinite is not None else [95, 88])
    assert np.isfinite(found.grey[0].percentiles).all()


def test_scribbles_leave_the_background_class_without_pixels() -> None:
    labels = np.resize(np.array([0, 1, 2, 2], np.uint8), SHAPE)
    found = dataset_statistics(dataset(annotated(grey(*SHAPE), labels, ignore=0)))
    assert found.class_counts.tolist() == [0, *np.bincount(labels.ravel())[1:]]
    assert found.class_weights(balance=True)[0] == 0
    with pytest.raises(UnetcliError, match="no pixel of class 0"):
        dataset_statistics(dataset(annotated(grey(*SHAPE), np.maximum(labels, 1))))
