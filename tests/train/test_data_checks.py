from __future__ import annotations

import numpy as np
import pytest
from helpers import grey
from train.scenes import annotated, dataset, discs, volume

from unetcli.core.errors import collected_warnings
from unetcli.train.data_checks import warn_about_held_out, warn_about_images, warn_about_pairs
from unetcli.train.dataset import dataset_statistics


def pair_warnings(raw: np.ndarray, labels: np.ndarray) -> list[str]:
    with collected_warnings() as found:
        warn_about_pairs([(volume(raw, path="raw.tif"), volume(labels, path="labels.tif"))])
    return found


def test_images_and_labels_in_the_wrong_order_are_named() -> None:
    raw, labels = discs()
    assert pair_warnings(raw, labels) == []
    assert pair_warnings(labels, raw) == [
        "raw.tif looks like labels, and labels.tif like an image; the order is RAW LABELS"
    ]


def test_one_file_for_both_is_named() -> None:
    _, labels = discs()
    assert pair_warnings(labels, labels)[0].startswith("raw.tif and labels.tif have the same values")


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_is_named_before_training(value: int) -> None:
    raw, labels = discs()
    both = np.stack([raw, np.full_like(raw, value)])
    scene = dataset(annotated(both, labels, "czyx"))
    with collected_warnings() as found:
        warn_about_images(scene, dataset_statistics(scene))
    assert found == [
        f"raw.zarr, channel 1: a constant image, all values of the training sections are {value}; is it the right file?"
    ]


def test_an_image_with_a_single_bright_spot_is_not_constant() -> None:
    raw = np.zeros((2, 64, 64), np.uint8)
    raw[1, 3, 3] = 1
    scene = dataset(annotated(raw, (grey(2, 64, 64) > 128).astype(np.uint8)))
    with collected_warnings() as found:
        warn_about_images(scene, dataset_statistics(scene))
    assert found == []


@pytest.mark.parametrize(
    ("last", "rules", "keep_empty", "hint"),
    [
        (0, {}, False, "holds out others, --keep-empty counts them as background"),
        (9, {"ignore": 9}, False, "holds out others"),
        (0, {"partial": 3}, True, "holds out others"),
        (0, {}, True, None),
        (1, {}, False, None),
    ],
)
def test_held_out_sections_without_a_label_are_named_once_with_what_helps(
    last: int, rules: dict[str, int], keep_empty: bool, hint: str | None
) -> None:
    labels = np.stack([grey(13, 22) % 2, np.full((13, 22), last)]).astype(np.uint8)
    scene = dataset(annotated(grey(2, 13, 22), labels, **rules), held_out=((1, 2),), keep_empty=keep_empty)
    with collected_warnings() as found:
        warn_about_held_out(scene, ((1, 2),))
    begin = "labels.zarr: no label in the held-out sections 1:2, so that no validation selects or calibrates the model"
    assert found == ([] if hint is None else [f"{begin}; --validation A:B {hint}"])


def test_without_held_out_sections_there_is_nothing_to_warn_of() -> None:
    with collected_warnings() as found:
        warn_about_held_out(dataset(annotated(grey(2, 13, 22), grey(2, 13, 22) % 2)), ((0, 0),))
    assert found == []
