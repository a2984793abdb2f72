from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import grey
from numpy.typing import NDArray

from unetcli.errors import UnetcliError
from unetcli.geometry import Box
from unetcli.training.sampling import Annotated
from unetcli.training.survey import label_values, require_usable, resolve_truth, survey
from unetcli.volumes.volume import Volume

SHAPE = (3, 13, 22)


def volume(values: NDArray[Any], axes: str | None = None) -> Volume:
    return Volume(path="labels.zarr", array=values, stored_axes=axes or "tzyx"[-values.ndim :])


def annotated(raw: NDArray[Any], labels: NDArray[Any], truth: str) -> Annotated:
    return Annotated.lay(volume(raw), volume(labels), truth, None)


@pytest.mark.parametrize("region", [Box((0, 0, 0), SHAPE), Box((1, 0, 0), (2, 13, 22)), Box((0, 3, 5), (3, 9, 22))])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_statistics_are_of_the_training_sections_alone(region: Box, dtype: str) -> None:
    raw, labels = grey(*SHAPE).astype(dtype), grey(*SHAPE, seed=1) % 3
    found = survey(annotated(raw, labels, "classes"), region)
    inside = raw[region.slices].astype(float)
    assert (found.mean, found.std) == pytest.approx((inside.mean(), inside.std()))
    assert found.class_counts.tolist() == np.bincount(labels[region.slices].ravel()).tolist()


def test_more_classes_in_later_sections_are_counted() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0, :3], labels[2, 0, :4], labels[1, 1, 1] = 1, 3, 2
    found = survey(annotated(grey(*SHAPE), labels, "classes"), Box.of_shape(SHAPE))
    assert found.class_counts.tolist() == [labels.size - 8, 3, 1, 4]


def test_images_of_one_value_have_deviation_1() -> None:
    raw = np.full(SHAPE, 7, np.uint8)
    found = survey(annotated(raw, grey(*SHAPE) % 2, "binary"), Box.of_shape(SHAPE))
    assert (found.mean, found.std) == (7, 1)


def test_the_border_between_objects_counts_as_background() -> None:
    labels = np.ones((13, 22), np.uint8)
    labels[:, 11:] = 2
    found = survey(annotated(grey(13, 22), labels, "instances"), Box((0, 0), (13, 22)))
    assert found.class_counts.tolist() == [2 * 13, 20 * 13]


@pytest.mark.parametrize(
    ("values", "truth", "missing"),
    [([0, 0], "binary", 1), ([1, 1], "binary", 0), ([0, 2], "classes", 1)],
    ids=["no foreground", "no background", "a class left out"],
)
def test_a_class_without_a_pixel_is_refused(values: list[int], truth: str, missing: int) -> None:
    labels = np.resize(np.array(values, np.uint8), SHAPE)
    with pytest.raises(UnetcliError, match=rf"labels\.zarr: no pixel of class {missing} in the training sections"):
        survey(annotated(grey(*SHAPE), labels, truth), Box.of_shape(SHAPE))


def test_a_negative_class_is_refused() -> None:
    labels = np.resize(np.array([0, 1, -1], np.int16), SHAPE)
    with pytest.raises(UnetcliError, match=r"labels\.zarr: label -1; classes are numbered 0, 1, 2"):
        survey(annotated(grey(*SHAPE), labels, "classes"), Box.of_shape(SHAPE))


@pytest.mark.parametrize("values", [[0], [0, 255], [0, 1], [3, 7]], ids=str)
def test_at_most_two_values_are_foreground_and_background(values: list[int]) -> None:
    labels = np.resize(np.array(values, np.uint16), SHAPE)
    assert resolve_truth("auto", volume(labels), Box.of_shape(SHAPE)) == "binary"


@pytest.mark.parametrize(
    ("count", "said"),
    [(3, r"3 different values \(0, 1, 2\)"), (5, r"5 different values \(0, 1, 2, 3, .. 4\)")],
)
def test_more_values_are_not_guessed_at(count: int, said: str) -> None:
    labels = np.resize(np.arange(count, dtype=np.uint16), SHAPE)
    with pytest.raises(UnetcliError, match=rf"labels\.zarr: {said}; .*--truth instances .*--truth classes") as caught:
        resolve_truth("auto", volume(labels), Box.of_shape(SHAPE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("truth", ["binary", "instances", "classes"])
def test_what_the_user_says_is_taken(truth: str) -> None:
    assert resolve_truth(truth, volume(grey(*SHAPE)), Box.of_shape(SHAPE)) == truth


def test_an_unknown_truth_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(UnetcliError, match="--truth cells: expected auto, binary, instances or classes"):
        resolve_truth("cells", volume(grey(*SHAPE)), Box.of_shape(SHAPE))


@pytest.mark.parametrize("shape", [(13, 22), (3, 13, 22), (2, 3, 13, 22)], ids=str)
def test_the_values_of_a_region_are_those_inside_it(shape: tuple[int, ...]) -> None:
    labels = np.zeros(shape, np.uint16)
    labels[..., 5, 6], labels[..., 0, 0] = 9, 400
    region = Box((0,) * (len(shape) - 2) + (1, 1), shape)
    assert label_values(volume(labels), region) == [0, 9]


def test_a_class_that_only_the_held_out_sections_have_is_refused() -> None:
    labels = np.zeros((4, 8, 8), np.uint8)
    labels[:, 4:] = 1
    labels[3, 6:] = 2
    data = annotated(labels, labels, "classes")
    found = survey(data, Box((0, 0, 0), (3, 8, 8)))
    require_usable(data, Box((2, 0, 0), (3, 8, 8)), found)
    with pytest.raises(UnetcliError, match="class 2 in the held-out sections only"):
        require_usable(data, Box((3, 0, 0), (4, 8, 8)), found)
