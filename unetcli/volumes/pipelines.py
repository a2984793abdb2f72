"""Codec pipelines of zarr-python, which decode and encode chunks; the default one is the slowest.

Measured on a machine with 16 cores, chunks of 512 x 512 uint8, in Mvoxels/s by one thread and by four: default 285 and
372 reading, 228 and 254 writing; fused, in zarr-python since 3.4, 390 and 609 reading, 335 and 333 writing; zarrs,
written in Rust, 945 and 2,340 reading. zarrs does not write chunks atomically, so it only reads.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore as ZarrFolder

from unetcli.volumes import codecs
from unetcli.volumes.store import LocalStore, Store
from unetcli.volumes.zip_archive import ZipArchive

FUSED = "zarr.core.codec_pipeline.FusedCodecPipeline"
ZARRS = "unetcli.volumes.zarrs_pipeline.CheckedZarrs"
_opening = threading.RLock()
"""zarr-python's configuration holds for all threads, so only one of them opens an array at a time."""
codecs.register()


@contextmanager
def opening_to_read(store: Store | ZipArchive) -> Iterator[ZarrStore]:
    """Arrays opened in this context, in the store it yields, are read by the fastest pipeline that is installed."""
    if isinstance(store, LocalStore) and importlib.util.find_spec("zarrs"):
        importlib.import_module("unetcli.volumes.zarrs_pipeline")  # registers its pipeline
        with _using(ZARRS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Zarrs")  # about codecs that zarrs leaves to zarr-python
            yield ZarrFolder(store.path)  # zarrs reads no other kind; CheckedZarrs makes the checks of CheckedFolder
    else:
        with _using(_fused()):
            yield store.zarr()


@contextmanager
def opening_to_write() -> Iterator[None]:
    """Arrays opened in this context are written by the fastest pipeline whose writes are atomic."""
    with _using(_fused()):
        yield


def _fused() -> str:
    """Path of the fused pipeline, else the configured one."""
    configured: str = zarr.config.get("codec_pipeline.path")
    return FUSED if hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline") else configured


@contextmanager
def _using(path: str) -> Iterator[None]:
    with _opening, zarr.config.set({"codec_pipeline.path": path}):
        yield
