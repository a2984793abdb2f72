"""The folder of a training, ``model/``: its results, its log, and the checkpoint from which it goes on."""

from __future__ import annotations

import io
import json
import logging
import os
import platform
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unetcli import __version__
from unetcli.core.errors import UnetcliError
from unetcli.core.files import PARTIAL, draft_of, remove_aside, replacing, sweep, sync
from unetcli.core.lock import hold
from unetcli.model.file import FILE_NAME
from unetcli.train.settings import TrainingConfig

CONFIG_VERSION = CHECKPOINT_VERSION = 2
log = logging.getLogger(__name__)


class _Inside:
    """The path of a file or folder inside of a training's folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: TrainingFolder, owner: type[TrainingFolder]) -> Path:
        return folder.path / self.name


@dataclass(frozen=True, slots=True)
class TrainingFolder:
    """Owns every path of one training."""

    path: Path
    config = _Inside("training.json")
    model = _Inside(FILE_NAME)
    checkpoint = _Inside("checkpoint.pt")
    previous = _Inside("checkpoint.previous.pt")
    """The checkpoint before the last one."""
    damaged = _Inside("checkpoint.damaged.pt")
    """A checkpoint that could not be read, as it was found."""
    log = _Inside("log.jsonl")
    curves = _Inside("curves.png")
    samples = _Inside("samples.png")
    """Picture of the first training samples."""
    predictions = _Inside("predictions")
    """Pictures of held-out sections, one for each validation."""
    jobs = _Inside("jobs")
    """Logs of SLURM jobs."""
    tensorboard = _Inside("tensorboard")

    @contextmanager
    def launcher(self, *, take_over: bool = False) -> Iterator[None]:
        """One training at a time; see :func:`unetcli.core.lock.hold`."""
        self.path.mkdir(parents=True, exist_ok=True)
        with hold(self.path / "lock", take_over=take_over):
            sweep(self.path)
            yield

    def require_ours(self) -> None:
        """Refuse a place that holds something else than a training."""
        begun = ("lock", "lock.guard", "launcher", "launcher.guard", "jobs")  # of calls killed early
        if not self.path.exists() or self.config.exists():
            return
        if not self.path.is_dir() or any(p.name not in begun and p.suffix != PARTIAL for p in self.path.iterdir()):
            raise UnetcliError(f"{self.path}: exists and was not made by unetcli train; --output names another place")

    def frozen(self) -> tuple[TrainingConfig, int] | None:
        """Configuration and goal (steps) of the training that is here, or None."""
        try:
            values = json.loads(self.config.read_text())
            if values["version"] != CONFIG_VERSION:
                raise UnetcliError(f"{self.config}: version {values['version']}; --overwrite starts anew")
            return TrainingConfig.from_dict(values["config"]), values["steps"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise UnetcliError(f"{self.config}: damaged; --overwrite starts anew") from error

    def require_same(self, config: TrainingConfig) -> None:
        """Refuse to go on with another configuration than the one frozen here."""
        frozen = self.frozen()
        if frozen and (differences := frozen[0].differences(config)):
            raise UnetcliError(
                f"{self.path}: holds another training: {'; '.join(differences)}; "
                "use those again, --overwrite starts anew, --output names another place"
            )

    def freeze(self, config: TrainingConfig, steps: int) -> None:
        """Record configuration and goal, and the versions of what trains."""
        values = {"version": CONFIG_VERSION, "steps": steps, "made_with": versions(), "config": config.to_dict()}
        with replacing(self.config) as draft:
            draft.write_text(json.dumps(values, indent=1))

    def forget(self) -> None:
        """Delete the files of a training. The checkpoints go first: without them the rest starts again."""
        files = (self.checkpoint, self.previous, self.damaged, self.log, self.model, self.curves, self.samples)
        for path in files:
            path.unlink(missing_ok=True)
        for folder in (self.predictions, self.tensorboard):
            remove_aside(folder)
        self.config.unlink(missing_ok=True)

    def load_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, or None; the one before where the last is damaged or was not renamed in time."""
        last, before = self.checkpoint, self.previous
        try:
            return Checkpoint.load(last)
        except FileNotFoundError:
            return Checkpoint.load(before) if before.exists() else None
        except UnetcliError as error:
            if not before.exists():
                raise
            found = Checkpoint.load(before)
            log.warning("%s; going on from %s", error, before.name)
        with suppress(FileNotFoundError):  # another process of the same training was faster
            os.replace(last, self.damaged)  # else the next save would keep it as the one before
        return found

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


def versions() -> dict[str, str | None]:
    """Versions of unetcli and of what its numbers depend on."""
    return {
        "unetcli": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "revision": revision(),
    }


def revision() -> str | None:
    """The commit of the checkout that unetcli runs from, with ``+`` where files were changed; None elsewhere."""
    here = str(Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """State from which a training goes on exactly: tensors and plain values only.

    Random streams need no state: they are keyed by seed and number.
    """

    config: dict[str, Any]
    step: int
    """Steps done."""
    network: dict[str, Any]
    optimizer: dict[str, Any]
    averaged: dict[str, Any] | None
    """The moving average of the weights, where one is kept."""
    best: float | None
    """Best value so far of the measure that selects the model: that of ``model.safetensors``."""
    looks_since_best: int
    """Validations since then."""
    pending: list[float]
    """Losses since the last validation."""
    seconds: float
    """Time spent training."""

    def save(self, file: Path, previous: Path) -> None:
        """Write the whole file or nothing; an earlier one is kept as ``previous``."""
        values = {name: getattr(self, name) for name in self.__slots__}
        content = io.BytesIO()  # torch's own file writer hides a full disk behind an error of its own
        torch.save({"version": CHECKPOINT_VERSION, **values}, content)
        draft = draft_of(file)
        try:
            draft.write_bytes(content.getbuffer())
            sync(draft)
            if file.exists():
                os.replace(file, previous)
            os.replace(draft, file)
            sync(file.parent)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, file: Path) -> Checkpoint:
        """Read without pickle's code execution (``weights_only``), and only as it was written."""
        try:
            with zipfile.ZipFile(file) as archive:  # torch compares no checksums, and would go on with other weights
                if (part := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(part)
            values = torch.load(file, map_location="cpu", weights_only=True)
        except (FileNotFoundError, PermissionError, MemoryError):
            raise
        except Exception as error:  # torch raises pickle, zip and runtime errors here
            raise UnetcliError(f"{file}: damaged checkpoint; --overwrite starts anew") from error
        if values.pop("version", None) != CHECKPOINT_VERSION:
            raise UnetcliError(f"{file}: checkpoint of another version; --overwrite starts anew")
        return cls(**values)
