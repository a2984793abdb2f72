from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from unetcli.viz.png import draw_curves, draw_samples

TILE, OUTPUT = 44, 20


def drawn(file: Path, count: int = 1, channels: int = 1, ignored: int = 0) -> NDArray[np.float32]:
    """The picture of samples whose first ``ignored`` rows have no truth: (y, x, colour)."""
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


def look(step: int, disagreement: float, *, best: bool = False) -> dict[str, float | bool]:
    return {"step": step, "loss": 0.4, "validation_loss": 0.5, "pixel_disagreement": disagreement, "best": best}


def curves(file: Path, *rows: dict[str, float | bool]) -> NDArray[np.float32]:
    draw_curves(rows, file)
    return np.asarray(imread(file))[..., :3]


def columns_of(picture: NDArray[np.float32], colour: tuple[float, float, float]) -> NDArray[np.intp]:
    return np.flatnonzero((np.abs(picture - colour) < 0.05).all(-1).sum(0) > 3)


def test_the_look_that_is_marked_is_that_of_the_kept_model_whatever_it_was_chosen_by(tmp_path: Path) -> None:
    red = (0.839, 0.153, 0.157)
    rows = [look(n, 0.3 - n / 10_000) for n in (100, 200, 300, 400)]
    places = []
    for kept in (1, 3):
        marked = [row | {"best": n == kept} for n, row in enumerate(rows)]
        places.append(columns_of(curves(tmp_path / f"{kept}.png", *marked), red))
    assert not np.array_equal(*(place[:8] for place in places))
    assert not len(columns_of(curves(tmp_path / "none.png", *rows), red))


def test_one_look_is_seen_and_without_held_out_sections_there_is_one_panel(tmp_path: Path) -> None:
    blue = (0.122, 0.467, 0.706)
    one = curves(tmp_path / "one.png", look(100, 0.2, best=True))
    alone = curves(tmp_path / "alone.png", {"step": 100, "loss": 0.4, "best": True})
    assert alone.shape[1] * 2 == one.shape[1]
    for picture in (one, alone):
        rows = np.flatnonzero((np.abs(picture - blue) < 0.05).all(-1).any(1))
        assert np.ptp(rows) > 30  # the legend's line, and somewhere else the look
