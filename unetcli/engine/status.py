"""How far a run is, who works on it and what went wrong: from the files of its run folder alone."""

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
"""Every block is in one of these."""
TAIL_BYTES, FILES_PER_HOST = 4096, 2
"""Read to time a host: the last 30 blocks or so of its newest receipts files, however long the run."""
SLOWEST = 5
"""Hosts told of."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """How far one stage is. What runs, runs in the first stage that has anything to do."""

    name: str
    blocks: int
    done: int
    running: int
    failed: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A look at a run. Every block is one of done, running, failed and missing."""

    blocks: int
    done: int
    running: int
    """In the hands of workers that live."""
    failed: int
    """Tried without success; the same command tries them again."""
    missing: int
    """Nobody works on these yet, or any more."""
    voxels_per_second: float
    """Of all living workers together, each since it began."""
    seconds_left: float | None
    """For all that is not done; None: nobody works."""
    failures: list[Failure]
    """What keeps blocks missing; none once all are done."""
    output: str
    complete: bool
    """By the output's own word."""
    workers: int
    """Those that live."""
    silent: int
    """Workers of other hosts that gave no sign of life."""
    hosts: int
    """With living workers."""
    queued: int
    """Jobs that wait in SLURM's queue."""
    queued_for: str
    """What most of them wait for, in SLURM's words."""
    voxels_done: int
    voxels: int
    stopped: str | None
    """Why no worker begins another block."""
    slowest_hosts: list[HostPace]
    median_seconds_per_block: float | None
    """Of the hosts."""
    step: str
    """predict, instances (or what labels are called), evaluate."""
    command: str
    """That goes on with it."""
    stages: list[StageStatus]
    """One after the other."""
    gone: bool
    """Whether the output was deleted."""
    levels_missing: int
    """Blocks of coarser levels that a prediction waits for whose own blocks are all done."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Watcher:
    """Looks at one run, as often as asked; receipts that a look has read are not read again."""

    def __init__(self, step: Step, scheduler: Scheduler | None = None, patience: float = PATIENCE_SECONDS) -> None:
        self.step, self.folder = step, step.folder
        self.workers = Workers(step.folder, scheduler or JobStates(), patience)
        self.ledger = Ledger(step.folder.receipts, step.blocks)

    def look(self, wait: bool = True) -> Status:
        """The state of the run.

        Where only the counters of workers tell whether they live, waits for each to change, as long as patience lasts:
        no clock but the reader's is asked. Without ``wait``, it takes later looks to know.
        """
        workers = self.workers
        self.step.look_again()
        workers.look()
        if wait:
            workers.await_signs()
        complete, living = self._read_receipts(), workers.living
        failures = current_failures(self.folder.failures, self.ledger)
        stages = self._stages(sum(beat.in_hand for beat in living), failures)
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
            workers=len(living),
            silent=workers.undecided,
            hosts=len({beat.holder.host for beat in living}),
            stopped=_first_line(self.folder.stop),
            stages=stages,
            blocks=self.step.blocks,
            **{state: sum(getattr(stage, state) for stage in stages) for state in STATES},
            **workers.queue,
            **self._pace(living),
            **self._hosts(),
        )

    def _levels_missing(self) -> int:
        """Blocks of coarser levels that are missing, once all other blocks are done."""
        first, done = self.step.levels_from, self.ledger.done
        return 0 if first is None or not done[:first].all() else int((~done[first:]).sum())

    def _read_receipts(self) -> bool:
        """Take in new receipts; whether nothing is left to do."""
        try:
            self.ledger.refresh()
        except FileNotFoundError:
            if self.folder.plan_file.exists():
                raise
        if self.folder.plan_file.exists():
            return self.ledger.complete and self.step.is_complete()
        if not self.step.is_complete():
            raise UnetcliError(f"{self.step.output}: its run folder {self.folder.path} is gone")
        self.ledger.done[:] = True  # an evaluation deletes its folder once it has told the scores
        return True

    def _stages(self, in_hand: int, failures: Sequence[BlockFailure]) -> list[StageStatus]:
        missing = self.ledger.missing
        failed = np.array([failure.block for failure in failures], np.intp)
        now = np.setdiff1d(pending(self.step.stages, missing), failed)[:in_hand]
        return [
            StageStatus(name=stage.name, blocks=len(stage.blocks), **_counts(stage.blocks, missing, now, failed))
            for stage in self.step.stages
        ]

    def _pace(self, living: Sequence[Beat]) -> dict[str, Any]:
        rate = float(sum(beat.voxels_per_second for beat in living))
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
        paces = host_paces(self.folder.receipts, dict(zip(hosts, blocks.tolist(), strict=True)))
        middle = statistics.median(pace.seconds_per_block for pace in paces) if paces else None
        return {"slowest_hosts": paces[:SLOWEST], "median_seconds_per_block": middle}


def _counts(
    blocks: range, missing: NDArray[np.intp], now: NDArray[np.intp], failed: NDArray[np.intp]
) -> dict[str, int]:
    """How many blocks of a range are in each state; all three arrays rise."""
    rest, running, bad = (len(in_range(numbers, blocks)) for numbers in (missing, now, failed))
    return {"done": len(blocks) - rest, "running": running, "failed": bad, "missing": rest - running - bad}


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().partition("\n")[0]
    except FileNotFoundError:
        return None


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
    names = ("read_seconds", "forward_seconds", "write_seconds")
    means = {name: round(statistics.fmean(getattr(receipt, name) for receipt in receipts), 3) for name in names}
    return HostPace(host=host, blocks=blocks, seconds_per_block=round(sum(means.values()), 3), **means)
