"""Chunks of a Zarr array that were never stored: their voxels have the fill value, so nothing has to be read."""

from __future__ import annotations

import itertools
import os
from typing import Any


def is_absent(array: Any, selection: tuple[slice, ...]) -> bool:
    """Whether no chunk, or shard, of a part of an array is stored, so that all its values are the fill value.

    Parameters
    ----------
    array
        Any array; the answer is known for a ``zarr.Array`` in a local folder or a view of one, and False for others.
    selection
        One slice per axis of the array, with a start and a stop inside it.
    """
    from zarr.storage import LocalStore as ZarrFolder  # planning does without zarr

    if hasattr(array, "viewed"):
        return is_absent(*array.viewed(selection))
    place = getattr(array, "store_path", None)
    if place is None or not isinstance(place.store, ZarrFolder):
        return False
    folder = place.store.root / place.path
    sides = array.shards or array.chunks
    ranges = [range(s.start // side, -(-s.stop // side)) for s, side in zip(selection, sides, strict=True)]
    keys = (array.metadata.encode_chunk_key(chunk) for chunk in itertools.product(*ranges))
    return all(_is_free(f"{folder}/{key}") for key in keys)


def _is_free(path: str) -> bool:
    """Whether nothing is at a path; False if that cannot be told, so that reading reports the reason."""
    try:
        os.lstat(path)  # what is there may be damaged, or a link to nothing
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
