"""The run folder: plan, receipts, logs and the launcher's lock, at ``<store>.run/<step>/``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unetcli.files import publish, remove_aside
from unetcli.lock import hold
from unetcli.plan import Plan
from unetcli.receipts import Receipt, read_receipts


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Owns every path of one step of one output."""

    path: Path

    @classmethod
    def of(cls, store: Path, step: str = "predict") -> RunFolder:
        return cls(Path(f"{os.path.abspath(store)}.run") / step)  # noqa: PTH100 - resolves no links

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
    def set_aside(self) -> Path:
        """Blocks that the last call set aside, a JSON line each."""
        return self.logs / "set-aside.jsonl"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    def make(self) -> None:
        """Create the folders; existing ones stay."""
        self.receipts.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)

    def plan(self) -> Plan | None:
        """The frozen plan, or None where none was published."""
        try:
            return Plan.from_json(self.plan_file.read_text())
        except FileNotFoundError:
            return None

    def publish_plan(self, plan: Plan) -> Plan:
        """Freeze the plan; returns the one that holds, which is an earlier one where another launcher was faster."""
        publish(self.plan_file, plan.to_json())
        frozen = self.plan()
        assert frozen is not None
        return frozen

    def latest_receipts(self) -> dict[int, Receipt]:
        return read_receipts(self.receipts)

    def forget_receipts(self) -> None:
        """Drop all receipts: nothing they vouch for exists any more."""
        remove_aside(self.receipts)
        self.make()

    def forget_run(self) -> None:
        """Drop plan, receipts and logs. The plan goes first: without it nothing else is ever trusted."""
        self.plan_file.unlink(missing_ok=True)
        remove_aside(self.logs)
        self.forget_receipts()

    @contextmanager
    def launcher(self, *, take_over: bool = False) -> Iterator[None]:
        """Hold the launcher's lock: one launcher per output; see :func:`unetcli.lock.hold`."""
        self.make()
        with hold(self.lock, take_over=take_over):
            yield
