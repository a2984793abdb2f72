from __future__ import annotations

import base64

import imagecodecs
import numpy as np
import pytest

from unetcli.report import layers


def decoded(url: str) -> np.ndarray:
    head, data = url.split(",")
    decode = {"data:image/png;base64": imagecodecs.png_decode, "data:image/webp;base64": imagecodecs.webp_decode}
    return np.asarray(decode[head](base64.b64decode(data)))


@pytest.mark.parametrize("shape", [(13, 22), (1, 1), (5, 1030)])
@pytest.mark.parametrize("factor", [1, 2, 5])
def test_all_layers_of_a_section_have_one_size(shape: tuple[int, int], factor: int) -> None:
    values = np.random.default_rng(0).integers(0, 9, shape)
    wanted = tuple(-(-n // factor) for n in shape)
    assert layers.means(values, factor).shape == layers.samples(values, factor).shape == wanted
    assert decoded(layers.shown(values[None], factor)).shape[:2] == wanted


def test_labels_come_back_exactly_also_beyond_16_bits() -> None:
    labels = np.array([[0, 1, 255, 256], [65536, 2**24 - 1, 70000, 3]])
    found = decoded(layers.labels(labels, 1)).astype(int)
    assert (found[..., 0] + 256 * found[..., 1] + 65536 * found[..., 2] == labels).all()


def test_a_label_beyond_24_bits_is_not_taken_for_background() -> None:
    assert decoded(layers.labels(np.array([[2**24, 2**40]]), 1)).any(axis=-1).all()


def test_probabilities_are_kept_to_a_step_of_a_byte() -> None:
    values = np.random.default_rng(1).random((9, 14)).astype(np.float32)
    assert np.abs(decoded(layers.grey(values, 1)) / 255 - values).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("value", [0, 7, 255])
def test_an_image_without_contrast_is_shown_without_a_warning(value: int) -> None:
    assert decoded(layers.shown(np.full((1, 8, 9), value, np.uint8), 1)).shape == (8, 9, 3)


@pytest.mark.parametrize(("channels", "coloured"), [(1, False), (2, False), (3, True), (4, False)])
def test_three_channels_are_colours_and_of_others_the_first_is_shown(channels: int, coloured: bool) -> None:
    image = np.random.default_rng(2).random((channels, 16, 16))
    found = decoded(layers.shown(image, 1)).astype(int)
    assert (np.ptp(found, axis=-1).max() > 60) == coloured


def test_numbers_that_are_none_do_not_spoil_an_image() -> None:
    image = np.random.default_rng(3).random((1, 8, 8)).astype(np.float32)
    image[0, 0, 0] = np.nan
    assert decoded(layers.shown(image, 1)).std() > 20
