"""What the blocks of a run made, read back and compared with their receipts; what all kinds of runs have in common."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import one_line
from unetcli.core.files import Place
from unetcli.engine.keeping import void_receipt
from unetcli.engine.receipts import Ledger, ReceiptBook
from unetcli.engine.rounds import Report
from unetcli.engine.runfolder import RunFolder

READ_BYTES = 2**30
"""About the most that is held of blocks that are being read back."""
COPIES = 3
"""Of a block while it is decoded, put in order and summed up."""
MISSING, OTHER = "no receipt", "other content than its receipt says"


def quiet(done: int, total: int) -> None:
    """Tells nobody of progress."""


class Made(Protocol):
    """What the blocks of a run made."""

    @property
    def block_bytes(self) -> int:
        """Of the largest block, about."""
        ...

    def kept(self, ledger: Ledger) -> NDArray[np.bool_]:
        """The blocks that what they made is still there of, or has to be: all, where nothing is ever deleted."""
        return np.ones(len(ledger.done), np.bool_)

    def checksum(self, number: int) -> str:
        """Of what is stored, as the receipt has it; raises where that is damaged."""
        ...

    def place(self, number: int) -> str:
        """Of a block, for people."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A block that is not what was computed."""

    block: int
    place: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """How many blocks were read back, and what is wrong with which."""

    checked: int = 0
    damaged: dict[int, str] = field(default_factory=dict)
    repaired: dict[int, str] = field(default_factory=dict)


def find_damage(made: Made, ledger: Ledger, report: Report = quiet) -> Findings:
    """Read every block back; a block that is made anew meanwhile is looked at once more."""
    attempts, there = ledger.attempts.copy(), np.flatnonzero(ledger.done & made.kept(ledger))
    damaged = dict(damage_of(made, ledger, there, report))
    ledger.refresh()
    remade = [number for number in damaged if ledger.attempts[number] != attempts[number]]
    for number in remade:
        del damaged[number]
    damaged |= damage_of(made, ledger, [number for number in remade if ledger.done[number]])
    damaged |= {int(number): MISSING for number in ledger.missing}
    return Findings(checked=len(there), damaged=damaged)


def without_missing(found: Findings) -> Findings:
    """Damage alone, where it is no matter that blocks are not made yet."""
    return replace(found, damaged={number: what for number, what in found.damaged.items() if what != MISSING})


def damage_of(made: Made, ledger: Ledger, blocks: Iterable[int], report: Report = quiet) -> Iterator[tuple[int, str]]:
    """Blocks that are not what their receipts say, and how; several are read at a time."""
    numbers, readers = [int(number) for number in blocks], reading_at_once(made.block_bytes)
    waiting: deque[tuple[int, Future[str | None]]] = deque()
    with ThreadPoolExecutor(readers) as pool:
        try:
            for place in range(len(numbers) + readers):
                if place < len(numbers):
                    waiting.append((numbers[place], pool.submit(damage, made, ledger, numbers[place])))
                if place >= readers and waiting:
                    number, future = waiting.popleft()
                    if (what := future.result()) is not None:
                        yield number, what
                    report(place - readers + 1, len(numbers))
        finally:
            pool.shutdown(cancel_futures=True)


def reading_at_once(block_bytes: int) -> int:
    """Threads that read: one per core, fewer where blocks are large."""
    return max(1, min(len(os.sched_getaffinity(0)), READ_BYTES // (COPIES * max(block_bytes, 1))))


def damage(made: Made, ledger: Ledger, number: int) -> str | None:
    """What is wrong with a block; None: nothing."""
    try:
        found = made.checksum(number)
    except MemoryError:
        raise
    except Exception as error:  # codecs raise what they like
        return f"unreadable ({one_line(error)})"
    return None if found == ledger.checksum(number) else OTHER


def look_again(made: Made, ledger: Ledger, before: Findings) -> Findings:
    """What is still damaged of what was, and what is not."""
    again = [number for number in before.damaged if ledger.done[number] and made.kept(ledger)[number]]
    still = dict(damage_of(made, ledger, again)) | {int(number): MISSING for number in ledger.missing}
    mended = {number: what for number, what in before.damaged.items() if number not in still}
    return Findings(checked=before.checked, damaged=still, repaired=mended)


def void(folder: RunFolder, data: Place, ledger: Ledger, blocks: Iterable[int]) -> None:
    """Take back the receipts of blocks, all of whose data are below ``data``; on disk when this returns."""
    with ReceiptBook(folder.receipts, data) as book:
        for number in blocks:
            if ledger.done[number]:
                book.add(void_receipt(number, int(ledger.attempts[number]) + 1))


def named(made: Made, damaged: dict[int, str]) -> list[Damage]:
    """Damage with its place, in the order of the blocks."""
    return [Damage(block=number, place=made.place(number), what=what) for number, what in sorted(damaged.items())]


Drain = Callable[[], Callable[[], bool]]
"""From now on a signal asks for an orderly end; the function returned says whether it came."""
