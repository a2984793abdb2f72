"""Receipts: one line for each finished block, in files that only grow; torn lines are ignored."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from unetcli.files import sync, sync_all

GROUP_SECONDS, GROUP_BLOCKS = 1.0, 64
"""Receipts wait at most this long for others, so that one sync serves many blocks."""
DONE, VOID = "done", "void"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """This block is complete, at this attempt, with this checksum, cost and place."""

    block: int
    attempt: int
    state: str
    """``done``, or ``void``: what earlier attempts wrote is to be redone."""
    checksum: str
    """BLAKE2b (128 bit, hex) of the decoded voxels, clipped to the volume, C order; ``-`` when void."""
    read_seconds: float
    forward_seconds: float
    write_seconds: float
    device: str
    host: str
    job: str

    def to_line(self) -> str:
        """Fields separated by blanks, the CRC-32 of all before it last.

        >>> receipt = Receipt(block=3, attempt=1, state="done", checksum="a1", read_seconds=0.1, forward_seconds=2.0,
        ...     write_seconds=0.03, device="cpu", host="node1", job="-")
        >>> receipt.to_line()
        '3 1 done a1 0.100 2.000 0.030 cpu node1 - 3099674e\\n'
        >>> Receipt.from_line(receipt.to_line()) == receipt
        True
        """
        words = [f"{v:.3f}" if isinstance(v, float) else str(v).replace(" ", "_") for v in astuple(self)]
        body = " ".join(words)
        return f"{body} {zlib.crc32(body.encode()):08x}\n"

    @classmethod
    def from_line(cls, line: str) -> Receipt | None:
        """The receipt, or None for a line that was torn by a crash."""
        body, _, crc = line.rstrip("\n").rpartition(" ")
        words = body.split(" ")
        if len(words) != len(_TYPES) or crc != f"{zlib.crc32(body.encode()):08x}":
            return None
        return cls(**{name: kind(word) for (name, kind), word in zip(_TYPES.items(), words, strict=True)})


_TYPES = {field.name: {"int": int, "float": float, "str": str}[str(field.type)] for field in fields(Receipt)}


def read_receipts(folder: Path) -> dict[int, Receipt]:
    """The receipt of the highest attempt of each block."""
    latest: dict[int, Receipt] = {}
    for receipt in _all_receipts(folder):
        if receipt.block not in latest or latest[receipt.block].attempt <= receipt.attempt:
            latest[receipt.block] = receipt
    return latest


def _all_receipts(folder: Path) -> Iterator[Receipt]:
    for path in sorted(folder.glob("*.txt")):
        with path.open(errors="replace") as lines:
            yield from filter(None, map(Receipt.from_line, lines))


def checksum(voxels: NDArray[np.generic]) -> str:
    """As :attr:`Receipt.checksum` says."""
    return hashlib.blake2b(np.ascontiguousarray(voxels).data, digest_size=16).hexdigest()


class ReceiptBook:
    """A worker's own receipts file, in ``folder``.

    Data, all below ``data``, reach the disk before the receipt that vouches for them.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self.data = data
        self.path = folder / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.txt"
        self._waiting: list[Receipt] = []
        self._unsynced: list[Path] = []
        self._last_commit = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.commit()

    def add(self, receipt: Receipt, written: list[Path]) -> None:
        """Note a block whose data are in ``written``; the receipt is stored with the next group."""
        self._waiting.append(receipt)
        self._unsynced += written
        if len(self._waiting) >= GROUP_BLOCKS or time.monotonic() - self._last_commit > GROUP_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Sync the data, then append their receipts and sync those."""
        if not self._waiting:
            return
        sync_all(self._unsynced, self.data)
        with self.path.open("a") as file:
            file.writelines(receipt.to_line() for receipt in self._waiting)
        sync(self.path)
        self._waiting, self._unsynced, self._last_commit = [], [], time.monotonic()
