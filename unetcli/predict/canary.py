"""Whether this host computes what others computed: one finished block of another host, once more, and compared."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import publish
from unetcli.core.geometry import Box
from unetcli.engine.receipts import Ledger
from unetcli.engine.runfolder import RunFolder
from unetcli.planning.plan import Plan, Settings
from unetcli.volumes.volume import Volume

if TYPE_CHECKING:
    from unetcli.predict.predictor import FinishedBlock, Predictor
    from unetcli.predict.skipping import Mask

log = logging.getLogger(__name__)

CANDIDATES = 4
"""Blocks of others that are tried, until one can be compared."""
TOLERANCE = {"uint8": 1.0, "float16": 1e-3, "float32": 2e-5}
"""Largest difference that other hardware may make in what is stored, by its type."""
BFLOAT16_TOLERANCE = 0.05
"""The same in probability for a network run in bfloat16, whose every layer rounds to 8 bits."""


class Predicting(Protocol):
    """A prediction whose blocks can be read back and computed again."""

    @property
    def folder(self) -> RunFolder: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def mask(self) -> Mask | None: ...
    @property
    def source(self) -> Volume: ...
    @property
    def predictor(self) -> Predictor: ...

    def predict(self, blocks: Iterable[int]) -> Generator[FinishedBlock]: ...
    def read(self, box: Box) -> NDArray[Any]: ...


def require_same_results(step: Predicting) -> None:
    """Recompute a block that another host finished; once per host and run.

    Raises
    ------
    UnetcliError
        This host's result differs by more than hardware explains: nothing of it may go into the output.
    """
    host = socket.gethostname()
    record = step.folder.canaries / f"{host}.json"
    candidates = blocks_of_others(step, host)
    if not candidates or record.exists():
        return
    compared = ((block, largest_difference(step, block)) for block in candidates)
    block, difference = next((pair for pair in compared if pair[1] is not None), (-1, None))
    if difference is None:
        return
    other = step.ledger.hosts[step.ledger.host[block]]
    if not difference <= tolerance(step.plan.settings):  # so that NaN is refused too
        raise UnetcliError(
            f"host {host}: computes block {block} differently from {other} (by {difference:g}, "
            f"{tolerance(step.plan.settings):g} is allowed); other libraries or a broken device? its share is refused"
        )
    publish(record, json.dumps({"block": block, "host": other, "difference": difference}))
    log.debug("%s computes block %d as %s did (difference %g)", host, block, other, difference)


def blocks_of_others(step: Predicting, host: str) -> list[int]:
    """A few finished blocks that this host did not make, far apart: one may be damaged, or skipped."""
    others = np.flatnonzero((step.ledger.done & ~step.ledger.made_by(host))[: step.plan.blocks])
    places = np.unique(np.linspace(0, len(others) - 1, min(CANDIDATES, len(others)), dtype=np.intp))
    return [int(block) for block in others[places]]


def largest_difference(step: Predicting, number: int) -> float | None:
    """Between what is stored of a block and what comes out here; None where one cannot be had, or all is skipped."""
    with closing(step.predict([number])) as blocks:
        block = next(blocks)
    if block.values is None or block.tile == 0:
        return None
    try:
        stored = step.read(block.block.box)
    except Exception as error:  # codecs raise what they like; a damaged block is not this host's fault
        log.warning("block %d cannot be read back: %s; verify tells more", number, error)
        return None
    return float(np.abs(stored.astype(np.float64) - block.values.astype(np.float64)).max())


def tolerance(settings: Settings) -> float:
    """Largest difference of stored values that is allowed between hosts."""
    if settings.precision == "bfloat16":
        return BFLOAT16_TOLERANCE * (255 if settings.dtype == "uint8" else 1)
    return TOLERANCE[settings.dtype]
