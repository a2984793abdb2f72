"""PNG and JPEG files, written by Pillow and imagecodecs."""

from __future__ import annotations

import logging
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from helpers import grey
from PIL import Image

from unetcli.core.errors import UnetcliError
from unetcli.volumes.opening import open_volume

VALUES = grey(30, 37, 4)
GREY, RGB, RGBA = VALUES[..., 0], VALUES[..., :3], VALUES


@pytest.mark.parametrize(
    ("name", "image", "values"),
    [
        ("grey.png", Image.fromarray(GREY), GREY[None]),
        ("rgb.png", Image.fromarray(RGB), RGB.transpose(2, 0, 1)),
        ("alpha.png", Image.fromarray(RGBA), RGB.transpose(2, 0, 1)),
        ("grey-alpha.png", Image.fromarray(GREY).convert("LA"), GREY[None]),
        ("deep.png", Image.fromarray(GREY.astype("u2") * 200), GREY[None].astype("u2") * 200),
        ("bits.png", Image.fromarray(GREY > 99), (GREY[None] > 99) * np.uint8(255)),
    ],
)
def test_a_png_has_the_values_that_were_written(
    tmp_path: Path, name: str, image: Image.Image, values: np.ndarray
) -> None:
    image.save(tmp_path / name)
    volume = open_volume(tmp_path / name)
    assert (volume.axes, volume.channels, volume.dtype) == ("yx", len(values), values.dtype)
    assert np.array_equal(volume.read(volume.whole()), values)


def test_colours_of_16_bits_are_not_reduced(tmp_path: Path) -> None:
    values = RGB.astype("u2") * 257
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    volume = open_volume(tmp_path / "a.png")
    assert np.array_equal(volume.read(volume.whole()), values.transpose(2, 0, 1))


def test_a_palette_is_read_as_numbers_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = Image.fromarray(GREY % 4).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    Image.fromarray(GREY % 4, mode="L").save(tmp_path / "plain.png")
    indexed = Image.new("P", image.size)
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    indexed.putdata((GREY % 4).ravel().tolist())
    indexed.save(tmp_path / "a.png")
    with caplog.at_level(logging.INFO):
        volume = open_volume(tmp_path / "a.png")
    assert np.array_equal(volume.read(volume.whole())[0], GREY % 4)
    assert "palette" in caplog.text


@pytest.mark.parametrize("shape", [(30, 37), (30, 37, 3)])
def test_a_jpeg_has_the_values_that_pillow_reads(tmp_path: Path, shape: tuple[int, ...]) -> None:
    Image.fromarray(grey(*shape)).save(tmp_path / "a.jpg", quality=95)
    right = np.asarray(Image.open(tmp_path / "a.jpg"))
    volume = open_volume(tmp_path / "a.jpg")
    assert volume.channels == (3 if len(shape) == 3 else 1)
    assert np.array_equal(volume.read(volume.whole()), right[None] if right.ndim == 2 else right.transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_file_that_is_cut_off_is_never_read_as_a_whole(tmp_path: Path, name: str) -> None:
    Image.fromarray(GREY).save(tmp_path / name)
    whole, path = (tmp_path / name).read_bytes(), tmp_path / f"cut-{name}"
    for length in [*range(12, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UnetcliError, match=r"not a whole|not a readable"):
            open_volume(path)


def test_a_damaged_png_is_unreadable(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "a.png").write_bytes(content)
    volume = open_volume(tmp_path / "a.png")
    with pytest.raises(UnetcliError, match="cannot read y 0:30, x 0:37"):
        volume.read(volume.whole())


def test_the_content_decides_the_kind_and_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.jpg", format="PNG")
    assert np.array_equal(open_volume(tmp_path / "a.jpg").read(open_volume(tmp_path / "a.jpg").whole())[0], GREY)
    (tmp_path / "b.png").write_bytes(b"text")
    with pytest.raises(UnetcliError, match="its content is not what its name says"):
        open_volume(tmp_path / "b.png")


@pytest.mark.parametrize("choice", ["series=1", "level=1"])
def test_a_picture_has_only_one_image(tmp_path: Path, choice: str) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    with pytest.raises(UnetcliError, match=f"no {choice.replace('=', ' ')}"):
        open_volume(f"{tmp_path}/a.png:{choice}")
