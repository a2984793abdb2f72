"""Masks with a fringe are recognised, labels and grey values are not; the threshold that is named restores the mask."""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers import grey
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from unetcli.core.label_values import LabelValues
from unetcli.volumes.label_fringe import fringe_text
from unetcli.volumes.label_values import with_numbers
from unetcli.volumes.volume import Volume


def discs(radius: int, count: int, side: int = 160) -> NDArray[np.uint8]:
    """Numbers of discs at random places, (y, x)."""
    random, labels = np.random.default_rng(radius), np.zeros((side, side), np.uint8)
    rows, columns = np.ogrid[:side, :side]
    for number in range(count):
        y, x = random.integers(0, side, 2)
        labels[np.hypot(rows - y, columns - x) < radius] = number % 255 + 1
    return labels


def text(values: NDArray[np.integer]) -> str:
    return fringe_text(Volume(path="m.jpg", array=values, stored_axes="yx"))


def as_jpeg(mask: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize(("radius", "count"), [(3, 150), (20, 8)])
def test_a_mask_as_jpeg_has_a_fringe_that_the_threshold_removes(radius: int, count: int, quality: int) -> None:
    mask = np.uint8(255) * (discs(radius, count) > 0)
    stored = as_jpeg(mask, quality)
    assert "looks like a mask of" in text(stored)
    assert "--label-threshold 128 removes them" in text(stored) or quality == 30
    fitted, _ = with_numbers(Volume(path="m", array=stored, stored_axes="yx"), LabelValues(threshold=128))
    wrong = np.mean(fitted.read(fitted.whole())[0] != (mask > 0))
    assert wrong < {30: 0.05, 75: 0.01, 95: 1e-6}[quality]


def test_resized_and_smoothed_masks_have_a_fringe() -> None:
    mask = np.uint8(255) * (discs(10, 20) > 0)
    assert text(np.asarray(Image.fromarray(mask).resize((120, 120), Image.Resampling.BILINEAR)))
    assert text(ndimage.gaussian_filter(mask, 0.7))


@pytest.mark.parametrize(
    "values",
    [
        discs(10, 20),
        discs(3, 250),
        np.uint8(255) * (discs(10, 20) > 0),
        np.array([0, 128, 255], np.uint8)[discs(10, 20) % 3],
        np.uint8(20) * discs(10, 12),
        discs(10, 20).astype(np.uint16) * 30,
        grey(160, 160),
        discs(3, 9) > 0,
    ],
    ids=["objects", "many", "mask", "grey classes", "grey objects", "16 bits", "image", "booleans"],
)
def test_labels_and_images_have_none(values: NDArray[np.integer]) -> None:
    assert text(values) == ""
