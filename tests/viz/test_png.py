from __future__ import annotations

import base64
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from unetcli.viz import png
from unetcli.viz.png import draw_curves, draw_samples, means, samples

TILE, OUTPUT = 44, 20


def drawn(file: Path, count: int = 1, channels: int = 1, ignored: int = 0) -> NDArray[np.float32]:
    """Picture (y, x, 3) of samples whose first ``ignored`` rows are not annotated."""
    random = np.random.default_rng(0)
    images = random.normal(size=(count, channels, TILE, TILE))
    classes = np.zeros((count, OUTPUT, OUTPUT), np.int64)
    classes[:, 8:15, 3:12] = 1
    classes[:, 16:, 10:] = 2
    classes[:, :ignored] = 255
    draw_samples(images, classes, 1.0 + classes % 255, file)
    return np.asarray(imread(file))[..., :3]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_of_any_number_of_channels_are_drawn(tmp_path: Path, channels: int) -> None:
    coloured = np.ptp(drawn(tmp_path / "a.png", channels=channels), axis=-1).max(-1) > 0.3
    assert coloured.any()


def test_more_samples_make_a_larger_picture(tmp_path: Path) -> None:
    shapes = [drawn(tmp_path / "a.png", count).shape for count in (1, 3, 4, 5)]
    assert shapes[0][1] < shapes[1][1] < shapes[2][1] == shapes[3][1]
    assert shapes[2][0] < shapes[3][0]


def test_ignored_pixels_are_grey_in_the_map_of_weights(tmp_path: Path) -> None:
    def grey(picture: NDArray[np.float32]) -> float:
        lower = picture[picture.shape[0] // 2 :]
        return float((np.abs(lower - 0.6) < 0.01).all(-1).mean())

    assert grey(drawn(tmp_path / "none.png")) < 0.01
    assert grey(drawn(tmp_path / "some.png", ignored=5)) > 0.1


def test_samples_without_truth_or_contrast_are_drawn_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = np.full((2, OUTPUT, OUTPUT), 255)
        draw_samples(np.zeros((2, 1, TILE, TILE)), nothing, np.zeros((2, OUTPUT, OUTPUT)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def validation(step: int, disagreement: float, *, best: bool = False) -> dict[str, float | bool]:
    return {"step": step, "loss": 0.4, "validation_loss": 0.5, "pixel_disagreement": disagreement, "best": best}


def curves(file: Path, *rows: dict[str, float | bool]) -> NDArray[np.float32]:
    draw_curves(rows, file)
    return np.asarray(imread(file))[..., :3]


def columns_of(picture: NDArray[np.float32], colour: tuple[float, float, float]) -> NDArray[np.intp]:
    return np.flatnonzero((np.abs(picture - colour) < 0.05).all(-1).sum(0) > 3)


def test_the_validation_of_the_kept_model_is_marked_whatever_it_was_chosen_by(tmp_path: Path) -> None:
    red = (0.839, 0.153, 0.157)
    rows = [validation(n, 0.3 - n / 10_000) for n in (100, 200, 300, 400)]
    places = []
    for kept in (1, 3):
        marked = [row | {"best": n == kept} for n, row in enumerate(rows)]
        places.append(columns_of(curves(tmp_path / f"{kept}.png", *marked), red))
    assert not np.array_equal(*(place[:8] for place in places))
    assert not len(columns_of(curves(tmp_path / "none.png", *rows), red))


def test_one_validation_is_visible_and_without_held_out_sections_there_is_one_panel(tmp_path: Path) -> None:
    blue = (0.122, 0.467, 0.706)
    one = curves(tmp_path / "one.png", validation(100, 0.2, best=True))
    alone = curves(tmp_path / "alone.png", {"step": 100, "loss": 0.4, "best": True})
    assert alone.shape[1] * 2 == one.shape[1]
    for picture in (one, alone):
        rows = np.flatnonzero((np.abs(picture - blue) < 0.05).all(-1).any(1))
        assert np.ptp(rows) > 30  # the line in the legend, and elsewhere the validation


def decoded(url: str) -> np.ndarray:
    head, data = url.split(",")
    decode = {"data:image/png;base64": imagecodecs.png_decode, "data:image/webp;base64": imagecodecs.webp_decode}
    return np.asarray(decode[head](base64.b64decode(data)))


@pytest.mark.parametrize("shape", [(13, 22), (1, 1), (5, 1030)])
@pytest.mark.parametrize("factor", [1, 2, 5])
def test_all_layers_of_a_section_have_one_size(shape: tuple[int, int], factor: int) -> None:
    values = np.random.default_rng(0).integers(0, 9, shape)
    wanted = tuple(-(-n // factor) for n in shape)
    assert means(values, factor).shape == samples(values, factor).shape == wanted
    assert decoded(png.grey_url(means(values[None], factor))).shape[:2] == wanted


def test_labels_come_back_exactly_also_beyond_16_bits() -> None:
    labels = np.array([[0, 1, 255, 256], [65536, 2**24 - 1, 70000, 3]])
    found = decoded(png.labels_url(labels)).astype(int)
    assert (found[..., 0] + 256 * found[..., 1] + 65536 * found[..., 2] == labels).all()


def test_a_label_beyond_24_bits_is_not_taken_for_background() -> None:
    assert decoded(png.labels_url(np.array([[2**24, 2**40]]))).any(axis=-1).all()


def test_probabilities_are_kept_to_a_step_of_a_byte() -> None:
    values = np.random.default_rng(1).random((9, 14)).astype(np.float32)
    assert np.abs(decoded(png.share_url(values)) / 255 - values).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("value", [0, 7, 255])
def test_an_image_without_contrast_is_shown_without_a_warning(value: int) -> None:
    assert decoded(png.grey_url(np.full((1, 8, 9), value, np.float32))).shape == (8, 9, 3)


@pytest.mark.parametrize(("channels", "coloured"), [(1, False), (2, False), (3, True), (4, False)])
def test_three_channels_are_colours_and_of_others_the_first_is_shown(channels: int, coloured: bool) -> None:
    image = np.random.default_rng(2).random((channels, 16, 16))
    found = decoded(png.grey_url(image)).astype(int)
    assert (np.ptp(found, axis=-1).max() > 60) == coloured


def test_numbers_that_are_none_do_not_spoil_an_image() -> None:
    image = np.random.default_rng(3).random((1, 8, 8)).astype(np.float32)
    image[0, 0, 0] = np.nan
    assert decoded(png.grey_url(image)).std() > 20
