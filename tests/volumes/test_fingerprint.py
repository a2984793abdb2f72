from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import grey, write_zarr
from zarr.codecs import ZstdCodec

from unetcli.core.arrays import file_sha256
from unetcli.core.geometry import Box
from unetcli.volumes import samples as module
from unetcli.volumes.opening import open_volume
from unetcli.volumes.samples import fingerprint, sampled_boxes, sampled_statistics
from unetcli.volumes.volume import Volume

VALUES = grey(7, 26, 44)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_zarr(tmp_path / "a.zarr", VALUES, chunks=(1, 13, 15), compressors=ZstdCodec(checksum=True))


class Chunked:
    """Array with a shape and chunks but without data."""

    def __init__(self, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str = "uint8") -> None:
        self.shape, self.chunks, self.dtype = shape, chunks, np.dtype(dtype)


def test_the_fingerprint_depends_on_the_data_and_not_on_the_path(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "b.zarr")
    other_codec = write_zarr(tmp_path / "c.zarr", VALUES, chunks=(1, 13, 15), compressors=None)
    prints = {fingerprint(open_volume(p)) for p in (path, path, tmp_path / "b.zarr", other_codec)}
    assert len(prints) == 1


@pytest.mark.parametrize("place", [(0, 0, 0), (3, 25, 43), (6, 12, 30)], ids=str)
def test_a_changed_voxel_of_a_sampled_chunk_changes_the_fingerprint(
    path: Path, tmp_path: Path, place: tuple[int, ...]
) -> None:
    changed = VALUES.copy()
    changed[place] ^= 1
    other = write_zarr(tmp_path / "b.zarr", changed, chunks=(1, 13, 15))
    assert fingerprint(open_volume(other)) != fingerprint(open_volume(path))


@pytest.mark.parametrize(
    "other",
    [
        VALUES.reshape(7, 44, 26),
        VALUES.view("int8"),
        VALUES[:6],
        np.concatenate([VALUES, VALUES[:1]]),
    ],
    ids=["shape", "dtype", "less", "more"],
)
def test_another_shape_or_dtype_changes_the_fingerprint(path: Path, tmp_path: Path, other: np.ndarray) -> None:
    found = fingerprint(open_volume(write_zarr(tmp_path / "b.zarr", other, chunks=(1, 13, 15))))
    assert found != fingerprint(open_volume(path))


def test_other_axes_change_the_fingerprint(path: Path) -> None:
    volume = open_volume(path)
    assert fingerprint(replace(volume, stored_axes="tyx")) != fingerprint(volume)


def test_a_volume_with_a_damaged_chunk_has_a_fingerprint(path: Path) -> None:
    before = fingerprint(open_volume(path))
    (path / "c" / "2" / "1" / "0").write_bytes(b"damaged")
    assert fingerprint(open_volume(path)) == fingerprint(open_volume(path)) != before


@pytest.mark.parametrize(
    ("shape", "chunks", "count"),
    [
        ((7, 26, 44), (1, 13, 15), 42),
        ((1, 1), (512, 512), 1),
        ((10**6, 10**6, 10**6), (1, 512, 512), 64),
        ((100, 65536, 65536), (100, 4096, 4096), 1),
        ((100, 9000, 9000), (1, 9000, 9000), 3),
    ],
    ids=["few chunks", "smaller than a chunk", "huge", "huge chunks", "large chunks"],
)
def test_a_bounded_number_of_chunks_is_sampled(shape: tuple[int, ...], chunks: tuple[int, ...], count: int) -> None:
    volume = Volume(path="a", array=Chunked(shape, chunks), stored_axes="zyx"[-len(shape) :])
    boxes = sampled_boxes(volume)
    assert boxes == sampled_boxes(volume)
    assert len(boxes) == len(set(boxes)) == count
    assert sum(box.size for box in boxes) <= max(module.SAMPLED_BYTES, boxes[0].size)
    for box in boxes:
        assert box.clipped(volume.whole()) == box
        assert all(a % c == 0 for a, c in zip(box.start, chunks, strict=True))


def test_first_and_last_chunk_are_sampled() -> None:
    volume = Volume(path="a", array=Chunked((999, 5000, 70), (1, 64, 64)), stored_axes="zyx")
    boxes = sampled_boxes(volume)
    assert boxes[0] == Box((0, 0, 0), (1, 64, 64))
    assert boxes[-1] == Box((998, 4992, 64), (999, 5000, 70))


@pytest.mark.parametrize(
    ("values", "axes", "channel"),
    [
        (VALUES, "zyx", None),
        (grey(3, 26, 44), "cyx", None),
        (grey(3, 26, 44), "cyx", 2),
        (np.full((13, 22), 7, np.uint8), "yx", None),
        (np.random.default_rng(1).normal(1e3, 1, (13, 22)).astype("float32"), "yx", 0),
    ],
    ids=["stack", "all channels", "one channel", "constant", "float"],
)
def test_statistics_equal_those_of_numpy_if_all_chunks_are_sampled(
    tmp_path: Path, values: np.ndarray, axes: str, channel: int | None
) -> None:
    path = write_zarr(
        tmp_path / "s.zarr", values, chunks=(1,) * (values.ndim - 2) + (13, 15), dimension_names=list(axes)
    )
    picked: Any = values if channel is None or "c" not in axes else values[channel]
    channels = picked if "c" in axes and channel is None else [picked]
    means, stds = (np.atleast_1d(found) for found in sampled_statistics(open_volume(path), channel))
    assert means.tolist() == pytest.approx([c.mean(dtype=float) for c in channels], rel=1e-6)
    assert stds.tolist() == pytest.approx(
        [c.std(dtype=float) or 1 for c in channels], rel=1e-6
    )  # 1 if all values are equal


def test_statistics_ignore_damaged_chunks_and_values_that_are_not_finite(tmp_path: Path) -> None:
    values = np.arange(26 * 44, dtype="float32").reshape(26, 44)
    values[3, 4], values[5, 6], values[20, 30] = np.nan, np.inf, -np.inf
    path = write_zarr(tmp_path / "s.zarr", values, chunks=(13, 22))
    (path / "c" / "1" / "0").write_bytes(b"damaged")
    rest = np.concatenate([values[:13].ravel(), values[13:, 22:].ravel()])
    rest = rest[np.isfinite(rest)].astype(float)
    assert sampled_statistics(open_volume(path), None) == pytest.approx((rest.mean(), rest.std()))


def test_the_checksum_of_a_file_depends_on_its_bytes_only(tmp_path: Path) -> None:
    for name, content in (("a", b"weights"), ("b", b"weights"), ("c", b"weightS")):
        (tmp_path / name).write_bytes(content)
    one, same, other = (file_sha256(tmp_path / name) for name in "abc")
    assert one == same != other
