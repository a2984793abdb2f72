"""How long hosts take for a block, from the ends of their receipts files: however long the run, little is read."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unetcli.engine.receipts import DONE, Receipt

TAIL_BYTES, FILES_PER_HOST = 4096, 2
"""Read to time a host: the last 30 blocks or so of its newest receipts files, however long the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPace:
    """What one host did, and how long it took lately."""

    host: str
    blocks: int
    """Done in all."""
    seconds_per_block: float
    """Mean over its last blocks, all stages together; they overlap, so that blocks may come faster."""
    read_seconds: float
    forward_seconds: float
    write_seconds: float


def host_paces(receipts: Path, blocks: Mapping[str, int]) -> list[HostPace]:
    """How long each host took for its last blocks, the slowest first; ``blocks``: how many it did in all."""
    last: dict[str, list[Receipt]] = {}
    for receipt in recent_receipts(receipts):
        if receipt.state == DONE and receipt.tile:  # a block that was skipped says nothing
            last.setdefault(receipt.host, []).append(receipt)
    paces = [_pace_of(host, found, blocks.get(host, 0)) for host, found in last.items()]
    return sorted(paces, key=lambda pace: -pace.seconds_per_block)


def recent_receipts(folder: Path) -> Iterator[Receipt]:
    """The last few of each host."""
    newest: dict[str, list[tuple[float, str]]] = {}
    with os.scandir(folder) as entries:
        for entry in (entry for entry in entries if entry.name.endswith(".txt")):
            host = entry.name.rsplit("-", 2)[0]
            files = newest.setdefault(host, [])
            files.append((entry.stat().st_mtime, entry.path))
            files.sort(reverse=True)
            del files[FILES_PER_HOST:]
    for _, path in itertools.chain(*newest.values()):
        with open(path, "rb") as file:  # noqa: PTH123 - a path for each of many files is slow
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).decode(errors="replace").splitlines()
        yield from filter(None, map(Receipt.from_line, lines))  # the first may be cut: no receipt


def _pace_of(host: str, receipts: Sequence[Receipt], blocks: int) -> HostPace:
    stages = [
        round(statistics.fmean(getattr(receipt, f"{stage}_seconds") for receipt in receipts), 3)
        for stage in ("read", "forward", "write")
    ]
    return HostPace(
        host=host,
        blocks=blocks,
        seconds_per_block=round(sum(stages), 3),
        read_seconds=stages[0],
        forward_seconds=stages[1],
        write_seconds=stages[2],
    )
