"""Progress, workers and failures of a run, read from the files of its run folder alone."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.engine.receipts import DONE, BlockFailure, Ledger, Receipt, current_failures
from unetcli.engine.step import Step
from unetcli.engine.workers import PATIENCE_SECONDS, Beat, Failure, Scheduler, Workers
from unetcli.executors.slurm.watch import JobStates
from unetcli.planning.plan import in_range, pending

STATES = ("done", "running", "failed", "missing")
"""States of blocks; every block is in exactly one."""
TAIL_BYTES, FILES_PER_HOST = 4096, 2
"""Bytes per file, and newest receipts files, read to time a host: about its last 30 blocks."""
SLOWEST = 5
"""Number of slowest hosts that are listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTiming:
    """Number of blocks that one host computed, and its recent time per block."""

    host: str
    blocks: int
    """Blocks computed in total."""
    seconds_per_block: float
    """Mean sum of read, forward and write time of its last blocks; these overlap, so blocks may finish faster."""
    read_seconds: float
    forward_seconds: float
    write_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """Progress of one stage. Running blocks belong to the first incomplete stage."""

    name: str
    blocks: int
    done: int
    running: int
    failed: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """State of a run. Every block is done, running, failed or missing."""

    blocks: int
    done: int
    running: int
    """Blocks assigned to workers that are alive."""
    failed: int
    """Blocks that failed; the same command retries them."""
    missing: int
    """Blocks that no worker is computing."""
    voxels_per_second: float
    """Total rate of all workers that are alive, each since its start."""
    seconds_left: float | None
    """Estimated time until all blocks are done; None if no worker is running."""
    failures: list[Failure]
    """Failures of blocks and workers; empty once all blocks are done."""
    output: str
    complete: bool
    """Whether the output is marked complete."""
    workers: int
    """Workers that are alive."""
    silent: int
    """Workers on other hosts that sent no heartbeat."""
    hosts: int
    """Hosts with workers that are alive."""
    queued: int
    """Jobs waiting in SLURM's queue."""
    queued_for: str
    """Most frequent reason for waiting, as SLURM reports it."""
    voxels_done: int
    voxels: int
    stopped: str | None
    """Reason why workers start no further blocks; None if they do."""
    slowest_hosts: list[HostTiming]
    median_seconds_per_block: float | None
    """Median over the hosts."""
    step: str
    """Name of the step: predict, evaluate, or the name of the labels."""
    command: str
    """Command that continues the run."""
    stages: list[StageStatus]
    """The stages in order."""
    gone: bool
    """Whether the output was deleted."""
    levels_missing: int
    """Missing blocks of coarser levels, once all other blocks of a prediction are done."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Watcher:
    """Follows one run; each receipt is read only once."""

    def __init__(self, step: Step, scheduler: Scheduler | None = None, patience: float = PATIENCE_SECONDS) -> None:
        self.step, self.folder = step, step.folder
        self.workers = Workers(step.folder, scheduler or JobStates(), patience)
        self.ledger = Ledger(step.folder.receipts, step.blocks)

    def status(self, wait: bool = True) -> Status:
        """Return the state of the run.

        If only heartbeats show whether workers are alive, wait for each to change, at most ``patience`` seconds; only
        the reader's clock is used. Without ``wait``, later calls find out.
        """
        workers = self.workers
        self.step.clear_cache()
        workers.update()
        if wait:
            workers.wait_for_heartbeats()
        complete, alive = self._read_receipts(), workers.alive
        failures = current_failures(self.folder.failures, self.ledger)
        stages = self._stages(sum(beat.blocks_left for beat in alive), failures)
        return Status(
            failures=[]
            if self.ledger.complete
            else [
                *workers.lost(),
                *(Failure(job=f.job, host=f.host, block=f.block, place=f.place, reason=f.reason) for f in failures),
            ],
            output=str(self.step.output),
            step=self.step.name,
            command=self.step.command,
            complete=complete,
            gone=not complete and self.step.is_gone(self.ledger.done),
            levels_missing=self._levels_missing(),
            workers=len(alive),
            silent=workers.unknown,
            hosts=len({beat.holder.host for beat in alive}),
            stopped=_first_line(self.folder.stop),
            stages=stages,
            blocks=self.step.blocks,
            **{state: sum(getattr(stage, state) for stage in stages) for state in STATES},
            **workers.queue,
            **self._rate(alive),
            **self._hosts(),
        )

    def _levels_missing(self) -> int:
        """Return the number of missing blocks of coarser levels; 0 while other blocks are missing."""
        first, done = self.step.levels_from, self.ledger.done
        return 0 if first is None or not done[:first].all() else int((~done[first:]).sum())

    def _read_receipts(self) -> bool:
        """Read new receipts; return whether the run is complete."""
        try:
            self.ledger.refresh()
        except FileNotFoundError:
            if self.folder.plan_file.exists():
                raise
        if self.folder.plan_file.exists():
            return self.ledger.complete and self.step.is_complete()
        if not self.step.is_complete():
            raise UnetcliError(f"{self.step.output}: its run folder {self.folder.path} was deleted")
        self.ledger.done[:] = True  # an evaluation deletes its run folder after reporting the scores
        return True

    def _stages(self, blocks_left: int, failures: Sequence[BlockFailure]) -> list[StageStatus]:
        missing = self.ledger.missing
        failed = np.array([failure.block for failure in failures], np.intp)
        now = np.setdiff1d(pending(self.step.stages, missing), failed)[:blocks_left]
        return [
            StageStatus(name=stage.name, blocks=len(stage.blocks), **_counts(stage.blocks, missing, now, failed))
            for stage in self.step.stages
        ]

    def _rate(self, alive: Sequence[Beat]) -> dict[str, Any]:
        rate = float(sum(beat.voxels_per_second for beat in alive))
        total, done = self.step.size, self.step.voxels(self.ledger.done)
        left = (total - done) / rate if rate else None
        return {
            "voxels_per_second": round(rate, 1),
            "seconds_left": 0.0 if self.ledger.complete else left and round(left, 1),
            "voxels_done": done,
            "voxels": total,
        }

    def _hosts(self) -> dict[str, Any]:
        if not self.folder.receipts.is_dir():
            return {"slowest_hosts": [], "median_seconds_per_block": None}
        hosts = self.ledger.hosts
        blocks = np.bincount(self.ledger.host[self.ledger.done & (self.ledger.host >= 0)], minlength=len(hosts))
        timings = host_timings(self.folder.receipts, dict(zip(hosts, blocks.tolist(), strict=True)))
        median = statistics.median(timing.seconds_per_block for timing in timings) if timings else None
        return {"slowest_hosts": timings[:SLOWEST], "median_seconds_per_block": median}


def _counts(
    blocks: range, missing: NDArray[np.intp], now: NDArray[np.intp], failed: NDArray[np.intp]
) -> dict[str, int]:
    """Count the blocks of a range in each state; the three arrays are in ascending order."""
    rest, running, bad = (len(in_range(numbers, blocks)) for numbers in (missing, now, failed))
    return {"done": len(blocks) - rest, "running": running, "failed": bad, "missing": rest - running - bad}


def _first_line(path: Path) -> str | None:
    return path.read_text(errors="replace").partition("\n")[0] if path.is_file() else None


def host_timings(receipts: Path, blocks: Mapping[str, int]) -> list[HostTiming]:
    """Time the last blocks of each host, slowest host first; ``blocks`` holds the total number of blocks per host."""
    last: dict[str, list[Receipt]] = {}
    for receipt in recent_receipts(receipts):
        if receipt.state == DONE and receipt.tile:  # skipped blocks would distort the mean
            last.setdefault(receipt.host, []).append(receipt)
    timings = [_timing_of(host, found, blocks.get(host, 0)) for host, found in last.items()]
    return sorted(timings, key=lambda timing: -timing.seconds_per_block)


def recent_receipts(folder: Path) -> Iterator[Receipt]:
    """Yield the most recent receipts of each host."""
    newest: dict[str, list[tuple[float, str]]] = {}
    with os.scandir(folder) as entries:
        for entry in (entry for entry in entries if entry.name.endswith(".txt") and entry.is_file()):
            host = entry.name.rsplit("-", 2)[0]
            files = newest.setdefault(host, [])
            files.append((entry.stat().st_mtime, entry.path))
            files.sort(reverse=True)
            del files[FILES_PER_HOST:]
    for _, path in itertools.chain(*newest.values()):
        with open(path, "rb") as file:  # noqa: PTH123 - a path for each of many files is slow
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).decode(errors="replace").splitlines()
        yield from filter(None, map(Receipt.from_line, lines))  # the first line may be cut off


def _timing_of(host: str, receipts: Sequence[Receipt], blocks: int) -> HostTiming:
    names = ("read_seconds", "forward_seconds", "write_seconds")
    means = {name: round(statistics.fmean(getattr(receipt, name) for receipt in receipts), 3) for name in names}
    return HostTiming(host=host, blocks=blocks, seconds_per_block=round(sum(means.values()), 3), **means)
