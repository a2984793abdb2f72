"""What went wrong, block by block and job by job: JSON lines in files of the run folder, one file per worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unetcli.engine.receipts import Ledger, worker_name

UNUSABLE, FAILED = "unusable", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFailure:
    """Why a block has no receipt."""

    block: int
    place: str
    kind: str
    """``unusable``: its input is damaged or not finite; ``failed``: anything else."""
    reason: str
    traceback: str
    host: str
    job: str

    def note(self) -> dict[str, Any]:
        """What a summary says of it."""
        return {"block": self.block, "place": self.place, "reason": self.reason}


class FailureBook:
    """A worker's own file of failures, made when there is a first one."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{worker_name()}.jsonl"

    def add(self, failure: BlockFailure) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(failure)) + "\n")


def read_failures(folder: Path) -> Iterator[BlockFailure]:
    """Every failure that is on record, workers by when they last met one; torn lines are left out."""
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        for line in path.read_text(errors="replace").splitlines():
            try:
                yield BlockFailure(**json.loads(line))
            except (ValueError, TypeError):
                continue


def current_failures(folder: Path, ledger: Ledger) -> list[BlockFailure]:
    """The last failure of each block that has no receipt."""
    last = {failure.block: failure for failure in read_failures(folder)}
    return [failure for block, failure in sorted(last.items()) if block < len(ledger.done) and not ledger.done[block]]
