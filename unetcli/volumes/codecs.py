"""Blosc that compares the length of a chunk with the one in its header.

Blosc itself trusts the header: a chunk that is cut short is decoded with whatever lies behind it in memory, without an
error if its data were not compressible. Blosc is the default compressor of Zarr v2 and frequent in v3.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numcodecs
import zarr
from numcodecs.blosc import Blosc
from numcodecs.compat import ensure_contiguous_ndarray
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


class CheckedBloscCodec(BloscCodec):
    """Codec of Zarr v3 that decodes with :class:`CheckedBlosc`."""

    @cached_property
    def _blosc_codec(self) -> CheckedBlosc:
        options = super()._blosc_codec.get_config()
        del options["id"]
        return CheckedBlosc(**options)


def register() -> None:
    """Let Zarr decode with the checked codecs, in this process."""
    numcodecs.register_codec(CheckedBlosc)
    register_codec("blosc", CheckedBloscCodec)
    zarr.config.set({"codecs.blosc": f"{__name__}.{CheckedBloscCodec.__name__}"})
