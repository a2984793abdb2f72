"""How long a plan takes: shares, worker-hours, and what many workers at once ask of the file system."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unetcli.planning.estimate import Estimate
from unetcli.planning.plan import Settings

STARTUP_SECONDS = 20.0
"""Of a worker, until its first block is at work: Python, torch and the model over a shared file system."""
STARTUP_FRACTION = 0.02
"""The most of a share that start-up may cost."""
MOST_SHARES = 1000
"""Where the number of workers is not said: SLURM's own limit for one array is 1,001 (MaxArraySize)."""
SHARES_PER_WORKER = 20
"""More would balance no better: the last share to end is a twentieth of a worker's time."""

BYTES_PER_SECOND = 50e9
"""Typical of a large parallel file system (Lustre, GPFS), all clients together; for reading, and for writing."""
OPERATIONS_PER_SECOND = 20_000.0
"""Opens, creates and renames that its metadata servers do, all clients together."""
NOMINAL = {"cpu": {"float32": 5e10, "bfloat16": 1e11}, "cuda": {"float32": 3e13, "bfloat16": 2e14}}
"""Multiply-adds per second (of a CPU: per thread) of fast hardware; sizes shares where nothing was measured. Too fast
a guess only makes shares longer, and start-up cost less of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How fast one worker is, and who says so."""

    tile_seconds: float
    """One forward pass of the plan's whole tile."""
    read_bytes_per_second: float | None = None
    """Of decoded input chunks."""
    write_bytes_per_second: float | None = None
    """Of results before compression."""
    origin: str


def forward_seconds(estimate: Estimate, rates: Rates) -> float:
    """Of all blocks on one worker; tiles cut short take their part of a whole one."""
    return rates.tile_seconds * estimate.multiply_adds / estimate.tile_multiply_adds


def seconds_per_block(estimate: Estimate, rates: Rates, device: str) -> float:
    """Mean time of a block. On a GPU the longest of the three stages counts; on a CPU they share the cores, so all do.

    A rate that is not known takes no time: it is hidden behind the network, or so we hope.
    """
    stages = [forward_seconds(estimate, rates)]
    for amount, rate in (
        (estimate.input_bytes, rates.read_bytes_per_second),
        (estimate.output_bytes, rates.write_bytes_per_second),
    ):
        stages.append(amount / rate if rate else 0.0)
    return (sum(stages) if device == "cpu" else max(stages)) / estimate.blocks


def nominal_rates(estimate: Estimate, device: str, precision: str, threads: int) -> Rates:
    """Those of fast hardware: only good to size shares."""
    speed = NOMINAL["cpu" if device == "cpu" else "cuda"][precision] * (threads if device == "cpu" else 1)
    return Rates(tile_seconds=estimate.tile_multiply_adds / speed, origin="nominal")


def blocks_per_share(seconds_per_block: float, startup_seconds: float = STARTUP_SECONDS) -> int:
    """Blocks that one worker job needs at least so that its start-up costs no more than 2 % of it.

    >>> blocks_per_share(10.0, startup_seconds=20.0)
    98
    """
    return max(1, math.ceil(startup_seconds * (1 / STARTUP_FRACTION - 1) / seconds_per_block - 1e-9))


def share_count(blocks: int, at_least: int, workers: int | None = None, forced: int | None = None) -> int:
    """Number of shares: each ``forced`` blocks, else ``at_least`` so many, but not far more shares than are of use.

    A worker asked for gets a share, though its start-up may then cost more.

    >>> share_count(10_000, 98), share_count(100, 98, workers=4), share_count(100, 98, forced=30)
    (102, 4, 4)
    """
    if forced is not None:
        return math.ceil(blocks / forced)
    most = MOST_SHARES if workers is None else SHARES_PER_WORKER * workers
    return min(blocks, max(blocks // at_least, workers or 1, 1), most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How the blocks are shared out, and how long that takes where rates are known."""

    shares: int
    seconds_per_block: float | None
    worker_seconds: float | None
    """Of the whole run on one worker, with the start-up of each share."""


def timing(
    estimate: Estimate, settings: Settings, rates: Rates | None, workers: int | None, forced: int | None
) -> Timing:
    """Shares and time; without rates shares are sized for fast hardware, and the time is not known."""
    sizing = rates or nominal_rates(estimate, settings.device, settings.precision, settings.threads)
    per_block = seconds_per_block(estimate, sizing, settings.device)
    shares = share_count(estimate.blocks, blocks_per_share(per_block), workers, forced)
    if rates is None:
        return Timing(shares=shares, seconds_per_block=None, worker_seconds=None)
    total = estimate.blocks * per_block + shares * STARTUP_SECONDS
    return Timing(shares=shares, seconds_per_block=per_block, worker_seconds=total)


@dataclass(frozen=True, slots=True)
class Link:
    """One thing that all workers share: how much of it the whole run takes."""

    name: str
    amount: float
    limit: float
    """Per second, typical."""
    unit: str
    remedy: str

    @property
    def seconds(self) -> float:
        """What this link alone takes, however many workers there are."""
        return self.amount / self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What a number of workers ask of their file system together."""

    workers: int
    network_seconds: float | None
    """Of the run if nothing but the workers held it up; None where their speed is not known."""
    links: tuple[Link, ...]
    receipts: int
    receipts_bytes: int

    @property
    def weakest(self) -> Link:
        """Of what they share, that which takes longest."""
        return max(self.links, key=lambda link: link.seconds)

    @property
    def network_is_weakest(self) -> bool | None:
        """None where the workers' speed is not known."""
        return None if self.network_seconds is None else self.network_seconds >= self.weakest.seconds

    @property
    def seconds(self) -> float | None:
        """Of the run, at best."""
        return None if self.network_seconds is None else max(self.network_seconds, self.weakest.seconds)

    def per_second(self, amount: float) -> float | None:
        """What the workers would take per second if nothing held them up."""
        return None if self.network_seconds is None else amount / self.network_seconds

    def to_dict(self) -> dict[str, Any]:
        reading, writing, files = self.links
        return {
            "workers": self.workers,
            "seconds": self.seconds,
            "read_bytes_per_second": self.per_second(reading.amount),
            "write_bytes_per_second": self.per_second(writing.amount),
            "file_operations_per_second": self.per_second(files.amount),
            "receipts_per_second": self.per_second(self.receipts),
            "receipts_bytes": self.receipts_bytes,
            "read_bytes": reading.amount,
            "write_bytes": writing.amount,
            "file_operations": files.amount,
            "limits": {link.name: link.limit for link in self.links},
            "least_seconds": {link.name: link.seconds for link in self.links},
            "weakest_link": "network" if self.network_is_weakest else self.weakest.name,
        }


def traffic(estimate: Estimate, workers: int, worker_seconds: float | None) -> Traffic:
    """The traffic of that many workers; ``worker_seconds`` is what the run would take one of them."""
    operations = estimate.input_chunks + 2 * estimate.output_files  # an open; a create and a rename
    links = (
        Link("reading", estimate.input_bytes, BYTES_PER_SECOND, "bytes", "a larger tile reads less twice"),
        Link("writing", estimate.output_bytes, BYTES_PER_SECOND, "bytes", "--dtype uint8 writes least"),
        Link("file operations", operations, OPERATIONS_PER_SECOND, "", "larger chunks or shards need fewer"),
    )
    return Traffic(
        workers=workers,
        network_seconds=None if worker_seconds is None else worker_seconds / min(workers, estimate.blocks),
        links=links,
        receipts=estimate.blocks,
        receipts_bytes=estimate.receipts_bytes,
    )
