"""Checksums of voxels and files.

Voxels are summed by XXH3 (128 bits), which is as fast as memory and guards against damage; model files by SHA-256,
which also guards against forgery.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray


class Checksum:
    """XXH3 (128 bits) of everything that was added, in order."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def add(self, values: NDArray[Any] | bytes) -> None:
        """Add the bytes of an array in C order, or bytes as they are."""
        self._state.update(values if isinstance(values, bytes) else np.ascontiguousarray(values).data)

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return str(self._state.hexdigest())


def checksum(values: NDArray[Any] | bytes) -> str:
    """XXH3 (128 bits) of the bytes of an array in C order, or of bytes: 32 hexadecimal digits.

    >>> checksum(np.zeros((2, 3), np.uint8)) == checksum(bytes(6))
    True
    """
    found = Checksum()
    found.add(values)
    return found.hexdigest()


def short_checksum(values: NDArray[Any] | bytes) -> str:
    """XXH3 (64 bits) of the same: 16 hexadecimal digits."""
    data = values if isinstance(values, bytes) else np.ascontiguousarray(values).data
    return str(xxhash.xxh3_64_hexdigest(data))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
