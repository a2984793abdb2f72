"""Records of workers: a receipt for each finished block, and a line for each failure."""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import socket
import time
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from unetcli.core.files import Place, sync, sync_all
from unetcli.core.records import MAX_DIGITS, decoded, parse_json

GROUP_SECONDS, GROUP_BLOCKS = 1.0, 64
"""Limits of a group of receipts that are synced to disk together."""
DONE, VOID = "done", "void"
BYTES_AT_ONCE = 2**22
"""Bytes of a receipts file that are parsed together, so that memory does not grow with the number of lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Record that a block is complete, with its attempt, checksum, cost and host."""

    block: int
    attempt: int
    state: str
    """``done``, or ``void`` if earlier attempts have to be recomputed."""
    checksum: str = "-"
    """XXH3 (128 bits, hexadecimal) of the decoded voxels, clipped to the volume, in C order; ``-`` when void."""
    tile: int = 0
    """Side of the tile used: the plan's, or a smaller one that fits into memory; 0 if the whole block was skipped."""
    read_seconds: float = 0.0
    forward_seconds: float = 0.0
    write_seconds: float = 0.0
    device: str = "-"
    host: str
    job: str

    def to_line(self) -> str:
        """Format the receipt: fields separated by spaces, followed by the CRC-32 of the line before it.

        >>> receipt = Receipt(block=3, attempt=1, state="done", checksum=16 * "a1", tile=572,
        ...     read_seconds=0.1, forward_seconds=2.0, write_seconds=0.03, device="cpu", host="node1", job="-")
        >>> receipt.to_line()
        '3 1 done a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1 572 0.100 2.000 0.030 cpu node1 - 961ae6e8\\n'
        >>> Receipt.from_line(receipt.to_line()) == receipt
        True
        """
        words = [f"{v:.3f}" if isinstance(v, float) else str(v).replace(" ", "_") for v in astuple(self)]
        body = " ".join(words)
        return f"{body} {zlib.crc32(body.encode()):08x}\n"

    @classmethod
    def from_line(cls, line: str) -> Receipt | None:
        """Parse a receipt; return None for a line that a crash left incomplete, or that no worker writes."""
        if _words(line.encode()) is None:
            return None
        words = line.rstrip("\n").split(" ")[:-1]
        try:
            return cls(**{name: kind(word) for (name, kind), word in zip(_TYPES.items(), words, strict=True)})
        except ValueError:
            return None


_TYPES = {field.name: {"int": int, "float": float, "str": str}[str(field.type)] for field in fields(Receipt)}
MAX_ATTEMPT = 2**30
"""Attempts are counted in int32."""
CHECKSUM = re.compile(rb"[0-9a-f]{32}")


class Ledger:
    """State of each block according to the receipts, as arrays; a refresh reads only lines appended since the last.

    The receipt with the highest attempt is valid, whether done or void. Designed for runs of 10^6 blocks and more.
    """

    def __init__(self, folder: Path, blocks: int) -> None:
        self.folder = folder
        self.attempts = np.zeros(blocks, np.int32)
        self.done = np.zeros(blocks, np.bool_)
        self.checksums = np.zeros(blocks, "V16")
        """Checksum of each block, 16 bytes."""
        self.host = np.full(blocks, -1, np.int32)
        """Index into ``hosts`` of the host that computed the block; -1: none."""
        self.lines = 0
        """Number of receipts read so far; larger than the number of blocks if some were recomputed."""
        self._numbers: dict[bytes, int] = {}
        self._offsets: dict[str, int] = {}

    @property
    def missing(self) -> NDArray[np.intp]:
        """Blocks without a valid receipt, in ascending order."""
        return np.flatnonzero(~self.done)

    @property
    def complete(self) -> bool:
        return bool(self.done.all())

    def checksum(self, block: int) -> str:
        """Return the checksum in the receipt of a block, 32 hexadecimal digits."""
        stored: bytes = self.checksums[block].tobytes()
        return stored.hex()

    def refresh(self) -> Self:
        """Read the receipts appended since the last refresh."""
        with os.scandir(self.folder) as entries:
            files = (entry for entry in entries if entry.name.endswith(".txt") and entry.is_file())
            sizes = {entry.path: entry.stat().st_size for entry in files}
        if not self._offsets.keys() <= sizes.keys():
            self._clear()  # the run was started over
        for path in sorted(path for path, size in sizes.items() if size > self._offsets.get(path, 0)):
            self._read(path)
        return self

    def _clear(self) -> None:
        self.attempts[:], self.done[:], self.checksums[:], self.host[:] = 0, False, np.zeros((), "V16"), -1
        self._offsets.clear()

    def _read(self, path: str) -> None:
        with open(path, "rb") as file:  # noqa: PTH123 - a path for each of many files is slow
            file.seek(self._offsets.get(path, 0))
            while lines := [line for line in file.readlines(BYTES_AT_ONCE) if line.endswith(b"\n")]:
                self._offsets[path] = self._offsets.get(path, 0) + sum(map(len, lines))
                self._apply(lines)

    def _apply(self, lines: Iterable[bytes]) -> None:
        rows = [row for row in map(_words, lines) if row is not None and row[0] < len(self.done)]
        if not rows:
            return
        self.lines += len(rows)
        # Among equal attempts the last line is valid, and void takes precedence: in this order, later rows overwrite.
        rows.sort(key=lambda row: (row[1], row[2] == b"void"))
        blocks, attempts, states, sums, hosts = zip(*rows, strict=True)
        numbers, tried = np.array(blocks), np.array(attempts, np.int32)
        newer = tried >= self.attempts[numbers]
        numbers = numbers[newer]
        self.attempts[numbers] = tried[newer]
        self.done[numbers] = (np.array(states) == b"done")[newer]
        self.checksums[numbers] = np.frombuffer(b"".join(map(_bytes, sums)), "V16")[newer]
        self.host[numbers] = np.array([self._numbers.setdefault(host, len(self._numbers)) for host in hosts])[newer]

    def computed_on(self, host: str) -> NDArray[np.bool_]:
        """Return a mask of the blocks whose valid receipt is from a host."""
        found: NDArray[np.bool_] = self.host == self._numbers.get(host.replace(" ", "_").encode(), -2)
        return found

    @property
    def hosts(self) -> list[str]:
        """Names of the hosts that ``host`` refers to."""
        return [name.decode(errors="replace") for name in self._numbers]


