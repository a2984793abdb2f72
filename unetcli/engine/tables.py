"""What a block leaves for later stages: a file of named arrays, each compressed and with a checksum of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numcodecs
import numpy as np
from numpy.typing import NDArray

from unetcli.core.files import draft_of, drafts, remove, remove_aside
from unetcli.engine.step import DamagedResult

ZSTD = numcodecs.Zstd(level=1, checksum=True)
FRAME_BYTES = 2**26
"""Of an array, compressed together: codecs have their limits."""
FILES_PER_FOLDER = 1000

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Tables:
    """One file for each block, below a folder."""

    folder: Path

    def path(self, piece: int) -> Path:
        return self.folder / f"{piece // FILES_PER_FOLDER:04d}" / f"{piece:07d}.tables"

    def save(self, piece: int, arrays: Mapping[str, NDArray[Any]]) -> Path:
        """Store a block's arrays, in place of earlier ones; to be synced by the caller.

        Raises
        ------
        FileNotFoundError
            The run is over and its folder gone, which must not come back.
        """
        path = self.path(piece)
        for folder in (self.folder, path.parent):
            folder.mkdir(exist_ok=True)
        draft = draft_of(path)
        try:
            with draft.open("wb") as file:
                write_arrays(file, arrays)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        return path

    def load(self, piece: int, names: Collection[str] | None = None) -> Arrays:
        """The arrays of a block, or those that are named and there.

        Raises
        ------
        DamagedResult
            The file is damaged or gone.
        """
        path = self.path(piece)
        try:
            with path.open("rb") as file:
                return read_arrays(file, names)
        except Exception as error:  # codecs raise what they like
            raise damaged(piece, path, error) from error

    def remove(self) -> None:
        remove_aside(self.folder)

    def sweep(self) -> None:
        """Delete what killed workers left unfinished; only if no worker lives."""
        for folder in self.folder.glob("[0-9]" * 4):
            for draft in drafts(folder, "*.tables"):
                remove(draft)


def damaged(piece: int, path: Path, why: object) -> DamagedResult:
    """The error that says: the file of a block cannot be used, the block has to be computed again."""
    return DamagedResult(piece, f"{path}: cannot be read ({why}); the same command makes it anew")


def write_arrays(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """A line of JSON that says what follows, then the compressed frames."""
    frames = {name: [bytes(ZSTD.encode(part)) for part in _parts(values)] for name, values in arrays.items()}
    head = {
        name: [str(values.dtype), values.shape, [len(frame) for frame in frames[name]]]
        for name, values in arrays.items()
    }
    file.write(json.dumps(head).encode() + b"\n")
    for several in frames.values():
        file.writelines(several)


def read_arrays(file: BinaryIO, names: Collection[str] | None = None) -> Arrays:
    """The arrays again, or just some of them."""
    found: Arrays = {}
    for name, (dtype, shape, lengths) in json.loads(file.readline()).items():
        if names is None or name in names:
            data = b"".join(bytes(ZSTD.decode(file.read(length))) for length in lengths)
            found[name] = np.frombuffer(data, dtype).reshape(shape)
        else:
            file.seek(sum(lengths), 1)
    return found


def _parts(values: NDArray[Any]) -> list[NDArray[Any]]:
    flat = np.ascontiguousarray(values).reshape(-1)
    step = max(1, FRAME_BYTES // max(flat.itemsize, 1))
    return [flat[i * step : (i + 1) * step] for i in range(math.ceil(len(flat) / step))]
