"""A block that a step of a run makes: vouched for with a receipt, or its failure put on record."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

from unetcli.core.errors import UnreadableBlock, one_line
from unetcli.core.files import UNWRITABLE
from unetcli.core.lock import job_id
from unetcli.engine.pyramid import Built
from unetcli.engine.receipts import DONE, VOID, Receipt, ReceiptBook
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.troubles import FAILED, UNUSABLE, Trouble, TroubleBook


def keep(make: Callable[[], Built], number: int, attempt: int, place: str, run: RunFolder, book: ReceiptBook) -> bool:
    """Make one block; a failure is put on record, and others go on unless they would fail too."""
    started = time.perf_counter()
    try:
        built = make()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise
        TroubleBook(run.troubles).add(_trouble(number, place, error))
        return False
    book.add(_receipt(number, attempt, built.checksum, time.perf_counter() - started), built.files)
    return True


def void_receipt(block: int, attempt: int) -> Receipt:
    """Says that the block is to be made anew."""
    return Receipt(
        block=block,
        attempt=attempt,
        state=VOID,
        checksum="-",
        tile=0,
        read_seconds=0.0,
        forward_seconds=0.0,
        write_seconds=0.0,
        device="-",
        host=socket.gethostname(),
        job=job_id(),
    )


def _receipt(number: int, attempt: int, checksum: str, seconds: float) -> Receipt:
    void = void_receipt(number, attempt)
    return replace(void, state=DONE, checksum=checksum, write_seconds=seconds, device="cpu")


def _trouble(number: int, place: str, error: Exception) -> Trouble:
    return Trouble(
        block=number,
        place=place,
        kind=UNUSABLE if isinstance(error, UnreadableBlock) else FAILED,
        reason=one_line(error, kind=True),
        traceback="".join(traceback.format_exception(error)),
        host=socket.gethostname(),
        job=job_id(),
    )
