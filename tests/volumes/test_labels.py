"""Labels as programs store them: the same numbers whatever the type, the channels and the colours of the file."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.volumes.labels import as_labels, as_prediction
from unetcli.volumes.volume import Volume

LABELS = np.kron(np.array([[0, 1, 2], [3, 0, 300]]), np.ones((1, 6, 7), int))  # (1, 12, 21)
MASK = (LABELS > 0) * np.uint8(255)
RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def volume(values: NDArray[Any], axes: str = "zyx") -> Volume:
    return Volume(path="labels.tif", array=values, stored_axes=axes)


def read(labels: Volume) -> NDArray[Any]:
    return labels.read(labels.whole())[0]


def picture(*colours: tuple[int, int, int]) -> NDArray[np.uint8]:
    """One colour per row, (y, x, c)."""
    return np.repeat(np.array(colours, np.uint8)[:, None], 5, axis=1)


@pytest.mark.parametrize(("stored", "dtype"), [("f4", "int32"), ("f8", "int64"), ("u2", "u2"), ("i4", "i4")])
def test_whole_numbers_of_any_type_are_labels(stored: str, dtype: str) -> None:
    labels = as_labels(volume(np.where(LABELS == 3, -1 if stored != "u2" else 3, LABELS).astype(stored)))
    assert labels.dtype == dtype
    assert np.array_equal(read(labels) == 300, LABELS == 300)
    assert np.array_equal(read(pickle.loads(pickle.dumps(labels))), read(labels))


def test_booleans_stay_what_they_are() -> None:
    assert read(as_labels(volume(LABELS > 0))).dtype == np.bool_


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -3e9])
def test_other_floats_are_no_labels(value: float) -> None:
    shown = re.escape(f"{value:g}")
    with pytest.raises(UnetcliError, match=rf"labels\.tif: float32 with values such as {shown}; expected labels"):
        as_labels(volume(np.full((1, 12, 21), value, np.float32)))


def test_a_fraction_that_was_not_sampled_is_found_when_it_is_read() -> None:
    values = np.zeros((3, 2000, 2000), np.float32)
    values[0, 0, 0] = 0.5
    with pytest.raises(UnetcliError, match=r"labels\.tif: z 0:1, y 0:5, x 0:5: 0\.5 is no whole number"):
        as_labels(volume(values)).read(Box((0, 0, 0), (1, 5, 5)))


@pytest.mark.parametrize(("channels", "dtype"), [(3, "u1"), (4, "u1"), (2, "u1"), (3, "u2"), (3, "f4")])
def test_equal_channels_are_one(channels: int, dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    """The last of 2 or 4 is the opacity."""
    planes = np.repeat(MASK[0][..., None], channels, axis=-1).astype(dtype)
    if channels % 2 == 0:
        planes[..., -1] = 255
    with caplog.at_level(logging.INFO):
        labels = as_labels(volume(planes, "yxc"))
    assert np.array_equal(read(labels), MASK[0])
    assert (labels.axes, labels.channels) == ("yx", 1)
    assert ("opacity" if channels % 2 == 0 else "equal") in caplog.text


def test_each_colour_is_one_number_and_grey_keeps_its_value(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        labels = as_labels(volume(picture((0, 0, 0), RED, GREEN, WHITE), "yxc"))
    assert read(labels)[:, 0].tolist() == [0, 2**24 + 0xFF0000, 2**24 + 0x00FF00, 255]
    assert "colours are read as labels" in caplog.text


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_channels_that_differ_are_refused_with_a_name_that_works(channels: int) -> None:
    planes = np.arange(12 * 21 * channels, dtype=np.uint16).reshape(12, 21, channels)
    with pytest.raises(UnetcliError, match=rf"{channels} channels of uint16.*labels\.tif:channel=0"):
        as_labels(volume(planes, "yxc"))


def test_channels_that_differ_where_they_were_not_sampled_are_found_when_they_are_read() -> None:
    planes = np.zeros((2000, 2000, 3), np.uint16)
    planes[0, 0, 0] = 1
    with pytest.raises(UnetcliError, match="its channels differ"):
        as_labels(volume(planes, "yxc")).read(Box((0, 0), (5, 5)))


def test_predictions_are_labels_where_no_probability_could_be() -> None:
    def prediction(one: Volume) -> Volume:
        return as_prediction(one, probability=False)

    assert as_prediction(volume(LABELS.astype("f4")), probability=True).dtype == np.float32
    assert prediction(volume(LABELS.astype("f4"))).dtype == np.int32
    assert prediction(volume((LABELS > 0).astype("f4"))).dtype == np.float32
    assert prediction(volume(LABELS / 300)).dtype == np.float64
    assert prediction(volume(np.repeat(MASK[0][..., None], 3, -1), "yxc")).channels == 1
    assert prediction(volume(picture(RED, GREEN), "yxc")).channels == 3
    assert prediction(volume(np.zeros((9, 9, 3), np.uint8), "yxc")).channels == 3  # three probabilities of 0


def test_absent_chunks_are_known_behind_the_conversion(tmp_path: Path) -> None:
    for name, chunks in {"f4": (1, 8, 8), "u1": (1, 8, 8, 3)}.items():
        array = zarr.create_array(tmp_path / name, shape=(2, 8, 8, 3)[: len(chunks)], chunks=chunks, dtype=name)
        array[1] = 1
        labels = as_labels(volume(array, "zyxc"[: len(chunks)]))
        assert [labels.is_absent(labels.sections(n, n + 1)) for n in (0, 1)] == [True, False]
