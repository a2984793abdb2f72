from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import grey, write_zarr
from numpy.typing import NDArray

from unetcli.errors import UnetcliError
from unetcli.geometry import Box
from unetcli.training.sampling import Annotated, Sample, sample
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

TILE, CONTEXT = 18, 4  # 10 come out
SHAPE = (3, 13, 22)


def laid(raw: NDArray[Any], labels: NDArray[Any], truth: str = "classes", axes: str | None = None) -> Annotated:
    axes = axes or "zyx"[-raw.ndim :]
    volumes = (
        Volume(path="raw.zarr", array=raw, stored_axes=axes),
        Volume(path="labels.zarr", array=labels, stored_axes=axes.replace("c", "")),
    )
    return Annotated.lay(*volumes, truth, None)


def taken(data: Annotated, number: int, seed: int = 0, region: Box | None = None) -> Sample:
    return sample(data, region or data.raw.whole(), TILE, CONTEXT, seed, number)


SAME = laid(grey(*SHAPE), grey(*SHAPE))
"""The image is its own label."""


@pytest.mark.parametrize("number", range(40))
def test_image_and_target_stay_aligned_through_turns_and_mirrors(number: int) -> None:
    found = taken(SAME, number)
    assert (found.image.shape, found.target.shape) == ((1, TILE, TILE), (10, 10))
    assert np.array_equal(found.image[0, CONTEXT:-CONTEXT, CONTEXT:-CONTEXT], found.target)


def test_a_sample_depends_on_its_seed_and_number_and_nothing_else() -> None:
    straight = [taken(SAME, number) for number in range(6)]
    np.random.seed(99)
    backwards = [taken(SAME, number) for number in reversed(range(6))]
    for one, again in zip(straight, reversed(backwards), strict=True):
        assert np.array_equal(one.image, again.image)
        assert np.array_equal(one.target, again.target)


def test_other_seeds_and_numbers_give_other_samples() -> None:
    seen = {taken(SAME, number, seed).image.tobytes() for number in range(20) for seed in range(5)}
    assert len(seen) > 95


def test_all_eight_turns_occur() -> None:
    values = np.arange(100 * 100).reshape(100, 100)
    data = laid(values, values)
    steps = set()
    for number in range(100):
        image = taken(data, number, region=Box((30, 30), (60, 60))).image[0].astype(int)
        steps.add((int(image[0, 1] - image[0, 0]), int(image[1, 0] - image[0, 0])))
    assert steps == {(a, b) for a in (1, -1) for b in (100, -100)} | {(b, a) for a in (1, -1) for b in (100, -100)}


@pytest.mark.parametrize(
    ("region", "samples"),
    [(Box((1, 0, 0), (3, 13, 22)), 6000), (Box((0, 5, 6), (1, 7, 9)), 100), (Box((2, 12, 21), (3, 13, 22)), 9)],
    ids=["sections", "part of a section", "the last pixel"],
)
def test_every_pixel_of_the_region_and_no_other_is_a_centre(region: Box, samples: int) -> None:
    """The pixel in the middle is one of four, depending on the turn: the centre, or the one before it."""
    places = np.pad(np.arange(np.prod(SHAPE)).reshape(SHAPE), [(0, 0), (1, 1), (1, 1)], mode="reflect")
    data = laid(np.zeros(SHAPE, np.uint8), np.arange(np.prod(SHAPE)).reshape(SHAPE))
    found = [taken(data, number, region=region).target[4:6, 4:6] for number in range(samples)]
    middles = {frozenset(middle.ravel().tolist()) for middle in found}
    centres = np.ndindex(region.shape)
    expected = set()
    for z, y, x in centres:
        z, y, x = z + region.start[0], y + region.start[1] + 1, x + region.start[2] + 1
        expected.add(frozenset(places[z, y - 1 : y + 1, x - 1 : x + 1].ravel().tolist()))
    assert middles <= expected
    assert len(middles) > 0.98 * len(expected)


def test_what_lies_outside_is_mirrored_labels_too() -> None:
    data, padded = SAME, np.pad(grey(*SHAPE), [(0, 0), (30, 30), (30, 30)], mode="reflect")
    windows = {
        section[y : y + TILE, x : x + TILE].tobytes() for section in padded for y in range(52) for x in range(60)
    }
    for number in range(30):
        image = taken(data, number).image[0]
        turned = [np.rot90(image, k)[:, ::flip].tobytes() for k in range(4) for flip in (1, -1)]
        assert windows & set(turned)


def test_channels_stay_apart() -> None:
    raw = np.stack([grey(13, 22), grey(13, 22) // 2])
    found = taken(laid(raw, grey(13, 22), axes="cyx"), 3)
    assert np.array_equal(found.image[0] // 2, found.image[1])


def test_sections_of_a_region_are_one_image_each() -> None:
    boxes = list(Box((1, 2, 3), (3, 13, 22)).planes())
    assert boxes == [Box((1, 2, 3), (2, 13, 22)), Box((2, 2, 3), (3, 13, 22))]
    assert list(Box((4, 5), (6, 7)).planes()) == [Box((4, 5), (6, 7))]
    assert SAME.image(boxes[0]).shape == (1, 11, 19)
    assert np.array_equal(SAME.target(boxes[0]), grey(*SHAPE)[1, 2:, 3:])


def test_small_volumes_are_read_once(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "raw.zarr", grey(*SHAPE))
    data = Annotated.lay(open_volume(path), open_volume(path), "binary", None)
    assert isinstance(data.raw.array, np.ndarray)
    assert isinstance(data.labels.array, np.ndarray)


@pytest.mark.parametrize(
    ("labels", "axes", "said"),
    [
        (grey(3, 13, 21), "zyx", r"raw\.zarr is 3x13x22, but labels\.zarr is 3x13x21"),
        (grey(13, 22), "yx", "must cover the same voxels"),
        (grey(2, *SHAPE), "czyx", r"labels\.zarr: 2 channels of uint8"),
        (np.zeros(SHAPE, np.float32), "zyx", r"labels\.zarr: 1 channels of float32"),
    ],
    ids=["shape", "axes", "channels", "floats"],
)
def test_labels_that_do_not_fit_are_refused(labels: NDArray[Any], axes: str, said: str) -> None:
    raw = Volume(path="raw.zarr", array=grey(*SHAPE), stored_axes="zyx")
    with pytest.raises(UnetcliError, match=said):
        Annotated.lay(raw, Volume(path="labels.zarr", array=labels, stored_axes=axes), "binary", None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_training_on_values_that_are_not_finite_is_refused_naming_the_place(value: float) -> None:
    raw = np.zeros(SHAPE, np.float32)
    raw[2, 3, 4] = value
    data = laid(raw, grey(*SHAPE))
    assert data.image(Box((1, 0, 0), (2, 13, 22))).shape == (1, 13, 22)
    with pytest.raises(UnetcliError, match=r"raw\.zarr: NaN or infinity at z 2:3, y 0:13"):
        data.image(Box((2, 0, 0), (3, 13, 22)))
