"""The folder of a training, ``model/``: what it makes, and what it needs to go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetcli.config import TrainingConfig
from unetcli.errors import UnetcliError
from unetcli.files import PARTIAL, replacing, sweep, sync
from unetcli.lock import hold
from unetcli.model import FILE_NAME

if TYPE_CHECKING:
    from unetcli.training.checkpoint import Checkpoint

VERSION = 1


@dataclass(frozen=True, slots=True)
class TrainingFolder:
    """Owns every path of one training."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "training.json"

    @property
    def model(self) -> Path:
        return self.path / FILE_NAME

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @contextmanager
    def launcher(self, *, take_over: bool = False) -> Iterator[None]:
        """One training at a time; see :func:`unetcli.lock.hold`."""
        self.path.mkdir(parents=True, exist_ok=True)
        with hold(self.path / "lock", take_over=take_over):
            sweep(self.path)
            yield

    def require_ours(self) -> None:
        """Refuse a place that holds something else than a training."""
        if self.path.exists() and not self.config.exists() and (not self.path.is_dir() or any(self._foreign())):
            raise UnetcliError(f"{self.path}: exists and was not made by unetcli train; --output names another place")

    def frozen(self) -> tuple[TrainingConfig, int] | None:
        """Configuration and goal (steps) of the training that is here, or None."""
        try:
            values = json.loads(self.config.read_text())
        except FileNotFoundError:
            return None
        if values["version"] != VERSION:
            raise UnetcliError(f"{self.config}: version {values['version']}; --overwrite starts anew")
        return TrainingConfig.from_dict(values["config"]), values["steps"]

    def require_same(self, config: TrainingConfig) -> None:
        """Refuse to go on with another configuration than the one frozen here."""
        frozen = self.frozen()
        if frozen and (told := frozen[0].differences(config)):
            raise UnetcliError(
                f"{self.path}: holds another training: {'; '.join(told)}; "
                "use those again, --overwrite starts anew, --output names another place"
            )

    def freeze(self, config: TrainingConfig, steps: int) -> None:
        """Record configuration and goal."""
        with replacing(self.config) as draft:
            draft.write_text(json.dumps({"version": VERSION, "steps": steps, "config": config.to_dict()}, indent=1))

    def forget(self) -> None:
        """Delete what a training made. The checkpoint goes first: a rest without it starts anew."""
        for path in (self.checkpoint, self.log, self.model, self.curves, self.config):
            path.unlink(missing_ok=True)

    def load_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, or None."""
        from unetcli.training.checkpoint import Checkpoint

        return Checkpoint.load(self.checkpoint) if self.checkpoint.exists() else None

    def rows(self) -> list[dict[str, Any]]:
        """The log; a last line torn by a crash is left out."""
        try:
            lines = self.log.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def append_log(self, row: dict[str, Any]) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        sync(self.log)

    def trim_log(self, step: int) -> None:
        """Forget what was logged after a checkpoint: it is about to happen again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        with replacing(self.log) as draft:
            draft.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def _foreign(self) -> Iterator[Path]:
        begun = ("lock", "lock.guard")  # all that is here when a call was killed early
        return (path for path in self.path.iterdir() if path.name not in begun and path.suffix != PARTIAL)
