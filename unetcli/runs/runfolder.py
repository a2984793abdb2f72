"""The run folder: plan, receipts, logs and the launcher's lock, at ``<store>.run/<step>/``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from unetcli.errors import UnetcliError
from unetcli.files import Place, is_remote, publish, remove_aside, replacing
from unetcli.lock import hold, require_free
from unetcli.planning.plan import Plan
from unetcli.runs.receipts import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a run's data lie: what a worker needs beside the plan."""

    volume: str
    model: str
    output: str
    mask: str | None = None
    device: str | None = None
    """Which one of the plan's kind, where the user said so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """The blocks' division into shares, and which elements of a job array they are."""

    count: int
    first: int = 0
    """Array index of share 0."""
    step: int = 1
    """Between the array indices of neighbouring shares."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Owns every path of one step of one output."""

    path: Path

    @classmethod
    def of(cls, store: Place, step: str = "predict") -> RunFolder:
        """Beside the store; a remote one has to have it elsewhere."""
        if is_remote(store):
            raise UnetcliError(f"{store}: --run-folder FOLDER names a place on this file system for plan and receipts")
        return cls(Path(f"{os.path.abspath(store)}.run") / step)  # noqa: PTH100 - resolves no links

    def of_step(self, step: str) -> RunFolder:
        """The folder of another step of the same output: beside ``predict``, else inside a folder that a user named."""
        return RunFolder((self.path.parent if self.path.name == "predict" else self.path) / step)

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def receipts(self) -> Path:
        return self.path / "receipts"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def troubles(self) -> Path:
        """Blocks that failed or were set aside, a JSON line each; see :mod:`unetcli.runs.troubles`."""
        return self.path / "troubles"

    @property
    def workers(self) -> Path:
        """Heartbeats."""
        return self.path / "workers"

    @property
    def canaries(self) -> Path:
        """One file per host whose results were compared with another's."""
        return self.path / "canaries"

    @property
    def stop(self) -> Path:
        """Exists when no worker shall begin another block; says why."""
        return self.path / "stop"

    @property
    def places_file(self) -> Path:
        return self.path / "places.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    def make(self) -> None:
        """Create the folders; existing ones stay."""
        for folder in (self.receipts, self.logs, self.troubles, self.workers, self.canaries):
            folder.mkdir(parents=True, exist_ok=True)

    def plan(self) -> Plan | None:
        """The frozen plan, or None where none was published."""
        try:
            return Plan.from_json(self.plan_file.read_text())
        except FileNotFoundError:
            return None

    def require_plan_of(self, key: str, what: str) -> None:
        """Refuse the folder of a run of another kind, of which nothing may be dropped.

        Raises
        ------
        UnetcliError
            There is a plan without that key.
        """
        with suppress(FileNotFoundError):
            if f'"{key}"' not in self.plan_file.read_text():
                raise UnetcliError(f"{self.plan_file}: no plan of {what}; --run-folder names another place")

    def publish_plan(self, plan: Plan) -> Plan:
        """Freeze the plan; returns the one that holds, which is an earlier one where another launcher was faster."""
        publish(self.plan_file, plan.to_json())
        frozen = self.plan()
        assert frozen is not None
        return frozen

    def places(self) -> Places:
        """Where the run's data are now."""
        return Places(**json.loads(self.places_file.read_text()))

    def tell_places(self, places: Places) -> None:
        """Note where the data are, for workers; paths may change between two launches, the plan does not."""
        with replacing(self.places_file) as draft:
            draft.write_text(json.dumps(asdict(places), indent=1))

    def ledger(self, blocks: int) -> Ledger:
        """What the receipts say by now."""
        return Ledger(self.receipts, blocks).refresh()

    def forget_receipts(self) -> None:
        """Drop all receipts: nothing they vouch for exists any more."""
        remove_aside(self.receipts)
        self.forget_troubles()

    def forget_troubles(self) -> None:
        """Drop what went wrong before: it is tried again."""
        self.stop.unlink(missing_ok=True)
        for folder in (self.troubles, self.workers):
            remove_aside(folder)
        self.make()

    def forget_run(self) -> None:
        """Drop plan, receipts and logs. The plan goes first: without it nothing else is ever trusted."""
        self.plan_file.unlink(missing_ok=True)
        (self.path / "shares.json").unlink(missing_ok=True)
        for folder in (self.logs, self.canaries):
            remove_aside(folder)
        self.forget_receipts()

    @contextmanager
    def launcher(self, *, take_over: bool = False, wait: float = 0) -> Iterator[None]:
        """Hold the launcher's lock: one launcher per output; see :func:`unetcli.lock.hold`."""
        self.make()
        with hold(self.lock, take_over=take_over, wait=wait):
            yield

    def share_lock(self, number: int) -> Path:
        """Held by the process that works on that share."""
        return self.path / f"share-{number}.lock"

    def require_no_shares(self, *, take_over: bool = False) -> None:
        """Raise where a process with ``--share`` works on this output and is not provably gone."""
        for path in sorted(self.path.glob("share-*.lock")):
            require_free(path, take_over=take_over)

    def division(self) -> Division | None:
        """Into how many shares the blocks were divided, or None where nobody asked for shares yet."""
        try:
            return Division(**json.loads((self.path / "shares.json").read_text()))
        except FileNotFoundError:
            return None

    def publish_division(self, division: Division) -> Division:
        """Freeze the number of shares; returns the one that holds."""
        publish(self.path / "shares.json", json.dumps(asdict(division)))
        return self.division() or division