def _words(line: bytes) -> tuple[int, int, bytes, bytes, bytes] | None:
    """Parse block, attempt, state, checksum and host of a line; return None if no worker writes such a line.

    Lines are incomplete after a crash. A line whose values cannot be those of a receipt is ignored although its CRC is
    right: its block counts as missing and is computed again.
    """
    body, _, crc = line.rstrip(b"\n").rpartition(b" ")
    words = body.split(b" ")
    if len(words) != len(_TYPES) or crc != b"%08x" % zlib.crc32(body):
        return None
    block, attempt, state, checksum = words[:4]
    if not (block.isdigit() and attempt.isdigit() and len(block) < MAX_DIGITS and len(attempt) < MAX_DIGITS):
        return None
    if int(attempt) > MAX_ATTEMPT or state not in _STATES or (state == b"done" and not CHECKSUM.fullmatch(checksum)):
        return None
    return int(block), int(attempt), state, checksum, words[9]


_STATES = {DONE.encode(), VOID.encode()}


def _bytes(checksum: bytes) -> bytes:
    return bytes.fromhex(checksum.decode()) if CHECKSUM.fullmatch(checksum) else bytes(16)


def worker_name() -> str:
    """Return the name of this process's files in run folders; one set of files serves any number of calls."""
    return _worker_name(os.getpid())


@functools.cache
def _worker_name(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}-{secrets.token_hex(4)}"


def _ends_whole(file: BinaryIO) -> bool:
    """Return whether the last line of a file is complete, which it is not after a full disk."""
    if not file.seek(0, os.SEEK_END):
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


class ReceiptBook:
    """Writes receipts to a file of this process in ``folder``; all books of a process share the file.

    The blocks' files, all below ``data``, are synced to disk before their receipts are written. A thread does both, one
    group after the other, so that the next blocks are computed meanwhile; everything is on disk when the book is left.
    """

    def __init__(self, folder: Path, data: Place) -> None:
        self.data = Path(data)  # files of a remote store are never synced
        self.path = folder / f"{worker_name()}.txt"
        self._waiting: list[Receipt] = []
        self._unsynced: list[Path] = []
        self._last_commit = time.monotonic()
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_: object) -> None:
        with self._thread:
            self.flush()

    def add(self, receipt: Receipt, written: Iterable[Path] = ()) -> None:
        """Add the receipt of a block whose files are ``written``; it is stored with the next group.

        An error of the group before is raised here or when the book is left.
        """
        self._waiting.append(receipt)
        self._unsynced += written
        if len(self._waiting) >= GROUP_BLOCKS or time.monotonic() - self._last_commit > GROUP_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Begin to sync the data and to append their receipts, once the group before is on disk."""
        self._wait()
        if self._waiting:
            self._writing = self._thread.submit(self._write, self._waiting, self._unsynced)
            self._waiting, self._unsynced, self._last_commit = [], [], time.monotonic()

    def flush(self) -> None:
        """Store all receipts, and wait until they are on disk."""
        self.commit()
        self._wait()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, receipts: list[Receipt], files: list[Path]) -> None:
        """Sync the data, then append their receipts and sync those."""
        sync_all(files, self.data)
        with self.path.open("a+b") as file:
            lines = "".join(receipt.to_line() for receipt in receipts).encode()
            file.write(lines if _ends_whole(file) else b"\n" + lines)
        sync(self.path)


UNUSABLE, FAILED = "unusable", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFailure:
    """The failure of a block, which therefore has no receipt."""

    block: int
    place: str
    kind: str
    """``unusable`` if the input is damaged or not finite, else ``failed``."""
    reason: str
    traceback: str
    host: str
    job: str

    def note(self) -> dict[str, Any]:
        """Return the fields that a summary reports."""
        return {"block": self.block, "place": self.place, "reason": self.reason}


class FailureBook:
    """Writes failures to a file of this process, created with the first failure."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{worker_name()}.jsonl"

    def add(self, failure: BlockFailure) -> None:
        """Append a failure to the file."""
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(failure)) + "\n")


def read_failures(folder: Path) -> Iterator[BlockFailure]:
    """Read every recorded failure, files in order of their last change; incomplete lines are skipped."""
    files = (path for path in folder.glob("*.jsonl") if path.is_file())
    for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name)):
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                yield decoded(BlockFailure, parse_json(line))


def current_failures(folder: Path, ledger: Ledger) -> list[BlockFailure]:
    """Return the last failure of each block that has no receipt."""
    last, missing = {failure.block: failure for failure in read_failures(folder)}, set(ledger.missing.tolist())
    return [failure for block, failure in sorted(last.items()) if block in missing]
