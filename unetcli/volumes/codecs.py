"""Compressors of Zarr v2, and Blosc of v3, that detect damaged chunks.

Blosc itself trusts the header: a chunk that is cut short is decoded with whatever lies behind it in memory, without an
error if its data were not compressible. Blosc is the default compressor of Zarr v2 and frequent in v3. Zstandard
adds a checksum to each chunk if it is asked to. numcodecs states that in the metadata of the array, which other readers
of Zarr v2 then refuse.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numcodecs
import zarr
from numcodecs.blosc import Blosc
from numcodecs.compat import ensure_contiguous_ndarray
from numcodecs.zstd import Zstd
from zarr.codecs import BloscCodec
from zarr.registry import register_codec

HEADER_BYTES = 16
LENGTH = slice(12, 16)
"""Bytes of the header that hold the length of the chunk, header included, as little-endian uint32."""


class CheckedBlosc(Blosc):  # type: ignore[misc]
    """Blosc, whose :meth:`decode` raises ValueError for a chunk of another length than its header says."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        content = memoryview(ensure_contiguous_ndarray(buf)).cast("B")
        stated = int.from_bytes(content[LENGTH], "little")
        if len(content) < HEADER_BYTES or len(content) != stated:
            raise ValueError(f"a Blosc chunk is cut short or damaged: {len(content)} bytes, its header says {stated}")
        return super().decode(buf, out)


class CheckedZstd(Zstd):  # type: ignore[misc]
    """Zstandard that adds a checksum to each chunk, without a word about it in the metadata.

    Every decoder of Zstandard finds the checksum in the chunk and compares it. TensorStore, zarrs and versions of
    numcodecs before 0.13 open no array whose metadata have the key ``checksum``.
    """

    def __init__(self, level: int = 0, checksum: bool = True) -> None:
        super().__init__(level=level, checksum=True)

    def get_config(self) -> dict[str, Any]:
        return {"id": self.codec_id, "level": self.level, "checksum": False}  # which zarr-python leaves out


class CheckedBloscCodec(BloscCodec):
    """Codec of Zarr v3 that decodes with :class:`CheckedBlosc`."""

    @cached_property
    def _blosc_codec(self) -> CheckedBlosc:
        options = super()._blosc_codec.get_config()
        del options["id"]
        return CheckedBlosc(**options)


def register() -> None:
    """Let Zarr use the checked codecs, in this process."""
    numcodecs.register_codec(CheckedBlosc)
    numcodecs.register_codec(CheckedZstd)
    register_codec("blosc", CheckedBloscCodec)
    zarr.config.set({"codecs.blosc": f"{__name__}.{CheckedBloscCodec.__name__}"})
