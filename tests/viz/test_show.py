"""Pictures of single sections."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from helpers import PEAK, grey, write_prediction, write_zarr
from matplotlib.image import imread
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.viz.png import label_colours, outlines
from unetcli.viz.request import ShowRequest
from unetcli.viz.show import show

Run = Callable[..., CompletedProcess[str]]
HUGE = """
from pathlib import Path
import matplotlib.image, scipy.ndimage
from unetcli.viz.show import show
from unetcli.viz.request import ShowRequest
from unetcli.volumes.opening import open_volume
open_volume("huge.zarr")
before = peak()
show(ShowRequest(volume="huge.zarr", output=Path("x.png")))
print(peak() - before)
"""


def picture(volume: Path, **options: Any) -> NDArray[np.float32]:
    """Colours (y, x, 3) of the picture that show draws."""
    output = volume.parent / "shown.png"
    show(ShowRequest(volume=str(volume), output=output, **options))
    return np.asarray(imread(output)[..., :3], np.float32)


def once(dots: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """Undo the enlargement of a picture, which has to be by a whole factor."""
    zoom, rest = divmod(len(dots), rows)
    assert rest == 0
    assert np.array_equal(dots, dots[::zoom, ::zoom].repeat(zoom, 0).repeat(zoom, 1))
    return dots[::zoom, ::zoom]


@pytest.mark.parametrize(("section", "expected"), [(None, 2), (0, 0), (4, 4)])
def test_the_section_asked_for_is_shown_else_the_middle_one(tmp_path: Path, section: int | None, expected: int) -> None:
    values = np.tile(np.arange(33, dtype=np.uint8) * 4, (5, 21, 1))
    values[np.arange(5), :, np.arange(5) * 3] = 255
    seen = once(picture(write_zarr(tmp_path / "a.zarr", values), section=section), rows=21)
    assert seen.shape == (21, 33, 3)
    assert seen[..., 0].mean(axis=0).argmax() == expected * 3


def test_a_few_bright_pixels_take_no_contrast(tmp_path: Path) -> None:
    values = grey(1, 100, 101) // 8
    values[0, 50, :3] = 255
    seen = once(picture(write_zarr(tmp_path / "a.zarr", values)), rows=100)[..., 0]
    assert 0.4 < np.delete(seen, 50, axis=0).mean() < 0.6


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_sections_of_one_value_are_shown(tmp_path: Path, value: float) -> None:
    assert not picture(write_zarr(tmp_path / "a.zarr", np.full((9, 13), value, np.float32))).any()


def test_labels_are_outlined_each_in_its_own_colour_and_the_rest_stays(tmp_path: Path) -> None:
    labels = np.zeros((3, 1500, 40), np.uint16)
    labels[1, 5:20, 5:20], labels[1, 5:20, 20:31] = 3, 900
    raw = write_zarr(tmp_path / "raw.zarr", grey(3, 1500, 40))
    plain = picture(raw)
    seen = picture(raw, overlay=str(write_zarr(tmp_path / "labels.zarr", labels)))
    changed = (seen != plain).any(axis=-1)
    assert np.array_equal(changed, outlines(labels[1]))
    first, second = seen[5, 10], seen[5, 25]
    assert abs(first - second).max() > 0.2
    assert np.allclose(first, label_colours(np.array([3]))[0], atol=1 / 128)


def test_a_probability_is_a_transparent_colour_as_float_or_as_predict_stores_it(tmp_path: Path) -> None:
    raw = write_zarr(tmp_path / "raw.zarr", grey(2, 24, 40))
    stored = np.zeros((2, 24, 40), np.uint8)
    stored[:, :, 20:] = 255
    predicted = picture(raw, overlay=str(write_prediction(tmp_path / "p.zarr", stored, (1, 8, 8))))
    floats = picture(raw, overlay=str(write_zarr(tmp_path / "f.zarr", (stored / 255).astype(np.float32))))
    plain, seen = once(picture(raw), rows=24), once(predicted, rows=24)
    assert np.array_equal(predicted, floats)
    assert np.array_equal(seen[:, :20], plain[:, :20])
    assert (seen[:, 20:, 0] - seen[:, 20:, 2] > 0.4).all()
    spread = seen[:, 20:].std() / plain[:, 20:].std()
    assert spread > 0.3, "the image shines through"


@pytest.mark.slow
def test_large_sections_are_downsampled_and_read_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((5001, 1201), np.uint8)
    values[:, 600:] = 200
    raw, labels = write_zarr(tmp_path / "a.zarr", values), write_zarr(tmp_path / "l.zarr", values)
    whole = picture(raw, overlay=str(labels))
    assert whole.shape == (1667, 401, 3)
    monkeypatch.setattr("unetcli.viz.show.WINDOW_VOXELS", 1201 * 7)
    assert np.array_equal(picture(raw, overlay=str(labels)), whole)


def test_a_scale_bar_is_drawn_where_the_voxel_size_is_known(tmp_path: Path) -> None:
    black = np.zeros((2, 300, 400), np.uint8)
    group = zarr.create_group(tmp_path / "nm.zarr")
    group.create_array("0", data=black)
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    scale = [{"type": "scale", "scale": [50, 4, 4]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    dots = picture(tmp_path / "nm.zarr")
    bar = max(np.count_nonzero((row > 0.95).all(axis=-1)) for row in dots)
    assert abs(bar - 200 / 4 * 3) <= 2  # 200 nm of 1600, enlarged three times
    assert not picture(write_zarr(tmp_path / "plain.zarr", black)).any()


def test_channels_are_colours_or_one_of_them_is_shown(tmp_path: Path) -> None:
    values = np.zeros((12, 16, 3), np.uint8)
    values[:6, :, 0], values[:, :8, 2] = 255, 255
    tifffile.imwrite(tmp_path / "rgb.tif", values, photometric="rgb")
    assert np.array_equal(once(picture(tmp_path / "rgb.tif"), rows=12), values / np.float32(255))
    blue = once(picture(tmp_path / "rgb.tif", channel=2), rows=12)
    assert np.array_equal(blue, np.repeat(values[..., 2:] / np.float32(255), 3, axis=-1))


def test_the_default_place_is_the_current_folder_and_an_earlier_picture_is_replaced(
    tmp_path: Path, unetcli: Run
) -> None:
    write_zarr(tmp_path / "big.zarr", grey(7, 20, 30))
    for _ in range(2):
        done = unetcli("show", "big.zarr")
        assert (done.returncode, done.stdout, done.stderr) == (0, "big.z03.png\n", "")
    assert imread(tmp_path / "big.z03.png").shape[:2] == (1000, 1500)


def test_files_of_others_are_never_replaced(tmp_path: Path) -> None:
    raw = write_zarr(tmp_path / "raw.zarr", grey(2, 9, 9))
    other = tmp_path / "precious.png"
    other.write_bytes(b"not from show")
    with pytest.raises(UnetcliError, match=r"precious\.png: exists and was not written by unetcli show"):
        show(ShowRequest(volume=str(raw), output=other))
    assert other.read_bytes() == b"not from show"
    with pytest.raises(UnetcliError, match="inside or around the input"):
        show(ShowRequest(volume=str(raw), output=raw / "inside.png"))


def test_what_cannot_be_shown_is_refused_in_one_line(tmp_path: Path, unetcli: Run) -> None:
    write_zarr(tmp_path / "a.zarr", grey(7, 20, 30))
    write_zarr(tmp_path / "b.zarr", grey(7, 20, 31))
    write_zarr(tmp_path / "flat.zarr", grey(20, 30))
    refused = {
        ("a.zarr", "--section", 7): ["--section 7", "a.zarr", "0 to 6 along z"],
        ("a.zarr", "--section", -1): ["--section -1", "a.zarr", "0 to 6 along z"],
        ("flat.zarr", "--section", 2): ["--section 2", "flat.zarr", "single image (y 20, x 30)"],
        ("a.zarr", "--overlay", "b.zarr"): [
            "--overlay b.zarr",
            "z 7, y 20, x 31",
            "expected z 7, y 20, x 30",
            "a.zarr",
        ],
        ("a.zarr", "--channel", 1): ["--channel 1", "a.zarr", "0 to 0"],
        ("a.zarr", "-o", "x.jpg"): ["--output x.jpg", "PNG", "x.png"],
        ("a.zarr", "-o", "."): ["--output .", "PNG", "a.png"],
        ("gone.zarr",): ["gone.zarr"],
    }
    for words, parts in refused.items():
        done = unetcli("show", *words)
        (line,) = done.stderr.splitlines()
        assert (done.returncode, done.stdout, line.startswith("unetcli: ")) == (1, "", True)
        assert [part for part in parts if part not in line] == []
    assert not list(tmp_path.glob("*.png"))


def pyramid(place: Path, values: NDArray[Any], levels: int) -> Path:
    """Output of predict with coarser levels, whose full resolution is unreadable."""
    write_prediction(place, values, (1, 512, 512), levels=levels)
    for chunk in (place / "0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    return place


@pytest.mark.parametrize(
    ("side", "levels", "dots"), [(2049, 2, 1025), (4096, 3, 2048), (8200, 4, 2050 // 2), (9000, 3, 1125)]
)
def test_large_sections_are_read_from_the_coarsest_level_that_is_fine_enough(
    tmp_path: Path, side: int, levels: int, dots: int
) -> None:
    values = np.zeros((1, side, 700), np.uint8)
    values[:, : side // 2, 300:] = 240
    place = pyramid(tmp_path / "p.zarr", values, levels)
    seen = picture(place)
    assert seen.shape[0] == dots
    step = -(-side // dots)
    assert np.allclose(seen[: side // 2 // step - 1, 300 // step + 1 :], 240 / 255, atol=0.01)
    assert not seen[side // 2 // step + 1 : 3 * dots // 4].any()  # further down is the scale bar


def test_labels_over_a_picture_are_downsampled_from_full_resolution(tmp_path: Path) -> None:
    labels = np.kron(np.arange(1, 8 * 2 + 1).reshape(8, 2), np.ones((600, 300))).astype(np.uint8)
    raw = write_zarr(tmp_path / "raw.zarr", grey(*labels.shape), chunks=(512, 512))
    plain = write_zarr(tmp_path / "labels.zarr", labels)
    group = zarr.open_group(tmp_path / "levels.zarr", mode="w")
    for level in range(4):
        group.create_array(str(level), data=np.ascontiguousarray(labels[:: 2**level, :: 2**level]))
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [2.0**n] * 2}]} for n in range(4)
    ]
    axes = [{"name": axis, "type": "space"} for axis in "yx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    expected = picture(raw, overlay=str(plain))
    assert expected.shape[:2] == (1600, 200)
    assert np.array_equal(picture(raw, overlay=str(tmp_path / "levels.zarr")), expected)


@pytest.mark.parametrize("kind", ["other sections", "other factors", "gone"])
def test_levels_that_are_not_halves_of_the_plane_are_not_used(tmp_path: Path, kind: str) -> None:
    values = np.zeros((4, 4500, 300), np.uint8)
    values[3] = 200
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("0", data=values, chunks=(1, 512, 300))
    if kind != "gone":
        group.create_array("1", data=values[::2, ::2, ::2] if kind == "other sections" else values[:, ::3, ::2])
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    datasets = [{"path": str(n), "coordinateTransformations": scale} for n in range(2)]
    axes = [{"name": axis, "type": "space"} for axis in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    black, white = picture(tmp_path / "a.zarr", section=2), picture(tmp_path / "a.zarr", section=3)
    assert black.shape == white.shape == (1500, 100, 3)
    assert not black.any()


@pytest.mark.slow
def test_a_plane_without_levels_is_read_in_windows_and_never_held(tmp_path: Path) -> None:
    side = 40_000  # 1.6 GB
    array = zarr.create_array(tmp_path / "huge.zarr", shape=(1, side, side), chunks=(1, 4000, 4000), dtype="u1")
    array[0, :4000, :4000] = 100
    command = [sys.executable, "-c", PEAK + HUGE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 600 * 2**20
    seen = imread(tmp_path / "x.png")[..., :3]
    assert seen.shape == (2000, 2000, 3)
    assert seen[:200, :200].min() > 0.9
    assert not seen[201:].any()


@pytest.mark.by_default("64-(1, 3000, 700)", "37-(1, 1, 3000, 700)")
@pytest.mark.parametrize("shape", [(1, 3000, 700), (1, 1, 3000, 700), (1, 4, 3000, 700)], ids=str)
@pytest.mark.parametrize("first", [37, 64])
def test_a_region_with_levels_lies_where_it_was_predicted(tmp_path: Path, shape: tuple[int, ...], first: int) -> None:
    raw = np.zeros(shape, np.uint8)
    write_zarr(tmp_path / "raw.zarr", raw, dimension_names="tzyx"[-len(shape) :])
    part = raw[..., first:2900, first:]
    part[..., 1000:, 100:] = 255
    lead = (1,) * (len(shape) - 2)
    seen = []
    for levels in (1, 3):
        place = tmp_path / f"p{levels}.zarr"
        write_prediction(place, part, (*lead, 512, 512), levels=levels)
        group = zarr.open_group(place, mode="r+")
        sides = [[0, n] for n in shape[:-2]] + [[first, 2900], [first, 700]]
        group.attrs["unetcli"] = {**group.attrs["unetcli"], "extent": list(shape), "region": sides}  # type: ignore[dict-item]
        seen.append(picture(tmp_path / "raw.zarr", overlay=str(place)))
    assert seen[0].shape == (1500, 350, 3)
    assert np.abs(seen[0] - seen[1]).max() < 0.01
    row, column = (first + 1000) // 2, (first + 100) // 2
    assert (seen[0][row + 1 : 1449, column + 1 :, 0] > 0.5).all()
    assert not seen[0][: row - 1].any()
    assert not seen[0][1452:].any()
