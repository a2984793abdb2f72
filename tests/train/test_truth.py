"""Meaning of training labels: what is taken as it is, what is mapped by value, and what is asked."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from helpers import grey
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from train.scenes import volume

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.train.request import WeightsRequest
from unetcli.train.settings import TruthRules
from unetcli.train.truth import label_values, resolve_class_values, resolve_truth

SHAPE = (3, 13, 22)


def truth_of(
    labels: NDArray[Any], truth: str = "auto", ignore: int | None = None, background: int | None = None
) -> str:
    return resolve_truth(truth, [(volume(labels), Box.of_shape(labels.shape))], ignore, background)


@pytest.mark.parametrize("values", [[0], [0, 255], [0, 1], [7]], ids=str)
def test_at_most_two_values_are_foreground_and_background(values: list[int]) -> None:
    assert truth_of(np.resize(np.array(values, np.uint16), SHAPE)) == "binary"


def test_the_ignored_value_is_not_one_of_the_two() -> None:
    labels = np.resize(np.array([0, 1, 255], np.uint8), SHAPE)
    assert truth_of(labels, ignore=255) == "binary"
    with pytest.raises(UnetcliError, match="3 different values"):
        truth_of(labels)


def test_regions_of_one_volume_are_counted_together_those_of_several_apart() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0], labels[2, 0] = 1, 2
    one, regions = volume(labels), [Box((0, 0, 0), (1, 13, 22)), Box((2, 0, 0), SHAPE)]
    with pytest.raises(UnetcliError, match=r"3 different values \(0, 1, 2\)"):
        resolve_truth("auto", [(one, box) for box in regions])
    others = [(volume(labels[[n]]), Box((0, 0, 0), (1, 13, 22))) for n in (0, 2)]
    assert resolve_truth("auto", others) == "binary"


@pytest.mark.parametrize(
    ("count", "message"),
    [(3, r"3 different values \(0, 1, 2\)"), (5, r"5 different values \(0, 1, 2, 3, .. 4\)")],
)
def test_more_values_are_not_guessed_at(count: int, message: str) -> None:
    labels = np.resize(np.arange(count, dtype=np.uint16), SHAPE)
    with pytest.raises(
        UnetcliError, match=rf"labels\.zarr: {message}; .*--truth instances .*--truth classes"
    ) as caught:
        truth_of(labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("truth", ["binary", "instances", "classes"])
def test_what_the_user_says_is_taken(truth: str) -> None:
    assert truth_of(grey(*SHAPE), truth) == truth


def test_an_unknown_truth_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(UnetcliError, match="--truth cells: expected auto, binary, instances or classes"):
        truth_of(grey(*SHAPE), "cells")


@pytest.mark.parametrize("shape", [(13, 22), (3, 13, 22), (2, 3, 13, 22)], ids=str)
def test_the_values_of_a_region_are_those_inside_it(shape: tuple[int, ...]) -> None:
    labels = np.zeros(shape, np.uint16)
    labels[..., 5, 6], labels[..., 0, 0] = 9, 400
    box = Box((0,) * (len(shape) - 2) + (1, 1), shape)
    assert label_values(volume(labels), box) == [0, 9]


def test_two_values_without_background_are_refused_with_what_would_work() -> None:
    labels = np.resize(np.array([1, 2], np.uint8), SHAPE)
    with pytest.raises(
        UnetcliError, match=r"the values 1 and 2 without 0, .*; --background 1 or --background 2 says which"
    ):
        truth_of(labels)
    with pytest.raises(UnetcliError, match=r"the values 1 and 2 without 7, .*; --background 1 or"):
        truth_of(labels, background=7)
    assert truth_of(labels, background=2) == "binary"


def classes_of(
    *parts: list[int],
    given: tuple[int, ...] | None = None,
    ignore: int | None = None,
    background: int | None = None,
) -> Any:
    """Values of the classes of several volumes."""
    volumes = [volume(np.resize(np.array(values, np.int64), SHAPE)) for values in parts]
    return resolve_class_values(given, [(one, one.whole()) for one in volumes], ignore, background)


RED, GREEN = 2**24 + 0xFF0000, 2**24 + 0x00FF00


@pytest.mark.parametrize(
    ("values", "ignore", "expected"),
    [
        ([[0, 1, 2]], None, None),
        ([[0, 1, 3]], None, (0, 1, 3)),
        ([[1, 2]], None, (1, 2)),
        ([[0, 1], [0, 5]], None, (0, 1, 5)),
        ([[0, 128, 255]], 128, (0, 255)),
        ([[0, 1, 255]], 255, None),
        ([[0, 1, 2]], 0, (1, 2)),
        ([[0, RED, GREEN, 255]], None, (0, 255, GREEN, RED)),
        ([[0]], None, None),
    ],
    ids=str,
)
def test_values_of_all_volumes_together_are_classes_in_order(
    values: list[list[int]], ignore: int | None, expected: tuple[int, ...] | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert classes_of(*values, ignore=ignore) == expected
    assert (expected is None) == ("is class 1" not in caplog.text)


def test_the_table_of_colours_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        classes_of([0, RED, GREEN])
    assert "#000000 is class 0 (background), #00ff00 is class 1, #ff0000 is class 2; --classes" in caplog.text


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ([0, 128, 255], "--classes 0,128,255 makes each a class, --ignore 128 leaves 128 out"),
        ([0, 1, 255], "--classes 0,1,255 makes each a class, --ignore 255 leaves 255 out"),
        ([-1, 0, 1], "--ignore -1 leaves -1 out, --classes -1,0,1 makes it the background"),
        ([GREEN, RED], "--background '#00ff00' or another one says"),
        ([*range(0, 80, 2)], "--classes V,V,.."),
    ],
    ids=str,
)
def test_what_is_not_clear_is_asked_with_options_that_help(values: list[int], hint: str) -> None:
    with pytest.raises(UnetcliError, match=hint):
        classes_of(values)
    if len(values) <= 4:
        assert classes_of(values, given=tuple(values)) == tuple(values)


def test_values_that_are_not_given_are_refused() -> None:
    with pytest.raises(UnetcliError, match="label 7 is none of --classes 0,1,3; add it, or --ignore 7 leaves it out"):
        classes_of([0, 1, 3], [0, 7], given=(0, 1, 3))
    assert classes_of([0, 1, 3], [0, 7], given=(3, 1, 0), ignore=7) == (3, 1, 0)


def test_the_background_comes_first() -> None:
    assert classes_of([0, 1, 2], background=2) == (2, 0, 1)
    assert classes_of([0, 1, 2], background=0) is None
    assert classes_of([GREEN, RED], background=RED) == (RED, GREEN)
    assert classes_of([-1, 0], background=-1) == (-1, 0)
    with pytest.raises(UnetcliError, match="--background 7: expected one of 0, 1, 2"):
        classes_of([0, 1, 2], background=7)


def test_the_fringe_of_a_mask_is_named_with_the_option_that_removes_it() -> None:
    mask = np.zeros((1, 40, 40))
    mask[:, 10:30, 10:30] = 255
    labels = gaussian_filter(mask, (0, 1, 1)).astype(np.uint8)
    with pytest.raises(
        UnetcliError, match=r"labels\.zarr: looks like a mask of 0 and 255 .*; --label-threshold 128 removes"
    ):
        truth_of(labels)
    with pytest.raises(UnetcliError, match=r"--label-threshold 128 removes them, with --truth binary"):
        resolve_class_values(None, [(volume(labels), Box.of_shape(labels.shape))], None)


def test_a_threshold_of_labels_implies_binary_truth() -> None:
    assert WeightsRequest(labels="l.tif", label_threshold=128).truth == "binary"
    with pytest.raises(UnetcliError, match="--label-threshold: not with --truth instances; expected --truth binary"):
        TruthRules(truth="instances", label_threshold=128)
    with pytest.raises(UnetcliError, match="--classes: not with --truth instances"):
        WeightsRequest(labels="l.tif", truth="instances", classes=(0, 3))


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        (
            [-1, 0, 1],
            "values from -1 to 1; --ignore -1 leaves -1 out, .*--background -1 makes it background",
        ),
        ([0, 1, 255], "; or --ignore 255, if 255 marks what is not annotated"),
        ([0, 128, 255], "; or --ignore 128, if 128 marks what is not annotated"),
    ],
    ids=str,
)
def test_values_that_may_not_be_annotated_are_named_with_an_option_that_helps(values: list[int], hint: str) -> None:
    labels = np.resize(np.array(values, np.int16), SHAPE)
    with pytest.raises(UnetcliError, match=hint):
        truth_of(labels)
    assert truth_of(labels, ignore=int(hint.split("--ignore ")[1].split()[0].strip(","))) == "binary"
