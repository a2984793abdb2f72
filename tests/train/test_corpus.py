from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import grey
from numpy.typing import NDArray
from train.scenes import annotated, dataset, volume

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.train import dataset as module
from unetcli.train.dataset import AnnotatedVolume, Part
from unetcli.train.recipes import IGNORED, TruthRules
from unetcli.train.resolve import require_alike, require_pair
from unetcli.volumes.volume import Volume

SHAPE = (3, 13, 22)


def image(size: dict[str, float], unit: str = "nanometer", path: str = "raw.zarr") -> Volume:
    return volume(grey(*SHAPE), path=path, voxel_size=size, units=dict.fromkeys(size, unit) if unit else {})


@pytest.mark.parametrize(
    ("labels", "axes", "said"),
    [
        (
            grey(3, 13, 21),
            "zyx",
            r"raw\.zarr is 3x13x22, but labels\.zarr is 3x13x21: labels must",
        ),
        (grey(13, 22), "yx", "must cover the same voxels"),
        (grey(2, *SHAPE), "czyx", r"labels\.zarr: 2 channels; labels have one"),
        (
            np.zeros(SHAPE, np.float32),
            "zyx",
            r"labels\.zarr: numbers of float32; labels are integers, as uint8 or uint16",
        ),
    ],
    ids=["shape", "axes", "channels", "floats"],
)
def test_labels_that_do_not_fit_are_refused(labels: NDArray[Any], axes: str, said: str) -> None:
    with pytest.raises(UnetcliError, match=said):
        require_pair(volume(grey(*SHAPE), path="raw.zarr"), volume(labels, axes), None)


def test_labels_of_another_voxel_size_are_refused_naming_both() -> None:
    raw = image({"z": 50, "y": 4, "x": 4})
    labels = image({"z": 50, "y": 8, "x": 8}, path="labels.zarr")
    said = r"raw\.zarr has voxels of 50 x 4 x 4 nanometer, but labels\.zarr of 50 x 8 x 8 nanometer: .*resampled"
    with pytest.raises(UnetcliError, match=said):
        require_pair(raw, labels, None)


def test_half_the_voxels_of_twice_the_size_are_told_by_their_size() -> None:
    raw = image({"y": 0.5, "x": 0.5}, "micrometer")
    labels = Volume(
        path="half.zarr",
        array=grey(3, 6, 11),
        stored_axes="zyx",
        voxel_size={"y": 1000, "x": 1000},
        units=dict.fromkeys("yx", "nanometer"),
    )
    said = r"raw\.zarr has voxels of 0\.5 x 0\.5 micrometer, but half\.zarr of 1000 x 1000 nanometer: .*resampled"
    with pytest.raises(UnetcliError, match=said):
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
    ("other", "said"),
    [
        (volume(grey(*SHAPE).astype(np.uint16), path="b"), "a has 1 channels of uint8, but b has 1 of uint16"),
        (volume(grey(2, *SHAPE), "czyx", "b"), "a has 1 channels of uint8, but b has 2 of uint8"),
        (image({"y": 9}, path="b"), "voxels of 4 nanometer, but b of 9 nanometer"),
    ],
    ids=["dtype", "channels", "voxel size"],
)
def test_pairs_that_one_network_cannot_read_alike_are_refused(other: Volume, said: str) -> None:
    with pytest.raises(UnetcliError, match=said):
        require_alike([image({"y": 4}, path="a"), image({"y": 4}), other])


def test_pairs_may_have_other_shapes_and_axes() -> None:
    require_alike([volume(grey(*SHAPE)), volume(grey(5, 6)), volume(grey(2, 3, 4, 5))])


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
    labels[0, 3, 4], labels[1, 12, 21] = 7, 1
    pair = annotated(grey(*SHAPE), labels, truth="binary", ignore=ignore)
    assert [pair.is_empty(plane) for plane in pair.raw.whole().planes()] == empty
    assert not pair.is_empty(Box((1, 0, 0), (2, 2, 2)))  # a window: its section counts


def test_sections_too_large_to_look_through_are_taken_not_to_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_LOOKED_THROUGH", 100)
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
    """Volumes that would each fit are read by chunk where all together would not."""
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 1000)
    values, rules = volume(grey(*SHAPE)), TruthRules(truth="binary")  # 858 bytes
    alone, one_of_four = (AnnotatedVolume.buffered(values, values, rules, None, pairs=n) for n in (1, 4))
    assert isinstance(alone.raw.array, np.ndarray)
    assert not isinstance(one_of_four.raw.array, np.ndarray)
    assert np.array_equal(one_of_four.image(Box((1, 0, 0), (2, 13, 22))), alone.image(Box((1, 0, 0), (2, 13, 22))))


def test_classes_and_raise_of_a_window_belong_together() -> None:
    labels = np.zeros((40, 40), np.uint16)
    labels[5:15, 5:15], labels[5:15, 17:27], labels[30:, 30:] = 1, 2, 9
    pair = annotated(grey(40, 40), labels, truth="instances", ignore=9, w0=10.0)
    classes, raised = pair.targets.window(Box((-6, 0), (44, 50)))
    assert (raised[classes == IGNORED] == 0).all()
    assert (raised[classes == 1] == 0).all()
    assert raised[6 + 10, 15:17].min() > 5
    assert np.array_equal(classes, pair.targets.classes(Box((-6, 0), (44, 50))))
