"""Whether this host computes what others computed: one finished block of another host, once more, and compared."""

from __future__ import annotations

import json
import logging
import socket

import numpy as np

from unetcli.errors import UnetcliError
from unetcli.files import publish
from unetcli.plan import Choices
from unetcli.workbench import Workbench

log = logging.getLogger(__name__)

TOLERANCE = {"uint8": 1.0, "float16": 1e-3, "float32": 2e-5}
"""Largest difference that other hardware may make in what is stored, by its type."""
BFLOAT16_TOLERANCE = 0.05
"""The same in probability for a network run in bfloat16, whose every layer rounds to 8 bits."""


def require_same_results(bench: Workbench) -> None:
    """Recompute a block that another host finished; once per host and run.

    Raises
    ------
    UnetcliError
        This host's result differs by more than hardware explains: nothing of it may go into the output.
    """
    host = socket.gethostname()
    record = bench.folder.canaries / f"{host}.json"
    block = block_of_another(bench, host)
    if block is None or record.exists():
        return
    difference = largest_difference(bench, block)
    if difference is None:
        return
    other = bench.ledger.hosts[bench.ledger.host[block]]
    if difference > tolerance(bench.plan.choices):
        raise UnetcliError(
            f"host {host}: computes block {block} differently from {other} (by {difference:g}, "
            f"{tolerance(bench.plan.choices):g} is allowed); other libraries or a broken device? its share is refused"
        )
    publish(record, json.dumps({"block": block, "host": other, "difference": difference}))
    log.debug("%s computes block %d as %s did (difference %g)", host, block, other, difference)


def block_of_another(bench: Workbench, host: str) -> int | None:
    """The first finished block that this host did not make."""
    mine = bench.ledger.hosts.index(host) if host in bench.ledger.hosts else -2
    others = np.flatnonzero(bench.ledger.done & (bench.ledger.host != mine))
    return int(others[0]) if len(others) else None


def largest_difference(bench: Workbench, number: int) -> float | None:
    """Between what is stored of a block and what comes out here; None where it cannot be computed or read."""
    block = next(bench.predict([number]))
    if block.values is None:
        return None
    stored = bench.output.read(bench.plan.output_box(block.block))
    return float(np.abs(stored.astype(np.float64) - block.values.astype(np.float64)).max())


def tolerance(choices: Choices) -> float:
    """Largest difference of stored values that is allowed between hosts."""
    if choices.precision == "bfloat16":
        return BFLOAT16_TOLERANCE * (255 if choices.dtype == "uint8" else 1)
    return TOLERANCE[choices.dtype]
