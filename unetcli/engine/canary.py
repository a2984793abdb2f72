"""Whether this host computes what others computed: one finished block of another host, once more, and compared."""

from __future__ import annotations

import json
import logging
import socket
from contextlib import closing

import numpy as np

from unetcli.core.errors import UnetcliError
from unetcli.core.files import publish
from unetcli.engine.workbench import Workbench
from unetcli.planning.plan import Choices

log = logging.getLogger(__name__)

CANDIDATES = 4
"""Blocks of others that are tried, until one can be compared."""
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
    candidates = blocks_of_others(bench, host)
    if not candidates or record.exists():
        return
    compared = ((block, largest_difference(bench, block)) for block in candidates)
    block, difference = next((pair for pair in compared if pair[1] is not None), (-1, None))
    if difference is None:
        return
    other = bench.ledger.hosts[bench.ledger.host[block]]
    if not difference <= tolerance(bench.plan.choices):  # so that NaN is refused too
        raise UnetcliError(
            f"host {host}: computes block {block} differently from {other} (by {difference:g}, "
            f"{tolerance(bench.plan.choices):g} is allowed); other libraries or a broken device? its share is refused"
        )
    publish(record, json.dumps({"block": block, "host": other, "difference": difference}))
    log.debug("%s computes block %d as %s did (difference %g)", host, block, other, difference)


def blocks_of_others(bench: Workbench, host: str) -> list[int]:
    """A few finished blocks that this host did not make, far apart: one may be damaged, or skipped."""
    others = np.flatnonzero(bench.ledger.done & ~bench.ledger.made_by(host))
    places = np.unique(np.linspace(0, len(others) - 1, min(CANDIDATES, len(others)), dtype=np.intp))
    return [int(block) for block in others[places]]


def largest_difference(bench: Workbench, number: int) -> float | None:
    """Between what is stored of a block and what comes out here; None where one cannot be had, or all is skipped."""
    with closing(bench.predict([number])) as blocks:
        block = next(blocks)
    if block.values is None or block.tile == 0:
        return None
    try:
        stored = bench.output.read(bench.plan.output_box(block.block))
    except Exception as error:  # codecs raise what they like; a damaged block is not this host's fault
        log.warning("block %d cannot be read back: %s; verify tells more", number, error)
        return None
    return float(np.abs(stored.astype(np.float64) - block.values.astype(np.float64)).max())


def tolerance(choices: Choices) -> float:
    """Largest difference of stored values that is allowed between hosts."""
    if choices.precision == "bfloat16":
        return BFLOAT16_TOLERANCE * (255 if choices.dtype == "uint8" else 1)
    return TOLERANCE[choices.dtype]
