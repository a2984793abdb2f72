"""Duration of a plan: rates, the shares that follow, and the load of the file system. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unetcli.planning.estimate import Estimate
from unetcli.planning.plan import Settings

STARTUP_SECONDS = 20.0
"""Seconds until a worker starts its first block: it loads Python, torch and the model from a shared file system."""
STARTUP_FRACTION = 0.02
"""Largest fraction of a share's time that may be spent on start-up."""
MOST_SHARES = 1000
"""Maximum number of shares if no number of workers is given. SLURM's default for one array is 1,001 (MaxArraySize)."""
SHARES_PER_WORKER = 20
"""More shares would not balance better: the last share to end already takes only 1/20 of a worker's time."""

BYTES_PER_SECOND = 50e9
"""Typical bandwidth of a large parallel file system (Lustre, GPFS) over all clients, reading or writing."""
OPERATIONS_PER_SECOND = 20_000.0
"""Typical number of opens, creates and renames per second on such a file system, over all clients."""
NOMINAL = {"cpu": {"float32": 5e10, "bfloat16": 1e11}, "cuda": {"float32": 3e13, "bfloat16": 2e14}}
"""Multiply-adds per second of fast hardware (per thread on a CPU), used to size shares where nothing was measured.
Too fast a guess only makes shares longer, so that start-up is a smaller part of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Speed of one worker, and where the numbers come from."""

    tile_seconds: float
    """Seconds of one forward pass of a tile of the plan's full size."""
    read_bytes_per_second: float | None = None
    """Decoded input bytes per second; None if unknown."""
    write_bytes_per_second: float | None = None
    """Output bytes per second, counted before compression; None if unknown."""
    origin: str


def forward_seconds(estimate: Estimate, rates: Rates) -> float:
    """Seconds of all forward passes on one worker; a smaller tile counts in proportion to its multiply-adds."""
    return rates.tile_seconds * estimate.multiply_adds / estimate.tile_multiply_adds


def seconds_per_block(estimate: Estimate, rates: Rates, device: str) -> float:
    """Mean seconds per block.

    On a GPU reading, forward passes and writing overlap, so the longest of the three counts. On a CPU they share the
    cores, so their sum counts. An unknown rate counts as no time.
    """
    stages = [forward_seconds(estimate, rates)]
    for amount, rate in (
        (estimate.input_bytes, rates.read_bytes_per_second),
        (estimate.output_bytes, rates.write_bytes_per_second),
    ):
        stages.append(amount / rate if rate else 0.0)
    return (sum(stages) if device == "cpu" else max(stages)) / estimate.blocks


def nominal_rates(estimate: Estimate, device: str, precision: str, threads: int) -> Rates:
    """Rates of fast hardware, for sizing shares only."""
    speed = NOMINAL["cpu" if device == "cpu" else "cuda"][precision] * (threads if device == "cpu" else 1)
    return Rates(tile_seconds=estimate.tile_multiply_adds / speed, origin="nominal")


def blocks_per_share(seconds_per_block: float, startup_seconds: float = STARTUP_SECONDS) -> int:
    """Smallest number of blocks per job that keeps its start-up at or below 2 % of its time.

    >>> blocks_per_share(10.0, startup_seconds=20.0)
    98
    """
    return max(1, math.ceil(startup_seconds * (1 / STARTUP_FRACTION - 1) / seconds_per_block - 1e-9))


def share_count(blocks: int, at_least: int, workers: int | None = None, forced: int | None = None) -> int:
    """Number of shares that the blocks are divided into.

    Parameters
    ----------
    blocks : blocks of the plan
    at_least : blocks
        Smallest size of a share, see :func:`blocks_per_share`. Shares are smaller if there would otherwise be fewer
        shares than workers.
    workers : optional
        Workers that run at once. Each gets a share, and at most ``SHARES_PER_WORKER`` shares. Default: unknown, and
        at most ``MOST_SHARES`` shares in all.
    forced : blocks, optional
        Size of a share that the user asked for; overrides the other two.

    Examples
    --------
    >>> share_count(10_000, 98), share_count(100, 98, workers=4), share_count(100, 98, forced=30)
    (102, 4, 4)
    """
    if forced is not None:
        return math.ceil(blocks / forced)
    most = MOST_SHARES if workers is None else SHARES_PER_WORKER * workers
    return min(blocks, max(blocks // at_least, workers or 1, 1), most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Number of shares, and the time of the run if rates are known."""

    shares: int
    seconds_per_block: float | None
    worker_seconds: float | None
    """Seconds of the whole run on one worker, including the start-up of each share."""


def timing(
    estimate: Estimate, settings: Settings, rates: Rates | None, workers: int | None, forced: int | None
) -> Timing:
    """Shares and time; without rates, shares are sized for fast hardware and the time is unknown."""
    sizing = rates or nominal_rates(estimate, settings.device, settings.precision, settings.threads)
    per_block = seconds_per_block(estimate, sizing, settings.device)
    shares = share_count(estimate.blocks, blocks_per_share(per_block), workers, forced)
    if rates is None:
        return Timing(shares=shares, seconds_per_block=None, worker_seconds=None)
    total = estimate.blocks * per_block + shares * STARTUP_SECONDS
    return Timing(shares=shares, seconds_per_block=per_block, worker_seconds=total)


@dataclass(frozen=True, slots=True)
class Link:
    """A resource that all workers share, and how much of it the whole run uses."""

    name: str
    amount: float
    limit: float
    """Typical amount per second."""
    unit: str
    remedy: str

    @property
    def seconds(self) -> float:
        """Seconds of the run if this were the only limit; more workers do not change it."""
        return self.amount / self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Load that a number of workers put on their file system together."""

    workers: int
    network_seconds: float | None
    """Seconds of the run if only the workers' speed limited it; None if that speed is unknown."""
    links: tuple[Link, ...]
    receipts: int
    receipts_bytes: int

    @property
    def weakest(self) -> Link:
        """The shared resource that takes longest."""
        return max(self.links, key=lambda link: link.seconds)

    @property
    def network_is_weakest(self) -> bool | None:
        """Whether the network takes longer than any shared resource; None if the workers' speed is unknown."""
        return None if self.network_seconds is None else self.network_seconds >= self.weakest.seconds

    @property
    def seconds(self) -> float | None:
        """Shortest possible time of the run; None if the workers' speed is unknown."""
        return None if self.network_seconds is None else max(self.network_seconds, self.weakest.seconds)

    def per_second(self, amount: float) -> float | None:
        """Amount per second that workers at full speed would need; None if their speed is unknown."""
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
    """Traffic of a number of workers; ``worker_seconds`` is the time of the run on a single worker."""
    operations = estimate.input_chunks + 2 * estimate.output_files  # an open; a create and a rename
    links = (
        Link("reading", estimate.input_bytes, BYTES_PER_SECOND, "bytes", "a larger tile rereads fewer bytes"),
        Link("writing", estimate.output_bytes, BYTES_PER_SECOND, "bytes", "--dtype uint8 writes the fewest bytes"),
        Link("file operations", operations, OPERATIONS_PER_SECOND, "", "larger chunks or shards need fewer"),
    )
    return Traffic(
        workers=workers,
        network_seconds=None if worker_seconds is None else worker_seconds / min(workers, estimate.blocks),
        links=links,
        receipts=estimate.blocks,
        receipts_bytes=estimate.receipts_bytes,
    )
