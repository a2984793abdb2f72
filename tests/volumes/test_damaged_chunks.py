"""Chunks and shards that are damaged are errors; Zarr reads many of them as fill values, or as what is in memory."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import grey
from numcodecs import BZ2, LZ4, LZMA, Blosc, GZip, Zlib, Zstd
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from unetcli.core.errors import UnreadableBlock
from unetcli.volumes.chunk_cache import cached
from unetcli.volumes.opening import open_volume

ZARRS = importlib.util.find_spec("zarrs") is not None
NOISE = grey(2, 32, 32) % 40 + 1  # nearly incompressible, so that Blosc stores it as it is
SMOOTH = np.broadcast_to(np.arange(1, 33, dtype=np.uint8), (2, 32, 32))
INDEXES = {
    f"index at the {place}, {name}": ShardingCodec(
        chunk_shape=(1, 16, 16), codecs=[BytesCodec()], index_codecs=[BytesCodec(), *checksum], index_location=place
    )
    for place, (name, checksum) in itertools.product(
        ("start", "end"), {"checksum": [Crc32cCodec()], "plain": []}.items()
    )
}
STORES: dict[str, dict[str, Any]] = {
    **{
        f"v2 {type(codec).__name__}": {"zarr_format": 2, "compressors": codec, "chunks": (1, 16, 16)}
        for codec in (None, Zlib(), GZip(), BZ2(), LZMA(), LZ4(), Zstd(), Blosc(), Blosc("zstd"))
    },
    **{
        f"v3 {name}{' shards' if shards else ''}": {"compressors": codec, "chunks": (1, 16, 16), "shards": shards}
        for name, codec in {"none": None, "gzip": GzipCodec(), "zstd": ZstdCodec(), "blosc": BloscCodec()}.items()
        for shards in (None, (1, 32, 32))
    },
    **{
        f"shards, {name}": {"serializer": codec, "compressors": None, "chunks": (1, 32, 32)}
        for name, codec in INDEXES.items()
    },
}


def write(path: Path, values: np.ndarray, store: str) -> Path:
    """Write an array, and return the file of one of its chunks or shards."""
    array = zarr.create_array(path, shape=values.shape, dtype=values.dtype, fill_value=0, **STORES[store])
    array[...] = values
    return next(file for file in sorted(path.rglob("*")) if file.is_file() and "z" not in file.name)


def is_read_right(path: Path, values: np.ndarray) -> bool:
    """Whether the first section is read, and then with the right values."""
    volume = open_volume(path)
    for readable in (volume, cached(volume)):
        for box in (volume.sections(0, 1), volume.whole()):
            try:
                found = readable.read(box)[0]
            except UnreadableBlock:
                return False
            assert np.array_equal(found, values[box.start[0] : box.stop[0]])
    return True


@pytest.mark.by_default("noise")
@pytest.mark.parametrize("values", [NOISE, SMOOTH], ids=["noise", "smooth"])
@pytest.mark.parametrize("store", STORES)
def test_a_chunk_or_shard_that_is_cut_off_is_an_error(tmp_path: Path, store: str, values: np.ndarray) -> None:
    file = write(tmp_path / "a.zarr", values, store)
    whole = file.read_bytes()
    assert is_read_right(tmp_path / "a.zarr", values)
    for length in {0, 1, 4, 15, 16, 17, len(whole) // 4, len(whole) // 2, len(whole) - 17, len(whole) - 1}:
        if 0 <= length < len(whole):
            file.write_bytes(whole[:length])
            assert not is_read_right(tmp_path / "a.zarr", values) or length >= len(whole) - 17  # padding of a codec
    file.write_bytes(whole)
    assert is_read_right(tmp_path / "a.zarr", values)


@pytest.mark.parametrize("store", ["v2 NoneType", "v3 none", "v3 zstd shards"])
@pytest.mark.parametrize("damage", ["folder", "link", "file in the place of a folder"])
def test_whatever_is_no_file_is_an_error(tmp_path: Path, store: str, damage: str) -> None:
    file = write(tmp_path / "a.zarr", NOISE, store)
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "link":
        file.symlink_to("nowhere")
    elif store == "v2 NoneType":
        pytest.skip("chunks of this store lie in one folder")
    else:
        for other in file.parent.iterdir():
            other.unlink()
        file.parent.rmdir()
        file.parent.write_text("")
    volume = open_volume(tmp_path / "a.zarr")
    with pytest.raises(UnreadableBlock, match="cannot read" if ZARRS else damage):  # zarrs has other words
        volume.read(volume.whole())


@pytest.mark.parametrize("store", ["v2 NoneType", "v3 none", "v3 zstd shards"])
def test_a_chunk_that_is_absent_has_the_fill_value(tmp_path: Path, store: str) -> None:
    write(tmp_path / "a.zarr", NOISE, store).unlink()
    volume = open_volume(tmp_path / "a.zarr")
    found = volume.read(volume.whole())[0]
    assert (found[-1] == 0).any() or (found[0] == 0).any()
    assert ((found == 0) | (found == NOISE)).all()


@pytest.mark.skipif(ZARRS, reason="zarrs does not use our store, and links are looked for")
def test_a_chunk_that_is_there_costs_no_further_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.zarr", NOISE, "v3 none")
    volume, looked = open_volume(tmp_path / "a.zarr"), list[Path]()
    lstat = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda path: (looked.append(path), lstat(path))[1])
    volume.read(volume.whole())
    assert looked == []
    (tmp_path / "a.zarr/c/0/0/0").unlink()
    volume.read(volume.whole())
    assert len(looked) == 1
